package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/router"
	"crossfade/store/transfer"
)

// loadMark is the key `loading`: a copy into this store is under way, or was cut
// short. No node opens the store while it is there.
type loadMark struct {
	Token string    `json:"token"`
	From  string    `json:"from"`
	At    time.Time `json:"at"`
}

func (m *loadMark) Error() string {
	return fmt.Sprintf("%v: a copy from %s was begun at %s: let it end, or run `crossfade store copy` again with --discard-partial",
		transfer.ErrPartial, m.From, m.At.Format(time.RFC3339))
}

// Is makes it a [transfer.ErrPartial].
func (m *loadMark) Is(target error) bool { return target == transfer.ErrPartial }

// loadMark reads the mark; nil when there is none.
func (s *Store) loadMark(ctx context.Context) (*loadMark, error) {
	raw, err := s.server.client.Get(ctx, s.key("loading")).Bytes()
	if errors.Is(err, goredis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("redis: look for an unfinished copy: %w", err)
	}
	return markOf(string(raw)), nil
}

func markOf(raw string) *loadMark {
	m := &loadMark{}
	if err := json.Unmarshal([]byte(raw), m); err != nil {
		m.From = "another store"
	}
	return m
}

// load is a store that is being written.
type load struct {
	s    *Store
	name string
	mark string

	users   []any
	nUsers  int
	msgs    []any
	nMsgs   int
	size    int
	batch   int // of the last bulk import
	batches map[string]int
	done    bool
	once    sync.Once
}

var _ transfer.Sink = (*load)(nil)

// Bounds of one step of a load.
const (
	loadUsers    = 250
	loadMessages = 100
	loadBytes    = 1 << 20
)

// OpenSink begins a store where server leads to, whose database must hold
// nothing of a store; from is where the content comes from, for people. A mark
// keeps nodes out until Commit; when the mark of an earlier copy is there, the
// error is a [transfer.ErrPartial]. It owns server from now on.
func OpenSink(ctx context.Context, server *Server, from string) (transfer.Sink, error) {
	name := server.String()
	s, err := still(server, Options{})
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	l := &load{s: s, name: name, batches: map[string]int{}}
	if err := l.begin(ctx, from); err != nil {
		return nil, errors.Join(fmt.Errorf("make a store in %s: %w", name, err), s.rest())
	}
	return l, nil
}

