package daemon

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

const outside = "sender@outside.example"

// TestFaultsBackend has a backend fail in every way at every step: the message
// stays, people can read why, and it arrives once when the backend is healed.
func TestFaultsBackend(t *testing.T) {
	s := newSite(t, plainQueue)
	if err := s.tryStart(impatient(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	user := "broken@" + faultsDomain
	s.set(user, router.StateNew)
	faults := []struct {
		name   string
		action mailtest.Action
		says   string // in the reason that operators read
	}{
		{"hang", mailtest.Hang(), "time"},
		{"close", mailtest.Close(), ""},
		{"reset", mailtest.Reset(), ""},
		{"garbage", mailtest.Garbage("\x00\xff no reply at all\r\n"), ""},
		{"half a reply", mailtest.HalfReply(), ""},
		{"421", mailtest.GoAway(), "421 4.3.2 service shutting down"},
		{"451", mailtest.Reply(451, "4.3.0 bad moment"), "451 4.3.0 bad moment"},
		{"unknown code", mailtest.Reply(399, "what is this"), ""},
	}
	steps := []mailtest.Step{mailtest.StepConnect, mailtest.StepEHLO, mailtest.StepMail, mailtest.StepRcpt, mailtest.StepData, mailtest.StepDot}
	for _, step := range steps {
		for _, f := range faults {
			t.Run(fmt.Sprintf("%s/%s", step, f.name), func(t *testing.T) {
				s := *s
				s.t = t
				s.new.Down() // no kept connection: the step has to come
				s.new.SetHook(mailtest.On(step, f.action))
				if err := s.new.Up(); err != nil {
					t.Fatal(err)
				}
				s.failAndHeal(user, f.says)
			})
		}
	}
	t.Run("refused connection", func(t *testing.T) {
		s := *s
		s.t = t
		s.new.Down()
		s.failAndHeal(user, "refused")
	})
	if n := len(s.old.Messages()); n != 0 {
		t.Errorf("%d messages went to old, a bounce for one: %.300s", n, s.old.Messages()[0].Body)
	}
}

// failAndHeal sends through a backend that is broken, and heals it.
func (s *site) failAndHeal(user, says string) {
	s.t.Helper()
	token := "tok-" + strings.NewReplacer("/", "-", " ", "-").Replace(s.t.Name())
	id := s.send(token, outside, user)
	r := s.rcpt(id, "tried", func(r queue.Rcpt) bool { return r.Attempts > 0 && r.State == queue.Queued })
	if r.LastReply == "" || !strings.Contains(r.LastReply, says) {
		s.t.Errorf("operators read %q, want %q in it", r.LastReply, says)
	}
	s.t.Logf("reason: %s", r.LastReply)
	s.new.SetHook(nil)
	if err := s.new.Up(); err != nil {
		s.t.Fatal(err)
	}
	if err := s.client.ResumeBackend(s.limit(), mail.New); err != nil {
		s.t.Fatal(err)
	}
	// Without IMAP nobody can look, and it is sent again when the schedule has it, or now.
	s.rcpt(id, "looked for", func(r queue.Rcpt) bool { return r.Doubt.Since.IsZero() && r.State == queue.Queued })
	s.retry(id)
	s.empty()
	if n := count(s.new, token); n != 1 {
		s.t.Errorf("it arrived %d times", n)
	}
}

// TestFaultsBackendRefuses has a backend refuse for good: what is about the
// message bounces, what is about us does not.
func TestFaultsBackendRefuses(t *testing.T) {
	s := newSite(t, plainQueue).start()
	user := "refused@" + faultsDomain
	s.set(user, router.StateNew)
	for _, step := range []mailtest.Step{mailtest.StepMail, mailtest.StepRcpt, mailtest.StepData, mailtest.StepDot} {
		t.Run("bounce at "+string(step), func(t *testing.T) {
			s.old.Forget()
			s.new.SetHook(mailtest.On(step, mailtest.Reply(554, "5.6.0 not this content")))
			token := "tok-" + string(step)
			s.send(token, outside, user)
			if _, err := s.old.Wait(s.limit(), 1); err != nil {
				t.Fatal(err)
			}
			s.empty()
			msgs := s.old.Messages()
			if len(msgs) != 1 || msgs[0].From != "" || msgs[0].Addrs()[0] != outside {
				t.Fatalf("%d messages out, the first from %q to %q", len(msgs), msgs[0].From, msgs[0].Addrs())
			}
			for _, want := range []string{"multipart/report", "Final-Recipient: rfc822;" + user, "5.6.0 not this content", token} {
				if !bytes.Contains(msgs[0].Body, []byte(want)) && !bytes.Contains(msgs[0].Body, []byte(strings.Replace(want, ";", "; ", 1))) {
					t.Errorf("the bounce lacks %q:\n%s", want, msgs[0].Body)
				}
			}
		})
	}
	for _, step := range []mailtest.Step{mailtest.StepConnect, mailtest.StepEHLO} {
		t.Run("stays at "+string(step), func(t *testing.T) {
			s.old.Forget()
			s.new.Down()
			s.new.SetHook(mailtest.On(step, mailtest.Reply(554, "5.3.2 no service here")))
			if err := s.new.Up(); err != nil {
				t.Fatal(err)
			}
			one := *s
			one.t = t
			one.failAndHeal(user, "5.3.2 no service here")
			if n := len(s.old.Messages()); n != 0 {
				t.Errorf("%d bounces", n)
			}
		})
	}
	t.Run("null sender", func(t *testing.T) {
		s.old.Forget()
		s.new.SetHook(mailtest.On(mailtest.StepDot, mailtest.Reply(554, "5.6.0 not this content")))
		id := s.send("tok-null", "", user)
		s.rcpt(id, "parked", func(r queue.Rcpt) bool {
			return r.State == queue.Parked && strings.Contains(r.LastReply, "5.6.0 not this content")
		})
		s.new.SetHook(nil)
		if _, err := s.client.Act(s.limit(), id, queue.DoRetry, admin.QueueAction{}); err != nil {
			t.Fatal(err)
		}
		s.empty()
		if count(s.new, "tok-null") != 1 || s.old.Count() != 0 {
			t.Errorf("it arrived %d times, and old got %d", count(s.new, "tok-null"), s.old.Count())
		}
	})
}

// TestFaultsUnknownUser is I8 on the wire.
func TestFaultsUnknownUser(t *testing.T) {
	s := newSite(t, plainQueue).start()
	noUser := mailtest.Reply(550, "5.1.1 no such user")
	t.Run("on old", func(t *testing.T) {
		s.old.SetHook(mailtest.On(mailtest.StepRcpt, noUser))
		s.send("tok-one", outside, "moved@"+faultsDomain)
		s.empty()
		if count(s.new, "tok-one") != 1 || s.old.Count() != 0 {
			t.Errorf("new has it %d times, old has %d messages", count(s.new, "tok-one"), s.old.Count())
		}
	})
	t.Run("on both", func(t *testing.T) {
		s.new.Forget()
		s.new.SetHook(mailtest.On(mailtest.StepRcpt, noUser))
		id := s.send("tok-two", outside, "nobody@"+faultsDomain)
		r := s.rcpt(id, "parked", func(r queue.Rcpt) bool { return r.State == queue.Parked })
		if !strings.Contains(r.LastReply, "5.1.1 no such user") {
			t.Errorf("operators read %q", r.LastReply)
		}
		if s.old.Count()+s.new.Count() != 0 {
			t.Error("something was delivered, a bounce for one")
		}
		s.old.SetHook(nil)
		s.new.SetHook(nil)
		if _, err := s.client.Act(s.limit(), id, queue.DoRetry, admin.QueueAction{}); err != nil {
			t.Fatal(err)
		}
		s.empty()
		if n := count(s.old, "tok-two") + count(s.new, "tok-two"); n != 1 {
			t.Errorf("it arrived %d times", n)
		}
	})
}

// TestFaultsBreaker shows a backend that is down to operators, and that mail
// flows by itself when it is back.
func TestFaultsBreaker(t *testing.T) {
	s := newSite(t, plainQueue).start()
	s.old.Down()
	for i := range 8 {
		s.send(fmt.Sprintf("tok-down%d", i), outside, "down@"+faultsDomain)
	}
	eventually(t, 10*time.Second, "old is shown as down", func() bool {
		list, err := s.client.Backends(s.limit())
		return err == nil && len(list) > 0 && list[0].Route == mail.Old && list[0].State == "down" && list[0].Reason != ""
	})
	s.send("tok-new", outside, "down@"+faultsDomain)
	if err := s.old.Up(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Apply(s.limit(), admin.QueueApply{Action: queue.DoRetry, All: true}); err != nil {
		t.Fatal(err)
	}
	s.empty()
	if n := s.old.Count(); n != 9 {
		t.Errorf("%d messages arrived", n)
	}
}
