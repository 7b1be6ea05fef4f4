package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// collectEvery is how often segments are looked at that are worth carrying
// forward.
const collectEvery = 30 * time.Second

// collector carries the survivors of sparse segments forward.
func (s *Store) collector() {
	t := time.NewTicker(collectEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.quit:
			return
		case <-s.failed:
			return
		}
		if err := s.Collect(); err != nil && !errors.Is(err, queue.ErrClosed) {
			s.log.Warn("carrying mail forward from a segment did not work, it is tried again", "error", err)
		}
	}
}

// Collect carries the survivors of segments of which less than a quarter is
// live into the active one, so that the old ones can go. It runs by itself
// every half minute.
func (s *Store) Collect() error {
	for _, num := range s.files.sparse(s.opts.sparse) {
		if err := s.carry(num); err != nil {
			return err
		}
	}
	return nil
}

// carryBatch bounds the octets that are carried in one group.
const carryBatch = 1 << 20

// carry moves what is live in one segment.
func (s *Store) carry(num int64) error {
	if err := s.usable(); err != nil {
		return err
	}
	f, err := s.files.acquire(num)
	if err != nil && !s.files.hasLive(num) {
		return nil // the last of it was delivered meanwhile
	}
	if err != nil {
		return fmt.Errorf("open a segment: %w", err)
	}
	defer s.files.release(f)
	var batch []*body
	size := int64(0)
	end, err := scanSegment(f.f, f.size, func(rec record) error {
		live, err := s.liveAt(num, rec)
		if err != nil || !live {
			return err
		}
		b, err := s.readRecord(f, rec)
		if err != nil {
			s.files.markBad(num)
			s.parkDamaged(rec.id, err)
			return nil
		}
		b.from = loc{num, rec.pos, rec.size}
		batch = append(batch, b)
		if size += rec.size; size < carryBatch {
			return nil
		}
		size = 0
		full := batch
		batch = nil
		return s.carryBatch(full)
	})
	if err == nil {
		err = s.carryBatch(batch)
	}
	if err == nil && end < f.size && s.files.hasLive(num) { // else it was a torn tail
		s.files.markBad(num)
		s.log.Error("a segment is damaged: what is behind cannot be carried forward", "file", s.files.path(f), "offset", end, "alarm", true)
	}
	s.crash("compact.done")
	return err
}

// liveAt tells whether a message's body is the record.
func (s *Store) liveAt(num int64, rec record) (live bool, err error) {
	err = s.read(context.Background(), func(c *conn) error {
		v, found, err := c.ints("SELECT file, pos FROM message WHERE id = ?", string(rec.id))
		live = found && v[0] == num && v[1] == rec.pos
		return err
	})
	return live, err
}

// readRecord reads a body that is carried forward, and checks it.
func (s *Store) readRecord(f *bodyFile, rec record) (*body, error) {
	b := &body{id: rec.id, size: rec.size, sum: rec.sum, buf: make([]byte, headerSize+rec.size)}
	r := &bodyReader{r: f.f, pos: rec.pos + headerSize, left: rec.size, want: rec.sum}
	if _, err := io.ReadFull(r, b.buf[headerSize:]); err != nil {
		return nil, err
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}

// carryBatch moves some bodies in one step.
func (s *Store) carryBatch(batch []*body) error {
	if len(batch) == 0 {
		return nil
	}
	o := &op{name: "compact", bodies: batch, grows: true}
	for _, b := range batch {
		o.keys = append(o.keys, string(b.id))
	}
	o.plan = func() error {
		for _, b := range batch {
			n, err := s.db.run("UPDATE message SET file = ?, pos = ? WHERE id = ? AND file = ? AND pos = ?",
				b.loc.file, b.loc.pos, string(b.id), b.from.file, b.from.pos)
			if err != nil {
				return err
			}
			b.unwanted = n == 0 // it is gone meanwhile
		}
		return nil
	}
	o.apply = func() {
		for _, b := range batch {
			if b.unwanted {
				continue
			}
			if m := s.msgs[mail.ID(b.id)]; m != nil {
				m.loc = b.loc
			}
			s.dead = append(s.dead, b.from)
		}
	}
	return s.do(o)
}
