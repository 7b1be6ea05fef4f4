package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/cutover"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay"
	"crossfade/relay/limit"
	"crossfade/relay/smtpclient"
	"crossfade/relay/wire"
	"crossfade/router"
)

// routes lists the backends in the order in which people see them.
var routes = []mail.Route{mail.Old, mail.New, mail.Out}

// backendConfig is the configuration of the backend that a route leads to.
func backendConfig(cfg *config.Config, r mail.Route) config.Backend {
	if h := cfg.SMTP.SmartHost; r == mail.Out && h.Enabled() {
		return config.Backend{SMTP: h.URL, TLS: h.TLS, MaxConnections: h.MaxConnections}
	}
	if r == mail.New || r == mail.Out && cfg.Routing.Outbound == "new" {
		return cfg.Backends.New
	}
	return cfg.Backends.Old
}

// originModes are the values of backends.*.origin; a smart host has none.
var originModes = map[string]smtpclient.OriginMode{
	"xforward": smtpclient.OriginXForward, "xclient": smtpclient.OriginXClient,
	"proxy_v1": smtpclient.OriginProxyV1, "proxy_v2": smtpclient.OriginProxyV2,
}

// target says how to reach the backend of a route.
func target(cfg *config.Config, r mail.Route, log *slog.Logger) (smtpclient.Target, error) {
	b := backendConfig(cfg, r)
	tlsConf, err := backendTLS(b.TLS, b.SMTP.Host)
	if err != nil {
		return smtpclient.Target{}, fmt.Errorf("backends.%s.tls: %w", r, err)
	}
	modes := map[config.TLSMode]smtpclient.Mode{
		config.TLSNone: smtpclient.Insecure, config.TLSOpportunistic: smtpclient.Opportunistic,
		config.TLSRequired: smtpclient.Required, config.TLSImplicit: smtpclient.Implicit,
	}
	t := smtpclient.Target{
		Network: b.SMTP.Network, Address: b.SMTP.Address, LMTP: b.SMTP.Protocol == config.ProtocolLMTP,
		Mode: modes[b.SMTP.TLS], TLS: tlsConf, Hello: cfg.Hostname, Logger: log, Origin: originModes[b.Origin],
	}
	if r == mail.Out && cfg.SMTP.SmartHost.User != "" {
		h := cfg.SMTP.SmartHost
		t.ClearLogin = h.URL.Loopback()
		t.Login = func() (string, string, error) {
			password, err := h.Password()
			return h.User, password.Reveal(), err
		}
		if _, _, err := t.Login(); err != nil {
			return smtpclient.Target{}, fmt.Errorf("smtp.smart_host: %w", err)
		}
	}
	return t, nil
}

// target is how deliveries of this daemon reach the backend of a route.
func (d *Daemon) target(cfg *config.Config, r mail.Route) (smtpclient.Target, error) {
	t, err := target(cfg, r, d.log)
	if err != nil {
		return t, err
	}
	t.TLS = d.tls.noting(smtpName(cfg, r), t.TLS)
	if err := d.policies.attach(cfg, r, &t); err != nil {
		return t, fmt.Errorf("%s: tls: %w", smtpName(cfg, r), err)
	}
	return t, nil
}

// smtpName is the key of the server that a route leads to.
func smtpName(cfg *config.Config, r mail.Route) string {
	switch {
	case r != mail.Out:
		return "backends." + string(r) + ".smtp"
	case cfg.SMTP.SmartHost.Enabled():
		return "smtp.smart_host"
	}
	return "backends." + cfg.Routing.Outbound + ".smtp"
}

// mayRelayOut tells for which clients mail to the outside is taken: those of
// smtp.trusted, those with a certificate that counts, and who has logged in. What a backend sends from may be an address that it shares
// with others, as that of a cloud.
func (d *Daemon) mayRelayOut() func(wire.Info) bool {
	in := trusts(d.cfg.SMTP.Trusted)
	return func(client wire.Info) bool {
		return d.relaysOut.Load() && (client.Certified || client.User != "" || in != nil && in(client.Remote.Addr()))
	}
}

// trustedNetworks are those of the backends' own mail.
func trustedNetworks(cfg *config.Config) []netip.Prefix {
	return slices.Concat(cfg.SMTP.Trusted, cfg.Backends.Old.SendsFrom, cfg.Backends.New.SendsFrom)
}

