package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/wire"
	"crossfade/router"

	"go.uber.org/goleak"
)

// inTable is the state table of the tests of mail that comes in.
type inTable struct {
	router.Table // what is not overwritten is not called
	mu           sync.Mutex
	users        map[string]router.User
	fail         error
}

func (t *inTable) User(_ context.Context, key string) (router.User, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return router.User{}, t.fail
	}
	u, ok := t.users[key]
	if !ok {
		return router.User{}, router.ErrNoUser
	}
	return u, nil
}

func (t *inTable) breakDown(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = err
}

type inMessage struct {
	env  mail.Envelope
	body string
}

// inQueue keeps what is put into it, and fails on demand.
type inQueue struct {
	mu     sync.Mutex
	msgs   []inMessage
	tries  int
	room   error
	put    error         // instead of storing, after the body was read
	lazy   bool          // says it is stored without reading
	hold   chan struct{} // Put waits here before it answers
	inside chan struct{} // Put tells here that it has read the body
}

func (q *inQueue) Put(ctx context.Context, env *mail.Envelope, body io.Reader) error {
	q.mu.Lock()
	q.tries++
	put, lazy, hold, inside := q.put, q.lazy, q.hold, q.inside
	q.mu.Unlock()
	if lazy {
		return nil
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(body); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if inside != nil {
		inside <- struct{}{}
	}
	if hold != nil {
		<-hold
	}
	if put != nil {
		return put
	}
	env.Size = int64(b.Len())
	q.mu.Lock()
	defer q.mu.Unlock()
	kept := *env
	kept.Recipients = slices.Clone(env.Recipients)
	q.msgs = append(q.msgs, inMessage{kept, b.String()})
	return nil
}

func (q *inQueue) Room(int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.room
}

func (q *inQueue) set(f func(q *inQueue)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(q)
}

func (q *inQueue) all() []inMessage {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.msgs)
}

// one gives the only message there is.
func (q *inQueue) one(t testing.TB) inMessage {
	t.Helper()
	msgs := q.all()
	if len(msgs) != 1 {
		t.Fatalf("%d messages are queued, not 1", len(msgs))
	}
	return msgs[0]
}

func (q *inQueue) last(t testing.TB) inMessage {
	t.Helper()
	msgs := q.all()
	if len(msgs) == 0 {
		t.Fatal("nothing is queued")
	}
	return msgs[len(msgs)-1]
}

// inSite is a server with all that it needs.
type inSite struct {
	t     testing.TB
	srv   *Server
	addr  string
	queue *inQueue
	table *inTable
	log   *inLog
}

// inLog is a log that can be read while it is written.
type inLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *inLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *inLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var inNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newSite starts a server for example.org with the users ann and bob, an alias,
// a group, and whatever change asks for.
func newSite(t testing.TB, policy router.Policy, change func(c *ServerConfig)) *inSite {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	s := &inSite{t: t, queue: &inQueue{}, log: &inLog{}, table: &inTable{users: map[string]router.User{
		"ann@example.org":  {Address: "ann@example.org", Kind: router.KindMailbox, State: router.StateOld, Epoch: 1},
		"bob@example.org":  {Address: "bob@example.org", Kind: router.KindMailbox, State: router.StateNew, Epoch: 1},
		"jörg@example.org": {Address: "jörg@example.org", Kind: router.KindMailbox, State: router.StateNew, Epoch: 1},
		"info@example.org": {Address: "info@example.org", Kind: router.KindAlias, Targets: []string{"ann@example.org"}},
		"team@example.org": {Address: "team@example.org", Kind: router.KindGroup, Targets: []string{"ann@example.org", "bob@example.org"}},
		"loop@example.org": {Address: "loop@example.org", Kind: router.KindAlias, Targets: []string{"loop@example.org"}},
	}}}
	r, err := router.New(router.Config{Hostname: "mx.example.org", Domains: []string{"example.org"}, Subaddress: "+", Unknown: policy}, s.table)
	if err != nil {
		t.Fatal(err)
	}
	c := ServerConfig{
		Hostname: "mx.example.org", Router: r, Queue: s.queue, Now: func() time.Time { return inNow },
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&c)
	}
	if s.srv, err = NewServer(c); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if c.Verifier != nil {
			c.Verifier.Close()
		}
		goleak.VerifyNone(t, leaks)
	})
	return s
}

// idle waits until no connection is open any more.
func (s *inSite) idle() {
	s.t.Helper()
	inPoll(s.t, "the connections to end", func() bool { return s.srv.Connections() == 0 })
}

// inPoll waits for something that has no channel.
func inPoll(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(5 * time.Second)
	defer late.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// inClient is a client that sees every byte.
type inClient struct {
	t    testing.TB
	conn net.Conn
	br   *bufio.Reader
}

func (s *inSite) dial() *inClient {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(9 * time.Second))
	s.t.Cleanup(func() { _ = conn.Close() })
	return &inClient{t: s.t, conn: conn, br: bufio.NewReader(conn)}
}

// hello connects and says EHLO.
func (s *inSite) hello() *inClient {
	s.t.Helper()
	c := s.dial()
	c.want("220")
	c.cmd("EHLO client.example", "250")
	return c
}

func (c *inClient) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// reply reads one whole reply and joins its lines.
func (c *inClient) reply() string {
	c.t.Helper()
	var lines []string
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			c.t.Fatalf("read a reply, so far %q: %v", line, err)
		}
		lines = append(lines, strings.TrimRight(line, "\r\n"))
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(lines, "\n")
		}
	}
}

// want reads a reply that begins with prefix.
func (c *inClient) want(prefix string) string {
	c.t.Helper()
	got := c.reply()
	if !strings.HasPrefix(got, prefix) {
		c.t.Fatalf("the server said %q, not %q", got, prefix)
	}
	return got
}

func (c *inClient) cmd(line, prefix string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.want(prefix)
}

// begin opens a transaction up to DATA.
func (c *inClient) begin(rcpts ...string) {
	c.t.Helper()
	c.cmd("MAIL FROM:<sender@client.example>", "250 2.1.0")
	for _, r := range rcpts {
		c.cmd("RCPT TO:<"+r+">", "250 2.1.5")
	}
	c.cmd("DATA", "354")
}

// deliver sends one message and returns the verdict.
func (c *inClient) deliver(body string, rcpts ...string) string {
	c.t.Helper()
	c.begin(rcpts...)
	c.send(body + ".\r\n")
	return c.reply()
}

// startTLS goes over to TLS and says EHLO again.
func (c *inClient) startTLS(conf *tls.Config) {
	c.t.Helper()
	c.cmd("STARTTLS", "220")
	tc := tls.Client(c.conn, conf)
	if err := tc.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn, c.br = tc, bufio.NewReader(tc)
	c.cmd("EHLO client.example", "250")
}

// inWire is the limits of wire for a test.
func inWire(w wire.Config) func(c *ServerConfig) {
	return func(c *ServerConfig) { c.Wire = w }
}

var _ queue.Enqueuer = (*inQueue)(nil)
