// Package daemon is the only place where the parts are wired: it makes store,
// router, relay, backfill, cutover and admin API of a configuration and runs
// them together. What `crossfade serve` does, tests and the demo do with the
// same calls.
//
// Start reading at [New] and [Daemon.Run].
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/admin"
	"crossfade/backfill"
	"crossfade/config"
	"crossfade/cutover"
	"crossfade/dnswatch"
	"crossfade/journal"
	"crossfade/lookup"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay"
	"crossfade/relay/limit"
	"crossfade/relay/milter"
	"crossfade/relay/resolver"
	"crossfade/relay/submission"
	"crossfade/relay/wire"
	"crossfade/router"

	"github.com/prometheus/client_golang/prometheus"
)

// smtpGrace is what messages whose data has begun get to end in good order.
const smtpGrace = 15 * time.Second

// Options are what a configuration file does not say.
type Options struct {
	Version string
	// Reload reads the configuration file again, for POST /v1/reload; nil: it
	// cannot be reloaded.
	Reload func() (*config.Config, error)
	// Sockets are listening sockets that take the place of addresses of the
	// configuration, by name: smtp, admin, socketmap, tcp_table, http.
	Sockets map[string][]*os.File
	// CrashPoint is for tests: see disk.Options and backfill.Copier.
	CrashPoint func(name string)
}

// Daemon is the whole product in one process. Several may run in one process,
// each on its own store.
type Daemon struct {
	cfg  *config.Config // of the start: keys that need a restart stay as they are here
	opts Options
	log  *slog.Logger

	mu      sync.Mutex // one Reload at a time
	live    *config.Config
	started chan struct{}
	once    sync.Once

	metrics   *admin.Metrics
	resolver  *resolver.Resolver // for what the relay looks up about strangers
	registry  *prometheus.Registry
	events    *admin.Events
	store     store
	router    *router.Router
	backends  map[mail.Route]*relay.Backend
	verifier  *relay.Verifier
	users     *submission.Users // nil: nobody can log in
	filter    *milter.Filter    // nil: there is no scanner
	server    *relay.Server
	guard     *limit.Guard
	relaysOut atomic.Bool // a smart host is configured
	deliverer *relay.Deliverer
	mailboxes *mailboxes
	copier    *copiers
	tail      *backfill.Tail // nil: nothing listens on old
	conductor *cutover.Conductor
	dns       *dnswatch.Watch // nil: the DNS is not watched
	lookup    *lookup.Service // nil: nobody may ask
	strays    *strayBook      // nil without dns
	admin     *admin.Server
	audit     *admin.AuditLog
	journal   *journal.Journal
	audits    *audits
	// closeJournal closes its files; nil: it has none.
	closeJournal func() error
	tls          *ourTLS
	policies     *tlsPolicies
	tlsReports   *tlsReports
	authMetrics  *admin.AuthMetrics

	smtpListeners []net.Listener
	adminListener net.Listener
	lookups       []lookupListener
}

// New makes a daemon of a valid configuration. It reads certificates and
// password files, so that what is wrong with them is known at once, and starts
// nothing.
func New(cfg *config.Config, log *slog.Logger, opts Options) (*Daemon, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Daemon{cfg: cfg, live: cfg, log: log, opts: opts, started: make(chan struct{}), events: &admin.Events{}}
	var err error
	d.registry = prometheus.NewRegistry()
	if d.metrics, err = admin.NewMetrics(d.registry); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if err := errors.Join(d.openLogins(), d.openFilter()); err != nil {
		return nil, err
	}
	d.warnOfFiles(cfg)
	d.metrics.PresetLimits(append(limit.TurnedAway(), wire.Reasons()...), limit.Limited())
	if err := d.openResolvers(); err != nil {
		return nil, err
	}
	if d.tls, err = openTLS(cfg, log, d.metrics.Renewed); err != nil {
		return nil, err
	}
	sides, err := d.loadIMAP(cfg)
	if err != nil {
		return nil, err
	}
	d.mailboxes = &mailboxes{sides: atomicSides(sides)}
	d.policies.counted, d.policies.saw = d.metrics.TLSFared, d.tls.book.Saw
	d.backends, err = d.newBackends(cfg)
	return d, err
}

// Started is closed when everything listens.
func (d *Daemon) Started() <-chan struct{} { return d.started }

// SMTPAddrs gives the addresses on which mail is taken, after Started.
func (d *Daemon) SMTPAddrs() []net.Addr {
	var out []net.Addr
	for _, l := range d.smtpListeners {
		out = append(out, l.Addr())
	}
	return out
}

// AdminURL is where the API listens, after Started.
func (d *Daemon) AdminURL() string {
	scheme := "http"
	if d.tls.admin != nil {
		scheme = "https"
	}
	return scheme + "://" + d.adminListener.Addr().String()
}

