package cutover

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// After a restart the hold once waited behind users whose copy takes hours.
func TestHoldWaitsForNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateCutover}), &copier{}
		for i := range 30 {
			key := fmt.Sprintf("u%d@example.org", i)
			tab.users[key] = router.User{Address: key, Kind: router.KindMailbox, State: router.StateSyncing, Epoch: 1}
		}
		cop.pass = func(user string, _ int, _ bool) (backfill.Report, error) {
			if user != alice {
				time.Sleep(3 * time.Hour)
			}
			return backfill.Report{}, nil
		}
		conduct(t, tab, cop, Config{Concurrency: 1})
		time.Sleep(time.Minute)
		if got := tab.state(alice); got != router.StateNew {
			t.Errorf("while others are copied the user who was held is %s", got)
		}
		time.Sleep(5 * 24 * time.Hour)
	})
}

// The next try once came after up to an hour, the user held all the while.
func TestHeldUserIsLookedAtSoonAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateCutover}), &copier{}
		tab.blind = errors.New("the store is away")
		conduct(t, tab, cop, Config{})
		time.Sleep(5 * time.Hour)
		tab.mu.Lock()
		tab.blind = nil
		tab.mu.Unlock()
		time.Sleep(time.Minute)
		if got := tab.state(alice); got != router.StateReady {
			t.Errorf("a minute after the store came back the user is %s", got)
		}
	})
}

// A change of another field moves the epoch, and once kept the hold from being
// given back.
func TestHoldIsGivenBackThoughTheUserChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		tab.setBusy(alice, 1)
		c := conduct(t, tab, cop, Config{MaxHold: 2 * time.Minute, RetryFirst: time.Hour})
		start(t, c, alice, false)
		time.Sleep(time.Minute)
		u, _ := tab.User(t.Context(), alice)
		u.Wave = "3"
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: u.State, To: u.State, By: "operator"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second)
		if got := tab.state(alice); got != router.StateReady {
			t.Errorf("after max_hold the user is %s", got)
		}
	})
}

// A pass that does not heed its context must not hold the user longer, and
// none other may begin beside it.
func TestHoldEndsAlthoughThePassDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		cop.pass = func(_ string, _ int, final bool) (backfill.Report, error) {
			if final {
				time.Sleep(time.Hour)
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{MaxHold: 2 * time.Minute, RetryFirst: time.Second})
		start(t, c, alice, false)
		time.Sleep(2*time.Minute + 2*stopGrace)
		if got, want := tab.way(alice), "syncing ready cutover ready"; got != want {
			t.Errorf("the user went %q, want %q", got, want)
		}
		time.Sleep(10 * time.Minute)
		if _, most := cop.seen(); most != 1 {
			t.Errorf("%d passes at once for one user", most)
		}
		time.Sleep(2 * time.Hour)
	})
}

// A Cancel that failed half way once ended the work on a user who was held.
func TestCancelThatFailsLeavesNobodyHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		tab.setBusy(alice, 1)
		c := conduct(t, tab, cop, Config{MaxHold: 2 * time.Minute, RetryFirst: time.Hour})
		start(t, c, alice, false)
		time.Sleep(time.Minute)
		tab.mu.Lock()
		tab.fail = func(router.User) error { return errors.New("the store is away") }
		tab.mu.Unlock()
		if err := c.Cancel(t.Context(), alice, "test"); err == nil {
			t.Fatal("no error")
		}
		tab.mu.Lock()
		tab.fail = nil
		tab.mu.Unlock()
		time.Sleep(time.Minute + 2*time.Second)
		if got := tab.state(alice); got != router.StateReady {
			t.Errorf("after max_hold the user is %s", got)
		}
	})
}

// A user who is started again while the work that was cancelled still ends once
// stayed in syncing for ever.
func TestStartWhileTheCancelledWorkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		cop.pass = func(_ string, n int, _ bool) (backfill.Report, error) {
			if n == 0 {
				time.Sleep(10 * time.Second)
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, false)
		time.Sleep(time.Second)
		if err := c.Cancel(t.Context(), alice, "test"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		start(t, c, alice, false)
		time.Sleep(time.Minute)
		if got, want := tab.way(alice), "syncing old syncing ready cutover new"; got != want {
			t.Errorf("the user went %q, want %q", got, want)
		}
		if _, most := cop.seen(); most != 1 {
			t.Errorf("%d passes at once for one user", most)
		}
	})
}

