package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/cutover"

	"github.com/google/go-cmp/cmp"
)

// following makes a wait with users at work; each started a second after the one
// before.
func following(width, height int, users ...cutover.Status) (*wait, *bytes.Buffer) {
	var out bytes.Buffer
	w := &wait{app: &app{stderr: &out}, waiting: map[string]bool{}, last: map[string]cutover.Status{}, shown: progress{w: &out, width: width, height: height}}
	for i, s := range users {
		s.Started = time.Unix(int64(i), 0)
		w.add(s.User)
		w.last[s.User] = s
	}
	return w, &out
}

func copying(user string, done, all int, rate float64) cutover.Status {
	return cutover.Status{User: user, Phase: cutover.PhaseCopy, Progress: backfill.Progress{
		Messages: all, MessagesDone: done, Bytes: int64(all) << 10, BytesDone: int64(done) << 10, MessagesPerSecond: rate, BytesPerSecond: rate * 1024}}
}

func TestBoard(t *testing.T) {
	held := copying("cleo@example.org", 5, 10, 0)
	held.Phase = cutover.PhaseFinal
	w, _ := following(120, 24, copying("anna@example.org", 250, 1000, 50), held,
		cutover.Status{User: "dora@example.org", Phase: cutover.PhaseDrain}, cutover.Status{User: "emil@example.org", Phase: cutover.PhaseWaiting},
		copying("\x1b[31mfritz@example.org", 0, 0, 0))
	w.users = append(w.users, "bert@example.org") // at the end already
	want := []string{
		"anna@example.org       [=====                   ] 250/1000 messages, 50/s, 50.0 KiB/s, 15s left",
		"cleo@example.org       [===========             ] 5/10 messages, held",
		"dora@example.org       held, deliveries to old end",
		"\x1b[31mfritz@example.org copying",
		"[========                ] 1/6 users, this pass 255/1010 messages, 255.0 KiB, 50/s, 50.0 KiB/s, 15s left",
	}
	if diff := cmp.Diff(want, w.board()); diff != "" {
		t.Error(diff)
	}
}

// TestBoardFitsTheTerminal: a board that is higher than the terminal could not be
// drawn over.
func TestBoardFitsTheTerminal(t *testing.T) {
	var users []cutover.Status
	for i := range 40 {
		users = append(users, copying(fmt.Sprintf("user%02d@example.org", i), i, 100, 1))
	}
	for _, height := range []int{1, 3, 4, 10, 60} {
		w, out := following(60, height, users...)
		lines := w.board()
		if len(lines) > max(height-1, 1) {
			t.Errorf("%d lines for %d", len(lines), height)
		}
		if height == 10 && (!strings.HasPrefix(lines[0], "user00@") || lines[7] != "and 33 more users at work") {
			t.Errorf("%q", lines)
		}
		w.show(time.Now())
		w.show(time.Now())
		for _, line := range strings.Split(out.String(), "\x1b[K") {
			line, _, _ = strings.Cut(line, "\r")
			if n := len([]rune(line)); n > 59 {
				t.Errorf("%d columns: %q", n, line)
			}
		}
	}
}

func TestBlock(t *testing.T) {
	var out bytes.Buffer
	p := progress{w: &out, width: 20, height: 24}
	p.block([]string{"one", "two\x1b[2J", "three"})
	p.block([]string{"four", "five"})
	p.bar("six")
	p.clear()
	p.clear()
	want := "\r\x1b[Kone\r\n\x1b[Ktwo\\x1b[2J\r\n\x1b[Kthree" + "\r\x1b[2A\x1b[Kfour\r\n\x1b[Kfive\x1b[J" + "\r\x1b[1A\x1b[Ksix\x1b[J" + "\r\x1b[K"
	if got := out.String(); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
}

// TestPlainProgress: without a terminal a line now and then says how far it is.
func TestPlainProgress(t *testing.T) {
	w, out := following(0, 0, copying("anna@example.org", 250, 1000, 50))
	now := time.Unix(1000, 0)
	for range 130 { // half a second each
		w.show(now)
		now = now.Add(pollTime)
	}
	line := "[=====                   ] 0/1 users, this pass 250/1000 messages, 250.0 KiB, 50/s, 50.0 KiB/s, 15s left\n"
	if got := out.String(); got != line+line {
		t.Errorf("%q", got)
	}
}

