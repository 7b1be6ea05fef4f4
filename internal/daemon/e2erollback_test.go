package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/internal/mailtest/realtest"
	"crossfade/router"
)

// awaitState waits until a user is where a move leads, and its work is done.
func awaitState(t *testing.T, c *admin.Client, user string, want router.State) (st cutover.Status) {
	t.Helper()
	poll(t, 2*time.Minute, user+" becoming "+string(want), func() (ok bool, err error) {
		if st, err = c.Move(t.Context(), user); err != nil {
			return false, err
		}
		if st.Err != "" {
			err = errors.New(st.Err)
		}
		return st.State == want && st.Phase == cutover.PhaseDone, err
	})
	return st
}

// TestForwardBackForward: users are flipped, rolled back and flipped again while
// mail to all of them flows, some of them with a mirror's way to roll back; every
// message is exactly once in the mailbox that its user reads.
func TestForwardBackForward(t *testing.T) {
	beside(t)
	w := newWorld(t, 6, 16)
	w.configure("127.0.0.1:0", "127.0.0.1:0")
	w.extend("cutover: {mirror: true}\nbackfill: {tail_interval: 2s}")
	d := w.serve()
	var lines []string
	for _, u := range w.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, d.client, lines)
	s := &stream{addr: d.smtp, users: w.users, book: w.book, senders: 3, pause: 60 * time.Millisecond}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wait := s.start(ctx)
	var holds []time.Duration
	forward := func(u string) {
		s.hot.Store(&u)
		if _, err := d.client.StartCutover(t.Context(), u, admin.MoveRequest{Reason: "e2e"}); err != nil {
			t.Fatal(err)
		}
		awaitState(t, d.client, u, router.StateNew)
	}
	back := func(u string) {
		s.hot.Store(&u)
		if _, err := d.client.StartRollback(t.Context(), u, "e2e"); err != nil {
			t.Fatal(err)
		}
		holds = append(holds, awaitState(t, d.client, u, router.StateOld).HoldTime)
	}
	for _, u := range w.users[:4] {
		forward(u)
	}
	for _, u := range w.users[:4] {
		back(u)
	}
	for _, u := range w.users[:2] {
		forward(u)
	}
	stop()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused: %v", err)
	}
	drain(t, d.client, time.Minute)
	d.stop()
	var sum audit
	for i, u := range w.users {
		sum.add(w.countRead(u, i < 2))
	}
	for who, copies := range sum.doubles {
		t.Errorf("%s is there %d times: %v", who, len(copies), paths(copies))
	}
	past, sent := w.book.totals()
	figure(t, "4 users flipped, rolled back, 2 of them flipped again; past messages %d; accepted %d for %d recipients; found %d, missing %d, twice %d; hold of a rollback p50 %s max %s",
		past, s.accepted.Load(), sent, sum.found, sum.missing, sum.twice, percentile(holds, 50).Round(time.Millisecond), percentile(holds, 100).Round(time.Millisecond))
}

// TestKillDuringRollbacks: kill -9 at random moments while users are rolled back
// under a stream of mail. Nothing is lost, and what is twice was being delivered at
// a kill.
func TestKillDuringRollbacks(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t, 5, 12)
	smtp, api := fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t))
	w.configure(smtp, api)
	r := &killRun{w: w, program: binary(t), api: api, rnd: rand.New(rand.NewPCG(seed, 1)), phases: map[string]int{}, held: make(chan struct{})}
	r.child = startChild(t, r.program, w.cfgPath, w.logPath)
	t.Cleanup(func() { r.child.kill(t) })
	awaitReady(t, r.child, api)
	c := w.dial("http://" + api)
	var lines []string
	for _, u := range w.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, c, lines)
	r.stream = &stream{addr: smtp, users: w.users, book: w.book, senders: 3, pause: 60 * time.Millisecond, retry: true}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wait := r.stream.start(ctx)
	for _, u := range w.users {
		if _, err := c.StartCutover(t.Context(), u, admin.MoveRequest{Reason: "e2e"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, u := range w.users {
		awaitState(t, c, u, router.StateNew)
	}
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		r.killer(ctx, 6)
	}()
	began := time.Now()
	for i, u := range w.users {
		if i == len(w.users)-1 { // the last one waits for the last kill
			<-killed
		}
		r.back(t, c, u)
	}
	took := time.Since(began)
	stop()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused for good: %v", err)
	}
	drain(t, c, 3*time.Minute)
	r.judge(t, took, false)
}

// back asks for a user's rollback until that is answered, and waits for its end.
func (r *killRun) back(t *testing.T, c *admin.Client, user string) {
	t.Helper()
	r.stream.hot.Store(&user)
	asked := false
	poll(t, 3*time.Minute, "rolling back "+user, func() (bool, error) {
		if !asked {
			_, err := c.StartRollback(t.Context(), user, "e2e")
			var p *admin.Problem
			if err != nil && !(errors.As(err, &p) && p.Status < http.StatusInternalServerError) {
				return false, err
			}
			asked = true // or it was, and its answer was lost
		}
		u, err := c.User(t.Context(), user)
		if err != nil {
			return false, err
		}
		if st, err := c.Move(t.Context(), user); err == nil {
			r.phase(u.State, st.Phase)
		}
		return u.State == router.StateOld, fmt.Errorf("the user is %s", u.State)
	})
}
