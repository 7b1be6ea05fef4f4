package wire

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
)

// TestCutShort ends the connection inside a message in each way there is. The
// library alone takes a chunk cut short by a FIN for the end of the message, and
// queues what there is.
func TestCutShort(t *testing.T) {
	t.Run("library", func(t *testing.T) { cutShort(t) })
	t.Run("direct", func(t *testing.T) {
		cutShort(t, func(s *server, _ *smtp.Server) { s.direct = direct })
	})
}

func cutShort(t *testing.T, with ...func(*server, *smtp.Server)) {
	t.Helper()
	starts := map[string]string{
		"data":              "DATA\r\nhalf a mess",
		"data behind a dot": "DATA\r\nhalf a message\r\n.",
		"data behind CR":    "DATA\r\nhalf a message\r\n.\r",
		"bdat":              "BDAT 100\r\nhalf",
		"bdat last":         "BDAT 100 LAST\r\nhalf\r\n",
		"between chunks":    "BDAT 4\r\nhalf",
		"bdat without any":  "BDAT 100 LAST\r\n",
	}
	cuts := map[string]func(p *peer, raw *net.TCPConn){
		"fin":          func(_ *peer, raw *net.TCPConn) { _ = raw.CloseWrite() },
		"rst":          func(_ *peer, raw *net.TCPConn) { _ = raw.SetLinger(0); _ = raw.Close() },
		"close_notify": func(p *peer, _ *net.TCPConn) { _ = p.conn.(*tls.Conn).CloseWrite() },
	}
	s := start(t, withTLS(t, Config{}), with...)
	wantFailed := 0
	for what, text := range starts {
		for how, cut := range cuts {
			for _, secure := range []bool{false, true} {
				if how == "close_notify" && !secure {
					continue
				}
				p := s.greeted()
				raw := p.conn.(*net.TCPConn)
				if secure {
					p.startTLS()
					p.send("EHLO again\r\n")
					p.want("250 ")
				}
				p.send(envelope)
				p.want("250 ", "250 ")
				p.send(text)
				if strings.HasPrefix(text, "DATA") {
					p.want("354 ")
				}
				wantFailed++
				// In the body for certain, or the cut could come before it.
				eventually(t, what+" reached the body", func() bool { return s.inBody() > 0 })
				cut(p, raw)
				eventually(t, what+" cut by "+how, func() bool { return len(s.errors()) == wantFailed })
				if err := s.errors()[wantFailed-1]; !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%s cut by %s, TLS %v: the session was told %v", what, how, secure, err)
				}
				eventually(t, "connection gone", func() bool { return s.l.Len() == 0 })
			}
		}
	}
	if n := len(s.messages()); n != 0 {
		t.Errorf("%d messages cut short were taken for whole", n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log.Len() != 0 {
		t.Errorf("the library logged %q", s.log.String())
	}
}

// TestForeignErrors: the library makes a plain error of Session.Data a permanent
// refusal and shows its text to the peer.
func TestForeignErrors(t *testing.T) {
	s := start(t, Config{}, func(s *server, _ *smtp.Server) { s.dataErr = errors.New("secret\npath /var/x") })
	p := s.greeted()
	p.send(envelope + "DATA\r\nx\r\n.\r\n")
	p.want("250 ", "250 ", "354 ")
	line, err := p.r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "451 4.3.0 ") || strings.Contains(line, "secret") {
		t.Errorf("reply %q, %v", line, err)
	}
	p.send("NOOP\r\n")
	p.want("250 2.0.0 ok")
}

// TestNoSession: what NewSession says is the answer to MAIL.
func TestNoSession(t *testing.T) {
	for _, code := range []int{451, 421} {
		s := start(t, Config{}, func(s *server, _ *smtp.Server) {
			s.sessionErr = &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{4, 3, 2}, Message: "not now"}
		})
		p := s.greeted()
		p.send("MAIL FROM:<a@client.test>\r\nRCPT TO:<b@ours.test>\r\n")
		if code == 421 {
			p.want("421 4.3.2 not now", "<eof>")
			continue
		}
		p.want("451 4.3.2 not now", "503 ")
		s.mu.Lock()
		s.sessionErr = nil
		s.mu.Unlock()
		p.send(envelope)
		p.want("250 ", "250 ")
	}
}

