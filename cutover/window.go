package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

const (
	// closeLooks is how many looks into all folders in a row must have found nothing
	// before a window closes.
	closeLooks = 2
	// verifyRetry is the time until a verification that failed is made again, which
	// doubles up to verifyMost: it reads both mailboxes from end to end.
	verifyRetry, verifyMost = time.Hour, 24 * time.Hour
	// askTime is how long an answer to whether windows may close holds.
	askTime = 30 * time.Second
	// offTime is the time between two looks at whether a user can be swept who
	// could not.
	offTime = 10 * time.Minute
)

// closing is what is known of the end of a user's window. It belongs to the
// goroutine of the move.
type closing struct {
	late     bool      // the look for a delivery that was frozen before its dot was made
	over     bool      // the time of the window is, as seen last
	verified bool      // and nothing was found since
	fails    int       // of verifications in a row
	retry    time.Time // of the verification
	trouble  string    // what the last one said
}

// idle does for a user who is old what there is to do: his mailbox on new is
// swept.
func (m *move) idle(ctx context.Context, u router.User) (time.Duration, error) {
	if !m.c.cfg.SweepNew {
		m.phase(PhaseDone)
		return 0, errArrived
	}
	if m.request().Rollback { // somebody set him old meanwhile
		m.arrived()
		m.c.forget(ctx, m.user)
	}
	m.atRest()
	return m.sweepNew(ctx, u, sight{})
}

// atRest says that nothing is under way, but for an attempt that waits for its
// next try.
func (m *move) atRest() {
	if m.untilRetry() > 0 || m.snapshot().Phase == PhaseDone {
		return
	}
	m.note(func(s *Status) { s.Phase, s.Err, s.Attempts, s.Next, s.Limit = PhaseDone, "", 0, time.Time{}, "" })
}

// unsweepable tells, and notes, that no mailbox of the user can be looked at, or
// with back, that nothing can be written to old's.
func (m *move) unsweepable(u router.User, back bool) bool {
	job, err := m.c.cfg.Mailboxes.Job(u)
	text := ""
	switch {
	case err != nil:
		text = fmt.Sprintf("no sweeps: %v", err)
	case back && job.WayBack() != nil:
		text = fmt.Sprintf("no sweeps of new: %v", job.WayBack())
	}
	if m.sweepOf().Off != text {
		m.noteSweep(func(w *Sweep) { w.Off = text })
		if text != "" && u.State == router.StateNew {
			m.c.cfg.Log.Warn("cutover: "+text, "user", m.user)
		}
	}
	return text != ""
}

// window does for a user who is new what there is to do until his window closes.
func (m *move) window(ctx context.Context, u router.User) (time.Duration, error) {
	if err := m.openWindow(ctx, u); err != nil {
		return 0, err
	}
	m.atRest()
	if m.unsweepable(u, false) {
		m.lacks("nothing can be swept and compared without the mailboxes on both sides: set the user done with force")
		return offTime, nil
	}
	next, err := m.sweepOld(ctx, u)
	if err != nil {
		return 0, err
	}
	if m.mirrors(u) {
		wait, err := m.sweep(ctx, u, m.rear, sight{})
		if err != nil {
			return 0, err
		}
		next = min(next, wait)
	} else {
		m.rear.unwatch()
	}
	wait, err := m.tryClose(ctx, u)
	return min(next, wait), err
}

// sweepOld looks at old for a user who reads new. The look two minutes after the
// flip, for a delivery that was frozen just before its dot, and those at the end of
// the window trust no shortcut.
func (m *move) sweepOld(ctx context.Context, u router.User) (time.Duration, error) {
	if over := time.Until(m.closes()) <= 0; over != m.over {
		m.over, m.front.clean = over, 0
	}
	late := m.book.Flipped.Add(m.c.cfg.LatePass)
	due := !m.late && time.Until(late) <= 0
	if due {
		m.vigil.wantAll()
	}
	next, err := m.sweep(ctx, u, m.front, sight{final: m.over || due})
	if err != nil || m.late || m.front.fails > 0 {
		return next, err
	}
	if m.late = due && !m.vigil.swept.Before(late); !m.late {
		next = min(next, max(time.Until(late), time.Millisecond))
	}
	return next, nil
}

// closes is when the window may close at the earliest.
func (m *move) closes() time.Time { return m.book.Flipped.Add(m.c.cfg.Window) }

