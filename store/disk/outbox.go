package disk

import (
	"context"
	"database/sql/driver"
	"time"

	"crossfade/journal"
	"crossfade/queue"
)

// The outbox of the journal: one row for each transaction that has something to
// tell, written in it. A row for each message would cost several times as much.

var _ journal.Outbox = (*Store)(nil)

const (
	sqlOutboxAdd  = `INSERT INTO outbox (n, lines) VALUES (?, ?)`
	sqlOutboxLast = `SELECT max(n) FROM outbox`
	sqlOutboxRead = `SELECT n, lines FROM outbox WHERE n > ? ORDER BY n`
	// The newest row stays, so that the numbers run on after a restart.
	sqlOutboxForget = `DELETE FROM outbox WHERE n <= ? AND n < (SELECT max(n) FROM outbox)`
)

// note adds a line of the journal to the transaction that is open. Only the writer
// calls it, from a plan.
func (s *Store) note(line []byte) { s.lines = append(s.lines, line...) }

// writeLines stores the lines of the open transaction.
func (s *Store) writeLines() error {
	if s.opts.lateLines {
		s.lines, s.late = s.late, append([]byte(nil), s.lines...)
	}
	if len(s.lines) == 0 {
		return nil
	}
	_, err := s.db.run(sqlOutboxAdd, s.outbox+1, s.lines)
	return err
}

// linesCommitted counts the row that writeLines wrote.
func (s *Store) linesCommitted() {
	if len(s.lines) > 0 {
		s.outbox++
		s.frames += 1 + len(s.lines)/4096
		s.lines = s.lines[:0]
	}
}

// loadOutbox finds where the numbers go on.
func (s *Store) loadOutbox() error {
	v, _, err := s.db.ints(sqlOutboxLast)
	if len(v) > 0 {
		s.outbox = uint64(v[0])
	}
	return err
}

// Pending implements [journal.Outbox].
func (s *Store) Pending(ctx context.Context, after uint64, max int) (batches []journal.Batch, err error) {
	err = s.read(ctx, func(c *conn) (err error) {
		batches, err = c.pending(ctx, after, max)
		return err
	})
	return batches, err
}

// pending reads batches of the outbox.
func (c *conn) pending(ctx context.Context, after uint64, max int) (batches []journal.Batch, err error) {
	size := 0
	err = c.each(func(cols []driver.Value) error {
		b := journal.Batch{Number: uint64(asInt(cols[0])), Lines: append([]byte(nil), asBytes(cols[1])...)}
		batches = append(batches, b)
		if size += len(b.Lines); size >= max {
			return errStop
		}
		return ctx.Err()
	}, sqlOutboxRead, after)
	return batches, err
}

// Forget implements [journal.Outbox].
func (s *Store) Forget(_ context.Context, last uint64) error {
	return s.do(&op{name: "forget", plan: func() error {
		s.outbox = max(s.outbox, last)
		_, err := s.db.run(sqlOutboxForget, last)
		return err
	}})
}

// outcomeLine is the line about an outcome.
func (s *Store) outcomeLine(l *queue.Lease, it *queue.Item, o *queue.Outcome, now time.Time) []byte {
	if s.opts.noJournal {
		return nil
	}
	return journal.OutcomeLine(l, it, o, now)
}

// entryOf is what a line about a row says of the recipient.
func entryOf(r *row) journal.Entry {
	to := r.addr
	if to == "" {
		to = r.user
	}
	return journal.Entry{N: r.n, To: to, User: r.user, Copy: r.copy}
}

// noteParked notes that the store itself parked a recipient.
func (s *Store) noteParked(r *row) {
	e := entryOf(r)
	e.At, e.Kind, e.ID, e.Reply, e.By = s.opts.Now(), journal.Parked, r.id, r.reply, ownName
	s.note(e.Line())
}

// ownName stands for the store in the journal, where an operator's name is
// otherwise.
const ownName = "crossfade"

const sqlOutboxTable = `CREATE TABLE outbox (
  n     INTEGER PRIMARY KEY, -- runs on without a gap
  lines BLOB NOT NULL        -- of the journal, JSON: they go into its files within minutes
)`
