package cutover

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// forth lists the passes from old to new.
func (c *copier) forth() []string {
	passes, _ := c.seen()
	return slices.DeleteFunc(passes, func(p string) bool { return strings.Contains(p, " back") })
}

// TestStragglers: after the flip what old tells of is carried within seconds, the
// rest each minute; it is counted, over restarts too.
func TestStragglers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &copier{took: 50 * time.Millisecond}, &watcher{}
		var stray atomic.Int64
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			return backfill.Report{Copied: int(stray.Swap(0))}, nil
		}
		var found []Stray
		c := conduct(t, tab, cop, Config{Watcher: w, Hooks: Hooks{Found: func(s Stray) { found = append(found, s) }}})
		start(t, c, alice, false)
		time.Sleep(10 * time.Minute)
		if tab.state(alice) != router.StateNew || len(found) != 0 {
			t.Fatalf("%s, found %v", tab.way(alice), found)
		}
		if w.count(alice) != 1 || w.count("new/"+alice) != 0 {
			t.Fatalf("old is watched %d times, new %d times", w.count(alice), w.count("new/"+alice))
		}
		before := len(cop.forth())
		time.Sleep(10 * time.Minute)
		if n := len(cop.forth()) - before; n < 9 || n > 11 {
			t.Errorf("%d looks at all folders in ten minutes", n)
		}
		before = len(cop.only())
		stray.Store(2)
		time.Sleep(5 * time.Second) // not when all folders are looked at
		before = len(cop.only())
		w.tell(alice, "INBOX")
		time.Sleep(2 * time.Second)
		if got := cop.only()[before:]; len(got) != 1 || got[0] != "INBOX" {
			t.Errorf("INBOX was told of, and these passes were made: %q", got)
		}
		stray.Store(1)
		time.Sleep(time.Minute + time.Second)
		s, _ := c.StatusOf(alice)
		if len(found) != 2 || found[0].Count != 2 || found[0].Side != "old" || s.Sweep == nil || s.Sweep.Old.Count != 3 || s.Sweep.New.Count != 0 || s.Sweep.Old.Last.IsZero() {
			t.Errorf("found %+v, status %+v", found, s.Sweep)
		}
		if s.Phase != PhaseDone || s.Err != "" {
			t.Errorf("%+v", s)
		}
		for _, o := range cop.asked()[before:] {
			if o.Deletions || o.Restore {
				t.Errorf("a sweep with %+v", o)
			}
		}
	})
}

// TestRestartWithinTheWindow: the next process goes on, and knows what was found.
func TestRestartWithinTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}, &watcher{}
		killed := New(Config{Table: tab, Requests: tab, Mailboxes: mailboxes{}})
		m := newMove(killed, tab.users[alice], Request{})
		if err := m.openWindow(t.Context(), tab.users[alice]); err != nil {
			t.Fatal(err)
		}
		flipped := m.book.Flipped
		m.strays(t.Context(), false, 3, []string{"[192.0.2.1]", "[192.0.2.1]", "mx.example.com"})
		time.Sleep(24 * time.Hour)
		c := conduct(t, tab, cop, Config{Watcher: w})
		time.Sleep(5 * time.Minute)
		s, ok := c.StatusOf(alice)
		if !ok || s.Sweep == nil || s.Sweep.Old.Count != 3 || !s.Sweep.Flipped.Equal(flipped) || s.Sweep.Old.From[0].Host != "[192.0.2.1]" || s.Sweep.Old.From[0].Count != 2 {
			t.Fatalf("%+v", s.Sweep)
		}
		if !strings.Contains(s.Sweep.Waits, "window closes at") || !s.Sweep.Closes.Equal(flipped.Add(7*24*time.Hour)) {
			t.Errorf("%+v", s.Sweep)
		}
		if n := len(cop.forth()); n < 5 || w.count(alice) != 1 {
			t.Errorf("%d looks, %d watches", n, w.count(alice))
		}
	})
}

// TestFlippedByHand: what nobody copied before is copied by the sweep, is no
// straggler, and the status says so.
func TestFlippedByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateOld}), &copier{}
		cop.pass = func(_ string, n int, _ bool) (backfill.Report, error) {
			return backfill.Report{Copied: []int{500, 0, 2, 0}[min(n, 3)]}, nil
		}
		c := conduct(t, tab, cop, Config{})
		u := tab.users[alice]
		u.State = router.StateNew
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateOld, To: router.StateNew, By: "me", Forced: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		s, ok := c.StatusOf(alice)
		if !ok || s.Sweep == nil || !s.Sweep.Uncopied || s.Copied != 502 || s.Sweep.Old.Count != 2 {
			t.Errorf("%+v %+v", s, s.Sweep)
		}
	})
}