func (l *load) begin(ctx context.Context, from string) error {
	if err := l.s.ready(ctx); err != nil {
		return err
	}
	if err := l.s.complete(ctx); err != nil {
		return err
	}
	if err := l.s.empty(ctx); err != nil {
		return err
	}
	b, err := json.Marshal(loadMark{Token: rand.Text()[:13], From: from, At: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	l.mark = string(b)
	if err := l.s.bodies.retry(ctx, l.setMark); err != nil {
		return err
	}
	if err = l.s.unused(ctx); err == nil { // who came before the mark
		err = l.s.empty(ctx)
	}
	if err != nil {
		return errors.Join(err, l.s.wipe(ctx, l.mark))
	}
	return nil
}

// setMark keeps nodes and other copies out. It may be called again after an
// error.
func (l *load) setMark(ctx context.Context) error {
	ok, err := l.s.server.client.SetNX(ctx, l.s.key("loading"), l.mark, 0).Result()
	if err != nil || ok {
		return err
	}
	there, err := l.s.server.client.Get(ctx, l.s.key("loading")).Result()
	if err == nil && there != l.mark {
		err = fmt.Errorf("ERR %w: another one was begun just now", transfer.ErrPartial)
	}
	return err
}

// ready refuses a server that would lose what is written.
func (s *Store) ready(ctx context.Context) error {
	if err := s.recheck(ctx); err != nil {
		return err
	}
	return s.look(ctx)
}

// bookkeeping are keys of the metadata that no store is needed for: of nodes
// that left, of versions, and of the doorbell.
var bookkeeping = map[string]bool{"n": true, "v": true, "w": true, "O": true, "o": true, "oa": true, "st": true, "sx": true, "T": true, "loading": true}

// empty refuses a database that holds a store.
func (s *Store) empty(ctx context.Context) error {
	return s.scan(ctx, "", func(names []string) error {
		for _, n := range names {
			if kind, _, _ := strings.Cut(n, ":"); !bookkeeping[n] && kind != "p" && kind != "S" {
				return fmt.Errorf("%w: it has the key %s: name another database, or another queue", transfer.ErrNotEmpty, s.key(n))
			}
		}
		return nil
	})
}

// Name implements [transfer.Sink].
func (l *load) Name() string { return l.name }

// Account implements [transfer.Sink].
func (l *load) Account(ctx context.Context, a *transfer.Account) error {
	history, batch, what, err := l.imported(a)
	if err != nil {
		return err
	}
	args, err := loadArgs(a, history, batch, what)
	if err != nil {
		return err
	}
	l.users = append(l.users, args...)
	l.nUsers++
	l.size += 200 * (1 + len(history))
	if err := l.ledger(ctx, a); err != nil {
		return err
	}
	if l.nUsers < loadUsers && l.size < loadBytes && len(l.users) < 4000 {
		return nil
	}
	return l.flushUsers(ctx)
}

// imported takes the change that made a user out of his history when it looks
// like that of a bulk import, which is kept once for all users it made.
func (l *load) imported(a *transfer.Account) (rest []router.Change, batch int, what string, err error) {
	if a.User == nil || len(a.History) == 0 {
		return a.History, 0, "", nil
	}
	c := a.History[0]
	to := a.User.State
	if len(a.History) > 1 {
		to = a.History[1].From
	}
	if c.Epoch != 1 || c.From != "" || c.To != to {
		return a.History, 0, "", nil
	}
	c.Epoch, c.To = 0, ""
	if what, err = lineOf(&c); err != nil {
		return nil, 0, "", err
	}
	if n := l.batches[what]; n > 0 {
		return a.History[1:], n, "", nil
	}
	if len(l.batches) >= 10_000 {
		clear(l.batches)
	}
	l.batch++
	l.batches[what] = l.batch
	return a.History[1:], l.batch, what, nil
}

func (l *load) ledger(ctx context.Context, a *transfer.Account) error {
	if len(a.Ledger) == 0 {
		return nil
	}
	pairs, size := make([]any, 0, 2*len(a.Ledger)), 0
	write := func() error {
		err := l.s.bodies.retry(ctx, func(ctx context.Context) error {
			return l.s.server.client.HSet(ctx, l.s.key("e:"+a.Key), pairs...).Err()
		})
		pairs, size = pairs[:0], 0
		return err
	}
	for name, data := range a.Ledger {
		z := l.s.wrap(data)
		pairs = append(pairs, name, z)
		if size += len(name) + len(z); size > loadBytes {
			if err := write(); err != nil {
				return err
			}
		}
	}
	if len(pairs) == 0 {
		return nil
	}
	return write()
}

func (l *load) flushUsers(ctx context.Context) error {
	if l.nUsers == 0 {
		return nil
	}
	_, err := l.s.link.write(ctx, scLoadUser, append([]any{l.mark}, l.users...)...)
	l.users, l.nUsers, l.size = nil, 0, 0
	return err
}

// Message implements [transfer.Sink].
func (l *load) Message(ctx context.Context, m *transfer.Message) error {
	if err := l.flushUsers(ctx); err != nil {
		return err
	}
	r, err := m.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := l.s.bodies.receive(ctx, m.Envelope.ID, r)
	if err != nil {
		return err
	}
	if err := l.s.bodies.seal(ctx, b); err != nil {
		l.s.bodies.discard(b)
		return fmt.Errorf("redis: keep a body: %w", err)
	}
	e := *m.Envelope
	e.Size = b.size
	blob, err := json.Marshal(&e)
	if err != nil {
		return err
	}
	l.msgs = append(l.msgs, string(e.ID), blob, e.Size, b.place(), b.inline, len(m.Rows))
	for i := range m.Rows {
		l.msgs = append(l.msgs, rowArgs(&m.Rows[i])...)
	}
	l.nMsgs++
	l.size += len(blob) + len(b.inline)
	if l.nMsgs < loadMessages && l.size < loadBytes && len(l.msgs) < 6000 {
		return nil
	}
	return l.flushMessages(ctx)
}

// rowArgs are a row as load.lua reads it.
func rowArgs(r *transfer.Row) []any {
	lane := laneHeld
	switch r.Place {
	case transfer.OpHeld:
		lane = laneOpHeld
	case transfer.Parked:
		lane = laneParked
	}
	return []any{r.N, lane, r.Due, r.User, r.Gen, laneOf(r.Hint), laneOf(r.Fixed), flag(r.Copy), r.Attempts, r.Crashes, r.Since,
		flag(r.Noticed), int(r.Unknown), r.Reply, r.Doubt}
}

func (l *load) flushMessages(ctx context.Context) error {
	if l.nMsgs == 0 {
		return nil
	}
	_, err := l.s.link.write(ctx, scLoad, append([]any{l.mark}, l.msgs...)...)
	l.msgs, l.nMsgs, l.size = nil, 0, 0
	return err
}

// Flush implements [transfer.Sink].
func (l *load) Flush(ctx context.Context) error {
	if err := l.flushUsers(ctx); err != nil {
		return err
	}
	if err := l.flushMessages(ctx); err != nil {
		return err
	}
	if l.batch == 0 {
		return nil
	}
	return l.s.bodies.retry(ctx, func(ctx context.Context) error {
		return l.s.server.client.HSet(ctx, l.s.key("s"), "batch", l.batch).Err()
	})
}

// Written implements [transfer.Sink].
func (l *load) Written() transfer.Source { return &dump{s: l.s, name: l.name} }

// Commit implements [transfer.Sink]. The script also waits, with the barrier of
// the store, until replicas have all that was written before.
func (l *load) Commit(ctx context.Context) error {
	if err := l.s.unused(ctx); err != nil { // a node that ran before the database was emptied
		return err
	}
	_, err := l.s.link.write(ctx, scLoaded, l.mark)
	l.done = err == nil
	return err
}

// Discard implements [transfer.Sink].
func (l *load) Discard() (err error) {
	l.once.Do(func() {
		if !l.done {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			err = l.s.wipe(ctx, l.mark)
		}
		err = errors.Join(err, l.s.rest())
	})
	return err
}

// DiscardPartial removes what a copy into the store that server leads to left
// that was cut short. It tells whether there was anything, and closes server.
func DiscardPartial(ctx context.Context, server *Server) (bool, error) {
	s, err := still(server, Options{})
	if err != nil {
		return false, errors.Join(err, server.Close())
	}
	raw, err := server.client.Get(ctx, s.key("loading")).Result()
	switch {
	case errors.Is(err, goredis.Nil):
		return false, s.rest()
	case err == nil:
		err = s.wipe(ctx, raw)
	}
	if err != nil {
		err = fmt.Errorf("remove what an earlier copy left: %w", err)
	}
	return err == nil, errors.Join(err, s.rest())
}

// wipe removes all of a store that was never finished, the mark at last.
func (s *Store) wipe(ctx context.Context, mark string) error {
	now, err := s.server.client.Get(ctx, s.key("loading")).Result()
	if errors.Is(err, goredis.Nil) || err == nil && now != mark {
		return nil // it is a store, or somebody else's
	}
	if err != nil {
		return err
	}
	if err := s.wipeBodies(ctx); err != nil {
		return err
	}
	err = s.scan(ctx, "", func(names []string) error {
		keys := make([]string, 0, len(names))
		for _, n := range names {
			if !bookkeeping[n] {
				keys = append(keys, s.key(n))
			}
		}
		if len(keys) == 0 {
			return nil
		}
		return s.bodies.retry(ctx, func(ctx context.Context) error { return s.server.client.Unlink(ctx, keys...).Err() })
	})
	if err != nil {
		return err
	}
	return s.bodies.retry(ctx, func(ctx context.Context) error { return s.server.client.Del(ctx, s.key("loading")).Err() })
}

// wipeBodies removes all pieces of bodies, on every server.
func (s *Store) wipeBodies(ctx context.Context) error {
	return s.scanBodies(ctx, func(ctx context.Context, _ *goredis.Client, keys []string) error {
		pipe := s.server.client.Pipeline()
		for _, k := range keys {
			pipe.Unlink(ctx, k)
		}
		_, err := pipe.Exec(ctx)
		return err
	})
}

// scanBodies gives the keys of pieces of bodies, in no order.
func (s *Store) scanBodies(ctx context.Context, f func(context.Context, *goredis.Client, []string) error) error {
	one := func(ctx context.Context, c *goredis.Client) error {
		var cursor uint64
		for {
			var keys []string
			err := s.bodies.retry(ctx, func(ctx context.Context) (err error) {
				keys, cursor, err = c.Scan(ctx, cursor, "cx:"+s.server.queue+":b:*", 1000).Result()
				return err
			})
			if err == nil && len(keys) > 0 {
				err = f(ctx, c, keys)
			}
			if err != nil || cursor == 0 {
				return err
			}
		}
	}
	switch c := s.server.client.(type) {
	case *goredis.Client:
		return one(ctx, c)
	case *goredis.ClusterClient:
		var mu sync.Mutex // one after the other
		return c.ForEachMaster(ctx, func(ctx context.Context, c *goredis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			return one(ctx, c)
		})
	}
	return fmt.Errorf("a client of type %T is not supported", s.server.client)
}
