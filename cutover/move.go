package cutover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// smallPass is how much a pass may still have found for its user to count as
// in sync; the rest is a matter of the hold.
const smallPass = 20

// maxPasses bounds the passes of one attempt in syncing, for a mailbox that
// changes faster than it can be copied: the hold ends that race.
const maxPasses = 8

// copyTime bounds the wait for queued copies; then the attempt has failed, and
// the operator can see why.
const copyTime = time.Minute

// move is one user on his way. Its goroutine is run.
type move struct {
	c    *Conductor
	user string

	// Guarded by Conductor.mu.
	running  bool
	finished bool

	mu     sync.Mutex
	req    Request
	status Status
	again  chan struct{} // one token: the request changed
	cancel context.CancelFunc
	gone   bool // stop was called
	left   bool // leave was called
	placed bool // has one of the places
	// changed says that the status is not published yet.
	changed bool

	wave     string                  // of the user, as read last
	size     atomic.Int64            // octets in his mailbox, as far as known
	sized    bool                    // somebody looked, or need not any more
	stopPass context.CancelCauseFunc // ends a pass when a pause begins; nil: none runs

	notBefore time.Time // of the user, and of his wave
	waits     bool      // ready, for somebody's word or a time
	insist    bool      // somebody asked for a pass since the last one

	told []backfill.Problem // by Hooks.Passed; the goroutine's own

	keeping sync.Mutex
	kept    *kept // what is on record; nil: nothing
	passing bool  // a pass runs; guarded by mu

	stake stake  // in the user, where nodes share the work
	vigil *vigil // over his mailbox on old, while he is ready or new

	stopSweep context.CancelCauseFunc // calls off a sweep; nil: none runs
	retryAt   time.Time               // of a rollback that failed

	// The goroutine's own.
	front, rear *sweeper // old to new after the flip, over vigil; new to old
	pages
	closing
}

func newMove(c *Conductor, u router.User, req Request) *move {
	now := time.Now()
	phase := PhaseWaiting
	if u.State == router.StateOld { // nobody moves him; he is swept, at most
		phase = PhaseDone
	}
	m := &move{
		c: c, user: u.Address, req: req, again: make(chan struct{}, 1), vigil: newVigil(), rear: newSweeper(newVigil(), true),
		status: Status{
			User: u.Address, State: u.State, Phase: phase, Started: now, Updated: now, Flip: !req.Sync, Rollback: req.Rollback, Node: c.cfg.Node,
		},
		changed: true,
	}
	m.front = newSweeper(m.vigil, false)
	return m
}

// ask changes how far the user goes.
func (m *move) ask(req Request) {
	m.mu.Lock()
	m.req, m.insist, m.retryAt = req, true, time.Time{}
	m.mu.Unlock()
	m.vigil.wantAll()
	m.callOff()
	m.note(func(s *Status) {
		s.Flip, s.Rollback = !req.Sync, req.Rollback
		if !s.Active() {
			s.Phase = PhaseWaiting // who waits for the end must not see the last one
		}
	})
	token(m.again)
}

func (m *move) request() Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.req
}

func (m *move) snapshot() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// note changes the status and tells who listens.
func (m *move) note(f func(*Status)) {
	m.mu.Lock()
	f(&m.status)
	m.status.Updated = time.Now()
	m.changed = true
	s := m.status
	m.mu.Unlock()
	if m.c.cfg.Hooks.Status != nil {
		m.c.cfg.Hooks.Status(s)
	}
}

func (m *move) phase(p Phase) { m.note(func(s *Status) { s.Phase = p }) }

// stop ends the move's work; its goroutine returns soon after.
func (m *move) stop() {
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	m.interrupt()
}

// interrupt ends what the move is doing.
func (m *move) interrupt() {
	m.mu.Lock()
	cancel := m.cancel
	m.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

func (m *move) leaving() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.left
}

func (m *move) stopped() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gone
}

// finish says that nothing is left to do for this move.
func (m *move) finish() {
	m.c.mu.Lock()
	m.finished = true
	m.c.mu.Unlock()
}

