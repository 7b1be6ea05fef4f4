package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// DelivererConfig is what a Deliverer is made of. Queue, Backends and Hostname
// are needed, zero fields have the defaults named.
type DelivererConfig struct {
	Queue    queue.Deliverer
	Backends map[mail.Route]*Backend // each route gets its mail from the queue
	Schedule queue.Schedule          // (queue.DefaultSchedule)
	Hostname string                  // in notifications
	// Resolve finds the way to a sender who gets a notification: a recipient of
	// ours from the table, anybody else with Hint mail.Out. A permanent
	// *mail.Reply means that the address leads nowhere. (Everybody goes Out.)
	Resolve func(ctx context.Context, addr mail.Address) ([]mail.Recipient, error)
	// Finder looks for deliveries in doubt before they are sent again. Without one
	// they are sent again at once.
	Finder Finder
	// DoubtWait is how long a delivery in doubt is looked for, from the moment when
	// the doubt came to be known, before it is sent again (5 minutes).
	DoubtWait time.Duration
	// Grace is how long deliveries may go on when Run is told to end (20 s).
	Grace   time.Duration
	Logger  *slog.Logger
	Metrics DelivererMetrics
	Now     func() time.Time
	Jitter  func() float64 // in [0, 1)

	renewEvery time.Duration // of a lease (20 s)
	lookTime   time.Duration // of a look into a mailbox (30 s)
}

// DelivererMetrics are told what happens. Each may be nil; none may block.
type DelivererMetrics struct {
	// Attempt is called after each transaction, however it ended.
	Attempt func(route mail.Route, took time.Duration)
	// Outcome is called for each recipient whose outcome the queue has recorded.
	Outcome func(route mail.Route, kind queue.Kind)
	// Alarm is called when an operator should look.
	Alarm func(DeliverAlarm)
	// Doubt is called when a doubt has ended, for each recipient.
	Doubt func(DeliverDoubt)
}

// DeliverAlarm says what an operator should look at.
type DeliverAlarm struct {
	ID    mail.ID
	Route mail.Route
	Rcpt  mail.Address // the zero value when it is about the whole message
	Text  string       // what is wrong and what to do
	Reply string       // what the backend said
}

// Deliverer takes due mail from the queue to the backends.
type Deliverer struct {
	cfg DelivererConfig
	log *slog.Logger
}

// The figures of a delivery.
const (
	maxLeaseRcpts = 100 // RFC 5321, 4.5.3.1.8: every server takes as many
	defaultRenew  = 20 * time.Second
	settleTime    = 30 * time.Second // for one settlement, and for all tries of it when the relay ends
	claimPause    = time.Second      // after a failed claim
)

// NewDeliverer makes a deliverer; it starts nothing.
func NewDeliverer(cfg DelivererConfig) (*Deliverer, error) {
	switch {
	case cfg.Queue == nil:
		return nil, errors.New("deliverer: it has no queue")
	case len(cfg.Backends) == 0:
		return nil, errors.New("deliverer: it has no backends")
	case cfg.Hostname == "":
		return nil, errors.New("deliverer: it has no hostname")
	}
	for route, b := range cfg.Backends {
		if b == nil {
			return nil, fmt.Errorf("deliverer: the backend of route %s is nil", route)
		}
	}
	if cfg.Schedule == (queue.Schedule{}) {
		cfg.Schedule = queue.DefaultSchedule()
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(_ context.Context, addr mail.Address) ([]mail.Recipient, error) {
			return []mail.Recipient{{Addr: addr, Hint: mail.Out}}, nil
		}
	}
	if cfg.DoubtWait <= 0 {
		cfg.DoubtWait = defaultDoubt
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 20 * time.Second
	}
	if cfg.lookTime <= 0 {
		cfg.lookTime = lookTime
	}
	if cfg.renewEvery <= 0 {
		cfg.renewEvery = defaultRenew
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Jitter == nil {
		cfg.Jitter = rand.Float64
	}
	return &Deliverer{cfg: cfg, log: cfg.Logger}, nil
}

// Backend gives the backend of a route, nil when there is none.
func (d *Deliverer) Backend(route mail.Route) *Backend { return d.cfg.Backends[route] }

// Run delivers until ctx ends, and returns when all workers have. What is being
// sent then may go on for Grace; what is left is cut before its final dot and
// goes back into the queue as if it had not been claimed. The error is nil
// unless the queue closed under it.
func (d *Deliverer) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	work, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	ended := make(chan struct{})
	var wg, graceful sync.WaitGroup
	graceful.Go(func() { d.cutAfterGrace(ctx, cut, ended) })
	looks := newDeliverLooks(ctx, work, d)
	for route, b := range d.cfg.Backends {
		wg.Go(func() { b.keep(ctx) })
		for range b.cfg.MaxConns {
			w := &deliverWorker{d: d, b: b, looks: looks, route: route, log: d.log.With("route", string(route))}
			wg.Go(func() {
				if err := w.run(ctx, work); err != nil {
					stop(err)
				}
			})
		}
	}
	wg.Wait()
	looks.wg.Wait()
	close(ended)
	graceful.Wait()
	for _, b := range d.cfg.Backends {
		b.Close()
	}
	if err := context.Cause(ctx); errors.Is(err, queue.ErrClosed) {
		return fmt.Errorf("deliver mail: %w", err)
	}
	return nil
}

// cutAfterGrace waits until ctx has been over for the time of grace.
func (d *Deliverer) cutAfterGrace(ctx context.Context, cut context.CancelCauseFunc, ended <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-ended:
		return
	}
	t := time.NewTimer(d.cfg.Grace)
	defer t.Stop()
	select {
	case <-t.C:
		cut(errors.New("the relay is shutting down"))
	case <-ended:
	}
}

// deliverWorker delivers one message at a time over one route.
type deliverWorker struct {
	d     *Deliverer
	b     *Backend
	looks *deliverLooks
	route mail.Route
	log   *slog.Logger
}

// run claims until ctx ends. work is what a delivery runs under: it ends later.
func (w *deliverWorker) run(ctx, work context.Context) error {
	for {
		slot, err := w.b.gate.enter(ctx)
		if err != nil {
			return nil
		}
		err = w.hold(slot, work)
		w.b.gate.leave(slot)
		if errors.Is(err, queue.ErrClosed) && ctx.Err() == nil {
			return err
		}
		if err != nil && ctx.Err() == nil {
			w.log.Error("no mail could be claimed, trying again", "error", err)
			deliverPause(ctx, claimPause)
		}
	}
}

// hold delivers as long as the slot is good.
func (w *deliverWorker) hold(slot *gateSlot, work context.Context) error {
	for stay := true; stay; {
		lease, err := w.d.cfg.Queue.Claim(slot.ctx, w.route, maxLeaseRcpts)
		if err != nil {
			if slot.ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("claim a delivery over %s: %w", w.route, err)
		}
		if lease.InDoubt() {
			w.looks.take(w, lease)
			continue
		}
		if !w.b.gate.begin(slot) {
			w.settle(work, settling{lease: lease, verdicts: releaseAll(lease, "not tried: the backend went out of service")})
			return nil
		}
		stay = w.b.gate.finish(slot, w.deliver(work, lease))
	}
	return nil
}

func releaseAll(lease *queue.Lease, why string) []deliverVerdict {
	vs := make([]deliverVerdict, len(lease.Items))
	for i, item := range lease.Items {
		vs[i].Outcome = queue.Outcome{N: item.N, Kind: queue.Release, Reply: why}
	}
	return vs
}

func deliverPause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