// Run works until ctx ends, and then ends every part in good order: nothing
// new is accepted, messages whose data has begun are stored, deliveries under
// way finish or are cut before their dot. An error means that something failed
// that a new start may mend, a failed write to the store for one.
func (d *Daemon) Run(ctx context.Context) (err error) {
	first := false
	d.once.Do(func() { first = true })
	if !first {
		return errors.New("daemon: Run was called before: make a new Daemon")
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before all was there
		}
		return err
	}
	p := newParts()
	p.start("delivery", d.deliverer.Run)
	p.start("cutover", d.conductor.Run)
	p.start("journal", d.journal.Run)
	p.start("audits", d.audits.run)
	if d.tail != nil {
		p.start("tail", d.tail.Run)
	}
	p.start("admin API", func(ctx context.Context) error { return d.admin.Serve(ctx, d.adminListener) })
	for _, l := range d.lookups {
		p.start(l.name, func(ctx context.Context) error { return l.serve(ctx, l.Listener) })
	}
	for i, l := range d.smtpListeners {
		opts := listenerOptions(d.cfg.SMTP.Listening()[i])
		p.start("SMTP on "+l.Addr().String(), func(context.Context) error { return d.server.ServeWith(l, opts) })
	}
	p.start("watch", d.watch)
	p.start("TLS reports", d.tlsReports.run)
	d.tls.run(p)
	if d.dns != nil {
		p.start("dns watch", d.dns.Run)
		p.start("stragglers", d.strays.run)
	}
	d.log.Info("crossfade is up", "version", d.opts.Version, "smtp", fmt.Sprint(d.SMTPAddrs()), "admin", d.AdminURL(), "store", d.cfg.Store)
	close(d.started)
	select {
	case <-ctx.Done():
		d.log.Info("stopping", "cause", context.Cause(ctx))
	case err = <-p.failed:
	case <-d.store.Failed():
		err = fmt.Errorf("the store stopped itself: %w", d.store.Err())
	}
	d.stop(p)
	return err
}

// stop ends the parts: first what takes mail in, then what delivers it.
func (d *Daemon) stop(p *parts) {
	ctx, cancel := context.WithTimeout(context.Background(), smtpGrace)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		d.log.Warn("stopping: connections were cut", "err", err)
	}
	p.stop()
	d.policies.sts.Close()
}

// open makes what needs the store, and binds the addresses.
func (d *Daemon) open(ctx context.Context) (err error) {
	if err = d.checkSockets(); err != nil {
		return err
	}
	if err = d.openStore(ctx); err != nil {
		return err
	}
	if err = d.openJournal(ctx); err != nil {
		return err
	}
	if d.router, err = router.New(routerConfig(d.cfg, d.log), d.store); err != nil {
		return err
	}
	if err := d.openRelay(); err != nil {
		return err
	}
	d.openCopier()
	d.tail = d.newTail()
	if err := d.openDNS(); err != nil {
		return err
	}
	if d.tlsReports, err = d.newTLSReports(); err != nil {
		return err
	}
	d.conductor = d.newConductor()
	if err := d.openAdmin(ctx); err != nil {
		return err
	}
	if err := d.openLookup(); err != nil {
		return err
	}
	return d.listen()
}

// minFree turns the configuration's 0, no reserve, into the store's way to say
// so.
func minFree(cfg *config.Config) int64 {
	if cfg.Queue.MinFree == 0 {
		return -1
	}
	return int64(cfg.Queue.MinFree)
}

func (d *Daemon) listen() error {
	// Every wait for a client has a deadline of our own: keep-alive probes would
	// only cost system calls on each connection.
	lc := net.ListenConfig{KeepAlive: -1}
	for i, at := range d.cfg.SMTP.Listening() {
		l, err := d.bind("smtp", i, lc, at.Address)
		if err != nil {
			return fmt.Errorf("smtp.listen: %w (is another mail server running there? ports below 1024 need a capability)", err)
		}
		if lb := trusts(d.cfg.SMTP.ProxyProtocol); lb != nil {
			l = wire.Proxied(l, lb)
		}
		d.smtpListeners = append(d.smtpListeners, l)
	}
	l, err := d.listenAdmin()
	d.adminListener = l
	return err
}

// close releases what open made.
func (d *Daemon) close() error {
	var errs []error
	for _, l := range d.smtpListeners {
		_ = l.Close() // closed already where it was served
	}
	for _, l := range d.lookups {
		_ = l.Close()
	}
	if d.adminListener != nil {
		_ = d.adminListener.Close()
	}
	if d.verifier != nil {
		d.verifier.Close()
	}
	for _, b := range d.backends {
		b.Close()
	}
	if d.audit != nil {
		errs = append(errs, d.audit.Close())
	}
	if d.closeJournal != nil {
		errs = append(errs, d.closeJournal())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	return errors.Join(errs...)
}

// parts are the goroutines of a running daemon.
type parts struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error
}

func newParts() *parts {
	p := &parts{failed: make(chan error, 1)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *parts) start(name string, run func(context.Context) error) {
	p.wg.Go(func() {
		if err := run(p.ctx); err != nil && p.ctx.Err() == nil {
			select {
			case p.failed <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	})
}

func (p *parts) stop() {
	p.cancel()
	p.wg.Wait()
}

// schedule is the retry schedule of the configuration.
func schedule(cfg *config.Config) queue.Schedule {
	s := queue.DefaultSchedule()
	s.Expire, s.Notice = time.Duration(cfg.Queue.Expire), time.Duration(cfg.Queue.DelayNotice)
	return s
}
