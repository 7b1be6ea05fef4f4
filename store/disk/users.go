package disk

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"crossfade/router"
)

// ustate is a user in memory. The writer changes it under Store.mu; items
// point to it, and one that is pointed to stays.
type ustate struct {
	key   string
	known bool // it is in the table
	user  router.User
	gen   uint64 // epoch at which the route, or being held, last changed
	refs  int
}

// cachedUsers is how many users stay in memory without mail of theirs there.
const cachedUsers = 100_000

const userColumns = `address, kind, targets, state, epoch, gen, deliver, wave, not_before, old_login, new_login, since, note`

const (
	sqlUser     = `SELECT ` + userColumns + ` FROM user WHERE address = ?`
	sqlSetUser  = `INSERT OR REPLACE INTO user (` + userColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	sqlHistory  = `INSERT INTO history (user, epoch, from_state, to_state, author, reason, forced, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`
	sqlCopies   = `SELECT count(*) FROM recipient INDEXED BY recipient_user WHERE user = ? AND due IS NOT NULL AND copy = 1 AND lane IN (?, ?, ?)`
	sqlLastSeen = `SELECT max(epoch) FROM history WHERE user = ?`
)

func scanUser(cols []driver.Value) (u router.User, gen uint64, err error) {
	u = router.User{
		Address: asString(cols[0]), Kind: router.Kind(asString(cols[1])), State: router.State(asString(cols[3])),
		Epoch: uint64(asInt(cols[4])), Deliver: router.Deliver(asString(cols[6])), Wave: asString(cols[7]),
		NotBefore: fromMillis(asInt(cols[8])), OldLogin: asString(cols[9]), NewLogin: asString(cols[10]),
		Since: fromMillis(asInt(cols[11])), Note: asString(cols[12]),
	}
	if t := asBytes(cols[2]); len(t) > 0 {
		if err := json.Unmarshal(t, &u.Targets); err != nil {
			return u, 0, fmt.Errorf("targets of user %s: %w", u.Address, err)
		}
	}
	return u, uint64(asInt(cols[5])), nil
}

// loadUser reads a user; one that is not in the table is known as such.
func loadUser(c *conn, key string) (*ustate, error) {
	us := &ustate{key: key}
	err := c.each(func(cols []driver.Value) (err error) {
		us.user, us.gen, err = scanUser(cols)
		us.known = true
		return err
	}, sqlUser, key)
	return us, err
}

// user gives a user to the writer, from memory or the database; nil for "".
func (s *Store) user(key string) (*ustate, error) {
	if key == "" {
		return nil, nil
	}
	s.mu.Lock()
	us := s.users[key]
	s.mu.Unlock()
	if us != nil {
		return us, nil
	}
	us, err := loadUser(s.db, key)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remember(us), nil
}

// remember keeps a user in memory, and gives the one that is there when there
// is one.
func (s *Store) remember(us *ustate) *ustate {
	if have := s.users[us.key]; have != nil {
		return have
	}
	if len(s.users) >= cachedUsers {
		s.evictUsers(cachedUsers / 10)
	}
	s.users[us.key] = us
	return us
}

// evictUsers forgets up to n users without mail in memory; a map's order is
// random enough.
func (s *Store) evictUsers(n int) {
	for k, us := range s.users {
		if us.refs == 0 {
			delete(s.users, k)
			if n--; n == 0 {
				return
			}
		}
	}
}

// forgetUsers drops what may have been read inside a transaction that was
// rolled back.
func (s *Store) forgetUsers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictUsers(-1)
}

