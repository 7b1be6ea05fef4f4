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

// inWave makes n users of a wave, in a state.
func inWave(wave string, n int, st router.State) (users []router.User) {
	for i := range n {
		users = append(users, router.User{Address: fmt.Sprintf("u%02d@example.org", i), State: st, Wave: wave})
	}
	return users
}

// watchHeld gives the function that tells how many users of a table were held at
// once, at most.
func watchHeld(tab *table) func() int {
	most := 0
	tab.fail = func(u router.User) error {
		n := 0
		for _, x := range tab.users {
			if x.State == router.StateCutover && x.Address != u.Address {
				n++
			}
		}
		if u.State == router.StateCutover {
			n++
		}
		most = max(most, n)
		return nil
	}
	return func() int {
		tab.mu.Lock()
		defer tab.mu.Unlock()
		return most
	}
}

// holds gives when each hold began, in their order.
func (t *table) holds() (at []time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.history {
		if c.From == router.StateReady && c.To == router.StateCutover {
			at = append(at, c.At)
		}
	}
	return at
}

func (t *table) count(st router.State) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range t.users {
		if u.State == st {
			n++
		}
	}
	return n
}

func TestAtMostSoManyAreHeld(t *testing.T) {
	for _, most := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			tab, cop := newTable(), &copier{took: time.Second}
			held := watchHeld(tab)
			c := conduct(t, tab, cop, Config{MaxHeld: most, Concurrency: 8})
			for _, u := range inWave("", 12, "") {
				start(t, c, u.Address, false)
			}
			time.Sleep(10 * time.Minute)
			if n := tab.count(router.StateNew); n != 12 || held() != most {
				t.Errorf("%d users are new, %d were held at once, want 12 and %d", n, held(), most)
			}
		})
	}
}

// TestFlipsPerMinute: holds begin no closer than asked, and who waits is kept in
// sync meanwhile.
func TestFlipsPerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(inWave("w1", 10, router.StateReady)...), &copier{took: 100 * time.Millisecond}
		c := conduct(t, tab, cop, Config{FlipsPerMinute: 2, Concurrency: 4, Tail: 10 * time.Second})
		time.Sleep(time.Minute)
		if _, err := c.ApproveWave(t.Context(), "w1", "olga"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		if n := tab.count(router.StateNew); n < 6 || n > 7 {
			t.Errorf("%d users are new after three minutes", n)
		}
		waiting := map[string]int{}
		for _, u := range inWave("w1", 10, "") {
			if tab.state(u.Address) == router.StateReady {
				waiting[u.Address] = cop.passesOf(u.Address)
			}
		}
		time.Sleep(25 * time.Second)
		for u, before := range waiting {
			if tab.state(u) == router.StateReady && cop.passesOf(u) == before {
				t.Errorf("%s waits for the pace and is not kept in sync", u)
			}
		}
		time.Sleep(4 * time.Minute)
		at := tab.holds()
		for i := 1; i < len(at); i++ {
			if gap := at[i].Sub(at[i-1]); gap < 30*time.Second || gap > 45*time.Second {
				t.Errorf("hold %d began %s after the one before", i, gap)
			}
		}
		if n := tab.count(router.StateNew); n != 10 {
			t.Errorf("%d users are new", n)
		}
		// Each user has few passes for a flip, and then those of the sweeps: nobody tries
		// in vain.
		if passes, _ := cop.seen(); len(passes) > 600 {
			t.Errorf("%d passes", len(passes))
		}
	})
}

func (c *copier) passesOf(user string) (n int) {
	passes, _ := c.seen()
	for _, p := range passes {
		if p == user {
			n++
		}
	}
	return n
}

// TestPaceOverNodes: the bounds are those of all nodes together, also when one
// dies while it looks.
func TestPaceOverNodes(t *testing.T) {
	for _, cfg := range []Config{{MaxHeld: 1}, {MaxHeld: 2}, {FlipsPerMinute: 30}, {MaxHeld: 1, FlipsPerMinute: 60}} {
		cfg.Concurrency = 4
		synctest.Test(t, func(t *testing.T) { paceOverNodes(t, cfg) })
	}
}

