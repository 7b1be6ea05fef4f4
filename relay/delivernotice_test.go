package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
)

// One bounce for all recipients that failed, with what the sender asked for.
func TestDeliverBounce(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	s.sinks[mail.Old].SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step == mailtest.StepRcpt && strings.HasPrefix(ev.Addr, "no") {
			return mailtest.Reply(550, "5.7.1 "+ev.Addr+" may not get mail")
		}
		return mailtest.Action{}
	})
	body := outBody + strings.Repeat("text\r\n", 100)
	id := s.q.put(body, mail.Old, func(m *outMessage) {
		m.env.Ret, m.env.EnvID = mail.RetHdrs, "env1"
		m.env.Recipients[3].Notify = mail.NotifyNever
	}, "no1@b.test", "yes@b.test", "no2@b.test", "no3@b.test")
	rs := s.q.outKinds(t, id)
	if kinds := fmt.Sprintf("%s %s %s %s", rs[0].kind, rs[1].kind, rs[2].kind, rs[3].kind); kinds != "fail done fail park" {
		t.Error(kinds)
	}
	ns := s.q.notices()
	if len(ns) != 1 {
		t.Fatalf("%d notices", len(ns))
	}
	got := string(ns[0].Body)
	checkDSN(t, ns[0].Body, true)
	for _, want := range []string{"no1@b.test may not", "Final-Recipient: rfc822; no2@b.test", "Original-Envelope-Id: env1", "text/rfc822-headers", "Subject: one"} {
		if !strings.Contains(got, want) {
			t.Errorf("the bounce lacks %q", want)
		}
	}
	if strings.Contains(got, "no3@") || strings.Contains(got, "yes@") || strings.Contains(got, "text\r\ntext") {
		t.Errorf("the bounce tells too much:\n%s", got)
	}
}

func TestDeliverDelayAndSuccess(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	s.sinks[mail.Old].SetHook(mailtest.ForAddr("slow@b.test", mailtest.StepRcpt, mailtest.Reply(450, "4.2.0 later")))
	id := s.q.put(outBody, mail.Old, func(m *outMessage) {
		for i := range m.rcpts {
			m.rcpts[i].item.Since = time.Now().Add(-5 * time.Hour)
		}
		m.env.Recipients[1].Notify = mail.NotifySuccess | mail.NotifyFailure
	}, "slow@b.test", "fast@b.test")
	rs := s.q.outKinds(t, id)
	ns := s.q.notices()
	if len(ns) != 2 || !rs[0].item.Noticed || rs[1].item.Noticed {
		t.Fatalf("%d notices, %+v", len(ns), rs)
	}
	for i, want := range []string{"Action: delayed\r\nStatus: 4.2.0", "Action: relayed\r\nStatus: 2.0.0"} {
		checkDSN(t, ns[i].Body, true)
		if got := string(ns[i].Body); !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

// A backend with DSN gets the sender's wishes and is left to fulfil them.
func TestDeliverPassesDSNOn(t *testing.T) {
	outNoLeaks(t)
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) { b[mail.Old].Target = outTarget(sink) })
	id := s.q.put(outBody, mail.Old, func(m *outMessage) {
		m.env.Recipients[0].Notify, m.env.Recipients[0].Orig = mail.NotifySuccess, outAddr("alias@b.test")
		m.rcpts[1].item.Copy = true
	}, "a@b.test", "copy@b.test")
	s.q.outKinds(t, id)
	if n := len(s.q.notices()); n != 0 {
		t.Errorf("%d notices", n)
	}
	m := sink.Messages()[0]
	if a, b := strings.Join(m.Rcpts[0].Params, " "), strings.Join(m.Rcpts[1].Params, " "); a != "NOTIFY=SUCCESS ORCPT=rfc822;alias@b.test" || b != "NOTIFY=NEVER" {
		t.Errorf("%q, %q", a, b)
	}
}

// A failure is only final together with its bounce.
func TestDeliverBounceCannotBeMade(t *testing.T) {
	outNoLeaks(t)
	for _, tt := range []struct {
		err  error
		kind queue.Kind
	}{{errors.New("table is busy"), queue.Retry}, {mail.Replyf(550, mail.Enhanced{5, 1, 1}, "no such sender"), queue.Park}} {
		s := newOutSite(t, func(c *DelivererConfig, _ map[mail.Route]*BackendConfig) {
			c.Resolve = func(context.Context, mail.Address) ([]mail.Recipient, error) { return nil, tt.err }
		})
		s.sinks[mail.Old].SetHook(mailtest.On(mailtest.StepRcpt, mailtest.Reply(550, "5.7.1 no")))
		r := s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))[0]
		if r.kind != tt.kind || !strings.Contains(r.last, "5.7.1 no") || !strings.Contains(r.last, tt.err.Error()) {
			t.Errorf("%s: %s", r.kind, r.last)
		}
		if n := len(s.q.notices()); n != 0 {
			t.Errorf("%d notices", n)
		}
	}
}

// A lease is renewed while the backend is slow, and once more before the dot.
func TestDeliverRenews(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, func(c *DelivererConfig, _ map[mail.Route]*BackendConfig) { c.renewEvery = 5 * time.Millisecond })
	release := make(chan struct{})
	s.sinks[mail.Old].SetHook(mailtest.On(mailtest.StepData, mailtest.Action{Wait: release}))
	id := s.q.put(outBody, mail.Old, nil, "a@b.test")
	inPoll(t, "renewals", func() bool {
		s.q.mu.Lock()
		defer s.q.mu.Unlock()
		return len(s.q.renewals) >= 3
	})
	close(release)
	if r := s.q.outKinds(t, id)[0]; r.kind != queue.Done {
		t.Errorf("%+v", r)
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if dot := slices.Index(s.q.renewals, true); dot < 3 {
		t.Errorf("renewals %v", s.q.renewals)
	}
}

// A lease that is lost while the backend is slow is cut, not waited for.
func TestDeliverLeaseLostWhileWaiting(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, func(c *DelivererConfig, b map[mail.Route]*BackendConfig) {
		c.renewEvery = 5 * time.Millisecond
		b[mail.Old].Target.Timeouts.Data = time.Minute
	})
	s.q.renewErr, s.q.renewLost = queue.ErrLost, true
	s.sinks[mail.Old].SetHook(mailtest.On(mailtest.StepData, mailtest.Hang()))
	id := s.q.put(outBody, mail.Old, nil, "a@b.test")
	s.q.wait(t, id, func(rs []outRcpt) bool { return rs[0].kind == queue.Release })
	if n := s.sinks[mail.Old].Count(); n != 0 {
		t.Errorf("%d messages", n)
	}
}