// find gives a user to a caller who reads: from memory, else from the database.
func (s *Store) find(ctx context.Context, key string) (ustate, error) {
	s.mu.Lock()
	if us := s.users[key]; us != nil {
		out := *us
		s.mu.Unlock()
		return out, nil
	}
	ver := s.userVer
	s.mu.Unlock()
	var us *ustate
	err := s.read(ctx, func(c *conn) (err error) {
		us, err = loadUser(c, key)
		return err
	})
	if err != nil {
		return ustate{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.userVer == ver { // nobody changed a user in between
		us = s.remember(us)
	}
	return *us, nil
}

// User implements [router.Table].
func (s *Store) User(ctx context.Context, key string) (router.User, error) {
	if err := s.usable(); err != nil {
		return router.User{}, err
	}
	us, err := s.find(ctx, key)
	if err != nil {
		return router.User{}, err
	}
	if !us.known {
		return router.User{}, fmt.Errorf("%w: %s", router.ErrNoUser, key)
	}
	us.user.Targets = slices.Clone(us.user.Targets)
	return us.user, nil
}

// writeUser stores a user and a line of history.
func (s *Store) writeUser(u router.User, gen uint64, c router.Change) error {
	if err := s.putUser(u, gen); err != nil {
		return err
	}
	return s.writeHistory(c)
}

// putUser stores a user.
func (s *Store) putUser(u router.User, gen uint64) error {
	var targets any
	if len(u.Targets) > 0 {
		b, err := json.Marshal(u.Targets)
		if err != nil {
			return fmt.Errorf("write user %s: %w", u.Address, err)
		}
		targets = string(b)
	}
	_, err := s.db.run(sqlSetUser, u.Address, string(u.Kind), targets, string(u.State), u.Epoch, gen, string(u.Deliver),
		u.Wave, null(millis(u.NotBefore)), u.OldLogin, u.NewLogin, null(millis(u.Since)), u.Note)
	return err
}

func (s *Store) writeHistory(c router.Change) error {
	_, err := s.db.run(sqlHistory, c.User, c.Epoch, string(c.From), string(c.To), c.By, c.Reason, c.Forced, millis(c.At))
	return err
}

// errKey is what an empty key is answered.
var errKey = errors.New("change a user: the address is empty")

// change is a change to one user on its way.
type change struct {
	asked   router.User // what SetUser was given
	u       router.User
	c       router.Change
	gen     uint64
	known   bool // afterwards
	created bool
	filed   bool // there is mail of his on disk
}

// SetUser implements [router.Table]. The state is one step; mail of the user
// that waits on disk is filed again in slices after it, and whatever is
// claimed meanwhile already goes by the new state.
func (s *Store) SetUser(ctx context.Context, u router.User, c router.Change) (router.User, int, error) {
	if u.Address == "" {
		return router.User{}, 0, errKey
	}
	if err := ctx.Err(); err != nil {
		return router.User{}, 0, err
	}
	u.Targets = slices.Clone(u.Targets)
	ch := &change{asked: u, u: u, c: c, known: true}
	o := &op{name: "user", keys: []string{"u:" + u.Address}}
	o.plan = func() error { return s.planSet(ch) }
	busy := 0
	o.apply = func() {
		s.applyUsers([]*change{ch})
		busy = s.busy(ch.u.Address)
	}
	if err := s.do(o); err != nil {
		return router.User{}, 0, err
	}
	return ch.u, busy, nil
}

// planSet checks the epoch and writes.
func (s *Store) planSet(ch *change) error {
	ch.u = ch.asked
	us, err := s.user(ch.u.Address)
	if err != nil {
		return err
	}
	if have := us.epoch(); have != ch.u.Epoch {
		return &router.EpochError{User: ch.u.Address, Have: have, Want: ch.u.Epoch}
	}
	if !us.known {
		v, _, err := s.db.ints(sqlLastSeen, ch.u.Address)
		if err != nil {
			return err
		}
		if len(v) > 0 {
			ch.u.Epoch = uint64(v[0]) // a deleted user goes on counting
		}
	}
	ch.u.Epoch++
	now := fromMillis(s.now()) // as it is read back
	if ch.u.Since.IsZero() || us.known && us.user.State != ch.u.State && millis(ch.u.Since) == millis(us.user.Since) {
		ch.u.Since = now
	}
	ch.gen = us.gen
	if !us.known || !sameWay(us, ch.u) {
		ch.gen = ch.u.Epoch
	}
	ch.c.User, ch.c.Epoch, ch.c.At = ch.u.Address, ch.u.Epoch, now
	if ch.c.From == "" && us.known {
		ch.c.From = us.user.State
	}
	if ch.c.To == "" {
		ch.c.To = ch.u.State
	}
	if err := s.findFiled(ch); err != nil {
		return err
	}
	return s.writeUser(ch.u, ch.gen, ch.c)
}

// findFiled tells whether mail of the user is on disk, which has to be filed
// again when his route changes.
func (s *Store) findFiled(ch *change) (err error) {
	_, ch.filed, err = s.db.ints("SELECT 1 FROM recipient INDEXED BY recipient_user WHERE user = ? AND due IS NOT NULL LIMIT 1", ch.u.Address)
	return err
}

// sameWay tells whether mail goes the same way under u as before.
func sameWay(us *ustate, u router.User) bool {
	l1, h1 := us.way()
	l2, h2 := (&ustate{known: true, user: u}).way()
	return l1 == l2 && h1 == h2
}

// DeleteUser implements [router.Table].
func (s *Store) DeleteUser(_ context.Context, key string, epoch uint64, c router.Change) error {
	ch := &change{u: router.User{Address: key}, c: c}
	o := &op{name: "user", keys: []string{"u:" + key}}
	o.plan = func() error {
		us, err := s.user(key)
		switch {
		case err != nil:
			return err
		case us == nil || !us.known:
			return fmt.Errorf("%w: %s", router.ErrNoUser, key)
		case us.user.Epoch != epoch:
			return &router.EpochError{User: key, Have: us.user.Epoch, Want: epoch}
		}
		ch.c.User, ch.c.Epoch, ch.c.At = key, epoch+1, s.opts.Now()
		if ch.c.From == "" {
			ch.c.From = us.user.State
		}
		if err := s.findFiled(ch); err != nil {
			return err
		}
		if _, err := s.db.run("DELETE FROM user WHERE address = ?", key); err != nil {
			return err
		}
		return s.writeHistory(ch.c)
	}
	o.apply = func() { s.applyUsers([]*change{ch}) }
	return s.do(o)
}

// applyUsers makes changes to users the truth in memory: leases under an older
// epoch are taken back unless they are being sent, and mail in memory moves.
func (s *Store) applyUsers(changes []*change) {
	s.userVer++
	touched := make(map[*ustate]bool, len(changes))
	moved := false
	for _, ch := range changes {
		us := s.users[ch.u.Address]
		if us == nil {
			us = s.remember(&ustate{key: ch.u.Address})
		}
		if us.known != ch.known || us.gen != ch.gen {
			moved = true
			if ch.filed {
				s.addJob(us.key)
			}
		}
		if s.opts.staleRoute {
			touched[us] = true
			us.user.Epoch, us.known = ch.u.Epoch, ch.known
			continue
		}
		us.known, us.user, us.gen = ch.known, ch.u, ch.gen
		touched[us] = true
	}
	for l := range s.leases {
		if s.concerns(l, touched) && !l.sending && !l.settling {
			s.takeBack(l)
		}
	}
	if moved {
		s.moveItems(touched)
	}
}

func (s *Store) concerns(l *lease, touched map[*ustate]bool) bool {
	for i, it := range l.items {
		if it.u != nil && touched[it.u] && it.u.epoch() != l.epochs[i] {
			return true
		}
	}
	return false
}

// moveItems lets waiting mail in memory follow its users.
func (s *Store) moveItems(touched map[*ustate]bool) {
	var list []*item
	for _, m := range s.msgs {
		for _, it := range m.items {
			if it.u != nil && touched[it.u] && (it.where == ready || it.where == waiting) {
				list = append(list, it)
			}
		}
	}
	for _, it := range list {
		it.row.due = min(it.row.due, s.now()) // the new side is asked at once
		s.admit(it, true)
	}
	if len(list) > 0 {
		for l := laneOld; l <= laneOut; l++ {
			s.lanes[l].prune(l)
		}
	}
}

// busy counts the deliveries for a user that are being sent under an epoch
// older than the present one.
func (s *Store) busy(key string) (n int) {
	count := func(l *lease) {
		for i, it := range l.items {
			if it.u != nil && it.u.key == key && it.u.epoch() != l.epochs[i] {
				n++
			}
		}
	}
	for l := range s.leases {
		if l.sending {
			count(l)
		}
	}
	for l := range s.ghosts {
		count(l)
	}
	return n
}

// Busy implements [router.Table]. A delivery that was sending when its lease
// ran out counts until it is settled or 60 s more have passed.
func (s *Store) Busy(ctx context.Context, key string) (int, error) {
	if err := s.usable(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	n := s.busy(key)
	s.mu.Unlock()
	// Only now the copies: one is written before its delivery is forgotten.
	err := s.read(ctx, func(c *conn) error {
		v, _, err := c.ints(sqlCopies, key, laneOld, laneNew, laneHeld)
		if len(v) > 0 {
			n += int(v[0])
		}
		return err
	})
	return n, err
}

// likePattern makes a LIKE pattern (ESCAPE '\') of a part of a string.
func likePattern(part string) string {
	return "%" + strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(part) + "%"
}
