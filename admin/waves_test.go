package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"crossfade/cutover"
	"crossfade/router"
)

func TestWaves(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(operateToken), t.Context()
	ws, err := c.Waves(ctx)
	if err != nil || len(ws) != 1 || ws[0].Name != "one" {
		t.Fatalf("%+v, %v", ws, err)
	}
	later, past := time.Now().Add(time.Hour).Format(time.RFC3339), "2020-01-01T00:00:00Z"
	w, err := c.ChangeWave(ctx, "one", WaveChange{NotBefore: &later})
	if err != nil || w.NotBefore.IsZero() || w.Note != "" {
		t.Errorf("%+v, %v", w, err)
	}
	if w, err = c.ChangeWave(ctx, "one", WaveChange{NotBefore: &past}); err != nil || !strings.Contains(w.Note, "over already") {
		t.Errorf("a time in the past: %+v, %v", w, err)
	}
	if a, err := c.ApproveWave(ctx, "one", "go"); err != nil || a.ApprovedBy != "olga" {
		t.Errorf("%+v, %v", a, err)
	}
	for what, f := range map[string]func() error{
		"approve": func() error { _, err := c.ApproveWave(ctx, "none", ""); return err },
		"change":  func() error { _, err := c.ChangeWave(ctx, "none", WaveChange{NotBefore: &later}); return err },
		"show":    func() error { _, err := c.Wave(ctx, "none"); return err },
		"report":  func() error { _, err := c.CutoverReport(ctx, "none"); return err },
	} {
		if p := wantProblem(t, f(), ProblemNoUser); p.Status != http.StatusNotFound || p.Hint == "" {
			t.Errorf("%s of a wave that is none: %+v", what, p)
		}
	}
	wrong := "tomorrow"
	_, err = c.ChangeWave(ctx, "one", WaveChange{NotBefore: &wrong})
	wantProblem(t, err, ProblemInvalid)
	_, err = c.ChangeWave(ctx, "one", WaveChange{})
	wantProblem(t, err, ProblemInvalid)
	_, err = r.client(readToken).ApproveWave(ctx, "one", "")
	wantProblem(t, err, ProblemForbidden)
	if rec := r.records(); rec[len(rec)-1].Action != "change-wave" && rec[0].Action != "approve-wave" {
		t.Errorf("audit: %+v", rec)
	}
	if rep, err := c.CutoverReport(ctx, "one"); err != nil || len(rep.Users) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestStartOfAWaveApproves: whoever starts a wave all the way has said the word
// for it, whoever only copies it has not.
func TestStartOfAWaveApproves(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(operateToken), t.Context()
	if _, err := c.StartWave(ctx, "one", MoveRequest{Sync: true}); err != nil {
		t.Fatal(err)
	}
	if w, err := c.Wave(ctx, "one"); err != nil || w.ApprovedBy != "" {
		t.Errorf("%+v, %v", w, err)
	}
	if _, err := c.StartWave(ctx, "one", MoveRequest{}); err != nil {
		t.Fatal(err)
	}
	if w, err := c.Wave(ctx, "one"); err != nil || w.ApprovedBy != "olga" {
		t.Errorf("%+v, %v", w, err)
	}
}

func TestPauseOfFlips(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(operateToken), t.Context()
	paused, err := c.PauseCutover(ctx, BackfillPause{Wave: "one", Reason: "fire alarm"})
	if err != nil || len(paused) != 1 || !paused[0].Flips || paused[0].By != "olga" {
		t.Errorf("%+v, %v", paused, err)
	}
	_, err = c.ResumeCutover(ctx, "")
	if p := wantProblem(t, err, ProblemRefused); !strings.Contains(p.Detail, "flips are not paused for everybody") {
		t.Errorf("%+v", p)
	}
	if paused, err = c.ResumeCutover(ctx, "one"); err != nil || len(paused) != 0 {
		t.Errorf("%+v, %v", paused, err)
	}
}

// TestAlarmOfAWave: a wave that stopped by itself is an alarm of the stats, one
// that an operator paused is none.
func TestAlarmOfAWave(t *testing.T) {
	r := newRig(t, nil)
	r.conductor.paused = []cutover.Pause{{Wave: "one", By: cutover.Itself, Flips: true, Reason: "5 attempts failed"}, {Wave: "two", By: "olga", Flips: true}}
	st, err := r.client(readToken).Stats(t.Context())
	if err != nil || len(st.Alarms) != 1 || st.Alarms[0].Object != "one" || st.Alarms[0].Text != "5 attempts failed" {
		t.Errorf("%+v, %v", st.Alarms, err)
	}
}

func TestPlanOfMoves(t *testing.T) {
	r := newRig(t, nil)
	c, ctx := r.client(operateToken), t.Context()
	p, err := c.PlanCutover(ctx, []string{"anna@example.org", "x@foreign.test"}, "")
	if err != nil || p.Going != 1 || len(p.Users) != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, m := range p.Users {
		if foreign := m.User == "x@foreign.test"; foreign != (len(m.WhyNot) > 0) {
			t.Errorf("%+v", m)
		}
	}
	_, err = c.PlanCutover(ctx, []string{"anna@example.org", "anna@example.org"}, "")
	wantProblem(t, err, ProblemInvalid)
	_, err = c.PlanCutover(ctx, nil, "")
	wantProblem(t, err, ProblemInvalid)
	if len(r.conductor.requests) != 0 {
		t.Errorf("a plan started %v", r.conductor.requests)
	}
}

// TestWavesAreEvents: who listens hears of approvals.
func TestWavesAreEvents(t *testing.T) {
	r := newRig(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	open, got := make(chan struct{}), make(chan Event, 1)
	go func() {
		_ = r.client(readToken).Listen(ctx, 0, func() { close(open) }, func(e Event) error {
			if e.Kind == EventWave {
				got <- e
			}
			return nil
		})
	}()
	<-open
	if _, err := r.client(operateToken).ApproveWave(ctx, "one", ""); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-got:
		var w cutover.Wave
		if err := json.Unmarshal(e.Data, &w); err != nil || w.ApprovedBy != "olga" {
			t.Errorf("%s", e.Data)
		}
	case <-ctx.Done():
		t.Error("no event")
	}
}

// TestNobodyLeavesARunningWave: a user who is on his way in a wave that is under way
// is not put into another, neither by hand nor by an import; others are.
func TestNobodyLeavesARunningWave(t *testing.T) {
	r := newRig(t, nil)
	waves := r.server.cfg.Waves.(*memWaves)
	set := func(user, wave string, st router.State) {
		u := r.table.users[user]
		u.Wave, u.State = wave, st
		r.table.users[user] = u
	}
	set("anna@example.org", "one", router.StateReady)
	set("cleo@example.org", "one", router.StateOld)
	c, ctx, two := r.client(adminToken), t.Context(), "two"
	csv := "address,wave\nanna@example.org,two\ncleo@example.org,two\n"

	waves.wave.State = cutover.WaveRunning
	_, err := c.ChangeUser(ctx, "anna@example.org", UserPatch{Wave: &two})
	if p := wantProblem(t, err, ProblemRefused); !strings.Contains(p.Detail, "in the wave one, which is under way") {
		t.Errorf("%+v", p)
	}
	_, err = c.ImportUsers(ctx, strings.NewReader(csv), ImportOptions{})
	if p := wantProblem(t, err, ProblemBadCSV); len(p.Errors) != 1 || !strings.Contains(p.Errors[0].Message, "anna@example.org is ready in the wave one") {
		t.Errorf("%+v", p)
	}
	if r.table.users["cleo@example.org"].Wave != "one" {
		t.Error("an import that was refused changed a user")
	}
	out, err := c.ImportUsers(ctx, strings.NewReader(csv), ImportOptions{KeepGoing: true})
	if err != nil || out.Updated != 1 || out.Skipped != 1 || r.table.users["anna@example.org"].Wave != "one" || r.table.users["cleo@example.org"].Wave != "two" {
		t.Errorf("%+v, %v", out, err)
	}
	waves.wave.State = cutover.WavePlanned
	if _, err = c.ChangeUser(ctx, "anna@example.org", UserPatch{Wave: &two}); err != nil {
		t.Errorf("out of a wave that is only planned: %v", err)
	}
}