// sideOf tells which mail system sends from an address; empty when none does, or
// when both do.
func sideOf(cfg *config.Config) func(netip.Addr) mail.Route {
	is := func(b config.Backend, ip netip.Addr) bool {
		own, err := netip.ParseAddr(b.SMTP.Host)
		return err == nil && own == ip || slices.ContainsFunc(b.SendsFrom, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	return func(ip netip.Addr) mail.Route {
		switch fromOld, fromNew := is(cfg.Backends.Old, ip), is(cfg.Backends.New, ip); {
		case fromOld && !fromNew:
			return mail.Old
		case fromNew && !fromOld:
			return mail.New
		}
		return ""
	}
}

func (d *Daemon) newBackends(cfg *config.Config) (map[mail.Route]*relay.Backend, error) {
	out, log := map[mail.Route]*relay.Backend{}, d.log
	for _, r := range routes {
		t, err := d.target(cfg, r)
		if err != nil {
			return nil, err
		}
		out[r], err = relay.NewBackend(relay.BackendConfig{Name: r, Target: t, MaxConns: backendConfig(cfg, r).MaxConnections, Logger: log})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func routerConfig(cfg *config.Config, log *slog.Logger) router.Config {
	return router.Config{
		Hostname: cfg.Hostname, Domains: cfg.Domains, Subaddress: cfg.Routing.Subaddress,
		Unknown: router.Policy(cfg.Routing.Unknown), Logger: log,
	}
}

// openRelay makes both ends of SMTP.
func (d *Daemon) openRelay() (err error) {
	d.verifier = relay.NewVerifier(relay.VerifierConfig{Old: d.backends[mail.Old], New: d.backends[mail.New], Logger: d.log})
	smtp := d.cfg.SMTP
	d.guard = limit.New(guardSettings(d.cfg, smtp))
	welcome, err := d.welcome(smtp)
	if err != nil {
		return err
	}
	d.relaysOut.Store(smtp.SmartHost.Enabled())
	inspectors, err := d.inspectors()
	if err != nil {
		return err
	}
	d.server, err = relay.NewServer(relay.ServerConfig{
		Hostname: d.cfg.Hostname, Router: d.router, Queue: d.store, Verifier: d.verifier,
		Limits: relay.Limits{
			MaxMessageSize: int64(smtp.MaxMessageSize), MaxRecipients: smtp.MaxRecipients, MaxHeaderFields: noLimitAt0(smtp.Limits.HeaderFields),
		},
		Guard: d.guard, Welcome: welcome,
		Wire: wire.Config{
			// The guard counts unknown recipients, over connections.
			MaxRcptErrors: -1,
			BodyRate:      int64(smtp.Limits.BodyRate), FruitlessTimeout: time.Duration(smtp.Limits.Fruitless),
			IdleTimeout: time.Duration(smtp.IdleTimeout), BodyTimeout: time.Duration(smtp.DataTimeout), Trusted: trusts(trustedNetworks(d.cfg)),
			Metrics: wire.Metrics{Opened: d.metrics.ConnOpened, Closed: d.metrics.ConnClosed, Refused: d.metrics.ConnTurnedAway, Handshake: d.metrics.Handshook, Login: d.countLogin},
			Auth:    d.loginCheck(),
		},
		Side: sideOf(d.cfg), RelaysOut: d.mayRelayOut(),
		TLS:        func() *tls.Config { return d.tls.offer(false) },
		AskTLS:     func() *tls.Config { return d.tls.offer(true) },
		ClientCert: d.tls.clients.counts, RequireTLS: smtp.RequireTLS, Logger: d.log,
		Metrics: relay.ServerMetrics{
			Received: func(size int64, rcpts int, wait time.Duration) { d.metrics.Accepted(rcpts, size, wait) },
			Refused:  d.metrics.Refused, Limited: d.metrics.Limited, Forged: d.authMetrics.Took, Stripped: d.metrics.Stripped,
		},
		Inspectors: inspectors, Verdicts: verdicts(d.cfg),
	})
	if err != nil {
		return err
	}
	d.deliverer, err = relay.NewDeliverer(relay.DelivererConfig{
		Queue: d.store, Backends: d.backends, Schedule: schedule(d.cfg), Hostname: d.cfg.Hostname,
		Resolve: d.resolveSender, Logger: d.log, Finder: d.newFinder(), DoubtWait: max(time.Duration(d.cfg.Queue.DoubtWait), 1),
		Metrics: relay.DelivererMetrics{Outcome: d.metrics.Delivered, Attempt: d.metrics.Attempt, Alarm: d.alarm, Doubt: d.doubted},
	})
	return err
}

// listenerOptions are the choices of one address that mail is taken on.
func listenerOptions(l config.Listener) relay.ListenerOptions {
	uses := map[string]wire.TLSUse{
		config.ListenTLSOffer: wire.TLSOffered, config.ListenTLSRequire: wire.TLSRequired,
		config.ListenTLSImplicit: wire.TLSImplicit, config.ListenTLSOff: wire.TLSNever,
	}
	logins := map[string]wire.AuthUse{config.ListenAuthOffer: wire.AuthOffered, config.ListenAuthRequire: wire.AuthRequired}
	return relay.ListenerOptions{
		TLS: uses[l.TLS], Auth: logins[l.Auth], AskCert: l.ClientCertificate == config.ListenCertAsk, NeedCert: l.ClientCertificate == config.ListenCertRequire,
	}
}

func noLimitAt0(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

func trusts(nets []netip.Prefix) func(netip.Addr) bool {
	if len(nets) == 0 {
		return nil
	}
	return func(a netip.Addr) bool {
		return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
	}
}

// resolveSender says where a bounce to a reverse-path goes: a sender of ours
// the way of all our mail, one outside over the outbound backend.
func (d *Daemon) resolveSender(ctx context.Context, addr mail.Address) ([]mail.Recipient, error) {
	res, err := d.router.Resolve(ctx, addr)
	if err != nil {
		return nil, err
	}
	if res.Status == router.NotOurs {
		return []mail.Recipient{{Addr: addr, Hint: mail.Out}}, nil
	}
	out := slices.Clone(res.Recipients)
	for i := range out {
		if out[i].Hint == "" && res.Status == router.Unknown {
			out[i].Hint = mail.Old
		}
	}
	return out, nil
}

// switchboard is the operators' view of the backends.
type switchboard map[mail.Route]*relay.Backend

// Status implements admin.BackendsAPI.
func (s switchboard) Status() []admin.BackendStatus {
	var out []admin.BackendStatus
	for _, r := range routes {
		if b := s[r]; b != nil {
			st := b.Status()
			out = append(out, admin.BackendStatus{
				Route: r, State: string(st.State), Reason: st.Reason, By: st.By, Since: st.Since, Active: st.InFlight, Limit: st.Limit,
			})
		}
	}
	return out
}

// Pause implements admin.BackendsAPI.
func (s switchboard) Pause(_ context.Context, r mail.Route, by, reason string) error {
	b := s[r]
	if b == nil {
		return fmt.Errorf("there is no backend %q: use old, new or out", r)
	}
	b.Pause(reason, by)
	return nil
}

// Resume implements admin.BackendsAPI.
func (s switchboard) Resume(_ context.Context, r mail.Route, _ string) error {
	b := s[r]
	if b == nil {
		return fmt.Errorf("there is no backend %q: use old, new or out", r)
	}
	b.Resume()
	return nil
}

func (d *Daemon) newConductor() *cutover.Conductor {
	c := d.cfg.Cutover
	// A user on his way takes one connection to old, and two to new: one
	// writes, one looks.
	places := min(d.cfg.UsersAtOnce(), d.cfg.Backends.Old.MaxIMAPConnections, d.cfg.Backends.New.MaxIMAPConnections/2)
	cfg := cutover.Config{
		Table: d.store, Copier: d.copier, Looker: d.copier, Mailboxes: d.mailboxes, Requests: d.store,
		AutoApprove: c.Approve == "auto", MaxHold: time.Duration(c.MaxHold), Concurrency: max(places, 1),
		MaxHeld: c.MaxHeld, FlipsPerMinute: c.FlipsPerMinute, StopAfter: c.StopAfter, StopShare: float64(c.StopShare.Percent) / 100,
		Tail: time.Duration(d.cfg.Backfill.TailInterval), Window: window(time.Duration(c.Window)), Mirror: c.Mirror,
		SweepNew: c.Sweep == "both" && d.sweepable(), MayClose: d.dnsMayClose,
		Log: d.log,
		Hooks: cutover.Hooks{
			Status:  func(s cutover.Status) { d.events.Publish(admin.EventCutover, s) },
			Changed: func(c router.Change) { d.events.Publish(admin.EventUser, c) },
			Passed: func(p cutover.Passed) {
				d.metrics.Backfilled(p)
				d.events.Passed(p)
			},
			Flipped: d.metrics.Flipped, RolledBack: d.metrics.RolledBack, Failed: d.metrics.MoveFailed, Lagged: d.metrics.Lagged, Copying: d.metrics.Copying,
			Stopped: func(p cutover.Pause) {
				d.metrics.WaveStopped()
				d.events.Publish(admin.EventWave, p)
			},
			Found: func(s cutover.Stray) {
				d.metrics.Found(s)
				d.events.Publish(admin.EventStray, s)
				if s.Side == string(mail.Old) {
					d.strays.note(s.Count, s.From)
				}
			},
		},
	}
	if d.tail != nil {
		cfg.Watcher = d.tail
	}
	d.shareUsers(&cfg)
	return cutover.New(cfg)
}

// window turns the configuration's 0, none, into the conductor's way to say so.
func window(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// sweepable tells whether mail can be carried from new to old at all.
func (d *Daemon) sweepable() bool {
	s := d.mailboxes.sides.Load()
	return s.old.server.Address != "" && s.old.mailbox.IsZero() && s.new.readable()
}

// alarm tells listeners of the API what an operator should look at; the
// deliverer has logged it already.
func (d *Daemon) alarm(a relay.DeliverAlarm) { d.events.Publish("alarm", a) }

// doubted counts how a doubt about a delivery ended and tells listeners of the
// API; the deliverer has logged it already.
func (d *Daemon) doubted(x relay.DeliverDoubt) {
	d.metrics.Doubted(x.Route, string(x.Result))
	d.events.Publish(admin.EventDoubt, x)
}

// parkedCheck is how often mail that waits for a person is looked for.
const parkedCheck = 5 * time.Minute

// watch raises alarms that nobody else raises.
func (d *Daemon) watch(ctx context.Context) error {
	t := time.NewTicker(parkedCheck)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		st, err := d.store.Stats(ctx)
		if err != nil {
			d.log.Warn("the queue cannot be counted", "err", err)
			continue
		}
		if n := st.States[queue.Parked]; n > 0 {
			d.log.Warn("mail is parked and waits for an operator: see `crossfade queue list --state parked`", "recipients", n)
		}
	}
}
