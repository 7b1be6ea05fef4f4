package smtpclient_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/relay/smtpclient"

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

func target(s *mailtest.Sink) smtpclient.Target {
	const d = 300 * time.Millisecond
	return smtpclient.Target{Address: s.Addr(), Mode: smtpclient.Insecure, Hello: "client.test", Timeouts: smtpclient.Timeouts{
		Greeting: d, Hello: d, Mail: d, Rcpt: d, Data: d, Block: d, Dot: d, Quit: d,
	}}
}

func dial(t *testing.T, tg smtpclient.Target) *smtpclient.Conn {
	t.Helper()
	c, err := smtpclient.Dial(timeout(t), tg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func addr(t *testing.T, s string) mail.Address {
	t.Helper()
	a, err := mail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func message(t *testing.T, body string, rcpts ...string) *smtpclient.Transaction {
	t.Helper()
	tx := &smtpclient.Transaction{From: addr(t, "from@a.test"), Body: strings.NewReader(body), Size: int64(len(body))}
	for _, r := range rcpts {
		tx.Rcpts = append(tx.Rcpts, smtpclient.Rcpt{Addr: addr(t, r)})
	}
	return tx
}

// codes shows answers as "RCPT 550, end of data 250".
func codes(as []smtpclient.Answer) string {
	var l []string
	for _, a := range as {
		l = append(l, fmt.Sprintf("%s %d", a.Step, a.Reply.Code))
	}
	return strings.Join(l, ", ")
}

const small = "Subject: one\r\n\r\n.dot\r\n..\r\nend\r\n"

func TestSendReusesConnection(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	c := dial(t, target(s))
	for range 3 {
		as, err := c.Send(timeout(t), message(t, small, "b@b.test", "c@b.test"))
		if err != nil || codes(as) != "end of data 250, end of data 250" {
			t.Fatalf("%s, error %v", codes(as), err)
		}
	}
	if !c.Usable() || !c.Healthy() || c.Uses() != 3 {
		t.Errorf("usable %v, healthy %v, uses %d", c.Usable(), c.Healthy(), c.Uses())
	}
	c.Quit(timeout(t))
	if c.Usable() {
		t.Error("usable after QUIT")
	}
	for _, m := range s.Messages() {
		if string(m.Body) != small {
			t.Errorf("body %q", m.Body)
		}
	}
	one := []string{"MAIL FROM:<from@a.test> SIZE=31", "RCPT TO:<b@b.test>", "RCPT TO:<c@b.test>", "DATA"}
	want := append([]string{"EHLO client.test"}, append(append(append(one, one...), one...), "QUIT")...)
	if d := cmp.Diff(want, s.Commands(1)); d != "" {
		t.Error(d)
	}
}

// recorder counts the writes of a connection.
type recorder struct {
	net.Conn
	writes []string
}

func (r *recorder) Write(b []byte) (int, error) {
	r.writes = append(r.writes, string(b))
	return r.Conn.Write(b)
}

func recorded(tg *smtpclient.Target) *recorder {
	rec := &recorder{}
	tg.DialContext = func(ctx context.Context, network, address string) (nc net.Conn, err error) {
		rec.Conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return rec, err
	}
	return rec
}

func TestSmallMessageIsTwoWrites(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	tg := target(s)
	rec := recorded(&tg)
	c := dial(t, tg)
	tx := message(t, small, "b@b.test")
	tx.BeforeDot = func() error {
		if n := len(rec.writes); n != 2 {
			t.Errorf("BeforeDot ran after %d writes, want 2: EHLO and commands", n)
		}
		return nil
	}
	if _, err := c.Send(timeout(t), tx); err != nil {
		t.Fatal(err)
	}
	want := []string{"EHLO client.test\r\n", "MAIL FROM:<from@a.test> SIZE=31\r\nRCPT TO:<b@b.test>\r\nDATA\r\n",
		"Subject: one\r\n\r\n..dot\r\n...\r\nend\r\n.\r\n"}
	if d := cmp.Diff(want, rec.writes); d != "" {
		t.Error(d)
	}
}

func TestLargeMessageIsFlushedBeforeDot(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	tg := target(s)
	rec := recorded(&tg)
	c := dial(t, tg)
	body := strings.Repeat(".line of text that is long enough\r\n", 20_000)
	tx := message(t, body, "b@b.test")
	tx.BeforeDot = func() error {
		if all := strings.Join(rec.writes[2:], ""); all != strings.ReplaceAll(body, ".line", "..line") {
			t.Error("the body was not out when BeforeDot ran")
		}
		return nil
	}
	if _, err := c.Send(timeout(t), tx); err != nil {
		t.Fatal(err)
	}
	if last := rec.writes[len(rec.writes)-1]; last != ".\r\n" {
		t.Errorf("last write %.40q", last)
	}
	if got := s.Messages(); len(got) != 1 || string(got[0].Body) != body {
		t.Error("the body did not arrive as it was")
	}
}

func TestRecipientsPartlyRefused(t *testing.T) {
	noPipe := []string{"8BITMIME"}
	tests := []struct {
		name  string
		ext   []string
		hook  mailtest.Hook
		want  string
		count int
		open  bool // the connection survives
	}{
		{"one of three", nil, mailtest.ForAddr("c@b.test", mailtest.StepRcpt, mailtest.Reply(550, "5.1.1 no")), "end of data 250, RCPT 550, end of data 250", 1, true},
		{"one of three, stepwise", noPipe, mailtest.ForAddr("c@b.test", mailtest.StepRcpt, mailtest.Reply(450, "4.2.0 no")), "end of data 250, RCPT 450, end of data 250", 1, true},
		{"all", nil, mailtest.On(mailtest.StepRcpt, mailtest.Reply(550, "5.1.1 no")), "RCPT 550, RCPT 550, RCPT 550", 0, true},
		{"all, stepwise", noPipe, mailtest.On(mailtest.StepRcpt, mailtest.Reply(550, "5.1.1 no")), "RCPT 550, RCPT 550, RCPT 550", 0, true},
		{"sender", nil, mailtest.On(mailtest.StepMail, mailtest.Reply(550, "5.7.1 no")), "MAIL 550, MAIL 550, MAIL 550", 0, true},
		{"sender, stepwise", noPipe, mailtest.On(mailtest.StepMail, mailtest.Reply(451, "no")), "MAIL 451, MAIL 451, MAIL 451", 0, true},
		{"data", nil, mailtest.On(mailtest.StepData, mailtest.Reply(451, "4.3.0 no")), "DATA 451, DATA 451, DATA 451", 0, true},
		{"data, stepwise", noPipe, mailtest.On(mailtest.StepData, mailtest.Reply(554, "5.3.0 no")), "DATA 554, DATA 554, DATA 554", 0, true},
		{"dot", nil, mailtest.On(mailtest.StepDot, mailtest.Reply(554, "5.3.0 no")), "end of data 554, end of data 554, end of data 554", 0, true},
		{"421 to the dot", nil, mailtest.On(mailtest.StepDot, mailtest.GoAway()), "end of data 421, end of data 421, end of data 421", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSink(t, mailtest.SinkConfig{Extensions: tt.ext, Hook: tt.hook})
			c := dial(t, target(s))
			as, err := c.Send(timeout(t), message(t, small, "b@b.test", "c@b.test", "d@b.test"))
			if err != nil || codes(as) != tt.want {
				t.Errorf("%s, error %v; want %s", codes(as), err, tt.want)
			}
			if n := s.Count(); n != tt.count {
				t.Errorf("%d messages accepted, want %d", n, tt.count)
			}
			if c.Usable() != tt.open {
				t.Fatalf("usable %v, want %v", c.Usable(), tt.open)
			}
			if !tt.open {
				return
			}
			s.SetHook(nil) // and the next transaction is not spoilt by this one
			as, err = c.Send(timeout(t), message(t, small, "b@b.test"))
			if err != nil || codes(as) != "end of data 250" {
				t.Errorf("the transaction after it: %s, error %v", codes(as), err)
			}
		})
	}
}

// A server that wants a message although it refused all recipients gets none,
// not even an empty one.
func TestDataForNobodyCloses(t *testing.T) {
	for _, step := range []mailtest.Step{mailtest.StepMail, mailtest.StepRcpt} {
		s := newSink(t, mailtest.SinkConfig{Hook: func(ev mailtest.Event) mailtest.Action {
			switch ev.Step {
			case step:
				return mailtest.Action{Code: 550, Text: "5.1.1 no", Accept: true}
			}
			return mailtest.Action{}
		}})
		tg := target(s)
		rec := recorded(&tg)
		c := dial(t, tg)
		as, err := c.Send(timeout(t), message(t, small, "b@b.test"))
		if err != nil || as[0].Reply.Code != 550 || c.Usable() {
			t.Errorf("%s: %s, error %v, usable %v", step, codes(as), err, c.Usable())
		}
		if last := rec.writes[len(rec.writes)-1]; !strings.HasSuffix(last, "DATA\r\n") {
			t.Errorf("%s: last write %q", step, last)
		}
		if n := s.Count(); n != 0 {
			t.Errorf("%s: %d messages", step, n)
		}
	}
}

func TestFaults(t *testing.T) {
	big := strings.Repeat("0123456789\r\n", 40_000)
	on := mailtest.On
	tests := []struct {
		name    string
		hook    mailtest.Hook
		step    smtpclient.Step
		sent    smtpclient.Sent
		doubt   bool
		code    int // of the server's own words
		wraps   error
		perhaps smtpclient.Step // where the failure may show as well
	}{
		{"refused greeting", on(mailtest.StepConnect, mailtest.Reply(554, "5.3.2 go away")), smtpclient.StepGreeting, 0, false, 554, nil, ""},
		{"421 greeting", on(mailtest.StepConnect, mailtest.GoAway()), smtpclient.StepGreeting, 0, false, 421, nil, ""},
		{"no greeting", on(mailtest.StepConnect, mailtest.Hang()), smtpclient.StepGreeting, 0, false, 0, nil, ""},
		{"closed at once", on(mailtest.StepConnect, mailtest.Close()), smtpclient.StepGreeting, 0, false, 0, io.ErrUnexpectedEOF, ""},
		{"reset at once", on(mailtest.StepConnect, mailtest.Reset()), smtpclient.StepGreeting, 0, false, 0, nil, smtpclient.StepConnect},
		{"garbage greeting", on(mailtest.StepConnect, mailtest.Garbage("SSH-2.0-OpenSSH\r\n")), smtpclient.StepGreeting, 0, false, 0, smtpclient.ErrProtocol, ""},
		{"endless greeting line", on(mailtest.StepConnect, mailtest.Garbage("220 "+strings.Repeat("x", 9000)+"\r\n")), smtpclient.StepGreeting, 0, false, 0, smtpclient.ErrProtocol, ""},
		{"endless greeting", on(mailtest.StepConnect, mailtest.Garbage(strings.Repeat("220-x\r\n", 300))), smtpclient.StepGreeting, 0, false, 0, smtpclient.ErrProtocol, ""},
		{"positive nonsense greeting", on(mailtest.StepConnect, mailtest.Reply(250, "hi")), smtpclient.StepGreeting, 0, false, 0, smtpclient.ErrProtocol, ""},
		{"EHLO and HELO refused", on(mailtest.StepEHLO, mailtest.Reply(550, "5.7.1 no")), smtpclient.StepHello, 0, false, 550, nil, ""},
		{"EHLO 4xx", on(mailtest.StepEHLO, mailtest.Reply(450, "4.7.1 no")), smtpclient.StepHello, 0, false, 450, nil, ""},
		{"half EHLO", on(mailtest.StepEHLO, mailtest.HalfReply()), smtpclient.StepHello, 0, false, 0, io.ErrUnexpectedEOF, ""},
		{"MAIL 421", on(mailtest.StepMail, mailtest.GoAway()), smtpclient.StepMail, 0, false, 421, nil, ""},
		{"MAIL hangs", on(mailtest.StepMail, mailtest.Hang()), smtpclient.StepMail, 0, false, 0, nil, ""},
		{"MAIL closes", on(mailtest.StepMail, mailtest.Close()), smtpclient.StepMail, 0, false, 0, nil, ""},
		{"RCPT closes", on(mailtest.StepRcpt, mailtest.Close()), smtpclient.StepRcpt, 0, false, 0, nil, ""},
		{"RCPT garbage", on(mailtest.StepRcpt, mailtest.Garbage("\x00\xff\r\n")), smtpclient.StepRcpt, 0, false, 0, smtpclient.ErrProtocol, ""},
		{"RCPT 421", on(mailtest.StepRcpt, mailtest.GoAway()), smtpclient.StepRcpt, 0, false, 421, nil, ""},
		{"DATA hangs", on(mailtest.StepData, mailtest.Hang()), smtpclient.StepData, 0, false, 0, nil, ""},
		{"DATA 421", on(mailtest.StepData, mailtest.GoAway()), smtpclient.StepData, 0, false, 421, nil, ""},
		{"DATA 250", on(mailtest.StepData, mailtest.Reply(250, "ok")), smtpclient.StepData, 0, false, 0, smtpclient.ErrProtocol, ""},
		{"body cut", on(mailtest.StepData, mailtest.CutBody(100, mailtest.EndReset)), smtpclient.StepBody, smtpclient.SentPart, false, 0, nil, smtpclient.StepDot},
		{"dot hangs", on(mailtest.StepDot, mailtest.Action{Silent: true, Accept: true, End: mailtest.EndHang}), smtpclient.StepDot, smtpclient.SentAll, true, 0, nil, ""},
		{"dot reply dropped", on(mailtest.StepDot, mailtest.DropReply()), smtpclient.StepDot, smtpclient.SentAll, true, 0, nil, ""},
		{"dot garbage", on(mailtest.StepDot, mailtest.Garbage("what?\r\n")), smtpclient.StepDot, smtpclient.SentAll, true, 0, smtpclient.ErrProtocol, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSink(t, mailtest.SinkConfig{Hook: tt.hook})
			c, err := smtpclient.Dial(timeout(t), target(s))
			if err == nil {
				_, err = c.Send(timeout(t), message(t, big, "b@b.test"))
				if c.Usable() {
					t.Error("still usable")
				}
			}
			var e *smtpclient.Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v", err)
			}
			if e.Step == tt.perhaps {
				return
			}
			if e.Step != tt.step || e.Sent != tt.sent || e.InDoubt() != tt.doubt {
				t.Errorf("step %s, sent %d, in doubt %v: %v", e.Step, e.Sent, e.InDoubt(), err)
			}
			if r := e.Reply(); (r == nil) != (tt.code == 0) || r != nil && r.Code != tt.code {
				t.Errorf("reply %v, want %d", r, tt.code)
			}
			if tt.wraps != nil && !errors.Is(err, tt.wraps) {
				t.Errorf("error %v, want %v", err, tt.wraps)
			}
		})
	}
}

