package audit

import (
	"context"
	"strings"
	"testing"
	"time"

	"crossfade/journal"
)

type sweeps map[string]SweptCount

func (s sweeps) Swept(context.Context) (map[string]SweptCount, error) { return s, nil }

func TestSwept(t *testing.T) {
	w := newWorld(t)
	w.a.Sweeps = sweeps{"ann@example.org": {Found: 3, Copied: 3}, "quiet@example.org": {Found: 2, Copied: 1}}
	w.became(journal.Delivered, w.accept("ann"), 0, "ann")
	d := w.run(Request{})
	if a := w.account(d, "ann"); a.Found != 3 || a.Swept != 3 || !a.Clean() {
		t.Errorf("%+v", a)
	}
	if a := w.account(d, "quiet"); a.Clean() || d.Clean {
		t.Errorf("found and not copied: %+v", a)
	}
}

// What a sweep saw and could not carry keeps an audit from being clean, and is named,
// until an operator says that it may stay.
func TestNotCarried(t *testing.T) {
	w := newWorld(t)
	w.a.Sweeps = sweeps{"ann@example.org": {Found: 3, Copied: 1, Left: 2, Why: "over quota"}, "quiet@example.org": {Found: 1, Left: 1, Why: "throttled"}}
	b := &boxes{settled: map[string]Settled{}}
	w.a.Mailboxes = b
	w.became(journal.Delivered, w.accept("ann"), 0, "ann")
	d := w.run(Request{})
	for user, n := range map[string]int{"ann": 2, "quiet": 1} {
		a := w.account(d, user)
		if !a.Balanced() || a.Clean() || a.Left != n || len(a.Differences) != 1 || a.Differences[0].Kind != NotCarried || a.Differences[0].N != n {
			t.Errorf("%s: %+v", user, a)
		}
	}
	if d.Clean || d.Total.Left != 3 || !d.Total.Balanced() {
		t.Errorf("%+v", d.Total)
	}
	b.settled = map[string]Settled{"ann@example.org": {By: "op", Reason: "spam", Left: 2}, "quiet@example.org": {By: "op", Reason: "spam", Left: 1}}
	d = w.run(Request{})
	if a := w.account(d, "ann"); !d.Clean || !a.Balanced() || a.Left != 0 || a.Removed != 2 || !strings.Contains(a.Differences[0].Text, "settled by op: spam") {
		t.Errorf("settled: %+v", a)
	}
	w.a.Sweeps = sweeps{"ann@example.org": {Found: 4, Copied: 1, Left: 3, Why: "over quota"}}
	if d = w.run(Request{}); d.Clean || w.account(d, "ann").Left != 3 {
		t.Errorf("one more than was settled: %+v", w.account(d, "ann"))
	}
	// What was settled was carried later, or deleted; as many others came since.
	now := time.Now().UTC()
	b.settled["ann@example.org"] = Settled{At: now, By: "op", Reason: "spam", Left: 2, LeftAt: now.Add(-time.Hour)}
	for ago, clean := range map[time.Duration]bool{2 * time.Hour: true, time.Minute: false} {
		w.a.Sweeps = sweeps{"ann@example.org": {Found: 3, Copied: 1, Left: 2, Why: "over quota", Grew: now.Add(-ago)}}
		if d = w.run(Request{}); d.Clean != clean || !w.account(d, "ann").Balanced() {
			t.Errorf("grew %s ago: %+v", ago, w.account(d, "ann"))
		}
	}

	e := &Ending{Auditor: w.a, Stragglers: lastOf{Straggler{Left: 2, Of: []string{"ann: 2"}}}, Quiet: time.Hour}
	if c, err := e.stragglers(t.Context()); err != nil || c.Status != StatusNotYet || !strings.Contains(c.Text, "2 were found and cannot be carried") || c.Evidence[0] != "ann: 2" {
		t.Errorf("finish: %+v, %v", c, err)
	}
}

type lastOf struct{ s Straggler }

func (l lastOf) LastStraggler(context.Context) (Straggler, error) { return l.s, nil }