// TestExactSize: with one more for the library, a message of exactly the limit
// passes, in both ways to send it, and one byte more does not.
func TestExactSize(t *testing.T) {
	const limit = 5000
	s := start(t, Config{}, func(_ *server, lib *smtp.Server) { lib.MaxMessageBytes = limit + 1 })
	p := s.greeted()
	for _, extra := range []int{0, 1} {
		body := strings.Repeat("x", limit-2+extra) + "\r\n"
		want := []string{"250 2.0.0 queued", "552 5.3.4"}[extra]
		p.send(envelope + "DATA\r\n" + body + ".\r\n")
		p.want("250 ", "250 ", "354 ", want)
		size := []string{"5000", "5001"}[extra]
		p.send(envelope + "BDAT " + size + " LAST\r\n" + body)
		p.want("250 ", "250 ", want)
	}
	p.send("MAIL FROM:<a@client.test> SIZE=5002\r\n")
	p.want("552 5.3.4")
	if n := len(s.messages()); n != 2 {
		t.Errorf("%d messages taken, want 2", n)
	}
}

// TestDirectBody: the limit of Body is exact, and what a session leaves unread is
// skipped, wherever it stops.
func TestDirectBody(t *testing.T) {
	const limit = 5000
	s := start(t, Config{}, func(s *server, _ *smtp.Server) {
		s.direct = func(c *Conn, _ io.Reader) io.Reader { return c.Body(limit) }
	})
	p := s.greeted()
	for _, extra := range []int{0, 1} {
		body := strings.Repeat("x", limit-2+extra) + "\r\n"
		want := []string{"250 2.0.0 queued", "451 "}[extra]
		p.send(envelope + "DATA\r\n" + body + ".\r\n")
		p.want("250 ", "250 ", "354 ", want)
		p.send(envelope + "BDAT 5 LAST\r\nabcdeNOOP\r\n")
		p.want("250 ", "250 ", "250 2.0.0 queued", "250 2.0.0 ok")
	}
	if err := s.errors()[0]; !errors.Is(err, ErrTooLarge) {
		t.Errorf("the session was told %v", err)
	}
	for stop := range 12 {
		s.mu.Lock()
		s.direct = func(c *Conn, _ io.Reader) io.Reader { return io.LimitReader(c.Body(0), int64(stop)) }
		s.mu.Unlock()
		p.send(envelope + "DATA\r\nab.\r\n..\r\nx\r\n.\r\nNOOP\r\n")
		p.want("250 ", "250 ", "354 ", "250 2.0.0 queued", "250 2.0.0 ok")
		p.send(envelope + "BDAT 3\r\nab.BDAT 8 LAST\r\n\r\n.\r\nx\r\nNOOP\r\n")
		p.want("250 ", "250 ", "250 2.0.0 chunk", "250 2.0.0 queued", "250 2.0.0 ok")
	}
}

// TestLongLines: 64 KiB with the CRLF passes, one byte more is refused for good.
func TestLongLines(t *testing.T) {
	s := start(t, Config{})
	p := s.greeted()
	for _, secondLine := range []int{65534, 65535} {
		want := "250 2.0.0 queued"
		if secondLine > 65534 {
			want = "554 5.6.0"
		}
		body := "Subject: x\r\n" + strings.Repeat("y", secondLine) + "\r\n"
		p.send(envelope + "DATA\r\n" + body + ".\r\nNOOP\r\n")
		p.want("250 ", "250 ", "354 ", want, "250 2.0.0 ok")
	}
	big := strings.Repeat("z", 300<<10)
	p.send(envelope + "BDAT 307200 LAST\r\n" + big + "NOOP\r\n")
	p.want("250 ", "250 ", "554 5.6.0", "250 2.0.0 ok")
}

// TestBodyBound: a message that has been refused is not read for ever.
func TestBodyBound(t *testing.T) {
	s := start(t, Config{MaxBody: 100 << 10}, func(_ *server, lib *smtp.Server) { lib.MaxMessageBytes = 1000 })
	for _, cmd := range []string{
		envelope + "DATA\r\n",
		envelope + "DATA\r\n\n.\r\n", // refused by the guard
		envelope + "BDAT 100000000 LAST\r\n",
		"BDAT 100000000 LAST\r\n", // refused by the guard
	} {
		p := s.greeted()
		p.send(cmd)
		line := strings.Repeat("x", 998) + "\r\n"
		for range 2000 {
			if _, err := io.WriteString(p.conn, line); err != nil {
				break
			}
		}
		for got := ""; !strings.HasPrefix(got, "552 5.3.4 message far over"); got = p.reply() {
			if got == "<eof>" {
				t.Errorf("%q: not told that it is too much", cmd)
				break
			}
		}
		_ = p.conn.Close()
		eventually(t, "cut off", func() bool { return s.l.Len() == 0 })
	}
	if n := len(s.messages()); n != 0 {
		t.Errorf("%d messages taken", n)
	}
}

