package daemon

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest"
	"crossfade/queue"
	"crossfade/router"

	"go.uber.org/goleak"
)

// TestFaultsStop starts, loads and stops the relay again and again while all
// kinds of connections are idle or busy: it never hangs, leaves no goroutine,
// and loses nothing.
func TestFaultsStop(t *testing.T) {
	sinks := [2]*mailtest.Sink{newSink(t), newSink(t)}
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := &site{t: t, dir: t.TempDir(), old: sinks[0], new: sinks[1], log: &lockedBuffer{}}
	s.configure(plainQueue)
	s.old.SetHook(unsteady())
	s.new.SetHook(unsteady())
	rounds := 30
	switch {
	case long():
		rounds = 300
	case underRace:
		rounds = 12
	}
	var accepted []string
	var took []time.Duration
	for round := range rounds {
		s.start()
		idle, wait := s.load(round)
		took = append(took, s.stop())
		accepted = append(accepted, wait()...)
		for _, c := range idle {
			_ = c.Close()
		}
	}
	slices.Sort(took)
	t.Logf("%d starts and stops: shutdown p50 %s, longest %s; %d messages accepted", rounds, took[len(took)/2], took[len(took)-1], len(accepted))
	if longest := took[len(took)-1]; longest > 5*time.Second {
		t.Errorf("a shutdown took %s", longest)
	}
	s.old.SetHook(nil)
	s.new.SetHook(nil)
	s.start()
	eventually(t, 30*time.Second, "the queue is empty", func() bool {
		_, _ = s.client.Apply(s.limit(), admin.QueueApply{Action: queue.DoRetry, All: true})
		p, err := s.client.Queue(s.limit(), admin.QueueFilter{}, "", 1)
		return err == nil && len(p.Messages) == 0 && p.Next == ""
	})
	s.stop()
	missing := 0
	got := map[string]bool{}
	for _, m := range slices.Concat(s.old.Messages(), s.new.Messages()) {
		if f := tokenField.FindSubmatch(m.Body); f != nil {
			got[string(f[1])] = true
		}
	}
	for _, token := range accepted {
		if !got[token] {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d messages are missing", missing, len(accepted))
	}
	_, _ = s.old.Close(), s.new.Close()
}

// load brings a relay into the middle of everything: idle SMTP connections in
// several phases, an event stream, kept API connections, senders at work.
func (s *site) load(round int) (idle []net.Conn, wait func() []string) {
	s.t.Helper()
	for _, phase := range [][]string{{}, {"EHLO a.test"}, {"EHLO a.test", "MAIL FROM:<a@b.example>"},
		{"EHLO a.test", "MAIL FROM:<a@b.example>", "RCPT TO:<u1@" + faultsDomain + ">"}} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			s.t.Fatal(err)
		}
		idle = append(idle, conn)
		r := bufio.NewReader(conn)
		for _, line := range append([]string{""}, phase...) {
			if line != "" {
				fmt.Fprintf(conn, "%s\r\n", line)
			}
			for {
				got, err := r.ReadString('\n')
				if err != nil {
					s.t.Fatalf("in reply to %q: %v", line, err)
				}
				if len(got) > 3 && got[3] == ' ' {
					break
				}
			}
		}
	}
	s.set(fmt.Sprintf("u%d@%s", round%4, faultsDomain), []router.State{router.StateNew, router.StateOld}[round/4%2])
	var mu sync.Mutex
	var tokens []string
	var wg sync.WaitGroup
	var n atomic.Int64
	client, addr := s.client, s.addr
	listening := make(chan struct{})
	wg.Go(func() {
		_ = client.Listen(context.Background(), 0, func() { close(listening) }, func(admin.Event) error { return nil })
	})
	<-listening
	for range 3 {
		wg.Go(func() {
			conn, err := dialSMTP(context.Background(), addr)
			if err != nil {
				return
			}
			defer conn.close()
			for {
				token := fmt.Sprintf("tok-%d-%d", round, n.Add(1))
				if _, err := conn.send(outside, []string{fmt.Sprintf("u%d@%s", n.Load()%4, faultsDomain)}, tokenMessage(token, 500)); err != nil {
					return
				}
				mu.Lock()
				tokens = append(tokens, token)
				mu.Unlock()
			}
		})
	}
	eventually(s.t, 10*time.Second, "some mail flows", func() bool { return n.Load() > int64(20+round*3) })
	return idle, func() []string {
		wg.Wait()
		return tokens
	}
}

// TestFaultsStopTwins runs two daemons in one process, stops one before it is
// started, and Run twice.
func TestFaultsStopTwins(t *testing.T) {
	sinks := [2]*mailtest.Sink{newSink(t), newSink(t)}
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var sites [2]*site
	for i := range sites {
		sites[i] = &site{t: t, dir: t.TempDir(), old: sinks[0], new: sinks[1], log: &lockedBuffer{}}
		sites[i].configure(plainQueue)
		sites[i].start()
	}
	for i, s := range sites {
		s.send(fmt.Sprintf("tok-twin%d", i), outside, "u@"+faultsDomain)
	}
	for _, s := range sites {
		s.empty()
	}
	if err := sites[0].d.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "Run was called before") {
		t.Errorf("a second Run: %v", err)
	}
	sites[0].send("tok-twin2", outside, "u@"+faultsDomain)
	sites[0].empty()
	sites[0].stop()
	sites[1].send("tok-twin3", outside, "u@"+faultsDomain)
	sites[1].empty()
	sites[1].stop()
	sites[0].arrivedOnce(sinks[0], []string{"tok-twin0", "tok-twin1", "tok-twin2", "tok-twin3"})

	d, err := New(sites[0].cfg, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.Run(ctx); err != nil {
		t.Errorf("a daemon that was stopped before it started: %v", err)
	}
	_, _ = sinks[0].Close(), sinks[1].Close()
}

