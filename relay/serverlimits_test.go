package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/limit"
	"crossfade/router"
)

func TestExactSize(t *testing.T) {
	const limit = 5000
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.Limits.MaxMessageSize = limit })
	head := "Subject: x\r\n\r\n"
	fill := func(n int) string {
		return head + strings.Repeat("x", 70) + "\r\n" + strings.Repeat("y", n-len(head)-74) + "\r\n"
	}
	c := s.hello()
	c.cmd(fmt.Sprintf("MAIL FROM:<a@b.example> SIZE=%d", limit+1), "552 5.3.4")
	c.cmd(fmt.Sprintf("MAIL FROM:<a@b.example> SIZE=%d", limit+2), "552 5.3.4")
	c.cmd(fmt.Sprintf("MAIL FROM:<a@b.example> SIZE=%d", limit), "250")
	c.cmd("RSET", "250")
	if got := c.deliver(fill(limit), "ann@example.org"); !strings.HasPrefix(got, "250 2.0.0 queued") {
		t.Errorf("a message of exactly the limit: %s", got)
	}
	for _, over := range []int{1, 2, 100, 5000} {
		if got := c.deliver(fill(limit+over), "ann@example.org"); !strings.HasPrefix(got, "552 5.3.4") {
			t.Errorf("%d octets more than the limit: %s", over, got)
		}
	}
	chunked := func(size int) string {
		c.cmd("MAIL FROM:<a@b.example>", "250")
		c.cmd("RCPT TO:<ann@example.org>", "250")
		text := fill(size)
		c.send(fmt.Sprintf("BDAT 1000\r\n%sBDAT %d LAST\r\n%s", text[:1000], size-1000, text[1000:]))
		c.want("250")
		return c.reply()
	}
	if got := chunked(limit); !strings.HasPrefix(got, "250 2.0.0 queued") {
		t.Errorf("chunks of exactly the limit: %s", got)
	}
	if got := chunked(limit + 1); !strings.HasPrefix(got, "552 5.3.4") {
		t.Errorf("chunks of one octet more: %s", got)
	}
	if n := len(s.queue.all()); n != 2 {
		t.Errorf("%d messages are queued", n)
	}
}

func TestFullQueue(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	c := s.hello()
	s.queue.set(func(q *inQueue) { q.put = fmt.Errorf("disk: %w", queue.ErrFull) })
	if got := c.deliver("Subject: x\r\n\r\nx\r\n", "ann@example.org"); !strings.HasPrefix(got, "452 4.3.1") {
		t.Errorf("full at Put: %s", got)
	}
	s.queue.set(func(q *inQueue) { q.room = queue.ErrFull })
	c.cmd("MAIL FROM:<a@b.example> SIZE=10", "452 4.3.1")
	s.hello().cmd("MAIL FROM:<a@b.example>", "452 4.3.1") // full is no reason to close the door
	s.queue.set(func(q *inQueue) { q.put, q.room = nil, nil })
	if got := c.deliver("Subject: x\r\n\r\nx\r\n", "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Errorf("room again: %s", got)
	}
	s.queue.set(func(q *inQueue) { q.room = queue.ErrClosed })
	c.cmd("MAIL FROM:<a@b.example>", "451 4.3.0")
	s.dial().want("421 4.3.2")
}

