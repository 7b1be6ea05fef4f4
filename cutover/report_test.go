package cutover

import (
	"context"
	"errors"
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

// TestReport: who is new, who failed, who came by force, with figures that are the
// same after a restart.
func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, cop := newTable(append(inWave("w1", 4, router.StateOld), router.User{Address: alice, State: router.StateOld})...), &copier{took: time.Second}
		cop.pass = func(user string, n int, final bool) (backfill.Report, error) {
			switch {
			case user == "u02@example.org" && final:
				return backfill.Report{}, errors.New("new: over quota")
			case n == 0 && user != "u03@example.org":
				return backfill.Report{Copied: 10, Bytes: 100, Problems: []backfill.Problem{{Class: backfill.ClassFlag, Count: 2}}}, nil
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{RetryFirst: time.Hour})
		for _, u := range []string{"u00@example.org", "u01@example.org", "u02@example.org"} {
			start(t, c, u, false)
		}
		u, _ := tab.User(t.Context(), "u03@example.org")
		u.State = router.StateNew
		if _, _, err := tab.SetUser(t.Context(), u, router.Change{From: router.StateOld, To: router.StateNew, By: "olga", Forced: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		live, err := c.Report(t.Context(), "w1")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second) // what is lost of the counts when the process is killed is less
		kept, err := New(Config{Table: tab, Copier: cop, Mailboxes: mailboxes{}, Requests: tab}).Report(t.Context(), "w1")
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range live.Users {
			if y := kept.Users[i]; x.User != y.User || x.Copied != y.Copied || x.Hold != y.Hold || x.Failures != y.Failures || x.Err != y.Err || !x.Flipped.Equal(y.Flipped) {
				t.Errorf("from what is kept: %+v\nlive: %+v", y, x)
			}
		}
		total := kept.Total
		if total.Users != 4 || total.Flipped != 3 || total.Forced != 1 || total.Underway != 1 || total.Failing != 1 || total.Copied != 30 || total.Failures != 1 {
			t.Errorf("%+v", total)
		}
		if total.HoldP50 != 2*time.Second || total.HoldMax != 2*time.Second || total.First.IsZero() {
			t.Errorf("holds: %+v", total)
		}
		if all, err := c.Report(t.Context(), ""); err != nil || len(all.Users) != 4 {
			t.Errorf("of all: %d users, %v: alice was never moved", len(all.Users), err)
		}
		if _, err := c.Report(t.Context(), "none"); !errors.Is(err, ErrNoWave) {
			t.Errorf("of a wave that is none: %v", err)
		}
	})
}

func TestReportFollowsTheHistory(t *testing.T) {
	at := func(m int) time.Time { return time.Date(2026, 11, 21, 8, m, 0, 0, time.UTC) }
	var x UserReport
	var held time.Time
	for _, ch := range []router.Change{
		{From: "old", To: "syncing", At: at(0)}, {From: "syncing", To: "ready", At: at(1)}, {From: "ready", To: "ready", At: at(2)},
		{From: "ready", To: "cutover", At: at(3)}, {From: "cutover", To: "ready", At: at(4)}, {From: "ready", To: "cutover", At: at(5)},
		{From: "cutover", To: "new", At: at(7)}, {From: "new", To: "rollback", At: at(8)}, {From: "rollback", To: "old", At: at(9)},
	} {
		x.follow(ch, &held)
	}
	if x.Holds != 2 || x.Hold != 2*time.Minute || !x.Flipped.Equal(at(7)) || x.RolledBack != 1 || !x.Started.Equal(at(0)) {
		t.Errorf("%+v", x)
	}
	x.follow(router.Change{From: "old", To: "syncing", At: at(20)}, &held)
	if !x.Started.Equal(at(20)) || !x.Flipped.IsZero() || x.RolledBack != 1 || x.Holds != 0 {
		t.Errorf("anew: %+v", x)
	}
}

