package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"time"
)

// Report says what a copy did.
type Report struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Counts        // of what was copied and compared
	Digest string `json:"digest"` // SHA-256 over all records and bodies, the same on both sides
	// Journal is the directory of the journal's files, which is to be copied along;
	// empty: there is none. JournalMoved is how many batches were still in the database
	// and are in the files now.
	Journal      string        `json:"journal,omitempty"`
	JournalMoved int           `json:"journal_moved,omitempty"`
	Duration     time.Duration `json:"duration_ns"`
}

// Step is a part of a copy.
type Step string

// The steps, in their order.
const (
	StepAccounts Step = "copy users"
	StepMessages Step = "copy messages"
	StepCompare  Step = "compare"
)

// Progress is called after each record with how far the step has come and how
// much there is, about. It has to be quick; nil is none.
type Progress func(step Step, done, total int)

// Copy writes all of from into to, reads both again and compares them record
// by record, and makes to a store. On any error, also when ctx ends, it
// removes what it wrote; from is never changed. The caller closes from.
func Copy(ctx context.Context, from Source, to Sink, progress Progress) (rep Report, err error) {
	rep = Report{From: from.Name(), To: to.Name()}
	began := time.Now()
	if progress == nil {
		progress = func(Step, int, int) {}
	}
	defer func() {
		if derr := to.Discard(); derr != nil && err != nil {
			err = fmt.Errorf("%w; and what was written cannot be removed: %w (the next run with --discard-partial does)", err, derr)
		}
	}()
	total, err := from.Totals(ctx)
	if err != nil {
		return rep, fmt.Errorf("read %s: %w", from.Name(), err)
	}
	c := copier{from: from, to: to, progress: progress, total: total}
	sum, err := c.write(ctx)
	if err != nil {
		return rep, err
	}
	if err := to.Flush(ctx); err != nil {
		return rep, fmt.Errorf("write %s: %w", to.Name(), err)
	}
	if rep.Counts, rep.Digest, err = c.compare(ctx); err != nil {
		return rep, err
	}
	if rep.Digest != sum {
		return rep, fmt.Errorf("%s was changed while it was copied: stop whatever uses it, and try again", from.Name())
	}
	if err := from.Unused(ctx); err != nil {
		return rep, err
	}
	if err := to.Commit(ctx); err != nil {
		return rep, fmt.Errorf("finish %s: %w", to.Name(), err)
	}
	rep.Duration = time.Since(began)
	return rep, nil
}

type copier struct {
	from     Source
	to       Sink
	progress Progress
	total    Counts
}

// write copies everything and gives the digest of what it read.
func (c *copier) write(ctx context.Context) (string, error) {
	sum, n := sha256.New(), 0
	for a, err := range c.from.Accounts(ctx) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return "", fmt.Errorf("read the users of %s: %w", c.from.Name(), err)
		}
		rec, err := a.encode()
		if err != nil {
			return "", fmt.Errorf("account %s: %w", a.Key, err)
		}
		writeRecord(sum, rec)
		if err := c.to.Account(ctx, a); err != nil {
			return "", fmt.Errorf("write account %s to %s: %w", a.Key, c.to.Name(), err)
		}
		n++
		c.progress(StepAccounts, n, c.total.Accounts)
	}
	n = 0
	for m, err := range c.from.Messages(ctx) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return "", fmt.Errorf("read the messages of %s: %w", c.from.Name(), err)
		}
		if err := c.writeMessage(ctx, m, sum); err != nil {
			return "", err
		}
		n++
		c.progress(StepMessages, n, c.total.Messages)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

func (c *copier) writeMessage(ctx context.Context, m *Message, sum hash.Hash) error {
	rec, err := m.encode()
	if err != nil {
		return err
	}
	writeRecord(sum, rec)
	id, open, body := m.Envelope.ID, m.Open, sha256.New()
	size := int64(0)
	x := *m
	x.Open = func(ctx context.Context) (io.ReadCloser, error) {
		r, err := open(ctx)
		if err != nil {
			return nil, fmt.Errorf("read its body from %s: %w", c.from.Name(), err)
		}
		return &tee{r: r, sum: body, size: &size}, nil
	}
	if err := c.to.Message(ctx, &x); err != nil {
		return fmt.Errorf("copy message %s: %w", id, err)
	}
	if size != m.Envelope.Size {
		return fmt.Errorf("copy message %s: its body has %d octets, and its envelope says %d: look with `crossfade store audit`", id, size, m.Envelope.Size)
	}
	writeRecord(sum, body.Sum(nil))
	return nil
}

// tee sums up what is read through it.
type tee struct {
	r    io.ReadCloser
	sum  hash.Hash
	size *int64
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.sum.Write(p[:n])
	*t.size += int64(n)
	return n, err
}

func (t *tee) Close() error { return t.r.Close() }

// writeRecord adds a record to a digest, with its length, so that no two rows
// of records have the same one.
func writeRecord(h hash.Hash, rec []byte) {
	fmt.Fprintf(h, "%d:", len(rec))
	h.Write(rec)
}

