package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/daemon"
)

// flipRun is a migration under a stream of mail.
type flipRun struct {
	users, past int
	both        int           // the first users get `deliver: both`
	staying     int           // the last users stay on old
	pause       time.Duration // of each of the senders between two messages
}

// TestFlipFiftyUsers: 50 users go from one Dovecot to another, one after the
// other, while mail to all of them flows; every message is exactly once in the
// mailbox that its user reads. Under the race detector, where a flip takes
// seconds, only some of them go in the short form.
func TestFlipFiftyUsers(t *testing.T) {
	beside(t)
	r := flipRun{users: 50, past: 16, pause: 100 * time.Millisecond}
	switch {
	case long():
		r.past = 400
	case daemon.UnderRace:
		r.staying = 38
	}
	r.run(t)
}

// TestFlipDualDelivery: some users get each message on both sides before they
// are flipped, and some are not flipped.
func TestFlipDualDelivery(t *testing.T) {
	beside(t)
	r := flipRun{users: 8, past: 16, both: 4, staying: 2, pause: 100 * time.Millisecond}
	if long() {
		r = flipRun{users: 60, past: 100, both: 40, staying: 10, pause: 30 * time.Millisecond}
	}
	r.run(t)
}

func (r flipRun) run(t *testing.T) {
	w := newWorld(t, r.users, r.past)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	d := w.serve()
	aliases := map[string]string{"info@" + e2eDomain: w.users[1]}
	var lines []string
	for i, u := range w.users {
		deliver := ""
		if i < r.both {
			deliver = "both"
		}
		lines = append(lines, fmt.Sprintf("%s,old,%s,mailbox,", u, deliver))
	}
	for a, u := range aliases {
		lines = append(lines, fmt.Sprintf("%s,,,alias,%s", a, u))
	}
	importUsers(t, d.client, lines)
	s := &stream{addr: d.smtp, users: w.users, aliases: aliases, book: w.book, senders: 4, pause: r.pause}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wait := s.start(ctx)
	poll(t, 30*time.Second, "the stream's begin", func() (bool, error) { return s.accepted.Load() >= int64(2*len(w.users)), nil })
	began := time.Now()
	moving := w.users[:len(w.users)-r.staying]
	var holds []time.Duration
	for _, u := range moving {
		s.hot.Store(&u)
		if _, err := d.client.StartCutover(t.Context(), u, admin.MoveRequest{Reason: "e2e"}); err != nil {
			t.Fatal(err)
		}
		st := awaitFlip(t, d.client, u)
		if st.Attempts > 0 {
			t.Errorf("%s needed more than one attempt: %+v", u, st)
		}
		holds = append(holds, st.HoldTime)
	}
	took := time.Since(began)
	stop()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused: %v", err)
	}
	drain(t, d.client, time.Minute)
	d.stop()
	var sum audit
	for _, u := range w.users {
		sum.add(w.countRead(u, slices.Contains(moving, u)))
	}
	for who, copies := range sum.doubles {
		t.Errorf("%s is there %d times: %v", who, len(copies), paths(copies))
	}
	past, sent := w.book.totals()
	if s.accepted.Load() < int64(len(w.users)) {
		t.Errorf("only %d messages were sent: no stream", s.accepted.Load())
	}
	figure(t, "%d users flipped in %s, %d stay; past messages %d; accepted %d for %d recipients; found %d, missing %d, twice %d, altered %d, stray %d, misplaced %d; hold p50 %s p99 %s max %s",
		len(moving), took.Round(time.Millisecond), r.staying, past, s.accepted.Load(), sent, sum.found, sum.missing, sum.twice, sum.altered, sum.stray, sum.misplaced,
		percentile(holds, 50).Round(time.Millisecond), percentile(holds, 99).Round(time.Millisecond), percentile(holds, 100).Round(time.Millisecond))
}

// countRead counts the mailbox that a user reads.
func (w *world) countRead(user string, flipped bool) audit {
	w.t.Helper()
	root, dots := w.old.MailRoot, true
	if flipped {
		root, dots = w.new.MailRoot, false
	}
	return w.book.count(w.t, user, readMaildir(w.t, root, user, dots))
}

func paths(all []found) (out []string) {
	for _, f := range all {
		out = append(out, f.path)
	}
	return out
}
