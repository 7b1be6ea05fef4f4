package cutover

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/router"
)

// Watcher says when something changes in a mailbox; [backfill.Tail] is one.
type Watcher interface {
	// Watch calls changed when something may have changed in a folder of an
	// account, until stop is called. changed gets the folder's name on the wire,
	// empty for any folder, and does not block.
	Watch(acct imapconn.Account, folder string, changed func(folder string)) (stop func())
}

const (
	// manyFolders that changed at once are a matter of a look at all.
	manyFolders = 8
	// A mailbox that changes without end has a pause after each pass that follows
	// it: as long as the pass took, within these.
	shortRest, longRest = 200 * time.Millisecond, time.Second
)

// vigil is the watch of a user's mailbox while he is ready.
type vigil struct {
	// Of the goroutine of the move.
	acct  imapconn.Account
	stop  func()        // nil: nobody watches
	swept time.Time     // the end of the last pass over all folders
	ended time.Time     // of the last pass that followed a signal
	took  time.Duration // by that pass

	stirred chan struct{} // one token: something changed

	mu      sync.Mutex
	folders map[string]bool // that changed since the last pass began
	since   time.Time       // the first of these changes
	all     bool            // somebody asked for a look at all folders
}

func newVigil() *vigil { return &vigil{stirred: make(chan struct{}, 1), folders: map[string]bool{}} }

// changed takes a signal.
func (v *vigil) changed(folder string) {
	v.mu.Lock()
	if len(v.folders) == 0 {
		v.since = time.Now()
	}
	v.folders[folder] = true
	v.mu.Unlock()
	token(v.stirred)
}

// wantAll has the next pass look at all folders.
func (v *vigil) wantAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = true
}

// take gives the folders that changed, since when, and whether all are to be
// looked at; what is told from now on is for the next pass.
func (v *vigil) take() (folders []string, since time.Time, all bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.stirred:
	default:
	}
	folders = slices.Sorted(maps.Keys(v.folders))
	all = v.all || v.folders[""] || len(folders) == 0 || len(folders) > manyFolders
	clear(v.folders)
	v.all = false
	return folders, v.since, all
}

// watchOver begins to watch the mailbox on old, or with back that on new, or goes
// on. A mailbox that is not reached over IMAP has its sweeps only.
func (m *move) watchOver(u router.User, v *vigil, back bool) error {
	if m.c.cfg.Watcher == nil {
		return nil
	}
	job, err := m.c.cfg.Mailboxes.Job(u)
	if err != nil {
		return err
	}
	acct, over := job.Source, job.From == nil
	if back {
		acct, over = job.Dest, true
	}
	if v.stop != nil && v.acct.Server == acct.Server && v.acct.Login == acct.Login {
		return nil
	}
	v.unwatch()
	if !over || acct.Server.Address == "" {
		return nil
	}
	v.acct, v.stop = acct, m.c.cfg.Watcher.Watch(acct, "INBOX", v.changed)
	return nil
}

// unwatch ends the watch. What the mailbox looks like is not known after it.
func (v *vigil) unwatch() {
	if v.stop != nil {
		v.stop()
		v.stop = nil
	}
	v.swept = time.Time{}
}

// unwatch ends the watches of both mailboxes.
func (m *move) unwatch() {
	m.vigil.unwatch()
	m.rear.unwatch()
}

// follow keeps a ready user in sync: by a pass over all folders when that is
// due, or when somebody asked for one, else over those that changed. It gives
// the time until the next.
func (m *move) follow(ctx context.Context, u router.User) (time.Duration, error) {
	v, tail := m.vigil, m.c.cfg.Tail
	if wait := v.due(tail); wait > 0 {
		return wait, nil
	}
	if err := m.watchOver(u, v, false); err != nil {
		return 0, err
	}
	began := time.Now()
	only, since, all := v.take()
	carried := len(only) > 0
	if all || v.swept.IsZero() || began.Sub(v.swept) >= tail {
		only = nil
	}
	err := m.inPlace(ctx, only, func() error {
		_, err := m.passOver(ctx, u, only)
		return err
	})
	v.ended = time.Now()
	v.took = v.ended.Sub(began)
	if err != nil {
		v.swept = time.Time{} // what changed was forgotten with take
		return 0, err
	}
	if only == nil {
		v.swept = v.ended
	}
	if carried && m.c.cfg.Hooks.Lagged != nil {
		m.c.cfg.Hooks.Lagged(v.ended.Sub(since))
	}
	return max(time.Until(v.swept.Add(tail)), time.Millisecond), nil
}

// inPlace runs a pass in a place of its kind: one over single folders is short,
// and does not wait for those who are copied for hours.
func (m *move) inPlace(ctx context.Context, only []string, f func() error) error {
	if only == nil {
		return m.inSlot(ctx, workTail, f)
	}
	m.mu.Lock()
	t := turn{work: workTail, wave: m.wave}
	m.mu.Unlock()
	if err := m.c.tails.take(ctx, t, m.followPause); err != nil {
		return err
	}
	defer m.c.tails.giveBack()
	return f()
}

// passOver runs a pass over single folders of the source, over all when only is
// nil.
func (m *move) passOver(ctx context.Context, u router.User, only []string) (backfill.Report, error) {
	if only == nil {
		return m.pass(ctx, u, false)
	}
	job, err := m.job(ctx, u, false)
	if err != nil {
		return backfill.Report{}, err
	}
	// Deletions are for passes over all: a message that is gone from one folder may
	// be in another now.
	rep, err := m.makePass(ctx, u, job, backfill.Options{Only: only, Restore: true, Prompt: true})
	m.passedOver(rep, err)
	if err != nil {
		return rep, fmt.Errorf("copying: %w", err)
	}
	return rep, nil
}

// passedOver adds a pass over single folders up. The problems of the others stay
// as they are, until the next pass over all.
func (m *move) passedOver(rep backfill.Report, err error) {
	fresh := m.firstMet(rep)
	if rep.Copied > 0 || len(fresh) > 0 {
		m.note(func(s *Status) {
			s.Passes++
			s.Copied += rep.Copied
			s.Bytes += rep.Bytes
			s.Throttled += rep.Throttled
			s.Problems = append(slices.Clone(s.Problems), fresh...)
		})
	}
	if rep.Copied > 0 && m.c.cfg.Hooks.Copying != nil {
		m.c.cfg.Hooks.Copying(rep.Copied, rep.Bytes)
	}
	if m.c.cfg.Hooks.Passed != nil {
		m.c.cfg.Hooks.Passed(Passed{User: m.user, Report: rep, Err: err, New: fresh})
	}
}

// settle waits, after a signal, until the user has had his rest since the last
// pass; false when ctx ended. What changes meanwhile goes into the same pass.
func (v *vigil) settle(ctx context.Context) bool {
	rest := time.Until(v.ended.Add(min(max(v.took, shortRest), longRest)))
	return rest <= 0 || pause(ctx, rest, nil)
}
