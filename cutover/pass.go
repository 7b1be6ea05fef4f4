package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// job says what a pass is to copy, once it may begin.
func (m *move) job(ctx context.Context, u router.User, final bool) (backfill.Job, error) {
	job, err := m.c.cfg.Mailboxes.Job(u)
	if err != nil {
		return job, err
	}
	job.Settled = u.State == router.StateNew || u.State == router.StateDone || u.State == router.StateRollback
	if m.c.cfg.Owners != nil {
		// Asked before octets are sent, and so after every stop.
		job.Source.Guard, job.Dest.Guard = m.check, m.check
	}
	if u.Deliver == router.DeliverBoth && !final {
		return job, m.copies(ctx, u)
	}
	return job, nil
}

// pass runs one pass from old to new for a user who reads old, and adds it up.
func (m *move) pass(ctx context.Context, u router.User, final bool) (backfill.Report, error) {
	job, err := m.job(ctx, u, final)
	if err != nil {
		return backfill.Report{}, err
	}
	req, insist := m.request(), m.insists()
	began, count := time.Now(), m.counting()
	rep, err := m.makePass(ctx, u, job, backfill.Options{
		Final:          final,
		Restore:        true,
		Deletions:      true,
		AllowDeletions: m.mayDeleteMore(req),
		MayDelete:      func(ctx context.Context) error { return m.stillReads(ctx, u) },
		RetryRefused:   req.RetryRefused,
		Prompt:         u.State != router.StateSyncing,
		Insist:         insist,
		Progress: func(p backfill.Progress) {
			m.note(func(s *Status) {
				s.Progress, s.ETA = p, eta(began, time.Now(), p)
				count.upTo(s, p.Copied, p.CopiedBytes)
			})
		},
	})
	m.note(func(s *Status) {
		s.ETA = time.Time{}
		count.upTo(s, rep.Copied, rep.Bytes)
	})
	m.passed(began, rep, err)
	if err != nil {
		if insist && m.limited(err) == nil {
			m.insistAgain()
		}
		return rep, fmt.Errorf("copying: %w", err)
	}
	m.used(ctx, req)
	return rep, nil
}

// stillReads tells whether the user's state is what it was when he was looked at,
// which may be hours ago: who was set new by hand, or taken back, keeps on new what
// is there, and what he deleted there does not come back.
func (m *move) stillReads(ctx context.Context, u router.User) error {
	if err := m.check(); err != nil {
		return err
	}
	now, err := m.c.cfg.Table.User(ctx, u.Address)
	if err != nil {
		return fmt.Errorf("reading the user: %w", err)
	}
	if now.State != u.State {
		return fmt.Errorf("%w: the user is %s by now", router.ErrEpoch, now.State)
	}
	return nil
}

// makePass runs a pass, which a pause may end. It may have waited for long: what
// it does is for who reads what he read when he was looked at.
func (m *move) makePass(ctx context.Context, u router.User, job backfill.Job, o backfill.Options) (backfill.Report, error) {
	if err := m.stillReads(ctx, u); err != nil {
		return backfill.Report{}, err
	}
	ictx, over := m.interruptible(ctx, u)
	defer over()
	pctx, end := m.sliced(ictx, u)
	defer end()
	m.beyondLimit()
	m.setPassing(true)
	defer m.setPassing(false)
	rep, err := m.c.cfg.Copier.Pass(pctx, job, o)
	if err != nil {
		err = m.why(ctx, pctx, err)
	}
	return rep, err
}

// passed adds a pass up and tells of it.
func (m *move) passed(began time.Time, rep backfill.Report, err error) {
	fresh := m.firstMet(rep)
	if err == nil {
		m.told = rep.Problems
	}
	m.note(func(s *Status) {
		s.Passes++
		s.Throttled += rep.Throttled
		if err == nil {
			s.Problems, s.Classes, s.Synced = rep.Problems, classes(rep.Problems), began
		}
	})
	if errors.Is(err, errSlice) {
		err = nil // it goes on at once
	}
	if m.c.cfg.Hooks.Passed != nil {
		m.c.cfg.Hooks.Passed(Passed{User: m.user, Report: rep, Err: err, New: fresh})
	}
}

// firstMet gives and logs the problems that the passes before had not.
func (m *move) firstMet(rep backfill.Report) []backfill.Problem {
	fresh := unseen(rep.Problems, m.told)
	m.told = append(m.told, fresh...)
	for _, p := range fresh {
		m.c.cfg.Log.Warn("backfill problem", "user", m.user, "folder", p.Folder, "uid", p.UID, "uids", p.UIDs, "class", p.Class, "text", p.Text)
	}
	return fresh
}

// copies waits until what the relay itself copies to new has arrived. From
// syncing on it makes no more copies; one that came while a pass copies the
// same message from old would be there twice.
func (m *move) copies(ctx context.Context, u router.User) error {
	ctx, cancel := context.WithTimeout(ctx, copyTime)
	defer cancel()
	if err := m.drain(ctx, u.Address); err != nil {
		return fmt.Errorf("waiting for the copies (deliver: both) that are queued for new: %w", err)
	}
	return nil
}