// compare reads both sides again.
func (c *copier) compare(ctx context.Context) (n Counts, digest string, err error) {
	sum, to := sha256.New(), c.to.Written()
	total := c.total.Accounts + c.total.Messages
	err = both(c.from.Accounts(ctx), to.Accounts(ctx), func(a, b *Account) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := sameAccount(a, b)
		if err != nil {
			return err
		}
		writeRecord(sum, rec)
		n.account(a)
		c.progress(StepCompare, n.Accounts, total)
		return nil
	})
	if err != nil {
		return n, "", fmt.Errorf("compare the users of %s with those of %s: %w", c.from.Name(), c.to.Name(), err)
	}
	err = both(c.from.Messages(ctx), to.Messages(ctx), func(a, b *Message) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := sameMessage(ctx, a, b, sum); err != nil {
			return err
		}
		n.message(a)
		c.progress(StepCompare, n.Accounts+n.Messages, total)
		return nil
	})
	if err != nil {
		return n, "", fmt.Errorf("compare the messages of %s with those of %s: %w", c.from.Name(), c.to.Name(), err)
	}
	return n, fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// both walks two streams in step; a nil record means that one has ended.
func both[T any](x, y iter.Seq2[*T, error], f func(a, b *T) error) error {
	nextX, stopX := iter.Pull2(x)
	defer stopX()
	nextY, stopY := iter.Pull2(y)
	defer stopY()
	for {
		a, errA, okA := nextX()
		b, errB, okB := nextY()
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		if !okA && !okB {
			return nil
		}
		if !okA {
			a = nil
		}
		if !okB {
			b = nil
		}
		if err := f(a, b); err != nil {
			return err
		}
	}
}

func sameAccount(a, b *Account) ([]byte, error) {
	switch {
	case a == nil:
		return nil, fmt.Errorf("account %s is in the copy alone", b.Key)
	case b == nil || a.Key < b.Key:
		return nil, fmt.Errorf("account %s is not in the copy", a.Key)
	case a.Key > b.Key:
		return nil, fmt.Errorf("account %s is in the copy alone", b.Key)
	}
	x, err := a.encode()
	if err != nil {
		return nil, err
	}
	y, err := b.encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(x, y) {
		return nil, fmt.Errorf("account %s is another one in the copy: %s", a.Key, difference(x, y))
	}
	return x, nil
}

func sameMessage(ctx context.Context, a, b *Message, sum hash.Hash) error {
	switch {
	case a == nil:
		return fmt.Errorf("message %s is in the copy alone", b.Envelope.ID)
	case b == nil || a.Envelope.ID < b.Envelope.ID:
		return fmt.Errorf("message %s is not in the copy", a.Envelope.ID)
	case a.Envelope.ID > b.Envelope.ID:
		return fmt.Errorf("message %s is in the copy alone", b.Envelope.ID)
	}
	id := a.Envelope.ID
	x, err := a.encode()
	if err != nil {
		return err
	}
	y, err := b.encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(x, y) {
		return fmt.Errorf("message %s is another one in the copy: %s", id, difference(x, y))
	}
	writeRecord(sum, x)
	h1, err := digestBody(ctx, a)
	if err != nil {
		return fmt.Errorf("body of %s: %w", id, err)
	}
	h2, err := digestBody(ctx, b)
	if err != nil {
		return fmt.Errorf("body of %s in the copy: %w", id, err)
	}
	if !bytes.Equal(h1, h2) {
		return fmt.Errorf("the body of message %s is another one in the copy", id)
	}
	writeRecord(sum, h1)
	return nil
}

func digestBody(ctx context.Context, m *Message) ([]byte, error) {
	r, err := m.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// difference shows where two records part.
func difference(x, y []byte) string {
	i := 0
	for i < len(x) && i < len(y) && x[i] == y[i] {
		i++
	}
	from := max(0, i-40)
	return fmt.Sprintf("...%q is ...%q", x[from:min(len(x), i+40)], y[from:min(len(y), i+40)])
}

// Dump writes every record of a store as a line of JSON, with the digest of its
// body for a message. Two stores with the same content give the same lines.
func Dump(ctx context.Context, from Source, w io.Writer) error {
	for a, err := range from.Accounts(ctx) {
		if err != nil {
			return fmt.Errorf("read the users of %s: %w", from.Name(), err)
		}
		rec, err := a.encode()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s\n", rec); err != nil {
			return err
		}
	}
	for m, err := range from.Messages(ctx) {
		if err != nil {
			return fmt.Errorf("read the messages of %s: %w", from.Name(), err)
		}
		rec, err := m.encode()
		if err != nil {
			return err
		}
		body, err := digestBody(ctx, m)
		if err != nil {
			return fmt.Errorf("body of %s: %w", m.Envelope.ID, err)
		}
		if _, err := fmt.Fprintf(w, "%s%x\n", rec, body); err != nil {
			return err
		}
	}
	return nil
}
