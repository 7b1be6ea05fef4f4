package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/router"
)

// A sweep looks for mail in the mailbox that the user does not read: in old's
// after his flip, in new's before it. It is watched like the mailbox of a user
// who is ready: what is told of is carried within seconds, and all folders are
// looked at every Config.Tail.

const (
	// sweepTime is how long a sweep may take before others have their turn. What it
	// did is in the ledger, and the next one goes on there.
	sweepTime = 30 * time.Second
	// longSweep is the most that it gets when it found no time to do anything.
	longSweep = 10 * time.Minute
	// sweepFirst and sweepRetry are the shortest and the longest time between two
	// tries at a mailbox that cannot be looked at.
	sweepFirst, sweepRetry = 5 * time.Second, 10 * time.Minute
	// absentRetry is that for users who are old: many have no mailbox on new yet.
	absentRetry = time.Hour
)

var (
	// errSlice ends a sweep when its time is over.
	errSlice = errors.New("the sweep has had its time")
	// errAsked ends a sweep when somebody wants something of the user.
	errAsked = errors.New("an operator wants something else")
)

// sweeper is one direction of the sweeps of a user. It belongs to the goroutine
// of the move, but for the vigil.
type sweeper struct {
	*vigil
	back bool // from new to old

	fails int
	retry time.Time          // not before, after a failure
	slice time.Duration      // that the next look may take
	clean int                // looks in a row that trusted no shortcut and found nothing
	told  []backfill.Problem // by the last look at all folders
}

func newSweeper(v *vigil, back bool) *sweeper {
	return &sweeper{vigil: v, back: back, slice: sweepTime}
}

// due gives the time until the next pass, 0 when something changed or somebody
// asked for one.
func (v *vigil) due(every time.Duration) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.all || len(v.folders) > 0 || v.swept.IsZero() {
		return 0
	}
	return max(time.Until(v.swept.Add(every)), 0)
}

// sight is how a look is made.
type sight struct {
	only   []string // folders; nil: all
	final  bool     // trust no shortcut, when all folders are looked at
	placed bool     // the user has a place already
}

// sweep looks at the mailbox when that is due, and gives the time until the next
// look. Its errors are those that end the step; that a mailbox cannot be looked
// at is in the status.
func (m *move) sweep(ctx context.Context, u router.User, s *sweeper, how sight) (time.Duration, error) {
	if wait := time.Until(s.retry); wait > 0 {
		return wait, nil
	}
	// Who is old may have no mailbox on new: nobody listens there before a look
	// went through.
	if u.State != router.StateSyncing && (u.State != router.StateOld || !s.swept.IsZero()) {
		if err := m.watchOver(u, s.vigil, s.back); err != nil {
			return 0, err
		}
	}
	tail := m.c.cfg.Tail
	if wait := s.due(tail); wait > 0 {
		return wait, nil
	}
	began := time.Now()
	only, since, all := s.take()
	carried := len(only) > 0
	if all || s.swept.IsZero() || began.Sub(s.swept) >= tail {
		only = nil
	}
	how.only = only
	rep, err := m.look(ctx, u, s, how)
	s.ended = time.Now()
	s.took = s.ended.Sub(began)
	if err != nil {
		s.swept = time.Time{} // what changed was forgotten with take
		return m.unlooked(ctx, u, s, err)
	}
	m.looked(s, how, rep, began)
	if carried && m.c.cfg.Hooks.Lagged != nil {
		m.c.cfg.Hooks.Lagged(s.ended.Sub(since))
	}
	return max(s.due(tail), time.Millisecond), nil
}

// looked notes a look that went through.
func (m *move) looked(s *sweeper, how sight, rep backfill.Report, began time.Time) {
	if s.fails > 1 {
		m.c.cfg.Log.Info("cutover: the mailbox that its user does not read can be looked at again", "user", m.user, "side", s.side())
	}
	s.fails, s.slice = 0, sweepTime
	switch {
	case !rep.Clean():
		s.clean = 0
	case how.only == nil && how.final:
		s.clean++
	}
	if how.only != nil {
		return
	}
	s.swept = s.ended
	mirrored := s.back && m.snapshot().State == router.StateNew
	m.noteLook(func(w *Sweep) {
		w.Err, w.Attempts, w.Next = "", 0, time.Time{}
		if mirrored {
			w.Mirrored = began.UTC()
		} else {
			w.Looked = began.UTC()
		}
	})
}

// lookNews is how often it is told that a look went through and found nothing:
// thousands of users have one each minute.
const lookNews = 10 * time.Minute

// noteLook changes the status of the sweeps; nobody is told when that is no news.
func (m *move) noteLook(f func(*Sweep)) {
	m.mu.Lock()
	quiet := m.status.Sweep != nil && m.status.Sweep.Err == "" && time.Since(m.status.Updated) < lookNews
	if quiet {
		w := *m.status.Sweep
		f(&w)
		m.status.Sweep = &w
	}
	m.mu.Unlock()
	if !quiet {
		m.noteSweep(f)
	}
}

