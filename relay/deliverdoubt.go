package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// Deliveries in doubt (I7). A recipient whose final dot may have gone out without
// a record comes back from the queue with a [queue.Doubt]. Before it is sent
// again its mailbox is asked, in places of its own, so that no other delivery
// waits. That a message is not there yet proves nothing: a backend may have it in
// a queue of its own. So it is looked for again, until it has been in doubt for
// DelivererConfig.DoubtWait; then it is sent again, and told of as a possible
// duplicate. Nothing is lost by that, and what is there twice is rare.

// Finder looks for messages in mailboxes. Its methods are called from several
// goroutines.
type Finder interface {
	// Find looks for what a Search names. A Found that falls short of Copies, with
	// no error, says that the mailbox was looked through and the message was not
	// there. [ErrUnsearchable] says that asking again is no use.
	Find(ctx context.Context, s Search) (Found, error)
}

// ErrUnsearchable says that nobody can look into a mailbox, now or later: the
// configuration has no way to it.
var ErrUnsearchable = errors.New("its mailbox cannot be looked into")

// Searchable is what a Finder may be beside: it tells, without asking anybody, that
// mailboxes of a side cannot be looked into, with [ErrUnsearchable]. Who has none waits
// for no place then.
type Searchable interface {
	Searchable(side mail.Route) error
}

// Search names a delivery that may have arrived.
type Search struct {
	ID    mail.ID    // in our Received field
	Side  mail.Route // Old or New
	User  string     // key of the state table; empty when the address is not ours
	Rcpt  mail.Address
	Since time.Time // nothing of it arrived before
	// Copies is how often it has to be there: the message has so many recipients
	// in this mailbox, and who of them has his copy cannot be told.
	Copies int
}

// Found is what a search found.
type Found struct {
	Copies int    // so many are there; a search may stop at Search.Copies
	Where  string // for people: folder and UID
}

// DoubtResult says how a doubt ended.
type DoubtResult string

// The results.
const (
	DoubtFound     DoubtResult = "found"      // it is in the mailbox: done
	DoubtSentAgain DoubtResult = "sent_again" // it may arrive twice
)

// DeliverDoubt tells how a doubt about one recipient ended, when that is
// recorded.
type DeliverDoubt struct {
	Result DoubtResult  `json:"result"`
	ID     mail.ID      `json:"id"`
	N      int          `json:"n"` // index in Envelope.Recipients
	Rcpt   mail.Address `json:"rcpt"`
	Route  mail.Route   `json:"route"`           // that it was claimed for now
	Sent   mail.Route   `json:"sent"`            // that its final dot may have gone over
	Where  string       `json:"where,omitempty"` // it was found
	Reason string       `json:"reason,omitempty"`
	For    string       `json:"for"` // how long it was in doubt
}

// The figures of looks.
const (
	firstLook    = 2 * time.Second // from a lost reply to the first look
	longestLook  = 2 * time.Minute // all looks for one lease, before others have their turn
	longestGap   = time.Minute     // between looks
	defaultDoubt = 5 * time.Minute
	doubtPlaces  = 4 // looks at once, for each route
	noPlace      = time.Second
)

// deliverLooks are the places in which mailboxes are asked.
type deliverLooks struct {
	d      *Deliverer
	ctx    context.Context // ends when the relay is told to end
	work   context.Context
	places map[mail.Route]chan struct{}
	aside  map[mail.Route]chan struct{} // for looks that ask nobody
	gates  *lookGates
	wg     sync.WaitGroup
}

func newDeliverLooks(ctx, work context.Context, d *Deliverer) *deliverLooks {
	k := &deliverLooks{d: d, ctx: ctx, work: work, places: map[mail.Route]chan struct{}{}, aside: map[mail.Route]chan struct{}{},
		gates: newLookGates(d.cfg.Now)}
	for route := range d.cfg.Backends {
		k.places[route], k.aside[route] = make(chan struct{}, doubtPlaces), make(chan struct{}, asidePlace)
	}
	return k
}

// unasked tells whether a look would ask nobody now: there is no way into the
// mailboxes, or their server hangs.
func (k *deliverLooks) unasked(route mail.Route, lease *queue.Lease) bool {
	return k.searchable(route) != nil ||
		!slices.ContainsFunc(lease.Items, func(item queue.Item) bool { return !k.gates.resting(k.search(lease, item, route)) })
}

