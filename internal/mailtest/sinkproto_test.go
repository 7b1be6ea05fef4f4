package mailtest_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/google/go-cmp/cmp"
)

const lmtpTwo = `
S: 220 * LMTP *
C: EHLO wrong
S: 500 *
C: LHLO client.test
S... 250 *
C: MAIL FROM:<>
S: 250 *
C: RCPT TO:<a@y.test>
S: 250 *
C: RCPT TO:<b@y.test>
S: 250 *
C: RCPT TO:<c@y.test>
S: 250 *
C: DATA
S: 354 *
C: x
C: .
`

func TestSinkLMTP(t *testing.T) {
	b := func(a mailtest.Action) mailtest.Hook { return mailtest.ForAddr("b@y.test", mailtest.StepDot, a) }
	tests := []struct {
		name     string
		hook     mailtest.Hook
		replies  string
		accepted []string
		replied  []bool
	}{
		{"all", nil, "S: 250 *\nS: 250 *\nS: 250 *", []string{"a@y.test", "b@y.test", "c@y.test"}, []bool{true, true, true}},
		{"one deferred", b(mailtest.Reply(452, "4.2.2 full")), "S: 250 *\nS: 452 *\nS: 250 *", []string{"a@y.test", "c@y.test"}, []bool{true, true}},
		{"closed in between", b(mailtest.Close()), "S: 250 *\nEOF", []string{"a@y.test"}, []bool{true}},
		{"second reply lost", b(mailtest.DropReply()), "S: 250 *\nEOF", []string{"a@y.test", "b@y.test"}, []bool{true, false}},
		{"421 in between", b(mailtest.GoAway()), "S: 250 *\nS: 421 *\nEOF", []string{"a@y.test"}, []bool{true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSink(t, mailtest.SinkConfig{LMTP: true, Hook: tt.hook, Socket: filepath.Join(t.TempDir(), "s")})
			play(t, s.Addr(), lmtpTwo+tt.replies)
			if want := "lmtp+unix://" + s.Addr(); s.URL("") != want {
				t.Errorf("URL %s, want %s", s.URL(""), want)
			}
			m := s.Messages()[0]
			if !cmp.Equal(m.Addrs(), tt.accepted) {
				t.Errorf("accepted %v, want %v", m.Addrs(), tt.accepted)
			}
			for i, r := range m.Rcpts {
				if r.Replied != tt.replied[i] {
					t.Errorf("%s: Replied = %v", r.Addr, r.Replied)
				}
			}
		})
	}
}

func TestSinkUsersAndDelivery(t *testing.T) {
	var got []string
	s := newSink(t, mailtest.SinkConfig{
		MaxSize: 10,
		Users:   func(a string) bool { return a != "eve@y.test" },
		Deliver: func(from, rcpt string, body []byte) error {
			if rcpt == "bad@y.test" {
				return errors.New("mailbox is broken")
			}
			got = append(got, from+">"+rcpt+":"+string(body))
			return nil
		},
	})
	play(t, s.Addr(), hello+`
C: RCPT TO:<a@y.test>
S: 503 *
C: MAIL FROM:x
S: 501 *
C: MAIL FROM:<a@x.test>
S: 250 *
C: MAIL FROM:<a@x.test>
S: 503 *
C: RCPT TO:<eve@y.test>
S: 550 5.1.1 *
C: RCPT TO:<"a>b c"@y.test> ORCPT=rfc822;x NOTIFY=NEVER
S: 250 *
C: DATA
S: 354 *
C: body
C: .
S: 250 *
C: MAIL FROM:<>
S: 250 *
C: RCPT TO:<bad@y.test>
S: 250 *
C: DATA
S: 354 *
C: .
S: 451 4.3.0 delivery failed: mailbox is broken
C: MAIL FROM:<>
S: 250 *
C: RCPT TO:<a@y.test>
S: 250 *
C: DATA
S: 354 *
C: 0123456789
C: .
S: 552 *
C: RSET
S: 250 *
C: DATA
S: 503 *
C: FLY
S: 500 *
C- NOOP\n
S: 500 5.5.2 *
`)
	if want := []string{"a@x.test>\"a>b c\"@y.test:body\r\n"}; !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	m := s.Messages()
	if len(m) != 1 || !cmp.Equal(m[0].Rcpts[0].Params, []string{"ORCPT=rfc822;x", "NOTIFY=NEVER"}) {
		t.Errorf("%+v", m)
	}
}

