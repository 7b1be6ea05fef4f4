package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/router"
)

// extra is what of a user scripts do not look at. The names are short: a user
// at rest takes less than 150 octets of Redis.
type extra struct {
	Deliver   string   `json:"d,omitempty"`
	Wave      string   `json:"w,omitempty"`
	NotBefore int64    `json:"nb,omitempty"` // Unix milliseconds
	OldLogin  string   `json:"ol,omitempty"`
	NewLogin  string   `json:"nl,omitempty"`
	Note      string   `json:"n,omitempty"`
	Targets   []string `json:"t,omitempty"`
}

func extraOf(u router.User) extra {
	return extra{
		Deliver: string(u.Deliver), Wave: u.Wave, NotBefore: millis(u.NotBefore), OldLogin: u.OldLogin, NewLogin: u.NewLogin,
		Note: u.Note, Targets: u.Targets,
	}
}

func (x extra) encode() (string, error) {
	b, err := json.Marshal(x)
	if err != nil || string(b) == "{}" {
		return "", err
	}
	return string(b), nil
}

// wayOf is where a user's mail goes, as scripts know it.
func wayOf(u router.User) int {
	if u.State == "" {
		return 0
	}
	r, held := u.Route()
	if held {
		return laneHeld
	}
	return laneOf(r)
}

// copies tells whether the side that is not read gets a copy of what is
// delivered now. Not while the conductor is at work for the user: the backfill
// brings over what old gets, and a copy that came beside it would be twice.
func copies(u router.User) bool {
	if u.Deliver != router.DeliverBoth {
		return false
	}
	switch u.State {
	case router.StateSyncing, router.StateReady, router.StateCutover, router.StateRollback:
		return false
	}
	return true
}

// userOf reads a user as user.lua gives it.
func userOf(key string, v []any) (router.User, error) {
	u := router.User{
		Address: key, Epoch: uint64(asInt(at(v, 0))), Since: fromMillis(asInt(at(v, 4))),
		State: router.State(asString(at(v, 5))), Kind: router.Kind(asString(at(v, 6))),
	}
	var x extra
	if raw := asString(at(v, 7)); raw != "" {
		if err := json.Unmarshal([]byte(raw), &x); err != nil {
			return u, fmt.Errorf("redis: user %s: %w", key, err)
		}
	}
	u.Deliver, u.Wave, u.NotBefore = router.Deliver(x.Deliver), x.Wave, fromMillis(x.NotBefore)
	u.OldLogin, u.NewLogin, u.Note, u.Targets = x.OldLogin, x.NewLogin, x.Note, x.Targets
	return u, nil
}

// User implements [router.Table].
func (s *Store) User(ctx context.Context, key string) (router.User, error) {
	if err := s.enter(); err != nil {
		return router.User{}, err
	}
	defer s.leave()
	said, err := s.link.read(ctx, scUser, key)
	if err != nil {
		return router.User{}, err
	}
	v := asList(at(asList(said), 0))
	if len(v) == 0 {
		return router.User{}, fmt.Errorf("%w: %s", router.ErrNoUser, key)
	}
	return userOf(key, v)
}

// errKey is what an empty key is answered.
var errKey = errors.New("change a user: the address is empty")

// note is a change as scripts keep it in the history.
type note struct {
	From   string `json:"f"`
	To     string `json:"t"`
	By     string `json:"b"`
	Reason string `json:"r"`
	Forced bool   `json:"x"`
	Epoch  uint64 `json:"e,omitempty"`
	At     int64  `json:"a,omitempty"`
}

func noteOf(c router.Change) (string, error) {
	b, err := json.Marshal(note{From: string(c.From), To: string(c.To), By: c.By, Reason: c.Reason, Forced: c.Forced})
	return string(b), err
}

// SetUser implements [router.Table]. The state is one step; where a user has
// more than 200 messages waiting the rest is filed again after it, and what is
// claimed meanwhile already goes by the new state.
func (s *Store) SetUser(ctx context.Context, u router.User, c router.Change) (router.User, int, error) {
	if u.Address == "" {
		return router.User{}, 0, errKey
	}
	if err := ctx.Err(); err != nil {
		return router.User{}, 0, err
	}
	if err := s.enter(); err != nil {
		return router.User{}, 0, err
	}
	defer s.leave()
	x, err := extraOf(u).encode()
	if err != nil {
		return router.User{}, 0, fmt.Errorf("change user %s: %w", u.Address, err)
	}
	change, err := noteOf(c)
	if err != nil {
		return router.User{}, 0, fmt.Errorf("change user %s: %w", u.Address, err)
	}
	said, err := s.link.write(ctx, scSetUser, u.Address, u.Epoch, rand.Text()[:13], string(u.State), string(u.Kind), wayOf(u),
		flag(copies(u)), millis(u.Since), x, change)
	if err != nil {
		return router.User{}, 0, err
	}
	list := asList(said)
	if asString(at(list, 0)) == "EPOCH" {
		return router.User{}, 0, &router.EpochError{User: u.Address, Have: uint64(asInt(at(list, 1))), Want: u.Epoch}
	}
	u.Epoch, u.Since = uint64(asInt(at(list, 1))), fromMillis(asInt(at(list, 2)))
	for n := laneOld; n <= laneOut; n++ {
		s.lanes[n].kick()
	}
	return u, int(asInt(at(list, 3))), nil
}

// Busy implements [router.Table]. A delivery that was sending when its lease
// ran out counts until it is settled or 60 s more have passed.
func (s *Store) Busy(ctx context.Context, key string) (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	said, err := s.link.write(ctx, scBusy, key)
	return int(asInt(said)), err
}

