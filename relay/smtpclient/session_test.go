package smtpclient_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/relay/smtpclient"

	"github.com/google/go-cmp/cmp"
)

func TestContextEnds(t *testing.T) {
	for _, step := range []mailtest.Step{mailtest.StepConnect, mailtest.StepMail, mailtest.StepDot} {
		ctx, cancel := context.WithCancel(timeout(t))
		s := newSink(t, mailtest.SinkConfig{Hook: func(ev mailtest.Event) mailtest.Action {
			if ev.Step != step {
				return mailtest.Action{}
			}
			cancel()
			return mailtest.Hang()
		}})
		tg := target(s)
		tg.Timeouts = smtpclient.Timeouts{}
		c, err := smtpclient.Dial(ctx, tg)
		if err == nil {
			_, err = c.Send(ctx, message(t, small, "b@b.test"))
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: error %v", step, err)
		}
	}
}

func TestHealthySeesServerLeave(t *testing.T) {
	for _, a := range []mailtest.Action{mailtest.GoAway(), {Silent: true, End: mailtest.EndClose}, {Silent: true, End: mailtest.EndReset}} {
		leave := make(chan struct{})
		a.Wait = leave
		s := newSink(t, mailtest.SinkConfig{Hook: func(ev mailtest.Event) mailtest.Action {
			if ev.Step == mailtest.StepAfter && ev.Of == mailtest.StepDot {
				return a
			}
			return mailtest.Action{}
		}})
		c := dial(t, target(s))
		if _, err := c.Send(timeout(t), message(t, small, "b@b.test")); err != nil {
			t.Fatal(err)
		}
		if !c.Healthy() {
			t.Error("not healthy while the server is there")
		}
		close(leave)
		ctx, tick := timeout(t), time.NewTicker(time.Millisecond)
		for c.Healthy() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatal("the server left and the connection counts as healthy")
			}
		}
		tick.Stop()
	}
}

func TestTLSModes(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	trusted := &tls.Config{RootCAs: ca.Pool()}
	stranger := &tls.Config{}
	garbage := mailtest.Action{Raw: []byte("220 go\r\n250 injected\r\n")}
	tests := []struct {
		name      string
		sink      mailtest.SinkConfig
		mode      smtpclient.Mode
		tls       *tls.Config
		encrypted bool
		wantErr   string
	}{
		{"opportunistic", mailtest.SinkConfig{STARTTLS: true}, smtpclient.Opportunistic, trusted, true, ""},
		{"opportunistic, unknown certificate", mailtest.SinkConfig{STARTTLS: true}, smtpclient.Opportunistic, stranger, true, ""},
		{"opportunistic, not offered", mailtest.SinkConfig{}, smtpclient.Opportunistic, stranger, false, ""},
		{"opportunistic, refused", mailtest.SinkConfig{STARTTLS: true, Hook: mailtest.On(mailtest.StepSTARTTLS, mailtest.Reply(454, "4.7.0 later"))}, smtpclient.Opportunistic, trusted, false, ""},
		{"opportunistic, broken", mailtest.SinkConfig{STARTTLS: true, Hook: mailtest.On(mailtest.StepSTARTTLS, mailtest.Action{Raw: []byte("220 go\r\n"), End: mailtest.EndClose})}, smtpclient.Opportunistic, trusted, false, ""},
		{"required", mailtest.SinkConfig{STARTTLS: true}, smtpclient.Required, trusted, true, ""},
		{"required, not offered", mailtest.SinkConfig{}, smtpclient.Required, trusted, false, "required"},
		{"required, unknown certificate", mailtest.SinkConfig{STARTTLS: true}, smtpclient.Required, stranger, false, "certificate"},
		{"required, clear text behind STARTTLS", mailtest.SinkConfig{STARTTLS: true, Hook: mailtest.On(mailtest.StepSTARTTLS, garbage)}, smtpclient.Required, trusted, false, "clear text behind"},
		{"implicit", mailtest.SinkConfig{ImplicitTLS: true}, smtpclient.Implicit, trusted, true, ""},
		{"implicit, unknown certificate", mailtest.SinkConfig{ImplicitTLS: true}, smtpclient.Implicit, stranger, false, "certificate"},
		{"insecure ignores the offer", mailtest.SinkConfig{STARTTLS: true}, smtpclient.Insecure, trusted, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.sink.TLS = server
			s := newSink(t, tt.sink)
			tg := target(s)
			tg.Mode, tg.TLS = tt.mode, tt.tls
			tg.Timeouts.Hello = 3 * time.Second
			c, err := smtpclient.Dial(timeout(t), tg)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Send(timeout(t), message(t, small, "b@b.test")); err != nil {
				t.Fatal(err)
			}
			if m := s.Messages(); c.Encrypted() != tt.encrypted || m[0].TLS != tt.encrypted {
				t.Errorf("encrypted %v, want %v", c.Encrypted(), tt.encrypted)
			}
			if !c.Healthy() {
				t.Error("not healthy")
			}
		})
	}
}

