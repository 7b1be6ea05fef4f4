package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/router"
)

// importWave puts all users of the world into a wave.
func (w *world) importWave(c *admin.Client, wave string) {
	w.t.Helper()
	csv := "address,wave\n"
	for _, u := range w.users {
		csv += u + "," + wave + "\n"
	}
	if _, err := c.ImportUsers(w.t.Context(), strings.NewReader(csv), admin.ImportOptions{Reason: "e2e"}); err != nil {
		w.t.Fatal(err)
	}
}

// held is a time in which a user's mail was held.
type held struct{ from, to time.Time }

// holdsOf reads from the histories when users were held.
func holdsOf(t *testing.T, c *admin.Client, users []string) (out []held) {
	t.Helper()
	for _, u := range users {
		changes, err := c.History(t.Context(), u, 100)
		if err != nil {
			t.Fatal(err)
		}
		var h held
		for _, ch := range slices.Backward(changes) {
			switch {
			case ch.To == router.StateCutover && ch.From != ch.To:
				h.from = ch.At
			case ch.From == router.StateCutover && ch.From != ch.To:
				h.to = ch.At
				out = append(out, h)
			}
		}
	}
	slices.SortFunc(out, func(a, b held) int { return a.from.Compare(b.from) })
	return out
}

// atOnce is how many were held at the same instant, at most.
func atOnce(all []held) (most int) {
	for _, a := range all {
		n := 0
		for _, b := range all {
			if !b.from.After(a.from) && b.to.After(a.from) {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// sampleHeld looks again and again how many users are held, until stop is called,
// which gives the most.
func sampleHeld(t *testing.T, c *admin.Client) (stop func() int64) {
	ctx, cancel := context.WithCancel(t.Context())
	var most atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.Tick(5 * time.Millisecond); ctx.Err() == nil; <-tick {
			if page, err := c.Users(ctx, router.Filter{State: router.StateCutover}, "", 100); err == nil {
				most.Store(max(most.Load(), int64(len(page.Users))))
			}
		}
	}()
	return func() int64 {
		cancel()
		<-done
		return most.Load()
	}
}

// TestWaveWithPace moves a wave of 12 users under a stream of mail: at no instant
// are more than two held, holds begin no closer than the pace says, a pause of
// flips holds nobody more, every message arrives once, and the report is the same
// after a restart.
func TestWaveWithPace(t *testing.T) {
	beside(t)
	const most, every = 2, 200 * time.Millisecond
	w := newWorld(t, 12, 8)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("cutover: {max_held: 2, flips_per_minute: 300, concurrency: 6}")
	d := w.serve()
	w.importWave(d.client, "w1")
	s := &stream{addr: d.smtp, users: w.users, book: w.book, senders: 2, pause: 100 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wait := s.start(ctx)
	sampled := sampleHeld(t, d.client)

	if _, err := d.client.StartWave(t.Context(), "w1", admin.MoveRequest{Sync: true}); err != nil {
		t.Fatal(err)
	}
	w.awaitStates(d.client, router.StateReady, len(w.users))
	if ws, err := d.client.Wave(t.Context(), "w1"); err != nil || ws.State != cutover.WavePlanned {
		t.Errorf("before the approval: %+v, %v", ws, err)
	}
	if _, err := d.client.ApproveWave(t.Context(), "w1", "e2e"); err != nil {
		t.Fatal(err)
	}
	w.awaitStates(d.client, router.StateNew, 3)
	w.pauseFlips(d.client)
	w.awaitStates(d.client, router.StateNew, len(w.users))
	seen := sampled()
	cancel()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused: %v", err)
	}
	drain(t, d.client, time.Minute)
	all := holdsOf(t, d.client, w.users)
	if n := atOnce(all); n > most || n < 1 || seen > most || len(all) < len(w.users) {
		t.Errorf("%d holds, %d at once by the history, %d by looking; want %d at most", len(all), n, seen, most)
	}
	for i := 1; i < len(all); i++ {
		if gap := all[i].from.Sub(all[i-1].from); gap < every-5*time.Millisecond { // the history has milliseconds
			t.Errorf("hold %d began %s after the one before", i, gap)
		}
	}
	before, err := d.client.CutoverReport(t.Context(), "w1")
	if err != nil || before.Total.Flipped != 12 || before.Total.HoldP99 <= 0 || before.Total.Copied < 12*8 {
		t.Errorf("report: %+v, %v", before.Total, err)
	}
	d.stop()
	var sum audit
	for _, u := range w.users {
		sum.add(w.countRead(u, true))
	}
	figure(t, "12 users in a wave, %d held at once; accepted %d; found %d, missing %d, twice %d; hold p50 %s p99 %s",
		atOnce(all), s.accepted.Load(), sum.found, sum.missing, sum.twice, before.Total.HoldP50.Round(time.Millisecond), before.Total.HoldP99.Round(time.Millisecond))

	d = w.serve()
	after, err := d.client.CutoverReport(t.Context(), "w1")
	if err != nil || len(after.Users) != 12 {
		t.Fatalf("the report after a restart: %+v, %v", after, err)
	}
	for i, x := range after.Users {
		y := before.Users[i]
		if x.Copied < y.Copied || !x.Flipped.Equal(y.Flipped) || x.Hold != y.Hold || !x.Started.Equal(y.Started) || x.Holds != y.Holds {
			t.Errorf("after a restart: %+v\nbefore: %+v", x, y)
		}
	}
	if ws, err := d.client.Wave(t.Context(), "w1"); err != nil || ws.State != cutover.WaveFinished || ws.ApprovedBy == "" {
		t.Errorf("at the end: %+v, %v", ws, err)
	}
}

// awaitStates waits until so many users have come to a state, or further.
func (w *world) awaitStates(c *admin.Client, st router.State, n int) {
	w.t.Helper()
	order := []router.State{router.StateOld, router.StateSyncing, router.StateReady, router.StateCutover, router.StateNew, router.StateDone}
	poll(w.t, time.Minute, fmt.Sprintf("%d users %s", n, st), func() (bool, error) {
		stats, err := c.Stats(w.t.Context())
		if err != nil {
			return false, err
		}
		have := 0
		for _, s := range order[slices.Index(order, st):] {
			have += stats.Users[s]
		}
		return have >= n, fmt.Errorf("%v", stats.Users)
	})
}

// pauseFlips pauses flips while users are being flipped, and looks that nobody is
// held behind it, before it lets them go on.
func (w *world) pauseFlips(c *admin.Client) {
	w.t.Helper()
	if _, err := c.PauseCutover(w.t.Context(), admin.BackfillPause{Reason: "e2e"}); err != nil {
		w.t.Fatal(err)
	}
	begun := func() (n int) {
		for _, u := range w.users {
			changes, err := c.History(w.t.Context(), u, 100)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, ch := range changes {
				if ch.To == router.StateCutover {
					n++
				}
			}
		}
		return n
	}
	before := begun()
	w.awaitStates(c, router.StateNew, before) // who is held is carried to his end
	if after := begun(); after != before || before == len(w.users) {
		w.t.Errorf("%d users were held before the pause, %d behind it", before, after-before)
	}
	if _, err := c.ResumeCutover(w.t.Context(), ""); err != nil {
		w.t.Fatal(err)
	}
}

// TestWaveStopsOnErrors: new goes away before a wave flips. The wave stops by
// itself, nobody is held, everything says why, and it goes on when an operator
// says so.
func TestWaveStopsOnErrors(t *testing.T) {
	w := newWorld(t, 6, 4)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("cutover: {stop_after: 4, stop_share: never, concurrency: 3}")
	d := w.serve()
	w.importWave(d.client, "w1")
	if _, err := d.client.StartWave(t.Context(), "w1", admin.MoveRequest{Sync: true}); err != nil {
		t.Fatal(err)
	}
	w.awaitStates(d.client, router.StateReady, 6)
	w.new.Stop(t)
	if _, err := d.client.StartWave(t.Context(), "w1", admin.MoveRequest{}); err != nil {
		t.Fatal(err)
	}
	poll(t, time.Minute, "the stop of the wave", func() (bool, error) {
		st, err := d.client.Stats(t.Context())
		return err == nil && len(st.Alarms) == 1 && st.Alarms[0].Object == "w1", err
	})
	ws, err := d.client.Wave(t.Context(), "w1")
	if err != nil || ws.State != cutover.WavePaused || ws.Paused == nil || ws.Paused.By != cutover.Itself || !strings.Contains(ws.Paused.Reason, "failed in a row") {
		t.Errorf("%+v, %v", ws, err)
	}
	if n := ws.States[router.StateReady]; n != 6 {
		t.Errorf("users by state: %v", ws.States)
	}
	for name, want := range map[string]float64{"crossfade_cutover_wave_stops_total": 1, "crossfade_cutover_waves_stopped": 1, "crossfade_backfill_messages_per_second": 0} {
		if n := w.metric(d, name); n != want {
			t.Errorf("%s is %v, want %v", name, n, want)
		}
	}
	w.new.Start(t)
	if _, err := d.client.ResumeCutover(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	w.awaitStates(d.client, router.StateNew, 6)
	if st, err := d.client.Stats(t.Context()); err != nil || len(st.Alarms) != 0 {
		t.Errorf("alarms at the end: %+v, %v", st.Alarms, err)
	}
	d.stop()
	var sum audit
	for _, u := range w.users {
		sum.add(w.countRead(u, true))
	}
	if sum.missing+sum.twice > 0 || sum.found != 6*4 {
		t.Errorf("found %d, missing %d, twice %d", sum.found, sum.missing, sum.twice)
	}
}
