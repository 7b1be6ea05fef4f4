package cutover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"crossfade/router"
)

// Owners shares the users out over the nodes that work on one table: a node
// works on a user while it owns him, and no two own one at a time.
type Owners interface {
	// Own takes users for ttl from the call on, Keep owns those longer that were
	// taken. Of each they say how often an operator asked something new of
	// him; -1: he is another node's, or, for Keep, has been.
	Own(ctx context.Context, ttl time.Duration, users ...string) ([]int64, error)
	Keep(ctx context.Context, ttl time.Duration, users ...string) ([]int64, error)
	// Disown gives a user up. done: nothing is left to do for him, unless he
	// was asked about more often than asked says.
	Disown(ctx context.Context, user string, done bool, asked int64) error
	// Offer says that there is work on users; asked: an operator wants
	// something new.
	Offer(ctx context.Context, asked bool, users ...string) error
	// Free lists users on whom there is work and whom nobody owns, those who
	// are held first and up to n of each state.
	Free(ctx context.Context, n int) ([]string, error)
	// Draining tells whether this node is to give its users up.
	Draining() bool
}

// Times of sharing.
const (
	ownTime  = 30 * time.Second // a node that is dead is replaced after it
	scanTime = 10 * time.Minute // between two looks through the whole table
	partTime = 3 * time.Second  // for giving a user up
	callTime = 10 * time.Second // for a call to the store that is made again later
)

// errLost means that the user may be another node's: all work on him ends.
var errLost = errors.New("the user is not this node's any more: another one goes on")

// errYield means that this node has no place for what the user needs now, and
// another may have one.
var errYield = errors.New("no place is free on this node")

// stake is how long a user is ours. It ends well before others may take him,
// by our own clock: a process that was stopped for a while sees that at once.
type stake struct {
	mu    sync.Mutex
	until time.Time
	lost  bool
	timer *time.Timer
	asked int64
}

// check tells whether work on the user may go on. It looks at the clock, and
// not only at what timers did: after a stop of the whole process they are late.
func (m *move) check() error {
	if m.c.cfg.Owners == nil {
		return nil
	}
	s := &m.stake
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	// By the wall clock too, for a machine that slept: its monotonic one may
	// have slept as well.
	if s.lost || !now.Before(s.until) || now.Round(0).After(s.until.Round(0)) {
		return errLost
	}
	return nil
}

// hold notes that the user is ours, by a call that began at t.
func (m *move) hold(t time.Time, asked int64) {
	s := &m.stake
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = t.Add(m.c.cfg.OwnTime * 5 / 6)
	s.asked = asked
	s.timer = time.AfterFunc(time.Until(s.until), m.expire)
}

// extend is hold for a user who is ours still. What was lost stays lost: the
// other node may have been at work in between.
func (m *move) extend(t time.Time) {
	if m.check() != nil {
		m.lose()
		return
	}
	s := &m.stake
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = t.Add(m.c.cfg.OwnTime * 5 / 6)
	s.timer.Reset(time.Until(s.until))
}

func (m *move) expire() {
	if m.check() != nil {
		m.lose()
	}
}

// lose ends the work on a user who may be another's.
func (m *move) lose() {
	s := &m.stake
	s.mu.Lock()
	first := !s.lost
	s.lost = true
	s.timer.Stop()
	s.mu.Unlock()
	if first {
		m.c.cfg.Log.Warn("cutover: the work on a user ends here: he was not kept in time, and another node may have taken him", "user", m.user)
		m.interrupt()
	}
}

func (m *move) asked() int64 {
	m.stake.mu.Lock()
	defer m.stake.mu.Unlock()
	return m.stake.asked
}

// set is Conductor.set for a user who must be ours.
func (m *move) set(ctx context.Context, u router.User, to router.State, by, reason string) (router.User, error) {
	if err := m.check(); err != nil {
		return u, err
	}
	return m.c.set(ctx, u, to, by, reason)
}

// giveUp lets another node have the user, when no work on him is left here.
func (m *move) giveUp(done bool) {
	m.keep()
	m.closeBook() // before another node may have him
	if m.c.cfg.Owners == nil {
		return
	}
	if m.check() == nil {
		m.publish()
	}
	s := &m.stake
	s.mu.Lock()
	s.timer.Stop()
	lost := s.lost
	s.lost = true
	s.mu.Unlock()
	if lost {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	if err := m.c.cfg.Owners.Disown(ctx, m.user, done, m.asked()); err != nil {
		m.c.cfg.Log.Warn("cutover: a user cannot be given up: other nodes wait until he is free", "user", m.user, "err", err)
	}
}

// share works together with the other nodes until ctx ends.
func (c *Conductor) share(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { c.looking(ctx) })
	wg.Go(func() { c.keeping(ctx) })
	wg.Go(func() { c.publishing(ctx) })
	wg.Wait()
}

