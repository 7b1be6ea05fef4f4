package cutover

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

func rollBack(t *testing.T, c *Conductor, user string) {
	t.Helper()
	if err := c.Rollback(t.Context(), Request{User: user, By: "test", Reason: "changed my mind"}); err != nil {
		t.Fatal(err)
	}
}

// backs lists the passes from new to old.
func (c *copier) backs() (out []string) {
	passes, _ := c.seen()
	for _, p := range passes {
		if strings.Contains(p, " back") {
			out = append(out, p)
		}
	}
	return out
}

func TestRollback(t *testing.T) {
	for _, from := range []router.State{router.StateNew, router.StateDone} {
		synctest.Test(t, func(t *testing.T) {
			tab, cop := newTable(router.User{Address: alice, State: from}), &copier{took: 100 * time.Millisecond}
			cop.back = func(_ string, n int, _ backfill.Options) (backfill.Report, error) {
				return backfill.Report{Copied: []int{500, 3, 1, 0, 0, 0}[min(n, 5)]}, nil
			}
			var holds []time.Duration
			c := conduct(t, tab, cop, Config{Hooks: Hooks{RolledBack: func(d time.Duration) { holds = append(holds, d) }}})
			rollBack(t, c, "Alice@Example.org")
			time.Sleep(10 * time.Second)
			if got, want := tab.way(alice), "rollback old"; got != want {
				t.Fatalf("from %s the user went %q, want %q", from, got, want)
			}
			// 500 and 3 while he reads new, 1 0 0 held: two clean ones in a row.
			b := alice + " back"
			if got, want := strings.Join(cop.backs(), ", "), strings.Join([]string{b, b, b + " final", b + " final", b + " final"}, ", "); got != want {
				t.Errorf("passes: %s", got)
			}
			s, ok := c.StatusOf(alice)
			if !ok || s.Phase != PhaseDone || s.State != router.StateOld || s.Rollback || len(holds) != 1 || holds[0] != s.HoldTime || s.HoldTime != 300*time.Millisecond {
				t.Errorf("held %s: %+v", holds, s)
			}
			h, _ := tab.History(t.Context(), alice, 10)
			if h[1].By != "test" || h[1].Reason != "changed my mind" || h[0].By != "test" {
				t.Errorf("history: %+v", h)
			}
			// Forward again.
			start(t, c, alice, false)
			time.Sleep(10 * time.Second)
			if got, want := tab.way(alice), "rollback old syncing ready cutover new"; got != want {
				t.Errorf("forward again, the user went %q, want %q", got, want)
			}
		})
	}
}

func TestRollbackWaitsForDeliveriesToNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}
		tab.setBusy(alice, 1)
		c := conduct(t, tab, cop, Config{})
		rollBack(t, c, alice)
		time.Sleep(time.Minute)
		if tab.state(alice) != router.StateRollback {
			t.Fatalf("with a delivery under way the user is %s", tab.state(alice))
		}
		for _, p := range cop.backs() {
			if strings.HasSuffix(p, "final") {
				t.Fatal("a final pass ran before the drain was over")
			}
		}
		tab.setBusy(alice, 0)
		time.Sleep(time.Second)
		if tab.state(alice) != router.StateOld {
			t.Errorf("after the drain the user is %s", tab.state(alice))
		}
	})
}

// A rollback that does not work leaves the user on new, is told, and is made
// again; his old mailbox is swept meanwhile.
func TestRollbackThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		rep  backfill.Report
		err  error
		busy int
		want string // in the error
		way  string
	}{
		"an error before the hold": {err: errors.New("old: over quota"), want: "over quota", way: ""},
		"a refused message": {rep: backfill.Report{Problems: []backfill.Problem{{Folder: "INBOX", UID: 7, Class: backfill.ClassRefused, Text: "NO too large"}}},
			want: "UID 7", way: ""},
		"max_hold": {busy: 1, want: "max_hold", way: "rollback new"},
	} {
		synctest.Test(t, func(t *testing.T) {
			tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}
			cop.back = func(string, int, backfill.Options) (backfill.Report, error) { return c.rep, c.err }
			tab.setBusy(alice, c.busy)
			con := conduct(t, tab, cop, Config{MaxHold: 2 * time.Minute, RetryFirst: time.Hour, RetryMax: time.Hour})
			rollBack(t, con, alice)
			time.Sleep(2*time.Minute + time.Second)
			if got := tab.way(alice); got != c.way {
				t.Fatalf("%s: the user went %q, want %q", name, got, c.way)
			}
			s, _ := con.StatusOf(alice)
			if s.Phase != PhaseFailed || !strings.Contains(s.Err, c.want) || s.Next.IsZero() || !s.Rollback {
				t.Errorf("%s: %+v", name, s)
			}
			if u, _ := tab.User(t.Context(), alice); c.way != "" && !strings.Contains(u.Note, c.want) {
				t.Errorf("%s: the user's note does not say why: %q", name, u.Note)
			}
			before, _ := cop.seen()
			time.Sleep(10 * time.Minute)
			if after, _ := cop.seen(); len(after) < len(before)+9 || len(cop.backs()) > 8 {
				t.Errorf("%s: the old mailbox is not swept while the rollback waits: %q", name, after[len(before):])
			}
			if s, _ := con.StatusOf(alice); s.Phase != PhaseFailed || s.Err == "" {
				t.Errorf("%s: after a sweep the error is gone: %+v", name, s)
			}
			c.rep, c.err = backfill.Report{}, nil
			tab.setBusy(alice, 0)
			time.Sleep(time.Hour)
			if tab.state(alice) != router.StateOld {
				t.Errorf("%s: the next attempt left the user %s", name, tab.state(alice))
			}
		})
	}
}

