package cutover

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"

	"github.com/google/go-cmp/cmp"
)

// TestUserWaitsForTheDaysLimit: that is no failed attempt, and the copy goes on
// at the time named, by another process too.
func TestUserWaitsForTheDaysLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(19 * time.Hour)
		tab, cop := newTable(), &copier{took: time.Second}
		cop.pass = func(string, int, bool) (backfill.Report, error) {
			if time.Now().Before(until) {
				return backfill.Report{Copied: 100}, fmt.Errorf("copy: %w", &backfill.DayLimit{Side: backfill.SideSource, Limit: 1000, Until: until})
			}
			return backfill.Report{}, nil
		}
		failed := 0
		c := conduct(t, tab, cop, Config{Hooks: Hooks{Failed: func() { failed++ }}})
		start(t, c, alice, false)
		time.Sleep(time.Hour)
		s, _ := c.StatusOf(alice)
		want := "waits for the daily limit of the old server, goes on at " + until.UTC().Format("2006-01-02 15:04 MST")
		if s.Phase != PhaseLimit || s.Limit != want || s.Err != "" || s.Attempts != 0 || !s.Next.Equal(until) || !s.Active() || s.Copied != 100 {
			t.Errorf("%+v", s)
		}
		if c.places.free() != c.places.all {
			t.Error("who waits for a limit has a place")
		}
		if passes, _ := cop.seen(); len(passes) != 1 {
			t.Errorf("passes: %q", passes)
		}
		start(t, c, alice, false) // an operator asks: one pass more
		time.Sleep(time.Minute)
		if o := cop.asked(); len(o) != 2 || !o[0].Insist || !o[1].Insist || o[1].Prompt {
			t.Errorf("%+v", o)
		}
		time.Sleep(19 * time.Hour)
		s, _ = c.StatusOf(alice)
		if tab.state(alice) != router.StateNew || s.Limit != "" || failed != 0 {
			t.Errorf("%s, %d failed: %+v", tab.way(alice), failed, s)
		}
		if o := cop.asked()[2]; o.Insist {
			t.Error("what an operator asked for once is for one pass")
		}
		if o := cop.asked()[3]; !o.Prompt {
			t.Error("the pass before the hold may not use what is spared")
		}
	})
}

// TestLimitInAHold: the user is given back at once, and moved when it goes on.
func TestLimitInAHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		until := time.Now().Add(time.Hour)
		tab, cop := newTable(), &copier{took: time.Second}
		cop.pass = func(_ string, _ int, final bool) (backfill.Report, error) {
			if final && time.Now().Before(until) {
				return backfill.Report{}, &backfill.DayLimit{Side: backfill.SideDest, Until: until, Words: "Account exceeded bandwidth limits"}
			}
			return backfill.Report{}, nil
		}
		c := conduct(t, tab, cop, Config{})
		start(t, c, alice, false)
		time.Sleep(10 * time.Second)
		s, _ := c.StatusOf(alice)
		if tab.state(alice) != router.StateReady || s.Phase != PhaseLimit || !strings.Contains(s.Limit, "of the new server") || !strings.Contains(s.Limit, "the server says: Account") {
			t.Errorf("%s: %+v", tab.way(alice), s)
		}
		time.Sleep(2 * time.Hour)
		if way := tab.way(alice); way != "syncing ready cutover ready cutover new" {
			t.Error(way)
		}
	})
}

func TestTotals(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	at := func(user, wave string, phase Phase, p backfill.Progress) Status {
		return Status{User: user, Wave: wave, State: router.StateSyncing, Phase: phase, Progress: p}
	}
	busy := at("a@x", "w1", PhaseCopy, backfill.Progress{Messages: 100, MessagesDone: 50, Bytes: 1000, BytesDone: 500, MessagesPerSecond: 1, BytesPerSecond: 10})
	sized := at("b@x", "w2", PhaseWaiting, backfill.Progress{})
	sized.Messages, sized.Size, sized.LimitWaits = 50, 500, 25*time.Hour
	limited := at("c@x", "w2", PhaseLimit, backfill.Progress{Messages: 10, MessagesDone: 5, Bytes: 100, BytesDone: 50, MessagesPerSecond: 9, BytesPerSecond: 90})
	limited.ETA = now.Add(30 * time.Hour)
	ready := Status{User: "d@x", State: router.StateReady, Phase: PhaseReady}
	unknown := at("e@x", "w10", PhaseWaiting, backfill.Progress{})

	all, waves := Totals([]Status{busy, sized, limited, ready, unknown}, now)
	want := Total{Users: 4, AtWork: 1, Limited: 1, Unknown: 1, UnknownUsers: []string{"e@x"}, Messages: 160, MessagesDone: 55,
		Bytes: 1600, BytesDone: 550, MessagesPerSecond: 1, BytesPerSecond: 10, ETA: now.Add(30 * time.Hour)}
	if d := cmp.Diff(want, all); d != "" {
		t.Error(d)
	}
	var names []string
	for _, w := range waves {
		names = append(names, w.Wave)
	}
	if d := cmp.Diff([]string{"w1", "w2", "w10"}, names); d != "" {
		t.Error(d)
	}
	if eta := waves[0].ETA; !eta.Equal(now.Add(50 * time.Second)) {
		t.Errorf("w1: %v", eta)
	}
	if !waves[2].ETA.IsZero() || !waves[1].ETA.IsZero() {
		t.Errorf("an ETA of users nobody copies: %v, %v", waves[1].ETA, waves[2].ETA)
	}
	all, waves = Totals([]Status{limited}, now)
	if !all.ETA.Equal(limited.ETA) || len(waves) != 1 {
		t.Errorf("%+v, %+v", all, waves)
	}
	if all, _ = Totals([]Status{ready}, now); all.Users != 0 || !all.ETA.IsZero() {
		t.Errorf("%+v", all)
	}
}
