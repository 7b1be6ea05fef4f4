package backfill

import (
	"context"
	"sync"
	"sync/atomic"
)

const defaultMemory = 64 << 20

// Shared is what all passes of a Copier have together, and of several Copiers
// that name one: memory, and the rates at which both sides are asked. A Copier
// with other settings takes over from one whose passes still run that way.
type Shared struct {
	memory   *budget
	bodies   pages // what memory stands for
	src, dst *bucket

	srcSeats, dstSeats seats
	passes             atomic.Int32 // under way
}

// SetConnections bounds the connections to both sides of all users together; 0
// means no bound. One lane of a pass counts as one to the source and two to the
// destination.
func (s *Shared) SetConnections(source, dest int) {
	s.srcSeats.setAll(source)
	s.dstSeats.setAll(dest)
}

// NewShared makes it for so many octets of messages in memory (0: 64 MiB) and
// rates of all users together.
func NewShared(memory int64, source, dest Rate) *Shared {
	if memory <= 0 {
		memory = defaultMemory
	}
	return &Shared{memory: newBudget(memory), src: newBucket(source), dst: newBucket(dest)}
}

// SetRates changes the rates of all users together, for passes that run too.
func (s *Shared) SetRates(source, dest Rate) {
	s.src.set(source)
	s.dst.set(dest)
}

// shared is a Copier's own, where it names none.
type shared struct {
	once sync.Once
	own  *Shared
}

func (c *Copier) together() *Shared {
	if c.Shared != nil {
		return c.Shared
	}
	c.shared.once.Do(func() { c.shared.own = NewShared(c.MemoryBytes, c.SourceRates.All, c.DestRates.All) })
	return c.shared.own
}

func (c *Copier) batchMessages() int {
	if c.BatchMessages <= 0 {
		return defaultBatchMessages
	}
	return c.BatchMessages
}

// takeSource waits until messages may be read, takeDest until they may be
// appended: first what the user is allowed, then what all are. The last passes
// over a held user are short and wait for no rate: whole queues of batches of
// others may be before them. What the destination may be sent today was taken
// with the batch.
func (p *pass) takeSource(ctx context.Context, n int, octets int64) error {
	if err := p.day.take(SideSource, octets); err != nil {
		return err
	}
	if err := p.srcServer().calm(ctx); err != nil {
		return err
	}
	if p.o.Final {
		return nil
	}
	if err := p.srcRate.take(ctx, n, octets); err != nil {
		return err
	}
	all := p.c.together()
	if p.o.Back {
		return all.dst.take(ctx, n, octets)
	}
	return all.src.take(ctx, n, octets)
}

func (p *pass) takeDest(ctx context.Context, n int, octets int64) error {
	if err := p.dstServer().calm(ctx); err != nil {
		return err
	}
	if p.o.Final {
		return nil
	}
	if err := p.dstRate.take(ctx, n, octets); err != nil {
		return err
	}
	all := p.c.together()
	if p.o.Back {
		return all.src.take(ctx, n, octets)
	}
	return all.dst.take(ctx, n, octets)
}
