package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/queue"
)

// join waits for Redis and enters this node into its books.
func (s *Store) join(ctx context.Context) error {
	pause, told := 100*time.Millisecond, time.Time{}
	for {
		err := s.recheck(ctx)
		if err == nil {
			err = s.look(ctx)
		}
		if err == nil {
			err = s.enlist(ctx)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, errRefused) {
			return err
		}
		if s.opts.Waiting != nil {
			s.opts.Waiting(err)
		}
		if time.Since(told) > 10*time.Second {
			s.log.Warn("waiting for Redis", "err", err)
			told = time.Now()
		}
		if !s.link.pause(ctx, pause) {
			return fmt.Errorf("open the store: %w", err)
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// errRefused is in every error that waiting does not mend.
var errRefused = errors.New("the store was refused")

// look asks Redis how it is.
func (s *Store) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	master, err := s.link.master(ctx)
	if err != nil {
		return err
	}
	now, err := master.Time(ctx).Result()
	if err != nil {
		return err
	}
	s.link.saw(now.UnixMilli())
	info, err := master.Info(ctx, "memory").Result()
	if err != nil {
		return err
	}
	s.health.set(info)
	return nil
}

// listen waits for the doorbell: mail that another node queued or released. It
// is a hint, so nothing is lost with it but a second.
func (s *Store) listen() {
	for s.ctx.Err() == nil {
		sub := s.server.client.Subscribe(s.ctx, s.key("bell"))
		stop := context.AfterFunc(s.ctx, func() { sub.Close() }) // its reads do not look at the context
		s.hear(sub)
		stop()
		sub.Close()
		if !s.link.pause(s.ctx, time.Second) {
			return
		}
	}
}

func (s *Store) hear(sub *goredis.PubSub) {
	for {
		m, err := sub.ReceiveMessage(s.ctx)
		if err != nil {
			return
		}
		if m.Payload == "nodes" {
			s.lookAtNodes()
		}
		if lane, from, _ := strings.Cut(m.Payload, " "); from != s.boot {
			s.kick([]any{lane})
		}
	}
}

// tickTime is how often the store's own work is looked after.
const tickTime = 250 * time.Millisecond

// keep does what nobody asks for: leases that ran out, mail that follows its
// user, health, puts in doubt, imports that were left.
func (s *Store) keep() {
	t := time.NewTicker(tickTime)
	defer t.Stop()
	var slow time.Time
	for {
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
		for {
			said, err := s.link.read(s.ctx, scTick)
			if err != nil || asInt(said) == 0 {
				break
			}
		}
		if time.Since(slow) < time.Second {
			continue
		}
		slow = time.Now()
		if err := s.look(s.ctx); err != nil {
			s.link.sick.set(err)
			continue
		}
		if s.link.sick.get() != nil {
			continue // nothing that changes the store would be taken
		}
		s.resolveAll()
		if err := s.finishImports(); err != nil && s.ctx.Err() == nil {
			s.log.Warn("a bulk import that was left cannot be finished yet", "err", err)
		}
	}
}

// sweepBodies removes the pieces of bodies whose message has been gone for a
// minute.
func (s *Store) sweepBodies() {
	for s.link.pause(s.ctx, 5*time.Second) {
		list, err := s.server.client.ZRangeByScore(s.ctx, s.key("G"), &goredis.ZRangeBy{
			Min: "-inf", Max: fmt.Sprint(s.link.now()), Count: 100,
		}).Result()
		if err != nil {
			continue
		}
		for _, g := range list {
			name, chunks, _ := strings.Cut(g, " ")
			if err := s.bodies.unlink(s.ctx, name, int(asInt(chunks))); err == nil {
				s.server.client.ZRem(s.ctx, s.key("G"), g)
			}
		}
	}
}

// health is what INFO said last.
type health struct {
	mu    sync.Mutex
	used  int64
	limit int64
}

// fullShare is how much of the memory may be used before mail is turned away.
const fullShare = 0.85

func (h *health) set(info string) {
	field := func(name string) int64 {
		_, rest, _ := strings.Cut(info, "\n"+name+":")
		v, _, _ := strings.Cut(rest, "\r")
		return asInt(v)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used, h.limit = field("used_memory"), field("maxmemory")
	if h.limit == 0 {
		h.limit = field("total_system_memory")
	}
}

func (h *health) free() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.limit == 0 {
		return -1
	}
	return max(h.limit-h.used, 0)
}

// Room implements [queue.Enqueuer].
func (s *Store) Room(size int64) error {
	if err := s.Err(); err != nil {
		return err
	}
	if s.closed.Load() {
		return queue.ErrClosed
	}
	if by := s.node.draining.Load(); by != nil {
		return fmt.Errorf("%w by %s (crossfade node undrain %s)", ErrDraining, *by, s.opts.Node)
	}
	if err := s.link.sick.get(); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	s.health.mu.Lock()
	used, limit := s.health.used, s.health.limit
	s.health.mu.Unlock()
	if limit > 0 && float64(used)+float64(size) > fullShare*float64(limit) {
		return fmt.Errorf("%w: Redis uses %d octets of %d", queue.ErrFull, used, limit)
	}
	return nil
}
