package redistest

import (
	"net"
	"strings"
	"sync"
	"testing"
)

// Proxy stands between clients and one Redis. It counts the replies to their
// commands and can lose one, hold all traffic, and refuse connections.
type Proxy struct {
	// Addr is where clients connect.
	Addr string

	back string
	l    net.Listener
	wg   sync.WaitGroup

	mu      sync.Mutex
	conns   map[*pair]struct{}
	gate    chan struct{} // closed: traffic flows
	refuse  bool
	closed  bool
	counts  func(cmd []string) bool
	replies int
	dropAt  int
	dropped chan struct{}
	hook    func(cmd []string, reply []byte) ([]byte, bool)
}

// pair is a client's connection and the one to Redis made for it.
type pair struct {
	client, back net.Conn
	once         sync.Once
	gone         chan struct{}
	sent         chan []string // commands whose reply is not there yet
}

func (c *pair) close() {
	c.once.Do(func() {
		close(c.gone)
		c.client.Close()
		c.back.Close()
	})
}

// NewProxy starts a proxy before the server at addr; it ends with the test.
// The server need not run yet.
func NewProxy(t testing.TB, addr string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := make(chan struct{})
	close(open)
	p := &Proxy{Addr: l.Addr().String(), back: addr, l: l, conns: map[*pair]struct{}{}, gate: open}
	p.wg.Go(p.serve)
	t.Cleanup(p.Close)
	return p
}

// URL is where a store reaches Redis through the proxy.
func (p *Proxy) URL() string { return "redis://" + p.Addr + "/0" }

// Close ends the proxy and its connections. It may be called more than once.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.l.Close()
	p.Cut()
	p.wg.Wait()
}

// Cut closes all connections there are. New ones are served.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.close()
	}
}

// Refuse cuts all connections and lets nobody in, until it is called with
// false.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	p.refuse = on
	p.mu.Unlock()
	if on {
		p.Cut()
	}
}

// Hold stops all traffic and keeps the connections, as a network does that
// loses every packet.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default:
	}
}

// Release ends Hold: what was held goes on its way.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// Backend names another server for connections to come.
func (p *Proxy) Backend(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.back = addr
}

// Count says which commands' replies are counted from now on, and begins with
// 0. nil counts all but those that begin a connection (HELLO, AUTH, CLIENT,
// SELECT).
func (p *Proxy) Count(which func(cmd []string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts, p.replies = which, 0
}

// Replies is how many replies were counted since [Proxy.Count].
func (p *Proxy) Replies() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replies
}

// DropAt loses the k-th counted reply from now on, 1 being the next: Redis has
// executed the command, the reply is read from it and never reaches the client,
// whose connection is closed. Replies before it on that connection have reached
// the client. The channel is closed when that has happened.
func (p *Proxy) DropAt(k int) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropAt = p.replies + k
	p.dropped = make(chan struct{})
	return p.dropped
}

// Hook has f see every reply with its command. What f returns goes to the
// client in its place; with false the connection is closed instead. f is called
// for several connections at once. nil takes it away.
func (p *Proxy) Hook(f func(cmd []string, reply []byte) ([]byte, bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

func (p *Proxy) serve() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.join(client) })
	}
}

// join serves one client.
func (p *Proxy) join(client net.Conn) {
	p.mu.Lock()
	back, no := p.back, p.refuse || p.closed
	p.mu.Unlock()
	if no {
		client.Close()
		return
	}
	conn, err := net.Dial("tcp", back)
	if err != nil {
		client.Close()
		return
	}
	c := &pair{client: client, back: conn, gone: make(chan struct{}), sent: make(chan []string, 1<<16)}
	p.mu.Lock()
	p.conns[c] = struct{}{}
	no = p.refuse || p.closed
	p.mu.Unlock()
	if no {
		c.close()
	}
	p.wg.Go(func() { p.requests(c) })
	p.replyLoop(c)
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// pass waits while traffic is held; false: the connection is gone.
func (p *Proxy) pass(c *pair) bool {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	select {
	case <-gate:
		return true
	case <-c.gone:
		return false
	}
}

func (p *Proxy) requests(c *pair) {
	defer c.close()
	w := newWire(c.client)
	for {
		cmd, err := w.command()
		if err != nil || !p.pass(c) {
			return
		}
		if !strings.HasSuffix(strings.ToUpper(cmd[0]), "SUBSCRIBE") { // under RESP3 they are answered by a push
			select {
			case c.sent <- cmd:
			case <-c.gone:
				return
			}
		}
		if _, err := c.back.Write(w.raw); err != nil {
			return
		}
	}
}

func (p *Proxy) replyLoop(c *pair) {
	defer c.close()
	w := newWire(c.back)
	for {
		_, push, err := w.next()
		if err != nil || !p.pass(c) {
			return
		}
		out := w.raw
		if !push {
			var ok bool
			if out, ok = p.reply(c, out); !ok {
				return
			}
		}
		if _, err := c.client.Write(out); err != nil {
			return
		}
	}
}

// reply says what the client gets; false: nothing any more.
func (p *Proxy) reply(c *pair, raw []byte) ([]byte, bool) {
	var cmd []string
	select {
	case cmd = <-c.sent:
	case <-c.gone:
		return nil, false
	}
	p.mu.Lock()
	hook := p.hook
	var dropped chan struct{}
	if p.counted(cmd) {
		if p.replies++; p.replies == p.dropAt {
			dropped = p.dropped
		}
	}
	p.mu.Unlock()
	if dropped != nil {
		c.close()
		close(dropped)
		return nil, false
	}
	if hook != nil {
		return hook(cmd, raw)
	}
	return raw, true
}

func (p *Proxy) counted(cmd []string) bool {
	if p.counts != nil {
		return p.counts(cmd)
	}
	switch strings.ToUpper(cmd[0]) {
	case "HELLO", "AUTH", "CLIENT", "SELECT":
		return false
	}
	return true
}
