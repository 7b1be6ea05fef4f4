package wire

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// refusals gathers the words for which connections were ended.
func refusals(cfg Config) (Config, chan string) {
	words := make(chan string, 100)
	cfg.Metrics.Refused = func(r string) { words <- r }
	return cfg, words
}

func wantWord(t *testing.T, words chan string, want string) {
	t.Helper()
	select {
	case got := <-words:
		if got != want {
			t.Errorf("the connection was ended for %q, want %q", got, want)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("the connection was not ended, want %q", want)
	}
}

// TestBodyRate: a body that never pauses for long and comes slower than it must is
// cut when its grace is over; one that is slow and fast enough is taken, although
// it takes several times the grace; one that is fast is not touched. Neither DATA
// nor BDAT is a way round it.
func TestBodyRate(t *testing.T) {
	const grace = 200 * time.Millisecond
	cfg, words := refusals(Config{BodyRate: 60 * 2000, BodyGrace: grace}) // 2,000 bytes a second
	s := start(t, cfg)
	for name, begin := range map[string]string{"DATA": "DATA\r\n", "one chunk": "BDAT 100000\r\n", "a refused chunk": "RSET\r\nBDAT 100000\r\n"} {
		p := s.greeted()
		p.send(envelope + begin)
		stopped := p.trickle("x") // 100 bytes a second
		for p.reply()[0] != '4' {
		}
		wantWord(t, words, "body_rate")
		_ = p.conn.Close()
		if <-stopped; t.Failed() {
			t.Fatal(name)
		}
	}
	p := s.greeted()
	p.send(envelope + "DATA\r\n")
	p.want("250 ", "250 ", "354 ")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 80 { // 800 ms, 5,000 bytes a second
		<-tick.C
		p.send(strings.Repeat("x", 48) + "\r\n")
	}
	p.send(".\r\n")
	p.want("250 ")
	if n := len(s.messages()); n != 1 {
		t.Errorf("%d messages were queued", n)
	}
}

// TestFruitless: a client that always does something and never brings a message
// is sent away; a message begins its time anew.
func TestFruitless(t *testing.T) {
	cfg, words := refusals(Config{FruitlessTimeout: 300 * time.Millisecond, MaxNoise: -1})
	s := start(t, cfg)
	p := s.greeted()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 10 {
		<-tick.C
		p.send("NOOP\r\n")
		p.want("250 ")
	}
	p.send(envelope + "DATA\r\nx\r\n.\r\n")
	p.want("250 ", "250 ", "354 ", "250 ")
	for {
		<-tick.C
		p.send("NOOP\r\n")
		if strings.HasPrefix(p.reply(), "421 4.7.0") {
			break
		}
	}
	if d := time.Since(began); d < 450*time.Millisecond {
		t.Errorf("cut %v after the start: the message in between did not count", d)
	}
	wantWord(t, words, "fruitless")
	p.want("<eof>")
}

// TestResetLoop: MAIL and RSET by turns do not keep a connection for ever.
func TestResetLoop(t *testing.T) {
	cfg, words := refusals(Config{MaxNoise: 5})
	s := start(t, cfg)
	p := s.greeted()
	for range 6 {
		p.send("MAIL FROM:<a@client.test>\r\nRSET\r\n")
		p.want("250 ", "250 ")
	}
	p.want("421 4.7.0", "<eof>")
	wantWord(t, words, "noise")
}

// TestSlowHandshake: a TLS handshake that comes byte by byte has one deadline for
// all of it.
func TestSlowHandshake(t *testing.T) {
	s := start(t, withTLS(t, Config{IdleTimeout: 200 * time.Millisecond}))
	p := s.greeted()
	p.send("STARTTLS\r\n")
	p.want("220 ")
	// The beginning of a ClientHello of 512 bytes.
	p.send("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	stopped := p.trickle("x")
	p.want("<eof>")
	_ = p.conn.Close()
	<-stopped
	eventually(t, "gone", func() bool { return s.l.Len() == 0 })
}

// TestSlowUnderTLS: the waits are the same inside TLS, and a command that comes
// in more than one record, or beside others in one, is read right.
func TestSlowUnderTLS(t *testing.T) {
	cfg, words := refusals(withTLS(t, Config{IdleTimeout: 250 * time.Millisecond, BodyRate: 60 * 2000, BodyGrace: 200 * time.Millisecond}))
	s := start(t, cfg)
	p := s.greeted()
	p.startTLS()
	p.send("EH")
	p.send("LO " + strings.Repeat("x", 250) + "\r\nNOOP " + strings.Repeat("y", 1500) + "\r\n")
	p.want("250 ", "250 ")
	p.send(envelope + "DATA\r\nx\r\n.\r\n")
	p.want("250 ", "250 ", "354 ", "250 ")
	stopped := p.trickle("x")
	p.want("421 4.4.2")
	wantWord(t, words, "idle")
	_ = p.conn.Close()
	<-stopped

	p = s.greeted()
	p.startTLS()
	p.send("EHLO c\r\n" + envelope + "DATA\r\n")
	p.want("250 ", "250 ", "250 ", "354 ")
	stopped = p.trickle("x")
	p.want("421 4.4.2")
	wantWord(t, words, "body_rate")
	_ = p.conn.Close()
	<-stopped
}

// narrowListener gives its connections little room for what is not read yet.
type narrowListener struct{ net.Listener }

func (l narrowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		_ = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

// TestRepliesNotTaken: a client that sends commands and reads nothing is cut.
func TestRepliesNotTaken(t *testing.T) {
	cfg, words := refusals(Config{WriteTimeout: 200 * time.Millisecond, MaxNoise: -1})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := startOn(t, narrowListener{inner}, cfg)
	p := s.greeted()
	_ = p.conn.(*net.TCPConn).SetReadBuffer(4096)
	many := strings.Repeat("EHLO c\r\n", 1000)
	go func() {
		for { // until the server gives up
			if _, err := io.WriteString(p.conn, many); err != nil {
				return
			}
		}
	}()
	wantWord(t, words, "write_timeout")
	eventually(t, "gone", func() bool { return s.l.Len() == 0 })
}

// TestAfterQuit: a client that says QUIT and stays holds nothing.
func TestAfterQuit(t *testing.T) {
	for _, secure := range []bool{false, true} {
		s := start(t, withTLS(t, Config{}))
		p := s.greeted()
		if secure {
			p.startTLS()
		}
		p.send("QUIT\r\n")
		p.want("221 ")
		eventually(t, "gone while the client is still there", func() bool { return s.l.Len() == 0 })
	}
}

// TestGreetDelay: who waits is greeted, who speaks is not, who is not asked to
// wait is greeted at once; a shutdown and a client that goes end the wait.
func TestGreetDelay(t *testing.T) {
	const delay = 200 * time.Millisecond
	cfg, words := refusals(Config{GreetDelay: func(netip.Addr) time.Duration { return delay }})
	s := start(t, cfg)
	began := time.Now()
	good := s.dial()
	early := s.dial()
	early.send("EHLO early.test\r\n")
	early.want("421 4.7.0", "<eof>")
	wantWord(t, words, "early_talker")
	good.want("220 ")
	if d := time.Since(began); d < delay {
		t.Errorf("greeted after %v", d)
	}
	good.send("EHLO c\r\n" + envelope + "DATA\r\nx\r\n.\r\n")
	good.want("250 ", "250 ", "250 ", "354 ", "250 ")
	s.dial().conn.Close()
	eventually(t, "one left", func() bool { return s.l.Len() == 1 })
	waits := s.dial()
	eventually(t, "it is there", func() bool { return s.l.Len() == 2 })
	go func() { _ = s.l.Shutdown(t.Context()) }()
	waits.want("421 4.3.2", "<eof>")
}

// TestPauseEndsAtShutdown: a session that keeps a client waiting does not keep a
// shutdown waiting, and what was answered before goes out first.
func TestPauseEndsAtShutdown(t *testing.T) {
	paused := make(chan struct{}, 1)
	var s *server
	s = start(t, Config{})
	s.rcptErr = func(string) error {
		var c *Conn
		s.l.mu.Lock()
		for conn := range s.l.conns {
			c = conn
		}
		s.l.mu.Unlock()
		paused <- struct{}{}
		c.Pause(time.Hour)
		return nil
	}
	p := s.greeted()
	p.send(envelope)
	p.want("250 2.1.0")
	<-paused
	done := make(chan error, 1)
	go func() { done <- s.l.Shutdown(t.Context()) }()
	p.want("250 2.1.5", "421 4.3.2", "<eof>")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestIdleHoldsNoBuffer: a connection that waits for a command has given its
// buffers back, in clear and under TLS, at the start, in a session and in a
// transaction.
func TestIdleHoldsNoBuffer(t *testing.T) {
	s := start(t, withTLS(t, Config{}))
	fresh, session, open, secure := s.dial(), s.greeted(), s.greeted(), s.greeted()
	fresh.want("220 ")
	open.send(envelope)
	open.want("250 ", "250 ")
	secure.startTLS()
	secure.send("EHLO c\r\n")
	secure.want("250 ")
	half := s.greeted()
	half.send("NOO")
	idle := func() (n int) {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		for c := range s.l.conns {
			if c.held.Load() == 0 {
				n++
			}
		}
		return n
	}
	eventually(t, "four of five hold nothing", func() bool { return idle() == 4 })
	for _, p := range []*peer{session, open, secure} {
		p.send("NOOP\r\n")
		p.want("250 ")
	}
	half.send("P\r\n")
	half.want("250 ")
	eventually(t, "five of five hold nothing", func() bool { return idle() == 5 })
	if _, ok := secure.conn.(*tls.Conn); !ok {
		t.Error("not under TLS")
	}
}

// TestSlowProxyHeader: a load balancer that does not say who its client is, or
// says it byte by byte, is not waited for, and leaves nothing behind.
func TestSlowProxyHeader(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Proxied(inner, func(netip.Addr) bool { return true }).(*proxyproto.Listener)
	l.ReadHeaderTimeout = 200 * time.Millisecond
	cfg, words := refusals(Config{Door: &testDoor{limit: 2}})
	s := startOn(t, l, cfg)
	silent := s.dial()
	silent.want("<eof>")
	wantWord(t, words, "proxy_header")
	slow := s.dial()
	slow.send("PROXY TCP4 203.0")
	stopped := slow.trickle("1")
	slow.want("<eof>")
	wantWord(t, words, "proxy_header")
	_ = slow.conn.Close()
	<-stopped
	eventually(t, "gone", func() bool { return s.l.Len() == 0 && s.l.cfg.Door.(*testDoor).empty() })
}
