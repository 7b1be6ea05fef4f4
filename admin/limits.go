package admin

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Limits of what one API holds open.
const (
	maxConns        = 512 // connections
	maxConnsAddress = 128 // of one address, but this machine's own
	maxStreams      = 64  // event streams
	maxStreamsToken = 16  // of one token
)

// tally counts what is open, in all and by name.
type tally struct {
	mu    sync.Mutex
	total int
	by    map[string]int
}

// take counts one more, unless that passes a limit.
func (t *tally) take(name string, most, mostOf int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total >= most || t.by[name] >= mostOf {
		return false
	}
	if t.by == nil {
		t.by = map[string]int{}
	}
	t.total++
	t.by[name]++
	return true
}

func (t *tally) give(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total--
	if t.by[name]--; t.by[name] <= 0 {
		delete(t.by, name)
	}
}

// limited closes connections beyond a number at once: the relay needs its
// descriptors for mail.
type limited struct {
	net.Listener
	open   *tally
	turned func() // called for each that was closed
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		name, mostOf := c.RemoteAddr().String(), maxConnsAddress
		if remote, err := netip.ParseAddrPort(name); err == nil {
			name = remote.Addr().Unmap().String()
			if remote.Addr().Unmap().IsLoopback() {
				mostOf = maxConns
			}
		}
		if l.open.take(name, maxConns, mostOf) {
			return &countedConn{Conn: c, give: sync.OnceFunc(func() { l.open.give(name) })}, nil
		}
		l.turned()
		c.Close() // nothing was sent on it
	}
}

type countedConn struct {
	net.Conn
	give func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	defer c.give()
	return c.Conn.Close()
}

// takeStream counts an event stream of a caller.
func (s *Server) takeStream(c caller) (give func(), p *Problem) {
	if !s.streams.take(c.name, maxStreams, maxStreamsToken) {
		s.refusedBy("streams")
		return nil, &Problem{Type: ProblemBusy, Title: "too many event streams", Status: http.StatusServiceUnavailable,
			Detail: "this token, or all together, have as many event streams open as there may be", Hint: "close some, or use another token"}
	}
	return func() { s.streams.give(c.name) }, nil
}
