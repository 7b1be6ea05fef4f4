package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

const outBody = "Subject: one\r\nMessage-ID: <1@far.test>\r\n\r\ntext\r\n"

func TestDeliverOverKeptConnections(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	const n = 300
	var ids []mail.ID
	for i := range n {
		ids = append(ids, s.q.put(outBody, mail.Old, nil, fmt.Sprintf("a%d@b.test", i), "b@b.test"))
	}
	for _, id := range ids {
		for _, r := range s.q.outKinds(t, id) {
			if r.kind != queue.Done {
				t.Fatalf("%+v", r)
			}
		}
	}
	if got := s.sinks[mail.Old].Messages(); len(got) != n || string(got[0].Body) != outBody || len(got[0].Rcpts) != 2 {
		t.Errorf("%d messages", len(got))
	}
	if total, _ := s.sinks[mail.Old].Connections(); total > 25 {
		t.Errorf("%d connections for %d messages", total, n)
	}
	var st BackendStatus
	inPoll(t, "the last delivery to leave the gate", func() bool {
		st = s.d.Backend(mail.Old).Status()
		return st.InFlight == 0
	})
	if st.State != BackendUp || st.Limit <= firstLimit || st.LastError != "" {
		t.Errorf("%+v", st)
	}
}

// Whatever the backend does at whatever step, the message stays, and says why.
func TestDeliverFaults(t *testing.T) {
	outNoLeaks(t)
	steps := []mailtest.Step{mailtest.StepConnect, mailtest.StepEHLO, mailtest.StepMail, mailtest.StepRcpt, mailtest.StepData, mailtest.StepDot}
	faults := []struct {
		name   string
		action mailtest.Action
		reason string
	}{
		{"4xx", mailtest.Reply(450, "4.2.0 not now"), "450 4.2.0 not now"},
		{"421", mailtest.GoAway(), "421 4.3.2"},
		{"hang", mailtest.Hang(), "i/o timeout"},
		{"close", mailtest.Close(), "closed the connection"},
		{"reset", mailtest.Reset(), "reset"},
		{"garbage", mailtest.Garbage("\x00what?\r\n"), "proper SMTP"},
		{"half", mailtest.HalfReply(), "inside a reply"},
	}
	for _, step := range steps {
		for _, f := range faults {
			t.Run(string(step)+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				s := newOutSite(t, nil)
				s.sinks[mail.Old].SetHook(mailtest.On(step, f.action))
				r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]
				if r.kind != queue.Retry || !strings.Contains(r.last, f.reason) && f.name != "half" && f.name != "close" {
					t.Errorf("%s: %s", r.kind, r.last)
				}
				if r.last == "" || time.Until(r.due) < 50*time.Minute {
					t.Errorf("reason %q, due in %s", r.last, time.Until(r.due))
				}
				doubt := step == mailtest.StepDot && f.name != "4xx" && f.name != "421"
				if strings.Contains(r.last, "may have accepted") != doubt {
					t.Errorf("in doubt %v: %s", doubt, r.last)
				}
				if n := len(s.q.notices()); n != 0 {
					t.Errorf("%d notices", n)
				}
			})
		}
	}
}

