package journal

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Batch is what a store wrote into its outbox in one step.
type Batch struct {
	Number uint64 // they run on without a gap
	Lines  []byte
}

// Outbox is where a store leaves lines that are not in a block yet. Both stores
// implement it.
type Outbox interface {
	// Pending gives batches with numbers above after, in their order, of max octets
	// in all, about, and one at least when there is one.
	Pending(ctx context.Context, after uint64, max int) ([]Batch, error)
	// Forget lets go of the batches up to last, which are on stable storage. The
	// next batch has a number above last, whatever was there.
	Forget(ctx context.Context, last uint64) error
}

// Head is the end of a shelf: its newest block. The zero value is that of a shelf
// without blocks.
type Head struct {
	Number uint64 `json:"block"`
	Last   uint64 `json:"batch"`
	Hash   Hash   `json:"sha256"`
}

// head is the head of a shelf on which b was put last.
func (b Block) head() Head { return Head{Number: b.Number, Last: b.Last, Hash: b.Hash()} }

// Want selects blocks. The zero value selects all.
type Want struct {
	After uint64 // with batches above it
	Of    string // that may tell of a queue id or Message-ID
}

func (w Want) skips(i Info) bool { return i.Last <= w.After }

// Skips tells by the head of a block, as [Block.Split] gives it, whether the block
// is not wanted.
func (w Want) Skips(head []byte) (bool, error) {
	x, err := parseHeader(head)
	if err != nil {
		return false, err
	}
	if len(head) < prefixSize+x.index {
		return false, fmt.Errorf("%w: its index is cut short", errDamaged)
	}
	return w.skips(x.Info) || w.Of != "" && !mayHold(head[prefixSize:prefixSize+x.index], key(plainMessageID(w.Of))), nil
}

// ErrBehind tells that another block was put on the shelf meanwhile.
var ErrBehind = errors.New("the journal has gone on meanwhile")

// Damage is an error about a part of the journal that cannot be read. The rest
// of it can.
type Damage struct {
	Where string // a file, or a key of Redis
	At    int64  // octets
	Torn  bool   // it is at the end of a file: a write that was cut off
	Err   error
}

func (d *Damage) Error() string {
	return fmt.Sprintf("the journal: %s at octet %d: %v", d.Where, d.At, d.Err)
}

// Unwrap gives the cause.
func (d *Damage) Unwrap() error { return d.Err }

// Shelf keeps blocks.
type Shelf interface {
	// Head gives the newest block.
	Head(ctx context.Context) (Head, error)
	// Append puts a block behind the newest one; nil means that it is on stable
	// storage. ErrBehind when b does not follow the newest one.
	Append(ctx context.Context, b Block) error
	// Blocks gives blocks in their order, each checked. A *Damage is given for what
	// cannot be read, and then it goes on; any other error is the last thing given.
	Blocks(ctx context.Context, w Want) iter.Seq2[Block, error]
	// Prune removes blocks with nothing newer than before, as far as that can be
	// done for some together, and gives how many. The newest block stays.
	Prune(ctx context.Context, before time.Time) (int, error)
}
