package disk

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// TestSyncsPerGroup: a group of puts costs one sync of a segment, and one of
// the log at its commit.
func TestSyncsPerGroup(t *testing.T) {
	for _, sessions := range []int{1, 10, 50} {
		var syncs, commits atomic.Int64
		s := open(t, t.TempDir(), Options{
			sync:         func(f *os.File) error { syncs.Add(1); return dataSync(f) },
			beforeCommit: func() error { commits.Add(1); return nil },
		})
		syncs.Store(0) // those of the start
		const n = 600
		var wg sync.WaitGroup
		for range sessions {
			wg.Go(func() {
				for range n / sessions {
					if _, err := tryPut(t, s, 4000, "a@example.org"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%d sessions: %d messages, %d commits, %d syncs of bodies and their directory", sessions, n, commits.Load(), syncs.Load())
		if got := syncs.Load(); got > commits.Load()+1 { // and one of the directory, for the segment
			t.Errorf("%d sessions: %d syncs for %d commits", sessions, got, commits.Load())
		}
		s.Close()
	}
}
