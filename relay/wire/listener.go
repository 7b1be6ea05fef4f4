package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Listener puts a guard around every connection of another listener. It
// implements net.Listener for smtp.Server.Serve and keeps the list of
// connections, which the library's own Shutdown does not end.
type Listener struct {
	inner      net.Listener
	cfg        Config
	ehloClear  string
	ehloTLS    string
	ehloSecure string
	ehloLogin  string

	closing atomic.Bool
	stop    chan struct{} // closed when closing is set
	once    sync.Once

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	number uint64
	// gone is closed when the listener is closing and the last connection went.
	gone     chan struct{}
	goneOnce sync.Once
}

// NewListener guards the connections of inner as cfg says. It starts nothing;
// inner is closed by Close or Shutdown.
func NewListener(inner net.Listener, cfg Config) *Listener {
	cfg = cfg.withDefaults()
	if cfg.Counts == nil {
		cfg.Counts = &Counts{}
	}
	return &Listener{
		inner:      inner,
		cfg:        cfg,
		ehloClear:  cfg.ehloReply(),
		ehloTLS:    cfg.ehloReply("STARTTLS"),
		ehloSecure: cfg.ehloReply(cfg.SecureExtensions...),
		ehloLogin:  cfg.ehloReply(slices.Concat(cfg.SecureExtensions, []string{"AUTH PLAIN LOGIN"})...),
		conns:      make(map[*Conn]struct{}),
		stop:       make(chan struct{}),
		gone:       make(chan struct{}),
	}
}

// Addr is the address of the listener below.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close stops accepting. Connections go on; Shutdown ends them.
func (l *Listener) Close() error { return l.inner.Close() }

// Accept waits for a connection that is within the limits. It never waits for
// bytes of a client: greeting, PROXY header and TLS happen at the connection's
// first Read, in the goroutine of that connection.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.inner.Accept()
		if err != nil {
			return nil, err
		}
		c := &Conn{raw: raw, net: raw, l: l, start: time.Now()}
		// Only a bare TCP connection knows its peer without reading: below a PROXY
		// listener RemoteAddr waits for the header.
		if tcp, known := raw.(*net.TCPConn); known {
			c.remote = addrPort(tcp.RemoteAddr())
		}
		if reason, text := l.add(c); reason != "" {
			callWith(l.cfg.Metrics.Refused, reason)
			l.cfg.Logger.Info("smtp connection refused", "reason", reason, "remote", c.remote)
			l.turnAway(raw, text)
			continue
		}
		call(l.cfg.Metrics.Opened)
		return c, nil
	}
}

// turnAway answers without a buffer, a goroutine or the library: a fresh socket
// takes these bytes without blocking, the deadline is for what is no socket.
func (l *Listener) turnAway(raw net.Conn, text string) {
	if l.cfg.TLSUse != TLSImplicit { // there a reply in clear would be no TLS record
		_ = raw.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = raw.Write([]byte("421 " + oneLine(text) + "\r\n"))
	}
	_ = raw.Close()
}

// add takes c into the list, or says why not.
func (l *Listener) add(c *Conn) (reason, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing.Load() {
		return "shutdown", "4.3.2 shutting down, try again later"
	}
	if reason, text = l.enter(c); reason != "" {
		return reason, text
	}
	l.number++
	c.number = l.number
	l.conns[c] = struct{}{}
	return "", ""
}

// admit asks again for a connection whose address was not known when it was
// accepted.
func (l *Listener) admit(c *Conn) (reason, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, listed := l.conns[c]; !listed {
		return "closed", "4.4.2 closed" // meanwhile: do not count what nobody will discount
	}
	l.leave(c)
	return l.enter(c)
}

// enter and leave are called with l.mu held.
func (l *Listener) enter(c *Conn) (reason, text string) {
	if l.cfg.Door == nil {
		return "", ""
	}
	addr := c.remote.Addr()
	if reason, text = l.cfg.Door.Enter(addr); reason == "" {
		c.inside, c.insideAs = true, addr
	}
	return reason, text
}

func (l *Listener) leave(c *Conn) {
	if c.inside {
		c.inside = false
		l.cfg.Door.Leave(c.insideAs)
	}
}

func (l *Listener) remove(c *Conn) {
	l.mu.Lock()
	_, listed := l.conns[c]
	delete(l.conns, c)
	l.leave(c)
	last := len(l.conns) == 0 && l.closing.Load()
	l.mu.Unlock()
	if listed {
		call(l.cfg.Metrics.Closed)
	}
	if last {
		l.goneOnce.Do(func() { close(l.gone) })
	}
}

// Len is the number of open connections.
func (l *Listener) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Shutdown stops accepting, ends connections that wait for a command at once
// with 421, and lets a message whose body has begun be finished and answered.
// When ctx ends first, the remaining connections are closed hard and ctx's error
// is returned: their sessions then see io.ErrUnexpectedEOF in the body. It may
// be called more than once. smtp.Server.Serve returns net.ErrClosed.
func (l *Listener) Shutdown(ctx context.Context) error {
	l.closing.Store(true)
	l.once.Do(func() { close(l.stop) })
	err := l.inner.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	l.mu.Lock()
	open := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	if len(open) == 0 {
		l.goneOnce.Do(func() { close(l.gone) })
	}
	for _, c := range open {
		c.wake()
	}
	select {
	case <-l.gone:
		return err
	case <-ctx.Done():
	}
	l.mu.Lock()
	left := len(l.conns)
	for c := range l.conns {
		_ = c.raw.Close()
	}
	l.mu.Unlock()
	if left == 0 {
		return err
	}
	return fmt.Errorf("wire: shut down: %d connections were still busy and are cut, their clients will send again: %w", left, ctx.Err())
}
