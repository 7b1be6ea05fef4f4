package mailtest_test

import (
	"context"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSink(t *testing.T, cfg mailtest.SinkConfig) *mailtest.Sink {
	t.Helper()
	s, err := mailtest.NewSink(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func play(t *testing.T, addr, script string) {
	t.Helper()
	if err := mailtest.RunDialogue(timeout(t), addr, script); err != nil {
		t.Fatal(err)
	}
}

const hello = `
S: 220 *
C: EHLO client.test
S... 250 *
`

const sendOne = hello + `
C: MAIL FROM:<a@x.test> SIZE=12 BODY=8BITMIME
S: 250 *
C: RCPT TO:<b@y.test> NOTIFY=NEVER
S: 250 *
C: DATA
S: 354 *
C: Subject: one
C:
C: ..dot
C-    bare\nlf\rcr\r\n.\r\n
`

func TestSinkRecords(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	play(t, s.Addr(), sendOne+"S: 250 2.0.0 *\nC: QUIT\nS: 221 *\nEOF")
	got, err := s.Wait(timeout(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	m := got[0]
	if want := "Subject: one\r\n\r\n.dot\r\n   bare\nlf\rcr\r\n"; string(m.Body) != want || m.Size != int64(len(want)) {
		t.Errorf("body %q (%d bytes), want %q", m.Body, m.Size, want)
	}
	if m.From != "a@x.test" || !cmp.Equal(m.FromParams, []string{"SIZE=12", "BODY=8BITMIME"}) {
		t.Errorf("reverse-path %q %q", m.From, m.FromParams)
	}
	if want := []mailtest.Rcpt{{Addr: "b@y.test", Params: []string{"NOTIFY=NEVER"}, Replied: true}}; !cmp.Equal(m.Rcpts, want) {
		t.Error(cmp.Diff(want, m.Rcpts))
	}
	if !m.Replied || m.Conn != 1 || m.Helo != "client.test" || m.Time.IsZero() {
		t.Errorf("%+v", m)
	}
}

func TestSinkFaults(t *testing.T) {
	const data = hello + "C: MAIL FROM:<>\nS: 250 *\nC: RCPT TO:<b@y.test>\nS: 250 *\nC: DATA\nS: 354 *\n"
	tests := []struct {
		name     string
		hook     mailtest.Hook
		script   string
		accepted int
		replied  bool
	}{
		{"refuse connection", mailtest.On(mailtest.StepConnect, mailtest.Reply(554, "5.3.2 no service")), "S: 554 5.3.2 no service", 0, false},
		{"421 at connect closes", mailtest.On(mailtest.StepConnect, mailtest.GoAway()), "S: 421 4.3.2 *\nEOF", 0, false},
		{"close at connect", mailtest.On(mailtest.StepConnect, mailtest.Close()), "EOF", 0, false},
		{"reset at EHLO", mailtest.On(mailtest.StepEHLO, mailtest.Reset()), "S: 220 *\nC: EHLO a\nEOF", 0, false},
		{"multi-line refusal", mailtest.On(mailtest.StepMail, mailtest.Reply(451, "4.3.0 one\n4.3.0 two")), hello + "C: MAIL FROM:<>\nS: 451-4.3.0 one\nS: 451 4.3.0 two", 0, false},
		{"refused MAIL opens no transaction", mailtest.On(mailtest.StepMail, mailtest.Reply(451, "no")), hello + "C: MAIL FROM:<>\nS: 451 *\nC: RCPT TO:<b@y.test>\nS: 503 *", 0, false},
		{"one recipient refused", mailtest.ForAddr("c@y.test", mailtest.StepRcpt, mailtest.Reply(550, "5.1.1 no")), hello +
			"C: MAIL FROM:<>\nS: 250 *\nC: RCPT TO:<c@y.test>\nS: 550 *\nC: DATA\nS: 503 *\nC: RCPT TO:<b@y.test>\nS: 250 *\nC: DATA\nS: 354 *\nC: .\nS: 250 *", 1, true},
		{"garbage at RCPT", mailtest.On(mailtest.StepRcpt, mailtest.Garbage("\x00\xffHTTP/1.1 400\r\n")), hello + "C: MAIL FROM:<>\nS: 250 *\nC: RCPT TO:<b@y.test>\nS: *HTTP/1.1 400", 0, false},
		{"half reply at DATA", mailtest.On(mailtest.StepData, mailtest.HalfReply()), hello + "C: MAIL FROM:<>\nS: 250 *\nC: RCPT TO:<b@y.test>\nS: 250 *\nC: DATA\nS: 354-*\nEOF", 0, false},
		{"drip", mailtest.On(mailtest.StepDot, mailtest.Drip(time.Millisecond)), data + "C: .\nS: 250 *", 1, true},
		{"refused at the dot", mailtest.On(mailtest.StepDot, mailtest.Reply(552, "5.2.2 full")), data + "C: .\nS: 552 5.2.2 full", 0, false},
		{"close at the dot", mailtest.On(mailtest.StepDot, mailtest.Close()), data + "C: .\nEOF", 0, false},
		{"reset at the dot", mailtest.On(mailtest.StepDot, mailtest.Reset()), data + "C: .\nEOF", 0, false},
		{"reply dropped", mailtest.On(mailtest.StepDot, mailtest.DropReply()), data + "C: .\nEOF", 1, false},
		{"cut in the body", mailtest.On(mailtest.StepData, mailtest.CutBody(3, mailtest.EndReset)), data + "C: abcdef\nEOF", 0, false},
		{"421 after the reply", func(ev mailtest.Event) mailtest.Action {
			if ev.Step == mailtest.StepAfter && ev.Of == mailtest.StepDot {
				return mailtest.GoAway()
			}
			return mailtest.Action{}
		}, data + "C: .\nS: 250 *\nS: 421 *\nEOF", 1, true},
		{"only the first time", mailtest.First(1, mailtest.StepDot, mailtest.Reply(451, "later")), data + "C: .\nS: 451 *\n" +
			"C: MAIL FROM:<>\nS: 250 *\nC: RCPT TO:<b@y.test>\nS: 250 *\nC: DATA\nS: 354 *\nC: .\nS: 250 *", 1, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSink(t, mailtest.SinkConfig{Hook: tt.hook})
			play(t, s.Addr(), tt.script)
			got := s.Messages()
			if len(got) != tt.accepted {
				t.Fatalf("%d messages accepted, want %d", len(got), tt.accepted)
			}
			if len(got) == 1 && got[0].Replied != tt.replied {
				t.Errorf("Replied = %v, want %v", got[0].Replied, tt.replied)
			}
		})
	}
}
