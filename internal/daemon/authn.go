package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/relay"
	"crossfade/relay/authn"
	"crossfade/relay/authn/arcrelay"
	"crossfade/relay/resolver"
)

// newResolver asks the DNS as a configuration says. looked may be nil.
func newResolver(cfg *config.Config, looked func(string, resolver.Result, time.Duration)) (*resolver.Resolver, error) {
	r, err := resolver.New(resolver.Config{Servers: cfg.SMTP.Resolvers, TrustAD: cfg.SMTP.ResolversValidate, Looked: looked})
	if err != nil {
		return nil, fmt.Errorf("smtp.resolvers: %w", err)
	}
	return r, nil
}

// openResolvers make what asks the DNS for the relay, and what counts that. What is published about the servers that mail
// is delivered to is asked for by a resolver of its own: strangers decide what the other one is asked, and could keep mail
// from being delivered by having it wait for many answers at once.
func (d *Daemon) openResolvers() (err error) {
	var m *admin.AuthMetrics
	looked := func(typ string, r resolver.Result, took time.Duration) { m.Looked(typ, string(r), took) }
	if d.resolver, err = newResolver(d.cfg, looked); err != nil {
		return err
	}
	forPolicies, err := newResolver(d.cfg, looked)
	if err != nil {
		return err
	}
	d.policies = newTLSPolicies(forPolicies, stsFile(d.cfg), d.log)
	m = admin.NewAuthMetrics(d.registry, func() float64 {
		return float64(len(d.troubles()))
	})
	d.authMetrics = m
	return nil
}

// troubles are the servers that are of no use, each once, whoever asked them.
func (d *Daemon) troubles() []resolver.Trouble {
	all := slices.Concat(d.resolver.Troubles(), d.policies.resolver.Troubles())
	slices.SortFunc(all, func(a, b resolver.Trouble) int {
		return cmp.Or(cmp.Compare(a.Server, b.Server), a.Since.Compare(b.Since))
	})
	return slices.CompactFunc(all, func(a, b resolver.Trouble) bool { return a.Server == b.Server })
}

// resolverWarnings tell readers of /readyz that nothing can be looked up.
func (d *Daemon) resolverWarnings() []string {
	var out []string
	for _, t := range d.troubles() {
		out = append(out, fmt.Sprintf("the DNS resolver %s has been of no use since %s (%s): what is looked up there has no result, and mail is taken all the same",
			t.Server, t.Since.UTC().Format(time.RFC3339), t.Says))
	}
	return out
}

// inspectors are those that look at each message of the relay, in their order:
// who judges senders may ask whether a sealer vouches for them, and who seals has
// to know what all others found.
func (d *Daemon) inspectors() ([]relay.Inspector, error) {
	var list []relay.Inspector
	judge, seal, err := d.arcInspectors()
	if err != nil {
		return nil, err
	}
	if d.cfg.SMTP.Authentication.Verify {
		i, err := d.newAuthInspector(d.cfg.SMTP.Authentication)
		if err != nil {
			return nil, err
		}
		list = append(list, judge, i)
	}
	list = append(list, d.filterInspector()...)
	if seal != nil {
		list = append(list, seal)
	}
	return list, nil
}

// authInspector has the senders of strangers' messages checked, and puts the
// results on top.
type authInspector struct {
	checker  *authn.Checker
	hostname string
	log      *slog.Logger
}

func (d *Daemon) newAuthInspector(cfg config.Authentication) (*authInspector, error) {
	m := d.authMetrics
	c, err := authn.New(authn.Config{
		Hostname: d.cfg.Hostname, Resolver: d.resolver, Enforce: authn.Enforce(cfg.Enforce), Timeout: time.Duration(cfg.Timeout),
		Metrics: authn.Metrics{
			Result:   func(method string, r authn.Result) { m.Result(method, string(r)) },
			Enforced: m.Enforced, Took: m.Waited,
		},
	})
	if err != nil {
		return nil, err
	}
	return &authInspector{checker: c, hostname: d.cfg.Hostname, log: d.log}, nil
}

// Inspect implements relay.Inspector. Mail of our own systems is not checked: for
// it we are the sender's side, and its Authentication-Results stay as they are
// (RFC 8601, 5: they come from another system that is trusted).
func (i *authInspector) Inspect(ctx context.Context, m relay.Incoming) relay.Inspection {
	if m.Ours {
		return nil
	}
	env := m.Envelope
	msg := authn.Message{ID: env.ID, Client: m.Info.Remote.Addr(), Helo: m.Info.Helo, From: env.From}
	chain := arcrelay.Find(m.Before)
	if chain != nil {
		msg.Vouch = chain.Vouched
	}
	return &authInspection{i: i, id: string(env.ID), check: i.checker.Begin(ctx, msg), chain: chain}
}

// authInspection is the check of one message.
type authInspection struct {
	i     *authInspector
	id    string
	check *authn.Check
	chain *arcrelay.Judgement // of ARC; nil: it was not judged
}

// Sent implements relay.Inspection.
func (x *authInspection) Sent(p []byte) { x.check.Write(p) }

// Kept implements relay.Inspection.
func (x *authInspection) Kept([]byte) {}

// End implements relay.Inspection.
func (x *authInspection) End(ctx context.Context, _ string) (string, error) {
	r := x.check.End(ctx)
	if x.i.log.Enabled(ctx, slog.LevelInfo) {
		x.i.log.LogAttrs(ctx, slog.LevelInfo, "authenticated", slog.String("id", x.id), slog.String("spf", string(r.SPF.Result)),
			slog.String("dkim", string(r.BestDKIM())), slog.String("dmarc", string(r.DMARC.Result)), slog.String("author", r.DMARC.Author),
			slog.String("done", string(r.Disposition)), slog.Duration("wait", r.Took))
	}
	if reply := r.Refusal(); reply != nil {
		return "", reply
	}
	if x.chain != nil {
		r.Others = append(r.Others, x.chain.Method())
	}
	return r.Trace(x.i.hostname), nil
}

// Close implements relay.Inspection.
func (x *authInspection) Close() { x.check.Close() }