// TestLastWords: a client that is cut off while it sends gets to read why.
func TestLastWords(t *testing.T) {
	s := start(t, Config{MaxBody: 100 << 10})
	for range 5 {
		p := s.greeted()
		p.send(envelope + "DATA\r\n")
		p.want("250 ", "250 ", "354 ")
		piece := strings.Repeat(strings.Repeat("x", 998)+"\r\n", 200)
		p.send(piece)
		p.want("552 5.3.4")
		for range 4 {
			p.send(piece) // a reset would make this fail
		}
		p.want("<eof>")
		_ = p.conn.Close()
	}
}

// TestOverload: a sick store is told before anything else.
func TestOverload(t *testing.T) {
	s := start(t, Config{Overload: func() string { return "4.3.1 no space\r\nleft" }})
	p := s.dial()
	p.want("421 4.3.1 no space  left", "<eof>")
}

// countingConn counts the writes of the server side.
type countingListener struct {
	net.Listener
	writes chan int
}

type countingConn struct {
	net.Conn
	l *countingListener
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countingConn{c, l}, nil
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.l.writes <- len(p)
	return c.Conn.Write(p)
}

// TestOneWritePerGroup: a pipelined group costs one write (RFC 2920, 3.2).
func TestOneWritePerGroup(t *testing.T) {
	s, l := startCounting(t, Config{})
	p := s.greeted()
	<-l.writes // 220
	<-l.writes // EHLO
	p.send("MAIL FROM:<a@client.test>\r\n" + strings.Repeat("RCPT TO:<b@ours.test>\r\n", 20) + "DATA\r\n")
	for range 21 {
		p.want("250 ")
	}
	p.want("354 ")
	if n := len(l.writes); n != 1 {
		t.Errorf("%d writes for one group", n)
	}
	p.send("x\r\n.\r\n")
	p.want("250 ")
}

// TestManyRecipients: replies are not held back without bound, and a group larger
// than every buffer keeps its order.
func TestManyRecipients(t *testing.T) {
	s, l := startCounting(t, Config{MaxRcptErrors: -1})
	p := s.greeted()
	var group strings.Builder
	group.WriteString("MAIL FROM:<a@client.test>\r\n")
	for i := range 5000 {
		group.WriteString([]string{"RCPT TO:<b@ours.test>\r\n", "RCPT TO:<nobody@ours.test>\r\n"}[i%2])
	}
	sent := make(chan struct{})
	go func() { defer close(sent); _, _ = io.WriteString(p.conn, group.String()) }()
	p.want("250 2.1.0")
	for i := range 5000 {
		p.want([]string{"250 2.1.5", "550 5.1.1"}[i%2])
	}
	<-sent
	for len(l.writes) > 0 {
		if n := <-l.writes; n > outLimit+100 {
			t.Errorf("%d bytes of replies were held back", n)
		}
	}
}

func startCounting(t *testing.T, cfg Config) (*server, *countingListener) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &countingListener{inner, make(chan int, 10000)}
	return startOn(t, l, cfg), l
}

// TestTooManyRecipients452: 452 is no failure of the client's.
func TestTooManyRecipients452(t *testing.T) {
	s := start(t, Config{MaxRcptErrors: 3}, func(_ *server, lib *smtp.Server) { lib.MaxRecipients = 2 })
	p := s.greeted()
	p.send("MAIL FROM:<a@client.test>\r\n" + strings.Repeat("RCPT TO:<b@ours.test>\r\n", 20) + "DATA\r\nx\r\n.\r\n")
	p.want("250 ", "250 ", "250 ")
	for range 18 {
		p.want("452 ")
	}
	p.want("354 ", "250 2.0.0 queued")
}