// DeleteUser implements [router.Table].
func (s *Store) DeleteUser(ctx context.Context, key string, epoch uint64, c router.Change) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	change, err := noteOf(c)
	if err != nil {
		return fmt.Errorf("delete user %s: %w", key, err)
	}
	said, err := s.link.write(ctx, scDelUser, key, epoch, rand.Text()[:13], change)
	if err != nil {
		return err
	}
	list := asList(said)
	switch asString(at(list, 0)) {
	case "NONE":
		return fmt.Errorf("%w: %s", router.ErrNoUser, key)
	case "EPOCH":
		return &router.EpochError{User: key, Have: uint64(asInt(at(list, 1))), Want: epoch}
	}
	return nil
}

// Bounds of a page.
const (
	defaultPage = 100
	maxPage     = 1000
)

// key gives the name of a key of the metadata.
func (s *Store) key(name string) string { return s.server.prefix() + name }

// Users implements [router.Table].
func (s *Store) Users(ctx context.Context, f router.Filter, cursor string, limit int) (users []router.User, next string, err error) {
	if limit <= 0 {
		limit = defaultPage
	}
	if err := s.enter(); err != nil {
		return nil, "", err
	}
	defer s.leave()
	err = s.bodies.retry(ctx, func(ctx context.Context) error {
		users, next = nil, ""
		chunk, err := s.firstChunk(ctx, cursor)
		for err == nil {
			var list []router.User
			if list, err = s.chunkUsers(ctx, chunk, cursor); err != nil {
				break
			}
			for _, u := range list {
				if !matchUser(f, u) {
					continue
				}
				if len(users) == limit {
					next = users[limit-1].Address
					return nil
				}
				users = append(users, u)
			}
			var more []string
			more, err = s.server.client.ZRangeByLex(ctx, s.key("A"), &goredis.ZRangeBy{Min: "(" + chunk, Max: "+", Count: 1}).Result()
			if err != nil || len(more) == 0 {
				break
			}
			chunk = more[0]
		}
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("redis: list users: %w", err)
	}
	return users, next, nil
}

func (s *Store) firstChunk(ctx context.Context, cursor string) (string, error) {
	list, err := s.server.client.ZRevRangeByLex(ctx, s.key("A"), &goredis.ZRangeBy{Min: "-", Max: "[-" + cursor, Count: 1}).Result()
	if err != nil || len(list) == 0 {
		return "-", err
	}
	return list[0], nil
}

// chunkUsers gives a chunk's users behind cursor, in order.
func (s *Store) chunkUsers(ctx context.Context, chunk, cursor string) ([]router.User, error) {
	keys, err := s.server.client.HKeys(ctx, s.key("U:"+chunk)).Result()
	if err != nil {
		return nil, err
	}
	kept := keys[:0]
	for _, k := range keys {
		if k > cursor {
			kept = append(kept, k)
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	sort.Strings(kept)
	args := make([]any, len(kept))
	for i, k := range kept {
		args[i] = k
	}
	said, err := s.link.read(ctx, scUser, args...)
	if err != nil {
		return nil, err
	}
	var out []router.User
	for i, v := range asList(said) {
		l := asList(v)
		if len(l) == 0 {
			continue // gone meanwhile
		}
		u, err := userOf(kept[i], l)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

func matchUser(f router.Filter, u router.User) bool {
	return (f.State == "" || f.State == u.State) && (f.Wave == "" || f.Wave == u.Wave) && (f.Kind == "" || f.Kind == u.Kind) &&
		contains(u.Address, f.Query)
}

// contains is the search of people: any case, of ASCII letters.
func contains(s, part string) bool {
	return part == "" || strings.Contains(strings.ToLower(s), strings.ToLower(part))
}

// CountUsers implements [router.Table].
func (s *Store) CountUsers(ctx context.Context) (map[router.State]int, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	out := map[router.State]int{}
	err := s.bodies.retry(ctx, func(ctx context.Context) error {
		m, err := s.server.client.HGetAll(ctx, s.key("N")).Result()
		for st, n := range m {
			out[router.State(st)] = int(asInt(n))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("redis: count users: %w", err)
	}
	return out, nil
}

// History implements [router.Table].
func (s *Store) History(ctx context.Context, key string, limit int) (list []router.Change, err error) {
	if limit <= 0 {
		limit = defaultPage
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	var lines []string
	err = s.bodies.retry(ctx, func(ctx context.Context) (err error) {
		lines, err = s.server.client.LRange(ctx, s.key("h:"+key), 0, int64(limit)-1).Result()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("redis: history of %s: %w", key, err)
	}
	for _, line := range lines {
		c, err := changeOf(key, line)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if len(list) < limit {
		return s.withImport(ctx, key, list)
	}
	return list, nil
}

func changeOf(key, line string) (router.Change, error) {
	var n note
	if err := json.Unmarshal([]byte(line), &n); err != nil {
		return router.Change{}, fmt.Errorf("redis: history of %s: %w", key, err)
	}
	return router.Change{
		User: key, Epoch: n.Epoch, From: router.State(n.From), To: router.State(n.To), By: n.By, Reason: n.Reason, Forced: n.Forced,
		At: fromMillis(n.At),
	}, nil
}

// withImport adds the bulk import that made a user, which is kept once for all
// of its users.
func (s *Store) withImport(ctx context.Context, key string, list []router.Change) ([]router.Change, error) {
	said, err := s.link.read(ctx, scUser, key)
	if err != nil {
		return nil, err
	}
	v := asList(at(asList(said), 0))
	line := asString(at(v, 8))
	if line == "" {
		return list, nil
	}
	c, err := changeOf(key, line)
	if err != nil {
		return nil, err
	}
	c.Epoch, c.From, c.To = 1, "", router.State(asString(at(v, 5)))
	if len(list) > 0 {
		c.To = list[len(list)-1].From
	}
	return append(list, c), nil
}
