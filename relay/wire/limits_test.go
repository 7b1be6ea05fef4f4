package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestMaxConns: over the limit there is a 421 and nothing else, and a place that
// becomes free can be taken.
func TestMaxConns(t *testing.T) {
	refused := make(chan string, 10)
	s := start(t, Config{MaxConns: 2, Metrics: Metrics{Refused: func(r string) { refused <- r }}})
	a, b := s.dial(), s.dial()
	a.want("220 ")
	b.want("220 ")
	c := s.dial()
	c.want("421 4.7.0", "<eof>")
	if r := <-refused; r != "conns" {
		t.Errorf("refused for %s", r)
	}
	_ = a.conn.Close()
	eventually(t, "a place is free", func() bool { return s.l.Len() == 1 })
	s.dial().want("220 ")
}

// TestMaxConnsPerIP: counted for plain connections at Accept, for others (a PROXY
// listener) when their address can be known; trusted peers are not counted.
func TestMaxConnsPerIP(t *testing.T) {
	for _, wrapped := range []bool{false, true} {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if wrapped {
			inner = &countingListener{inner, make(chan int, 100)}
		}
		s := startOn(t, inner, Config{MaxConnsPerIP: 1})
		a := s.dial()
		a.want("220 ")
		b := s.dial()
		b.want("421 4.7.0", "<eof>")
		a.send("QUIT\r\n")
		a.want("221 ", "<eof>")
		eventually(t, "the place is free", func() bool { return s.l.Len() == 0 })
		s.dial().want("220 ")
	}
	s := start(t, Config{MaxConnsPerIP: 1, Trusted: netip.Addr.IsLoopback})
	s.dial().want("220 ")
	s.dial().want("220 ")
}

func TestNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		if got := network(netip.MustParseAddr(in)); got != netip.MustParseAddr(want) {
			t.Errorf("%s counts as %s, want %s", in, got, want)
		}
	}
	if network(netip.Addr{}).IsValid() {
		t.Error("an unknown address counts")
	}
}

// stuckConn is a connection whose address is not known until the client has said
// something, as below a PROXY listener.
type stuckConn struct {
	net.Conn
	header chan struct{}
}

func (c *stuckConn) RemoteAddr() net.Addr { <-c.header; return c.Conn.RemoteAddr() }

type stuckListener struct {
	net.Listener
	header chan struct{}
	first  bool
}

func (l *stuckListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && !l.first {
		l.first = true
		return &stuckConn{c, l.header}, nil
	}
	return c, err
}

// TestSlowClientDoesNotBlockAccept: one that never says who it is keeps nobody
// else waiting.
func TestSlowClientDoesNotBlockAccept(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &stuckListener{Listener: inner, header: make(chan struct{})}
	s := startOn(t, l, Config{})
	slow := s.dial()
	for range 3 {
		s.dial().want("220 ")
	}
	close(l.header)
	slow.want("220 ")
}

// TestShutdown: idle connections end at once, in whatever state; a message whose
// body has begun is taken and answered; then nothing is left.
func TestShutdown(t *testing.T) {
	s := start(t, withTLS(t, Config{}))
	fresh := s.dial()
	fresh.want("220 ")
	idle := s.greeted()
	secure := s.greeted()
	secure.startTLS()
	secure.send("EHLO again\r\n")
	secure.want("250 ")
	open := s.greeted()
	open.send(envelope)
	open.want("250 ", "250 ")
	hands := s.greeted()
	hands.send("STARTTLS\r\n")
	hands.want("220 ")
	body := s.greeted()
	body.send(envelope + "DATA\r\nfirst half\r\n")
	body.want("250 ", "250 ", "354 ")
	chunks := s.greeted()
	chunks.send(envelope + "BDAT 7\r\nhalf a ")
	chunks.want("250 ", "250 ", "250 ")
	eventually(t, "two bodies", func() bool { return s.inBody() == 2 })

	done := make(chan error, 1)
	go func() { done <- s.l.Shutdown(context.Background()) }()
	for _, p := range []*peer{fresh, idle, secure, open} {
		p.want("421 4.3.2", "<eof>")
	}
	hands.want("<eof>")
	if _, err := net.DialTimeout("tcp", s.addr, time.Second); err == nil {
		t.Error("still accepts")
	}
	body.send("second half\r\n.\r\n")
	body.want("250 2.0.0 queued", "421 4.3.2", "<eof>")
	chunks.send("BDAT 3\r\nnew")
	chunks.want("250 2.0.0 chunk")
	chunks.send("BDAT 8 LAST\r\n message")
	chunks.want("250 2.0.0 queued", "421 4.3.2", "<eof>")
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if n := len(s.messages()); n != 2 || s.l.Len() != 0 {
		t.Errorf("%d messages, %d connections", n, s.l.Len())
	}
	if err := s.l.Shutdown(context.Background()); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
}

// TestShutdownHard: at the end of ctx what is left is cut, and its message is not
// taken for whole.
func TestShutdownHard(t *testing.T) {
	s := start(t, Config{})
	p := s.greeted()
	p.send(envelope + "DATA\r\nhalf")
	p.want("250 ", "250 ", "354 ")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.l.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	p.want("<eof>")
	eventually(t, "the session was told", func() bool { return len(s.errors()) == 1 })
	if err := s.errors()[0]; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the session was told %v", err)
	}
	eventually(t, "gone", func() bool { return s.l.Len() == 0 })
}

// TestShutdownUnderLoad: connections come, talk and go while it happens.
func TestShutdownUnderLoad(t *testing.T) {
	for range 5 {
		s := start(t, Config{})
		const clients = 8
		stopped := make(chan struct{}, clients)
		for range clients {
			go func() {
				defer func() { stopped <- struct{}{} }()
				for s.deliver() == nil {
				}
			}()
		}
		eventually(t, "traffic", func() bool { return len(s.messages()) > 20 })
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if err := s.l.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		cancel()
		for range clients {
			<-stopped
		}
		if s.l.Len() != 0 {
			t.Errorf("%d connections left", s.l.Len())
		}
	}
}

var errTold = errors.New("told to stop")

// deliver sends one message on a connection of its own.
func (s *server) deliver() error {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "EHLO c\r\n"+envelope+"DATA\r\nx\r\n.\r\nQUIT\r\n"); err != nil {
		return err
	}
	all, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(all), "queued") {
		return errTold
	}
	return nil
}
