package mailtest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"sync"
)

// ErrLedger is the error of a Ledger that was told to fail.
var ErrLedger = errors.New("the ledger was told to fail")

// Ledger keeps the records of one user in memory, as package backfill wants it.
// The zero value is empty.
type Ledger struct {
	mu      sync.Mutex
	records map[string][]byte
	writes  int
	left    int
}

// Fail has the nth write from now on fail, and all behind it; 0 is none.
func (l *Ledger) Fail(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = n
}

// Writes tells how many records were written or removed.
func (l *Ledger) Writes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes
}

// LoadLedger gives all records by name.
func (l *Ledger) LoadLedger(context.Context, string) (map[string][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string][]byte, len(l.records))
	maps.Copy(out, l.records)
	return out, nil
}

// SaveLedger writes a record; nil data removes it.
func (l *Ledger) SaveLedger(ctx context.Context, _, name string, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left > 1 {
		l.left--
	} else if l.left == 1 {
		return ErrLedger
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l.writes++
	if data == nil {
		delete(l.records, name)
		return nil
	}
	if l.records == nil {
		l.records = map[string][]byte{}
	}
	l.records[name] = bytes.Clone(data)
	return nil
}