// mirrors tells whether old is kept current after the flip. Who has both sides
// delivered to has that already: what is under way there must not be copied too.
func (m *move) mirrors(u router.User) bool {
	if !m.book.Mirror && !m.c.cfg.Mirror || u.Deliver == router.DeliverBoth {
		return false
	}
	job, err := m.c.cfg.Mailboxes.Job(u)
	return err == nil && job.WayBack() == nil
}

// openWindow finds out, once for each time that the user became new, when he came
// to read new and how.
func (m *move) openWindow(ctx context.Context, u router.User) error {
	if err := m.openBook(ctx); err != nil {
		return err
	}
	if m.book.Since.Equal(u.Since) && !m.book.Flipped.IsZero() {
		m.noteCloses()
		return nil
	}
	// Before the request is forgotten, which said so: a process may have died between
	// the flip and this.
	if err := m.mirrorAsked(ctx); err != nil {
		return err
	}
	m.c.forget(ctx, m.user)
	changes, err := m.c.cfg.Table.History(ctx, u.Address, 100)
	if err != nil {
		return fmt.Errorf("reading how the user came to read new: %w", err)
	}
	var how router.Change
	for _, c := range changes {
		if c.From != c.To && c.To == router.StateNew {
			how = c
			break
		}
	}
	again := how.From == router.StateRollback || how.From == router.StateDone
	m.enter(ctx, func(r *record) {
		r.Since = u.Since
		if again && !r.Flipped.IsZero() {
			return
		}
		r.Flipped = u.Since
		// By hand, or placed there by an import: nothing, or not all, was copied.
		r.Uncopied = (how.Forced || how.From == "") && how.From != router.StateReady
		r.Carried = false
	})
	m.closing = closing{}
	m.noteCloses()
	return nil
}

// mirrorAsked notes that the user is to be mirrored, when the request that moved him
// says so.
func (m *move) mirrorAsked(ctx context.Context) error {
	if req := m.request(); req.Mirror && !req.Rollback && (m.book == nil || !m.book.Mirror) {
		m.enter(ctx, func(r *record) { r.Mirror = true })
	}
	return m.settleBook(ctx)
}

func (m *move) noteCloses() {
	if at := m.closes(); !m.sweepOf().Closes.Equal(at) {
		m.noteSweep(func(w *Sweep) { w.Closes = at.UTC() })
	}
}

// lacks notes what is missing for the end of the window.
func (m *move) lacks(text string) {
	if m.sweepOf().Waits != text {
		m.noteSweep(func(w *Sweep) { w.Waits = text })
	}
}

// tryClose ends the window when nothing is missing for that any more. It gives
// the time until it has to be asked again.
func (m *move) tryClose(ctx context.Context, u router.User) (time.Duration, error) {
	missing, wait := m.missing(ctx)
	if missing != "" {
		m.lacks(missing)
		return wait, nil
	}
	if !m.verified {
		m.lacks("both mailboxes are being compared")
		if err := m.verify(ctx, u); err != nil {
			return m.unverified(ctx, u, err)
		}
		// What came while it was compared may lie in a folder that was through.
		m.front.clean = closeLooks - 1
	}
	// The comparison took its time.
	if missing, wait = m.missing(ctx); missing != "" {
		m.lacks(missing)
		return wait, nil
	}
	done, err := m.set(ctx, u, router.StateDone, Itself, "the window is over, nothing was found any more, and the comparison of both mailboxes found nothing missing")
	if err != nil {
		return 0, fmt.Errorf("closing the window: %w", err)
	}
	m.unwatch()
	m.note(func(s *Status) { s.State = done.State })
	m.lacks("")
	m.c.cfg.Log.Info("cutover: the window is closed", "user", m.user, "stragglers", m.book.Old.Count)
	return 0, nil
}

// missing says what is missing for the end of the window, and when to ask again;
// the comparison comes last.
func (m *move) missing(ctx context.Context) (string, time.Duration) {
	if wait := time.Until(m.closes()); wait > 0 {
		return "the window closes at " + m.closes().UTC().Format("2006-01-02 15:04 MST") + " at the earliest", wait
	}
	if req := m.request(); req.Rollback {
		return "the user is to be rolled back", m.c.cfg.Tail
	}
	if s := m.sweepOf(); m.front.fails > 0 {
		return s.Err, m.c.cfg.Tail
	}
	if !m.late || m.front.clean < closeLooks {
		m.verified = m.verified && m.front.clean == closeLooks-1 // the look behind the comparison
		return fmt.Sprintf("%d looks at old in a row must find nothing; %d did", closeLooks, min(m.front.clean, closeLooks)), m.c.cfg.Tail
	}
	if err := m.c.mayClose(ctx); err != nil {
		return fmt.Sprintf("DNS: %v", err), askTime
	}
	if wait := time.Until(m.retry); wait > 0 && m.trouble != "" {
		return m.trouble, wait
	}
	return "", 0
}

