package disk

import (
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// TestLongFlip holds and flips a user with CROSSFADE_QUEUED messages, and
// shows how long others wait meanwhile.
func TestLongFlip(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("CROSSFADE_QUEUED"))
	if err != nil {
		t.Skip("SKIPPED: set CROSSFADE_QUEUED to a number of messages to measure a flip")
	}
	s := open(t, t.TempDir(), Options{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range n / 50 {
				if _, err := tryPut(t, s, 100, "big@example.org"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	u := router.User{Address: "big@example.org", Kind: router.KindMailbox}
	for _, st := range []router.State{router.StateCutover, router.StateNew} {
		u.State = st
		start := time.Now()
		if u, _, err = s.SetUser(ctx, u, router.Change{}); err != nil {
			t.Fatal(err)
		}
		took, worst := time.Since(start), time.Duration(0)
		filed := queue.Stats{}
		for filed.Routes[mail.Old] > 1 || filed.Messages == 0 || st == router.StateNew && filed.States[queue.Held] > 0 {
			at := time.Now()
			mustPut(t, s, 100, "small@example.org")
			l, err := s.Claim(ctx, mail.Old, 1)
			if err == nil && l.Items[0].User != "small@example.org" {
				t.Fatalf("claim gave %+v", l.Items)
			}
			if err == nil {
				err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
			}
			if err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(at))
			if filed, err = s.Stats(ctx); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: SetUser took %v, all is filed after %v; meanwhile a put, claim and settle for another user took %v at worst", st, took, time.Since(start), worst)
	}
}
