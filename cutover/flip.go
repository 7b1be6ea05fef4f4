package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// cleanPasses is how many final passes in a row must find nothing.
const cleanPasses = 2

// flip holds the user and carries the hold to its end. A pass right before it
// keeps the hold short.
func (m *move) flip(ctx context.Context, u router.User) error {
	m.phase(PhaseCopy)
	rep, err := m.pass(ctx, u, false)
	if err != nil {
		return err
	}
	if err := blocking(rep); err != nil {
		return err
	}
	if !m.wanted(u.Wave) {
		return nil // taken back meanwhile
	}
	held, err := m.beginHold(ctx, u)
	if err != nil {
		return err
	}
	m.note(func(s *Status) { s.State = held.State })
	return m.held(ctx, held)
}

// untilClean makes passes until enough of them in a row find nothing.
func untilClean(pass func() (backfill.Report, error)) error {
	for clean := 0; clean < cleanPasses; {
		rep, err := pass()
		if err != nil {
			return err
		}
		clean++
		if !rep.Clean() {
			clean = 0
		}
	}
	return nil
}

// held finishes a hold, begun just now or by an earlier process. Whatever goes
// wrong, the user does not stay held: he reads what he read before, old when he
// was to be flipped, new when he was to be rolled back.
func (m *move) held(ctx context.Context, u router.User) error {
	deadline := u.Since.Add(m.c.cfg.MaxHold)
	hctx, cancel := context.WithDeadlineCause(ctx, deadline, fmt.Errorf("the hold took longer than max_hold (%s)", m.c.cfg.MaxHold))
	defer cancel()
	done := make(chan error, 1)
	finish := m.finishHold
	if u.State == router.StateRollback {
		finish = m.finishBack
	}
	go func() { done <- finish(hctx, u) }()
	err, ended := await(hctx, done)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = ctx.Err() // we are stopping: the next process goes on, within max_hold
	case m.check() != nil:
		err = errLost // so does another node
	default:
		if cause := context.Cause(hctx); cause != nil {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		err = m.giveBack(ctx, u, err)
	}
	if !ended {
		<-done // what still runs is one pass, and a user never has two
	}
	return err
}

// stopGrace is how long work that is called off may take to stop before its
// user is released without waiting for it.
const stopGrace = 5 * time.Second

var errStuck = errors.New("the work on it does not stop")

// await gives what comes out of done; ended is false when it does not come
// although ctx is over.
func await(ctx context.Context, done <-chan error) (err error, ended bool) {
	select {
	case err = <-done:
		return err, true
	case <-ctx.Done():
	}
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case err = <-done:
		return err, true
	case <-t.C:
		return errStuck, false
	}
}

// heldByHand tells whether an operator forced the hold. Such a hold is his: it
// lasts until he sets another state, over restarts and beyond max_hold.
func (m *move) heldByHand(ctx context.Context, u router.User) (bool, error) {
	changes, err := m.c.cfg.Table.History(ctx, u.Address, 100)
	if err != nil {
		return false, fmt.Errorf("reading who holds the user: %w", err)
	}
	for _, c := range changes { // newest first; some change other things than the state
		if c.From != c.To && c.To == u.State {
			return c.Forced, nil
		}
	}
	return false, nil
}

// finishHold drains, copies the last difference and flips.
func (m *move) finishHold(ctx context.Context, u router.User) error {
	m.phase(PhaseDrain)
	if err := m.drain(ctx, u.Address); err != nil {
		return fmt.Errorf("waiting for deliveries to old: %w", err)
	}
	m.phase(PhaseFinal)
	err := untilClean(func() (backfill.Report, error) {
		rep, err := m.pass(ctx, u, true)
		if err == nil {
			err = blocking(rep)
		}
		return rep, err
	})
	if err != nil {
		return err
	}
	m.phase(PhaseFlip)
	req := m.request()
	flipped, err := m.set(ctx, u, router.StateNew, req.By, "the final pass found nothing left to copy")
	if err != nil {
		return fmt.Errorf("setting the user new: %w", err)
	}
	hold := flipped.Since.Sub(u.Since)
	if err := m.mirrorAsked(ctx); err != nil { // again by openWindow, also should this process die here
		m.c.cfg.Log.Warn("cutover: that old is to be kept current for a user is not noted yet; trying again", "user", m.user, "err", err)
	}
	m.arrived()
	m.note(func(s *Status) {
		s.State, s.Phase, s.HoldTime, s.Err, s.Attempts, s.Next = flipped.State, PhaseDone, hold, "", 0, time.Time{}
	})
	if m.c.cfg.Hooks.Flipped != nil {
		m.c.cfg.Hooks.Flipped(hold)
	}
	m.c.cfg.Log.Info("cutover: flipped", "user", u.Address, "hold", hold)
	return nil
}

// drain waits until nothing is being delivered to old under an epoch from
// before the hold.
func (m *move) drain(ctx context.Context, user string) error {
	wait := 2 * time.Millisecond
	for {
		busy, err := m.c.cfg.Table.Busy(ctx, user)
		if err != nil {
			return err
		}
		if busy == 0 {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%d still being sent: %w", busy, ctx.Err())
		case <-t.C:
		}
		wait = min(2*wait, 100*time.Millisecond)
	}
}

// uncarried counts the messages that a pass could not copy, and gives the first.
func uncarried(rep backfill.Report) (n int, first backfill.Problem) {
	for _, p := range rep.Problems {
		if p.Class == backfill.ClassRefused || p.Class == backfill.ClassUnreadable {
			if n == 0 {
				first = p
			}
			n++
		}
	}
	return n, first
}

// blocking says why a user may not flip although nothing is left to copy: mail
// that could not be copied would be missing from the mailbox that he reads.
func blocking(rep backfill.Report) error {
	n, first := uncarried(rep)
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d of the messages cannot be copied, first UID %d in %q (%s: %s): mend what the server complains of, move or delete them on old, or set the user new with force",
		n, first.UID, first.Folder, first.Class, first.Text)
}

// giveBack ends a hold that did not work: mail goes where it went before.
func (m *move) giveBack(ctx context.Context, u router.User, cause error) error {
	back := router.StateReady
	if u.State == router.StateRollback {
		back = router.StateNew
	}
	for {
		cur, err := m.c.cfg.Table.User(ctx, u.Address)
		// By the time it began and not by the epoch: a change of his wave, say,
		// must not leave him held.
		if err == nil && (cur.State != u.State || cur.Since.UnixMilli() != u.Since.UnixMilli()) {
			m.note(func(s *Status) { s.State = cur.State })
			return cause // an operator was quicker, or the flip went through and only its reply was lost
		}
		if err == nil {
			if cur, err = m.set(ctx, cur, back, Itself, cause.Error()); err == nil {
				m.note(func(s *Status) { s.State = cur.State })
			}
		}
		if err == nil || errors.Is(err, router.ErrNoUser) {
			return cause
		}
		m.c.cfg.Log.Error("cutover: a user cannot be released from his hold; trying again", "user", u.Address, "cause", cause, "err", err)
		if !m.sleep(ctx, time.Second) {
			return cause
		}
	}
}
