package backfill

import "testing"

// TestBatchOfTheLongestFolder: only between distant servers, and only where one
// folder has a large part of what is left.
func TestBatchOfTheLongestFolder(t *testing.T) {
	for _, tt := range []struct {
		name               string
		far                bool
		left, all, passes  int
		messages, mebibyte int64
	}{
		{"near", false, 900, 1000, 1, 100, 4},
		{"one of many", true, 100, 1000, 1, 100, 4},
		{"the longest", true, 400, 1000, 1, 300, 12},
		{"beside another user", true, 400, 1000, 2, 200, 8},
		{"beside many users", true, 400, 1000, 20, 100, 4},
	} {
		c := &Copier{}
		p := &pass{c: c, far: tt.far, progress: Progress{Messages: 5000, MessagesDone: 5000 - tt.all}}
		c.together().passes.Store(int32(tt.passes))
		if n, octets := p.batch(tt.left); int64(n) != tt.messages || octets != tt.mebibyte<<20 {
			t.Errorf("%s: %d messages, %d octets", tt.name, n, octets)
		}
	}
}
