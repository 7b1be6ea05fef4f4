package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// Rollback asks for a user who is new or done to be taken back to old, together
// with what arrived or changed on new since he was flipped. The request is
// durable when it returns; asking again while he is on his way back changes
// nothing, and tries at once what failed.
func (c *Conductor) Rollback(ctx context.Context, req Request) error {
	key, err := userKey(req.User)
	if err != nil {
		return fmt.Errorf("cutover rollback: %w", err)
	}
	req.User, req.Rollback, req.Sync = key, true, true
	c.asking.Lock()
	defer c.asking.Unlock()
	u, req, err := c.rollbackUser(ctx, req)
	if err == nil {
		err = c.begin(ctx, u, req)
	}
	if err != nil {
		return fmt.Errorf("cutover rollback %s: %w", key, err)
	}
	return nil
}

// rollbackUser checks that the user can be taken back, and notes the request.
func (c *Conductor) rollbackUser(ctx context.Context, req Request) (router.User, Request, error) {
	u, err := c.cfg.Table.User(ctx, req.User)
	if errors.Is(err, router.ErrNoUser) {
		return u, req, errors.New("the user is in no table, so he reads old")
	}
	if err != nil {
		return u, req, err
	}
	switch u.State {
	case router.StateNew, router.StateDone, router.StateRollback:
	case router.StateCutover, router.StateReady, router.StateSyncing:
		return u, req, fmt.Errorf("the user is %s and reads old still: `cutover cancel` stops his move", u.State)
	default:
		return u, req, errors.New("the user reads old already")
	}
	job, err := c.cfg.Mailboxes.Job(u)
	if err == nil {
		err = job.WayBack()
	}
	if err != nil {
		return u, req, fmt.Errorf("%w; when that is done, `user set ADDRESS old --force`", err)
	}
	req.Epoch = u.Epoch
	return u, req, c.saveRequest(ctx, req)
}

// backDue tells whether the user is to be rolled back, and how long it is until
// that is tried (again).
func (m *move) backDue() (wait time.Duration, wanted bool) {
	return m.untilRetry(), m.request().Rollback
}

// untilRetry is the time until an attempt that failed is made again.
func (m *move) untilRetry() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(time.Until(m.retryAt), 0)
}

// tryBack makes an attempt at a rollback. When it fails the user reads new as
// before and is swept, until the next attempt.
func (m *move) tryBack(ctx context.Context, u router.User) error {
	err := m.inSlot(ctx, workFlip, func() error { return m.goBack(ctx, u) })
	if err == nil || ctx.Err() != nil || m.check() != nil || errors.Is(err, errPaused) || errors.Is(err, router.ErrEpoch) || errors.Is(err, errAsked) {
		return err
	}
	var wait time.Duration
	if limit := m.limited(err); limit != nil {
		wait = m.awaitLimit(limit)
	} else {
		wait = m.failed(err)
	}
	m.retryLater(wait)
	return nil
}

// retryLater puts off a rollback; false: there is none. His mailbox is swept
// meanwhile.
func (m *move) retryLater(wait time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.req.Rollback {
		m.retryAt = time.Now().Add(wait)
	}
	return m.req.Rollback
}

// goBack takes a user back to old. What there is to carry is carried before the
// hold, so that the hold is short.
func (m *move) goBack(ctx context.Context, u router.User) error {
	req := m.request()
	if wanted, err := m.stillWanted(ctx, req); !wanted || err != nil {
		return err
	}
	m.phase(PhaseCopy)
	if err := m.prepareBack(ctx, u); err != nil {
		return err
	}
	held, err := m.set(ctx, u, router.StateRollback, req.By, req.Reason)
	if err != nil {
		return fmt.Errorf("holding the user: %w", err)
	}
	m.note(func(s *Status) { s.State = held.State })
	return m.held(ctx, held)
}

