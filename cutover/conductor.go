package cutover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/router"
)

// Conductor moves users through the states. Make it with New, start it with
// Run; its other methods may be called from any goroutine before and during
// Run.
type Conductor struct {
	cfg    Config
	places *places
	tails  *places // for passes that follow a change in a mailbox
	sweeps *places // for looks into all folders of mailboxes that are not read

	closeMu    sync.Mutex
	closeErr   error // of Config.MayClose, at closeAsked
	closeAsked time.Time

	pauseMu sync.Mutex
	pauses  []Pause
	waves   map[string]waveRecord
	reading sync.Mutex   // of readOrders
	gate    sync.RWMutex // read: a user is about to be held; write: that changes
	pace    *pace

	// asking is held by Start and Cancel, one at a time: a request must not be
	// noted for a move that is being taken back, nor forgotten behind it.
	asking sync.Mutex

	mu    sync.Mutex
	users map[string]*move
	wake  chan struct{} // one token: the set of users changed

	lookNow, keepNow chan struct{} // one token each: do not wait for the next time
}

// New makes a conductor; nothing runs before Run.
func New(cfg Config) *Conductor {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.MaxHold, 10*time.Minute)
	def(&cfg.Tail, time.Minute)
	def(&cfg.LatePass, 2*time.Minute)
	def(&cfg.RetryFirst, 30*time.Second)
	def(&cfg.RetryMax, time.Hour)
	def(&cfg.OwnTime, ownTime)
	if cfg.Window == 0 {
		cfg.Window = 7 * 24 * time.Hour
	}
	cfg.Window = max(cfg.Window, 0)
	cfg.LatePass = min(cfg.LatePass, cfg.Window)
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 4
	}
	if cfg.TailPlaces <= 0 {
		cfg.TailPlaces = 2
	}
	if cfg.SweepPlaces <= 0 {
		cfg.SweepPlaces = 2
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Conductor{
		cfg: cfg, places: &places{all: cfg.Concurrency}, tails: &places{all: cfg.TailPlaces},
		sweeps: &places{all: cfg.SweepPlaces}, users: map[string]*move{}, wake: make(chan struct{}, 1),
		lookNow: make(chan struct{}, 1), keepNow: make(chan struct{}, 1),
	}
	c.pace = newPace(c.cfg)
	c.places.paused = func(wave string) bool {
		_, yes := c.pausedBy(wave)
		return yes
	}
	c.tails.paused, c.sweeps.paused = c.places.paused, c.places.paused
	return c
}

