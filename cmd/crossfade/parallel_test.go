package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
)

// TestAnswersDoNotPileUp: while the first one is slow the others do not run far
// ahead, they come in order, and none stays in memory.
func TestAnswersDoNotPileUp(t *testing.T) {
	const users, atOnce, size = 400, 3, 1 << 20
	var addresses []string
	for i := range users {
		addresses = append(addresses, fmt.Sprintf("u%d@example.org", i))
	}
	var asked, given atomic.Int32
	first := make(chan struct{})
	full := make(chan struct{})
	q := &asking[[]byte]{app: &app{ctx: t.Context(), stderr: io.Discard}, doing: "asked", atOnce: atOnce,
		ask: func(_ context.Context, address string) ([]byte, error) {
			n := asked.Add(1)
			if n-given.Load() > atOnce*ahead {
				t.Errorf("%s is asked about, and %d answers wait", address, n-given.Load()-1)
			}
			if n == atOnce*ahead {
				close(full)
			}
			if address == addresses[0] {
				<-first
			}
			return make([]byte, size), nil
		},
		each: func(address string, answer []byte, err error) error {
			n := given.Add(1) - 1
			if address != addresses[n] || len(answer) != size || err != nil {
				t.Errorf("%d: %s, %d octets, %v", n, address, len(answer), err)
			}
			if n == users-1 {
				var m runtime.MemStats
				runtime.GC()
				if runtime.ReadMemStats(&m); m.HeapAlloc > 100*size {
					t.Errorf("%d MiB of answers are in memory at the end", m.HeapAlloc>>20)
				}
			}
			return nil
		}}
	go func() {
		<-full
		close(first)
	}()
	if err := q.run(addresses); err != nil {
		t.Fatal(err)
	}
	if given.Load() != users {
		t.Errorf("%d of %d", given.Load(), users)
	}
}
