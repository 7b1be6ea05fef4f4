package backfill

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill/imapconn"
)

// TestSeatsAreShared: nobody gets more than there are but who is in a hurry, who
// never waits, and further lanes get none while somebody waits.
func TestSeatsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &seats{all: 4}
		if err := errors.Join(s.take(t.Context(), 2, patient), s.take(t.Context(), 2, patient)); err != nil {
			t.Fatal(err)
		}
		var got []string
		wait := func(ctx context.Context, name string, h hurry) {
			go func() {
				if s.take(ctx, 2, h) == nil {
					got = append(got, name)
				}
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait(ctx, "gone", patient)
		wait(t.Context(), "user", patient)
		wait(t.Context(), "held", held)
		if s.try(1) || !s.crowded() || len(got) != 1 || got[0] != "held" || s.taken != 6 {
			t.Fatalf("%v, %d taken", got, s.taken)
		}
		cancel()
		synctest.Wait()
		s.give(2)
		synctest.Wait()
		if len(got) != 1 || s.taken != 4 {
			t.Errorf("%v, %d taken", got, s.taken)
		}
		s.give(2)
		synctest.Wait()
		if len(got) != 2 || got[1] != "user" || s.crowded() || s.taken != 4 {
			t.Errorf("%v, %d taken", got, s.taken)
		}
	})
}

// TestSeatsForThoseSomebodyWaitsFor: while first copies have all connections that
// they may have, a user who is ready is followed.
func TestSeatsForThoseSomebodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &seats{all: 40}
		var copies, tails atomic.Int32
		for range 30 {
			go func() {
				if s.take(t.Context(), dstSeats, patient) == nil {
					copies.Add(1)
				}
			}()
		}
		synctest.Wait()
		for range 3 {
			go func() {
				if s.take(t.Context(), dstSeats, prompt) == nil {
					tails.Add(1)
				}
			}()
		}
		synctest.Wait()
		if copies.Load() != 18 || tails.Load() != 2 {
			t.Errorf("%d first copies and %d passes that somebody waits for are under way", copies.Load(), tails.Load())
		}
		s.give(dstSeats)
		synctest.Wait()
		if copies.Load() != 18 || tails.Load() != 3 {
			t.Errorf("the next connections: %d, %d", copies.Load(), tails.Load())
		}
		for range 33 {
			s.give(dstSeats)
			synctest.Wait()
		}
	})
}

// TestSeatsAfterARefusal: a server that refuses a connection is asked for fewer
// for a while, and then for as many as before.
func TestSeatsAfterARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &seats{all: 40}
		for range 3 {
			if err := s.take(t.Context(), 2, patient); err != nil {
				t.Fatal(err)
			}
		}
		s.refused(errors.New("connection refused"), 2) // it is down: that says nothing of how many it takes
		if !s.try(2) {
			t.Fatal("the bound was lowered")
		}
		s.refused(&imapconn.LoginError{Answer: imapconn.Error{Text: "Maximum number of connections from user+IP exceeded"}}, 2)
		s.give(2)
		if s.try(1) {
			t.Error("a connection more than the server took")
		}
		done := make(chan error, 1)
		go func() { done <- s.take(t.Context(), 2, patient) }()
		time.Sleep(lowTime - time.Second)
		select {
		case <-done:
			t.Error("it got one while the bound was low")
		default:
		}
		time.Sleep(time.Minute)
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("the bound stays low")
		}
	})
}

// TestOneUserIsEnoughForASmallBound: a bound below what a user needs lets one
// through at a time.
func TestOneUserIsEnoughForASmallBound(t *testing.T) {
	s := &seats{all: 1}
	if err := s.take(t.Context(), 2, patient); err != nil || s.try(1) {
		t.Errorf("%v, or a second one got through", err)
	}
}

// TestServerSlowsEverybody: what a server says of itself holds for all passes,
// what it says of an account for that one.
func TestServerSlowsEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &seats{}
		for text, all := range map[string]bool{
			"[THROTTLED] Too many requests":                     false,
			"[UNAVAILABLE] Server Busy, retry after 30 seconds": true,
		} {
			began := time.Now()
			if err := (pauser{&throttle{}, s, SideSource}).Pause(t.Context(), &imapconn.Error{Status: "NO", Text: text}); err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			s.mu.Lock()
			until := s.paused
			s.mu.Unlock()
			if (!until.IsZero() && !until.Before(began.Add(took))) != all {
				t.Errorf("%q: others wait until %v", text, until)
			}
			s.paused = time.Time{}
		}
		s.slow(time.Minute)
		began := time.Now()
		if err := s.calm(t.Context()); err != nil || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestHeldUserHasNoRate: the last passes over a held user are not measured out
// with the copies of others, which take all that there is.
func TestHeldUserHasNoRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Copier{Shared: NewShared(0, Rate{Bytes: 1000}, Rate{Messages: 1})}
		for _, final := range []bool{false, true} {
			p := &pass{c: c, o: Options{Final: final}, day: &day{}}
			began := time.Now()
			if err := errors.Join(p.takeSource(t.Context(), 1, 60_000), p.takeDest(t.Context(), 60, 1)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); final != (took == 0) {
				t.Errorf("final: %v, took %v", final, took)
			}
		}
	})
}

// TestInventoryCountsAsNoPass: who only looks is not counted as at work, nor
// taken off those who are.
func TestInventoryCountsAsNoPass(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &Copier{}
	if _, err := c.Inventory(ctx, Job{}); err == nil {
		t.Fatal("no server, and no error")
	}
	if n := c.together().passes.Load(); n != 0 {
		t.Errorf("%d passes", n)
	}
}