// searchable gives [ErrUnsearchable] for a side that is known to be.
func (k *deliverLooks) searchable(side mail.Route) error {
	if k.d.cfg.Finder == nil || side != mail.Old && side != mail.New {
		return fmt.Errorf("%w: there is no way to look into mailboxes on %s", ErrUnsearchable, side)
	}
	if f, ok := k.d.cfg.Finder.(Searchable); ok {
		return f.Searchable(side)
	}
	return nil
}

// take takes a lease in doubt off a worker's hands.
func (k *deliverLooks) take(w *deliverWorker, lease *queue.Lease) {
	place := k.places[w.route]
	if k.unasked(w.route, lease) {
		place = k.aside[w.route]
	}
	select {
	case place <- struct{}{}:
	default:
		at := k.d.cfg.Now().Add(time.Duration(float64(noPlace) * (1 + k.d.cfg.Jitter())))
		k.settle(w, lease, func(queue.Item) deliverVerdict {
			return deferred(at, true, "in doubt: its mailbox is asked when those before it are through")
		})
		return
	}
	k.wg.Go(func() {
		defer func() { <-place }()
		k.look(w, lease)
	})
}

// look asks for each recipient of a lease, and keeps the lease meanwhile.
func (k *deliverLooks) look(w *deliverWorker, lease *queue.Lease) {
	x := &delivery{w: w, lease: lease}
	x.ctx, x.cancel = context.WithCancelCause(k.ctx)
	defer x.cancel(nil)
	x.mu.Lock() // the timer may run before the assignment is seen
	x.timer = time.AfterFunc(k.d.cfg.renewEvery, x.renew)
	x.mu.Unlock()
	began := time.Now()
	k.settle(w, lease, func(item queue.Item) deliverVerdict {
		if time.Since(began) > longestLook { // others have their turn
			return deferred(k.d.cfg.Now(), true, "in doubt: its mailbox is asked when those before it are through")
		}
		return k.judge(x, item)
	})
}

// settle records what verdict says of each item, which may take its time.
func (k *deliverLooks) settle(w *deliverWorker, lease *queue.Lease, verdict func(queue.Item) deliverVerdict) {
	vs := make([]deliverVerdict, len(lease.Items))
	for i, item := range lease.Items {
		vs[i] = verdict(item)
		vs[i].N = item.N
		if d := vs[i].doubt; d != nil && d.Result == DoubtSentAgain {
			// Before it is recorded: a process that dies then tells it twice, and not never.
			w.log.Warn("a delivery in doubt is sent again, it may arrive twice", "id", string(d.ID), "recipient", d.N, "rcpt", d.Rcpt.String(),
				"sent", string(d.Sent), "for", d.For, "reason", d.Reason)
		}
	}
	w.settle(k.work, settling{lease: lease, verdicts: vs, notices: w.notices(k.work, lease, vs)})
}

func deferred(at time.Time, doubt bool, reply string) deliverVerdict {
	return deliverVerdict{Outcome: queue.Outcome{Kind: queue.Defer, At: at, Doubt: doubt, Reply: reply}}
}

// judge decides about one recipient in doubt: done, sent again, or asked for
// again later.
func (k *deliverLooks) judge(x *delivery, item queue.Item) deliverVerdict {
	found, err := k.find(x.ctx, x.lease, item, x.w.route)
	now := k.d.cfg.Now()
	if x.ctx.Err() != nil {
		return deferred(now, true, "in doubt: the look at its mailbox was cut short")
	}
	age := now.Sub(item.Doubt.Since)
	if age < 0 && age > -k.d.cfg.DoubtWait { // the store's clock may be another's
		age = 0
	}
	s := k.search(x.lease, item, x.w.route)
	switch {
	case err == nil && found.Copies >= s.Copies:
		return k.found(x, item, found, age)
	case errors.Is(err, ErrUnsearchable):
		return k.again(x, item, age, err.Error())
	case age >= k.d.cfg.DoubtWait || age < 0: // the clock was set back: it has waited for long enough
		return k.again(x, item, age, k.reason(x, item, found, err))
	}
	wait := min(max(age/2, firstLook), longestGap)
	wait = min(time.Duration(float64(wait)*(0.9+0.2*k.d.cfg.Jitter())), max(k.d.cfg.DoubtWait-age, 0))
	text := "it is not in the mailbox on " + string(x.w.route) + " yet"
	if err != nil {
		text = err.Error()
	}
	last := item.Doubt.Since.Add(k.d.cfg.DoubtWait).UTC().Format(time.TimeOnly)
	return deferred(now.Add(wait), true, fmt.Sprintf("in doubt: %s; it is looked for again, and sent again at %s UTC at the latest", text, last))
}

