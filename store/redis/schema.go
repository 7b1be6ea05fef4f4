package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// schemaVersion is that of the keys and scripts of this build. A build refuses a
// store with a larger one, and makes a smaller one its own; see [migrations].
const schemaVersion = 1

// migrations lead from one version of the schema to the next: the first from 1
// to 2. Each may run on several nodes at once and again after an interruption,
// and must leave a store that nodes of the version before can still use, or fail
// when one of them is running.
var migrations []func(context.Context, *Server) error

func (s *Server) versionKey() string { return s.prefix() + "v" }

// schema gives the version of the store that lies there, 0 when there is none.
// It fails when the store is too new, or the database somebody else's.
func (s *Server) schema(ctx context.Context) (int, error) {
	text, err := s.client.Get(ctx, s.versionKey()).Result()
	if errors.Is(err, goredis.Nil) {
		return 0, s.lookForStrangers(ctx)
	}
	if err != nil {
		return 0, s.explain(err)
	}
	v, err := strconv.Atoi(text)
	switch {
	case err != nil || v < 1:
		return 0, fmt.Errorf("%w: key %s is %q and no version: somebody else writes there", errRefused, s.versionKey(), text)
	case v > schemaVersion:
		return v, fmt.Errorf("%w: the store in Redis has schema %d, and this Crossfade knows up to %d: start the newer Crossfade that made it", errRefused, v, schemaVersion)
	}
	return v, nil
}

// adoptNow does adopt at the start and each minute: another node may have
// brought a newer schema, or somebody may have emptied the database.
func (s *Server) adoptNow(ctx context.Context) error {
	h := &s.hosts
	h.mu.Lock()
	at := h.adopted
	h.mu.Unlock()
	if time.Since(at) < verdictTime {
		return nil
	}
	if !at.IsZero() {
		if n, err := s.client.Exists(ctx, s.versionKey()).Result(); err == nil && n == 0 {
			s.log.Error("the database of the store was emptied: what was queued there is gone", "store", s.String(), "alarm", true)
		}
	}
	if err := s.adopt(ctx, migrations); err != nil {
		return err
	}
	h.mu.Lock()
	h.adopted = time.Now()
	h.mu.Unlock()
	return nil
}

// adopt makes the store's version ours, where there is none or an older one.
func (s *Server) adopt(ctx context.Context, migrations []func(context.Context, *Server) error) error {
	v, err := s.schema(ctx)
	if err != nil {
		return err
	}
	if v == 0 {
		return s.explain(s.client.SetNX(ctx, s.versionKey(), len(migrations)+1, 0).Err())
	}
	for ; v <= len(migrations); v++ {
		s.log.Info("migrating the store", "from", v, "to", v+1)
		if err := migrations[v-1](ctx, s); err != nil {
			return fmt.Errorf("migrate the store from schema %d to %d: %w", v, v+1, err)
		}
		if err := s.client.Set(ctx, s.versionKey(), v+1, 0).Err(); err != nil {
			return fmt.Errorf("migrate the store from schema %d to %d: %w", v, v+1, err)
		}
	}
	return nil
}

// lookForStrangers refuses a database in which somebody else keeps something:
// with noeviction each can fill it for the other, and FLUSHDB is quickly typed.
func (s *Server) lookForStrangers(ctx context.Context) error {
	clients, err := s.masters(ctx)
	if err != nil {
		return s.explain(err)
	}
	for _, c := range clients {
		n, err := c.DBSize(ctx).Result()
		if err != nil {
			return s.explain(err)
		}
		var cursor uint64
		for range 10 { // of a large database a part tells enough
			if n == 0 {
				break
			}
			var keys []string
			if keys, cursor, err = c.Scan(ctx, cursor, "*", 1000).Result(); err != nil {
				return s.explain(err)
			}
			for _, k := range keys {
				if !strings.HasPrefix(k, "cx:") {
					return fmt.Errorf("%w: database %d holds %d keys of somebody else, such as %q: name another database at the end of the URL, such as /%d, "+
						"or give Crossfade a Redis of its own", errRefused, s.target.db, n, k, s.target.db+1)
				}
			}
			if cursor == 0 {
				break
			}
		}
	}
	return nil
}
