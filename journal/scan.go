package journal

import (
	"context"
	"errors"
	"fmt"
)

// Scan gives every entry to f, in the order in which they were written, the
// outbox last. An error of f ends the walk and is returned.
func (j *Journal) Scan(ctx context.Context, f func(Entry) error) (Report, error) {
	s := &scan{each: f}
	err := j.walk(ctx, "", s)
	if err != nil {
		return s.report, err
	}
	// Behind what is lost at the end, or at the beginning, nothing shows that it is.
	head, err := j.Shelf.Head(ctx)
	r := &s.report
	if err == nil && r.Last < head.Last {
		r.Gaps = append(r.Gaps, Gap{After: r.Last, Before: head.Last + 1, Text: fmt.Sprintf("batches %d to %d are missing, at the end", r.Last+1, head.Last)})
	}
	if err == nil && j.Keep == 0 && r.First > 1 {
		r.Gaps = append(r.Gaps, Gap{Before: r.First, Text: fmt.Sprintf("batches 1 to %d are missing, at the beginning, and nothing is to be removed: was audit.keep set before?", r.First-1)})
	}
	return s.report, err
}

// visitor is what a walk shows what it meets.
type visitor interface {
	block(b Block) error
	batch(b Batch) error
	damage(d *Damage)
}

// walk shows all blocks, those that may tell of an id where one is given, and
// then the batches that are in none. What goes from the outbox into a block
// meanwhile is shown once.
func (j *Journal) walk(ctx context.Context, of string, v visitor) error {
	var last uint64
	for {
		head, err := j.Shelf.Head(ctx)
		if err != nil {
			return err
		}
		for b, err := range j.Shelf.Blocks(ctx, Want{After: last, Of: of}) {
			var d *Damage
			switch {
			case errors.As(err, &d):
				v.damage(d)
				continue
			case err != nil:
				return err
			case last > 0 && b.First <= last:
				continue // its first writing failed, and it is there after all
			}
			if err := v.block(b); err != nil {
				return err
			}
			last = b.Last
		}
		last = max(last, head.Last)
		batches, err := j.pending(ctx, last)
		if err != nil {
			return err
		}
		if head, err = j.Shelf.Head(ctx); err != nil {
			return err
		}
		if head.Last > last {
			continue // some of it was moved meanwhile
		}
		for _, b := range batches {
			if err := v.batch(b); err != nil {
				return err
			}
		}
		return nil
	}
}

// pending reads the outbox behind a batch. That is a block's worth, unless the
// shelf does not work.
func (j *Journal) pending(ctx context.Context, after uint64) (all []Batch, err error) {
	for {
		batches, err := j.Outbox.Pending(ctx, after, blockRaw)
		if err != nil || len(batches) == 0 {
			return all, err
		}
		all = append(all, batches...)
		after = batches[len(batches)-1].Number
	}
}

// scan is the visitor of Scan.
type scan struct {
	each   func(Entry) error
	report Report
	prev   Block
}

func (s *scan) damage(d *Damage) { s.report.Damaged = append(s.report.Damaged, d.Error()) }

func (s *scan) block(b Block) error {
	r := &s.report
	lines, err := b.Lines()
	if err != nil { // the next one shows what is missing by it
		r.Damaged = append(r.Damaged, fmt.Sprintf("the journal: block %d: %v", b.Number, err))
		return nil
	}
	if r.Blocks > 0 && b.Number == s.prev.Number+1 && b.Prev != s.prev.Hash() {
		r.Gaps = append(r.Gaps, Gap{After: s.prev.Last, Before: b.First,
			Text: fmt.Sprintf("block %d does not belong behind block %d: one of them was changed", b.Number, s.prev.Number)})
	}
	s.prev, r.Head = b, b.head()
	r.Blocks++
	return s.lines(lines, b.First, b.Last)
}

func (s *scan) batch(b Batch) error { return s.lines(b.Lines, b.Number, b.Number) }

// lines takes batches first to last.
func (s *scan) lines(lines []byte, first, last uint64) error {
	r := &s.report
	switch {
	case r.First == 0:
		r.First = first
	case first > r.Last+1:
		r.Gaps = append(r.Gaps, Gap{After: r.Last, Before: first, Text: fmt.Sprintf("batches %d to %d are missing", r.Last+1, first-1)})
	}
	r.Last = last
	for e, err := range entries(lines) {
		if err != nil {
			r.Unread++
			continue
		}
		r.Entries++
		if r.From.IsZero() || e.At.Before(r.From) {
			r.From = e.At
		}
		if e.At.After(r.To) {
			r.To = e.At
		}
		if err := s.each(e); err != nil {
			return err
		}
	}
	return nil
}

// Find gives the entries about a message, by its queue id or its Message-ID, in
// their order. By a Message-ID only the lines that have it are found: ask again
// with the queue ids in them. What of the journal cannot be read is in damaged.
func (j *Journal) Find(ctx context.Context, id string) (found []Entry, damaged []string, err error) {
	f := &find{plain: plainMessageID(id)}
	err = j.walk(ctx, f.plain, f)
	return f.found, f.damaged, err
}

// find is the visitor of Find.
type find struct {
	plain   string
	found   []Entry
	damaged []string
}

func (f *find) damage(d *Damage) { f.damaged = append(f.damaged, d.Error()) }

func (f *find) block(b Block) error {
	lines, err := b.Lines()
	if err != nil {
		f.damaged = append(f.damaged, fmt.Sprintf("the journal: block %d: %v", b.Number, err))
		return nil
	}
	f.take(lines)
	return nil
}

func (f *find) batch(b Batch) error {
	f.take(b.Lines)
	return nil
}

func (f *find) take(lines []byte) {
	for e, err := range entries(lines) {
		if err != nil {
			continue
		}
		if string(e.ID) == f.plain || e.MessageID != "" && plainMessageID(e.MessageID) == f.plain {
			f.found = append(f.found, e)
		}
	}
}
