package daemon

import (
	"context"
	"errors"
	"fmt"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/mail"
)

// openAdmin makes the API.
func (d *Daemon) openAdmin(ctx context.Context) (err error) {
	tokens, created, err := admin.LoadOrCreateToken(d.cfg.Admin.TokenFile)
	if err != nil {
		return fmt.Errorf("admin.token_file: %w", err)
	}
	if created {
		d.log.Info("a token for the admin API was made", "file", d.cfg.Admin.TokenFile)
	}
	if err := d.registry.Register(admin.NewStateCollector(d.store, d.store, d.log)); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	d.audits = &audits{d: d, asks: make(chan asked, 1)}
	counts, err := admin.NewAPIMetrics(d.registry)
	if err != nil {
		return err
	}
	if err := d.openAuditLog(ctx, counts); err != nil {
		return err
	}
	nodes := d.nodesAPI()
	if err := d.registry.Register(newNodesCollector(nodes)); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if err := d.registry.Register(newCertCollector(d.tls)); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if err := d.registry.Register(newDNSCollector(d.dns)); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if err := d.registry.Register(newPaceCollector(d.conductor)); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	cfg := admin.Config{
		TokenStore: tokenBook{d.store}, Hosts: append([]string{d.cfg.Hostname}, d.cfg.Admin.Hosts...), TLS: d.adminTLS(), Refused: counts.Refuse,
		Version: d.opts.Version, Tokens: tokens, Users: d.store, Router: d.router, Queue: d.store, Bodies: d.store, Audit: d.audit,
		Backends: switchboard(d.backends), Events: d.events, Health: d.health, Ready: d.ready, Warn: d.warnings, DeliveryTLS: d, Nodes: nodes, DNS: d.dnsAPI(),
		Audits: d.audits, Lives: d.audits, Metrics: d.registry, Log: d.log,
	}
	if sides := d.mailboxes.sides.Load(); sides.old.readable() && sides.new.readable() {
		cfg.Conductor, cfg.Waves = d.conductor, d.conductor
	}
	if d.opts.Reload != nil {
		cfg.Reload = d.reloadFile
	}
	if d.admin, err = admin.New(cfg); err != nil {
		return err
	}
	return d.admin.RefreshTokens(ctx)
}

// health tells what only a new start can mend.
func (d *Daemon) health(context.Context) error {
	select {
	case <-d.store.Failed():
		return d.store.Err()
	default:
		return nil
	}
}

// ready gives the reasons why mail cannot be accepted now.
func (d *Daemon) ready(context.Context) []string {
	var reasons []string
	if err := d.store.Room(0); err != nil {
		reasons = append(reasons, fmt.Sprintf("the queue takes no mail: %v", err))
	}
	return reasons
}

func (d *Daemon) reloadFile(ctx context.Context) ([]string, error) {
	cfg, err := d.opts.Reload()
	if err != nil {
		return nil, fmt.Errorf("reload: the running configuration stays: %w", err)
	}
	return d.Reload(ctx, cfg)
}

// Reload puts a new configuration into force: everything is built and checked
// first, then swapped; on an error the old one stays. The strings name keys
// that differ from those of the start and need a restart; they are not in
// force, however often they are loaded.
func (d *Daemon) Reload(_ context.Context, cfg *config.Config) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	later := config.Diff(d.cfg, cfg)
	sides, err := d.loadIMAP(cfg)
	if err != nil {
		return nil, fmt.Errorf("reload: the running configuration stays: %w", err)
	}
	sides.host = d.cfg.Hostname
	rc := routerConfig(cfg, d.log)
	rc.Hostname = d.cfg.Hostname
	answers, err := d.newAnswers(cfg)
	welcome, listErr := d.welcome(cfg.SMTP)
	// Who takes a token out of the file has to hear of it when that had no effect.
	tokens, tokenErr := admin.LoadTokens(d.cfg.Admin.TokenFile)
	errs := []error{err, listErr, tokenErr}
	for _, r := range routes {
		_, err := target(cfg, r, d.log)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("reload: the running configuration stays: %w", err)
	}
	if err := d.router.Reload(rc); err != nil {
		return nil, fmt.Errorf("reload: the running configuration stays: %w", err)
	}
	if d.lookup != nil {
		d.lookup.Update(answers)
	}
	d.guard.Update(guardSettings(d.cfg, cfg.SMTP))
	d.server.SetWelcome(welcome)
	d.warnOfFiles(cfg)
	d.mailboxes.sides.Store(sides)
	d.retune(cfg)
	_ = d.admin.SetTokens(tokens) // what LoadTokens gives is never empty
	if !cfg.SMTP.SmartHost.Enabled() {
		d.relaysOut.Store(false) // before the route out leads to a backend
	}
	for _, r := range routes {
		d.retarget(cfg, r)
	}
	d.relaysOut.Store(cfg.SMTP.SmartHost.Enabled())
	d.events.Publish(admin.EventReload, struct{}{})
	for _, key := range later {
		d.log.Warn("reload: a changed key needs a restart and is not in force", "key", key)
	}
	for _, w := range cfg.Warnings() {
		d.log.Warn("configuration: " + w)
	}
	d.log.Info("reload: the configuration is in force", "changed", config.Changed(d.live, cfg))
	d.live = cfg
	return later, nil
}

// retarget points a backend to where the new configuration has it. Its target
// was built once before, so it does not fail here but for a file that changed
// in between; then the backend stays as it is.
func (d *Daemon) retarget(cfg *config.Config, r mail.Route) {
	t, err := d.target(cfg, r)
	if err == nil {
		t.Hello = d.cfg.Hostname
		err = d.backends[r].Update(t)
	}
	if err != nil {
		d.log.Error("reload: a backend stays as it was", "backend", r, "err", err)
	}
}