// TestMailOnNewBeforeTheFlip: it is carried to old for users who are old, syncing
// and ready, and not after the flip.
func TestMailOnNewBeforeTheFlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(router.User{Address: alice, State: router.StateOld}), &copier{took: 50 * time.Millisecond}, &watcher{}
		var stray atomic.Int64
		cop.back = func(string, int, backfill.Options) (backfill.Report, error) {
			return backfill.Report{Copied: int(stray.Swap(0))}, nil
		}
		c := conduct(t, tab, cop, Config{Watcher: w, SweepNew: true})
		time.Sleep(2 * time.Minute)
		if all := c.Status(); len(all) != 0 {
			t.Errorf("nothing is to be said of who is old: %+v", all)
		}
		if w.count("new/"+alice) != 1 || w.count(alice) != 0 {
			t.Fatalf("new is watched %d times, old %d times", w.count("new/"+alice), w.count(alice))
		}
		count := func(want int) {
			t.Helper()
			if s, ok := c.StatusOf(alice); !ok || s.Sweep == nil || s.Sweep.New.Count != want {
				t.Errorf("%+v, want %d found on new", s.Sweep, want)
			}
		}
		stray.Store(1)
		w.tell("new/"+alice, "INBOX")
		time.Sleep(2 * time.Second)
		count(1)
		if len(c.Status()) != 1 {
			t.Error("what was found is not shown")
		}
		stray.Store(1)
		time.Sleep(time.Minute)
		count(2)
		start(t, c, alice, true)
		time.Sleep(time.Minute)
		stray.Store(1)
		w.tell("new/"+alice, "INBOX")
		time.Sleep(2 * time.Second)
		count(3)
		if s, _ := c.StatusOf(alice); s.State != router.StateReady || s.Phase != PhaseReady || w.count(alice) != 1 || w.count("new/"+alice) != 1 {
			t.Errorf("%+v", s)
		}
		start(t, c, alice, false)
		time.Sleep(time.Minute)
		if tab.state(alice) != router.StateNew || w.count(alice) != 1 || w.count("new/"+alice) != 0 {
			t.Errorf("%s, old is watched %d times, new %d times", tab.way(alice), w.count(alice), w.count("new/"+alice))
		}
		before := len(cop.backs())
		time.Sleep(10 * time.Minute)
		if len(cop.backs()) != before {
			t.Error("new is swept although the user reads it")
		}
		for _, o := range cop.asked() {
			if o.Back && (o.Deletions || o.Restore) {
				t.Errorf("a sweep of new with %+v", o)
			}
		}
	})
}

// TestFlipDoesNotWaitForASweep, not even for one that hangs.
func TestFlipDoesNotWaitForASweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &hangingCopier{}, &watcher{}
		c := conductWith(t, tab, cop, Config{Watcher: w, SweepNew: true})
		start(t, c, alice, true)
		time.Sleep(10 * time.Second)
		cop.hang.Store(true)
		w.tell("new/"+alice, "INBOX")
		time.Sleep(5 * time.Second)
		if !cop.hangs.Load() {
			t.Fatal("no sweep runs")
		}
		start(t, c, alice, false)
		time.Sleep(time.Second)
		if tab.state(alice) != router.StateNew {
			t.Errorf("a second after the word the user is %s", tab.state(alice))
		}
	})
}

// TestSweepsDoNotStarveFirstCopies: users who are swept take no place of those who
// are copied, also when every look is long.
func TestSweepsDoNotStarveFirstCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var users []router.User
		for i := range 200 {
			users = append(users, router.User{Address: fmt.Sprintf("u%03d@example.org", i), State: router.StateOld})
		}
		tab, cop := newTable(users...), &hangingCopier{}
		cop.hang.Store(true) // each sweep takes all of its time
		c := conductWith(t, tab, cop, Config{SweepNew: true})
		time.Sleep(time.Minute)
		start(t, c, alice, false)
		time.Sleep(3 * time.Minute)
		if tab.state(alice) != router.StateNew {
			t.Errorf("the user is %s while others are swept", tab.state(alice))
		}
		if n := cop.most.Load(); n > 4 {
			t.Errorf("%d passes at once", n)
		}
	})
}

// TestSweepThatFails says what is wrong, backs off, and goes on when it can.
func TestSweepThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateNew}), &copier{}
		var off atomic.Bool
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			if off.Load() {
				return backfill.Report{}, errors.New("source: connection refused")
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{Window: time.Hour})
		time.Sleep(5 * time.Minute)
		off.Store(true)
		time.Sleep(2 * time.Hour)
		s, _ := c.StatusOf(alice)
		if tab.state(alice) != router.StateNew || s.Phase != PhaseDone || s.Err != "" {
			t.Errorf("%s: %+v", tab.way(alice), s)
		}
		w := s.Sweep
		for _, want := range []string{"connection refused", "bring the server back", "done --force", "may not be on new yet"} {
			if !strings.Contains(w.Err, want) {
				t.Errorf("%q lacks %q", w.Err, want)
			}
		}
		if w.Waits != w.Err || w.Next.IsZero() || w.Attempts < 5 || len(cop.forth()) > 30 {
			t.Errorf("%d passes: %+v", len(cop.forth()), w)
		}
		off.Store(false)
		time.Sleep(20 * time.Minute)
		if tab.state(alice) != router.StateDone {
			s, _ := c.StatusOf(alice)
			t.Errorf("the server is back, and the user is %s: %+v", tab.state(alice), s.Sweep)
		}
	})
}

func TestPausedSweeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateOld}, router.User{Address: "bob@example.org", State: router.StateNew}), &copier{}
		c := conduct(t, tab, cop, Config{SweepNew: true})
		time.Sleep(5 * time.Minute)
		if err := c.Pause(t.Context(), Pause{By: "test"}); err != nil {
			t.Fatal(err)
		}
		back, forth := len(cop.backs()), len(cop.forth())
		time.Sleep(10 * time.Minute)
		if len(cop.backs()) > back+1 {
			t.Error("who is old is swept in spite of a pause")
		}
		if len(cop.forth()) < forth+9 {
			t.Error("a pause keeps stragglers from who reads new")
		}
		if _, err := c.Resume(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		back = len(cop.backs())
		time.Sleep(5 * time.Minute)
		if len(cop.backs()) < back+4 {
			t.Error("after the pause who is old is not swept")
		}
	})
}

// TestMirror: old is kept current after the flip, for everybody or for one user.
func TestMirror(t *testing.T) {
	for _, all := range []bool{true, false} {
		testMirror(t, all)
	}
}

func testMirror(t *testing.T, all bool) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &copier{}, &watcher{}
		c := conduct(t, tab, cop, Config{Mirror: all, Watcher: w})
		if err := c.Start(t.Context(), Request{User: alice, By: "test", Mirror: !all}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n := len(cop.backs()); n < 9 || w.count("new/"+alice) != 1 {
			t.Errorf("%d passes from new to old, %d watches", n, w.count("new/"+alice))
		}
		s, _ := c.StatusOf(alice)
		if s.Sweep == nil || !s.Sweep.Mirror || s.Sweep.Mirrored.IsZero() || s.Sweep.New.Count != 0 {
			t.Errorf("%+v", s.Sweep)
		}
		for _, o := range cop.asked() {
			if o.Back && !o.Restore {
				t.Errorf("a mirror with %+v", o)
			}
		}
	})
}

// TestLeftGrows: others than those of before are told from them, by when there came to
// be more.
func TestLeftGrows(t *testing.T) {
	var l Left
	at := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	for _, x := range []struct {
		n     int
		whole bool
		grew  int // the look at which it did last; 0: it is none
	}{{3, true, 1}, {3, true, 1}, {1, false, 1}, {1, true, 1}, {3, true, 5}, {0, true, 0}, {2, false, 7}} {
		at = at.Add(time.Hour)
		l.seen(x.n, x.whole, "", at)
		want := time.Time{}
		if x.grew > 0 {
			want = time.Date(2026, 11, 2, 12+x.grew, 0, 0, 0, time.UTC)
		}
		if !l.Grew.Equal(want) {
			t.Errorf("%s: %+v", at, l)
		}
	}
}

// TestNotCarried: what a sweep sees and cannot carry is counted, over restarts too,
// until a look at all folders finds that it is carried or gone.
func TestNotCarried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop, w := newTable(), &copier{}, &watcher{}
		var rep atomic.Pointer[backfill.Report]
		var failure atomic.Pointer[error]
		set := func(r backfill.Report, err error) {
			rep.Store(&r)
			failure.Store(&err)
		}
		set(backfill.Report{}, nil)
		cop.pass = func(string, int, bool) (backfill.Report, error) { return *rep.Load(), *failure.Load() }
		c := conduct(t, tab, cop, Config{Watcher: w})
		start(t, c, alice, false)
		time.Sleep(10 * time.Minute)
		wants := func(when string, n int, text string) {
			t.Helper()
			kept, err := TallyOf(t.Context(), tab, alice)
			s, _ := c.StatusOf(alice)
			if err != nil || kept.OldLeft.Count != n || kept.NewLeft.Count != 0 || !strings.Contains(kept.OldLeft.Text, text) || kept.OldLeft.Since.IsZero() != (n == 0) || s.Sweep.OldLeft != kept.OldLeft {
				t.Errorf("%s: %+v, %+v, %v", when, kept.OldLeft, s.Sweep.OldLeft, err)
			}
		}
		wants("nothing came", 0, "")
		refused := backfill.Problem{Folder: "INBOX", UID: 7, Class: backfill.ClassRefused, Text: "over quota"}
		set(backfill.Report{Left: 1, Problems: []backfill.Problem{refused}}, nil)
		w.tell(alice, "INBOX")
		time.Sleep(5 * time.Second)
		wants("new refuses it", 1, "INBOX: over quota")
		set(backfill.Report{}, nil)
		w.tell(alice, "Work")
		time.Sleep(5 * time.Second)
		wants("a look at another folder", 1, "INBOX: over quota")
		time.Sleep(2 * time.Minute)
		wants("a look at all folders", 0, "")

		set(backfill.Report{Left: 3}, errors.New("throttled"))
		time.Sleep(2 * time.Minute)
		wants("the pass came to its end before them", 3, "throttled")
		set(backfill.Report{}, errors.New("connection refused"))
		time.Sleep(20 * time.Minute)
		wants("nobody can look", 3, "throttled")
		set(backfill.Report{Copied: 3}, nil)
		time.Sleep(20 * time.Minute)
		wants("they are carried", 0, "")
	})
}
