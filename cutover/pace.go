package cutover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"crossfade/router"
)

const (
	// paceLock is what a node owns while it looks whether somebody may be held, and
	// holds him; it is no address, so it cannot meet a user.
	paceLock = "pace"
	lockTime = 10 * time.Second
	// paceRecord keeps when the last hold began, and when the next may.
	paceRecord = "pace"
	// paceLook is the time between two looks whether somebody was released.
	paceLook = 250 * time.Millisecond
	// pacePatience is how long a user who is next waits without being kept in sync.
	pacePatience = 5 * time.Second
)

// errPaced means that others are held, or were just now: the user is ready, and
// has his turn later. It is no failure.
var errPaced = errors.New("others are being flipped: the pace allows no more just now")

// pace bounds how many users are held at once, and how many holds begin in a
// minute, over all nodes: the table says who is held, a record when the last
// hold began, and who looks at them does so alone. Here on this node it bounds
// how many users try, in the order in which they came.
type pace struct {
	cfg   *Config
	most  int           // held at once; 0: no bound
	every time.Duration // from the beginning of a hold to the next; 0: no bound
	tries int           // users of this node who try at once

	alone chan struct{} // a token: who has it looks and holds

	mu      sync.Mutex
	trying  map[*move]bool // whether the rate has a turn for him
	waiting []*move
}

// paced is the record of the pace.
type paced struct {
	Last time.Time `json:"last,omitzero"` // when the last hold began
	Next time.Time `json:"next,omitzero"` // when the next user may try
}

func newPace(cfg Config) *pace {
	p := &pace{cfg: &cfg, most: cfg.MaxHeld, tries: cfg.Concurrency, alone: make(chan struct{}, 1), trying: map[*move]bool{}}
	if p.most > 0 {
		p.tries = min(p.tries, p.most)
	}
	if cfg.FlipsPerMinute > 0 {
		p.every = time.Minute / time.Duration(cfg.FlipsPerMinute)
	}
	return p
}

// bounded tells whether there is a pace at all.
func (p *pace) bounded() bool { return p.most > 0 || p.every > 0 }

// lock lets one look at a time, of all nodes. The function gives it back.
func (p *pace) lock(ctx context.Context) (func(), error) {
	select {
	case p.alone <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	back := func() { <-p.alone }
	if p.cfg.Owners == nil {
		return back, nil
	}
	for {
		got, err := p.cfg.Owners.Own(ctx, lockTime, paceLock)
		if err != nil {
			back()
			return nil, fmt.Errorf("asking the other nodes for the right to hold users: %w", err)
		}
		if got[0] >= 0 {
			return func() {
				// With a time of its own: a stop must not keep the others waiting.
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), partTime)
				defer cancel()
				if err := p.cfg.Owners.Disown(ctx, paceLock, true, got[0]); err != nil {
					p.cfg.Log.Warn("cutover: the right to hold users cannot be given back: other nodes wait until it ends by itself", "err", err)
				}
				back()
			}, nil
		}
		if !pause(ctx, paceLook/10+rand.N(paceLook/5), nil) {
			back()
			return nil, ctx.Err()
		}
	}
}

// admit gives 0 when a ready user may try to be held, or how long to wait.
func (p *pace) admit(ctx context.Context, m *move) (time.Duration, error) {
	if !p.bounded() {
		return 0, nil
	}
	if !p.enter(m) {
		return m.c.cfg.Tail, nil // or until his turn comes
	}
	for asked := time.Now(); ; {
		wait, err := p.turn(ctx, m)
		switch {
		case err != nil || wait == 0:
			return 0, err
		case wait > pacePatience || time.Since(asked) > pacePatience:
			return wait, nil
		}
		if !pause(ctx, wait, m.again) {
			return 0, ctx.Err()
		}
		if _, stopped := m.c.stoppedBy(m.snapshot().Wave); stopped {
			return m.c.cfg.Tail, nil
		}
	}
}

// enter makes the user one of those who try; false: he waits for that.
func (p *pace) enter(m *move) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.trying[m]; ok {
		return true
	}
	before := slices.Index(p.waiting, m)
	if before < 0 {
		before = len(p.waiting)
		p.waiting = append(p.waiting, m)
	}
	if before >= p.tries-len(p.trying) {
		return false
	}
	p.waiting = slices.Delete(p.waiting, before, before+1)
	p.trying[m] = false
	return true
}

// leave says that the user does not try any more, held or not.
func (p *pace) leave(m *move) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiting, m); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	} else if _, tried := p.trying[m]; !tried {
		return
	}
	delete(p.trying, m)
	for x := range p.trying {
		token(x.again) // one less may be held
	}
	for _, x := range p.waiting[:min(len(p.waiting), max(0, p.tries-len(p.trying)))] {
		token(x.again)
	}
}