// TestPlanOfAWave: who goes, in which order, when by the pace, and who cannot.
func TestPlanOfAWave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		later := time.Now().Add(time.Hour).Truncate(time.Second)
		users := []router.User{
			{Address: "ready@example.org", State: router.StateReady, Wave: "w1"},
			{Address: "big@example.org", State: router.StateOld, Wave: "w1"},
			{Address: "small@example.org", State: router.StateOld, Wave: "w1"},
			{Address: "later@example.org", State: router.StateReady, Wave: "w1", NotBefore: later},
			{Address: "new@example.org", State: router.StateNew, Wave: "w1"},
			{Address: "nowhere@example.org", State: router.StateOld, Wave: "w1"},
			{Address: "full@example.org", State: router.StateOld, Wave: "w1"},
			{Address: "other@example.org", State: router.StateReady, Wave: "w2"},
		}
		tab := newTable(users...)
		tab.users["info@example.org"] = router.User{Address: "info@example.org", Kind: router.KindAlias, Targets: []string{"big@example.org"}, Wave: "w1"}
		c := New(Config{Table: tab, Copier: &copier{}, Mailboxes: mailboxes{}, Requests: tab, MaxHeld: 1, FlipsPerMinute: 2, Concurrency: 2})
		if _, err := c.ApproveWave(t.Context(), "w2", "olga"); err != nil {
			t.Fatal(err)
		}
		p, err := c.PlanMoves(t.Context(), []string{"Other@Example.org", "info@example.org", "x"}, "w1")
		if err != nil {
			t.Fatal(err)
		}
		quota := int64(10)
		p.Looked("big@example.org", backfill.Plan{Copy: 6000, CopyBytes: 60 << 20, QuotaLeft: new(int64(1 << 40))}, nil)
		p.Looked("small@example.org", backfill.Plan{Copy: 10, CopyBytes: 1000}, nil)
		p.Looked("full@example.org", backfill.Plan{Copy: 10, CopyBytes: 1000, QuotaLeft: &quota}, nil)
		p.Forecast(time.Now())
		why := map[string]string{}
		var order []string
		for _, m := range p.Users {
			why[m.User] = strings.Join(m.WhyNot, "; ")
			if !m.Flip.IsZero() {
				order = append(order, m.User)
			}
		}
		if got := strings.Join(order, " "); got != "ready@example.org small@example.org big@example.org later@example.org" {
			t.Errorf("order: %s", got)
		}
		for user, want := range map[string]string{"ready@example.org": "", "big@example.org": "", "later@example.org": "not before", "new@example.org": "new already",
			"nowhere@example.org": "no login", "full@example.org": "quota on new has room for 10 of 1000", "other@example.org": "in the wave w2, which is under way",
			"info@example.org": "it is an alias", "x": "no address"} {
			if got, ok := why[user]; !ok || !strings.Contains(got, want) || (want == "") != (got == "") {
				t.Errorf("%s: %q, want %q", user, got, want)
			}
		}
		if gap := p.Users[1].Flip.Sub(p.Users[0].Flip); gap < 30*time.Second {
			t.Errorf("the second user is new %s after the first", gap)
		}
		if p.Going != 4 || p.Messages != 6010 || !p.Ends.Equal(p.Users[3].Flip) || p.Ends.Before(later) {
			t.Errorf("%+v", p)
		}
		if i := slices.IndexFunc(p.Users, func(m PlannedMove) bool { return m.User == "big@example.org" }); p.Users[i].Copy != 32*time.Second {
			t.Errorf("60 MiB at 2 MiB/s take %s", p.Users[i].Copy)
		}
		if n := len(tab.history); n != 0 {
			t.Errorf("a plan made %d changes", n)
		}
		if _, err := c.PlanMoves(t.Context(), []string{alice, "ALICE@example.org"}, ""); !errors.Is(err, ErrTwice) {
			t.Errorf("a user who is named twice: %v", err)
		}
		if _, err := c.PlanMoves(t.Context(), nil, "none"); !errors.Is(err, ErrNoWave) {
			t.Errorf("a wave that is none: %v", err)
		}
	})
}

// farTable answers after a while, and counts.
type farTable struct {
	*table
	lag   time.Duration
	reads atomic.Int64
	fails error
}

func (t *farTable) LoadLedger(ctx context.Context, user string) (map[string][]byte, error) {
	t.reads.Add(1)
	time.Sleep(t.lag)
	return t.table.LoadLedger(ctx, user)
}

func (t *farTable) History(ctx context.Context, user string, limit int) ([]router.Change, error) {
	t.reads.Add(1)
	time.Sleep(t.lag)
	if t.fails != nil {
		return nil, t.fails
	}
	return t.table.History(ctx, user, limit)
}

// TestReportOfMany: users are read several at once, and reported in their order; an error ends it.
func TestReportOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var users []router.User
		for i := range 5000 {
			users = append(users, router.User{Address: fmt.Sprintf("u%04d@example.org", i), State: router.StateNew, Wave: "w"})
		}
		tab := &farTable{table: newTable(users...), lag: time.Millisecond}
		c := New(Config{Table: tab, Requests: tab, Copier: &copier{}, Mailboxes: mailboxes{}})
		began := time.Now()
		rep, err := c.Report(t.Context(), "w")
		if err != nil || len(rep.Users) != 5000 || tab.reads.Load() != 10000 {
			t.Fatalf("%d users, %d reads, %v", len(rep.Users), tab.reads.Load(), err)
		}
		if !slices.IsSortedFunc(rep.Users, func(a, b UserReport) int { return strings.Compare(a.User, b.User) }) {
			t.Error("they are not in the order of the table")
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("10,000 reads of a millisecond took %s", took)
		}
		tab.fails = errors.New("away")
		before := tab.reads.Load()
		if _, err := c.Report(t.Context(), "w"); err == nil || !strings.Contains(err.Error(), "away") || tab.reads.Load()-before > 100 {
			t.Errorf("%v, %d reads behind it", err, tab.reads.Load()-before)
		}
	})
}
