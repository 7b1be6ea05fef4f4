package relay

import (
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

// A backend that fails is left alone, asked, tried with one delivery, and used
// again; most of the queue never notices.
func TestDeliverBreaker(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	b, sink := s.d.Backend(mail.Old), s.sinks[mail.Old]
	sink.Down()
	var ids []mail.ID
	for range 50 {
		ids = append(ids, s.q.put(outBody, mail.Old, func(m *outMessage) { m.rcpts[0].item.Since = time.Now() }, "a@b.test"))
	}
	st := outWaitState(t, b, BackendDown)
	if st.Failures < 5 || !strings.Contains(st.Reason, "refused") || st.NextProbe.IsZero() {
		t.Errorf("%+v", st)
	}
	if err := sink.Up(); err != nil {
		t.Fatal(err)
	}
	outWaitState(t, b, BackendUp)
	retried := 0
	for _, id := range ids {
		if r := s.q.outKinds(t, id)[0]; r.kind == queue.Retry {
			retried++
		}
	}
	if retried < 5 || retried > 12 {
		t.Errorf("%d of 50 messages were spent on a dead backend", retried)
	}
}

func TestDeliverPause(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	b := s.d.Backend(mail.Old)
	b.Pause("maintenance", "ada")
	if st := b.Status(); st.State != BackendPaused || st.Reason != "maintenance" || st.By != "ada" {
		t.Errorf("%+v", st)
	}
	paused := s.q.put(outBody, mail.Old, nil, "a@b.test")
	s.q.outKinds(t, s.q.put(outBody, mail.New, nil, "a@b.test")) // time goes by
	if knows, _ := b.Ask(t.Context(), outAddr("a@b.test")); knows != Unsure {
		t.Error("a paused backend was asked")
	}
	if n := s.sinks[mail.Old].Count(); n != 0 {
		t.Errorf("%d messages to a paused backend", n)
	}
	b.Resume()
	if r := s.q.outKinds(t, paused)[0]; r.kind != queue.Done {
		t.Errorf("%+v", r)
	}
}

func TestDeliverUpdate(t *testing.T) {
	outNoLeaks(t)
	s := newOutSite(t, nil)
	s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))
	if err := s.d.Backend(mail.Old).Update(outTarget(s.sinks[mail.New])); err != nil {
		t.Fatal(err)
	}
	s.q.outKinds(t, s.q.put(outBody, mail.Old, nil, "a@b.test"))
	if a, b := s.sinks[mail.Old].Count(), s.sinks[mail.New].Count(); a != 1 || b != 1 {
		t.Errorf("%d before, %d behind the update", a, b)
	}
}

// Run ends: what is being sent may finish, within the grace.
// A connection that was dialled while its backend moved is not kept: the next
// message would go to where the backend was.
func TestDialDuringUpdate(t *testing.T) {
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	b, err := NewBackend(BackendConfig{Name: mail.Old, Target: outTarget(sink)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.sends.dial(t.Context(), func() smtpclient.Target {
		was := b.currentTarget()
		if err := b.Update(smtpclient.Target{Address: "127.0.0.1:1"}); err != nil {
			t.Error(err)
		}
		return was
	}, smtpclient.Origin{})
	if err != nil {
		t.Fatal(err)
	}
	b.sends.put(t.Context(), c)
	if n := b.sends.size(); n != 0 {
		t.Errorf("%d connections to the old place are kept", n)
		b.Close()
	}
}

func TestAsk(t *testing.T) {
	outNoLeaks(t)
	for _, lmtp := range []bool{false, true} {
		sink, err := mailtest.NewSink(mailtest.SinkConfig{LMTP: lmtp, Users: func(a string) bool { return a == "yes@b.test" }})
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		target := outTarget(sink)
		target.LMTP = lmtp
		b, err := NewBackend(BackendConfig{Name: mail.Old, Target: target})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		check := func(addr string, want Knows) {
			t.Helper()
			if got, reply := b.Ask(t.Context(), outAddr(addr)); got != want {
				t.Errorf("lmtp %v: %s: %s (%s)", lmtp, addr, got, reply)
			}
		}
		check("yes@b.test", KnowsIt)
		check("no@b.test", KnowsNo)
		check("yes@b.test", KnowsIt)
		if total, _ := sink.Connections(); total != 1 {
			t.Errorf("%d connections for three questions", total)
		}
		for _, a := range []mailtest.Action{mailtest.Reply(550, "5.7.1 policy"), mailtest.Reply(450, "4.2.0 later"), mailtest.GoAway(), mailtest.Close(), mailtest.Hang()} {
			sink.SetHook(mailtest.On(mailtest.StepRcpt, a))
			check("yes@b.test", Unsure)
		}
		sink.SetHook(mailtest.On(mailtest.StepMail, mailtest.Reply(550, "5.1.1 unknown user")))
		check("yes@b.test", Unsure)
		sink.SetHook(mailtest.First(1, mailtest.StepMail, mailtest.GoAway()))
		check("yes@b.test", KnowsIt) // the kept connection was left, a new one answers
		sink.Down()
		check("yes@b.test", Unsure)
	}
}
