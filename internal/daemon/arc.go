package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/relay"
	"crossfade/relay/authn/arc"
	"crossfade/relay/authn/arcrelay"
	"crossfade/relay/authn/dkim"
	"crossfade/relay/resolver"
)

// arcMemory bounds what is held of headers for ARC, those of all messages
// together, in octets.
const arcMemory = 32 << 20

// arcInspectors give the inspector that judges chains, which goes before the one
// that judges senders, and the one that seals, which goes last; nil: messages are
// not sealed.
func (d *Daemon) arcInspectors() (judge, seal relay.Inspector, err error) {
	m := admin.NewARCMetrics(d.registry)
	cfg, budget := d.cfg.SMTP.ARC, dkim.NewBudget(arcMemory)
	v, err := arc.NewVerifier(arc.Config{
		LookupTXT: lookupTXT(d.resolver), Timeout: time.Duration(d.cfg.SMTP.Authentication.Timeout), Budget: budget,
		Panicked: func(name string, what any) {
			d.log.Error("a key of an ARC seal could not be read, by a fault of this program: the chain counts as one whose key could not be looked up; please report it with the record",
				"name", name, "what", what)
		},
	})
	if err != nil {
		return nil, nil, err
	}
	judge, err = arcrelay.NewJudge(arcrelay.JudgeConfig{
		Verifier: v, Trusted: trustedSealers(cfg.TrustedSealers), Logger: d.log,
		Asking: resolver.WithAsker, Judged: func(s arc.Status) { m.Judged(string(s)) },
	})
	if err != nil || !cfg.Seals() {
		return judge, nil, err
	}
	seal, err = d.newSeal(cfg, m, budget)
	return judge, seal, err
}

func (d *Daemon) newSeal(cfg config.ARC, m *admin.ARCMetrics, budget *dkim.Budget) (relay.Inspector, error) {
	key, err := arc.OpenKey(cfg.Key, d.log)
	if err != nil {
		return nil, fmt.Errorf("smtp.arc.key: %w", err)
	}
	sealer, err := arc.NewSealer(arc.SealerConfig{Domain: cfg.Domain, Selector: cfg.Selector, Key: key.Signer, Budget: budget})
	if err != nil {
		return nil, fmt.Errorf("smtp.arc: %w", err)
	}
	if w := arc.Warning(key.Signer().Public()); w != "" {
		d.log.Warn("smtp.arc.key: "+w, slog.String("file", cfg.Key))
	}
	return arcrelay.NewSeal(arcrelay.SealConfig{
		Sealer: sealer, AuthservID: d.cfg.Hostname, Logger: d.log, Done: func(o arcrelay.Outcome) { m.Sealed(string(o)) },
	})
}

// trustedSealers tells whether a domain is one of a list. Names that cannot be
// read are nobody's: the configuration was checked.
func trustedSealers(names []string) func(string) bool {
	var list []string
	for _, name := range names {
		if domain, err := config.NormalDomain(name); err == nil {
			list = append(list, domain)
		}
	}
	return func(domain string) bool { return slices.Contains(list, domain) }
}

// lookupTXT asks a resolver as package arc wants it.
func lookupTXT(r *resolver.Resolver) func(context.Context, string) ([]string, error) {
	return func(ctx context.Context, name string) ([]string, error) {
		answer, err := r.LookupTXT(ctx, name)
		if errors.Is(err, resolver.ErrNoName) {
			return nil, nil
		}
		return answer.Records, err
	}
}

// checkARC looks whether the key is published.
func checkARC(ctx context.Context, cfg *config.Config) []Finding {
	if !cfg.SMTP.ARC.Seals() {
		return nil
	}
	name := cfg.SMTP.ARC.Selector + "._domainkey." + cfg.SMTP.ARC.Domain
	f := Finding{What: "smtp.arc " + name}
	key, err := arc.OpenKey(cfg.SMTP.ARC.Key, nil)
	if err != nil {
		f.Text, f.Hint = err.Error(), "make one with `openssl genrsa -out arc.pem 2048`; the user who runs crossfade has to be able to read it, and nobody else"
		return []Finding{f}
	}
	public := key.Signer().Public()
	record, err := arc.Record(public)
	if err != nil {
		f.Text = err.Error()
		return []Finding{f}
	}
	f.Hint = "publish as TXT of " + name + ": " + record
	r, err := resolver.New(resolver.Config{Servers: cfg.SMTP.Resolvers})
	if err != nil {
		f.Text, f.Hint = err.Error(), "see smtp.resolvers"
		return []Finding{f}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	records, err := lookupTXT(r)(ctx, name)
	if err == nil {
		err = arc.CheckRecord(records, public)
	} else {
		f.Hint = "could the DNS not be asked from here? The record has to be: " + record
	}
	if err != nil {
		f.Text = err.Error()
		return []Finding{f}
	}
	f.OK, f.Hint, f.Text = true, "", "the record publishes the key"
	out := []Finding{f}
	if w := arc.Warning(public); w != "" {
		out = append(out, Finding{What: "smtp.arc.key", OK: true, Text: "warning: " + w})
	}
	return out
}
