package admin

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"crossfade/router"
)

// TestRollbackOfAWave: those who read new are asked for, the others are skipped;
// the audit log has each.
func TestRollbackOfAWave(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	for user, st := range map[string]router.State{"x@example.org": router.StateNew, "y@example.org": router.StateDone, "z@example.org": router.StateReady} {
		_, _, err := r.table.SetUser(ctx, router.User{Address: user, Kind: router.KindMailbox, State: st, Wave: "back"}, router.Change{To: st, By: "test"})
		check(t, err)
	}
	out, err := r.client(operateToken).RollbackWave(ctx, "back", "changed my mind")
	check(t, err)
	slices.Sort(out.Started)
	if !slices.Equal(out.Started, []string{"x@example.org", "y@example.org"}) || !slices.Equal(out.Skipped, []string{"z@example.org"}) || len(out.Failed) > 0 {
		t.Errorf("%+v", out)
	}
	for _, q := range r.conductor.requests {
		if !q.Rollback || q.Reason != "changed my mind" || q.By == "" {
			t.Errorf("%+v", q)
		}
	}
	asked := 0
	for _, rec := range r.records() {
		if rec.Action == "start-rollback" && rec.Result == ResultOK {
			asked++
		}
	}
	if asked != 2 {
		t.Errorf("%d rollbacks are in the audit log", asked)
	}
}

// TestDoneByHand is refused with what is missing, unless force says so.
func TestDoneByHand(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	_, _, err := r.table.SetUser(ctx, router.User{Address: "x@example.org", Kind: router.KindMailbox, State: router.StateNew}, router.Change{To: router.StateNew, By: "test"})
	check(t, err)
	r.conductor.err = errors.New("the window closes on Friday")
	c := r.client(operateToken)
	var p *Problem
	if _, err := c.SetState(ctx, "x@example.org", StateChange{State: router.StateDone}); !errors.As(err, &p) || p.Type != ProblemNeedsForce || !strings.Contains(p.Detail, "on Friday") {
		t.Errorf("without force: %v", err)
	}
	if _, err := c.SetState(ctx, "x@example.org", StateChange{State: router.StateDone, Force: true}); err != nil {
		t.Errorf("with force: %v", err)
	}
}
