package relay

import (
	"context"
	"slices"
	"sync"
	"time"

	"crossfade/relay/smtpclient"
)

// backendConn is a connection and the generation of targets it belongs to.
type backendConn struct {
	*smtpclient.Conn
	generation int
}

// backendPool keeps idle connections to one target. The one used last is used
// next, so that the surplus grows old and is closed.
type backendPool struct {
	max     int
	maxUses int
	maxIdle time.Duration

	mu         sync.Mutex
	generation int
	idle       []*backendConn // newest use last
}

func newBackendPool(cfg BackendConfig) *backendPool {
	return &backendPool{max: cfg.MaxConns, maxUses: cfg.MaxUses, maxIdle: cfg.IdleTime}
}

func (p *backendPool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

// dial makes a new connection; it is not in the pool until put. The generation is
// looked up before the target: when that changes in between, the connection counts
// as one of the past.
func (p *backendPool) dial(ctx context.Context, target func() smtpclient.Target, o smtpclient.Origin) (*backendConn, error) {
	p.mu.Lock()
	generation := p.generation
	p.mu.Unlock()
	c, err := smtpclient.DialAs(ctx, target(), o)
	if err != nil {
		return nil, err
	}
	return &backendConn{c, generation}, nil
}

// take gives an idle connection that its server has not left and that can be
// used for mail of o, or nil.
func (p *backendPool) take(o smtpclient.Origin) *backendConn {
	for {
		p.mu.Lock()
		n := p.fitting(o)
		if n < 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[n]
		p.idle = slices.Delete(p.idle, n, n+1)
		p.mu.Unlock()
		if time.Since(c.LastUsed()) < p.maxIdle && c.Healthy() {
			return c
		}
		_ = c.Close() // its server left, or is about to
	}
}

// fitting is the place of the newest connection for o: one that is his before one
// that can become his; -1 when there is none. It is called with p.mu held.
func (p *backendPool) fitting(o smtpclient.Origin) int {
	fits := -1
	for n := len(p.idle) - 1; n >= 0; n-- {
		switch {
		case p.idle[n].Is(o):
			return n
		case fits < 0 && p.idle[n].Fits(o):
			fits = n
		}
	}
	return fits
}

// put keeps a connection for the next delivery, or ends it when it is used up.
func (p *backendPool) put(ctx context.Context, c *backendConn) {
	if !c.Usable() {
		return
	}
	p.mu.Lock()
	if c.generation == p.generation && len(p.idle) < p.max && c.Uses() < p.maxUses {
		p.idle = append(p.idle, c)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	c.Quit(ctx)
}

// reap ends connections that were idle for too long.
func (p *backendPool) reap() {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && time.Since(p.idle[n].LastUsed()) >= p.maxIdle {
		n++
	}
	old := append([]*backendConn(nil), p.idle[:n]...)
	p.idle = append(p.idle[:0], p.idle[n:]...)
	p.mu.Unlock()
	quitAll(old)
}

// shrink ends the idle connections beyond the newest n: those that are kept for
// other clients count for the server as much as those in use.
func (p *backendPool) shrink(n int) {
	p.mu.Lock()
	over := max(0, len(p.idle)-max(0, n))
	old := append([]*backendConn(nil), p.idle[:over]...)
	p.idle = append(p.idle[:0], p.idle[over:]...)
	p.mu.Unlock()
	quitAll(old)
}

// renew ends the idle connections, and those in use when they come back: they
// lead to a target of the past.
func (p *backendPool) renew() {
	p.mu.Lock()
	p.generation++
	p.mu.Unlock()
	p.drain()
}

// drain ends the idle connections.
func (p *backendPool) drain() {
	p.mu.Lock()
	old := p.idle
	p.idle = nil
	p.mu.Unlock()
	quitAll(old)
}

// quitAll says goodbye to all at once: each may take the time of one QUIT.
func quitAll(conns []*backendConn) {
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { c.Quit(context.Background()) })
	}
	wg.Wait()
}
