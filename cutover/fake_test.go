package cutover

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/router"
)

// table is a router.Table in memory: what the conductor asks of a store, with
// the rules of its contract and nothing else.
type table struct {
	mu      sync.Mutex
	users   map[string]router.User
	history []router.Change
	busy    map[string]int
	ledger  map[string]map[string][]byte
	fail    func(u router.User) error
	blind   error // the answer to who changed a user

	ledgerErr func(user string) error // of reading and writing the ledger; nil: none

	lag time.Duration // of a list of users, between the look and the answer
}

func newTable(users ...router.User) *table {
	t := &table{users: map[string]router.User{}, busy: map[string]int{}, ledger: map[string]map[string][]byte{}}
	for _, u := range users {
		u.Kind, u.Epoch, u.Since = router.KindMailbox, 1, time.Now()
		t.users[u.Address] = u
	}
	return t
}

func (t *table) User(_ context.Context, key string) (router.User, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u, ok := t.users[key]
	if !ok {
		return u, router.ErrNoUser
	}
	return u, nil
}

func (t *table) Users(_ context.Context, f router.Filter, _ string, _ int) ([]router.User, string, error) {
	defer func() {
		if t.lag > 0 {
			time.Sleep(t.lag)
		}
	}()
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []router.User
	for _, k := range slices.Sorted(maps.Keys(t.users)) {
		if u := t.users[k]; (f.State == "" || u.State == f.State) && (f.Wave == "" || u.Wave == f.Wave) {
			out = append(out, u)
		}
	}
	return out, "", nil
}

func (t *table) SetUser(ctx context.Context, u router.User, c router.Change) (router.User, int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return u, 0, ctx.Err()
	}
	if t.fail != nil {
		if err := t.fail(u); err != nil {
			return u, 0, err
		}
	}
	if have := t.users[u.Address].Epoch; have != u.Epoch {
		return u, 0, &router.EpochError{User: u.Address, Have: have, Want: u.Epoch}
	}
	u.Epoch++
	if t.users[u.Address].State != u.State {
		u.Since = time.Now()
	}
	t.users[u.Address] = u
	c.User, c.Epoch, c.At = u.Address, u.Epoch, time.Now()
	t.history = append(t.history, c)
	return u, t.busy[u.Address], nil
}

func (t *table) Busy(_ context.Context, key string) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.busy[key], nil
}

func (t *table) setBusy(key string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy[key] = n
}

func (t *table) CountUsers(context.Context) (map[router.State]int, error) {
	return nil, errors.ErrUnsupported
}
func (t *table) DeleteUser(context.Context, string, uint64, router.Change) error {
	return errors.ErrUnsupported
}
func (t *table) ImportUsers(context.Context, []router.User, router.Change) (int, int, error) {
	return 0, 0, errors.ErrUnsupported
}
func (t *table) History(_ context.Context, key string, limit int) (out []router.Change, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.blind != nil {
		return nil, t.blind
	}
	for _, c := range slices.Backward(t.history) {
		if c.User == key && len(out) < limit {
			out = append(out, c)
		}
	}
	return out, nil
}

func (t *table) LoadLedger(_ context.Context, user string) (map[string][]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ledgerErr != nil {
		if err := t.ledgerErr(user); err != nil {
			return nil, err
		}
	}
	return maps.Clone(t.ledger[user]), nil
}

func (t *table) SaveLedger(_ context.Context, user, name string, data []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ledgerErr != nil {
		if err := t.ledgerErr(user); err != nil {
			return err
		}
	}
	if t.ledger[user] == nil {
		t.ledger[user] = map[string][]byte{}
	}
	t.ledger[user][name] = data
	if data == nil {
		delete(t.ledger[user], name)
	}
	return nil
}

// way is the states a user went through, as the history has them.
func (t *table) way(user string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s []string
	for _, c := range t.history {
		if c.User == user {
			s = append(s, string(c.To))
		}
	}
	return strings.Join(s, " ")
}

func (t *table) state(user string) router.State {
	u, err := t.User(context.Background(), user)
	if err != nil {
		return ""
	}
	return u.State
}

// copier pretends to copy: pass answers for each pass of a user.
type copier struct {
	mu     sync.Mutex
	passes []string // "user" or "user final"
	atOnce int
	most   int
	took   time.Duration
	pass   func(user string, n int, final bool) (backfill.Report, error)
	counts map[string]int
	// back answers for each pass from new to old.
	back   func(user string, n int, o backfill.Options) (backfill.Report, error)
	verify func(user string) (backfill.Verification, error)

	options []backfill.Options
	working map[string]bool // a pass of this user runs
	broken  []string        // rules that were
}

func (c *copier) Pass(ctx context.Context, job backfill.Job, o backfill.Options) (backfill.Report, error) {
	c.mu.Lock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	key := job.User
	if o.Back {
		key += " back"
	}
	n := c.counts[key]
	c.counts[key]++
	c.atOnce++
	c.most = max(c.most, c.atOnce)
	name := key
	if o.Final {
		name += " final"
	}
	c.passes = append(c.passes, name)
	c.options = append(c.options, o)
	if c.working[job.User] {
		c.broken = append(c.broken, name+" beside another pass")
	}
	if c.working == nil {
		c.working = map[string]bool{}
	}
	c.working[job.User] = true
	if o.Back != job.Settled && (o.Deletions || o.AllowDeletions || o.Restore) {
		c.broken = append(c.broken, name+" carries the will of the user from the side that he does not read")
	}
	c.mu.Unlock()
	defer func() { c.mu.Lock(); c.working[job.User] = false; c.mu.Unlock() }()
	defer func() { c.mu.Lock(); c.atOnce--; c.mu.Unlock() }()
	if c.took > 0 {
		select {
		case <-time.After(c.took):
		case <-ctx.Done():
			return backfill.Report{}, ctx.Err()
		}
	}
	if o.Back {
		if c.back == nil {
			return backfill.Report{}, nil
		}
		return c.back(job.User, n, o)
	}
	if c.pass == nil {
		return backfill.Report{}, nil
	}
	return c.pass(job.User, n, o.Final)
}

// seen lists the passes so far; most is how many ran at once.
func (c *copier) seen() (passes []string, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.passes), c.most
}

// asked gives how the passes so far were to be made.
func (c *copier) asked() []backfill.Options {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.options)
}

func (c *copier) Verify(_ context.Context, job backfill.Job) (backfill.Verification, error) {
	if c.verify != nil {
		return c.verify(job.User)
	}
	return backfill.Verification{User: job.User}, nil
}

type mailboxes struct{}

func (mailboxes) Job(u router.User) (backfill.Job, error) {
	if strings.HasPrefix(u.Address, "nowhere@") {
		return backfill.Job{}, errors.New("old has no imap in the configuration")
	}
	return backfill.Job{User: u.Address, Source: imapconn.Account{
		Server: imapconn.Server{Address: "old:143"}, Login: imapconn.Login{User: u.Address},
	}, Dest: imapconn.Account{
		Server: imapconn.Server{Address: "new:143"}, Login: imapconn.Login{User: "new/" + u.Address},
	}}, nil
}
