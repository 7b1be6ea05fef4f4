package daemon

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/disk"
)

// operator changes users and queue through the API, as the relay comes and
// goes.
type operator struct {
	w    *world
	sure map[string]*spell // the state that a user is in for certain; its end is open
}

func (w *world) operate(ctx context.Context) *sync.WaitGroup {
	o := &operator{w: w, sure: map[string]*spell{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			c := w.alive(ctx)
			if c == nil {
				break
			}
			o.turn(ctx, c.client)
			if !rest(ctx, time.Duration(rand.IntN(8))*time.Millisecond) {
				break
			}
		}
		for _, s := range o.sure {
			s.to = time.Now()
			w.book.spell(*s)
		}
	})
	return &wg
}

// turn does one thing; its errors are those of a relay that was killed.
func (o *operator) turn(ctx context.Context, c *admin.Client) {
	switch n := rand.IntN(12); {
	case n == 0:
		_, _ = c.Apply(ctx, admin.QueueApply{Action: queue.DoRetry, All: true})
	case n == 1:
		csv := "address,wave\n" + o.w.users[rand.IntN(len(o.w.users))] + fmt.Sprintf(",w%d\n", rand.IntN(9))
		_, _ = c.ImportUsers(ctx, strings.NewReader(csv), admin.ImportOptions{Reason: "faults"})
	default:
		o.flip(ctx, c, o.w.users[rand.IntN(len(o.w.users))])
	}
}

// flip takes a user to another state by force and notes when that was so.
func (o *operator) flip(ctx context.Context, c *admin.Client, user string) {
	before, err := c.User(ctx, user)
	var p *admin.Problem
	switch {
	case errors.As(err, &p) && p.Status == 404:
		before.State = router.StateOld
	case err != nil:
		return
	}
	if s := o.sure[user]; s != nil && s.state != before.State {
		o.w.t.Errorf("%s was set to %s, acknowledged, and is %s after a kill", user, s.state, before.State)
	}
	to := nextState(before.State)
	if s := o.sure[user]; s != nil {
		s.to = time.Now()
		o.w.book.spell(*s)
		delete(o.sure, user)
	}
	changed, err := c.SetState(ctx, user, admin.StateChange{State: to, Force: true, Reason: "faults"})
	if err != nil {
		return
	}
	for changed.Busy > 0 {
		page, err := c.Queue(ctx, admin.QueueFilter{State: queue.Sending, User: user}, "", 1)
		if err != nil {
			return
		}
		if len(page.Messages) == 0 && page.Next == "" {
			break
		}
		if !rest(ctx, time.Millisecond) {
			return
		}
	}
	o.sure[user] = &spell{user: user, state: to, from: time.Now()}
}

// nextState goes round: old, new, and held in between. The held state is
// rollback, because the conductor takes up users in cutover.
func nextState(s router.State) router.State {
	switch s {
	case router.StateNew:
		return []router.State{router.StateOld, router.StateRollback}[rand.IntN(2)]
	case router.StateRollback:
		return []router.State{router.StateOld, router.StateNew}[rand.IntN(2)]
	}
	return router.StateNew
}

// suffer runs lives that end by kill -9 while mail flows and users flip.
func (w *world) suffer(kills int, points []string) {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	mailing, operating := w.traffic(ctx, 3, 4*time.Millisecond), w.operate(ctx)
	defer func() {
		stop()
		mailing.Wait()
		operating.Wait()
	}()
	for i := range kills {
		crash := ""
		if i < len(points) {
			crash = points[i]
		}
		c, err := w.launch(crash)
		switch {
		case errors.Is(err, errDied) && crash != "":
			w.ended(c, true) // while it started: that is a step as well
			continue
		case err != nil:
			w.t.Fatalf("life %d: %v\n%s", i, err, c.stderr.String())
		}
		limit := time.Duration(30+rand.IntN(250)) * time.Millisecond
		if crash != "" {
			limit = 10 * time.Second // it is passed sooner, but on a busy machine
			if passedElsewhere(crash) {
				limit = 300 * time.Millisecond
			}
		}
		t := time.NewTimer(limit)
		select {
		case <-c.exited:
			if crash == "" {
				w.t.Fatalf("life %d ended by itself: %v\n%s", i, c.err, c.stderr.String())
			}
			w.ended(c, true)
		case <-t.C:
			w.kill(c)
		}
		t.Stop()
	}
}

