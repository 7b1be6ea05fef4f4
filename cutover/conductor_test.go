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

const alice = "alice@example.org"

// conduct runs a conductor in the bubble until the test is over.
func conduct(t *testing.T, tab *table, cop *copier, cfg Config) *Conductor {
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
		if len(cop.broken) > 0 {
			t.Errorf("rules were broken: %q", cop.broken)
		}
	})
	return c
}

func start(t *testing.T, c *Conductor, user string, sync bool) {
	t.Helper()
	if err := c.Start(t.Context(), Request{User: user, By: "test", Sync: sync}); err != nil {
		t.Fatal(err)
	}
}

func TestOneUserGoesAllTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{took: 100 * time.Millisecond}
		cop.pass = func(_ string, n int, _ bool) (backfill.Report, error) {
			return backfill.Report{Copied: []int{500, 3, 1, 1, 0, 0, 0}[min(n, 6)]}, nil
		}
		c := conduct(t, tab, cop, Config{})
		start(t, c, "Alice@Example.org", false)
		time.Sleep(10 * time.Second)
		if got, want := tab.way(alice), "syncing ready cutover new"; got != want {
			t.Fatalf("the user went %q, want %q", got, want)
		}
		// 500 and 3 in syncing, 1 before the hold; 1 0 0 held: two clean ones in a row;
		// then the first look at old.
		want := "alice@example.org alice@example.org alice@example.org alice@example.org final alice@example.org final alice@example.org final alice@example.org"
		passes, _ := cop.seen()
		if got := strings.Join(passes, " "); got != want {
			t.Errorf("passes: %s", got)
		}
		st, ok := c.StatusOf(alice)
		if !ok || st.Phase != PhaseDone || st.HoldTime < 300*time.Millisecond || st.HoldTime > time.Second || st.Copied != 505 {
			t.Errorf("status: %+v", st)
		}
		// A look right after the flip, one each minute; the one after two minutes trusts
		// no shortcut.
		time.Sleep(3 * time.Minute)
		passes, _ = cop.seen()
		if got := strings.Join(passes, " "); len(passes) < 10 || len(passes) > 11 || strings.Count(got, "final") != 4 {
			t.Errorf("passes in three minutes after the flip: %s", got)
		}
	})
}

func TestSyncStopsAtReadyAndIsKeptSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, true)
		time.Sleep(5*time.Minute + time.Second)
		if tab.state(alice) != router.StateReady {
			t.Fatalf("the user is %s", tab.state(alice))
		}
		passes, _ := cop.seen()
		if n := len(passes); n < 6 {
			t.Errorf("%d passes in five minutes: a ready user is not kept in sync", n)
		}
		start(t, c, alice, false)
		time.Sleep(time.Second)
		if tab.state(alice) != router.StateNew {
			t.Errorf("told to go on, the user is %s", tab.state(alice))
		}
	})
}

func TestHoldWaitsForDeliveriesUnderTheOldEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		tab.setBusy(alice, 2)
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, false)
		time.Sleep(time.Minute)
		if tab.state(alice) != router.StateCutover {
			t.Fatalf("with deliveries under way the user is %s, want cutover", tab.state(alice))
		}
		passes, _ := cop.seen()
		for _, p := range passes {
			if strings.HasSuffix(p, "final") {
				t.Fatal("a final pass ran before the drain was over")
			}
		}
		tab.setBusy(alice, 0)
		time.Sleep(time.Second)
		if tab.state(alice) != router.StateNew {
			t.Errorf("after the drain the user is %s", tab.state(alice))
		}
	})
}

func TestHoldEndsAfterMaxHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		tab.setBusy(alice, 1)
		c := conduct(t, tab, cop, Config{MaxHold: 2 * time.Minute, RetryFirst: time.Hour})
		start(t, c, alice, false)
		time.Sleep(2*time.Minute + time.Second)
		if got, want := tab.way(alice), "syncing ready cutover ready"; got != want {
			t.Fatalf("the user went %q, want %q", got, want)
		}
		st, _ := c.StatusOf(alice)
		if st.Phase != PhaseFailed || !strings.Contains(st.Err, "max_hold") || st.Next.IsZero() {
			t.Errorf("status: %+v", st)
		}
		if u, _ := tab.User(t.Context(), alice); !strings.Contains(u.Note, "max_hold") {
			t.Errorf("the user's note does not say why: %q", u.Note)
		}
		tab.setBusy(alice, 0)
		time.Sleep(time.Hour)
		if tab.state(alice) != router.StateNew {
			t.Errorf("the next attempt left the user %s", tab.state(alice))
		}
	})
}

func TestErrorWhileHeldReleasesTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		var failing atomic.Bool
		failing.Store(true)
		cop.pass = func(_ string, _ int, final bool) (backfill.Report, error) {
			if final && failing.Load() {
				return backfill.Report{}, errors.New("new: over quota")
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{RetryFirst: time.Minute})
		start(t, c, alice, false)
		time.Sleep(time.Second)
		if got, want := tab.way(alice), "syncing ready cutover ready"; got != want {
			t.Fatalf("the user went %q, want %q", got, want)
		}
		failing.Store(false)
		time.Sleep(2 * time.Minute)
		if tab.state(alice) != router.StateNew {
			t.Errorf("the next attempt left the user %s", tab.state(alice))
		}
	})
}

func TestMailThatCannotBeCopiedBlocksTheFlip(t *testing.T) {
	for _, class := range []string{backfill.ClassRefused, backfill.ClassUnreadable} {
		synctest.Test(t, func(t *testing.T) {
			tab, cop := newTable(), &copier{}
			cop.pass = func(string, int, bool) (backfill.Report, error) {
				return backfill.Report{Problems: []backfill.Problem{{Folder: "INBOX", UID: 7, Class: class, Text: "NO too large"}}}, nil
			}
			c := conduct(t, tab, cop, Config{})
			start(t, c, alice, false)
			time.Sleep(time.Minute)
			if tab.state(alice) != router.StateReady {
				t.Fatalf("with a %s message the user is %s, want ready", class, tab.state(alice))
			}
			if st, _ := c.StatusOf(alice); !strings.Contains(st.Err, "UID 7") || !strings.Contains(st.Err, "too large") {
				t.Errorf("the error does not name the message: %s", st.Err)
			}
		})
	}
}

// A message that is carried as an attachment is there: so are those that nobody
// wanted, and what was deleted and is still there.
func TestWhatIsCarriedDoesNotBlockTheFlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			var r backfill.Report
			for _, class := range []string{backfill.ClassWrapped, backfill.ClassFiltered, backfill.ClassDeletions, backfill.ClassAltered} {
				r.Problems = append(r.Problems, backfill.Problem{Folder: "INBOX", Class: class})
			}
			return r, nil
		}
		start(t, conduct(t, tab, cop, Config{}), alice, false)
		time.Sleep(time.Minute)
		if tab.state(alice) != router.StateNew {
			t.Errorf("the user is %s", tab.state(alice))
		}
	})
}

func TestPassThatNeverEndsCleanIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{took: time.Second}
		cop.pass = func(string, int, bool) (backfill.Report, error) { return backfill.Report{Copied: 1}, nil }
		c := conduct(t, tab, cop, Config{MaxHold: time.Minute, RetryFirst: time.Hour})
		start(t, c, alice, false)
		time.Sleep(2 * time.Minute)
		if got, want := tab.way(alice), "syncing ready cutover ready"; got != want {
			t.Fatalf("the user went %q, want %q", got, want)
		}
	})
}

func TestRestartTakesUpWhatWasAsked(t *testing.T) {
	for _, st := range []router.State{router.StateSyncing, router.StateReady, router.StateCutover} {
		synctest.Test(t, func(t *testing.T) {
			tab, cop := newTable(router.User{Address: alice, State: st}), &copier{}
			old := New(Config{Table: tab, Requests: tab})
			if err := old.saveRequest(t.Context(), Request{User: alice, By: "somebody"}); err != nil {
				t.Fatal(err)
			}
			conduct(t, tab, cop, Config{})
			time.Sleep(time.Second)
			if tab.state(alice) != router.StateNew {
				t.Errorf("from %s the next process left the user %s, want new", st, tab.state(alice))
			}
		})
	}
}

func TestRestartAfterMaxHoldReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateCutover}), &copier{}
		time.Sleep(time.Hour) // the machine was off
		conduct(t, tab, cop, Config{})
		time.Sleep(time.Second)
		if got := tab.way(alice); got != "ready" {
			t.Errorf("the user went %q, want ready", got)
		}
	})
}