// mayClose asks whether windows may close at all; the answer holds for a while.
func (c *Conductor) mayClose(ctx context.Context) error {
	if c.cfg.MayClose == nil {
		return nil
	}
	c.closeMu.Lock()
	defer c.closeMu.Unlock()
	if time.Since(c.closeAsked) >= askTime || c.closeAsked.IsZero() {
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		c.closeErr, c.closeAsked = c.cfg.MayClose(ctx), time.Now()
	}
	return c.closeErr
}

// verify compares both mailboxes, in a place like those of first copies.
func (m *move) verify(ctx context.Context, u router.User) error {
	job, err := m.job(ctx, u, true)
	if err != nil {
		return err
	}
	vctx, over := m.callable(ctx)
	defer over()
	m.mu.Lock()
	t := turn{work: workFirst, wave: m.wave, exempt: true}
	m.mu.Unlock()
	if err := m.c.places.take(vctx, t, func() {}); err != nil {
		return m.why(ctx, vctx, err)
	}
	defer m.c.places.giveBack()
	v, err := m.c.cfg.Copier.Verify(vctx, job)
	if err != nil {
		return m.why(ctx, vctx, err)
	}
	if !v.OK() {
		return &missingError{n: v.Missing, first: firstMissing(v)}
	}
	m.verified, m.closing.fails, m.trouble = true, 0, ""
	return nil
}

// missingError says that a comparison found messages of old that are not on new.
type missingError struct {
	n     int
	first backfill.Problem
}

func (e *missingError) Error() string {
	text := fmt.Sprintf("%d messages of old are missing on new", e.n)
	if e.first.Folder != "" {
		text += fmt.Sprintf(", first UID %d in %q (%s)", e.first.UID, e.first.Folder, e.first.Class)
	}
	return text
}

func firstMissing(v backfill.Verification) backfill.Problem {
	for _, p := range v.Problems {
		switch p.Class {
		case backfill.ClassMissing, backfill.ClassRefused, backfill.ClassUnreadable:
			return p
		}
	}
	return backfill.Problem{}
}

// unverified notes that a comparison did not go through, or found something.
func (m *move) unverified(ctx context.Context, u router.User, err error) (time.Duration, error) {
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case m.check() != nil:
		return 0, errLost
	case errors.Is(err, errAsked), errors.Is(err, errPaused):
		return time.Millisecond, nil
	case errors.Is(err, router.ErrEpoch):
		return 0, err
	}
	wait := verifyRetry
	for range m.closing.fails {
		wait = min(2*wait, verifyMost)
	}
	m.closing.fails++
	var limit *backfill.DayLimit
	if errors.As(err, &limit) {
		wait = max(time.Until(limit.Until), time.Second)
	}
	m.retry = time.Now().Add(wait)
	m.trouble = fmt.Sprintf("the comparison of both mailboxes failed: %v; it is made again at %s, `backfill verify %s` shows all",
		err, m.retry.UTC().Format("2006-01-02 15:04 MST"), u.Address)
	m.c.cfg.Log.Warn("cutover: the window stays open: "+m.trouble, "user", m.user)
	m.lacks(m.trouble)
	return wait, nil
}

// MayBeDone tells whether a user may be set done by hand. The error says what is
// missing; who knows better says force.
func (c *Conductor) MayBeDone(ctx context.Context, user string) error {
	key, err := userKey(user)
	if err != nil {
		return err
	}
	u, err := c.cfg.Table.User(ctx, key)
	if err != nil {
		return err
	}
	if u.State != router.StateNew {
		return nil // the table of states says no
	}
	s, ok := c.StatusOf(key)
	switch {
	case !ok || s.Sweep == nil || s.Sweep.Flipped.IsZero():
		return errors.New("his mailbox on old was not looked at yet since the relay was started: ask again in a minute")
	case s.Sweep.Waits != "":
		return errors.New(s.Sweep.Waits)
	}
	return nil
}
