package backfill

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill/imapconn"
)

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mute := &imapconn.Error{Command: "APPEND", Status: "NO", Code: "THROTTLED", Text: "slow down"}
		th := &throttle{patience: 20 * time.Second}
		began := time.Now()
		for _, want := range []time.Duration{1, 3, 7} {
			if err := th.Pause(t.Context(), mute); err != nil || time.Since(began) != want*time.Second {
				t.Fatalf("%v after %v, want %vs", err, time.Since(began), want)
			}
		}
		th.eased()
		if err := th.Pause(t.Context(), mute); err != nil || time.Since(began) != 8*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		// Lanes that are throttled at once wait once.
		errs := make(chan error, 2)
		for range 2 {
			go func() { errs <- th.Pause(t.Context(), mute) }()
		}
		if err := errors.Join(<-errs, <-errs); err != nil || time.Since(began) != 10*time.Second || th.times() != 5 {
			t.Errorf("%v after %v, %d times", err, time.Since(began), th.times())
		}
		if err := th.Pause(t.Context(), &imapconn.Error{Text: "Suggested Backoff Time: 299961 milliseconds"}); err == nil {
			t.Error("it waited longer than its patience")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		over := errors.New("over")
		cancel(over)
		if err := th.Pause(ctx, mute); !errors.Is(err, over) {
			t.Error(err)
		}
	})
}

func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var none *bucket
		if err := none.take(t.Context(), 1, 1<<40); err != nil {
			t.Error(err)
		}
		began := time.Now()
		b := newBucket(Rate{Bytes: 1000, Messages: 10})
		// More at once than the bucket holds; the first second's are in it.
		if err := b.take(t.Context(), 5, 4000); err != nil || time.Since(began).Round(time.Millisecond) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		began = time.Now()
		if err := b.take(t.Context(), 30, 0); err != nil || time.Since(began).Round(time.Millisecond) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := b.take(ctx, 100, 0); err == nil {
			t.Error("no error with a context that ends before")
		}
	})
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100)
		if n, err := b.take(t.Context(), 70); n != 70 || err != nil {
			t.Fatal(n, err)
		}
		got := make(chan int64)
		go func() {
			n, _ := b.take(t.Context(), 500) // as much as there is at all
			got <- n
		}()
		synctest.Wait()
		select {
		case n := <-got:
			t.Fatalf("%d octets beyond the bound", n)
		default:
		}
		b.give(70)
		if n := <-got; n != 100 {
			t.Errorf("%d octets, want 100", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.take(ctx, 1); err == nil {
			t.Error("no error when the context is over")
		}
	})
}

// TestSizesThatLie: what a server announces in the list is not what is kept in
// memory.
func TestSizesThatLie(t *testing.T) {
	f := &fetcher{keep: true, room: 1000, dir: t.TempDir()}
	defer f.close()
	for uid := range uint32(5) {
		w, err := f.Begin(uid+1, 400)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 400)); err != nil {
			t.Fatal(err)
		}
		if err := f.End(imapconn.Meta{UID: uid + 1}); err != nil {
			t.Fatal(err)
		}
	}
	if f.mem.size != 800 {
		t.Errorf("%d octets in memory, want 800", f.mem.size)
	}
}
