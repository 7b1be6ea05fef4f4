package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/relay/smtpclient"

	"golang.org/x/time/rate"
)

// BackendConfig is what a Backend is made of. Name and Target are needed, zero
// fields have the defaults named.
type BackendConfig struct {
	Name     mail.Route
	Target   smtpclient.Target
	MaxConns int           // connections for deliveries at once (20)
	IdleTime time.Duration // how long an unused connection is kept (10 s)
	MaxUses  int           // transactions on one connection (1,000)
	// Failures in a row that take the backend out of service (5). A failure is
	// one of the connection: refused, cut, silent, 421, or a refusal of the
	// session as a whole; never a reply about a message or a recipient.
	Failures int
	// FirstProbe is how long a backend that failed is left alone before it is
	// asked whether it is back (1 s); the wait doubles up to MaxProbe (1 min).
	FirstProbe, MaxProbe time.Duration
	Logger               *slog.Logger
}

func (cfg BackendConfig) filled() BackendConfig {
	for _, d := range []struct {
		field *time.Duration
		byDef time.Duration
	}{{&cfg.IdleTime, 10 * time.Second}, {&cfg.FirstProbe, time.Second}, {&cfg.MaxProbe, time.Minute}} {
		if *d.field <= 0 {
			*d.field = d.byDef
		}
	}
	for _, n := range []struct {
		field *int
		byDef int
	}{{&cfg.MaxConns, 20}, {&cfg.MaxUses, 1000}, {&cfg.Failures, 5}} {
		if *n.field <= 0 {
			*n.field = n.byDef
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// Backend is one mail system that mail is delivered to: where it is, its kept
// connections, how many deliveries it gets at once, and whether it gets any. It
// belongs to one running [Deliverer]; its other methods may be called at any
// time, from anywhere.
type Backend struct {
	cfg    BackendConfig
	log    *slog.Logger
	gate   *backendGate
	sends  *backendPool // for deliveries
	probes *backendPool // for Ask, so that questions do not wait for mail
	asking chan struct{}
	warned rate.Sometimes // of origins

	mu     sync.Mutex
	target smtpclient.Target
}

// probeTime bounds one attempt to reach a backend that is down.
const probeTime = 30 * time.Second

// maxAsking bounds the questions to one backend at once.
const maxAsking = 8

// NewBackend makes a backend; it connects to nothing.
func NewBackend(cfg BackendConfig) (*Backend, error) {
	cfg = cfg.filled()
	if cfg.Name == "" {
		return nil, errors.New("backend: it has no name; use old, new or out")
	}
	b := &Backend{
		cfg: cfg, log: cfg.Logger.With("backend", string(cfg.Name)), gate: newBackendGate(cfg),
		sends: newBackendPool(cfg), probes: newBackendPool(cfg), asking: make(chan struct{}, maxAsking),
		warned: rate.Sometimes{Interval: time.Minute},
	}
	if err := b.Update(cfg.Target); err != nil {
		return nil, err
	}
	return b, nil
}

// Name is the route that the backend stands for.
func (b *Backend) Name() mail.Route { return b.cfg.Name }

// Update changes where the backend is and how it is spoken to, for the
// connections made from now on. Deliveries that are under way end where they
// began. A backend that was out of service is asked at once.
func (b *Backend) Update(target smtpclient.Target) error {
	if target.Address == "" {
		return fmt.Errorf("backend %s: its target has no address", b.cfg.Name)
	}
	if target.Logger == nil {
		target.Logger = b.log
	}
	b.mu.Lock()
	b.target = target
	b.mu.Unlock()
	b.sends.renew()
	b.probes.renew()
	b.gate.probeNow()
	return nil
}

func (b *Backend) currentTarget() smtpclient.Target {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.target
}

// Pause stops deliveries to the backend until Resume. What is being sent is
// sent to its end. reason and by are for the operators to read.
func (b *Backend) Pause(reason, by string) {
	b.log.Warn("backend paused", "reason", reason, "by", by)
	b.gate.pause(reason, by)
}

// Resume ends a pause, and has a backend that is out of service asked at once.
func (b *Backend) Resume() {
	b.log.Info("backend resumed")
	b.gate.resume()
}

// Close ends the idle connections. The backend can still be used.
func (b *Backend) Close() {
	b.sends.drain()
	b.probes.drain()
}

// BackendStatus describes a backend at one moment.
type BackendStatus struct {
	Name     mail.Route   `json:"name"`
	Target   string       `json:"target"`
	State    BackendState `json:"state"`
	Since    time.Time    `json:"since"`
	Reason   string       `json:"reason,omitempty"` // why it is paused or down
	By       string       `json:"by,omitempty"`     // who paused it
	Limit    int          `json:"limit"`            // deliveries at once, at present
	MaxConns int          `json:"max_conns"`
	InFlight int          `json:"in_flight"` // deliveries under way
	Idle     int          `json:"idle"`      // connections kept
	// Failures of the connection in a row, and the last one of all.
	Failures    int       `json:"failures"`
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	NextProbe   time.Time `json:"next_probe,omitzero"` // when it is down
}

// Status says how the backend is.
func (b *Backend) Status() BackendStatus {
	s := b.gate.status()
	s.Name, s.Target, s.Idle = b.cfg.Name, b.currentTarget().String(), b.sends.size()
	return s
}

// keep watches over the backend until ctx ends: it closes connections that
// were idle for too long and asks a backend that is down whether it is back.
func (b *Backend) keep(ctx context.Context) {
	tick := time.NewTicker(max(b.cfg.IdleTime/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		due, changed := b.gate.nextProbe()
		var probe <-chan time.Time
		var timer *time.Timer
		if !due.IsZero() {
			timer = time.NewTimer(time.Until(due))
			probe = timer.C
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-tick.C:
			b.sends.reap()
			b.probes.reap()
		case <-probe:
			b.tryAgain(ctx)
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// tryAgain connects to a backend that is down. No message is put at risk for
// it; the first delivery then decides.
func (b *Backend) tryAgain(ctx context.Context) {
	dctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	c, err := b.dial(dctx)
	if err != nil {
		b.gate.probed(err)
		return
	}
	b.log.Info("backend answers again, trying one delivery")
	b.sends.put(ctx, c)
	b.gate.probed(nil)
}

// dial makes a connection for deliveries.
func (b *Backend) dial(ctx context.Context) (*backendConn, error) {
	return b.sends.dial(ctx, b.currentTarget, smtpclient.Origin{})
}

// dialAs makes a connection for mail of o. Where the backend does not take that
// client, the mail was accepted nevertheless, and is delivered as ours.
func (b *Backend) dialAs(ctx context.Context, o smtpclient.Origin) (*backendConn, error) {
	b.makeRoom()
	c, err := b.sends.dial(ctx, b.currentTarget, o)
	if !errors.Is(err, smtpclient.ErrOrigin) {
		return c, err
	}
	c, own := b.dial(ctx)
	if own == nil { // otherwise it is not about the client
		b.originRefused(o, err)
	}
	return c, own
}

// makeRoom ends idle connections that nothing under way can use, so that the server
// never has more of us than it was said to take.
func (b *Backend) makeRoom() { b.sends.shrink(b.cfg.MaxConns - b.gate.status().InFlight) }

// originRefused tells of a message that goes without its origin. The backend
// decides for itself which of our words about a client it believes, but mail that
// we answered with 250 must not be lost by it.
func (b *Backend) originRefused(o smtpclient.Origin, err error) {
	b.warned.Do(func() {
		b.log.Warn("the backend refused a client's origin; its mail is delivered in our own name. Exempt the relay from the checks that it makes of clients, or set origin: xforward",
			"client", o.Addr, "error", err)
	})
}
