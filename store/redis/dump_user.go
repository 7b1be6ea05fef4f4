package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/router"
	"crossfade/store/transfer"
)

// Accounts implements [transfer.Source].
func (d *dump) Accounts(ctx context.Context) iter.Seq2[*transfer.Account, error] {
	return func(yield func(*transfer.Account, error) bool) {
		w := &accountWalk{s: d.s, ctx: ctx, yield: yield}
		if err := w.walk(); err != nil && !errors.Is(err, errEnough) {
			yield(nil, err)
		}
	}
}

// errEnough ends a walk that nobody reads any more.
var errEnough = errors.New("enough")

// accountWalk gives users chunk by chunk, and between them what has no user.
type accountWalk struct {
	s     *Store
	ctx   context.Context
	yield func(*transfer.Account, error) bool
	loose []string // keys of histories and ledgers without a user, in order
}

func (w *accountWalk) walk() (err error) {
	if err := w.s.indexed(w.ctx, "U:", "A", chunkMember); err != nil {
		return err
	}
	if w.loose, err = w.s.looseKeys(w.ctx); err != nil {
		return err
	}
	chunk := "-"
	for {
		next, err := w.s.nextChunk(w.ctx, chunk)
		if err != nil {
			return err
		}
		keys, err := w.s.server.client.HKeys(w.ctx, w.s.key("U:"+chunk)).Result()
		if err != nil {
			return err
		}
		slices.Sort(keys)
		if n := len(keys); n > 0 && ("-"+keys[0] < chunk || next != "" && "-"+keys[n-1] >= next) {
			return fmt.Errorf("users %s to %s are in the chunk %s, where they do not belong: %s", keys[0], keys[n-1], chunk, repairHint)
		}
		if err := w.give(w.merge(keys, next)); err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		chunk = next
	}
}

// chunkMember is the name of a chunk in A; the first one is not there.
func chunkMember(n string) string {
	if n == "-" {
		return ""
	}
	return n
}

// nextChunk gives the chunk behind one; empty at the end.
func (s *Store) nextChunk(ctx context.Context, chunk string) (next string, err error) {
	err = s.bodies.retry(ctx, func(ctx context.Context) error {
		list, err := s.server.client.ZRangeByLex(ctx, s.key("A"), &goredis.ZRangeBy{Min: "(" + chunk, Max: "+", Count: 1}).Result()
		if err == nil && len(list) > 0 {
			next = list[0]
		}
		return err
	})
	return next, err
}

// looseKeys gives the keys of histories and ledgers that have no user.
func (s *Store) looseKeys(ctx context.Context) (loose []string, err error) {
	for _, begin := range []string{"h:", "e:"} {
		err := s.scan(ctx, begin, func(names []string) error {
			args := make([]any, len(names))
			for i, n := range names {
				args[i] = n
			}
			said, err := s.link.read(ctx, scUser, args...)
			if err != nil {
				return err
			}
			for i, v := range asList(said) {
				if len(asList(v)) == 0 {
					loose = append(loose, names[i])
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(loose)
	return slices.Compact(loose), nil
}

// merge adds the keys without a user that come before the next chunk.
func (w *accountWalk) merge(keys []string, next string) []string {
	n := len(w.loose)
	if next != "" {
		n, _ = slices.BinarySearch(w.loose, strings.TrimPrefix(next, "-"))
	}
	keys = append(keys, w.loose[:n]...)
	w.loose = w.loose[n:]
	slices.Sort(keys)
	return keys
}

// give reads the accounts of keys and hands them out.
func (w *accountWalk) give(keys []string) error {
	for part := range slices.Chunk(keys, 100) {
		list, err := w.s.accounts(w.ctx, part)
		if err != nil {
			return err
		}
		for _, a := range list {
			if !w.yield(a, nil) {
				return errEnough
			}
		}
	}
	return nil
}

func (s *Store) accounts(ctx context.Context, keys []string) ([]*transfer.Account, error) {
	args := make([]any, len(keys))
	for i, k := range keys {
		args[i] = k
	}
	said, err := s.link.read(ctx, scDumpUser, args...)
	if err != nil {
		return nil, err
	}
	out := make([]*transfer.Account, len(keys))
	for i, v := range asList(said) {
		if out[i], err = accountOf(keys[i], asList(at(asList(v), 0)), asList(at(asList(v), 1))); err != nil {
			return nil, err
		}
	}
	return out, s.ledgers(ctx, out)
}

// accountOf reads an account as dumpuser.lua gives it.
func accountOf(key string, user, lines []any) (*transfer.Account, error) {
	a := &transfer.Account{Key: key}
	if len(user) > 0 {
		u, err := userOf(key, user)
		if err != nil {
			return nil, err
		}
		a.User, a.Gen = &u, uint64(asInt(at(user, 1)))
	}
	for _, line := range slices.Backward(lines) {
		c, err := changeOf(key, asString(line))
		if err != nil {
			return nil, err
		}
		a.History = append(a.History, c)
	}
	line := asString(at(user, 8))
	if line == "" {
		return a, nil
	}
	c, err := changeOf(key, line) // the bulk import that made him: see withImport
	if err != nil {
		return nil, err
	}
	c.Epoch, c.From, c.To = 1, "", a.User.State
	if len(a.History) > 0 {
		c.To = a.History[0].From
	}
	a.History = slices.Insert(a.History, 0, c)
	return a, nil
}

// ledgers reads the ledgers of accounts.
func (s *Store) ledgers(ctx context.Context, list []*transfer.Account) error {
	cmds := make([]*goredis.MapStringStringCmd, len(list))
	err := s.bodies.retry(ctx, func(ctx context.Context) error {
		pipe := s.server.client.Pipeline()
		for i, a := range list {
			cmds[i] = pipe.HGetAll(ctx, s.key("e:"+a.Key))
		}
		_, err := pipe.Exec(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("redis: load ledgers: %w", err)
	}
	for i, a := range list {
		for name, data := range cmds[i].Val() {
			if a.Ledger == nil {
				a.Ledger = map[string][]byte{}
			}
			if a.Ledger[name], err = unwrap(data); err != nil {
				return fmt.Errorf("redis: the ledger of %s, record %q: %w", a.Key, name, err)
			}
		}
	}
	return nil
}

// loadArgs are an account as loaduser.lua reads it.
func loadArgs(a *transfer.Account, history []router.Change, batch int, note string) ([]any, error) {
	args := []any{a.Key, -1, 0, 0, 0, 0, "", "", 0, "", "", 0}
	if u := a.User; u != nil {
		x, err := extraOf(*u).encode()
		if err != nil {
			return nil, err
		}
		args = []any{a.Key, u.Epoch, a.Gen, wayOf(*u), flag(copies(*u)), millis(u.Since), string(u.State), string(u.Kind), batch, x, note, 0}
	}
	args[len(args)-1] = len(history)
	for i := range history {
		line, err := lineOf(&history[i])
		if err != nil {
			return nil, err
		}
		args = append(args, line)
	}
	return args, nil
}

// lineOf is a change as lists of history have it.
func lineOf(c *router.Change) (string, error) {
	b, err := json.Marshal(note{From: string(c.From), To: string(c.To), By: c.By, Reason: c.Reason, Forced: c.Forced, Epoch: c.Epoch, At: millis(c.At)})
	return string(b), err
}