// run works on the user until he has arrived, was taken back, or ctx ends.
func (m *move) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	m.cancel = cancel
	m.mu.Unlock()
	if m.stopped() {
		m.finish()
		m.giveUp(true)
		return
	}
	defer m.unwatch()
	defer m.c.pace.leave(m)
	if m.leaving() || m.check() != nil {
		cancel()
	}
	if wait := m.backOff(); wait > 0 && !m.retryLater(wait) && !m.sleep(ctx, wait) {
		cancel()
	}
	for ctx.Err() == nil {
		wait, err := m.step(ctx)
		switch {
		case ctx.Err() != nil:
		case m.check() != nil:
			m.lose()
		case errors.Is(err, errArrived):
			m.c.forget(ctx, m.user)
			m.finish()
			m.giveUp(true)
			return
		case errors.Is(err, errYield):
			cancel()
		case errors.Is(err, errPaused), errors.Is(err, errPaced), errors.Is(err, errAsked):
			// He waits for his turn, which he gets when the pause is over.
		case errors.Is(err, router.ErrEpoch):
			// Somebody else changed the user: look at him afresh.
		case m.limited(err) != nil:
			wait = m.awaitLimit(m.limited(err))
		case err != nil:
			wait = m.failed(err)
		}
		if wait > 0 && !m.rest(ctx, wait, err == nil) {
			break
		}
	}
	if m.stopped() {
		m.note(func(s *Status) { s.State, s.Phase, s.Flip = router.StateOld, PhaseDone, false })
		m.finish()
	}
	m.giveUp(m.stopped())
}

// errArrived ends a move: there is no state that needs its work.
var errArrived = errors.New("arrived")

// sleep waits, or less when the request changes; false when ctx ended.
func (m *move) sleep(ctx context.Context, d time.Duration) bool { return m.rest(ctx, d, false) }

// rest is sleep that ends, with listen, also when the user's mailbox changes.
func (m *move) rest(ctx context.Context, d time.Duration, listen bool) bool {
	var stirred, behind chan struct{}
	if listen {
		stirred, behind = m.vigil.stirred, m.rear.stirred
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-stirred:
		return m.vigil.settle(ctx)
	case <-behind:
		return m.rear.settle(ctx)
	case <-m.again:
	case <-t.C:
	}
	return true
}

// failed notes an error and gives the time to wait before the next try.
func (m *move) failed(err error) time.Duration {
	cfg := m.c.cfg
	m.c.pace.leave(m) // others may try meanwhile
	attempts := m.snapshot().Attempts + 1
	wait := cfg.RetryFirst
	for i := 1; i < attempts && wait < cfg.RetryMax; i++ {
		wait *= 2
	}
	wait = min(wait, cfg.RetryMax)
	if m.snapshot().State.Held() {
		wait = min(wait, cfg.RetryFirst) // he is still held, and somebody has to end that
	}
	m.note(func(s *Status) {
		s.Phase, s.Err, s.Attempts, s.Next = PhaseFailed, err.Error(), attempts, time.Now().Add(wait)
		s.Failures++
	})
	m.keep()
	if cfg.Hooks.Failed != nil {
		cfg.Hooks.Failed()
	}
	cfg.Log.Warn("cutover: attempt failed", "user", m.user, "attempt", attempts, "next_in", wait, "err", err)
	return wait
}

// step does what the user's present state asks for. It returns how long to
// wait before the next step.
func (m *move) step(ctx context.Context) (time.Duration, error) {
	u, err := m.c.cfg.Table.User(ctx, m.user)
	if errors.Is(err, router.ErrNoUser) {
		m.note(func(s *Status) { s.Phase, s.Err = PhaseFailed, "the user was deleted from the table" })
		return 0, errArrived
	}
	if err != nil {
		return 0, fmt.Errorf("reading the user: %w", err)
	}
	m.meet(u)
	if err := m.settleBook(ctx); err != nil {
		m.c.cfg.Log.Warn("cutover: what was found for a user cannot be noted; trying again", "user", m.user, "err", err)
	}
	if wait, back := m.backDue(); back && wait <= 0 && (u.State == router.StateNew || u.State == router.StateDone) {
		m.unwatch()
		return 0, m.tryBack(ctx, u)
	}
	switch u.State {
	case router.StateOld:
		return m.idle(ctx, u)
	case router.StateSyncing:
		return 0, m.inSlot(ctx, workFirst, func() error { return m.sync(ctx, u) })
	case router.StateReady:
		return m.ready(ctx, u)
	case router.StateCutover, router.StateRollback:
		if byHand, err := m.heldByHand(ctx, u); byHand || err != nil {
			m.phase(PhaseWaiting)
			return m.c.cfg.Tail, err
		}
		// Without a place: a hold that waits for one could outlast max_hold.
		return 0, m.counted(ctx, u, func() error { return m.held(ctx, u) })
	case router.StateNew:
		return m.window(ctx, u)
	}
	if wait, back := m.backDue(); back {
		return wait, nil
	}
	m.phase(PhaseDone)
	return 0, errArrived
}