func TestRollbackOverARestart(t *testing.T) {
	for _, st := range []router.State{router.StateNew, router.StateDone, router.StateRollback} {
		synctest.Test(t, func(t *testing.T) {
			tab, cop := newTable(router.User{Address: alice, State: st}), &copier{}
			killed := New(Config{Table: tab, Requests: tab, Mailboxes: mailboxes{}})
			rollBack(t, killed, alice)
			conduct(t, tab, cop, Config{})
			time.Sleep(time.Second)
			if tab.state(alice) != router.StateOld {
				t.Errorf("from %s the next process left the user %s", st, tab.state(alice))
			}
		})
	}
}

// A request that was carried out, and whose process died before it was dropped,
// does not roll back a user whom somebody has set new since.
func TestRollbackIsMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}
		killed := New(Config{Table: tab, Requests: tab, Mailboxes: mailboxes{}})
		rollBack(t, killed, alice)
		for _, st := range []router.State{router.StateRollback, router.StateOld, router.StateNew} {
			u, _ := tab.User(t.Context(), alice)
			from := u.State
			u.State = st
			if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: from, To: st, By: "x", Forced: st == router.StateNew}); err != nil {
				t.Fatal(err)
			}
		}
		conduct(t, tab, cop, Config{})
		time.Sleep(time.Hour)
		if got, want := tab.way(alice), "rollback old new"; got != want {
			t.Errorf("the user went %q, want %q", got, want)
		}
		if _, asked, err := killed.loadRequest(t.Context(), alice); asked || err != nil {
			t.Errorf("the request stays on record: %v", err)
		}
	})
}

func TestRollbackIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}
		tab.setBusy(alice, 1)
		c := conduct(t, tab, cop, Config{})
		rollBack(t, c, alice)
		time.Sleep(30 * time.Second)
		if err := c.Cancel(t.Context(), alice, "test"); err != nil {
			t.Fatal(err)
		}
		tab.setBusy(alice, 0)
		time.Sleep(time.Hour)
		if got, want := tab.way(alice), "rollback new"; got != want {
			t.Errorf("the user went %q, want %q", got, want)
		}
		if s, _ := c.StatusOf(alice); s.Rollback || s.Phase != PhaseDone {
			t.Errorf("%+v", s)
		}
	})
}

// Who is held by hand stays so.
func TestRollbackByHandStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}
		u := tab.users[alice]
		u.State = router.StateRollback
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateNew, To: router.StateRollback, By: "me", Forced: true}); err != nil {
			t.Fatal(err)
		}
		conduct(t, tab, cop, Config{})
		time.Sleep(24 * time.Hour)
		if got := tab.way(alice); got != "rollback" {
			t.Errorf("the user went %q", got)
		}
	})
}

func TestRollbackRefuses(t *testing.T) {
	tab := newTable(router.User{Address: "old@example.org", State: router.StateOld}, router.User{Address: "ready@example.org", State: router.StateReady},
		router.User{Address: "nowhere@example.org", State: router.StateNew})
	c := New(Config{Table: tab, Mailboxes: mailboxes{}, Requests: tab})
	for user, want := range map[string]string{
		"old@example.org":     "reads old already",
		"ready@example.org":   "cutover cancel",
		"other@example.org":   "no table",
		"nowhere@example.org": "no imap",
		"":                    "no address",
	} {
		if err := c.Rollback(t.Context(), Request{User: user, By: "test"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("rollback of %q: %v, want an error with %q", user, err, want)
		}
	}
	if len(tab.history) != 0 {
		t.Errorf("a refused rollback changed %v", tab.history)
	}
}

// TestRollbackWithCopiesInTheQueue: copies (deliver: both) that old does not take hold nobody's mail, before the hold or
// in it, and the rollback is made when they are through.
func TestRollbackWithCopiesInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew, Deliver: router.DeliverBoth}), &copier{}
		tab.setBusy(alice, 3)
		c := conduct(t, tab, cop, Config{})
		rollBack(t, c, alice)
		time.Sleep(20 * time.Minute)
		if way := tab.way(alice); way != "" {
			t.Fatalf("the user went %q while old takes no copies", way)
		}
		if s, _ := c.StatusOf(alice); !strings.Contains(s.Err, "copies (deliver: both) that are queued for old: 3 still being sent") || len(cop.backs()) != 0 {
			t.Errorf("%+v, %q", s, cop.backs())
		}
		// Old takes them, and stops to when the hold begins.
		held := time.Time{}
		tab.mu.Lock()
		tab.busy[alice] = 0
		tab.fail = func(u router.User) error {
			if u.State == router.StateRollback {
				tab.busy[alice], held = 1, time.Now()
			} else if !held.IsZero() && u.State == router.StateNew && time.Since(held) > copyTime+stopGrace {
				t.Errorf("held for %s", time.Since(held))
			}
			return nil
		}
		tab.mu.Unlock()
		time.Sleep(time.Hour)
		if way := tab.way(alice); way != "rollback new" {
			t.Errorf("the user went %q", way)
		}
		tab.mu.Lock()
		tab.busy[alice], tab.fail = 0, nil
		tab.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if way := tab.way(alice); way != "rollback new rollback old" {
			t.Errorf("the user went %q", way)
		}
	})
}
