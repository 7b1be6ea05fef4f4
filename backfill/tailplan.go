package backfill

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"time"
)

// pollQueue are the folders without a connection, by the time of their next
// poll.
type pollQueue []*watching

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (q pollQueue) Len() int           { return len(q) }
func (q pollQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q pollQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push is for package heap.
func (q *pollQueue) Push(x any) {
	w := x.(*watching)
	w.at = len(*q)
	*q = append(*q, w)
}

// Pop is for package heap.
func (q *pollQueue) Pop() any {
	old := *q
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return w
}

func (q *pollQueue) remove(w *watching) { heap.Remove(q, w.at) }

// push puts a folder among those that are polled.
func (s *tailServer) push(w *watching, due time.Time) {
	w.place, w.due = queued, due
	heap.Push(&s.queue, w)
}

// govern decides who connects, until ctx ends or nothing is watched any more. It
// is the only place where connections begin.
func (s *tailServer) govern(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.wake:
		}
		next, more := s.plan(ctx)
		if !more {
			return
		}
		timer.Reset(time.Until(next))
	}
}

// planMost is the longest time between two looks.
const planMost = time.Minute

// plan begins what is due, and gives the time of the next look; more is false
// when nothing is left to do here.
func (s *tailServer) plan(ctx context.Context) (next time.Time, more bool) {
	t := s.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.all == 0 && len(s.stands) == 0 && s.polls == 0 {
		if t.servers[s.address] == s {
			delete(t.servers, s.address)
		}
		return next, false
	}
	now := time.Now()
	next = now.Add(planMost)
	soon := func(at time.Time) {
		if at.Before(next) {
			next = at
		}
	}
	if s.lowered() {
		s.regain(now)
		soon(s.raise)
	}
	if now.Before(s.until) {
		soon(s.until)
		return next, true
	}
	s.planStanding(ctx, now, soon)
	s.planPolls(ctx, now, soon)
	return next, true
}

// lowered tells whether the server has less than was asked for.
func (s *tailServer) lowered() bool {
	return s.bound < s.t.cfg.Standing || s.pollBound < s.t.cfg.Polls
}

// regain raises the bounds again, some time after the server refused connections.
func (s *tailServer) regain(now time.Time) {
	if now.Before(s.raise) {
		return
	}
	s.bound = min(s.bound+max(s.bound/4, 2), s.t.cfg.Standing)
	s.pollBound = min(s.pollBound+1, s.t.cfg.Polls)
	s.raise = now.Add(s.t.cfg.Regain)
	s.warned = s.lowered()
}

// allowed tells whether a connection may be begun: after a failure only one, to
// see whether the server is back.
func (s *tailServer) allowed() bool {
	if s.failures > 0 && s.probing {
		return false
	}
	s.probing = s.failures > 0
	return true
}

// planStanding connects those whose connection ended, and gives the places that
// are free to the folders that changed last.
func (s *tailServer) planStanding(ctx context.Context, now time.Time, soon func(time.Time)) {
	for w := range s.reserves {
		if now.Before(w.due) {
			soon(w.due)
			continue
		}
		if len(s.stands) >= s.bound { // it was lowered meanwhile
			delete(s.reserves, w)
			s.push(w, now)
			continue
		}
		if !s.allowed() {
			return
		}
		delete(s.reserves, w)
		s.begin(ctx, w, now)
	}
	for len(s.stands)+len(s.reserves) < s.bound {
		w := s.liveliest(now)
		if w == nil || !s.allowed() {
			return
		}
		s.queue.remove(w)
		s.begin(ctx, w, now)
	}
}

func (s *tailServer) begin(ctx context.Context, w *watching, now time.Time) {
	wctx, cancel := context.WithCancel(ctx)
	w.place, w.since, w.cancel = standing, now, cancel
	s.stands[w] = true
	s.t.wg.Go(func() {
		defer cancel()
		s.stand(ctx, wctx, w)
	})
}

// liveliest gives the folder in the queue that changed last, nil when there is
// none that may connect.
func (s *tailServer) liveliest(now time.Time) *watching {
	var best *watching
	for _, w := range s.queue {
		if now.Before(w.benched) || best != nil && !w.active.After(best.active) {
			continue
		}
		best = w
	}
	return best
}

// makeRoom ends the standing connection of the folder that has been quiet for
// longest, when w is more alive.
func (s *tailServer) makeRoom(w *watching, now time.Time) {
	if len(s.stands)+len(s.reserves) < s.bound {
		return
	}
	q := s.quietest()
	if q != nil && q.active.Before(w.active) && now.Sub(q.since) >= s.t.cfg.Stay {
		q.cancel()
	}
}

// quietest gives the folder with a standing connection that changed longest ago,
// nil when there is none.
func (s *tailServer) quietest() *watching {
	var q *watching
	for w := range s.stands {
		if q == nil || w.active.Before(q.active) {
			q = w
		}
	}
	return q
}

// planPolls begins the polls that are due, as far as the bounds allow.
func (s *tailServer) planPolls(ctx context.Context, now time.Time, soon func(time.Time)) {
	if now.Before(s.pollNext) {
		soon(s.pollNext)
		return
	}
	for len(s.queue) > 0 && s.polls < s.pollBound {
		w := s.queue[0]
		if now.Before(w.due) {
			soon(w.due)
			return
		}
		if r := s.logins.ReserveN(now, 1); r.DelayFrom(now) > 0 {
			soon(now.Add(r.DelayFrom(now)))
			r.CancelAt(now)
			return
		}
		if !s.allowed() {
			return
		}
		s.queue.remove(w)
		w.place = polling
		s.polls++
		s.t.wg.Go(func() { s.poll(ctx, w) })
	}
}

// backoff gives the pause after so many failures, with jitter so that those who
// failed together do not come back together.
func (s *tailServer) backoff(failures int) time.Duration {
	d := s.t.cfg.RetryFirst
	for i := 1; i < failures && d < s.t.cfg.RetryMax; i++ {
		d *= 2
	}
	d = min(d, s.t.cfg.RetryMax)
	return d/2 + rand.N(d/2+1)
}
