package relay

import (
	"context"
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
func (p *backendPool) dial(ctx context.Context, target func() smtpclient.Target) (*backendConn, error) {
	p.mu.Lock()
	generation := p.generation
	p.mu.Unlock()
	c, err := smtpclient.Dial(ctx, target())
	if err != nil {
		return nil, err
	}
	return &backendConn{c, generation}, nil
}

// take gives an idle connection that its server has not left, or nil.
func (p *backendPool) take() *backendConn {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if time.Since(c.LastUsed()) < p.maxIdle && c.Healthy() {
			return c
		}
		_ = c.Close() // its server left, or is about to
	}
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
