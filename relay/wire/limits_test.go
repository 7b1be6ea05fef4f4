package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// testDoor lets in so many connections of each address.
type testDoor struct {
	limit int

	mu    sync.Mutex
	count map[netip.Addr]int
	left  int
}

func (d *testDoor) Enter(a netip.Addr) (reason, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.count == nil {
		d.count = map[netip.Addr]int{}
	}
	if d.count[a] >= d.limit {
		return "full", "4.7.0 the house is full"
	}
	d.count[a]++
	return "", ""
}

func (d *testDoor) Leave(a netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left++
	if d.count[a]--; d.count[a] == 0 {
		delete(d.count, a)
	}
}

func (d *testDoor) empty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.count) == 0
}

// TestDoor: who is turned away has a 421 and nothing else, a place that becomes
// free can be taken, and listeners that share a door share its places. Below a
// PROXY listener the address is known later.
func TestDoor(t *testing.T) {
	for _, wrapped := range []bool{false, true} {
		refused := make(chan string, 10)
		door := &testDoor{limit: 2}
		listen := func() *server {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if wrapped {
				inner = &countingListener{inner, make(chan int, 100)}
			}
			return startOn(t, inner, Config{Door: door, Metrics: Metrics{Refused: func(r string) { refused <- r }}})
		}
		one, two := listen(), listen()
		a, b := one.dial(), two.dial()
		a.want("220 ")
		b.want("220 ")
		c := one.dial()
		c.want("421 4.7.0 the house is full", "<eof>")
		if r := <-refused; r != "full" {
			t.Errorf("refused for %s", r)
		}
		_ = a.conn.Close()
		b.send("QUIT\r\n")
		b.want("221 ", "<eof>")
		eventually(t, "all places are free", func() bool { return door.empty() && one.l.Len() == 0 && two.l.Len() == 0 })
		one.dial().want("220 ")
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