// brokenReader fails after its text.
type brokenReader struct {
	r   io.Reader
	err error
}

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = b.err
	}
	return n, err
}

// Whatever is wrong with the message or its lease, the server never sees the
// dot, and so never the message.
func TestNoDotUnlessAllIsWell(t *testing.T) {
	boom := errors.New("boom")
	big := strings.Repeat("0123456789\r\n", 40_000)
	tests := []struct {
		name  string
		tweak func(*smtpclient.Transaction)
		wraps []error
	}{
		{"reader error", func(x *smtpclient.Transaction) { x.Body = brokenReader{x.Body, boom} }, []error{smtpclient.ErrSource, boom}},
		{"reader error behind a line with one dot", func(x *smtpclient.Transaction) {
			x.Body, x.Size = brokenReader{strings.NewReader("a\r\n."), boom}, 0
		}, []error{smtpclient.ErrSource, boom}},
		{"shorter than declared", func(x *smtpclient.Transaction) { x.Size++ }, []error{smtpclient.ErrSource}},
		{"longer than declared", func(x *smtpclient.Transaction) { x.Size-- }, []error{smtpclient.ErrSource}},
		{"lease lost", func(x *smtpclient.Transaction) { x.BeforeDot = func() error { return boom } }, []error{smtpclient.ErrWithheld, boom}},
	}
	for _, tt := range tests {
		for _, body := range []string{small, big} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, len(body)), func(t *testing.T) {
				s := newSink(t, mailtest.SinkConfig{})
				tg := target(s)
				rec := recorded(&tg)
				c := dial(t, tg)
				tx := message(t, body, "b@b.test")
				tt.tweak(tx)
				as, err := c.Send(timeout(t), tx)
				for _, want := range tt.wraps {
					if !errors.Is(err, want) {
						t.Errorf("error %v, want %v", err, want)
					}
				}
				var e *smtpclient.Error
				if errors.As(err, &e) && e.InDoubt() || as[0].Reply.Code != 0 || c.Usable() {
					t.Errorf("%s, usable %v, error %v", codes(as), c.Usable(), err)
				}
				c.Quit(timeout(t))
				if all := strings.Join(rec.writes, ""); strings.Contains(all, "\n.\r\n") || strings.Contains(all, "QUIT") {
					t.Error("a final dot or a QUIT was written")
				}
				_ = s.Close()
				if n := s.Count(); n != 0 {
					t.Errorf("%d messages accepted", n)
				}
			})
		}
	}
}

