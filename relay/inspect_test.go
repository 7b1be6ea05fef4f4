package relay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/router"
)

// spy is an inspector that keeps what it is shown and says what it is told to.
type spy struct {
	trace  func(above string) string
	err    error
	skip   bool
	sent   strings.Builder
	kept   strings.Builder
	seen   Incoming
	closed atomic.Int32
}

func (s *spy) Inspect(_ context.Context, m Incoming) Inspection {
	if s.skip {
		return nil
	}
	s.sent.Reset()
	s.kept.Reset()
	s.seen = m
	s.seen.Received = append([]byte(nil), m.Received...)
	return s
}

func (s *spy) Sent(p []byte) { s.sent.Write(p) }
func (s *spy) Kept(p []byte) { s.kept.Write(p) }
func (s *spy) Close()        { s.closed.Add(1) }
func (s *spy) End(_ context.Context, above string) (string, error) {
	if s.trace == nil {
		return "", s.err
	}
	return s.trace(above), s.err
}

func TestInspectorsTraceGoesOnTop(t *testing.T) {
	first := &spy{trace: func(string) string { return "X-First: 1\r\n" }}
	second := &spy{trace: func(above string) string { return "X-Second: saw\r\n\t" + strings.TrimSpace(above) + "\r\n" }}
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.Inspectors = []Inspector{first, &spy{skip: true}, second} })
	body := "Subject: x\r\n\r\n.dot\r\n" + strings.Repeat("long body\r\n", 20_000)
	if got := s.hello().deliver(strings.ReplaceAll(body, "\r\n.", "\r\n.."), "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	msg := s.queue.one(t)
	if want := "X-Second: saw\r\n\tX-First: 1\r\nX-First: 1\r\n"; msg.env.Trace != want {
		t.Errorf("trace %q, want %q", msg.env.Trace, want)
	}
	for _, one := range []*spy{first, second} {
		if one.sent.String() != body || one.kept.String() != body || string(one.seen.Received)+body != msg.body || one.seen.Ours {
			t.Error("an inspector did not see the message as it is")
		}
		if one.closed.Load() != 1 {
			t.Errorf("closed %d times", one.closed.Load())
		}
	}
}

func TestInspectorsRefuse(t *testing.T) {
	one := &spy{}
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.Inspectors = []Inspector{one} })
	for i, c := range []struct {
		err   error
		trace string
		want  string
	}{
		{err: mail.Replyf(550, mail.Enhanced{5, 7, 1}, "not wanted"), want: "550 5.7.1 not wanted"},
		{err: errors.New("secret path"), want: "451 4.3.0 local error"},
		{trace: "X-No-End: 1", want: "451 4.3.0 local error"},
		{trace: "X-A: 1\r\n\r\nbody\r\n", want: "451 4.3.0 local error"},
		{trace: "no field\r\n", want: "451 4.3.0 local error"},
		{trace: " folded: first\r\n", want: "451 4.3.0 local error"},
		{trace: "X-A: b\rc\r\n", want: "451 4.3.0 local error"},
		{trace: "X-A: \xff\r\n", want: "451 4.3.0 local error"},
		{trace: "X-A: b\r\n  \r\n", want: "451 4.3.0 local error"},
	} {
		one.trace, one.err = func(string) string { return c.trace }, c.err
		got := s.hello().deliver("Subject: x\r\n\r\nx\r\n", "ann@example.org")
		if !strings.HasPrefix(got, c.want) || strings.Contains(got, "secret") {
			t.Errorf("%d: the client is told %q, want %q", i, got, c.want)
		}
		if n := int(one.closed.Load()); n != i+1 {
			t.Errorf("%d: closed %d times", i, n)
		}
	}
	if len(s.queue.all()) != 0 {
		t.Error("something was queued")
	}
	// A message that breaks off is not judged, and its inspection is closed.
	var judged atomic.Bool
	one.trace = func(string) string { judged.Store(true); return "" }
	c := s.hello()
	c.cmd("MAIL FROM:<a@b.example>", "250")
	c.cmd("RCPT TO:<ann@example.org>", "250")
	c.cmd("DATA", "354")
	c.send("Subject: x\r\n")
	closed := one.closed.Load()
	_ = c.conn.Close()
	inPoll(t, "the inspection to be closed", func() bool { return one.closed.Load() == closed+1 })
	if judged.Load() {
		t.Error("a message that broke off was judged")
	}
}

// What inspectors found is delivered, counted in SIZE, and returned in bounces.
func TestTraceIsDelivered(t *testing.T) {
	outNoLeaks(t)
	s, store := newDiskSite(t, nil)
	s.sinks[mail.Old].SetHook(func(ev mailtest.Event) mailtest.Action {
		if ev.Step == mailtest.StepRcpt && strings.HasPrefix(ev.Addr, "full") {
			return mailtest.Reply(552, "5.2.2 full")
		}
		return mailtest.Action{}
	})
	const trace, stored = "Authentication-Results: mx.example.org; none\r\n", "Subject: one\r\n\r\ntext\r\n"
	env := &mail.Envelope{ID: mail.NewID(), From: outAddr("sender@far.test"), Received: time.Now(), Trace: trace}
	for _, r := range []string{"ok@b.test", "full@b.test"} {
		env.Recipients = append(env.Recipients, mail.Recipient{Addr: outAddr(r), User: r, Hint: mail.Old})
	}
	if err := store.Put(t.Context(), env, strings.NewReader(stored)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	got, err := s.sinks[mail.Old].Wait(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if string(got[0].Body) != trace+stored {
		t.Errorf("delivered:\n%s", got[0].Body)
	}
	bounces, err := s.sinks[mail.Out].Wait(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(bounces[0].Body), trace+stored) {
		t.Errorf("the bounce returns:\n%s", bounces[0].Body)
	}
	if want := fmt.Sprint(int64(len(stored)) + int64(len(trace))); env.WholeSize() != int64(len(stored)+len(trace)) {
		t.Errorf("size %d, want %s", env.WholeSize(), want)
	}
}
