package mailtest

import (
	"net"
	"sync"
)

// trackListener remembers its connections, so that they can be cut together with it.
type trackListener struct {
	net.Listener
	mu    sync.Mutex
	conns map[*trackConn]struct{}
	down  bool
	once  sync.Once
	ready chan struct{} // closed by the first Accept
}

type trackConn struct {
	net.Conn
	l *trackListener
}

func newTrackListener(l net.Listener) *trackListener {
	return &trackListener{Listener: l, conns: make(map[*trackConn]struct{}), ready: make(chan struct{})}
}

// Accept waits for a connection and remembers it.
func (l *trackListener) Accept() (net.Conn, error) {
	l.once.Do(func() { close(l.ready) })
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &trackConn{Conn: nc, l: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		_ = nc.Close()
	}
	l.conns[c] = struct{}{}
	return c, nil
}

// Close closes the connection and forgets it.
func (c *trackConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// shut closes the listener and cuts its connections.
func (l *trackListener) shut() {
	_ = l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for c := range l.conns {
		_ = c.Conn.Close()
	}
}