func TestLMTP(t *testing.T) {
	hook := func(ev mailtest.Event) mailtest.Action {
		switch {
		case ev.Step == mailtest.StepRcpt && ev.Addr == "no@b.test":
			return mailtest.Reply(550, "5.1.1 no")
		case ev.Step == mailtest.StepDot && ev.Addr == "full@b.test":
			return mailtest.Reply(452, "4.2.2 full")
		case ev.Step == mailtest.StepDot && ev.Addr == "lost@b.test":
			return mailtest.DropReply()
		}
		return mailtest.Action{}
	}
	for _, network := range []string{"tcp", "unix"} {
		cfg := mailtest.SinkConfig{LMTP: true, Hook: hook}
		if network == "unix" {
			cfg.Socket = filepath.Join(t.TempDir(), "s")
		}
		s := newSink(t, cfg)
		tg := target(s)
		tg.LMTP, tg.Network = true, network
		c := dial(t, tg)
		as, err := c.Send(timeout(t), message(t, small, "a@b.test", "no@b.test", "full@b.test", "z@b.test"))
		if want := "end of data 250, RCPT 550, end of data 452, end of data 250"; err != nil || codes(as) != want {
			t.Errorf("%s: %s, error %v", network, codes(as), err)
		}
		as, err = c.Send(timeout(t), message(t, small, "a@b.test", "lost@b.test", "z@b.test"))
		var e *smtpclient.Error
		if !errors.As(err, &e) || !e.InDoubt() || codes(as) != "end of data 250,  0,  0" {
			t.Errorf("%s: %s, error %v", network, codes(as), err)
		}
		if cmds := s.Commands(1); cmds[0] != "LHLO client.test" {
			t.Errorf("%s: %q", network, cmds[0])
		}
	}
}

