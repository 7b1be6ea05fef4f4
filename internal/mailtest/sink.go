package mailtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// SinkConfig says how a [Sink] listens and how it behaves when nothing is scripted. The zero value is a plain SMTP server
// on a free loopback port that accepts everything.
type SinkConfig struct {
	// LMTP speaks LMTP (RFC 2033): LHLO, and one reply per recipient after the dot.
	LMTP bool
	// Addr is the TCP address; empty means 127.0.0.1:0. Socket, when not empty, is a unix socket's path used in its place.
	Addr   string
	Socket string
	// TLS holds the certificate. STARTTLS offers it as an upgrade, ImplicitTLS demands it from the first byte.
	TLS         *tls.Config
	STARTTLS    bool
	ImplicitTLS bool
	// Extensions are the EHLO lines below the first, without STARTTLS and AUTH, which follow from the fields here.
	// Nil means PIPELINING, 8BITMIME, SMTPUTF8, DSN, ENHANCEDSTATUSCODES and SIZE; an empty slice means none.
	Extensions []string
	// Hostname is said in the greeting; empty means sink.test.
	Hostname string
	// MaxSize refuses a larger message with 552 at the dot. In bytes; 0 means no limit.
	MaxSize int64
	// DiscardBody counts the bytes of a message but does not keep them.
	DiscardBody bool
	// Auth, when set, offers AUTH PLAIN and LOGIN and demands it before MAIL.
	Auth func(user, password string) bool
	// Users tells which recipients exist; the others get 550 5.1.1. Nil means all.
	Users func(addr string) bool
	// Hook scripts faults. It can be replaced while the sink runs, see [Sink.SetHook].
	Hook Hook
	// Deliver, when set, is called for each recipient of a message before its reply; an error becomes a 451.
	// With SMTP one failure answers for the whole message, although earlier recipients may have theirs already.
	Deliver func(from, rcpt string, body []byte) error
}

// defaultExtensions is what a sink offers when nothing else is said.
var defaultExtensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES", "SIZE"}

// maxCommands bounds what Commands can return, so that a load test does not fill the memory.
const maxCommands = 100_000

// Rcpt is a recipient as the client named it.
type Rcpt struct {
	Addr   string
	Params []string // as written: "NOTIFY=NEVER"
	// Replied tells whether the final reply that covers this recipient was written to the connection in full.
	Replied bool
}

// Message is one message that the sink accepted, or is about to.
type Message struct {
	Conn        int    // number of the connection, from 1
	Transaction int    // number of the transaction on that connection, from 1
	Helo        string // name given with EHLO, HELO or LHLO
	TLS         bool
	AuthUser    string // who logged in, empty when nobody did
	From        string // reverse-path without angle brackets, empty for a bounce
	FromParams  []string
	Rcpts       []Rcpt // recipients for which the sink took responsibility, in the client's order
	Body        []byte // dot-stuffing removed, line ends as they came
	Size        int64  // of the body in bytes, also when SinkConfig.DiscardBody is set
	Time        time.Time
	Replied     bool // whether the reply to the dot (with LMTP: to all recipients) was written in full
}

// Addrs returns the addresses of the recipients.
func (m *Message) Addrs() []string {
	l := make([]string, len(m.Rcpts))
	for i, r := range m.Rcpts {
		l[i] = r.Addr
	}
	return l
}

func (m *Message) clone() Message {
	c := *m
	c.FromParams = slices.Clone(m.FromParams)
	c.Rcpts = slices.Clone(m.Rcpts)
	return c
}

// Sink is an SMTP or LMTP server that records what it accepts and misbehaves as told. Make one with [NewSink].
type Sink struct {
	cfg  SinkConfig
	wg   sync.WaitGroup
	done chan struct{} // closed by Close

	mu       sync.Mutex
	ln       net.Listener // nil while down
	addr     net.Addr
	hook     Hook
	conns    map[*sinkConn]struct{}
	accepted int
	messages []*Message
	commands []command
	changed  chan struct{} // closed and replaced whenever messages grow
	closed   bool
}

type command struct {
	conn int
	line string
}

// NewSink starts a sink. It fails when it cannot listen or when TLS is asked for without a certificate.
func NewSink(cfg SinkConfig) (*Sink, error) {
	if (cfg.STARTTLS || cfg.ImplicitTLS) && cfg.TLS == nil {
		return nil, errors.New("start mail sink: STARTTLS or implicit TLS asked for without SinkConfig.TLS; issue a certificate with CA.ServerConfig")
	}
	if cfg.Hostname == "" {
		cfg.Hostname = "sink.test"
	}
	if cfg.Extensions == nil {
		cfg.Extensions = defaultExtensions
	}
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	s := &Sink{
		cfg:     cfg,
		hook:    cfg.Hook,
		done:    make(chan struct{}),
		conns:   make(map[*sinkConn]struct{}),
		changed: make(chan struct{}),
	}
	if err := s.Up(); err != nil {
		return nil, err
	}
	return s, nil
}

// Up listens again after Down, on the same address.
func (s *Sink) Up() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("start mail sink: it was closed; make a new one")
	}
	if s.ln != nil {
		return nil
	}
	network, addr := "tcp", s.cfg.Addr
	if s.addr != nil {
		addr = s.addr.String()
	}
	if s.cfg.Socket != "" {
		network, addr = "unix", s.cfg.Socket
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		return fmt.Errorf("start mail sink: %w", err)
	}
	s.ln, s.addr = ln, ln.Addr()
	s.wg.Go(func() { s.accept(ln) })
	return nil
}