func TestSinkTLS(t *testing.T) {
	ca, err := mailtest.NewCA()
	must(t, err)
	server, err := ca.ServerConfig("mx.test", "127.0.0.1")
	must(t, err)
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: "mx.test"}
	_, err = mailtest.NewSink(mailtest.SinkConfig{STARTTLS: true})
	if err == nil {
		t.Error("STARTTLS without a certificate was accepted")
	}

	t.Run("starttls", func(t *testing.T) {
		s := newSink(t, mailtest.SinkConfig{TLS: server, STARTTLS: true})
		conn, err := net.Dial("tcp", s.Addr())
		must(t, err)
		defer func() { _ = conn.Close() }()
		br := bufio.NewReader(conn)
		expect(t, br, "220")
		send(t, conn, "EHLO a\r\n")
		if !strings.Contains(expect(t, br, "250"), "STARTTLS") {
			t.Error("STARTTLS is not offered")
		}
		send(t, conn, "STARTTLS\r\n")
		expect(t, br, "220")
		finishOverTLS(t, tls.Client(conn, client), s, false)
	})
	t.Run("implicit", func(t *testing.T) {
		s := newSink(t, mailtest.SinkConfig{TLS: server, ImplicitTLS: true})
		conn, err := tls.Dial("tcp", s.Addr(), client)
		must(t, err)
		defer func() { _ = conn.Close() }()
		finishOverTLS(t, conn, s, true)
	})
	t.Run("injection", func(t *testing.T) {
		s := newSink(t, mailtest.SinkConfig{TLS: server, STARTTLS: true})
		play(t, s.Addr(), hello+"C- STARTTLS\\r\\nMAIL FROM:<x@y.test>\\r\\n\nEOF")
	})
}

// finishOverTLS sends one message and expects Message.TLS, and a close_notify behind QUIT.
func finishOverTLS(t *testing.T, conn *tls.Conn, s *mailtest.Sink, greeting bool) {
	t.Helper()
	br := bufio.NewReader(conn)
	if greeting {
		expect(t, br, "220")
	}
	for _, step := range [][2]string{
		{"EHLO a\r\n", "250"}, {"MAIL FROM:<>\r\n", "250"}, {"RCPT TO:<b@y.test>\r\n", "250"}, {"DATA\r\n", "354"}, {".\r\n", "250"}, {"QUIT\r\n", "221"},
	} {
		send(t, conn, step[0])
		if strings.Contains(expect(t, br, step[1]), "STARTTLS") {
			t.Error("STARTTLS is offered twice")
		}
	}
	if _, err := br.ReadByte(); err == nil || err.Error() != "EOF" {
		t.Errorf("after QUIT: %v, want a clean end", err)
	}
	if m := s.Messages(); len(m) != 1 || !m[0].TLS {
		t.Errorf("%+v", m)
	}
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	_, err := conn.Write([]byte(text))
	must(t, err)
}

// expect reads a whole reply and checks its code.
func expect(t *testing.T, br *bufio.Reader, code string) string {
	t.Helper()
	var all strings.Builder
	for {
		line, err := br.ReadString('\n')
		must(t, err)
		all.WriteString(line)
		if !strings.HasPrefix(line, code) {
			t.Fatalf("reply %q, want %s", line, code)
		}
		if line[3] == ' ' {
			return all.String()
		}
	}
}

func TestSinkAuth(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Auth: func(u, p string) bool { return u == "u" && p == "p" }})
	play(t, s.Addr(), hello+`
C: MAIL FROM:<>
S: 530 *
C: AUTH PLAIN AHUAeA==
S: 535 *
C: AUTH CRAM-MD5
S: 504 *
C: AUTH LOGIN
S: 334 *
C: dQ==
S: 334 *
C: cA==
S: 235 *
C: AUTH PLAIN AHUAcA==
S: 503 *
C: MAIL FROM:<>
S: 250 *
`)
	for _, c := range s.Commands(1) {
		if strings.Contains(c, "AHUA") {
			t.Errorf("a credential was kept: %s", c)
		}
	}
}

func TestSinkChunking(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Extensions: []string{"CHUNKING", "XCLIENT NAME ADDR"}})
	play(t, s.Addr(), hello+`
C: XCLIENT NAME=x
S: 220 *
C: EHLO again
S... 250 *
C: MAIL FROM:<>
S: 250 *
C: RCPT TO:<b@y.test>
S: 250 *
C- BDAT 3\r\n.\r\n
S: 250 *
C- BDAT 2 LAST\r\nok
S: 250 *
`)
	if m := s.Messages(); len(m) != 1 || string(m[0].Body) != ".\r\nok" {
		t.Errorf("%+v", m)
	}
	play(t, s.Addr(), hello+"C: MAIL FROM:<>\nS: 250 *\nC: BDAT x\nS: 501 *\nEOF")
}

func TestSinkPipelining(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	play(t, s.Addr(), hello+`C- MAIL FROM:<>\r\nRCPT TO:<a@y.test>\r\nDATA\r\n
S: 250 *
S: 250 *
S: 354 *
C- .\r\nQUIT\r\n
S: 250 *
S: 221 *
EOF`)
}

