package relay

import (
	"context"
	"sync"
	"time"
)

// BackendState says whether a backend gets deliveries.
type BackendState string

// The states. A backend goes from up to down when its connections fail, from
// down to trying when it answers again, and from trying to either by what
// becomes of one delivery. Paused stands above all of them.
const (
	BackendUp     BackendState = "up"
	BackendDown   BackendState = "down"
	BackendTrying BackendState = "trying"
	BackendPaused BackendState = "paused"
)

// firstLimit is how many deliveries a backend gets at once before it has shown
// that it can take more.
const firstLimit = 5

// backendGate decides how many deliveries a backend gets at once: none when an
// operator or its own failures forbid it, else a number that grows by one when
// as many deliveries went well, and shrinks by one with each failure of a
// connection. It is a circuit breaker whose callers wait instead of failing,
// which is why it is not gobreaker's.
type backendGate struct {
	max        int
	threshold  int
	firstProbe time.Duration
	maxProbe   time.Duration

	mu       sync.Mutex
	slots    map[*gateSlot]struct{}
	live     int // slots that are not withdrawn
	inFlight int
	limit    int
	credit   int // deliveries that went well since limit last changed
	failures int // in a row
	state    BackendState
	since    time.Time
	paused   bool
	pausedAt time.Time
	reason   string // of the pause
	by       string
	wait     time.Duration // before the next probe
	probeAt  time.Time
	lastErr  string
	lastAt   time.Time
	changed  chan struct{} // closed and replaced when a waiter should look again
}

// gateSlot is a worker's permission to claim and deliver, one message after
// another.
type gateSlot struct {
	ctx       context.Context // ends when the permission does: claim under it
	cancel    context.CancelFunc
	busy      bool
	withdrawn bool
}

func newBackendGate(cfg BackendConfig) *backendGate {
	return &backendGate{
		max: cfg.MaxConns, threshold: cfg.Failures, firstProbe: cfg.FirstProbe, maxProbe: cfg.MaxProbe,
		slots: make(map[*gateSlot]struct{}), limit: min(firstLimit, cfg.MaxConns), state: BackendUp, since: time.Now(),
		wait: cfg.FirstProbe, changed: make(chan struct{}),
	}
}

// wake is called with g.mu held.
func (g *backendGate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// room is how many slots there may be; called with g.mu held.
func (g *backendGate) room() int {
	switch {
	case g.paused || g.state == BackendDown:
		return 0
	case g.state == BackendTrying:
		return 1
	}
	return g.limit
}

// enter waits for a slot.
func (g *backendGate) enter(ctx context.Context) (*gateSlot, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g.mu.Lock()
		if g.live < g.room() {
			s := &gateSlot{}
			s.ctx, s.cancel = context.WithCancel(ctx)
			g.slots[s] = struct{}{}
			g.live++
			g.mu.Unlock()
			return s, nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// leave gives a slot back.
func (g *backendGate) leave(s *gateSlot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.withdraw(s)
	delete(g.slots, s)
	g.wake()
}

// withdraw is called with g.mu held.
func (g *backendGate) withdraw(s *gateSlot) {
	if !s.withdrawn {
		s.withdrawn = true
		g.live--
		s.cancel()
	}
}

// begin says that a delivery starts. False: the slot was withdrawn while the
// delivery was being claimed; release it and leave.
func (g *backendGate) begin(s *gateSlot) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.ctx.Err() != nil || g.live > g.room() {
		return false
	}
	s.busy = true
	g.inFlight++
	return true
}

// gateReport is what a delivery says about its backend.
type gateReport struct {
	ok  bool  // the session went well, whatever was said about the message
	err error // of the connection or the session; nil with !ok: nothing learnt
}

// finish says how a delivery went. False: leave, the slot is one too many now.
func (g *backendGate) finish(s *gateSlot, r gateReport) (stay bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.busy = false
	g.inFlight--
	switch {
	case r.err != nil:
		g.failed(r.err)
	case r.ok:
		g.worked()
	}
	return s.ctx.Err() == nil && g.live <= g.room()
}

// worked is called with g.mu held.
func (g *backendGate) worked() {
	g.failures = 0
	switch g.state {
	case BackendDown:
		return // a delivery from before; the probe will say
	case BackendTrying:
		g.turn(BackendUp)
		g.limit, g.credit, g.wait = min(firstLimit, g.max), 0, g.firstProbe
		g.wake()
		return
	}
	if g.credit++; g.credit >= g.limit && g.limit < g.max {
		g.limit++
		g.credit = 0
		g.wake()
	}
}

// failed is called with g.mu held.
func (g *backendGate) failed(err error) {
	g.failures++
	g.lastErr, g.lastAt = err.Error(), time.Now()
	g.limit, g.credit = max(1, g.limit-1), 0
	switch {
	case g.state == BackendTrying:
		g.wait = min(2*g.wait, g.maxProbe)
		g.down()
	case g.state == BackendUp && g.failures >= g.threshold:
		g.down()
	}
	g.trim()
}

func (g *backendGate) turn(to BackendState) {
	g.state, g.since = to, time.Now()
}

func (g *backendGate) down() {
	g.turn(BackendDown)
	g.probeAt = time.Now().Add(g.wait)
	g.wake()
}

// trim withdraws slots above what there is room for, of workers that wait for
// mail. Called with g.mu held.
func (g *backendGate) trim() {
	for s := range g.slots {
		if g.live <= g.room() {
			return
		}
		if !s.busy {
			g.withdraw(s)
		}
	}
}

// nextProbe says when a backend that is down should be asked, zero when it is
// not down, and what tells of a change of that.
func (g *backendGate) nextProbe() (time.Time, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != BackendDown || g.paused {
		return time.Time{}, g.changed
	}
	return g.probeAt, g.changed
}

// probed says what the backend answered when it was asked.
func (g *backendGate) probed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != BackendDown {
		return
	}
	if err != nil {
		g.failures++
		g.lastErr, g.lastAt = err.Error(), time.Now()
		g.wait = min(2*g.wait, g.maxProbe)
		g.probeAt = time.Now().Add(g.wait)
		return
	}
	g.turn(BackendTrying)
	g.wake()
}

func (g *backendGate) probeNow() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wait = g.firstProbe
	if g.state == BackendDown {
		g.probeAt = time.Now()
	}
	g.wake()
}

func (g *backendGate) pause(reason, by string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused, g.pausedAt, g.reason, g.by = true, time.Now(), reason, by
	g.trim()
	g.wake()
}

func (g *backendGate) resume() {
	g.mu.Lock()
	g.paused, g.reason, g.by = false, "", ""
	g.mu.Unlock()
	g.probeNow()
}

// serving tells whether the backend is neither paused nor known to be down.
func (g *backendGate) serving() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.paused && g.state != BackendDown
}

func (g *backendGate) status() BackendStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := BackendStatus{
		State: g.state, Since: g.since, Limit: g.limit, MaxConns: g.max, InFlight: g.inFlight,
		Failures: g.failures, LastError: g.lastErr, LastErrorAt: g.lastAt,
	}
	if g.state == BackendDown {
		s.Reason, s.NextProbe = g.lastErr, g.probeAt
	}
	if g.paused {
		s.State, s.Since, s.Reason, s.By, s.NextProbe = BackendPaused, g.pausedAt, g.reason, g.by, time.Time{}
	}
	return s
}