func TestHELOFallback(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Hook: func(ev mailtest.Event) mailtest.Action {
		if ev.Step == mailtest.StepEHLO && strings.HasPrefix(ev.Line, "EHLO") {
			return mailtest.Reply(502, "5.5.1 what?")
		}
		return mailtest.Action{}
	}})
	c := dial(t, target(s))
	if c.Caps() != (smtpclient.Caps{}) {
		t.Errorf("capabilities %+v behind HELO", c.Caps())
	}
	if _, err := c.Send(timeout(t), message(t, small, "b@b.test")); err != nil {
		t.Fatal(err)
	}
	want := []string{"EHLO client.test", "HELO client.test", "MAIL FROM:<from@a.test>", "RCPT TO:<b@b.test>", "DATA"}
	if d := cmp.Diff(want, s.Commands(1)); d != "" {
		t.Error(d)
	}
}

// A connection whose context ended while it was used has a deadline in the past, or
// gets one any moment: it must not be kept for the next message.
func TestContextEndedSpoilsConnection(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Extensions: []string{"PIPELINING"}})
	c := dial(t, target(s))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	as, err := c.Send(ctx, message(t, small, "grün@b.test")) // nothing is said to the server
	if err != nil || codes(as) != "RCPT 550" {
		t.Fatalf("%s, error %v", codes(as), err)
	}
	if c.Usable() {
		t.Error("the connection could be used again")
	}
}

// A reply that nobody asked for would shift all replies behind it by one.
func TestUnaskedReplyEndsConnection(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Hook: func(ev mailtest.Event) mailtest.Action {
		if ev.Step == mailtest.StepDot {
			return mailtest.Action{Raw: []byte("250 ok\r\n250 ok again\r\n"), Accept: true}
		}
		return mailtest.Action{}
	}})
	c := dial(t, target(s))
	if as, err := c.Send(timeout(t), message(t, small, "b@b.test")); err != nil || codes(as) != "end of data 250" {
		t.Fatalf("%s, error %v", codes(as), err)
	}
	if c.Healthy() {
		t.Error("healthy with an unread reply")
	}
	as, err := c.Send(timeout(t), message(t, small, "b@b.test"))
	if !errors.Is(err, smtpclient.ErrProtocol) || as[0].Reply.Code != 0 {
		t.Errorf("%s, error %v", codes(as), err)
	}
}

// A message that must not be delivered ends in a reset. A server could take an
// orderly end of the stream for the end of the message.
func TestWithheldDotResets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(8 * time.Second))
		br := bufio.NewReader(c)
		_, err = io.WriteString(c, "220 x\r\n")
		for err == nil {
			var line string
			if line, err = br.ReadString('\n'); err == nil && len(line) > 3 {
				if code, ok := map[string]string{"EHLO": "250 x\r\n", "MAIL": "250 ok\r\n", "RCPT": "250 ok\r\n", "DATA": "354 go\r\n"}[line[:4]]; ok {
					_, err = io.WriteString(c, code)
				}
			}
		}
		ended <- err
	}()
	c := dial(t, smtpclient.Target{Address: l.Addr().String(), Mode: smtpclient.Insecure})
	big := strings.Repeat("0123456789\r\n", 10_000)
	tx := message(t, big, "b@b.test")
	tx.BeforeDot = func() error { return errors.New("lost") }
	if _, err := c.Send(timeout(t), tx); !errors.Is(err, smtpclient.ErrWithheld) {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the server saw %v, not a reset", err)
	}
}

func TestBadTarget(t *testing.T) {
	for _, tg := range []smtpclient.Target{{}, {Address: "127.0.0.1:1", Hello: "a b"}, {Address: "127.0.0.1:1", Hello: "a\r\nMAIL"}} {
		if _, err := smtpclient.Dial(timeout(t), tg); err == nil {
			t.Errorf("%+v was taken", tg)
		}
	}
}

func TestVerify(t *testing.T) {
	for _, ext := range [][]string{nil, {}} {
		s := newSink(t, mailtest.SinkConfig{Extensions: ext, Users: func(a string) bool { return a == "yes@b.test" }})
		c := dial(t, target(s))
		for _, tt := range []struct {
			addr string
			code int
		}{{"yes@b.test", 250}, {"no@b.test", 550}, {"yes@b.test", 250}} {
			a, err := c.Verify(timeout(t), addr(t, tt.addr))
			if err != nil || a.Step != smtpclient.StepRcpt || a.Reply.Code != tt.code {
				t.Errorf("%s: %v, error %v", tt.addr, a, err)
			}
		}
		s.SetHook(mailtest.On(mailtest.StepMail, mailtest.Reply(451, "no")))
		if a, err := c.Verify(timeout(t), addr(t, "yes@b.test")); err != nil || a.Step != smtpclient.StepMail || a.Reply.Code != 451 {
			t.Errorf("%v, error %v", a, err)
		}
		s.SetHook(nil)
		if as, err := c.Send(timeout(t), message(t, small, "yes@b.test")); err != nil || codes(as) != "end of data 250" {
			t.Errorf("%s, error %v", codes(as), err)
		}
		s.SetHook(mailtest.On(mailtest.StepRcpt, mailtest.GoAway()))
		if _, err := c.Verify(timeout(t), addr(t, "yes@b.test")); err == nil || c.Usable() {
			t.Errorf("error %v, usable %v", err, c.Usable())
		}
	}
}
