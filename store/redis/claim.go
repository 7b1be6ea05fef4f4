package redis

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// lease is the store's side of a queue.Lease.
type lease struct {
	s     *Store
	token string
	id    mail.ID

	mu      sync.Mutex
	settled bool
	result  error
}

// inUse is a message of which this process has leases.
type inUse struct {
	leases int
	inline []byte // its body, compressed, when it came with a lease
	size   int64
}

// lane hands the deliveries of one route out to those who wait for one. All
// that wait are served by one call.
type lane struct {
	s    *Store
	n    int
	asks chan *ask
	wake chan struct{}
	bulk bool         // whose turn it is
	idle atomic.Int32 // claimers that wait while nothing is due
}

// ask is a Claim that waits.
type ask struct {
	ctx  context.Context
	max  int
	got  chan *queue.Lease
	gone chan struct{} // the claimer is not waiting any more
}

func newLane(s *Store, n int) *lane {
	return &lane{s: s, n: n, asks: make(chan *ask), wake: make(chan struct{}, 1)}
}

// kick says that there may be work.
func (l *lane) kick() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// kick wakes the lanes that a script has filled.
func (s *Store) kick(lanes []any) {
	for _, v := range lanes {
		if n := asInt(v); n >= laneOld && n <= laneOut {
			s.lanes[n].kick()
		}
	}
}

// hungry names the lanes for which this node has more workers waiting than puts
// under way: the other nodes need not be woken for what is put now.
func (s *Store) hungry() string {
	var lanes []byte
	for n := laneOld; n <= laneOut; n++ {
		if s.lanes[n].idle.Load() >= s.putting.Load() {
			lanes = append(lanes, byte('0'+n))
		}
	}
	return string(lanes)
}

// Claim implements [queue.Deliverer].
func (s *Store) Claim(ctx context.Context, route mail.Route, maxRcpts int) (*queue.Lease, error) {
	n := laneOf(route)
	if n == 0 {
		return nil, fmt.Errorf("claim a delivery: unknown route %q", route)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, queue.ErrClosed
	}
	a := &ask{ctx: ctx, max: max(maxRcpts, 1), got: make(chan *queue.Lease), gone: make(chan struct{})}
	defer close(a.gone)
	select {
	case s.lanes[n].asks <- a:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ctx.Done():
		return nil, s.whyClosed()
	}
	select {
	case l := <-a.got:
		return l, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ctx.Done():
		return nil, s.whyClosed()
	}
}

func (s *Store) whyClosed() error {
	if err := s.Err(); err != nil {
		return err
	}
	return queue.ErrClosed
}

// idle is how long a lane sleeps at most: a doorbell may be lost.
const idle = time.Second

// maxClaims is how many leases one call fetches at most.
const maxClaims = 16

// run serves a lane until the store is closed.
func (l *lane) run() {
	var waiting []*ask
	t := time.NewTimer(idle)
	defer t.Stop()
	for {
		l.idle.Store(0)
		if len(waiting) == 0 {
			select {
			case a := <-l.asks:
				waiting = append(waiting, a)
			case <-l.s.ctx.Done():
				return
			}
		}
		waiting = l.more(waiting)
		pause := l.serve(&waiting)
		if len(waiting) == 0 || pause <= 0 {
			continue
		}
		l.idle.Store(int32(len(waiting)))
		t.Reset(min(pause, idle))
		select {
		case a := <-l.asks:
			waiting = append(waiting, a)
		case <-l.wake:
		case <-t.C:
		case <-l.s.ctx.Done():
			return
		}
	}
}

// more takes what else waits, and drops who went away.
func (l *lane) more(waiting []*ask) []*ask {
	for {
		select {
		case a := <-l.asks:
			waiting = append(waiting, a)
			continue
		default:
		}
		break
	}
	kept := waiting[:0]
	for _, a := range waiting {
		select {
		case <-a.gone:
		default:
			kept = append(kept, a)
		}
	}
	return kept
}

// serve claims for those who wait, and says how long to sleep when somebody
// still does.
func (l *lane) serve(waiting *[]*ask) time.Duration {
	if len(*waiting) == 0 {
		return 0
	}
	if l.s.Draining() {
		return idle // the other nodes deliver it
	}
	got, pause, err := l.claim(min(len(*waiting), maxClaims), (*waiting)[0].max)
	if err != nil {
		l.s.log.Warn("mail cannot be claimed", "route", routeOf(int64(l.n)), "err", err)
		return idle
	}
	for _, g := range got {
		l.hand(waiting, g)
	}
	return pause
}

// hand gives a lease to the first who still waits.
func (l *lane) hand(waiting *[]*ask, got *queue.Lease) {
	for len(*waiting) > 0 {
		a := (*waiting)[0]
		if len(got.Items) > a.max {
			break
		}
		*waiting = (*waiting)[1:]
		select {
		case a.got <- got:
			return
		case <-a.gone:
		}
	}
	l.s.giveBack([]*queue.Lease{got})
}