// runFor runs a conductor as one process that ends after d.
func runFor(t *testing.T, tab *table, cop *copier, d time.Duration, before func(c *Conductor)) {
	t.Helper()
	c := New(Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab})
	if before != nil {
		before(c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := c.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// The pass after the flip once was forgotten by a restart, and the request never:
// the same user on his way again flipped by himself.
func TestRestartAfterTheFlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		runFor(t, tab, cop, 10*time.Second, func(c *Conductor) { start(t, c, alice, false) })
		if got := tab.state(alice); got != router.StateNew {
			t.Fatalf("the user is %s", got)
		}
		flipped, _ := cop.seen()
		runFor(t, tab, cop, 10*time.Minute, nil)
		passes, _ := cop.seen()
		if late := strings.Count(strings.Join(passes[len(flipped):], " "), "final"); late != 1 {
			t.Errorf("%d passes after the restart trust no shortcut, want the one after the flip: %v", late, passes)
		}
		u, _ := tab.User(t.Context(), alice)
		u.State = router.StateReady
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateNew, To: router.StateReady, By: "operator", Forced: true}); err != nil {
			t.Fatal(err)
		}
		runFor(t, tab, cop, time.Hour, nil)
		if got := tab.state(alice); got != router.StateReady {
			t.Errorf("nobody asked for it, and the user is %s", got)
		}
	})
}

func TestCancelComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, false)
		time.Sleep(10 * time.Second)
		flipped, _ := cop.seen()
		if err := c.Cancel(t.Context(), alice, "test"); err == nil {
			t.Error("a user who is new was cancelled")
		}
		time.Sleep(10 * time.Minute)
		passes, _ := cop.seen()
		if late := strings.Count(strings.Join(passes[len(flipped):], " "), "final"); late != 1 {
			t.Errorf("%d passes after the flip trust no shortcut, want 1", late)
		}
		if st, _ := c.StatusOf(alice); st.State != router.StateNew {
			t.Errorf("status: %+v", st)
		}
	})
}

// Until the flip what is gone from new is copied again; afterwards the user has
// deleted it, and what he deletes on old must not be deleted there.
func TestRestoreEndsWithTheFlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, false)
		time.Sleep(10 * time.Minute)
		cop.mu.Lock()
		defer cop.mu.Unlock()
		flip := 5 // of syncing, before the hold, two in it; and one of the sweeps
		for i, o := range cop.options {
			if after := i >= flip-1; o.Restore == after || o.Deletions == after {
				t.Errorf("pass %d of %d: %+v", i+1, len(cop.options), o)
			}
		}
	})
}

// A pass may take hours. When its user was set to another state meanwhile, nothing
// is deleted any more.
func TestNobodyDeletesForAUserWhoWasSetNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		var before, after error
		cop.pass = func(_ string, n int, _ bool) (backfill.Report, error) {
			if n > 0 {
				return backfill.Report{}, nil
			}
			o := cop.options[0]
			before = o.MayDelete(t.Context())
			u, err := tab.User(t.Context(), alice)
			if err != nil {
				t.Error(err)
			}
			u.State = router.StateNew
			if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateSyncing, To: router.StateNew, Forced: true}); err != nil {
				t.Error(err)
			}
			after = o.MayDelete(t.Context())
			return backfill.Report{}, after
		}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, true)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if before != nil || !errors.Is(after, router.ErrEpoch) {
			t.Errorf("%v, and %v", before, after)
		}
		if st, _ := c.StatusOf(alice); st.State != router.StateNew || st.Attempts > 0 {
			t.Errorf("%+v", st)
		}
	})
}

// What an operator allows holds for one pass that ends well, and no longer, also
// after a restart.
func TestAllowedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		var fail atomic.Bool
		fail.Store(true)
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			if fail.Load() {
				return backfill.Report{}, errors.New("not now")
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{})
		if err := c.Start(t.Context(), Request{User: alice, By: "op", Sync: true, AllowDeletions: true, RetryRefused: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		fail.Store(false)
		time.Sleep(2 * time.Hour)
		req, asked, err := c.loadRequest(t.Context(), alice)
		if err != nil || !asked || req.AllowDeletions || req.RetryRefused {
			t.Errorf("on record: %+v, %v, %v", req, asked, err)
		}
		cop.mu.Lock()
		defer cop.mu.Unlock()
		allowed := 0
		for i, o := range cop.options {
			if o.AllowDeletions != o.RetryRefused || o.AllowDeletions && i > 0 && !cop.options[i-1].AllowDeletions {
				t.Errorf("pass %d: %+v", i, o)
			}
			if o.AllowDeletions {
				allowed++
			}
		}
		if allowed < 2 || allowed == len(cop.options) {
			t.Errorf("allowed in %d of %d passes", allowed, len(cop.options))
		}
	})
}