func TestParameters(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	c := dial(t, target(s))
	tx := message(t, small, "b@b.test", "ü@b.test", "\"x> NOTIFY=NEVER\"@b.test")
	tx.EightBit, tx.Ret, tx.EnvID = true, mail.RetHdrs, "a+b=c d\r\n"
	tx.Rcpts[0].Notify, tx.Rcpts[0].ORcpt = mail.NotifySuccess|mail.NotifyDelay, "rfc822;b+x@b.test"
	tx.Rcpts[1].Notify, tx.Rcpts[1].ORcpt = mail.NotifyNever, "utf-8;ü+\\@b.test"
	tx.Rcpts[2].ORcpt = "rfc822 x;a@b"
	if _, err := c.Send(timeout(t), tx); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"MAIL FROM:<from@a.test> SIZE=31 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb+3Dc+20d+0D+0A",
		"RCPT TO:<b@b.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+2Bx@b.test",
		`RCPT TO:<ü@b.test> NOTIFY=NEVER ORCPT=utf-8;\x{FC}\x{2B}\x{5C}@b.test`,
		`RCPT TO:<"x> NOTIFY=NEVER"@b.test>`, "DATA",
	}
	if d := cmp.Diff(want, s.Commands(1)[1:]); d != "" {
		t.Error(d)
	}
}