// Down stops listening and aborts every connection, as a machine does that loses its power; messages stay recorded.
func (s *Sink) Down() {
	s.mu.Lock()
	ln := s.ln
	s.ln = nil
	conns := s.openLocked()
	s.mu.Unlock()
	if ln != nil {
		_ = ln.Close()
	}
	for _, c := range conns {
		c.kill()
	}
}

// Close stops the sink, ends its connections and waits until its goroutines are gone. It may be called twice.
func (s *Sink) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.Down()
	s.wg.Wait()
	return nil
}

func (s *Sink) openLocked() []*sinkConn {
	l := make([]*sinkConn, 0, len(s.conns))
	for c := range s.conns {
		l = append(l, c)
	}
	return l
}

func (s *Sink) accept(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return // closed by Down; a listener on loopback has no other lasting error
		}
		c := s.admit(nc, ln)
		if c == nil {
			_ = nc.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.forget(c)
			c.serve()
		})
	}
}

// admit numbers a connection and keeps it, unless the sink went down while it was being accepted.
func (s *Sink) admit(nc net.Conn, ln net.Listener) *sinkConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ln != ln {
		return nil
	}
	s.accepted++
	c := newSinkConn(s, nc, s.accepted)
	s.conns[c] = struct{}{}
	return c
}

func (s *Sink) forget(c *sinkConn) {
	c.kill()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Addr returns where the sink listens: host:port, or the path of the unix socket.
func (s *Sink) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr.String()
}

// URL returns a backend URL in the form of Crossfade's configuration ("smtp+insecure://127.0.0.1:4025",
// "lmtp+unix:///path"). An empty scheme is derived from how the sink was configured.
func (s *Sink) URL(scheme string) string {
	if scheme == "" {
		scheme = s.scheme()
	}
	return scheme + "://" + s.Addr()
}

func (s *Sink) scheme() string {
	switch {
	case s.cfg.LMTP && s.cfg.Socket != "":
		return "lmtp+unix"
	case s.cfg.LMTP:
		return "lmtp"
	case s.cfg.ImplicitTLS:
		return "smtps"
	case s.cfg.STARTTLS:
		return "smtp+starttls"
	default:
		return "smtp+insecure"
	}
}

// SetHook replaces the hook from the next step on; nil makes the sink healthy.
func (s *Sink) SetHook(h Hook) {
	s.mu.Lock()
	s.hook = h
	s.mu.Unlock()
}

// Messages returns what was accepted so far, in the order of acceptance. The bodies must not be changed.
func (s *Sink) Messages() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messagesLocked()
}

func (s *Sink) messagesLocked() []Message {
	l := make([]Message, len(s.messages))
	for i, m := range s.messages {
		l[i] = m.clone()
	}
	return l
}

// Count returns how many messages were accepted so far, cheaper than Messages.
func (s *Sink) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.messages)
}

// Forget drops the recorded messages and commands.
func (s *Sink) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages, s.commands = nil, nil
}

// Wait blocks until at least n messages have been accepted, and returns all of them. When ctx ends first it returns what
// there is, and an error that says how many are missing.
func (s *Sink) Wait(ctx context.Context, n int) ([]Message, error) {
	for {
		s.mu.Lock()
		count, changed := len(s.messages), s.changed
		if count >= n {
			defer s.mu.Unlock()
			return s.messagesLocked(), nil
		}
		s.mu.Unlock()
		select {
		case <-changed:
		case <-s.done:
			return s.Messages(), fmt.Errorf("wait for %d messages: the sink was closed with %d", n, count)
		case <-ctx.Done():
			return s.Messages(), fmt.Errorf("wait for %d messages: only %d came: %w", n, count, ctx.Err())
		}
	}
}

// Connections returns how many connections were accepted since the start, and how many of them are open now.
func (s *Sink) Connections() (total, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted, len(s.conns)
}

// Commands returns the command lines received on a connection (0 means on all), in order, without message content; the
// sink keeps the first 100,000. Credentials of AUTH are replaced by "<redacted>".
func (s *Sink) Commands(conn int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l []string
	for _, c := range s.commands {
		if conn == 0 || c.conn == conn {
			l = append(l, c.line)
		}
	}
	return l
}

func (s *Sink) noteCommand(conn int, line string) {
	if w, rest, ok := strings.Cut(line, " "); ok && strings.EqualFold(w, "AUTH") {
		mech, _, _ := strings.Cut(rest, " ")
		line = w + " " + mech + " <redacted>"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.commands) < maxCommands {
		s.commands = append(s.commands, command{conn, line})
	}
}

func (s *Sink) ask(ev Event) Action {
	s.mu.Lock()
	h := s.hook
	s.mu.Unlock()
	if h == nil {
		return Action{}
	}
	return h(ev)
}

func (s *Sink) record(m *Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = append(s.messages, m)
	close(s.changed)
	s.changed = make(chan struct{})
}

// markReplied notes whether recipients of a recorded message (none given means all) have their reply.
func (s *Sink) markReplied(m *Message, replied bool, addrs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := true
	for i := range m.Rcpts {
		if len(addrs) == 0 || slices.Contains(addrs, m.Rcpts[i].Addr) {
			m.Rcpts[i].Replied = replied
		}
		all = all && m.Rcpts[i].Replied
	}
	m.Replied = all
}
