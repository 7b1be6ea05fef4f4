package cutover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/router"
)

// looker notes for whom it was asked.
type looker struct{ jobs []backfill.Job }

func (l *looker) Plan(_ context.Context, job backfill.Job) (backfill.Plan, error) {
	l.jobs = append(l.jobs, job)
	return backfill.Plan{User: job.User}, nil
}

func (l *looker) Inventory(_ context.Context, job backfill.Job) (backfill.Inventory, error) {
	l.jobs = append(l.jobs, job)
	return backfill.Inventory{User: job.User}, nil
}

// TestLook: a plan is for anybody, and what a user deletes on the side that he
// reads is his.
func TestLook(t *testing.T) {
	l := &looker{}
	c := New(Config{Table: newTable(router.User{Address: "anna@example.org", State: router.StateNew}, router.User{Address: "bert@example.org", State: router.StateReady}),
		Mailboxes: mailboxes{}, Looker: l})
	for _, user := range []string{"anna@example.org", "bert@example.org", "Nobody@Example.org"} {
		if _, err := c.Plan(t.Context(), user); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Inventory(t.Context(), "anna@example.org"); err != nil {
		t.Error(err)
	}
	if len(l.jobs) != 4 || !l.jobs[0].Settled || l.jobs[1].Settled || l.jobs[2].Settled || l.jobs[2].User != "nobody@example.org" || !l.jobs[3].Settled {
		t.Errorf("%+v", l.jobs)
	}
	if _, err := c.Inventory(t.Context(), "nobody@example.org"); !errors.Is(err, router.ErrNoUser) {
		t.Errorf("the inventory of a user in no table: %v", err)
	}
	if _, err := c.Plan(t.Context(), "nowhere@example.org"); err == nil {
		t.Error("a plan without a mailbox")
	}
}

// TestProblemsAreTold counts and logs each problem once, however often passes meet
// it and whatever the server adds to its words. They were logged in each pass, once a
// minute for users who are ready.
func TestProblemsAreTold(t *testing.T) {
	took := 0
	p := func(uid uint32) backfill.Problem {
		took++
		return backfill.Problem{Folder: "INBOX", UID: uid, Class: backfill.ClassRefused, Text: fmt.Sprintf("no (0.00%d secs)", took)}
	}
	var log bytes.Buffer
	var told [][]backfill.Problem
	m := newMove(New(Config{Log: slog.New(slog.NewTextHandler(&log, nil)), Hooks: Hooks{Passed: func(p Passed) { told = append(told, p.New) }}}), router.User{Address: "a@b"}, Request{})
	for _, pass := range []struct {
		problems []backfill.Problem
		err      error
		fresh    int
	}{
		{[]backfill.Problem{p(1), p(2)}, nil, 2},
		{[]backfill.Problem{p(2), p(3)}, errors.New("cut off"), 1},
		{[]backfill.Problem{p(2), p(3)}, errors.New("cut off"), 0},
		{[]backfill.Problem{p(2), p(3)}, nil, 0},
		{nil, nil, 0},
		{[]backfill.Problem{p(1)}, nil, 1},
	} {
		m.passed(m.status.Started, backfill.Report{Problems: pass.problems}, pass.err)
		if got := told[len(told)-1]; len(got) != pass.fresh {
			t.Errorf("pass %d: %v, want %d new", len(told), got, pass.fresh)
		}
	}
	if n := strings.Count(log.String(), "backfill problem"); n != 4 {
		t.Errorf("%d problems were logged, want 4:\n%s", n, log.String())
	}
	if s := m.snapshot(); s.Classes["refused"] != 1 || s.Passes != 6 || s.Synced.IsZero() {
		t.Errorf("%+v", s)
	}
}
