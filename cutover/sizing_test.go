package cutover

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// sizes tells how large mailboxes are.
type sizes map[string]int64

func (s sizes) Plan(_ context.Context, job backfill.Job) (backfill.Plan, error) {
	if s[job.User] == 0 {
		return backfill.Plan{}, fmt.Errorf("no such mailbox")
	}
	return backfill.Plan{User: job.User, Bytes: s[job.User]}, nil
}

func (sizes) Inventory(context.Context, backfill.Job) (backfill.Inventory, error) {
	return backfill.Inventory{}, nil
}

// TestWhalesFirst: of those who wait the largest mailbox has its turn before the
// others, and every second turn is that of who waits longest.
func TestWhalesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var users []router.User
		known := sizes{}
		for i, size := range []int64{5, 1, 2, 900, 3, 800, 0} {
			name := fmt.Sprintf("u%d@example.org", i)
			users = append(users, router.User{Address: name, State: router.StateSyncing, Wave: "w1"})
			known[name] = size << 20
		}
		tab, cop := newTable(users...), &copier{took: time.Minute}
		conduct(t, tab, cop, Config{Concurrency: 1, Looker: known, Tail: 24 * time.Hour})
		time.Sleep(20 * time.Minute)
		passes, most := cop.seen()
		var turns []string // of the first copies: a user's first pass
		for _, p := range passes {
			if !slices.Contains(turns, p) {
				turns = append(turns, p)
			}
		}
		passes = turns
		if a, b := slices.Index(passes, "u3@example.org"), slices.Index(passes, "u5@example.org"); most != 1 || len(passes) < 7 || a < 0 || a > 2 || b < 0 || b > 4 {
			t.Errorf("the whales u3 and u5 had turns %d and %d: %s", a, b, strings.Join(passes, " "))
		}
	})
}

func TestETA(t *testing.T) {
	t0 := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		after time.Duration
		p     backfill.Progress
		want  time.Duration // after t0; 0: not known
	}{
		{time.Minute, backfill.Progress{Bytes: 400, BytesDone: 100, Messages: 2, MessagesDone: 1}, 4 * time.Minute},
		{time.Minute, backfill.Progress{Messages: 30, MessagesDone: 10}, 3 * time.Minute},
		{time.Second, backfill.Progress{Bytes: 400, BytesDone: 100}, 0},
		{time.Minute, backfill.Progress{Bytes: 400}, 0},
		{time.Minute, backfill.Progress{Bytes: 400, BytesDone: 400}, 0},
	} {
		want := time.Time{}
		if tt.want > 0 {
			want = t0.Add(tt.want)
		}
		if got := eta(t0, t0.Add(tt.after), tt.p); !got.Equal(want) {
			t.Errorf("%+v after %v: %v, want %v", tt.p, tt.after, got, want)
		}
	}
}
