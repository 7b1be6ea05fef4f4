package router

import (
	"context"
	"strings"
	"sync"
)

// memTable is the smallest Table that keeps the promises that the router
// itself needs; the real ones are proved by store/storetest.
type memTable struct {
	mu      sync.Mutex
	users   map[string]User
	history []Change
	fail    error  // of every read
	before  func() // runs ahead of each SetUser, unlocked
	reads   int
}

func newTable(users ...User) *memTable {
	t := &memTable{users: make(map[string]User)}
	for _, u := range users {
		if u.Kind == "" {
			u.Kind = KindMailbox
		}
		if u.State == "" && u.Kind == KindMailbox {
			u.State = StateOld
		}
		if u.Epoch == 0 {
			u.Epoch = 1
		}
		t.users[u.Address] = u
	}
	return t
}

func (t *memTable) User(_ context.Context, key string) (User, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	if t.fail != nil {
		return User{}, t.fail
	}
	u, ok := t.users[key]
	if !ok {
		return User{}, ErrNoUser
	}
	return u, nil
}

func (t *memTable) SetUser(_ context.Context, u User, c Change) (User, int, error) {
	if t.before != nil {
		t.before()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.users[u.Address].Epoch; have != u.Epoch {
		return User{}, 0, &EpochError{User: u.Address, Have: have, Want: u.Epoch}
	}
	u.Epoch++
	c.User, c.Epoch = u.Address, u.Epoch
	t.users[u.Address] = u
	t.history = append(t.history, c)
	return u, 3, nil
}

func (t *memTable) Users(context.Context, Filter, string, int) ([]User, string, error) {
	return nil, "", nil
}
func (t *memTable) CountUsers(context.Context) (map[State]int, error)             { return nil, nil }
func (t *memTable) Busy(context.Context, string) (int, error)                     { return 0, nil }
func (t *memTable) DeleteUser(context.Context, string, uint64, Change) error      { return nil }
func (t *memTable) History(context.Context, string, int) ([]Change, error)        { return nil, nil }
func (t *memTable) ImportUsers(context.Context, []User, Change) (int, int, error) { return 0, 0, nil }

func alias(from, to string) User { return User{Address: from, Kind: KindAlias, Targets: []string{to}} }

func group(name string, members ...string) User {
	return User{Address: name, Kind: KindGroup, Targets: members}
}

func mailbox(name string) User { return User{Address: name} }

// show prints recipients as "addr(user)<hint", joined by spaces.
func show(res Resolution) string {
	var words []string
	for _, r := range res.Recipients {
		w := r.Addr.String()
		if r.User != r.Addr.String() {
			w += "(" + r.User + ")"
		}
		if r.Hint != "" {
			w += "<" + string(r.Hint)
		}
		words = append(words, w)
	}
	return string(res.Status) + ": " + strings.Join(words, " ")
}
