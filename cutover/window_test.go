package cutover

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// hangingCopier has every sweep hang until it is ended, while hang is set.
type hangingCopier struct {
	hang, hangs atomic.Bool
	now, most   atomic.Int64
}

func (c *hangingCopier) Pass(ctx context.Context, _ backfill.Job, o backfill.Options) (backfill.Report, error) {
	c.most.Store(max(c.most.Load(), c.now.Add(1)))
	defer c.now.Add(-1)
	if o.Back && c.hang.Load() {
		c.hangs.Store(true)
		defer c.hangs.Store(false)
		<-ctx.Done()
		return backfill.Report{Copied: 1}, ctx.Err()
	}
	return backfill.Report{}, nil
}

func (c *hangingCopier) Verify(context.Context, backfill.Job) (backfill.Verification, error) {
	return backfill.Verification{}, nil
}

// conductWith is conduct with any copier.
func conductWith(t *testing.T, tab *table, cop Copier, cfg Config) *Conductor {
	t.Helper()
	cfg.Table, cfg.Copier, cfg.Mailboxes, cfg.Requests = tab, cop, mailboxes{}, tab
	c := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c
}

// TestWindowCloses when its time is over, nothing was found twice in a row, the
// DNS does not object and nothing is missing; and says until then what is.
func TestWindowCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		var stray, missing atomic.Bool
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			if stray.Load() {
				return backfill.Report{Copied: 1}, nil
			}
			return backfill.Report{}, nil
		}
		cop.verify = func(user string) (backfill.Verification, error) {
			v := backfill.Verification{User: user}
			if missing.Load() {
				v.Missing = 2
				v.Problems = []backfill.Problem{{Folder: "Work", UID: 9, Class: backfill.ClassMissing}}
			}
			return v, nil
		}
		var dns atomic.Pointer[string]
		no := "the old MX can still be cached until 12:00"
		dns.Store(&no)
		c := conduct(t, tab, cop, Config{Window: 24 * time.Hour, MayClose: func(context.Context) error {
			if s := dns.Load(); s != nil {
				return errors.New(*s)
			}
			return nil
		}})
		start(t, c, alice, false)
		waits := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(d)
			s, _ := c.StatusOf(alice)
			if tab.state(alice) != router.StateNew || s.Sweep == nil || !strings.Contains(s.Sweep.Waits, want) {
				t.Fatalf("%s: waits %+v, want %q", tab.way(alice), s.Sweep, want)
			}
			if err := c.MayBeDone(t.Context(), alice); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("done by hand: %v, want %q", err, want)
			}
		}
		waits(23*time.Hour, "window closes at")
		stray.Store(true)
		waits(2*time.Hour, "looks at old in a row")
		stray.Store(false)
		missing.Store(true)
		waits(10*time.Minute, no)
		dns.Store(nil)
		waits(10*time.Minute, "2 messages of old are missing on new, first UID 9")
		missing.Store(false)
		time.Sleep(2 * time.Hour)
		if got := tab.state(alice); got != router.StateDone {
			t.Fatalf("the user is %s", got)
		}
		before, _ := cop.seen()
		time.Sleep(time.Hour)
		if after, _ := cop.seen(); len(after) != len(before) {
			t.Error("a user who is done is swept")
		}
		s, _ := c.StatusOf(alice)
		if s.State != router.StateDone || s.Phase != PhaseDone || s.Sweep.Waits != "" || s.Sweep.Old.Count == 0 {
			t.Errorf("%+v %+v", s, s.Sweep)
		}
		rollBack(t, c, alice)
		time.Sleep(time.Minute)
		if tab.state(alice) != router.StateOld {
			t.Errorf("rolled back from done the user is %s", tab.state(alice))
		}
	})
}

// TestWithoutMailboxes nothing can be swept: it is said once, and done needs force.
func TestWithoutMailboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		user := "nowhere@example.org"
		tab, cop := newTable(router.User{Address: user, State: router.StateNew}), &copier{}
		c := conduct(t, tab, cop, Config{Window: time.Minute})
		time.Sleep(time.Hour)
		s, ok := c.StatusOf(user)
		if !ok || s.Sweep == nil || !strings.Contains(s.Sweep.Off, "no imap") || tab.state(user) != router.StateNew || s.Phase != PhaseDone {
			t.Fatalf("%+v %+v", s, s.Sweep)
		}
		if err := c.MayBeDone(t.Context(), user); err == nil || !strings.Contains(err.Error(), "force") {
			t.Errorf("done by hand: %v", err)
		}
	})
}

// TestAskedDuringTheComparison: it reads two mailboxes from end to end, and must
// not keep an operator waiting.
func TestAskedDuringTheComparison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &slowVerifier{}
		c := conductWith(t, tab, cop, Config{Window: time.Minute})
		time.Sleep(10 * time.Minute)
		if s, _ := c.StatusOf(alice); s.Sweep == nil || !strings.Contains(s.Sweep.Waits, "compared") {
			t.Fatalf("%+v", s.Sweep)
		}
		rollBack(t, c, alice)
		time.Sleep(time.Second)
		if tab.state(alice) != router.StateOld {
			t.Errorf("the user is %s", tab.state(alice))
		}
	})
}

type slowVerifier struct{ copier }

func (*slowVerifier) Verify(ctx context.Context, _ backfill.Job) (backfill.Verification, error) {
	<-ctx.Done()
	return backfill.Verification{}, ctx.Err()
}

// TestStragglerDuringTheComparison: it may come to a folder that was compared
// already, so the window stays open until a look behind the comparison found
// nothing.
func TestStragglerDuringTheComparison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		var came, carried atomic.Bool
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			if came.CompareAndSwap(true, false) {
				carried.Store(true)
				return backfill.Report{Copied: 1}, nil
			}
			return backfill.Report{}, nil
		}
		compared := 0
		cop.verify = func(user string) (backfill.Verification, error) {
			if compared++; compared == 1 {
				came.Store(true)
			}
			return backfill.Verification{User: user}, nil
		}
		c := conduct(t, tab, cop, Config{Window: time.Hour})
		start(t, c, alice, false)
		time.Sleep(3 * time.Hour)
		if got := tab.state(alice); got != router.StateDone || !carried.Load() {
			t.Errorf("the user is %s; the straggler was carried: %t", got, carried.Load())
		}
	})
}