func paceOverNodes(t *testing.T, cfg Config) {
	tab := newTable()
	tab.lag = 300 * time.Millisecond
	held := watchHeld(tab)
	b, g := newBooks(tab), newGuarded(sleepFor(time.Second))
	a, c := runNode(t, b, g, "a", cfg), runNode(t, b, g, "c", cfg)
	for _, u := range inWave("", 20, "") {
		start(t, a.Conductor, u.Address, false)
	}
	time.Sleep(20 * time.Second)
	// A node that died owns the right, for lockTime.
	if _, err := (&view{books: b, node: "dead"}).Own(t.Context(), lockTime, paceLock); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Minute)
	if n := tab.count(router.StateNew); n != 20 || cfg.MaxHeld > 0 && held() != cfg.MaxHeld {
		t.Errorf("%+v: %d users are new, %d were held at once", cfg, n, held())
	}
	if at := tab.holds(); cfg.FlipsPerMinute > 0 {
		for i := 1; i < len(at); i++ {
			if gap := at[i].Sub(at[i-1]); gap < time.Minute/time.Duration(cfg.FlipsPerMinute) {
				t.Errorf("%+v: hold %d began %s after the one before", cfg, i, gap)
			}
		}
	}
	if na, nc := g.count("a"), g.count("c"); na == 0 || nc == 0 {
		t.Errorf("passes: a made %d, c %d", na, nc)
	}
	for _, s := range c.Status() {
		if s.User == paceLock {
			t.Errorf("the right to hold users is shown as a user: %+v", s)
		}
	}
	g.check(t)
}

// TestHeldByHandCounts: who is held by an operator is held.
func TestHeldByHandCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateReady}), &copier{took: time.Second}
		u, _ := tab.User(t.Context(), alice)
		u.State = router.StateCutover
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateReady, To: router.StateCutover, By: "olga", Forced: true}); err != nil {
			t.Fatal(err)
		}
		held := watchHeld(tab)
		c := conduct(t, tab, cop, Config{MaxHeld: 2})
		for _, u := range inWave("", 6, "") {
			start(t, c, u.Address, false)
		}
		time.Sleep(10 * time.Minute)
		if n := tab.count(router.StateNew); n != 6 || held() != 2 {
			t.Errorf("%d users are new, %d were held at once", n, held())
		}
	})
}

// TestWaveNeedsApprovalAndTime: with approve: manual nobody of a wave flips
// before both; after a restart too.
func TestWaveNeedsApprovalAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(inWave("w1", 3, router.StateReady)...), &copier{}
		first := New(Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab})
		at := time.Now().Add(time.Hour)
		if _, err := first.SetWave(t.Context(), "w1", at); err != nil {
			t.Fatal(err)
		}
		if w, err := first.ApproveWave(t.Context(), "w1", "olga"); err != nil || w.State != WaveApproved || w.ApprovedBy != "olga" || !w.NotBefore.Equal(at.Truncate(time.Second)) {
			t.Fatalf("%+v, %v", w, err)
		}
		if w, err := first.ApproveWave(t.Context(), "w1", "otto"); err != nil || w.ApprovedBy != "olga" {
			t.Errorf("a second approval: %+v, %v", w, err)
		}
		c := conduct(t, tab, cop, Config{})
		time.Sleep(59 * time.Minute)
		if n := tab.count(router.StateReady); n != 3 {
			t.Fatalf("%d users are ready before the time of the wave", n)
		}
		time.Sleep(2 * time.Minute)
		ws, err := c.Waves(t.Context(), "")
		if n := tab.count(router.StateNew); n != 3 || err != nil || len(ws) != 1 || ws[0].State != WaveFinished || ws[0].Members != 3 {
			t.Errorf("%d users are new; %+v, %v", n, ws, err)
		}
	})
}

// TestWaveWithoutApproval: users are kept in sync, and flip within seconds of
// the approval.
func TestWaveWithoutApproval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(inWave("w1", 2, router.StateReady)...), &copier{}
		c := conduct(t, tab, cop, Config{})
		time.Sleep(10 * time.Minute)
		if ws, err := c.Waves(t.Context(), "w1"); err != nil || ws[0].State != WavePlanned || ws[0].States[router.StateReady] != 2 {
			t.Errorf("%+v, %v", ws, err)
		}
		if _, err := c.ApproveWave(t.Context(), "w1", "olga"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := tab.count(router.StateNew); n != 2 {
			t.Errorf("%d users are new a second after the approval", n)
		}
	})
}

func TestWavesThatAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Table: newTable(), Copier: &copier{}, Mailboxes: mailboxes{}, Requests: newTable()})
		if _, err := c.ApproveWave(t.Context(), "w1", "olga"); !errors.Is(err, ErrNoWave) {
			t.Errorf("approving an empty wave: %v", err)
		}
		if _, err := c.SetWave(t.Context(), "w1", time.Now()); !errors.Is(err, ErrNoWave) {
			t.Errorf("setting an empty wave: %v", err)
		}
		if _, err := c.Waves(t.Context(), "w1"); !errors.Is(err, ErrNoWave) {
			t.Errorf("showing an empty wave: %v", err)
		}
		if ws, err := c.Waves(t.Context(), ""); err != nil || len(ws) != 0 {
			t.Errorf("%+v, %v", ws, err)
		}
	})
}

// TestWaveStopsByItself: after so many failures in a row nobody of the wave is
// held, users are kept in sync, others go on; it survives a restart, and goes on
// at once when an operator says so.
func TestWaveStopsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		users := append(inWave("w1", 8, router.StateReady), router.User{Address: "other@example.org", State: router.StateReady, Wave: "w2"})
		tab, cop := newTable(users...), &copier{}
		var broken atomic.Bool
		broken.Store(true)
		cop.pass = func(user string, _ int, final bool) (backfill.Report, error) {
			if broken.Load() && final && user != "other@example.org" {
				return backfill.Report{}, errors.New("new: over quota")
			}
			return backfill.Report{}, nil
		}
		var told []Pause
		cfg := Config{StopAfter: 3, MaxHeld: 1, RetryFirst: time.Hour, Hooks: Hooks{Stopped: func(p Pause) { told = append(told, p) }}}
		ctx, cancel := context.WithCancel(t.Context())
		cfg.Table, cfg.Copier, cfg.Mailboxes, cfg.Requests = tab, cop, mailboxes{}, tab
		first, done := New(cfg), make(chan error)
		go func() { done <- first.Run(ctx) }()
		for _, w := range []string{"w1", "w2"} {
			if _, err := first.ApproveWave(ctx, w, "olga"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Minute)
		if n := len(tab.holds()); n != 4 { // three of w1, one of w2
			t.Errorf("%d holds, want 4", n)
		}
		if len(told) != 1 || told[0].By != Itself || !strings.Contains(told[0].Reason, "3 attempts at a flip failed in a row") || !strings.Contains(told[0].Reason, "over quota") {
			t.Errorf("told: %+v", told)
		}
		if tab.state("other@example.org") != router.StateNew {
			t.Error("another wave stopped too")
		}
		before, _ := cop.seen()
		time.Sleep(5 * time.Minute)
		if after, _ := cop.seen(); len(after) < len(before)+4*5 { // five users who did not fail
			t.Errorf("%d passes in five minutes: users of the stopped wave are not kept in sync", len(after)-len(before))
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}

		c := conduct(t, tab, cop, cfg)
		time.Sleep(3 * time.Hour)
		ws, err := c.Waves(t.Context(), "w1")
		if err != nil || ws[0].State != WavePaused || ws[0].Paused.By != Itself || ws[0].FailedInRow != 3 || len(ws[0].Failing) != 3 {
			t.Errorf("after a restart: %+v, %v", ws, err)
		}
		if n := len(tab.holds()); n != 4 {
			t.Errorf("%d holds after a restart", n)
		}
		broken.Store(false)
		if known, err := c.ResumeFlips(t.Context(), "w1"); !known || err != nil {
			t.Errorf("resume: %v, %v", known, err)
		}
		time.Sleep(10 * time.Second)
		if n := tab.count(router.StateNew); n != 9 {
			t.Errorf("%d users are new after the end of the stop", n)
		}
	})
}

// TestWaveStopsByShare: every fourth user fails, never three in a row.
func TestWaveStopsByShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(inWave("w1", 16, router.StateReady)...), &copier{took: time.Second}
		cop.pass = func(user string, _ int, final bool) (backfill.Report, error) {
			if final && strings.Contains("u01@example.org u05@example.org u09@example.org u13@example.org", user) {
				return backfill.Report{}, errors.New("no")
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{StopAfter: 5, StopShare: 0.15, MaxHeld: 1, RetryFirst: time.Hour})
		if _, err := c.ApproveWave(t.Context(), "w1", "olga"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		ws, err := c.Waves(t.Context(), "w1")
		if err != nil || ws[0].State != WavePaused || !strings.Contains(ws[0].Paused.Reason, "failed for 3 of 16 users") {
			t.Errorf("%+v, %v", ws, err)
		}
	})
}

