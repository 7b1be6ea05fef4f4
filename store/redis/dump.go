package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/mail"
	"crossfade/store/transfer"
)

// repairHint is what to do about a record that cannot be read.
const repairHint = "look with `crossfade store audit`, which can repair it"

// still is a store of which only calls run: nothing of its own, and no node.
func still(server *Server, opts Options) (*Store, error) {
	if err := opts.defaults(); err != nil {
		return nil, err
	}
	s := &Store{opts: opts, log: opts.Logger, server: server, boot: rand.Text()[:13], failed: make(chan struct{})}
	s.link = newLink(server, s.log)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.bodies = newBodies(server)
	return s, nil
}

// rest ends what still began.
func (s *Store) rest() error {
	s.cancel()
	s.link.close()
	return s.server.Close()
}

// dump is a store that is read as a whole, and left as it is.
type dump struct {
	s    *Store
	name string
}

var _ transfer.Source = (*dump)(nil)

// OpenSource opens the store that server leads to, to read all of it. Nothing
// in it changes, and no node may run meanwhile. Deliveries of a node that died
// are given as queued, with a crash counted. It owns server from now on.
func OpenSource(ctx context.Context, server *Server) (transfer.Source, error) {
	name := server.String()
	s, err := still(server, Options{})
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	d := &dump{s: s, name: name}
	if err := d.begin(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("read the store in %s: %w", name, err), s.rest())
	}
	return d, nil
}

func (d *dump) begin(ctx context.Context) error {
	if err := d.s.found(ctx); err != nil {
		return err
	}
	return d.Unused(ctx)
}

// found refuses a place where no store is that this build can read.
func (s *Store) found(ctx context.Context) error {
	v, err := s.server.schema(ctx)
	if err != nil {
		return err
	}
	if v == 0 {
		return fmt.Errorf("%w: no store is there: look at the number of the database and at redis.queue", errRefused)
	}
	return s.complete(ctx)
}

// complete refuses a store that a copy has not finished.
func (s *Store) complete(ctx context.Context) error {
	mark, err := s.loadMark(ctx)
	if err == nil && mark != nil {
		err = mark
	}
	return err
}

// Name implements [transfer.Source].
func (d *dump) Name() string { return d.name }

// Close implements [transfer.Source].
func (d *dump) Close() error { return d.s.rest() }

// Unused implements [transfer.Source].
func (d *dump) Unused(ctx context.Context) error { return d.s.unused(ctx) }

// unused returns an error while a node is at work, or may be.
func (s *Store) unused(ctx context.Context) error {
	said, err := s.link.read(ctx, scUnused, s.opts.nodePace().stale.Milliseconds())
	if err != nil {
		return err
	}
	v := asList(said)
	if leases, wait := asInt(at(v, 0)), asInt(at(v, 1)); leases > 0 {
		return fmt.Errorf("%w: %d deliveries are claimed: stop all nodes; what a node that died had claimed is free in %d s", transfer.ErrInUse, leases, wait/1000+1)
	}
	if imports := asInt(at(v, 2)); imports > 0 {
		return fmt.Errorf("%w: %d bulk imports of users are not finished: start a node, which ends them, and stop it again", transfer.ErrInUse, imports)
	}
	if nodes := at(v, 3); len(asList(nodes)) > 0 {
		return fmt.Errorf("%w: node %s is running: stop all nodes (one that died counts for %s)", transfer.ErrInUse, asString(asList(nodes)[0]), s.opts.nodePace().stale)
	}
	return nil
}

// Totals implements [transfer.Source]. A chunk of users is three quarters
// full, about.
func (d *dump) Totals(ctx context.Context) (n transfer.Counts, err error) {
	err = d.s.bodies.retry(ctx, func(ctx context.Context) error {
		pipe := d.s.server.client.Pipeline()
		msgs, chunks, states := pipe.ZCard(ctx, d.s.key("a")), pipe.ZCard(ctx, d.s.key("A")), pipe.HGetAll(ctx, d.s.key("N"))
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
		n.Messages, n.Accounts = int(msgs.Val()), 0
		for _, k := range states.Val() {
			n.Accounts += int(asInt(k))
		}
		n.Accounts = max(n.Accounts, 100*int(chunks.Val()))
		return nil
	})
	return n, err
}

// scan gives the names of the metadata's keys that begin so, without prefix, in
// no order; one may come twice.
func (s *Store) scan(ctx context.Context, begin string, f func(names []string) error) error {
	m, err := s.link.master(ctx)
	if err != nil {
		return err
	}
	var cursor uint64
	for {
		var keys []string
		err := s.bodies.retry(ctx, func(ctx context.Context) (err error) {
			keys, cursor, err = m.Scan(ctx, cursor, s.key(begin)+"*", 1000).Result()
			return err
		})
		if err != nil {
			return fmt.Errorf("redis: scan %s*: %w", begin, err)
		}
		for i := range keys {
			keys[i] = strings.TrimPrefix(keys[i], s.key(begin))
		}
		if len(keys) > 0 {
			if err := f(keys); err != nil {
				return err
			}
		}
		if cursor == 0 {
			return nil
		}
	}
}