// found says that a recipient has the message.
func (k *deliverLooks) found(x *delivery, item queue.Item, f Found, age time.Duration) deliverVerdict {
	rules := deliverRules{route: x.w.route, null: x.lease.Envelope.From.IsNull(), now: k.d.cfg.Now()}
	v := deliverVerdict{Outcome: queue.Outcome{Kind: queue.Done}}
	rules.done(&v, item, x.lease.Envelope.Recipients[item.N])
	v.Reply = fmt.Sprintf("it was in doubt and is in the mailbox on %s (%s): not sent again", x.w.route, f.Where)
	v.doubt = k.ended(x, item, age)
	v.doubt.Result, v.doubt.Where = DoubtFound, f.Where
	return v
}

// again says that a recipient is sent the message again: at once, but no sooner
// after an attempt than the schedule has it. A backend that never replies would get
// it over and over.
func (k *deliverLooks) again(x *delivery, item queue.Item, age time.Duration, reason string) deliverVerdict {
	at := k.d.cfg.Now()
	if item.Attempts > 0 {
		at = later(at, item.Doubt.Since.Add(k.d.cfg.Schedule.Next(item.Attempts, k.d.cfg.Jitter())))
	}
	v := deferred(at, false, "it was in doubt: "+reason+"; sent again, so it may arrive twice")
	v.doubt = k.ended(x, item, age)
	v.doubt.Result, v.doubt.Reason = DoubtSentAgain, reason
	return v
}

func (k *deliverLooks) ended(x *delivery, item queue.Item, age time.Duration) *DeliverDoubt {
	return &DeliverDoubt{
		ID: x.lease.Envelope.ID, N: item.N, Rcpt: x.lease.Envelope.Recipients[item.N].Addr, Route: x.w.route,
		Sent: item.Doubt.Route, For: max(age, 0).Round(time.Millisecond).String(),
	}
}

// reason says why a message is sent again after all the waiting.
func (k *deliverLooks) reason(x *delivery, item queue.Item, f Found, err error) string {
	if err != nil {
		return err.Error()
	}
	text := "it is not in the mailbox on " + string(x.w.route)
	if f.Copies > 0 {
		text = fmt.Sprintf("the mailbox on %s has it %d times (%s), and it has more recipients there", x.w.route, f.Copies, f.Where)
	}
	if sent := item.Doubt.Route; sent != x.w.route {
		if f, err := k.find(x.ctx, x.lease, item, sent); err == nil && f.Copies > 0 {
			text += fmt.Sprintf(", but in that on %s (%s), which the user has left, and was not carried over", sent, f.Where)
		}
	}
	return text
}

func (k *deliverLooks) find(ctx context.Context, lease *queue.Lease, item queue.Item, side mail.Route) (Found, error) {
	if err := k.searchable(side); err != nil {
		return Found{}, err
	}
	s := k.search(lease, item, side)
	if err := k.gates.enter(s); err != nil {
		return Found{}, err
	}
	// What an earlier look read is remembered, so a large mailbox gets through.
	limit := min(max(k.d.cfg.Now().Sub(item.Doubt.Since)/2, k.d.cfg.lookTime), 4*k.d.cfg.lookTime)
	lctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the look took longer than %s", limit))
	defer cancel()
	found, err := k.d.cfg.Finder.Find(lctx, s)
	k.gates.leave(s, err != nil && lctx.Err() != nil && ctx.Err() == nil)
	return found, err
}

func (k *deliverLooks) search(lease *queue.Lease, item queue.Item, side mail.Route) Search {
	rcpt := &lease.Envelope.Recipients[item.N]
	s := Search{ID: lease.Envelope.ID, Side: side, User: rcpt.User, Rcpt: rcpt.Addr, Since: item.Doubt.At}
	if received := lease.Envelope.Received; s.Since.Before(received) {
		s.Since = received
	}
	for i := range lease.Envelope.Recipients {
		other := &lease.Envelope.Recipients[i]
		if other.User == rcpt.User && (rcpt.User != "" || other.Addr.Key() == rcpt.Addr.Key()) {
			s.Copies++
		}
	}
	return s
}