// meet takes note of how the user is now. Nobody is told when that is no news.
func (m *move) meet(u router.User) {
	m.mu.Lock()
	was := m.status.State
	m.wave, m.notBefore = u.Wave, u.NotBefore
	same := was == u.State && m.status.Wave == u.Wave
	m.mu.Unlock()
	if !same {
		m.note(func(s *Status) { s.State, s.Wave = u.State, u.Wave })
	}
	m.followPause()
	if u.State != router.StateReady {
		m.c.pace.leave(m)
	}
	if u.State != router.StateReady && u.State != router.StateNew {
		m.vigil.unwatch()
	}
	if u.State != router.StateOld && u.State != router.StateReady && u.State != router.StateNew {
		m.rear.unwatch()
	}
}

// inSlot runs f when one of the places for users at work is free.
func (m *move) inSlot(ctx context.Context, w work, f func() error) error {
	m.mu.Lock()
	t := turn{work: w, wave: m.wave, size: &m.size}
	m.mu.Unlock()
	if u := m.snapshot().State; !pausable(u) {
		t.wave, t.exempt = "", true
	}
	// A flip is not begun when it is paused, and ends when it is while it waits.
	t.exempt = t.exempt || w == workFlip
	err := m.c.places.take(ctx, t, func() {
		m.phase(PhaseWaiting)
		m.followPause()
	})
	if err != nil {
		return err
	}
	m.setPlaced(true)
	defer func() {
		m.setPlaced(false)
		m.c.places.giveBack()
		if m.c.cfg.Owners != nil {
			token(m.c.lookNow) // for somebody who waits for it
		}
	}()
	return f()
}

func (m *move) setPlaced(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.placed = yes
}

// sync copies until a pass is small, then the user is ready.
func (m *move) sync(ctx context.Context, u router.User) error {
	m.phase(PhaseCopy)
	for n := 0; n < maxPasses; n++ {
		if _, err := m.sweepNew(ctx, u, sight{placed: true}); err != nil {
			return err
		}
		rep, err := m.pass(ctx, u, false)
		if errors.Is(err, errSlice) {
			n--
			continue
		}
		if err != nil {
			return err
		}
		if rep.Copied+rep.Adopted <= smallPass {
			break
		}
	}
	req := m.request()
	if _, err := m.set(ctx, u, router.StateReady, req.By, "in sync"); err != nil {
		return fmt.Errorf("setting the user ready: %w", err)
	}
	m.note(func(s *Status) { s.Err, s.Attempts, s.Next = "", 0, time.Time{} })
	return nil
}

// ready flips a user who is to go on, and keeps the others in sync.
func (m *move) ready(ctx context.Context, u router.User) (time.Duration, error) {
	now, wait, err := m.mayFlip(ctx, u)
	if err != nil {
		return 0, err
	}
	if now {
		if m.c.cfg.Owners != nil && !m.c.pace.bounded() && m.c.places.free() == 0 {
			return 0, errYield
		}
		m.unwatch()
		return 0, m.inSlot(ctx, workFlip, func() error {
			err := m.counted(ctx, u, func() error { return m.flip(ctx, u) })
			if !errors.Is(err, errPaced) {
				m.c.pace.leave(m)
			}
			return err
		})
	}
	next, err := m.follow(ctx, u)
	if err != nil {
		return 0, err
	}
	m.note(func(s *Status) {
		if s.Phase = PhaseReady; !s.Flip || time.Now().Before(m.notBefore) {
			s.Err, s.Attempts, s.Next = "", 0, time.Time{} // else they are those of the flip
		}
	})
	look, err := m.sweepNew(ctx, u, sight{})
	if err != nil {
		return 0, err
	}
	if next = min(next, look); wait > 0 {
		next = min(next, wait)
	}
	return next, nil
}