// Run takes up the users whom an earlier process left on their way or within
// their window, and works until ctx ends. It returns when every user's work has
// stopped; a user in cutover then stays held, and the next Run goes on.
func (c *Conductor) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if err := c.readOrders(ctx); err != nil {
		return fmt.Errorf("cutover: %w", err)
	}
	wg.Go(func() { c.watchPauses(ctx) })
	wg.Go(func() { c.keepingStatuses(ctx) })
	if c.cfg.Looker != nil {
		wg.Go(func() { c.sizing(ctx) })
	}
	if c.cfg.Owners != nil {
		wg.Go(func() { c.share(ctx) })
	} else if err := c.recover(ctx); err != nil {
		return fmt.Errorf("cutover: reading the users to take up: %w", err)
	} else {
		wg.Go(func() { c.scanning(ctx) })
	}
	for {
		for _, m := range c.startable() {
			wg.Go(func() {
				m.run(ctx)
				c.ended(m)
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
	}
}

// ended lets a move go on: m itself, or the one that took its place while it was
// ending. Until then that one waits, so that no user is worked on twice.
func (c *Conductor) ended(m *move) {
	c.mu.Lock()
	m.running = false
	now := c.users[m.user]
	now.running = false
	if now == m && !m.finished && c.cfg.Owners != nil {
		delete(c.users, m.user) // another node's, or soon
	}
	c.mu.Unlock()
	c.poke()
}

func (c *Conductor) poke() { token(c.wake) }

func token(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// startable lists the moves that have something to do and no goroutine yet.
func (c *Conductor) startable() []*move {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*move
	for _, m := range c.users {
		if !m.running && !m.finished {
			m.running = true
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b *move) int { return a.status.Started.Compare(b.status.Started) })
	return out
}

// Start asks for a user to be moved. The request is durable when it returns.
// Asking again for a user who is on his way changes how far he goes.
func (c *Conductor) Start(ctx context.Context, req Request) error {
	key, err := userKey(req.User)
	if err != nil {
		return fmt.Errorf("cutover start: %w", err)
	}
	req.User, req.At = key, time.Now().UTC().Truncate(time.Second)
	c.asking.Lock()
	defer c.asking.Unlock()
	u, err := c.startUser(ctx, req)
	if err != nil {
		return fmt.Errorf("cutover start %s: %w", key, err)
	}
	if err := c.begin(ctx, u, req); err != nil {
		return fmt.Errorf("cutover start %s: %w", key, err)
	}
	return nil
}

// begin has a request worked on that is noted: here, or by the node that works on
// the user.
func (c *Conductor) begin(ctx context.Context, u router.User, req Request) error {
	if c.cfg.Owners != nil {
		return c.offer(ctx, req.User)
	}
	c.mu.Lock()
	m := c.users[req.User]
	if m == nil || m.finished || m.stopped() {
		running := m != nil && m.running
		m = newMove(c, u, req)
		m.insist = true
		m.running = running // until the old goroutine has ended, see ended
		c.users[req.User] = m
	} else {
		m.ask(req)
	}
	c.mu.Unlock()
	c.poke()
	return nil
}

// offer tells the node that works on a user, or will, that there is something
// new to look at.
func (c *Conductor) offer(ctx context.Context, key string) error {
	if err := c.cfg.Owners.Offer(ctx, true, key); err != nil {
		return fmt.Errorf("telling the nodes: %w", err)
	}
	token(c.keepNow)
	token(c.lookNow)
	return nil
}

// startUser checks that the user can be moved, notes the request, and brings a
// user who has not begun into syncing.
func (c *Conductor) startUser(ctx context.Context, req Request) (router.User, error) {
	u, err := c.cfg.Table.User(ctx, req.User)
	if errors.Is(err, router.ErrNoUser) {
		u = router.User{Address: req.User, Kind: router.KindMailbox, State: router.StateOld}
	} else if err != nil {
		return u, err
	}
	switch {
	case u.Kind != router.KindMailbox && u.Kind != "":
		return u, fmt.Errorf("it is an %s: move the mailbox that it points to (%s)", u.Kind, strings.Join(u.Targets, ", "))
	case u.State == router.StateNew || u.State == router.StateDone:
		return u, fmt.Errorf("the user is %s already", u.State)
	case u.State == router.StateRollback:
		return u, errors.New("the user is being rolled back: wait for the end, then start again")
	}
	if _, err := c.cfg.Mailboxes.Job(u); err != nil {
		return u, err
	}
	if err := c.saveRequest(ctx, req); err != nil {
		return u, fmt.Errorf("noting the request: %w", err)
	}
	if u.State != router.StateOld {
		return u, nil
	}
	return c.set(ctx, u, router.StateSyncing, req.By, req.Reason)
}

// set moves u to a state that the table of transitions allows.
func (c *Conductor) set(ctx context.Context, u router.User, to router.State, by, reason string) (router.User, error) {
	if err := router.Transition(u.State, to, false); err != nil {
		return u, err
	}
	from := u.State
	u.State, u.Since, u.Note = to, time.Now(), ""
	if from.Held() && (to == router.StateReady || to == router.StateNew && from == router.StateRollback) {
		u.Note = reason
	}
	change := router.Change{From: from, To: to, By: by, Reason: reason}
	saved, _, err := c.cfg.Table.SetUser(ctx, u, change)
	if err == nil && c.cfg.Hooks.Changed != nil {
		change.User, change.Epoch, change.At = saved.Address, saved.Epoch, saved.Since
		c.cfg.Hooks.Changed(change)
	}
	return saved, err
}

// Cancel takes a user who has not flipped back to old. His copied mail stays
// where it is and is not copied again when he starts anew.
func (c *Conductor) Cancel(ctx context.Context, user, by string) error {
	key, err := userKey(user)
	if err != nil {
		return fmt.Errorf("cutover cancel: %w", err)
	}
	c.asking.Lock()
	defer c.asking.Unlock()
	// First the state, then the work: after an error there is still somebody who
	// ends the hold.
	back, err := c.rollsBack(ctx, key)
	switch {
	case err != nil:
	case back:
		if err = c.cancelBack(ctx, key, by); err == nil {
			return nil
		}
	default:
		err = c.takeBack(ctx, key, by)
	}
	if err != nil {
		return fmt.Errorf("cutover cancel %s: %w", key, err)
	}
	c.mu.Lock()
	m := c.users[key]
	c.mu.Unlock()
	if m != nil {
		m.stop()
	}
	if err := c.saveRequest(ctx, Request{User: key}); err != nil || c.cfg.Owners == nil {
		return err
	}
	return c.offer(ctx, key)
}

// takeBack sets a user to old, by way of ready when he is held. The move may
// change him meanwhile: then he is looked at again.
func (c *Conductor) takeBack(ctx context.Context, key, by string) error {
	for tries := 0; ; tries++ {
		u, err := c.cfg.Table.User(ctx, key)
		if err != nil || u.State == router.StateOld {
			return err
		}
		to := router.StateOld
		if u.State == router.StateCutover {
			to = router.StateReady
		}
		_, err = c.set(ctx, u, to, by, "cancelled")
		if err != nil && (tries >= 10 || !errors.Is(err, router.ErrEpoch)) {
			return err
		}
	}
}

// forget drops the request of a user who has arrived: it must not flip him by
// itself when he is on his way again one day.
func (c *Conductor) forget(ctx context.Context, user string) {
	c.asking.Lock()
	defer c.asking.Unlock()
	u, err := c.cfg.Table.User(ctx, user)
	var req Request
	asked := true
	if err == nil {
		req, asked, err = c.loadRequest(ctx, user)
	}
	switch {
	case err == nil && !asked:
		return
	case err == nil && req.Rollback && u.State != router.StateOld && u.Kind == router.KindMailbox:
		return // asked meanwhile
	case err == nil && (u.State == router.StateSyncing || u.State == router.StateReady || u.State == router.StateCutover):
		return // started anew meanwhile
	case err == nil || errors.Is(err, router.ErrNoUser):
		err = c.saveRequest(ctx, Request{User: user})
	}
	if err != nil {
		c.cfg.Log.Warn("cutover: the request of a user who has arrived stays on record", "user", user, "err", err)
	}
}

// RunBackfill brings a user into sync, or looks again when he is, and goes no
// further than ready.
func (c *Conductor) RunBackfill(ctx context.Context, user, by string) error {
	return c.Start(ctx, Request{User: user, By: by, Reason: "backfill run", Sync: true})
}

// Status lists the users the conductor knows of, by address, but for those who
// are old and of whom there is nothing to say. Where several nodes share the work
// it has the users of all.
func (c *Conductor) Status() []Status {
	all := c.elsewhere("")
	if all == nil {
		all = map[string]Status{}
	}
	c.mu.Lock()
	here := make(map[*move]bool, len(c.users))
	for _, m := range c.users {
		here[m] = m.finished
	}
	c.mu.Unlock()
	for m, finished := range here {
		all[m.user] = merge(m.snapshot(), finished, all[m.user])
	}
	out := slices.DeleteFunc(slices.Collect(maps.Values(all)), Status.quiet)
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.User, b.User) })
	return out
}

// StatusOf gives one user's status; false when nobody has worked on him since
// the start.
func (c *Conductor) StatusOf(user string) (Status, bool) {
	key, err := userKey(user)
	if err != nil {
		return Status{}, false
	}
	there, known := c.elsewhere(key)[key]
	c.mu.Lock()
	m := c.users[key]
	finished := m != nil && m.finished
	c.mu.Unlock()
	if m == nil {
		return there, known
	}
	return merge(m.snapshot(), finished, there), true
}

func userKey(user string) (string, error) {
	a, err := mail.ParseAddress(user)
	if err != nil {
		return "", err
	}
	if a.IsNull() {
		return "", errors.New("no address was given")
	}
	return a.Key(), nil
}
