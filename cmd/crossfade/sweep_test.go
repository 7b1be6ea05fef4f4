package main

import (
	"bytes"
	"testing"
	"time"

	"crossfade/cutover"

	"github.com/google/go-cmp/cmp"
)

func TestSweepLines(t *testing.T) {
	at := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	s := cutover.Status{User: "anna@example.org", State: "new", Phase: cutover.PhaseDone, Sweep: &cutover.Sweep{
		Flipped: at, Looked: at.Add(time.Hour), Uncopied: true, OldLeft: cutover.Left{Count: 2, Since: at, Text: "INBOX: quota"}, NewLeft: cutover.Left{Count: 7}, Mirror: true, Waits: "the window closes at ...",
		Old: cutover.Found{Count: 3, Last: at.Add(time.Minute), From: []cutover.Origin{{Host: "mx.example.com [192.0.2.7]", Count: 2}, {Host: "local", Count: 1}}},
	}}
	want := []string{
		"reads new since " + moment(at),
		"set new by hand: nothing was copied before that; what was on old is carried by the sweep",
		"3 messages found on old since the flip, the last at " + moment(at.Add(time.Minute)) + ", from mx.example.com [192.0.2.7] (2), local (1)",
		"2 messages found on old and not carried since " + moment(at) + ": INBOX: quota",
		"old is kept current with new, as of no time yet",
		"last look at all folders that went through: " + moment(at.Add(time.Hour)),
		"not done yet: the window closes at ...",
	}
	if diff := cmp.Diff(want, sweepLines(s)); diff != "" {
		t.Error(diff)
	}
	s.Sweep = &cutover.Sweep{Err: "the mailbox on old cannot be swept: x", Next: at, Waits: "the mailbox on old cannot be swept: x"}
	if diff := cmp.Diff([]string{"the mailbox on old cannot be swept: x; tried again at " + moment(at)}, sweepLines(s)); diff != "" {
		t.Error(diff)
	}
	var out bytes.Buffer
	if err := (&app{stdout: &out}).printMoves([]cutover.Status{s}); err != nil || !bytes.Contains(out.Bytes(), []byte("cannot be swept: x")) {
		t.Errorf("%v: %s", err, out.String())
	}
}
