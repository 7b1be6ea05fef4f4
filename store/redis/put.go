package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
)

// Put implements [queue.Enqueuer]. It does not give up waiting for an answer
// when ctx ends: within seconds it has to be known. Where it does not become
// known, the error says so and the message is taken back as soon as Redis
// answers, unless it is being delivered already.
func (s *Store) Put(ctx context.Context, env *mail.Envelope, r io.Reader) error {
	if err := queue.CheckEnvelope(env); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.Room(env.Size); err != nil {
		return err
	}
	b, err := s.bodies.receive(ctx, env.ID, r)
	if err != nil {
		return err
	}
	e := *env
	e.Size = b.size
	e.Recipients = slices.Clone(env.Recipients)
	if err := s.queueIt(ctx, &e, b); err != nil {
		return err
	}
	env.Size = e.Size
	return nil
}

// queueIt makes a message of an envelope and a body that was received.
func (s *Store) queueIt(ctx context.Context, e *mail.Envelope, b *body) error {
	err := s.bodies.seal(ctx, b)
	if err != nil {
		s.bodies.discard(b)
		return fmt.Errorf("redis: keep a body: %w", err)
	}
	args, err := putArgs(e, b, "")
	if err != nil {
		return err
	}
	s.crash("put")
	s.putting.Add(1)
	defer s.putting.Add(-1)
	said, err := s.link.write(ctx, scPut, append([]any{s.boot, s.hungry(), args[0], s.link.now(), s.opts.MaxBytes}, args[1:]...)...)
	if err != nil {
		if errors.Is(err, queue.ErrFull) && !errors.Is(err, errTried) {
			s.bodies.discard(b)
		} else {
			s.resolve.add(e.ID, len(e.Recipients), b) // what was answered 451 should not stay
		}
		return err
	}
	list := asList(said)
	s.link.saw(asInt(at(list, 1)))
	switch asString(at(list, 0)) {
	case "OK":
		s.kick(list[2:])
		return nil
	case "DUP":
		if len(b.chunks) > 0 && !s.refersTo(ctx, b) {
			s.bodies.discard(b)
		}
		return nil
	case "FULL":
		s.bodies.discard(b)
		return fmt.Errorf("%w: the bodies in the queue may take %d octets in all", queue.ErrFull, s.opts.MaxBytes)
	}
	s.resolve.add(e.ID, len(e.Recipients), b)
	return fmt.Errorf("redis: put: it is not known within a minute whether the message was stored, or it was taken back after an error (%v)", said)
}

// refersTo tells whether the message that is there has just this body: then a
// repeated put found its own first try. When in doubt it has.
func (s *Store) refersTo(ctx context.Context, b *body) bool {
	var place string
	err := s.bodies.retry(ctx, func(ctx context.Context) (err error) {
		place, err = s.server.client.HGet(ctx, s.server.prefix()+"m:"+string(b.id), "s").Result()
		return err
	})
	if errors.Is(err, goredis.Nil) {
		return true // it is done already: its body goes the way of all
	}
	return err != nil || strings.HasSuffix(place, " "+b.nonce)
}

// putArgs are a message as put_message reads it, with its line of the journal.
func putArgs(e *mail.Envelope, b *body, noticeOf mail.ID) ([]any, error) {
	blob, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("queue message %s: %w", e.ID, err)
	}
	args := make([]any, 0, 7+2*len(e.Recipients))
	args = append(args, string(e.ID), blob, e.Size, b.place(), b.inline, len(e.Recipients))
	for i := range e.Recipients {
		args = append(args, e.Recipients[i].User, laneOf(e.Recipients[i].Hint))
	}
	return append(args, journal.AcceptedLine(e, noticeOf, time.Now())), nil
}

// Open implements [queue.Deliverer].
func (s *Store) Open(ctx context.Context, id mail.ID) (io.ReadCloser, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	s.mu.Lock()
	mine := s.inUse[id]
	s.mu.Unlock()
	if mine.inline != nil { // it came with the lease
		return s.bodies.inline(mine.inline, mine.size)
	}
	var size, chunks int64
	var nonce string
	var inline []byte
	err := s.bodies.retry(ctx, func(ctx context.Context) error {
		pipe := s.server.client.Pipeline()
		where, small := pipe.HGet(ctx, s.server.prefix()+"m:"+string(id), "s"), pipe.Get(ctx, s.server.prefix()+"i:"+string(id))
		_, _ = pipe.Exec(ctx)
		if err := where.Err(); err != nil {
			return err
		}
		if err := small.Err(); err != nil && !errors.Is(err, goredis.Nil) {
			return err
		}
		inline, _ = small.Bytes()
		f := strings.SplitN(where.Val(), " ", 3)
		if len(f) < 3 {
			return fmt.Errorf("ERR message %s: %q is no place of a body", id, where.Val())
		}
		size, chunks, nonce = asInt(f[0]), asInt(f[1]), f[2]
		return nil
	})
	switch {
	case errors.Is(err, goredis.Nil):
		return nil, fmt.Errorf("%w: %s", queue.ErrNotFound, id)
	case err != nil:
		return nil, fmt.Errorf("redis: open a body: %w", err)
	case chunks == 0:
		return s.bodies.inline(inline, size)
	}
	gone := func() bool {
		n, err := s.server.client.Exists(ctx, s.server.prefix()+"m:"+string(id)).Result()
		return err == nil && n == 0
	}
	return &chunkReader{s: s.bodies, ctx: ctx, name: string(id) + "-" + nonce, left: size, n: int(chunks), gone: gone}, nil
}

// resolver takes puts back whose outcome is not known and that were answered
// with a temporary error: the sender will come again.
type resolver struct {
	mu   sync.Mutex
	list []unresolved
}

type unresolved struct {
	id mail.ID
	n  int
	b  *body
	at time.Time
}

// maxUnresolved bounds the list. What is beyond may come twice, and cannot be
// lost.
const maxUnresolved = 10_000

func (r *resolver) add(id mail.ID, n int, b *body) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) < maxUnresolved {
		slim := *b
		slim.inline = nil
		r.list = append(r.list, unresolved{id, n, &slim, time.Now()})
	}
}

func (r *resolver) take() []unresolved {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.list
	r.list = nil
	return out
}

// resolveAll asks for each message whether it is there, and takes it back.
func (s *Store) resolveAll() {
	list := s.resolve.take()
	for i, u := range list {
		said, err := s.link.write(s.ctx, scAbort, string(u.id), u.n, withdrawnLine(u.id))
		if err != nil {
			s.resolve.mu.Lock()
			s.resolve.list = append(s.resolve.list, list[i:]...)
			s.resolve.mu.Unlock()
			return
		}
		if asString(said) == "GONE" {
			s.log.Info("a message whose storing was answered 451 without an answer of Redis was taken back", "id", u.id)
			if len(u.b.chunks) > 0 {
				s.bodies.discard(u.b)
			}
			continue
		}
		s.log.Warn("a message was answered 451 without an answer of Redis, and is being delivered: its sender sends it again, a duplicate is possible", "id", u.id)
	}
}
