package cutover

import (
	"context"
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

// order has all turns wait for one place, and gives the order in which they get
// it.
func order(t *testing.T, p *places, names []string, turns map[string]turn) []string {
	t.Helper()
	p.all = 1
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := p.take(ctx, turn{}, func() {}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, name := range names {
		go func() {
			if p.take(ctx, turns[name], func() {}) == nil {
				got = append(got, name)
				p.giveBack()
			}
		}()
		synctest.Wait()
	}
	p.given, p.first = 0, 0
	p.giveBack()
	synctest.Wait()
	return got
}

func TestOrderOfPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := map[string]turn{
			"tail1": {work: workTail}, "tail2": {work: workTail}, "flip1": {work: workFlip}, "flip2": {work: workFlip, wave: "w9"},
			"small": {work: workFirst, wave: "w2", size: octets(10)}, "whale": {work: workFirst, wave: "w2", size: octets(1000)}, "unknown": {work: workFirst, wave: "w2"},
			"large": {work: workFirst, wave: "w2", size: octets(100)}, "later": {work: workFirst, wave: "w10", size: octets(9999)}, "named": {work: workFirst},
		}
		names := []string{"later", "small", "unknown", "tail1", "large", "whale", "flip1", "named", "tail2", "flip2"}
		got := strings.Join(order(t, &places{}, names, turns), " ")
		// Flips, then tails, with a first copy at each fourth place; among first
		// copies the one named by itself, then w2: by turns who has waited longest and
		// the largest; w10 at the end.
		if want := "flip1 flip2 tail1 named tail2 small whale unknown large later"; got != want {
			t.Errorf("places went to\n%s, want\n%s", got, want)
		}
	})
}

// TestNobodyStarves: whales that keep coming, and ready users without end, do
// not keep a small mailbox from its place.
func TestNobodyStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &places{all: 1}
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		run := func(name string, tn turn, again bool) {
			for ctx.Err() == nil {
				if p.take(ctx, tn, func() {}) != nil {
					return
				}
				got = append(got, name)
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
				p.giveBack()
				if !again {
					return
				}
			}
		}
		for range 20 {
			go run("tail", turn{work: workTail}, true)
			go run("whale", turn{work: workFirst, size: octets(1 << 40)}, true)
		}
		time.Sleep(time.Millisecond)
		go run("small", turn{work: workFirst, size: octets(1)}, false)
		time.Sleep(10 * time.Minute)
		cancel()
		synctest.Wait()
		if n := slices.Index(got, "small"); n < 0 || n > 200 {
			t.Errorf("the small mailbox had its turn at %d of %d", n, len(got))
		}
	})
}

func TestCompareWaves(t *testing.T) {
	sorted := []string{"", "1", "2", "10", "w1", "w2", "w02b", "w10", "x"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := compareWaves(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
}

// TestPause: a pause ends passes, survives a restart, and is over with Resume;
// who is held goes on.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := router.User{Address: "held@example.org", State: router.StateCutover, Wave: "w1"}
		tab := newTable(router.User{Address: alice, State: router.StateSyncing, Wave: "w1"},
			router.User{Address: "bob@example.org", State: router.StateSyncing, Wave: "w2"}, held)
		cop := &copier{took: time.Hour}
		first := New(Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab, MaxHold: 24 * time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- first.Run(ctx) }()
		time.Sleep(time.Minute)
		if n := cop.running(); n != 3 {
			t.Fatalf("%d passes run, want those of 3 users", n)
		}
		if err := first.Pause(ctx, Pause{Wave: "w1", By: "test", Reason: "office hours"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		st, _ := first.StatusOf(alice)
		if n := cop.running(); n != 2 || !strings.Contains(st.Paused, "wave w1, by test since") || !strings.HasSuffix(st.Paused, ": office hours") || st.Attempts != 0 {
			t.Errorf("%d passes run after the pause of a wave, want 2; status %+v", n, st)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}

		c := conduct(t, tab, cop, Config{MaxHold: 24 * time.Hour})
		time.Sleep(time.Minute)
		if n := cop.running(); n != 2 {
			t.Errorf("%d passes run after a restart, want those of the held user and of the other wave", n)
		}
		if got := fmt.Sprint(c.Pauses()); !strings.Contains(got, "wave w1") {
			t.Errorf("paused after a restart: %s", got)
		}
		if known, err := c.Resume(t.Context(), "w1"); !known || err != nil {
			t.Errorf("resume: %v %v", known, err)
		}
		synctest.Wait()
		st, _ = c.StatusOf(alice)
		if n := cop.running(); n != 3 || st.Paused != "" {
			t.Errorf("%d passes run after the end of the pause, want 3; status %+v", n, st)
		}
		if known, err := c.Resume(t.Context(), "w1"); known || err != nil {
			t.Errorf("a second resume: %v %v", known, err)
		}
	})
}

// TestPauseSaidElsewhere: another node wrote the pause into the store.
func TestPauseSaidElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(router.User{Address: alice, State: router.StateSyncing}), &copier{took: time.Hour}
		conduct(t, tab, cop, Config{})
		other := New(Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab})
		time.Sleep(time.Minute)
		if err := other.Pause(t.Context(), Pause{By: "test"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * pauseTime)
		if n := cop.running(); n != 0 {
			t.Errorf("%d passes run", n)
		}
		if _, err := other.Resume(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * pauseTime)
		if n := cop.running(); n != 1 {
			t.Errorf("%d passes run after the end", n)
		}
	})
}

// TestPausedBeforeTheHold: a user who was to flip does not, and flips later.
func TestPausedBeforeTheHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(), &copier{took: time.Minute}
		cop.pass = func(string, int, bool) (backfill.Report, error) { return backfill.Report{}, nil }
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, false)
		time.Sleep(90 * time.Second) // in the pass before the hold
		if err := c.Pause(t.Context(), Pause{By: "test"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got := tab.state(alice); got != router.StateReady {
			t.Errorf("the user is %s", got)
		}
		if _, err := c.Resume(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got := tab.state(alice); got != router.StateNew {
			t.Errorf("the user is %s after the pause", got)
		}
	})
}

func (c *copier) running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.atOnce
}

func octets(n int64) *atomic.Int64 {
	var v atomic.Int64
	v.Store(n)
	return &v
}