func TestServerWithoutExtensions(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Extensions: []string{}})
	c := dial(t, target(s))
	tx := message(t, "Subject: grün\r\n\r\nö\r\n", "b@b.test", "ü@b.test")
	tx.EightBit, tx.UTF8, tx.EnvID, tx.Rcpts[0].Notify = true, true, "x", mail.NotifySuccess
	as, err := c.Send(timeout(t), tx)
	if err != nil || codes(as) != "end of data 250, RCPT 550" || as[1].Reply.Enhanced != (mail.Enhanced{5, 6, 7}) {
		t.Fatalf("%s, error %v", codes(as), err)
	}
	tx = message(t, small, "b@b.test")
	tx.From = addr(t, "ü@a.test")
	if as, err = c.Send(timeout(t), tx); err != nil || codes(as) != "RCPT 550" {
		t.Fatalf("%s, error %v", codes(as), err)
	}
	want := []string{"MAIL FROM:<from@a.test>", "RCPT TO:<b@b.test>", "DATA"}
	if d := cmp.Diff(want, s.Commands(1)[1:]); d != "" {
		t.Error(d)
	}
	if m := s.Messages(); string(m[0].Body) != "Subject: grün\r\n\r\nö\r\n" {
		t.Errorf("body %q", m[0].Body)
	}
}

func TestManyRecipients(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Users: func(a string) bool { return !strings.HasPrefix(a, "no") }})
	c := dial(t, target(s))
	tx := message(t, small)
	for i := range 2000 {
		name := "yes"
		if i%3 == 0 {
			name = "no"
		}
		tx.Rcpts = append(tx.Rcpts, smtpclient.Rcpt{Addr: addr(t, fmt.Sprintf("%s%d@b.test", name, i))})
	}
	as, err := c.Send(timeout(t), tx)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range as {
		if refused := a.Reply.Code == 550; refused != (i%3 == 0) {
			t.Fatalf("recipient %d: %v", i, a)
		}
	}
	if n := len(s.Messages()[0].Rcpts); n != 2000-667 {
		t.Errorf("%d recipients", n)
	}
}