// A hold that an operator forced is his: a restart once gave the user back to
// old, or flipped him.
func TestOperatorsHoldStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateReady}), &copier{}
		u := tab.users[alice]
		u.State = router.StateCutover
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateReady, To: router.StateCutover, By: "me", Forced: true}); err != nil {
			t.Fatal(err)
		}
		before := tab.way(alice)
		conduct(t, tab, cop, Config{})
		time.Sleep(24 * time.Hour)
		if got := tab.way(alice); got != before {
			t.Errorf("the user went %q, want %q", got, before)
		}
		u = tab.users[alice]
		u.State = router.StateReady
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateCutover, To: router.StateReady, By: "me"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if tab.state(alice) != router.StateReady {
			t.Errorf("the user is %s after the hold", tab.state(alice))
		}
	})
}

func TestOperatorIsQuicker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{took: time.Second}
		c := conduct(t, tab, cop, Config{})
		tab.setBusy(alice, 1)
		start(t, c, alice, false)
		time.Sleep(30 * time.Second) // held, draining
		u, _ := tab.User(t.Context(), alice)
		u.State = router.StateOld
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{To: router.StateOld, By: "operator", Forced: true}); err != nil {
			t.Fatal(err)
		}
		tab.setBusy(alice, 0)
		time.Sleep(time.Hour)
		if got, want := tab.way(alice), "syncing ready cutover old"; got != want {
			t.Errorf("the user went %q, want %q: the operator's word was overruled", got, want)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		c := conduct(t, tab, cop, Config{})
		tab.setBusy(alice, 1)
		start(t, c, alice, false)
		time.Sleep(30 * time.Second)
		if err := c.Cancel(t.Context(), alice, "test"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got, want := tab.way(alice), "syncing ready cutover ready old"; got != want {
			t.Fatalf("the user went %q, want %q", got, want)
		}
		tab.setBusy(alice, 0)
		start(t, c, alice, false)
		time.Sleep(time.Second)
		if tab.state(alice) != router.StateNew {
			t.Errorf("started anew, the user is %s", tab.state(alice))
		}
	})
}

func TestManyUsersShareThePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{took: time.Second}
		c := conduct(t, tab, cop, Config{Concurrency: 3})
		for i := range 50 {
			start(t, c, fmt.Sprintf("u%d@example.org", i), false)
		}
		time.Sleep(10 * time.Minute)
		for i := range 50 {
			if st := tab.state(fmt.Sprintf("u%d@example.org", i)); st != router.StateNew {
				t.Errorf("u%d is %s", i, st)
			}
		}
		if _, most := cop.seen(); most > 3+2 { // and two who are swept
			t.Errorf("%d users at once, want at most 5", most)
		}
	})
}

func TestNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateOld, NotBefore: time.Now().Add(time.Hour)}), &copier{}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, false)
		time.Sleep(59 * time.Minute)
		if tab.state(alice) != router.StateReady {
			t.Fatalf("before his time the user is %s", tab.state(alice))
		}
		time.Sleep(2 * time.Minute)
		if tab.state(alice) != router.StateNew {
			t.Errorf("after his time the user is %s", tab.state(alice))
		}
	})
}

func TestLostReplyOfTheFlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{}
		c := conduct(t, tab, cop, Config{})
		lost := false
		tab.fail = func(u router.User) error {
			if u.State == router.StateNew && !lost {
				lost = true
				// The change is made, and its reply is lost.
				u.Epoch++
				tab.users[u.Address] = u
				return errors.New("connection to the store was lost")
			}
			return nil
		}
		start(t, c, alice, false)
		time.Sleep(10 * time.Minute)
		if tab.state(alice) != router.StateNew {
			t.Errorf("the user is %s: a flip that was made was taken back", tab.state(alice))
		}
	})
}

func TestStartRefuses(t *testing.T) {
	tab := newTable(router.User{Address: "new@example.org", State: router.StateNew},
		router.User{Address: "back@example.org", State: router.StateRollback})
	tab.users["info@example.org"] = router.User{Address: "info@example.org", Kind: router.KindAlias, Targets: []string{alice}}
	c := New(Config{Table: tab, Mailboxes: mailboxes{}, Requests: tab})
	for user, want := range map[string]string{
		"new@example.org":     "already",
		"back@example.org":    "rolled back",
		"info@example.org":    "alias",
		"nowhere@example.org": "no imap",
		"not an address":      "domain",
		"":                    "no address",
	} {
		if err := c.Start(t.Context(), Request{User: user, By: "test"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("start of %q: %v, want an error with %q", user, err, want)
		}
	}
	if len(tab.history) != 0 {
		t.Errorf("a refused start changed %v", tab.history)
	}
}