func (s *sweeper) side() string {
	if s.back {
		return "new"
	}
	return "old"
}

// look makes one pass, in a place for sweeps and within its time.
func (m *move) look(ctx context.Context, u router.User, s *sweeper, how sight) (backfill.Report, error) {
	sctx, over := m.callable(ctx)
	defer over()
	if !how.placed {
		m.mu.Lock()
		t := turn{work: workTail, wave: m.wave, exempt: !pausable(u.State)}
		m.mu.Unlock()
		places := m.c.sweeps
		if how.only != nil {
			places = m.c.tails
		}
		if err := places.take(sctx, t, m.followPause); err != nil {
			return backfill.Report{}, m.why(ctx, sctx, err)
		}
		defer places.giveBack()
	}
	ictx, end := m.interruptible(sctx, u)
	defer end()
	pctx, cancel := context.WithTimeoutCause(ictx, s.slice, errSlice)
	defer cancel()
	var hosts []string
	rep, err := m.passOf(pctx, u, s, how, &hosts)
	if !s.back || u.State != router.StateNew {
		n := m.strayCount(ctx, s, how, rep, err)
		m.strays(ctx, s.back, n, hosts[:min(n, len(hosts))])
		m.notCarried(ctx, s.back, rep, how.only == nil, err)
	}
	if err != nil {
		if rep.Copied+rep.Adopted+rep.Flagged == 0 {
			s.slice = min(2*s.slice, longSweep)
		}
		return rep, m.why(ctx, pctx, err)
	}
	return rep, nil
}

// why gives the cause for which a pass was ended, when it was.
func (m *move) why(ctx, inner context.Context, err error) error {
	if cause := context.Cause(inner); cause != nil && ctx.Err() == nil {
		for _, known := range []error{errSlice, errAsked, errPaused} {
			if errors.Is(cause, known) {
				return known
			}
		}
	}
	return err
}

// strayCount tells how many strays a pass carried. For a user of whom nothing was
// copied before his flip the first look is the copy, and no straggler is in it.
func (m *move) strayCount(ctx context.Context, s *sweeper, how sight, rep backfill.Report, err error) int {
	n := rep.Copied + rep.Wrapped
	if s.back || !m.uncarried() {
		return n
	}
	if err == nil && how.only == nil {
		m.enter(ctx, func(r *record) { r.Carried = true })
	}
	return 0
}

// uncarried tells whether nothing was copied for the user before his flip, and not
// all of it since.
func (m *move) uncarried() bool { return m.book != nil && m.book.Uncopied && !m.book.Carried }

// passOf makes the pass of a look.
func (m *move) passOf(ctx context.Context, u router.User, s *sweeper, how sight, hosts *[]string) (backfill.Report, error) {
	job, err := m.job(ctx, u, true)
	if err == nil {
		err = m.stillReads(ctx, u) // he may have waited for his place
	}
	if err != nil {
		return backfill.Report{}, err
	}
	mirrors := s.back && u.State == router.StateNew // from the mailbox that he reads
	rep, err := m.c.cfg.Copier.Pass(ctx, job, backfill.Options{
		Back: s.back, Only: how.only, Final: how.final, Prompt: !m.uncarried(), Deletions: mirrors && how.only == nil, Restore: mirrors,
		MayDelete: func(ctx context.Context) error { return m.stillReads(ctx, u) },
		Arrived:   func(header []byte) { *hosts = append(*hosts, originOf(header)) },
	})
	fresh := unseen(rep.Problems, s.told)
	for _, p := range fresh {
		m.c.cfg.Log.Warn("backfill problem", "user", m.user, "from", s.side(), "folder", p.Folder, "uid", p.UID, "uids", p.UIDs, "class", p.Class, "text", p.Text)
	}
	if err == nil && how.only == nil {
		s.told = rep.Problems
	} else {
		s.told = append(s.told, fresh...)
	}
	if rep.Copied > 0 {
		m.note(func(s *Status) { s.Copied, s.Bytes = s.Copied+rep.Copied, s.Bytes+rep.Bytes })
	}
	if m.c.cfg.Hooks.Passed != nil && (err == nil || ctx.Err() == nil) {
		m.c.cfg.Hooks.Passed(Passed{User: m.user, Report: rep, Err: err, New: fresh, Back: s.back})
	}
	return rep, err
}

