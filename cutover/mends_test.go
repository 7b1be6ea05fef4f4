package cutover

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// TestAskedAgainIsNoFailure: an operator who asks again while the passes before a rollback run, or while a sweep does,
// ends them, and that is no failed attempt: nothing waits, and nothing is counted.
func TestAskedAgainIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable(router.User{Address: alice, State: router.StateNew})
		cop := &longCopier{copier: &copier{}, free: make(chan struct{})}
		c := conductWith(t, tab, cop, Config{Hooks: Hooks{Failed: func() { t.Error("a failure is counted") }}})
		rollBack(t, c, alice)
		time.Sleep(5 * time.Second)
		for range 3 { // each ends the pass of before
			rollBack(t, c, alice)
			time.Sleep(5 * time.Second)
		}
		if s, _ := c.StatusOf(alice); s.Failures != 0 || s.Err != "" || s.Attempts != 0 {
			t.Errorf("%+v", s)
		}
		cop.release()
		time.Sleep(5 * time.Second) // and not after the time that a failed attempt waits
		if tab.way(alice) != "rollback old" {
			t.Errorf("the user went %q", tab.way(alice))
		}
	})
}

// longCopier has passes from new to old that last until they are called off, or released.
type longCopier struct {
	*copier
	free chan struct{}
}

func (l *longCopier) release() { close(l.free) }

func (l *longCopier) Pass(ctx context.Context, job backfill.Job, o backfill.Options) (backfill.Report, error) {
	if !o.Back {
		return l.copier.Pass(ctx, job, o)
	}
	select {
	case <-l.free:
		return backfill.Report{}, nil
	case <-ctx.Done():
		return backfill.Report{}, ctx.Err()
	}
}

// TestWhoFailsGivesHisTurnAway: with a pace of one at a time, a user whose turn it is, who waits for somebody to be
// released and whose mailbox fails meanwhile, does not keep the others waiting until his next try.
func TestWhoFailsGivesHisTurnAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bob, carol = "bob@example.org", "carol@example.org"
		tab, cop := newTable(router.User{Address: carol, State: router.StateReady}), &copier{took: time.Second}
		var broken atomic.Bool
		cop.pass = func(user string, _ int, _ bool) (backfill.Report, error) {
			if user == alice && broken.Load() {
				return backfill.Report{}, errors.New("old is in pieces")
			}
			return backfill.Report{}, nil
		}
		byHand := func(to router.State) {
			u, err := tab.User(t.Context(), carol)
			if err != nil {
				t.Fatal(err)
			}
			from := u.State
			u.State = to
			if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: from, To: to, By: "olga", Forced: true}); err != nil {
				t.Fatal(err)
			}
		}
		byHand(router.StateCutover)
		c := conduct(t, tab, cop, Config{MaxHeld: 1, RetryFirst: time.Hour, RetryMax: 2 * time.Hour})
		start(t, c, alice, false)
		time.Sleep(time.Minute)
		broken.Store(true)
		time.Sleep(5 * time.Minute)
		if s, _ := c.StatusOf(alice); s.Failures != 1 || s.State != router.StateReady {
			t.Fatalf("%+v", s)
		}
		start(t, c, bob, false)
		time.Sleep(time.Minute)
		byHand(router.StateNew)
		time.Sleep(5 * time.Minute)
		if tab.state(bob) != router.StateNew {
			s, _ := c.StatusOf(bob)
			t.Errorf("bob is %s: %+v", tab.state(bob), s)
		}
	})
}

// TestRollbackOnNodesWaitsForNoPause: a node takes up a user who is to be rolled back although his wave, or everything,
// is paused: it is forward that a pause forbids.
func TestRollbackOnNodesWaitsForNoPause(t *testing.T) {
	for _, wave := range []string{"", "w1"} {
		synctest.Test(t, func(t *testing.T) {
			tab := newTable(router.User{Address: alice, State: router.StateDone, Wave: "w1"})
			b, g := newBooks(tab), newGuarded(nil)
			n := runNode(t, b, g, "a", Config{Window: -1})
			if err := n.Pause(t.Context(), Pause{Wave: wave, By: "olga"}); err != nil {
				t.Fatal(err)
			}
			rollBack(t, n.Conductor, alice)
			time.Sleep(time.Minute)
			if tab.way(alice) != "rollback old" {
				t.Errorf("pause of %q: the user went %q", wave, tab.way(alice))
			}
		})
	}
}