// drain lets a last life deliver all there is, and gives what it could not.
func (w *world) drain(limit time.Duration) (left []queue.Entry) {
	w.t.Helper()
	c := w.start("")
	defer w.stop(c)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for _, user := range w.users {
		if u, err := c.client.User(ctx, user); err == nil && u.State.Held() {
			if _, err := c.client.SetState(ctx, user, admin.StateChange{State: router.StateNew, Force: true}); err != nil {
				w.t.Errorf("releasing %s: %v", user, err)
			}
		}
	}
	for {
		if _, err := c.client.Apply(ctx, admin.QueueApply{Action: queue.DoRetry, All: true}); err != nil && ctx.Err() == nil {
			w.t.Errorf("retrying all: %v", err)
		}
		page, err := c.client.Queue(ctx, admin.QueueFilter{}, "", 100)
		if err == nil && len(page.Messages) == 0 && page.Next == "" {
			return nil
		}
		if !rest(ctx, 50*time.Millisecond) {
			return w.all(c)
		}
	}
}

// all lists the queue.
func (w *world) all(c *child) (out []queue.Entry) {
	cursor := ""
	for {
		page, err := c.client.Queue(context.Background(), admin.QueueFilter{}, cursor, 100)
		if err != nil {
			w.t.Errorf("listing the queue: %v", err)
			return out
		}
		out = append(out, page.Messages...)
		if cursor = page.Next; cursor == "" {
			return out
		}
	}
}

func long() bool { return os.Getenv("CROSSFADE_FAULTS") == "long" }

// crashPlan names every crash point, several times at different passages; in the short
// form those alone that this traffic passes.
func crashPlan(rounds int) (plan []string) {
	for round := range rounds {
		for _, name := range disk.CrashPoints() {
			if !long() && passedElsewhere(name) {
				continue
			}
			plan = append(plan, fmt.Sprintf("%s:%d", name, 1+round*rand.IntN(12)))
		}
	}
	rand.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	return plan
}

// notHere are the crash points that this traffic does not pass: a ledger needs
// a backfill, a segment 64 MiB, a refile thousands of messages, and a counted
// crash a lease of 60 s that ran out.
var notHere = []string{"ledger.", "segment.roll", "refile.", "compact.", "file.", "crash."}

func passedElsewhere(point string) bool {
	return slices.ContainsFunc(notHere, func(p string) bool { return strings.HasPrefix(point, p) })
}

// TestFaultsKill is the total-queue checker: what got a 250 is delivered, or
// still there, whenever and wherever the relay was killed.
func TestFaultsKill(t *testing.T) {
	t.Parallel() // beside those that wait for a grace to end
	kills, rounds := 80, 2
	if long() {
		kills, rounds = 3000, 20
	}
	if testing.Short() {
		kills, rounds = 30, 1
	}
	w := newWorld(t, childBinary(t), "", 8)
	plan := crashPlan(rounds)
	w.suffer(max(kills, len(plan)), plan)
	v := w.check(w.drain(60 * time.Second))
	t.Log(v.summary(w))
	for i, s := range v.bad() {
		if i == 30 {
			t.Errorf("and %d more", len(v.bad())-i)
			break
		}
		t.Error(s)
	}
	if v.queued > 0 {
		t.Errorf("%d recipients are still queued after the drain", v.queued)
	}
	if v.accepted < kills {
		t.Errorf("only %d recipients were accepted in %d lives", v.accepted, kills)
	}
	w.mustHit(rounds)
}

// mustHit tells which crash points no life died at.
func (w *world) mustHit(rounds int) {
	var missed []string
	for _, name := range disk.CrashPoints() {
		hit := slices.ContainsFunc(w.lives, func(l life) bool { return l.point == name && l.hit })
		switch {
		case hit:
		case passedElsewhere(name) || rounds < 2:
			w.t.Logf("crash point %s was not passed", name)
		default:
			missed = append(missed, name)
		}
	}
	if len(missed) > 1 {
		w.t.Errorf("no life died at %v: the traffic has to pass there", missed)
	}
}

// TestFaultsKillBroken breaks promises on purpose: the checker has to see it.
func TestFaultsKillBroken(t *testing.T) {
	binary := childBinary(t)
	for _, test := range []struct {
		variant string
		found   func(v *verdict) int
	}{
		{ackEarly, func(v *verdict) int { return len(v.lost) }},
		{settleEarly, func(v *verdict) int { return len(v.lost) }},
		{routeEarly, func(v *verdict) int { return len(v.wrongSide) }},
		{noPermission, func(v *verdict) int { return len(v.unexplained) + len(v.wrongSide) }},
	} {
		t.Run(test.variant, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, binary, test.variant, 8)
			w.suffer(12, nil)
			v := w.check(w.drain(20 * time.Second))
			t.Log(v.summary(w))
			if test.found(v) == 0 {
				t.Errorf("the checker saw nothing wrong with %s", test.variant)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, binary, "none", 8)
		w.suffer(12, nil)
		v := w.check(w.drain(20 * time.Second))
		t.Log(v.summary(w))
		if bad := v.bad(); len(bad) > 0 {
			t.Errorf("the same wiring without a fault: %v", bad)
		}
	})
}