// pause waits for d, or less when something new is in poke; false: ctx is over.
func pause(ctx context.Context, d time.Duration, poke <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-poke:
	}
	return true
}

// looking takes up users whom nobody works on.
func (c *Conductor) looking(ctx context.Context) {
	var scanned time.Time
	for {
		if !c.cfg.Owners.Draining() {
			if err := c.look(ctx, &scanned); err != nil && ctx.Err() == nil {
				c.cfg.Log.Warn("cutover: looking for users to take up failed; trying again", "err", err)
			}
		}
		// Not all nodes at the same moment.
		every := c.cfg.OwnTime / 10
		if !pause(ctx, every/2+rand.N(every), c.lookNow) {
			return
		}
	}
}

// look takes up users, after a look through the table when that is due.
func (c *Conductor) look(ctx context.Context, scanned *time.Time) error {
	if scanned.IsZero() || time.Since(*scanned) > scanTime {
		if err := c.offerAll(ctx, scanned.IsZero()); err != nil {
			return fmt.Errorf("reading the table: %w", err)
		}
		*scanned = time.Now()
	}
	return c.takeUp(ctx)
}

// offerAll offers every user who is on his way. Those who were offered before
// stay as they are; it is for those of whom the books of the owners do not know.
func (c *Conductor) offerAll(ctx context.Context, first bool) error {
	var users []string
	err := c.underWay(ctx, first, func(u router.User, _ Request) { users = append(users, u.Address) })
	if err != nil || len(users) == 0 {
		return err
	}
	return c.cfg.Owners.Offer(ctx, false, users...)
}

// takeMost is how many users of a state one look takes at most, so that nodes
// that start together get some each.
const takeMost = 64

// takeUp takes users whom nobody works on; of those who need a place only as
// many as there are.
func (c *Conductor) takeUp(ctx context.Context) error {
	free, err := c.cfg.Owners.Free(ctx, max(takeMost, c.cfg.Concurrency))
	if err != nil || len(free) == 0 {
		return err
	}
	places := c.freePlaces()
	var want []string
	var waves []string // of those who need a place, as they are in rest
	rest := map[string][]string{}
	for _, user := range free {
		if user == paceLock {
			continue // of a node that died with it
		}
		u, needs, err := c.needsPlace(ctx, user)
		if err != nil {
			return err
		}
		if !needs {
			want = append(want, user)
			continue
		}
		if _, paused := c.pausedBy(u.Wave); paused {
			continue
		}
		if rest[u.Wave] == nil {
			waves = append(waves, u.Wave)
		}
		rest[u.Wave] = append(rest[u.Wave], user)
	}
	slices.SortFunc(waves, compareWaves)
	for _, wave := range waves {
		// Another node has room for the others, or we have in a while.
		n := min(max(places, 0), len(rest[wave]))
		want = append(want, rest[wave][:n]...)
		places -= n
	}
	if len(want) == 0 {
		return nil
	}
	began := time.Now()
	asked, err := c.cfg.Owners.Own(ctx, c.cfg.OwnTime, want...)
	if err != nil {
		return err
	}
	for i, user := range want {
		if asked[i] >= 0 {
			c.enter(ctx, user, began, asked[i])
		}
	}
	return nil
}

// needsPlace tells whether a user is to be copied or flipped at once, which
// takes one of the places.
func (c *Conductor) needsPlace(ctx context.Context, user string) (router.User, bool, error) {
	u, err := c.cfg.Table.User(ctx, user)
	switch {
	case errors.Is(err, router.ErrNoUser):
		return u, false, nil
	case err != nil:
		return u, false, fmt.Errorf("reading the user %s: %w", user, err)
	case u.State == router.StateOld, u.State.Held():
		return u, false, nil
	case u.State == router.StateNew, u.State == router.StateDone:
		return u, false, nil // no pause concerns who reads new, and a rollback waits for its place itself
	case u.State == router.StateSyncing:
		return u, true, nil
	}
	if _, stopped := c.stoppedBy(u.Wave); stopped || c.pace.bounded() {
		return u, false, nil // he is kept in sync until his turn comes
	}
	w := c.wave(u.Wave)
	req, _, err := c.loadRequest(ctx, user)
	return u, (!req.Sync || w.approved() || c.cfg.AutoApprove) && time.Until(later(u.NotBefore, w.NotBefore)) <= 0, err
}

