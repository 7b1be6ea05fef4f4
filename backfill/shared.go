package backfill

import (
	"context"
	"sync"
)

const defaultMemory = 64 << 20

// shared is what all passes of a Copier have together: memory, and the rates at
// which both sides are asked.
type shared struct {
	once     sync.Once
	memory   *budget
	src, dst *bucket
}

func (c *Copier) together() *shared {
	s := &c.shared
	s.once.Do(func() {
		n := c.MemoryBytes
		if n <= 0 {
			n = defaultMemory
		}
		s.memory, s.src, s.dst = newBudget(n), newBucket(c.SourceRates.All), newBucket(c.DestRates.All)
	})
	return s
}

func (c *Copier) batchMessages() int {
	if c.BatchMessages <= 0 {
		return defaultBatchMessages
	}
	return c.BatchMessages
}

// takeSource waits until messages may be read, takeDest until they may be
// appended: first what the user is allowed, then what all are.
func (p *pass) takeSource(ctx context.Context, n int, octets int64) error {
	if err := p.srcRate.take(ctx, n, octets); err != nil {
		return err
	}
	return p.c.together().src.take(ctx, n, octets)
}

func (p *pass) takeDest(ctx context.Context, n int, octets int64) error {
	if err := p.dstRate.take(ctx, n, octets); err != nil {
		return err
	}
	return p.c.together().dst.take(ctx, n, octets)
}