// unlooked decides what follows from a look that did not go through.
func (m *move) unlooked(ctx context.Context, u router.User, s *sweeper, err error) (time.Duration, error) {
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case m.check() != nil:
		return 0, errLost
	case errors.Is(err, errSlice), errors.Is(err, errAsked):
		return time.Millisecond, nil
	case errors.Is(err, errPaused), errors.Is(err, router.ErrEpoch):
		return 0, err
	}
	s.clean = 0
	if u.State == router.StateOld {
		s.unwatch()
	}
	if errors.Is(err, backfill.ErrNoWayBack) { // Gmail's, which shows at the login only
		s.retry = time.Now().Add(absentRetry)
		m.noteSweep(func(w *Sweep) { w.Off = fmt.Sprintf("no sweeps of new: %v", err) })
		return absentRetry, nil
	}
	text := ""
	var limit *backfill.DayLimit
	if errors.As(err, &limit) {
		s.retry = later(limit.Until, time.Now().Add(time.Second))
		text = limitText(limit)
	} else {
		s.fails++
		s.retry = time.Now().Add(m.sweepWait(u, s))
		text = m.sweepTrouble(u, s, err)
	}
	if s.fails == 1 && u.State != router.StateOld {
		m.c.cfg.Log.Warn("cutover: "+text, "user", m.user, "next_in", time.Until(s.retry), "err", err)
	}
	m.noteSweep(func(w *Sweep) { w.Err, w.Attempts, w.Next = text, s.fails, s.retry.UTC() })
	return time.Until(s.retry), nil
}

// sweepWait is the time until the next try: doubled each time.
func (m *move) sweepWait(u router.User, s *sweeper) time.Duration {
	wait, most := sweepFirst, sweepRetry
	if u.State == router.StateOld {
		wait, most = m.c.cfg.RetryFirst, absentRetry
	}
	for i := 1; i < s.fails && wait < most; i++ {
		wait *= 2
	}
	return min(wait, most)
}

// sweepTrouble says what cannot be looked at, what that means and what to do.
func (m *move) sweepTrouble(u router.User, s *sweeper, err error) string {
	read, other := "new", "old"
	if u.State != router.StateNew {
		read, other = "old", "new"
	}
	what := fmt.Sprintf("the mailbox on %s cannot be swept", other)
	if s.back && u.State == router.StateNew {
		what = "old cannot be kept current with new"
	}
	since := ""
	if at := m.sweepOf().Looked; !at.IsZero() && !(s.back && u.State == router.StateNew) {
		since = fmt.Sprintf("; what reached it since %s may not be on %s yet", at.UTC().Format("2006-01-02 15:04 MST"), read)
	}
	todo := "bring the server back"
	var login *imapconn.LoginError
	if errors.As(err, &login) {
		todo = fmt.Sprintf("mend the login (backends.%s.imap_login, %s_login of the user)", other, other)
		if u.State == router.StateOld {
			todo += ", or leave it when there is no mailbox on new yet"
		}
	}
	if u.State == router.StateNew {
		todo += "; when it is gone for good, `user set ADDRESS done --force` ends the sweeps"
	}
	return fmt.Sprintf("%s: %v%s: %s", what, err, since, todo)
}

func (m *move) sweepOf() Sweep {
	if s := m.snapshot().Sweep; s != nil {
		return *s
	}
	return Sweep{}
}

// callable gives a context that callOff ends, and the function to call behind what
// runs under it.
func (m *move) callable(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	m.mu.Lock()
	m.stopSweep = cancel
	m.mu.Unlock()
	return ctx, func() {
		m.mu.Lock()
		m.stopSweep = nil
		m.mu.Unlock()
		cancel(nil)
	}
}

// callOff ends a sweep, so that what somebody asked for need not wait for it.
func (m *move) callOff() {
	m.mu.Lock()
	stop := m.stopSweep
	m.mu.Unlock()
	if stop != nil {
		stop(errAsked)
	}
}

// sweepNew looks at new for a user who reads old, where that is wanted, and gives
// the time until the next look.
func (m *move) sweepNew(ctx context.Context, u router.User, how sight) (time.Duration, error) {
	if !m.c.cfg.SweepNew {
		return m.c.cfg.Tail, nil
	}
	if err := m.openBook(ctx); err != nil {
		return 0, err
	}
	if m.unsweepable(u, true) {
		return offTime, nil
	}
	return m.sweep(ctx, u, m.rear, how)
}

// syncSlice is how long a first copy runs before new is looked at in between.
const syncSlice = 10 * time.Minute

// sliced gives a context for a pass of a first copy: it ends when new is to be
// looked at, and the pass has copied something by then.
func (m *move) sliced(ctx context.Context, u router.User) (context.Context, func()) {
	if !m.c.cfg.SweepNew || u.State != router.StateSyncing {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var t *time.Timer
	t = time.AfterFunc(syncSlice, func() {
		if m.snapshot().Progress.MessagesDone > 0 {
			cancel(errSlice)
		} else if ctx.Err() == nil {
			t.Reset(syncSlice / 10)
		}
	})
	return ctx, func() {
		t.Stop()
		cancel(nil)
	}
}