// TestLongReplies: replies that the library writes in pieces go out whole.
func TestLongReplies(t *testing.T) {
	text := strings.Repeat("z", 9000)
	s := start(t, Config{}, func(s *server, _ *smtp.Server) {
		s.rcptErr = func(string) error {
			return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "one\n" + text + "\nthree"}
		}
	})
	p := s.greeted()
	p.send(envelope + "NOOP\r\n")
	p.want("250 ")
	for _, want := range []string{"550-one", "550-" + text, "550 5.7.1 three", "250 2.0.0 ok"} {
		if got, err := p.r.ReadString('\n'); got != want+"\r\n" {
			t.Fatalf("%.40q (%d bytes), want %.40q: %v", got, len(got), want, err)
		}
	}
}

// TestMaxMessages: a connection may be used for so many messages and no more.
func TestMaxMessages(t *testing.T) {
	s := start(t, Config{MaxMessages: 2})
	p := s.greeted()
	for range 2 {
		p.send(envelope + "DATA\r\nx\r\n.\r\n")
		p.want("250 ", "250 ", "354 ", "250 ")
	}
	p.send("MAIL FROM:<a@client.test>\r\n")
	p.want("421 4.7.0", "<eof>")
}

// TestInfo: what a session can know of its connection.
func TestInfo(t *testing.T) {
	s := start(t, withTLS(t, Config{}))
	p := s.dial()
	p.want("220 ")
	p.send("HELO plain (old) client\r\n" + envelope + "DATA\r\n\n.\r\r\n.x\r\n\r\n.\r\n")
	p.want("250 ", "250 ", "250 ", "354 ", "550 5.6.11")
	p.send(envelope + "DATA\r\na\nb\r\n.\r\n")
	p.want("250 ", "250 ", "354 ", "250 ")
	p.startTLS()
	p.send("EHLO [127.0.0.1]\r\n" + envelope + "BDAT 3 LAST\r\nx\r\n")
	p.want("250 ", "250 ", "250 ", "250 ")
	m := s.messages()
	local, _ := p.conn.LocalAddr().(*net.TCPAddr)
	first, second := m[0].info, m[1].info
	if first.Helo != "plain (old) client" || first.ESMTP || first.TLS != nil || first.Protocol() != "SMTP" || m[0].settled != 1 || m[0].chunked {
		t.Errorf("first: %+v, %d settled", first, m[0].settled)
	}
	if second.Helo != "[127.0.0.1]" || !second.ESMTP || second.TLS == nil || second.Protocol() != "ESMTPS" || m[1].settled != 0 || !m[1].chunked {
		t.Errorf("second: %+v", second)
	}
	if second.TLS.Version < tls.VersionTLS12 || second.Remote.Port() != uint16(local.Port) || second.Number != 1 || second.Local.String() != s.addr {
		t.Errorf("second: %+v", second)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions != 1 {
		t.Errorf("%d sessions, want one: Info says what changed", s.sessions)
	}
}

// TestCertificateReload: each handshake asks for the configuration anew, and nil
// withdraws the offer.
func TestCertificateReload(t *testing.T) {
	current := make(chan *tls.Config, 1)
	current <- &tls.Config{Certificates: []tls.Certificate{selfSigned(t, "one.test")}}
	s := start(t, Config{TLS: func() *tls.Config { c := <-current; current <- c; return c }})
	for _, name := range []string{"one.test", "two.test"} {
		p := s.dial()
		p.want("220 ")
		p.startTLS()
		got := p.conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
		if got != name {
			t.Errorf("certificate of %s, want %s", got, name)
		}
		<-current
		current <- &tls.Config{Certificates: []tls.Certificate{selfSigned(t, "two.test")}}
	}
	<-current
	current <- nil
	p := s.dial()
	p.want("220 ")
	p.send("EHLO c\r\n")
	p.want("250 CHUNKING")
	p.send("STARTTLS\r\n")
	p.want("502 5.5.1")
}

// TestHandshakeGarbage: a client that does not speak TLS after all.
func TestHandshakeGarbage(t *testing.T) {
	failed := make(chan bool, 1)
	cfg := withTLS(t, Config{Metrics: Metrics{Handshake: func(ok bool) { failed <- !ok }}})
	s := start(t, cfg)
	p := s.greeted()
	p.send("STARTTLS\r\n")
	p.want("220 ")
	p.send("MAIL FROM:<evil@client.test>\r\n")
	if !<-failed {
		t.Error("the handshake went well")
	}
	eventually(t, "gone", func() bool { return s.l.Len() == 0 })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions != 0 {
		t.Error("clear text behind STARTTLS reached a session")
	}
}

// inBody is the number of sessions that read a message.
func (s *server) inBody() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reading
}
