package redis

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/journal"
	"crossfade/mail"
)

// The journal lies in Redis whole, because it has to survive what the queue
// survives, a node and its disk among that: the scripts push its lines onto a list
// (J), in the step that they tell of, and whichever node is first seals the oldest
// into a block and takes them off, in one step.

var _ journal.Outbox = (*Store)(nil)

// Pending implements [journal.Outbox].
func (s *Store) Pending(ctx context.Context, after uint64, max int) ([]journal.Batch, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	said, err := s.link.read(ctx, scOutbox, after, max)
	if err != nil {
		return nil, err
	}
	list := asList(said)
	if len(list) < 2 {
		return nil, nil
	}
	first := uint64(asInt(list[0]))
	batches := make([]journal.Batch, 0, len(list)-1)
	for i, line := range list[1:] {
		batches = append(batches, journal.Batch{Number: first + uint64(i), Lines: []byte(asString(line))})
	}
	return batches, nil
}

// Forget implements [journal.Outbox].
func (s *Store) Forget(ctx context.Context, last uint64) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	_, err := s.link.write(ctx, scForget, last)
	return err
}

// Shelf is where the journal's blocks are kept.
func (s *Store) Shelf() journal.Shelf { return shelf{s} }

// shelf keeps each block as two values: head with index, and payload.
type shelf struct{ s *Store }

// Head implements [journal.Shelf].
func (h shelf) Head(ctx context.Context) (head journal.Head, err error) {
	if err := h.s.enter(); err != nil {
		return head, err
	}
	defer h.s.leave()
	var have []any
	err = h.s.bodies.retry(ctx, func(ctx context.Context) (err error) {
		have, err = h.s.server.client.HMGet(ctx, h.s.key("j"), "n", "last", "sum").Result()
		return err
	})
	if err != nil {
		return head, fmt.Errorf("redis: read the journal: %w", err)
	}
	head.Number, head.Last = uint64(asInt(at(have, 0))), uint64(asInt(at(have, 1)))
	if sum := asString(at(have, 2)); sum != "" {
		err = head.Hash.UnmarshalText([]byte(sum))
	}
	return head, err
}

// Append implements [journal.Shelf]. The lines leave the list in the same step.
func (h shelf) Append(ctx context.Context, b journal.Block) error {
	if err := h.s.enter(); err != nil {
		return err
	}
	defer h.s.leave()
	front, payload := b.Split()
	said, err := h.s.link.write(ctx, scShelve, b.Number, b.Prev.String(), b.Last, b.Hash().String(), front, payload)
	if err != nil {
		return err
	}
	if asString(said) != "OK" {
		return journal.ErrBehind
	}
	return nil
}

// shelfPage is how many heads of blocks are asked for at once.
const shelfPage = 64

// Blocks implements [journal.Shelf].
func (h shelf) Blocks(ctx context.Context, w journal.Want) iter.Seq2[journal.Block, error] {
	return func(yield func(journal.Block, error) bool) {
		if err := h.s.enter(); err != nil {
			yield(journal.Block{}, err)
			return
		}
		defer h.s.leave()
		from, to, err := h.bounds(ctx)
		for ; err == nil && from <= to; from += shelfPage {
			var fronts [][]byte
			if fronts, err = h.values(ctx, "jh:", from, min(to, from+shelfPage-1)); err != nil {
				break
			}
			for i, front := range fronts {
				if !h.give(ctx, w, from+uint64(i), front, yield) {
					return
				}
			}
		}
		if err != nil {
			yield(journal.Block{}, err)
		}
	}
}

// bounds gives the numbers of the oldest and the newest block.
func (h shelf) bounds(ctx context.Context) (from, to uint64, err error) {
	var have []any
	err = h.s.bodies.retry(ctx, func(ctx context.Context) (err error) {
		have, err = h.s.server.client.HMGet(ctx, h.s.key("j"), "first", "n").Result()
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("redis: read the journal: %w", err)
	}
	return max(uint64(asInt(at(have, 0))), 1), uint64(asInt(at(have, 1))), nil
}

// values reads one value for each of some blocks; nil for one that is not there.
func (h shelf) values(ctx context.Context, name string, from, to uint64) (out [][]byte, err error) {
	err = h.s.bodies.retry(ctx, func(ctx context.Context) error {
		out = out[:0]
		pipe := h.s.server.client.Pipeline()
		var got []*goredis.StringCmd
		for n := from; n <= to; n++ {
			got = append(got, pipe.Get(ctx, h.s.key(name+strconv.FormatUint(n, 10))))
		}
		_, _ = pipe.Exec(ctx) // each has its own error
		for _, c := range got {
			v, err := c.Bytes()
			if err != nil && !errors.Is(err, goredis.Nil) {
				return err
			}
			out = append(out, v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("redis: read the journal: %w", err)
	}
	return out, nil
}

// give yields one block when it is wanted; false when no more is asked for.
func (h shelf) give(ctx context.Context, w journal.Want, n uint64, front []byte, yield func(journal.Block, error) bool) bool {
	where := h.s.key("jh:" + strconv.FormatUint(n, 10))
	if front == nil {
		return yield(journal.Block{}, &journal.Damage{Where: where, Err: errors.New("the block is gone")})
	}
	if skip, err := w.Skips(front); err != nil {
		return yield(journal.Block{}, &journal.Damage{Where: where, Err: err})
	} else if skip {
		return true
	}
	payload, err := h.values(ctx, "jp:", n, n)
	if err != nil {
		yield(journal.Block{}, err)
		return false
	}
	b, err := journal.OpenBlock(append(front[:len(front):len(front)], payload[0]...))
	if err != nil {
		return yield(journal.Block{}, &journal.Damage{Where: where, Err: err})
	}
	return yield(b, nil)
}

// Prune implements [journal.Shelf].
func (h shelf) Prune(ctx context.Context, before time.Time) (removed int, err error) {
	from, to, err := h.bounds(ctx)
	for ; err == nil && from < to; from++ {
		fronts, err := h.values(ctx, "jh:", from, from)
		if err != nil {
			return removed, err
		}
		if info, err := journal.ParseInfo(fronts[0]); fronts[0] != nil && err == nil && !info.To.Before(before) {
			return removed, nil
		}
		if _, err := h.s.link.write(ctx, scPrune, strconv.FormatUint(from, 10)); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, err
}

// withdrawnLine is the line of a put that was taken back.
func withdrawnLine(id mail.ID) []byte {
	return journal.Entry{At: time.Now().UTC().Truncate(time.Millisecond), Kind: journal.Withdrawn, ID: id,
		Reason: "Redis did not answer in time, and the sender was asked to come again"}.Line()
}