func TestSinkHangs(t *testing.T) {
	release := make(chan struct{})
	tests := []struct {
		name string
		a    mailtest.Action
	}{
		{"hang", mailtest.Hang()},
		{"stall", mailtest.Action{Silent: true, End: mailtest.EndStall}},
		{"wait", mailtest.Action{Wait: release}},
		{"delay", mailtest.Action{Delay: time.Hour}},
		{"drip", mailtest.Drip(time.Hour)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSink(t, mailtest.SinkConfig{Hook: mailtest.On(mailtest.StepMail, tt.a)})
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			err := mailtest.RunDialogue(ctx, s.Addr(), hello+"C: MAIL FROM:<>\nS: 250 *")
			if err == nil || !strings.Contains(err.Error(), "line 6") {
				t.Errorf("got %v, want a timeout at line 6", err)
			}
			must(t, s.Close()) // must end the connection whatever it waits for
		})
	}
}

func TestSinkResetIsReset(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{Hook: mailtest.On(mailtest.StepEHLO, mailtest.Reset())})
	conn, err := net.Dial("tcp", s.Addr())
	must(t, err)
	defer func() { _ = conn.Close() }()
	br := bufio.NewReader(conn)
	expect(t, br, "220")
	send(t, conn, "EHLO a\r\n")
	if _, err := br.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
	s.SetHook(nil)
	play(t, s.Addr(), sendOne+"S: 250 *")
}

func TestSinkDownAndUp(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	play(t, s.Addr(), sendOne+"S: 250 *")
	addr := s.Addr()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer func() { _ = conn.Close() }()
	s.Down()
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("still listening")
	}
	must(t, s.Up())
	play(t, addr, sendOne+"S: 250 *")
	if total, _ := s.Connections(); s.Count() != 2 || total < 2 {
		t.Errorf("%d messages, %d connections", s.Count(), total)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Wait(ctx, 3); err == nil || !strings.Contains(err.Error(), "only 2 came") {
		t.Errorf("Wait: %v", err)
	}
	s.Forget()
	must(t, s.Close())
	must(t, s.Close())
	if s.Up() == nil {
		t.Error("a closed sink came up")
	}
	if _, err := s.Wait(t.Context(), 1); err == nil {
		t.Error("Wait on a closed sink did not fail")
	}
}

func TestDialogueErrors(t *testing.T) {
	s := newSink(t, mailtest.SinkConfig{})
	tests := []struct{ script, want string }{
		{"\n# comment\nS: 250 *", `line 3: "S: 250 *": the server said "220 sink.test`},
		{"S: 220 *\nhello", "line 2"},
		{"S: 220 *\nC: \\q", `unknown escape \q`},
		{"S: 220 *\nC: \\xg1", "hexadecimal"},
		{"S: 220 *\nC: \\x4", "hexadecimal"},
		{"S: 220 *\nC: x\\", "line 2"},
		{"S: 220 *\nC: QUIT\nS... 250 *", `the last was "221`},
		{"S: 220 *\nC: NOOP\nEOF", `did not close but said "250`},
	}
	for _, tt := range tests {
		err := mailtest.RunDialogue(timeout(t), s.Addr(), tt.script)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s", tt.script, err, tt.want)
		}
	}
	// The context's end must not pass for the server's.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := mailtest.RunDialogue(ctx, s.Addr(), "S: 220 *\nEOF"); err == nil {
		t.Error("EOF matched a connection that is still open")
	}
	play(t, s.Addr(), "S: 22? *\nC: VR\\x46Y [a/b]\\\\\nS: 252 2.5.2 send some mail, * try\nC: HELP\nS: 214 ?.0.0 RFC*")
}

func TestWritePEM(t *testing.T) {
	ca, err := mailtest.NewCA()
	must(t, err)
	now := time.Now()
	old, err := ca.IssueValid(now.Add(-2*time.Hour), now.Add(-time.Hour), "old.test")
	must(t, err)
	f, err := ca.WritePEM(t.TempDir(), old)
	must(t, err)
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	must(t, err)
	if pair.Leaf.DNSNames[0] != "old.test" || pair.Leaf.NotAfter.After(now) {
		t.Errorf("%+v", pair.Leaf)
	}
	if st, err := os.Stat(f.Key); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v", st.Mode(), err)
	}
}

// The demo imports this package: no test library may come with it.
func TestNoTestLibrary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if dep == "testing" || strings.HasSuffix(dep, "/realtest") || strings.Contains(dep, "goleak") || strings.Contains(dep, "go-cmp") {
			t.Errorf("the package depends on %s", dep)
		}
	}
}