// stillWanted tells whether the rollback is to be made: it may have been taken
// back on another node, or made by a process that was killed before it could drop
// the request.
func (m *move) stillWanted(ctx context.Context, req Request) (bool, error) {
	now, _, err := m.c.loadRequest(ctx, m.user)
	if err != nil {
		return false, err
	}
	if now.Rollback && now.Epoch == req.Epoch {
		changes, err := m.c.cfg.Table.History(ctx, m.user, 100)
		if err != nil {
			return false, fmt.Errorf("reading what became of the user since the rollback was asked for: %w", err)
		}
		if !slices.ContainsFunc(changes, func(c router.Change) bool {
			return c.Epoch > req.Epoch && c.To == router.StateOld && c.From != c.To
		}) {
			return true, nil
		}
		if err := m.c.drop(ctx, now); err != nil {
			return false, err
		}
	}
	m.arrived()
	return false, nil
}

// drop removes a request from the record, unless somebody asked for something
// else meanwhile.
func (c *Conductor) drop(ctx context.Context, req Request) error {
	c.asking.Lock()
	defer c.asking.Unlock()
	now, _, err := c.loadRequest(ctx, req.User)
	if err != nil || now != req {
		return err
	}
	return c.saveRequest(ctx, Request{User: req.User})
}

// prepareBack copies until a pass is small. Who has both sides delivered to has
// almost everything on old, and what is still under way there must not be copied
// beside it: for him the passes of the hold are all.
func (m *move) prepareBack(ctx context.Context, u router.User) error {
	if u.Deliver == router.DeliverBoth {
		return m.copiesBack(ctx, u)
	}
	for range maxPasses {
		rep, err := m.passBack(ctx, u, false)
		if err != nil {
			return err
		}
		if err := blockingBack(rep); err != nil {
			return err
		}
		if rep.Copied+rep.Adopted+rep.Deleted+rep.Moved <= smallPass {
			break
		}
	}
	return nil
}

// copiesBack waits until old has the copies that the relay makes for it. Carried from
// new besides, they would be there twice; and a side that does not take them takes no
// mail of a user who reads it. So who waits for them is not held: new has it all.
func (m *move) copiesBack(ctx context.Context, u router.User) error {
	ctx, cancel := context.WithTimeout(ctx, copyTime)
	defer cancel()
	if err := m.drain(ctx, u.Address); err != nil {
		return fmt.Errorf("waiting for the copies (deliver: both) that are queued for old: %w (`queue list --user %s --route old` has what old says; what is deleted there is carried from new)", err, u.Address)
	}
	return nil
}

// drainBack waits for deliveries to new, and for what few copies came to be queued
// for old since copiesBack.
func (m *move) drainBack(ctx context.Context, u router.User) error {
	if u.Deliver == router.DeliverBoth {
		return m.copiesBack(ctx, u)
	}
	if err := m.drain(ctx, u.Address); err != nil {
		return fmt.Errorf("waiting for deliveries to new: %w", err)
	}
	return nil
}

// finishBack drains, carries the last difference to old, and lets the user read
// it.
func (m *move) finishBack(ctx context.Context, u router.User) error {
	m.phase(PhaseDrain)
	if err := m.drainBack(ctx, u); err != nil {
		return err
	}
	m.phase(PhaseFinal)
	err := untilClean(func() (backfill.Report, error) {
		rep, err := m.passBack(ctx, u, true)
		if err == nil {
			err = blockingBack(rep)
		}
		return rep, err
	})
	if err != nil {
		return err
	}
	m.phase(PhaseFlip)
	req := m.request()
	back, err := m.set(ctx, u, router.StateOld, req.By, "rolled back: the final pass found nothing left to carry to old")
	if err != nil {
		return fmt.Errorf("setting the user old: %w", err)
	}
	hold := back.Since.Sub(u.Since)
	m.arrived()
	m.c.forget(ctx, m.user)
	m.note(func(s *Status) {
		s.State, s.Phase, s.HoldTime, s.Err, s.Attempts, s.Next = back.State, PhaseDone, hold, "", 0, time.Time{}
	})
	if m.c.cfg.Hooks.RolledBack != nil {
		m.c.cfg.Hooks.RolledBack(hold)
	}
	m.c.cfg.Log.Info("cutover: rolled back", "user", u.Address, "hold", hold)
	return nil
}