func TestLoops(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	other := "Received: from a by b with SMTP; Sun, 01 Mar 2026 12:00:00 +0000\r\n"
	ours := "received : from a (b)\r\n\tby MX.example.org\r\n (Crossfade) with SMTP id 1;\r\n\tSun, 01 Mar 2026 12:00:00 +0000\r\n"
	for name, test := range map[string]struct{ body, want string }{
		"50 hops":      {strings.Repeat(other, 50) + "\r\nx\r\n", "250"},
		"51 hops":      {strings.Repeat(other, 51) + "\r\nx\r\n", "554 5.4.6"},
		"2 of ours":    {strings.Repeat(ours, 2) + "\r\nx\r\n", "250"},
		"3 of ours":    {strings.Repeat(ours, 3) + "\r\nx\r\n", "554 5.4.6"},
		"header only":  {strings.Repeat(ours, 3), "554 5.4.6"},
		"in the body":  {"Subject: x\r\n\r\n" + strings.Repeat(ours, 3) + strings.Repeat(other, 60), "250"},
		"another mark": {strings.Repeat(strings.Replace(ours, "(Crossfade)", "(Postfix)", 1), 3) + "\r\n", "250"},
		"another host": {strings.Repeat(strings.Replace(ours, "MX.example.org", "mx2.example.org", 1), 3) + "\r\n", "250"},
	} {
		if got := s.hello().deliver(test.body, "ann@example.org"); !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: %s", name, got)
		}
	}
	// What we write is what we look for.
	s.queue.set(func(q *inQueue) { q.msgs = nil })
	body := "Subject: round and round\r\n\r\nx\r\n"
	for range maxOwnHops {
		if got := s.hello().deliver(body, "ann@example.org"); !strings.HasPrefix(got, "250") {
			t.Fatal(got)
		}
		msgs := s.queue.all()
		body = msgs[len(msgs)-1].body
	}
	// It was accepted, so it is taken in, and delivery parks it.
	if got := s.hello().deliver(body, "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Errorf("mail that was accepted is refused: %s", got)
	}
	msgs := s.queue.all()
	if env := msgs[len(msgs)-1].env; loopReason(&env, queue.Item{}, mail.New) == "" {
		t.Errorf("a loop goes on: %+v", env.Passage)
	}
}

func TestHugeHeader(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	field := "X-Filler: " + strings.Repeat("x", 900) + "\r\n"
	for n, want := range map[int]string{1000: "250", 1<<20/len(field) + 1: "552 5.3.4"} {
		if got := s.hello().deliver(strings.Repeat(field, n)+"\r\nx\r\n", "ann@example.org"); !strings.HasPrefix(got, want) {
			t.Errorf("%d fields: %s", n, got)
		}
	}
	if got := s.hello().deliver("no header at all\r\nx\r\n", "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Errorf("a message without a header: %s", got)
	}
}

func TestConnectionLimits(t *testing.T) {
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.Guard = limit.New(limit.Settings{PerHost: 2}) })
	one, two := s.hello(), s.hello()
	s.dial().want("421")
	two.cmd("QUIT", "221")
	inPoll(t, "the place to be free", func() bool { return s.srv.Connections() == 1 })
	s.hello()
	one.cmd("NOOP", "250")
}

func TestShutdown(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	inside, hold := make(chan struct{}), make(chan struct{})
	s.queue.set(func(q *inQueue) { q.inside, q.hold = inside, hold })
	idle, busy := s.hello(), s.hello()
	silent := s.dial()
	silent.want("220")
	busy.begin("ann@example.org")
	busy.send("Subject: x\r\n\r\nx\r\n.\r\n")
	<-inside
	done := make(chan error, 1)
	go func() { done <- s.srv.Shutdown(t.Context()) }()
	idle.want("421 4.3.2")
	silent.want("421 4.3.2")
	select {
	case err := <-done:
		t.Fatalf("shutdown did not wait for the message: %v", err)
	default:
	}
	if _, err := net.DialTimeout("tcp", s.addr, time.Second); err == nil {
		t.Error("connections are still taken")
	}
	close(hold)
	busy.want("250 2.0.0 queued as")
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.queue.one(t)
	if err := s.srv.Shutdown(t.Context()); err != nil {
		t.Errorf("the second time: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.srv.Serve(l); !errors.Is(err, ErrServerClosed) {
		t.Errorf("serve after shutdown: %v", err)
	}
}

// A shutdown that runs out of time cuts a client that sends slowly; its message
// is not queued.
func TestShutdownHard(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	c := s.hello()
	c.begin("ann@example.org")
	c.send("Subject: x\r\n\r\nhalf")
	inPoll(t, "the message to begin", func() bool { s.queue.mu.Lock(); defer s.queue.mu.Unlock(); return s.queue.tries == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it should say that it cut a connection: %v", err)
	}
	if n := len(s.queue.all()); n != 0 {
		t.Errorf("%d messages are queued", n)
	}
}

func TestNewServerRefuses(t *testing.T) {
	if _, err := NewServer(ServerConfig{Hostname: "x"}); err == nil {
		t.Error("a server without a queue was made")
	}
}