// freePlaces counts the places that are neither taken nor waited for.
func (c *Conductor) freePlaces() int {
	free := c.places.free()
	for _, m := range c.moves() {
		if m.queued() {
			free--
		}
	}
	return free
}

// queued tells whether the move is about to ask for a place.
func (m *move) queued() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	waits := s.Phase == PhaseWaiting && (s.State == router.StateReady && s.Flip || s.Rollback)
	return !m.placed && s.Paused == "" && (s.State == router.StateSyncing || waits)
}

// moves lists those that are not finished.
func (c *Conductor) moves() []*move {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*move
	for _, m := range c.users {
		if !m.finished {
			out = append(out, m)
		}
	}
	return out
}

// enter begins the work on a user whom we own since a call that began at t.
func (c *Conductor) enter(ctx context.Context, user string, t time.Time, asked int64) {
	u, err := c.cfg.Table.User(ctx, user)
	var req Request
	if err == nil {
		req, _, err = c.loadRequest(ctx, user)
	}
	if errors.Is(err, router.ErrNoUser) {
		u, err = router.User{Address: user}, nil // its first step says so
	}
	m := newMove(c, u, req)
	if err == nil {
		m.remember(ctx)
	}
	m.resume(c.elsewhere(user)[user])
	m.hold(t, asked)
	if err != nil {
		c.cfg.Log.Warn("cutover: a user cannot be taken up; trying again", "user", user, "err", err)
		m.giveUp(false)
		return
	}
	c.mu.Lock()
	if old := c.users[user]; old != nil {
		m.running = old.running // until its goroutine has ended, see ended
	}
	c.users[user] = m
	c.mu.Unlock()
	c.poke()
}

// keeping keeps our users ours.
func (c *Conductor) keeping(ctx context.Context) {
	for pause(ctx, c.cfg.OwnTime/6, c.keepNow) {
		list := c.owned()
		if c.cfg.Owners.Draining() {
			for _, m := range list {
				m.leave()
			}
		}
		c.keep(ctx, list)
	}
}

func (c *Conductor) owned() []*move {
	var out []*move
	for _, m := range c.moves() {
		if m.check() == nil {
			out = append(out, m)
		}
	}
	return out
}

func (c *Conductor) keep(ctx context.Context, list []*move) {
	if len(list) == 0 {
		return
	}
	users := make([]string, 0, len(list))
	for _, m := range list {
		users = append(users, m.user)
	}
	began := time.Now()
	cctx, cancel := context.WithTimeout(ctx, callTime)
	asked, err := c.cfg.Owners.Keep(cctx, c.cfg.OwnTime, users...)
	cancel()
	if err != nil {
		if ctx.Err() == nil {
			c.cfg.Log.Warn("cutover: users cannot be kept for this node; trying again", "users", len(users), "err", err)
		}
		return
	}
	for i, m := range list {
		switch {
		case m.check() != nil: // given up, or too late
		case asked[i] < 0:
			m.lose()
		default:
			m.extend(began)
			if asked[i] != m.asked() {
				c.reread(ctx, m, asked[i])
			}
		}
	}
}

// reread looks at what an operator asked of a user, perhaps of another node.
func (c *Conductor) reread(ctx context.Context, m *move, asked int64) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	u, err := c.cfg.Table.User(ctx, m.user)
	if errors.Is(err, router.ErrNoUser) || err == nil && u.State == router.StateOld {
		m.seen(asked)
		m.stop()
		return
	}
	var req Request
	if err == nil {
		req, _, err = c.loadRequest(ctx, m.user)
	}
	if err != nil {
		c.cfg.Log.Warn("cutover: what was asked for a user cannot be read; trying again", "user", m.user, "err", err)
		return // asked stays, so we come back
	}
	m.seen(asked)
	m.ask(req)
}

func (m *move) seen(asked int64) {
	m.stake.mu.Lock()
	defer m.stake.mu.Unlock()
	m.stake.asked = asked
}

// leave ends the work here so that another node goes on. A user who is held is
// carried to the end first: that takes seconds.
func (m *move) leave() {
	s := m.snapshot()
	if !s.State.Held() || s.Phase == PhaseWaiting {
		m.mu.Lock()
		m.left = true
		m.mu.Unlock()
		m.interrupt()
	}
}