// claim fetches up to n leases. Where there are fewer, pause says when to look
// again.
func (l *lane) claim(n, maxRcpts int) (got []*queue.Lease, pause time.Duration, err error) {
	s := l.s
	l.bulk = !l.bulk
	base := s.boot + "-" + strconv.FormatUint(s.tokens.Add(1), 36)
	start := time.Now()
	said, err := s.link.read(s.ctx, scClaim, s.opts.Node, s.boot, l.n, n, maxRcpts, s.opts.LeaseTime.Milliseconds(), base, flag(l.bulk))
	if err != nil {
		return nil, 0, err
	}
	list := asList(said)
	now := asInt(at(list, 0))
	s.link.saw(now)
	for _, v := range list[min(2, len(list)):] {
		q, err := s.leaseOf(asList(v), l.n, start)
		if err != nil {
			s.log.Error("a message cannot be delivered: its envelope is damaged", "err", err, "alarm", true)
			continue // the lease runs out; three times, and it is parked
		}
		got = append(got, q)
	}
	if len(got) > 0 {
		s.crash("claim")
	}
	next := asInt(at(list, 1))
	switch {
	case len(got) == n || next != 0 && next <= now:
		return got, 0, nil
	case next == 0:
		return got, idle, nil
	}
	return got, max(time.Duration(next-now)*time.Millisecond, time.Millisecond), nil
}

// leaseOf reads a lease as claim.lua gives it.
func (s *Store) leaseOf(v []any, lane int, start time.Time) (*queue.Lease, error) {
	id := mail.ID(asString(at(v, 1)))
	env := new(mail.Envelope)
	if err := json.Unmarshal([]byte(asString(at(v, 2))), env); err != nil {
		return nil, fmt.Errorf("envelope of message %s: %w", id, err)
	}
	ls := &lease{s: s, token: asString(at(v, 0)), id: id}
	q := &queue.Lease{
		Token: ls.token, Route: routeOf(int64(lane)), Envelope: env, Until: start.Add(s.opts.LeaseTime), Opaque: ls,
	}
	for _, x := range asList(at(v, 4)) {
		f := asList(x)
		q.Items = append(q.Items, queue.Item{
			N: int(asInt(at(f, 0))), User: asString(at(f, 1)), Epoch: uint64(asInt(at(f, 2))), Attempts: int(asInt(at(f, 3))),
			Crashes: int(asInt(at(f, 4))), Since: fromMillis(asInt(at(f, 5))), Noticed: asInt(at(f, 6)) != 0,
			Unknown: unknownRoutes(asInt(at(f, 7))), Copy: asInt(at(f, 8)) != 0, CopyTo: routeOf(asInt(at(f, 9))),
			LastReply: asString(at(f, 10)), Doubt: queue.ParseDoubt(asString(at(f, 11))),
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases[ls.token] = ls
	use := s.inUse[id]
	use.leases++
	use.size = env.Size
	if z := asString(at(v, 5)); z != "" {
		use.inline = []byte(z)
	}
	s.inUse[id] = use
	return q, nil
}

// forget takes a lease out of this process's books.
func (s *Store) forget(ls *lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.leases[ls.token]; !ok {
		return
	}
	delete(s.leases, ls.token)
	use := s.inUse[ls.id]
	if use.leases--; use.leases <= 0 {
		delete(s.inUse, ls.id)
	} else {
		s.inUse[ls.id] = use
	}
}

// giveBack ends leases that nobody works on, as if nothing had been claimed.
func (s *Store) giveBack(list []*queue.Lease) {
	var tokens []any
	for _, q := range list {
		ls := q.Opaque.(*lease)
		tokens = append(tokens, ls.token)
		s.forget(ls)
	}
	if _, err := s.link.read(s.ctx, scRelease, tokens...); err != nil && s.ctx.Err() == nil {
		s.log.Warn("leases that nobody uses cannot be given back: they run out", "err", err)
	}
}

// Renew implements [queue.Deliverer].
func (s *Store) Renew(ctx context.Context, l *queue.Lease, sending bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	ls, ok := l.Opaque.(*lease)
	if !ok || ls.s != s || ls.over() || time.Now().After(l.Until) {
		return queue.ErrLost
	}
	run := s.link.read
	if sending {
		run = s.link.write // an old master that is cut off must not allow a dot
	}
	ctx, cancel := context.WithDeadline(ctx, l.Until)
	defer cancel()
	start := time.Now()
	said, err := run(ctx, scRenew, ls.token, s.opts.LeaseTime.Milliseconds(), flag(sending))
	if err != nil {
		return err
	}
	if asString(said) != "OK" {
		return queue.ErrLost
	}
	until := start.Add(s.opts.LeaseTime)
	if time.Now().After(until) {
		return queue.ErrLost
	}
	l.Until = until
	if sending {
		s.crash("renew.sending")
	}
	return nil
}

func (ls *lease) over() bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.settled
}