// indexed fails when a key that begins so is not in the sorted set that lists
// them.
func (s *Store) indexed(ctx context.Context, begin, set string, member func(string) string) error {
	return s.scan(ctx, begin, func(names []string) error {
		var of []string
		for _, n := range names {
			if m := member(n); m != "" {
				of = append(of, m)
			}
		}
		if len(of) == 0 {
			return nil
		}
		return s.bodies.retry(ctx, func(ctx context.Context) error {
			pipe := s.server.client.Pipeline()
			for _, m := range of {
				pipe.ZScore(ctx, s.key(set), m)
			}
			cmds, err := pipe.Exec(ctx)
			if err != nil && !errors.Is(err, goredis.Nil) {
				return err
			}
			for i, c := range cmds {
				if errors.Is(c.Err(), goredis.Nil) {
					return fmt.Errorf("ERR %s%s is not in the index %s: %s", begin, of[i], set, repairHint)
				}
			}
			return nil
		})
	})
}

// dumpSlice is how many messages are read at once.
const dumpSlice = 64

// Messages implements [transfer.Source].
func (d *dump) Messages(ctx context.Context) iter.Seq2[*transfer.Message, error] {
	return func(yield func(*transfer.Message, error) bool) {
		if err := d.s.indexed(ctx, "m:", "a", func(n string) string { return n }); err != nil {
			yield(nil, err)
			return
		}
		for after := "-"; ; {
			ids, list, err := d.s.dumpPage(ctx, after)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(ids) == 0 {
				return
			}
			after = "(" + ids[len(ids)-1]
			for i, id := range ids {
				if m, err := d.s.dumped(mail.ID(id), asList(at(list, i))); !yield(m, err) || err != nil {
					return
				}
			}
		}
	}
}

// dumpPage reads the messages from a place in the index of all on.
func (s *Store) dumpPage(ctx context.Context, from string) (ids []string, list []any, err error) {
	err = s.bodies.retry(ctx, func(ctx context.Context) (err error) {
		ids, err = s.server.client.ZRangeByLex(ctx, s.key("a"), &goredis.ZRangeBy{Min: from, Max: "+", Count: dumpSlice}).Result()
		return err
	})
	if err != nil || len(ids) == 0 {
		return nil, nil, err
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	said, err := s.link.read(ctx, scDump, args...)
	return ids, asList(said), err
}

// dumped reads a message as dump.lua gives it.
func (s *Store) dumped(id mail.ID, v []any) (*transfer.Message, error) {
	if len(v) < 4 {
		return nil, fmt.Errorf("message %s has no recipients: %s", id, repairHint)
	}
	m := &transfer.Message{Envelope: new(mail.Envelope)}
	if err := json.Unmarshal([]byte(asString(v[0])), m.Envelope); err != nil {
		return nil, fmt.Errorf("envelope of %s: %w: %s", id, err, repairHint)
	}
	place, inline := asString(v[1]), asString(v[2])
	f := strings.SplitN(place, " ", 3)
	if len(f) < 3 {
		return nil, fmt.Errorf("message %s: %q is no place of a body: %s", id, place, repairHint)
	}
	m.Envelope.Size = asInt(f[0])
	for _, x := range v[3:] {
		r := rowFrom(asList(x))
		if r.N < 0 || r.N >= len(m.Envelope.Recipients) {
			return nil, fmt.Errorf("message %s has no recipient %d: %s", id, r.N, repairHint)
		}
		m.Rows = append(m.Rows, r)
	}
	slices.SortFunc(m.Rows, func(a, b transfer.Row) int { return a.N - b.N })
	m.Open = func(ctx context.Context) (io.ReadCloser, error) {
		if f[1] == "0" {
			return s.bodies.inline([]byte(inline), m.Envelope.Size)
		}
		gone := func() bool { return false }
		return &chunkReader{s: s.bodies, ctx: ctx, name: string(id) + "-" + f[2], left: m.Envelope.Size, n: int(asInt(f[1])), gone: gone}, nil
	}
	return m, nil
}

// rowFrom reads a row as dump.lua gives it.
func rowFrom(f []any) transfer.Row {
	num := func(i int) int { return int(asInt(at(f, i))) }
	r := transfer.Row{
		N: num(0), Due: asInt(at(f, 3)), User: asString(at(f, 4)), Gen: uint64(asInt(at(f, 5))), Hint: routeOf(asInt(at(f, 6))),
		Fixed: routeOf(asInt(at(f, 7))), Copy: num(8) != 0, Attempts: num(9), Crashes: num(10), Since: asInt(at(f, 11)),
		Noticed: num(12) != 0, Unknown: uint8(num(13)), Reply: asString(at(f, 14)),
		Doubt: asString(at(f, 15)),
	}
	switch num(2) {
	case laneOpHeld:
		r.Place = transfer.OpHeld
	case laneParked:
		r.Place = transfer.Parked
	}
	if num(1) != 0 {
		r.CountCrash()
	}
	return r
}