// turn gives the user a turn of the rate, when nobody had one just now and not
// too many are held; otherwise it says when to ask again.
func (p *pace) turn(ctx context.Context, m *move) (time.Duration, error) {
	p.mu.Lock()
	has := p.trying[m]
	p.mu.Unlock()
	if has {
		wait, _, err := p.mayHold(ctx)
		return wait, err
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	wait, rec, err := p.mayHold(ctx)
	if err != nil || wait > 0 {
		return wait, err
	}
	if p.every > 0 {
		if wait := min(time.Until(rec.Next), p.every); wait > 0 {
			return wait, nil
		}
		rec.Next = time.Now().Add(p.every)
		if err := p.save(ctx, rec); err != nil {
			return 0, err
		}
	}
	p.mu.Lock()
	p.trying[m] = true
	p.mu.Unlock()
	return 0, nil
}

// room gives 0 when one more may be held.
func (p *pace) room(ctx context.Context) (time.Duration, error) {
	if p.most == 0 {
		return 0, nil
	}
	n, err := p.held(ctx)
	if err != nil || n < p.most {
		return 0, err
	}
	return paceLook, nil
}

// held counts who is held, by whomever.
func (p *pace) held(ctx context.Context) (int, error) {
	counts, err := p.cfg.Table.CountUsers(ctx)
	if err == nil {
		return counts[router.StateCutover] + counts[router.StateRollback], nil
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return 0, fmt.Errorf("counting who is held: %w", err)
	}
	n := 0
	for _, st := range []router.State{router.StateCutover, router.StateRollback} {
		users, _, err := p.cfg.Table.Users(ctx, router.Filter{State: st}, "", p.most+1)
		if err != nil {
			return 0, fmt.Errorf("counting who is held: %w", err)
		}
		n += len(users)
	}
	return n, nil
}

func (p *pace) load(ctx context.Context) (rec paced, err error) {
	records, err := p.cfg.Requests.LoadLedger(ctx, requestsOf)
	if err != nil {
		return rec, fmt.Errorf("reading when the last hold began: %w", err)
	}
	if data := records[paceRecord]; data != nil && json.Unmarshal(data, &rec) != nil {
		// As if one had begun just now: too slow is no harm.
		rec = paced{Last: time.Now(), Next: time.Now().Add(p.every)}
		p.cfg.Log.Warn("cutover: the record of the pace cannot be read; it begins anew")
		return rec, p.save(ctx, rec)
	}
	return rec, nil
}

func (p *pace) save(ctx context.Context, rec paced) error {
	data, err := json.Marshal(rec)
	if err == nil {
		err = p.cfg.Requests.SaveLedger(ctx, requestsOf, paceRecord, data)
	}
	if err != nil {
		return fmt.Errorf("noting when a hold begins: %w", err)
	}
	return nil
}

// beginHold sets a user to cutover, once nothing is stopped and the pace allows it.
func (m *move) beginHold(ctx context.Context, u router.User) (router.User, error) {
	for asked := time.Now(); ; {
		held, wait, err := m.holdNow(ctx, u)
		if err != nil || wait == 0 {
			return held, err
		}
		if time.Since(asked)+wait > 2*pacePatience {
			return u, errPaced // and what came meanwhile is copied first
		}
		if !pause(ctx, wait, nil) {
			return u, ctx.Err()
		}
	}
}

// holdNow is beginHold without waiting.
func (m *move) holdNow(ctx context.Context, u router.User) (router.User, time.Duration, error) {
	p := m.c.pace
	if p.bounded() {
		unlock, err := p.lock(ctx)
		if err != nil {
			return u, 0, err
		}
		defer unlock()
	}
	locked := time.Now()
	if err := m.c.readOrders(ctx); err != nil {
		return u, 0, err
	}
	wait, rec, err := p.mayHold(ctx)
	if err != nil || wait > 0 {
		return u, wait, err
	}
	m.c.gate.RLock()
	defer m.c.gate.RUnlock()
	if _, stopped := m.c.stoppedBy(u.Wave); stopped {
		return u, 0, errPaused
	}
	if p.every > 0 {
		rec.Last = time.Now()
		if err := p.save(ctx, rec); err != nil {
			return u, 0, err
		}
	}
	if p.bounded() && time.Since(locked) > lockTime/2 {
		return u, paceLook, nil // another node may have the right by now
	}
	req := m.request()
	held, err := m.set(ctx, u, router.StateCutover, req.By, req.Reason)
	if err != nil {
		return held, 0, fmt.Errorf("holding the user: %w", err)
	}
	if p.every > 0 {
		rec.Last = time.Now() // a store that was slow began it later than it was asked
		if err := p.save(ctx, rec); err != nil {
			m.c.cfg.Log.Warn("cutover: the next hold may begin a little too early", "user", u.Address, "err", err)
		}
	}
	return held, 0, nil
}

// mayHold gives 0 when a hold may begin now.
func (p *pace) mayHold(ctx context.Context) (wait time.Duration, rec paced, err error) {
	if wait, err = p.room(ctx); err != nil || wait > 0 || p.every == 0 {
		return wait, rec, err
	}
	if rec, err = p.load(ctx); err != nil {
		return 0, rec, err
	}
	return max(0, min(time.Until(rec.Last.Add(p.every)), p.every)), rec, nil
}
