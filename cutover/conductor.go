package cutover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/backfill"
	"crossfade/mail"
	"crossfade/router"
)

// Copier is what the conductor asks of the backfill.
type Copier interface {
	Pass(ctx context.Context, job backfill.Job, o backfill.Options) (backfill.Report, error)
	Verify(ctx context.Context, job backfill.Job) (backfill.Verification, error)
}

// Mailboxes says where a user's mailbox lies on both sides and how to log in.
// An error means that the conductor cannot work for this user.
type Mailboxes interface {
	Job(u router.User) (backfill.Job, error)
}

// Config is what a Conductor works with. Table, Copier, Mailboxes and Requests
// are required; the zero values of the rest get the defaults named.
type Config struct {
	Table     router.Table
	Copier    Copier
	Mailboxes Mailboxes
	// Requests keeps what operators asked for over a restart, in records of its
	// own beside the backfill's.
	Requests backfill.Ledger

	AutoApprove bool          // a user who is ready flips without being told
	MaxHold     time.Duration // 10 minutes: longer, and the user is ready again
	Concurrency int           // 4 users at once
	Tail        time.Duration // 1 minute between the passes for a ready user
	LatePass    time.Duration // 2 minutes after the flip, one pass for a delivery frozen before its dot
	RetryFirst  time.Duration // 30 seconds after the first failure, doubled up to RetryMax
	RetryMax    time.Duration // 1 hour

	Hooks Hooks
	Log   *slog.Logger
}

// Hooks are told what happens. Each may be nil; none may block.
type Hooks struct {
	Status  func(Status)          // at every change of a status
	Changed func(router.Change)   // a user was set to another state
	Passed  func(backfill.Report) // a pass ended, by an error too
	Flipped func(hold time.Duration)
	Failed  func() // an attempt failed; it is made again
}

// Conductor moves users through the states. Make it with New, start it with
// Run; its other methods may be called from any goroutine before and during
// Run.
type Conductor struct {
	cfg   Config
	slots chan struct{}

	// asking is held by Start and Cancel, one at a time: a request must not be
	// noted for a move that is being taken back, nor forgotten behind it.
	asking sync.Mutex

	mu    sync.Mutex
	users map[string]*move
	wake  chan struct{} // one token: the set of users changed
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
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 4
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Conductor{cfg: cfg, slots: make(chan struct{}, cfg.Concurrency), users: map[string]*move{}, wake: make(chan struct{}, 1)}
}

// Run takes up the users whom an earlier process left in syncing, ready or
// cutover, and works until ctx ends. It returns when every user's work has
// stopped; a user in cutover then stays held, and the next Run goes on.
func (c *Conductor) Run(ctx context.Context) error {
	if err := c.recover(ctx); err != nil {
		return fmt.Errorf("cutover: reading the users to take up: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
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
	c.users[m.user].running = false
	c.mu.Unlock()
	c.poke()
}

func (c *Conductor) poke() {
	select {
	case c.wake <- struct{}{}:
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

// recover makes a move for every user who is on his way: a user who is new is
// when his request is still kept, because the pass after the flip was not made.
func (c *Conductor) recover(ctx context.Context) error {
	for _, st := range []router.State{router.StateCutover, router.StateReady, router.StateSyncing, router.StateNew} {
		cursor := ""
		for {
			users, next, err := c.cfg.Table.Users(ctx, router.Filter{State: st, Kind: router.KindMailbox}, cursor, 500)
			if err != nil {
				return err
			}
			for _, u := range users {
				req, asked, err := c.loadRequest(ctx, u.Address)
				if err != nil {
					return err
				}
				if asked || st != router.StateNew {
					c.adopt(u, req)
				}
			}
			if cursor = next; next == "" {
				break
			}
		}
	}
	return nil
}

func (c *Conductor) adopt(u router.User, req Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[u.Address] == nil {
		c.users[u.Address] = newMove(c, u, req)
	}
}

// Start asks for a user to be moved. The request is durable when it returns.
// Asking again for a user who is on his way changes how far he goes.
func (c *Conductor) Start(ctx context.Context, req Request) error {
	key, err := userKey(req.User)
	if err != nil {
		return fmt.Errorf("cutover start: %w", err)
	}
	req.User = key
	c.asking.Lock()
	defer c.asking.Unlock()
	u, err := c.startUser(ctx, req)
	if err != nil {
		return fmt.Errorf("cutover start %s: %w", key, err)
	}
	c.mu.Lock()
	m := c.users[key]
	if m == nil || m.finished || m.stopped() {
		running := m != nil && m.running
		m = newMove(c, u, req)
		m.running = running // until the old goroutine has ended, see ended
		c.users[key] = m
	} else {
		m.ask(req)
	}
	c.mu.Unlock()
	c.poke()
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
	if to == router.StateReady && from == router.StateCutover {
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
	if err := c.takeBack(ctx, key, by); err != nil {
		return fmt.Errorf("cutover cancel %s: %w", key, err)
	}
	c.mu.Lock()
	m := c.users[key]
	c.mu.Unlock()
	if m != nil {
		m.stop()
	}
	return c.saveRequest(ctx, Request{User: key})
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
	switch {
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

// Verify compares both mailboxes of a user, whatever his state.
func (c *Conductor) Verify(ctx context.Context, user string) (backfill.Verification, error) {
	key, err := userKey(user)
	if err != nil {
		return backfill.Verification{}, fmt.Errorf("backfill verify: %w", err)
	}
	u, err := c.cfg.Table.User(ctx, key)
	if err != nil {
		return backfill.Verification{}, fmt.Errorf("backfill verify %s: %w", key, err)
	}
	job, err := c.cfg.Mailboxes.Job(u)
	if err != nil {
		return backfill.Verification{}, fmt.Errorf("backfill verify %s: %w", key, err)
	}
	return c.cfg.Copier.Verify(ctx, job)
}

// Status lists the users the conductor knows of, by address.
func (c *Conductor) Status() []Status {
	c.mu.Lock()
	all := make([]*move, 0, len(c.users))
	for _, m := range c.users {
		all = append(all, m)
	}
	c.mu.Unlock()
	out := make([]Status, 0, len(all))
	for _, m := range all {
		out = append(out, m.snapshot())
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.User, b.User) })
	return out
}

// StatusOf gives one user's status; false when the conductor has not worked on
// him since the start.
func (c *Conductor) StatusOf(user string) (Status, bool) {
	key, err := userKey(user)
	if err != nil {
		return Status{}, false
	}
	c.mu.Lock()
	m := c.users[key]
	c.mu.Unlock()
	if m == nil {
		return Status{}, false
	}
	return m.snapshot(), true
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
