package router

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// ways is the contract's table of states, written once more by hand; a star is
// a way that needs force.
var ways = map[State]string{
	StateOld:      "syncing new*",
	StateSyncing:  "ready old new*",
	StateReady:    "cutover syncing old new*",
	StateCutover:  "new ready old*",
	StateNew:      "done rollback old*",
	StateDone:     "rollback old* new*",
	StateRollback: "old new",
}

func TestSetStateEveryPair(t *testing.T) {
	for _, from := range States() {
		for _, to := range States() {
			for _, force := range []bool{false, true} {
				name := fmt.Sprintf("%s to %s, force %v", from, to, force)
				words := strings.Fields(ways[from])
				plain, forced := slices.Contains(words, string(to)), slices.Contains(words, string(to)+"*")
				table := newTable(User{Address: "ann@example.org", State: from, Epoch: 4, Note: "old news"})
				now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
				r, err := New(Config{Domains: []string{"example.org"}, Now: func() time.Time { return now }}, table)
				if err != nil {
					t.Fatal(err)
				}
				u, busy, err := r.SetState(t.Context(), addr(t, "Ann@example.org"), to, SetRequest{By: "me", Reason: "why", Force: force})
				if !plain && (!forced || !force) {
					var e *TransitionError
					if !errors.As(err, &e) || e.ForceHelps != (forced && !force) || e.From != from || e.To != to {
						t.Errorf("%s: %v", name, err)
					}
					if len(table.history) != 0 {
						t.Errorf("%s: the table was changed", name)
					}
					continue
				}
				if err != nil || busy != 3 || u.State != to || u.Epoch != 5 || !u.Since.Equal(now) || u.Note != "" {
					t.Errorf("%s: %+v, %d, %v", name, u, busy, err)
					continue
				}
				c := table.history[0]
				if c.From != from || c.To != to || c.By != "me" || c.Reason != "why" || c.Forced != (!plain || force && (to.Held() || to == StateDone)) {
					t.Errorf("%s: history %+v", name, c)
				}
			}
		}
	}
}

func TestSetStateMakesUser(t *testing.T) {
	table := newTable()
	r := newRouter(t, PolicyVerify, table)
	u, _, err := r.SetState(t.Context(), addr(t, "new@example.org"), StateSyncing, SetRequest{By: "me"})
	if err != nil || u.Epoch != 1 || u.Kind != KindMailbox || u.State != StateSyncing {
		t.Errorf("%+v, %v", u, err)
	}
	zero := uint64(0)
	if _, _, err := r.SetState(t.Context(), addr(t, "other@example.org"), StateNew, SetRequest{By: "me", Force: true, Epoch: &zero}); err != nil {
		t.Error(err)
	}
	if _, _, err := r.SetState(t.Context(), addr(t, "new@example.com"), StateSyncing, SetRequest{}); !errors.Is(err, ErrNotOurs) {
		t.Error(err)
	}
	if _, _, err := r.SetState(t.Context(), addr(t, "new@example.org"), "nowhere", SetRequest{}); err == nil || !strings.Contains(err.Error(), "unknown state") {
		t.Error(err)
	}
	table.users["bare@example.org"] = User{Address: "bare@example.org", Epoch: 1}
	if u, _, err := r.SetState(t.Context(), addr(t, "bare@example.org"), StateSyncing, SetRequest{}); err != nil || u.State != StateSyncing {
		t.Errorf("a user without a state is one of old: %+v, %v", u, err)
	}
	table.users["list@example.org"] = group("list@example.org", "new@example.org")
	if _, _, err := r.SetState(t.Context(), addr(t, "list@example.org"), StateSyncing, SetRequest{}); !errors.Is(err, ErrNoState) {
		t.Error(err)
	}
}

func TestSetStateRaces(t *testing.T) {
	table := newTable(User{Address: "ann@example.org", Epoch: 1})
	r := newRouter(t, PolicyVerify, table)
	left := 3
	table.before = func() {
		if left--; left >= 0 {
			u := table.users["ann@example.org"]
			u.Epoch++
			table.users["ann@example.org"] = u
		}
	}
	u, _, err := r.SetState(t.Context(), addr(t, "ann@example.org"), StateSyncing, SetRequest{})
	if err != nil || u.Epoch != 5 {
		t.Errorf("it did not start over: %+v, %v", u, err)
	}
	left = 1
	epoch := u.Epoch
	if _, _, err := r.SetState(t.Context(), addr(t, "ann@example.org"), StateReady, SetRequest{Epoch: &epoch}); !errors.Is(err, ErrEpoch) {
		t.Errorf("a named epoch was ignored: %v", err)
	}
	wrong := uint64(99)
	if _, _, err := r.SetState(t.Context(), addr(t, "ann@example.org"), StateReady, SetRequest{Epoch: &wrong}); !errors.Is(err, ErrEpoch) {
		t.Errorf("a wrong epoch was taken: %v", err)
	}
	left = 1 << 30
	if _, _, err := r.SetState(t.Context(), addr(t, "ann@example.org"), StateReady, SetRequest{}); !errors.Is(err, ErrEpoch) {
		t.Errorf("it has to give up: %v", err)
	}
}