// TestFaultsStopSlow has peers that are in the way of a shutdown: each gets
// its grace, and not more.
func TestFaultsStopSlow(t *testing.T) {
	t.Parallel()
	t.Run("client in its data", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, plainQueue).start()
		c, err := dialSMTP(s.limit(), s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		for _, step := range []struct {
			want int
			line string
		}{{250, "MAIL FROM:<" + outside + ">"}, {250, "RCPT TO:<u@" + faultsDomain + ">"}, {354, "DATA"}} {
			if _, err := c.say(step.want, "%s", step.line); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.text.PrintfLine("Subject: and now"); err != nil {
			t.Fatal(err)
		}
		took := s.stop()
		t.Logf("the shutdown took %s", took)
		if took > smtpGrace+3*time.Second {
			t.Errorf("the shutdown took %s, the grace is %s", took, smtpGrace)
		}
		if s.old.Count() != 0 {
			t.Error("half a message was delivered")
		}
	})
	t.Run("backend that hangs before the reply", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, plainQueue).start()
		s.old.SetHook(mailtest.On(mailtest.StepDot, mailtest.Action{Accept: true, Silent: true, End: mailtest.EndHang}))
		s.send("tok-hang", outside, "u@"+faultsDomain)
		if _, err := s.old.Wait(s.limit(), 1); err != nil {
			t.Fatal(err)
		}
		took := s.stop()
		t.Logf("the shutdown took %s", took)
		if took > 25*time.Second {
			t.Errorf("the shutdown took %s, the deliverer's grace is 20s", took)
		}
	})
	t.Run("backend that hangs at MAIL", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, plainQueue).start()
		s.old.SetHook(mailtest.On(mailtest.StepMail, mailtest.Hang()))
		id := s.send("tok-hang", outside, "u@"+faultsDomain)
		eventually(t, 10*time.Second, "it is being delivered", func() bool {
			e, err := s.client.Message(s.limit(), id)
			return err == nil && len(e.Rcpts) == 1 && e.Rcpts[0].State == queue.Leased
		})
		took := s.stop()
		t.Logf("the shutdown took %s", took)
		if took > 25*time.Second {
			t.Errorf("the shutdown took %s, the deliverer's grace is 20s", took)
		}
		s.old.SetHook(nil)
		s.start()
		s.empty()
		s.arrivedOnce(s.old, []string{"tok-hang"})
	})
}

// TestFaultsHeld accepts mail for users in cutover, keeps it as long as that
// lasts, over a restart too, and then sends it to the side of the next state,
// in order.
func TestFaultsHeld(t *testing.T) {
	s := newSite(t, "queue: {min_free: 0}\nrouting: {unknown: old}")
	for _, b := range []*mailtest.Sink{s.old, s.new} {
		b.SetHook(mailtest.On(mailtest.StepDot, mailtest.Action{Delay: time.Millisecond}))
	}
	s.start()
	toNew, toOld := "tonew@"+faultsDomain, "toold@"+faultsDomain
	for _, u := range []string{toNew, toOld} {
		s.set(u, router.StateSyncing, router.StateReady, router.StateCutover)
	}
	const n = 80
	for i := range n {
		s.send(fmt.Sprintf("tok-n%03d", i), outside, toNew)
		s.send(fmt.Sprintf("tok-o%03d", i), outside, toOld)
		if i == n/2 {
			s.stop()
			s.start()
		}
	}
	for _, u := range []string{toNew, toOld} {
		user, err := s.client.User(s.limit(), u)
		if err != nil || user.State != router.StateCutover {
			t.Errorf("%s is %s after a restart, %v", u, user.State, err)
		}
	}
	page, err := s.client.Queue(s.limit(), admin.QueueFilter{State: queue.Held}, "", 500)
	if err != nil || len(page.Messages) != 2*n || page.Messages[0].Rcpts[0].HeldBy != "user" {
		t.Errorf("%d messages are held, %v", len(page.Messages), err)
	}
	if s.old.Count()+s.new.Count() > 0 {
		t.Errorf("%d messages were delivered to old and %d to new while their users were held", s.old.Count(), s.new.Count())
	}
	s.set(toNew, router.StateNew)
	s.set(toOld, router.StateOld)
	s.empty()
	for _, side := range []struct {
		sink *mailtest.Sink
		mark string
	}{{s.new, "tok-n"}, {s.old, "tok-o"}} {
		worst := 0 // how far a message is from its place
		for i, m := range side.sink.Messages() {
			token := string(tokenField.FindSubmatch(m.Body)[1])
			if !strings.HasPrefix(token, side.mark) {
				t.Errorf("%s is on the wrong side", token)
			}
			var place int
			_, _ = fmt.Sscanf(strings.TrimPrefix(token, side.mark), "%d", &place)
			worst = max(worst, place-i, i-place)
		}
		if got := side.sink.Count(); got != n {
			t.Errorf("%s: %d of %d messages arrived", side.mark, got, n)
		}
		t.Logf("%s: over connections that work at the same time, no message is further than %d from its place", side.mark, worst)
		if worst > n/4 {
			t.Errorf("%s: the order of arrival is lost: one is %d from its place", side.mark, worst)
		}
	}
}
