package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Listener puts a guard around every connection of another listener. It
// implements net.Listener for smtp.Server.Serve and keeps the list of
// connections, which the library's own Shutdown does not end.
type Listener struct {
	inner     net.Listener
	cfg       Config
	ehloClear string
	ehloTLS   string
	ehloLogin string

	closing atomic.Bool

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	number uint64
	// gone is closed when the listener is closing and the last connection went.
	gone     chan struct{}
	goneOnce sync.Once
}

// Counts are the connections that MaxConns and MaxConnsPerIP bound, and the
// handshakes that MaxHandshakes does. Listeners that share them share the limits.
type Counts struct {
	mu    sync.Mutex
	total int
	perIP map[netip.Addr]int

	shaking chan struct{} // a token for each handshake under way
}

// beginHandshake takes one of limit places, and waits for one for a while.
func (n *Counts) beginHandshake(limit int, wait time.Duration) bool {
	if limit == noLimit {
		limit = 1 << 20
	}
	n.mu.Lock()
	if n.shaking == nil {
		n.shaking = make(chan struct{}, limit)
	}
	n.mu.Unlock()
	select {
	case n.shaking <- struct{}{}:
		return true
	default:
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case n.shaking <- struct{}{}:
		return true
	case <-t.C:
		return false
	}
}

func (n *Counts) endHandshake() { <-n.shaking }

// open counts a connection; false when there are limit already.
func (n *Counts) open(limit int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.total >= limit {
		return false
	}
	n.total++
	return true
}

// openIP counts a connection of one network.
func (n *Counts) openIP(key netip.Addr, limit int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.perIP[key] >= limit {
		return false
	}
	if n.perIP == nil {
		n.perIP = make(map[netip.Addr]int)
	}
	n.perIP[key]++
	return true
}

// close takes a connection, and its network where it was counted, off.
func (n *Counts) close(key netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.total--
	if !key.IsValid() {
		return
	}
	if n.perIP[key]--; n.perIP[key] <= 0 {
		delete(n.perIP, key)
	}
}

// NewListener guards the connections of inner as cfg says. It starts nothing;
// inner is closed by Close or Shutdown.
func NewListener(inner net.Listener, cfg Config) *Listener {
	cfg = cfg.withDefaults()
	if cfg.Counts == nil {
		cfg.Counts = &Counts{}
	}
	return &Listener{
		inner:     inner,
		cfg:       cfg,
		ehloClear: cfg.ehloReply(),
		ehloTLS:   cfg.ehloReply("STARTTLS"),
		ehloLogin: cfg.ehloReply("AUTH PLAIN LOGIN"),
		conns:     make(map[*Conn]struct{}),
		gone:      make(chan struct{}),
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
		tcp, known := raw.(*net.TCPConn)
		if known {
			c.remote = addrPort(tcp.RemoteAddr())
		}
		if reason := l.add(c, known); reason != "" {
			callWith(l.cfg.Metrics.Refused, reason)
			l.cfg.Logger.Debug("smtp connection refused", "reason", reason, "remote", c.remote)
			l.turnAway(raw)
			continue
		}
		call(l.cfg.Metrics.Opened)
		return c, nil
	}
}

const tooManyConns = "421 4.7.0 too many connections, try again later\r\n"

// turnAway answers without a buffer, a goroutine or the library: a fresh socket
// takes these bytes without blocking, the deadline is for what is no socket.
func (l *Listener) turnAway(raw net.Conn) {
	if l.cfg.TLSUse != TLSImplicit { // there a reply in clear would be no TLS record
		_ = raw.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = raw.Write([]byte(tooManyConns))
	}
	_ = raw.Close()
}

// add takes c into the list, or says which limit is in the way.
func (l *Listener) add(c *Conn, known bool) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing.Load() {
		return "shutdown"
	}
	if !l.cfg.Counts.open(l.cfg.MaxConns) {
		return "conns"
	}
	if known && !l.countIP(c) {
		l.cfg.Counts.close(netip.Addr{})
		return "conns_per_ip"
	}
	l.number++
	c.number = l.number
	l.conns[c] = struct{}{}
	return ""
}

// admit counts c against its address, for connections whose address was not
// known when they were accepted.
func (l *Listener) admit(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, listed := l.conns[c]; !listed {
		return false // closed meanwhile: do not count what nobody will discount
	}
	return l.countIP(c)
}

// countIP is called with l.mu held.
func (l *Listener) countIP(c *Conn) bool {
	key := network(c.remote.Addr())
	if !key.IsValid() || (l.cfg.Trusted != nil && l.cfg.Trusted(c.remote.Addr())) {
		return true
	}
	if !l.cfg.Counts.openIP(key, l.cfg.MaxConnsPerIP) {
		return false
	}
	c.ipKey = key
	return true
}

// network is what one customer of a provider holds: an IPv4 address, or the /64
// of an IPv6 address.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

func (l *Listener) remove(c *Conn) {
	l.mu.Lock()
	_, listed := l.conns[c]
	delete(l.conns, c)
	if listed {
		l.cfg.Counts.close(c.ipKey)
	}
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