// TestPauseOfFlips: nobody is held after it, who is held is carried to his end,
// and who is not is kept in sync.
func TestPauseOfFlips(t *testing.T) {
	for _, flips := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			tab, cop := newTable(inWave("w1", 6, router.StateReady)...), &copier{took: time.Second}
			c := conduct(t, tab, cop, Config{MaxHeld: 2})
			if _, err := c.ApproveWave(t.Context(), "w1", "olga"); err != nil {
				t.Fatal(err)
			}
			for tab.count(router.StateCutover) < 2 {
				time.Sleep(10 * time.Millisecond)
			}
			if err := c.Pause(t.Context(), Pause{By: "olga", Reason: "fire alarm", Flips: flips}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if n, begun := tab.count(router.StateNew), len(tab.holds()); n != 2 || begun != 2 {
				t.Errorf("flips %v: %d users are new, %d holds began", flips, n, begun)
			}
			passes := func() (n int) { // who is new is swept for stragglers in any case
				for _, u := range inWave("w1", 6, "") {
					if tab.state(u.Address) == router.StateReady {
						n += cop.passesOf(u.Address)
					}
				}
				return n
			}
			before := passes()
			time.Sleep(5 * time.Minute)
			if after := passes(); after > before != flips {
				t.Errorf("flips %v: %d passes, then %d", flips, before, after)
			}
			resume := c.Resume
			if flips {
				resume = c.ResumeFlips
			}
			if known, err := resume(t.Context(), ""); !known || err != nil {
				t.Errorf("resume: %v, %v", known, err)
			}
			time.Sleep(time.Minute)
			if n := tab.count(router.StateNew); n != 6 {
				t.Errorf("flips %v: %d users are new after the end", flips, n)
			}
		})
	}
}

// slowHolds is a table in which each hold takes until it is released.
type slowHolds struct {
	*table
	begun   chan string
	release chan struct{}
}

func (s *slowHolds) SetUser(ctx context.Context, u router.User, c router.Change) (router.User, int, error) {
	if u.State == router.StateCutover {
		s.begun <- u.Address
		<-s.release
	}
	return s.table.SetUser(ctx, u, c)
}

// TestPauseWhileTheHoldIsSaid: a pause comes back when it is known who is held,
// and not one more is after it.
func TestPauseWhileTheHoldIsSaid(t *testing.T) {
	tab := &slowHolds{newTable(inWave("w1", 4, router.StateReady)...), make(chan string, 10), make(chan struct{})}
	tab.setBusy("u00@example.org", 1)
	c := New(Config{Table: tab, Copier: &copier{}, Mailboxes: mailboxes{}, Requests: tab, Concurrency: 2})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	if _, err := c.ApproveWave(ctx, "w1", "olga"); err != nil {
		t.Fatal(err)
	}
	<-tab.begun
	paused := make(chan error)
	go func() { paused <- c.Pause(ctx, Pause{By: "olga", Flips: true}) }()
	select {
	case <-paused:
		t.Fatal("the pause came back while it was not known whether a user is held")
	case <-time.After(100 * time.Millisecond):
	}
	close(tab.release)
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	began := len(tab.holds())
	<-time.After(300 * time.Millisecond)
	if n := len(tab.holds()); n != began || n == 0 || n > 2 {
		t.Errorf("%d holds began before the pause came back, %d after it", began, n-began)
	}
	cancel()
	<-done
}

// TestFlippedByHandInTheMiddle: an operator sets a user new while the pass before
// his hold runs.
func TestFlippedByHandInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(inWave("w1", 2, router.StateReady)...), &copier{took: time.Minute}
		c := conduct(t, tab, cop, Config{MaxHeld: 1, StopAfter: 1})
		time.Sleep(time.Second) // the first pass is one of a user who is ready
		if _, err := c.ApproveWave(t.Context(), "w1", "olga"); err != nil {
			t.Fatal(err)
		}
		first, second := "u00@example.org", "u01@example.org"
		for found := false; !found; time.Sleep(10 * time.Second) {
			c.pace.mu.Lock()
			for m := range c.pace.trying {
				found = m.snapshot().Phase == PhaseCopy // the pass before the hold
				if m.user == second {
					first, second = second, first
				}
			}
			c.pace.mu.Unlock()
		}
		u, _ := tab.User(t.Context(), first)
		u.State = router.StateNew
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateReady, To: router.StateNew, By: "olga", Forced: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		if got := tab.way(first); got != "new" {
			t.Errorf("the user went %q", got)
		}
		if got := tab.way(second); got != "cutover new" {
			t.Errorf("the other user went %q: the wave was stopped, or his turn was lost", got)
		}
	})
}