// 5xx: about the session it is never held against the message (554 greeting,
// EHLO, 530); about the message it is a bounce in the same step.
func TestDeliverRefusals(t *testing.T) {
	outNoLeaks(t)
	tests := []struct {
		step   mailtest.Step
		reply  mailtest.Action
		kind   queue.Kind
		bounce bool
		alarm  bool
	}{
		{mailtest.StepConnect, mailtest.Reply(554, "5.3.2 no"), queue.Retry, false, false},
		{mailtest.StepEHLO, mailtest.Reply(550, "5.7.1 no"), queue.Retry, false, false},
		{mailtest.StepMail, mailtest.Reply(530, "5.7.0 authentication required"), queue.Retry, false, true},
		{mailtest.StepMail, mailtest.Reply(553, "5.1.8 bad sender"), queue.Fail, true, false},
		{mailtest.StepRcpt, mailtest.Reply(554, "5.7.1 <a@b.test>: Relay access denied"), queue.Retry, false, true},
		{mailtest.StepRcpt, mailtest.Reply(552, "5.2.2 over quota"), queue.Fail, true, false},
		{mailtest.StepData, mailtest.Reply(554, "5.3.0 no"), queue.Fail, true, false},
		{mailtest.StepDot, mailtest.Reply(554, "5.7.1 spam"), queue.Fail, true, false},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %d", tt.step, tt.reply.Code), func(t *testing.T) {
			s := newOutSite(t, nil)
			s.sinks[mail.Old].SetHook(mailtest.On(tt.step, tt.reply))
			r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]
			if r.kind != tt.kind || !strings.Contains(r.last, fmt.Sprint(tt.reply.Code)) {
				t.Errorf("%s: %s", r.kind, r.last)
			}
			ns := s.q.notices()
			if len(ns) > 0 != tt.bounce {
				t.Fatalf("%d notices", len(ns))
			}
			inPoll(t, "alarms", func() bool { return s.alarmCount() > 0 == tt.alarm })
			if tt.bounce {
				if env := ns[0].Envelope; !env.From.IsNull() || env.Recipients[0].Addr != outAddr("sender@far.test") || env.Recipients[0].Hint != mail.Out {
					t.Errorf("%+v", env)
				}
			}
		})
	}
}

// I8, from end to end: old does not know the user, new is asked; new neither:
// the message is parked with both replies, and nobody gets a bounce.
func TestDeliverUnknownUser(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	no := mailtest.ForAddr("a@b.test", mailtest.StepRcpt, mailtest.Reply(550, "5.1.1 nobody here"))
	s.sinks[mail.Old].SetHook(no)
	id := s.q.put(outBody, mail.Old, nil, "a@b.test", "c@b.test")
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Done && rs[1].kind == queue.Done })
	if got := s.sinks[mail.New].Messages(); len(got) != 1 || got[0].Rcpts[0].Addr != "a@b.test" {
		t.Errorf("new got %+v", got)
	}
	s.sinks[mail.New].SetHook(mailtest.ForAddr("a@b.test", mailtest.StepRcpt, mailtest.Reply(550, "5.1.1 unknown there")))
	id = s.q.put(outBody, mail.Old, nil, "a@b.test")
	r := s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].state == queue.Parked })[0]
	if !strings.Contains(r.last, "nobody here") || !strings.Contains(r.last, "unknown there") {
		t.Error(r.last)
	}
	if n := len(s.q.notices()); n != 0 {
		t.Errorf("%d notices", n)
	}
	inPoll(t, "alarms", func() bool { return s.alarmCount() == 3 })
}

func TestDeliverTooManyRecipients(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	s.sinks[mail.Old].SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step == mailtest.StepRcpt && len(ev.Message.Rcpts) >= 2 {
			return mailtest.Reply(452, "4.5.3 too many recipients")
		}
		return mailtest.Action{}
	})
	id := s.q.put(outBody, mail.Old, nil, "a@b.test", "b@b.test", "c@b.test", "d@b.test", "e@b.test")
	s.q.wait(t, id, func(rs []outRcpt) bool {
		for _, r := range rs {
			if r.kind != queue.Done {
				return false
			}
		}
		return true
	})
	if n := s.sinks[mail.Old].Count(); n != 3 {
		t.Errorf("%d transactions", n)
	}
}

func TestDeliverCorruptBody(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	s.q.corrupt = true
	r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]
	if r.kind != queue.Park || !strings.Contains(r.last, "damaged") {
		t.Errorf("%s: %s", r.kind, r.last)
	}
	inPoll(t, "alarm", func() bool { return s.alarmCount() == 1 })
	if n := s.sinks[mail.Old].Count(); n != 0 {
		t.Errorf("%d messages arrived", n)
	}
}

// A server may leave an idle client; the next message does not suffer from it.
func TestDeliverStaleConnection(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) { b[mail.Old].MaxConns = 1 })
	s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))
	s.sinks[mail.Old].SetHook(mailtest.First(1, mailtest.StepMail, mailtest.GoAway()))
	if r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]; r.kind != queue.Done {
		t.Errorf("%+v", r)
	}
	if st := s.d.Backend(mail.Old).Status(); st.Failures != 0 {
		t.Errorf("%+v", st)
	}
}

