package disk

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// resident gives the process's memory in MiB.
func residentMiB(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("SKIPPED: no /proc here, memory is not measured")
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(f[1])
			return kb >> 10
		}
	}
	return 0
}

// TestMemory queues CROSSFADE_QUEUED messages (200000, say) and shows what
// that costs, and how long a start takes then.
func TestMemory(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("CROSSFADE_QUEUED"))
	if err != nil {
		t.Skip("SKIPPED: set CROSSFADE_QUEUED to a number of messages to measure memory")
	}
	dir := t.TempDir()
	s := open(t, dir, Options{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for j := range n / 50 {
				if _, err := tryPut(t, s, 300, fmt.Sprintf("user%d@example.org", (i*7919+j*104729)%100000)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	runtime.GC()
	first := residentMiB(t)
	s.Close()
	start := time.Now()
	s = open(t, dir, Options{Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	took := time.Since(start)
	t.Logf("%d queued: %d MiB after the puts, open again in %v, %d MiB", n, first, took, residentMiB(t))
	st, err := s.Stats(ctx)
	if err != nil || st.Messages != n/50*50 {
		t.Fatal(err, st)
	}
	if m := residentMiB(t); m > 300 {
		t.Fatalf("%d MiB", m)
	}
}
