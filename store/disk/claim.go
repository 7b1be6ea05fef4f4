package disk

import (
	"container/heap"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// lease is the store's side of a queue.Lease. Guarded by Store.mu.
type lease struct {
	s        *Store
	token    string
	lane     lane
	m        *msg
	items    []*item
	epochs   []uint64 // of the users when it was claimed
	copyTo   []lane   // where a copy is wanted; 0: nowhere
	slots    []int    // in the doubt file
	at       int64    // Unix milliseconds of the claim
	until    time.Time
	sending  bool
	settling bool // the writer is recording its outcomes
	lost     bool // taken back, or over
	settled  bool
	result   error // of Settle
}

// Claim implements [queue.Deliverer].
func (s *Store) Claim(ctx context.Context, route mail.Route, maxRcpts int) (*queue.Lease, error) {
	l := laneOf(route)
	if l == laneNone {
		return nil, fmt.Errorf("claim a delivery: unknown route %q", route)
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		if s.closed || s.Err() != nil {
			s.mu.Unlock()
			return nil, s.whyClosed()
		}
		ls, err := s.next(l, max(maxRcpts, 1))
		if ls != nil || err != nil {
			var out *queue.Lease
			if ls != nil {
				out = s.describe(ls)
			}
			s.mu.Unlock()
			s.crash("claim")
			return out, err
		}
		w := make(chan struct{})
		s.lanes[l].waiters = append(s.lanes[l].waiters, w)
		s.mu.Unlock()
		if err := s.await(ctx, l, w); err != nil {
			return nil, err
		}
	}
}

func (s *Store) whyClosed() error {
	if err := s.Err(); err != nil {
		return err
	}
	return queue.ErrClosed
}

// await waits for work. Who leaves hands a wake that came meanwhile on.
func (s *Store) await(ctx context.Context, l lane, w chan struct{}) (err error) {
	select {
	case <-w:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.quit:
		err = s.whyClosed()
	case <-s.failed:
		err = s.whyClosed()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.lanes[l].unwait(w) {
		s.lanes[l].wake()
	}
	return err
}

// next leases the next message of a lane; nil when none is due.
func (s *Store) next(l lane, maxRcpts int) (*lease, error) {
	q := &s.lanes[l]
	for {
		m, from := q.pop()
		if q.paged.n <= s.window/4 && q.nextDisk <= s.now() {
			s.kickWriter()
		}
		if m == nil {
			return nil, nil
		}
		m.inq[l] = false
		var items []*item
		more := false
		for _, it := range m.items {
			if it.where != ready || it.lane != l {
				continue
			}
			if len(items) == maxRcpts || len(items) > 0 && (it.row.doubt != nil) != (items[0].row.doubt != nil) {
				more = true
				continue
			}
			items = append(items, it)
		}
		if len(items) == 0 {
			continue
		}
		ls, err := s.grant(l, m, items)
		if more || err != nil {
			m.inq[l] = true
			from.pushFront(m)
			q.wake()
		}
		return ls, err
	}
}

// grant makes the lease and notes it in the doubt file.
func (s *Store) grant(l lane, m *msg, items []*item) (*lease, error) {
	s.tokens++
	ls := &lease{
		s: s, token: strconv.FormatInt(s.doubt.boot, 36) + "-" + strconv.FormatUint(s.tokens, 36), lane: l, m: m,
		items: items, at: s.now(), until: time.Now().Add(s.opts.LeaseTime),
		epochs: make([]uint64, len(items)), copyTo: make([]lane, len(items)),
	}
	for i, it := range items {
		slot, err := s.doubt.note(m.id, it.row.n, l, ls.at)
		if err != nil {
			s.doubt.free(ls.slots)
			return nil, fmt.Errorf("note a delivery: %w", err)
		}
		ls.slots = append(ls.slots, slot)
		it.row.fresh(it.u)
		ls.epochs[i] = it.u.epoch()
		if it.u.copies() && !it.row.copy && l != laneOut {
			ls.copyTo[i] = laneOf(l.route().Other())
		}
	}
	for _, it := range items {
		it.where, it.lease = leased, ls
		if it.u != nil {
			it.u.refs++
		}
	}
	s.leases[ls] = struct{}{}
	if len(s.leases) == 1 {
		s.arm(s.now() + s.opts.LeaseTime.Milliseconds())
	}
	return ls, nil
}

// describe gives the worker's view of a lease.
func (s *Store) describe(ls *lease) *queue.Lease {
	out := &queue.Lease{
		Token: ls.token, Route: ls.lane.route(), Envelope: ls.m.env, Until: ls.until, Opaque: ls,
		Items: make([]queue.Item, len(ls.items)),
	}
	for i, it := range ls.items {
		r := &it.row
		out.Items[i] = queue.Item{
			N: r.n, User: r.user, Epoch: ls.epochs[i], Attempts: r.attempts, Crashes: r.crashes,
			Since: fromMillis(r.since), Noticed: r.noticed, Unknown: r.unknownRoutes(), Copy: r.copy,
			CopyTo: ls.copyTo[i].route(), LastReply: r.reply, Doubt: r.inDoubt(),
		}
	}
	return out
}

// Renew implements [queue.Deliverer].
func (s *Store) Renew(ctx context.Context, l *queue.Lease, sending bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.usable(); err != nil {
		return err
	}
	ls, ok := l.Opaque.(*lease)
	if !ok || ls.s != s {
		return queue.ErrLost
	}
	if err := s.renew(ls, l, sending); err != nil {
		return err
	}
	if sending {
		s.crash("renew.sending")
	}
	return nil
}

func (s *Store) renew(ls *lease, l *queue.Lease, sending bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if ls.lost || ls.settled || ls.settling || now.After(ls.until) {
		return queue.ErrLost
	}
	if sending && !ls.sending {
		if err := s.doubt.sending(ls.slots); err != nil {
			return fmt.Errorf("note a delivery: %w", err)
		}
		ls.sending = true
	}
	ls.until = now.Add(s.opts.LeaseTime)
	l.Until = ls.until
	return nil
}

// end takes a lease out of the books. What becomes of its items is for the
// caller.
func (s *Store) end(ls *lease) {
	if _, ok := s.leases[ls]; !ok {
		return
	}
	delete(s.leases, ls)
	if ls.lost && ls.sending && !ls.settled { // its slots stay until the doubt is recorded
		s.ghosts[ls] = time.Now().Add(grace)
		return
	}
	s.doubt.free(ls.slots)
	ls.slots = nil
	s.unref(ls)
}

// bury forgets a lease that was lost while it was sending.
func (s *Store) bury(ls *lease) {
	if _, ok := s.ghosts[ls]; ok {
		delete(s.ghosts, ls)
		s.unref(ls)
	}
}

func (s *Store) unref(ls *lease) {
	for _, it := range ls.items {
		if it.u != nil {
			it.u.refs--
		}
	}
}

// takeBack ends a lease that is not sending, as if nothing had been claimed.
func (s *Store) takeBack(ls *lease) {
	ls.lost = true
	s.end(ls)
	for _, it := range ls.items {
		if it.where == leased && it.lease == ls {
			s.admit(it, true)
		}
	}
}

// arm makes the clock ring at a time in milliseconds, or earlier.
func (s *Store) arm(at int64) {
	if at >= s.armed {
		return
	}
	s.armed = at
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// clockStep is how long a jump of the wall clock can go unnoticed.
const clockStep = 15 * time.Second

// clock moves what becomes due, and ends leases that are over.
func (s *Store) clock() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	start, ahead := time.Now(), s.now() // the wall clock when the store was opened, as it is set now
	for {
		s.mu.Lock()
		at := s.now() - time.Since(start).Milliseconds()
		if ahead-at > clockStep.Milliseconds() {
			s.log.Warn("the clock was set back: all mail that waits is due now", "by", time.Duration(ahead-at)*time.Millisecond)
			s.bg = append(s.bg, s.hasten(laneOld))
			s.kickWriter()
		}
		ahead = at
		s.armed = s.tick()
		wait := clockStep
		if s.armed != never {
			wait = min(max(time.UnixMilli(s.armed).Sub(s.opts.Now()), 0), wait)
		}
		s.mu.Unlock()
		t.Reset(wait)
		select {
		case <-t.C:
		case <-s.poke:
		case <-s.quit:
			return
		}
	}
}

// tick does what is due and gives the time of what comes next.
func (s *Store) tick() int64 {
	now := s.now()
	late := now + s.horizon.Milliseconds() // no timer is set for later: then the clock was set back
	for len(s.timers) > 0 && (s.timers[0].at <= now || s.timers[0].at > late) {
		t := heap.Pop(&s.timers).(timer)
		if t.it.where == waiting && t.it.timer == t.at {
			s.makeReady(t.it, true)
		}
	}
	next := int64(never)
	if len(s.timers) > 0 {
		next = s.timers[0].at
	}
	for l := laneOld; l <= laneOut; l++ {
		q := &s.lanes[l]
		switch {
		case q.nextDisk > now:
			next = min(next, q.nextDisk)
		case q.paged.n <= s.window/4:
			s.kickWriter()
		}
	}
	return min(next, s.expire(now))
}

// expire ends the leases that are over and gives the time of the next.
func (s *Store) expire(nowMillis int64) int64 {
	next, now := int64(never), time.Now()
	for ls := range s.leases {
		if ls.settling {
			continue
		}
		if left := ls.until.Sub(now); left > 0 {
			next = min(next, nowMillis+left.Milliseconds()+1)
			continue
		}
		s.log.Warn("a lease ended without a result", "id", ls.m.id, "route", ls.lane.route(), "sending", ls.sending)
		ls.lost = true
		s.end(ls)
		ls.items = slices.Clone(ls.items)
		s.bg = append(s.bg, s.crashOp(ls))
		s.kickWriter()
	}
	for ls, until := range s.ghosts {
		if left := until.Sub(now); left > 0 {
			next = min(next, nowMillis+left.Milliseconds()+1)
		} else {
			s.bury(ls)
		}
	}
	return next
}