func TestMovesTable(t *testing.T) {
	now := time.Now()
	busy := copying("anna@example.org", 250, 1000, 50)
	busy.State, busy.Throttled, busy.Copied, busy.Bytes = "syncing", 90*time.Second, 1250, 5<<20
	ready := cutover.Status{User: "bert@example.org", State: "ready", Phase: cutover.PhaseReady, Copied: 7, Synced: now.Add(-30*time.Second - 100*time.Millisecond),
		Classes: map[string]int{"refused": 3, "name": 1}, Problems: make([]backfill.Problem, 4)}
	gone := cutover.Status{User: "cleo@example.org", State: "new", Phase: cutover.PhaseDone, HoldTime: 1512 * time.Millisecond, Synced: now}
	var out bytes.Buffer
	if err := (&app{stdout: &out}).printMoves([]cutover.Status{busy, ready, gone}); err != nil {
		t.Fatal(err)
	}
	want := `USER              STATE    PHASE  PROGRESS  RATE  LEFT  COPIED          THROTTLED  LAG  HELD   TRIES  NEXT  PROBLEM
anna@example.org  syncing  copy   250/1000  50/s  15s   1250 (5.0 MiB)  1m30s      -    -      0      -     -
bert@example.org  ready    ready  -         -     -     7 (0 B)         -          30s  -      0      -     3 refused, 1 name
cleo@example.org  new      done   -         -     -     0 (0 B)         -          -    1.51s  0      -     -
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// TestProblemsInWords: whoever waits for a user, or names one, reads what the
// servers said; the table only counts it.
func TestProblemsInWords(t *testing.T) {
	s := cutover.Status{User: "anna@example.org", State: "ready", Phase: cutover.PhaseReady, Copied: 2, Err: "no flip:\nrefused", Problems: []backfill.Problem{
		{Folder: "INBOX", UID: 7, Class: "refused", Text: "too large \x1b[2J"}, {Class: "quota", Text: "little room"}}}
	words := "  INBOX 7: refused: too large \\x1b[2J\n  quota: little room\n"
	w, out := following(0, 0)
	w.waiting[s.User] = true
	w.results.app = w.app
	w.judge(s.User, s)
	if want := "anna@example.org: in sync\nanna@example.org: ready, 2 messages copied (0 B), 1 refused, 1 quota\n" + words; out.String() != want {
		t.Errorf("%q\nwant %q", out, want)
	}
	var shown bytes.Buffer
	(&app{stdout: &shown}).printReasons([]cutover.Status{{User: "bert@example.org"}, s})
	if want := "anna@example.org:\n  no flip: refused\n" + words; shown.String() != want {
		t.Errorf("%q\nwant %q", shown.String(), want)
	}
}

func TestLengthOf(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 1400 * time.Millisecond: "1s", 90 * time.Second: "1m30s", 5 * time.Hour: "5h00m", 100 * time.Hour: "4d04h"} {
		if got := lengthOf(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestDailyLimitInStatus(t *testing.T) {
	s := copying("anna@example.org", 250, 1000, 50)
	s.State, s.Phase, s.Copied = "syncing", cutover.PhaseLimit, 250
	s.Next = time.Now().Add(19 * time.Hour)
	s.ETA = time.Now().Add(45*time.Hour + 30*time.Second)
	s.Limit = "waits for the daily limit of the old server, goes on at 2026-11-22 03:12 UTC"
	var out bytes.Buffer
	if err := (&app{stdout: &out}).printMoves([]cutover.Status{s}); err != nil {
		t.Fatal(err)
	}
	want := "USER              STATE    PHASE  PROGRESS  RATE  LEFT    COPIED     THROTTLED  LAG  HELD  TRIES  NEXT                 PROBLEM\n" +
		"anna@example.org  syncing  limit  250/1000  -     45h00m  250 (0 B)  -          -    -     0      " + moment(s.Next) +
		"  waits for the daily limit of the old server, goes on at 2026-11-22 03:12 UTC\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	w, _ := following(140, 24, s)
	if diff := cmp.Diff("anna@example.org waits for the daily limit of the old server, goes on at 2026-11-22 03:12 UTC", w.board()[0]); diff != "" {
		t.Error(diff)
	}
}

func TestTotalLines(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	all := cutover.Total{Users: 30, AtWork: 2, Limited: 1, Paused: 3, Failed: 1, Unknown: 22, UnknownUsers: []string{"a@example.org", "b@example.org"},
		Messages: 1000, MessagesDone: 250, Bytes: 3 << 30, BytesDone: 1 << 30, MessagesPerSecond: 50.4, BytesPerSecond: 5 << 20, ETA: now.Add(26 * time.Hour)}
	want := []string{
		"all: 30 users not in sync, 2 at work, 1 waiting for a daily limit, 3 paused, 1 failed and tried again; 250/1000 messages, 1.0 GiB/3.0 GiB, 50/s, 5.0 MiB/s; " +
			"through in 26h00m, at 2026-11-22 10:00 UTC; size not known yet: a@example.org, b@example.org and 20 more",
		"wave w1: 1 user not in sync, 1 at work",
	}
	if diff := cmp.Diff(want, totalLines(all, []cutover.Total{{Wave: "w1", Users: 1, AtWork: 1}}, now)); diff != "" {
		t.Error(diff)
	}
	if lines := totalLines(cutover.Total{}, nil, now); len(lines) > 0 {
		t.Errorf("%q", lines)
	}
}
