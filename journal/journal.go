package journal

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Journal moves what a store leaves in its outbox into blocks, and reads both.
// Fill in the exported fields before the first call.
type Journal struct {
	Outbox Outbox
	Shelf  Shelf
	// Keep is how long blocks are kept; 0: for ever.
	Keep time.Duration
	Log  *slog.Logger // nil: silent
	// CrashPoint, for tests, is called with "journal.sealed" when a block was put on
	// the shelf and the outbox still has its batches.
	CrashPoint func(name string)

	mu sync.Mutex // one drain at a time in this process
}

// What a block is made of: a MiB of lines, or what came in ten minutes. Small
// blocks compress badly, and nothing is gained by haste: the outbox is as durable
// as the queue, and is read along.
const (
	blockRaw   = 1 << 20
	blockAge   = 10 * time.Minute
	lookEvery  = 5 * time.Second
	pruneEvery = time.Hour
)

// Run moves the outbox until ctx ends, and then once more what is there. An error
// with the shelf is logged and tried again: the outbox keeps what is not moved.
func (j *Journal) Run(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	var pruned time.Time
	var told time.Time // of an error, again every hour
	for {
		_, err := j.Drain(ctx, blockAge)
		if err == nil && j.Keep > 0 && time.Since(pruned) > pruneEvery {
			pruned = time.Now()
			err = j.prune(ctx)
		}
		if err == nil {
			told = time.Time{}
		}
		if err != nil && ctx.Err() == nil && time.Since(told) > time.Hour {
			told = time.Now()
			j.log().Error("the journal cannot be written; what it lacks stays in the store and is moved later", "err", err, "alarm", true)
		}
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookEvery)
			defer cancel()
			if _, err := j.Drain(last, 0); err != nil {
				j.log().Warn("the end of the journal stays in the store until the next start", "err", err)
			}
			return nil
		case <-t.C:
		}
	}
}

func (j *Journal) prune(ctx context.Context) error {
	n, err := j.Shelf.Prune(ctx, time.Now().Add(-j.Keep))
	if n > 0 {
		j.log().Info("removed what audit.keep does not keep of the journal", "blocks", n)
	}
	return err
}

func (j *Journal) log() *slog.Logger {
	if j.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return j.Log
}

// Begin takes from the outbox what an earlier process put on the shelf and died
// before it took it off. After it the numbers of batches go on where they were.
func (j *Journal) Begin(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	head, err := j.Shelf.Head(ctx)
	if err != nil {
		return err
	}
	return j.Outbox.Forget(ctx, head.Last)
}

// Drain moves full blocks, and the rest when its oldest line is older than age. It
// gives how many batches were moved. It may be repeated after an error.
func (j *Journal) Drain(ctx context.Context, age time.Duration) (moved int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		n, more, err := j.drainOne(ctx, age)
		moved += n
		if errors.Is(err, ErrBehind) {
			continue // another node was quicker
		}
		if err != nil || !more {
			return moved, err
		}
	}
}

func (j *Journal) drainOne(ctx context.Context, age time.Duration) (n int, more bool, err error) {
	head, err := j.Shelf.Head(ctx)
	if err != nil {
		return 0, false, err
	}
	// What died between the two steps below is done with here.
	if err := j.Outbox.Forget(ctx, head.Last); err != nil {
		return 0, false, err
	}
	batches, err := j.Outbox.Pending(ctx, head.Last, blockRaw)
	if err != nil || len(batches) == 0 {
		return 0, false, err
	}
	lines := join(batches)
	if len(lines) < blockRaw && !olderThan(lines, age) {
		return 0, false, nil
	}
	b, err := seal(lines, batches[0].Number, batches[len(batches)-1].Number, head)
	if err != nil {
		return 0, false, err
	}
	if err := j.Shelf.Append(ctx, b); err != nil {
		return 0, false, err
	}
	if j.CrashPoint != nil {
		j.CrashPoint("journal.sealed")
	}
	return len(batches), true, j.Outbox.Forget(ctx, b.Last)
}

func join(batches []Batch) []byte {
	if len(batches) == 1 {
		return batches[0].Lines
	}
	size := 0
	for _, b := range batches {
		size += len(b.Lines)
	}
	lines := make([]byte, 0, size)
	for _, b := range batches {
		lines = append(lines, b.Lines...)
	}
	return lines
}

// olderThan tells whether the first line is; one that cannot be read counts as
// old.
func olderThan(lines []byte, age time.Duration) bool {
	for e, err := range entries(lines) {
		return err != nil || time.Since(e.At) >= age
	}
	return true
}

// Gap is a row of batches that the journal lacks, or a break in the chain of
// blocks.
type Gap struct {
	After  uint64 `json:"after"`  // batch before
	Before uint64 `json:"before"` // batch behind
	Text   string `json:"text"`
}

// Report is what a walk over the journal tells about the journal itself.
type Report struct {
	Entries int       `json:"entries"`
	From    time.Time `json:"from,omitzero"` // of the oldest line
	To      time.Time `json:"to,omitzero"`
	First   uint64    `json:"first_batch"` // 1, or what is before was removed
	Last    uint64    `json:"last_batch"`
	Head    Head      `json:"head"`   // of the blocks
	Blocks  int       `json:"blocks"` // the rest is in the outbox
	Gaps    []Gap     `json:"gaps,omitempty"`
	Damaged []string  `json:"damaged,omitempty"` // what cannot be read; nothing is missing by it when there is no gap
	Unread  int       `json:"unread,omitempty"`  // lines that make no sense
}

// Whole tells whether nothing is missing between the first line and the last.
func (r Report) Whole() bool { return len(r.Gaps) == 0 && r.Unread == 0 }
