package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
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
// meanwhile is shown once. Of both there is one block's worth in memory.
func (j *Journal) walk(ctx context.Context, of string, v visitor) error {
	w := &walking{j: j, v: v, of: of}
	for {
		head, err := j.Shelf.Head(ctx)
		if err == nil {
			err = w.blocks(ctx)
		}
		if err != nil {
			return err
		}
		w.last = max(w.last, head.Last)
		done, err := w.rest(ctx)
		if err != nil || done {
			return err
		}
	}
}

// walking is a walk under way.
type walking struct {
	j    *Journal
	v    visitor
	of   string
	last uint64 // batch that was shown
	out  bool   // batches of the outbox were
}

// ErrMoved tells that another node moved the journal while it was read.
var ErrMoved = errors.New("another node moved the newest of the journal while it was read: ask again")

// blocks shows those behind what was shown.
func (w *walking) blocks(ctx context.Context) error {
	for b, err := range w.j.Shelf.Blocks(ctx, Want{After: w.last, Of: w.of}) {
		var d *Damage
		switch {
		case errors.As(err, &d):
			w.v.damage(d)
			continue
		case err != nil:
			return err
		case w.out && b.First <= w.last && b.Last > w.last:
			return ErrMoved // only some of it was shown, and nothing tells which
		case w.last > 0 && b.First <= w.last:
			continue // its first writing failed, and it is there after all
		}
		if err := w.v.block(b); err != nil {
			return err
		}
		w.last = b.Last
	}
	return nil
}

// rest shows the outbox, a block's worth at a time: it is large when the shelf does not
// work. This process moves nothing meanwhile. It is not done when another one did.
func (w *walking) rest(ctx context.Context) (done bool, err error) {
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	for {
		batches, err := w.j.Outbox.Pending(ctx, w.last, blockRaw)
		if err != nil {
			return false, err
		}
		head, err := w.j.Shelf.Head(ctx)
		if err != nil || head.Last > w.last {
			return false, err
		}
		size := 0
		for _, b := range batches {
			if err := w.v.batch(b); err != nil {
				return false, err
			}
			size += len(b.Lines)
			w.last, w.out = b.Number, true
		}
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		if size < blockRaw {
			return true, nil // what came since is not of this walk
		}
	}
}

// scan is the visitor of Scan.
type scan struct {
	each   func(Entry) error
	report Report
	prev   Block
}

func (s *scan) damage(d *Damage) { s.report.Damaged = noted(s.report.Damaged, d.Error()) }

// mostNoted bounds how much of what is damaged is named.
const mostNoted = 1000

func noted(list []string, text string) []string {
	switch len(list) {
	case mostNoted - 1:
		text = "and more, which is not named"
	case mostNoted:
		return list
	}
	return append(list, text)
}

func (s *scan) block(b Block) error {
	r := &s.report
	lines, err := b.Lines()
	if err != nil { // the next one shows what is missing by it
		r.Damaged = noted(r.Damaged, fmt.Sprintf("the journal: block %d: %v", b.Number, err))
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

// mostFound bounds what Find gives: anybody can send many messages with one
// Message-ID.
const mostFound = 20_000

// errEnough ends a walk that found so much.
var errEnough = errors.New("enough")

// Find gives the entries about a message, by its queue id or its Message-ID, in
// their order. By a Message-ID only the lines that have it are found: ask again
// with the queue ids in them. What of the journal cannot be read, and that there is
// more than is given, is in damaged.
func (j *Journal) Find(ctx context.Context, id string) (found []Entry, damaged []string, err error) {
	f := &find{plain: plainMessageID(id)}
	if err = j.walk(ctx, f.plain, f); errors.Is(err, errEnough) {
		f.damaged, err = noted(f.damaged, fmt.Sprintf("there are more than %d lines about it: these are the first", mostFound)), nil
	}
	return f.found, f.damaged, err
}

// find is the visitor of Find.
type find struct {
	plain   string
	found   []Entry
	damaged []string
}

func (f *find) damage(d *Damage) { f.damaged = noted(f.damaged, d.Error()) }

func (f *find) block(b Block) error {
	lines, err := b.Lines()
	if err != nil {
		f.damaged = noted(f.damaged, fmt.Sprintf("the journal: block %d: %v", b.Number, err))
		return nil
	}
	return f.take(lines)
}

func (f *find) batch(b Batch) error { return f.take(b.Lines) }

// asWritten tells whether an id stands in JSON as it is, whoever wrote that.
func asWritten(id string) bool {
	return strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.@_+=$-") == ""
}

func (f *find) take(lines []byte) error {
	if asWritten(f.plain) && !bytes.Contains(lines, []byte(f.plain)) {
		return nil // without reading line for line, which takes a hundred times as long
	}
	for e, err := range entries(lines) {
		if err != nil || string(e.ID) != f.plain && (e.MessageID == "" || plainMessageID(e.MessageID) != f.plain) {
			continue
		}
		if len(f.found) == mostFound {
			return errEnough
		}
		f.found = append(f.found, e)
	}
	return nil
}