// arrived ends a request that was carried out: the user stays where he is.
func (m *move) arrived() {
	m.mu.Lock()
	m.req = Request{User: m.user, By: Itself, Sync: true}
	m.retryAt = time.Time{}
	m.mu.Unlock()
	m.note(func(s *Status) { s.Rollback = false })
}

// passBack runs a pass from new to old for a user who is on his way back there,
// and adds it up.
func (m *move) passBack(ctx context.Context, u router.User, final bool) (backfill.Report, error) {
	job, err := m.job(ctx, u, final)
	if err == nil {
		err = m.stillReads(ctx, u)
	}
	if err != nil {
		return backfill.Report{}, err
	}
	req := m.request()
	began := time.Now()
	pctx, over := ctx, func() {}
	if !u.State.Held() {
		pctx, over = m.callable(ctx)
	}
	defer over()
	m.beyondLimit()
	rep, err := m.c.cfg.Copier.Pass(pctx, job, backfill.Options{
		Back: true, Final: final, Prompt: true, Insist: m.insists(), Deletions: true, Restore: true,
		AllowDeletions: m.mayDeleteMore(req), RetryRefused: req.RetryRefused,
		MayDelete: func(ctx context.Context) error { return m.stillReads(ctx, u) },
		Progress: func(p backfill.Progress) {
			m.note(func(s *Status) { s.Progress, s.ETA = p, eta(began, time.Now(), p) })
		},
	})
	m.note(func(s *Status) { s.ETA = time.Time{} })
	m.passed(began, rep, err)
	if err != nil {
		return rep, fmt.Errorf("copying back to old: %w", m.why(ctx, pctx, err))
	}
	m.used(ctx, req)
	return rep, nil
}

// blockingBack says why a user may not go back to old although nothing is left to
// carry there: mail would be missing from the mailbox that he reads then.
func blockingBack(rep backfill.Report) error {
	n, first := uncarried(rep)
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d of the messages cannot be carried back to old, first UID %d in %q on new (%s: %s): mend what the server complains of, move or delete them on new, or set the user old with force",
		n, first.UID, first.Folder, first.Class, first.Text)
}

// cancelBack drops the request to roll a user back. One who is held for it reads
// new again, with the mail that waited.
func (c *Conductor) cancelBack(ctx context.Context, key, by string) error {
	if err := c.saveRequest(ctx, Request{User: key}); err != nil {
		return fmt.Errorf("dropping the request: %w", err)
	}
	for tries := 0; ; tries++ {
		u, err := c.cfg.Table.User(ctx, key)
		if err == nil && u.State == router.StateRollback {
			_, err = c.set(ctx, u, router.StateNew, by, "the rollback was cancelled")
		}
		if err == nil {
			break
		}
		if tries >= 10 || !errors.Is(err, router.ErrEpoch) {
			return err
		}
	}
	if c.cfg.Owners != nil {
		return c.offer(ctx, key)
	}
	c.mu.Lock()
	m := c.users[key]
	c.mu.Unlock()
	if m != nil {
		m.ask(Request{User: key, By: Itself, Sync: true})
	}
	return nil
}

// rollsBack tells whether a user is on his way back to old, or is to be.
func (c *Conductor) rollsBack(ctx context.Context, key string) (bool, error) {
	u, err := c.cfg.Table.User(ctx, key)
	switch {
	case err != nil:
		return false, err
	case u.State == router.StateRollback:
		return true, nil
	case u.State != router.StateNew && u.State != router.StateDone:
		return false, nil
	}
	req, _, err := c.loadRequest(ctx, key)
	return req.Rollback, err
}