// Only a kept connection that failed at once is replaced at once. Behind the
// final dot the message may have been taken: it goes back to the queue.
func TestDeliverKeptConnectionLostLater(t *testing.T) {
	outNoLeaks(t)
	for _, step := range []mailtest.Step{mailtest.StepRcpt, mailtest.StepData, mailtest.StepDot} {
		s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) { b[mail.Old].MaxConns = 1 })
		s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))
		s.sinks[mail.Old].SetHook(mailtest.First(1, step, mailtest.DropReply()))
		r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]
		if r.kind != queue.Retry || strings.Contains(r.last, "may have accepted") != (step == mailtest.StepDot) {
			t.Errorf("%s: %s, %s", step, r.kind, r.last)
		}
	}
}

func TestDeliverShutdownWaits(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	at, release := make(chan struct{}), make(chan struct{})
	s.sinks[mail.Old].SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step != mailtest.StepDot {
			return mailtest.Action{}
		}
		close(at)
		return mailtest.Action{Wait: release}
	})
	id := s.q.put(outBody, mail.Old, nil, "a@b.test")
	<-at
	s.stop()
	close(release)
	if r := s.q.outKinds(t, id)[0]; r.kind != queue.Done {
		t.Errorf("%+v", r)
	}
}

// Behind the grace, what has not had its dot is cut and released.
func TestDeliverShutdownCuts(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, func(c *DelivererConfig, b map[mail.Route]*BackendConfig) {
		c.Grace = 20 * time.Millisecond
		b[mail.Old].Target.Timeouts.Data = time.Minute
	})
	at := make(chan struct{})
	s.sinks[mail.Old].SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step != mailtest.StepData {
			return mailtest.Action{}
		}
		close(at)
		return mailtest.Hang()
	})
	id := s.q.put(outBody, mail.Old, nil, "a@b.test")
	<-at
	s.end()
	close(s.finished)
	r := s.q.outKinds(t, id)[0]
	if r.kind != queue.Release || !strings.Contains(r.last, "shutting down") {
		t.Errorf("%s: %s", r.kind, r.last)
	}
}

// Run may be told to end before it starts, and may be run again.
func TestDeliverRunAgain(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	s.end()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.d.Run(ended); err != nil {
		t.Error(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	go func() { s.finished <- s.d.Run(ctx) }()
	s.stop = stop
	if r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]; r.kind != queue.Done {
		t.Errorf("%+v", r)
	}
}

func TestNewDelivererRefuses(t *testing.T) {
	b, err := NewBackend(BackendConfig{Name: mail.Old, Target: outTargetNowhere()})
	if err != nil {
		t.Fatal(err)
	}
	backends := map[mail.Route]*Backend{mail.Old: b}
	for _, cfg := range []DelivererConfig{
		{Backends: backends, Hostname: "h.test"}, {Queue: newOutQueue(), Hostname: "h.test"}, {Queue: newOutQueue(), Backends: backends},
		{Queue: newOutQueue(), Backends: map[mail.Route]*Backend{mail.New: nil}, Hostname: "h.test"},
	} {
		if _, err := NewDeliverer(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	for _, cfg := range []BackendConfig{{Target: outTargetNowhere()}, {Name: mail.Old}} {
		if _, err := NewBackend(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

func TestDeliverRunEndsWithItsQueue(t *testing.T) {
	outNoLeaks(t)
	b, err := NewBackend(BackendConfig{Name: mail.Old, Target: outTargetNowhere()})
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDeliverer(DelivererConfig{Queue: closedQueue{newOutQueue()}, Backends: map[mail.Route]*Backend{mail.Old: b}, Hostname: "h.test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

type closedQueue struct{ *outQueue }

func (closedQueue) Claim(context.Context, mail.Route, int) (*queue.Lease, error) {
	return nil, fmt.Errorf("claim: %w", queue.ErrClosed)
}

func outTargetNowhere() (tg smtpclient.Target) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		tg.Address = l.Addr().String()
		_ = l.Close()
	}
	return tg
}
