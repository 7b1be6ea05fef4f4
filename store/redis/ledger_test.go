package redis

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"crossfade/internal/redistest"
)

// TestKeepLedger: of nodes that write a record at once, when there is none, all get
// the same one.
func TestKeepLedger(t *testing.T) {
	url := redistest.Start(t).URL()
	nodes := []*Store{nodeOn(t, url, "a"), nodeOn(t, url, "b")}
	var wg sync.WaitGroup
	got := make([][]byte, 20)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = nodes[i%2].KeepLedger(t.Context(), "x", "key", bytes.Repeat([]byte(fmt.Sprint(i)), 300)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range got {
		if len(got[i]) == 0 || !bytes.Equal(got[i], got[0]) {
			t.Errorf("%d got %.10q, the first %.10q", i, got[i], got[0])
		}
	}
	records, err := nodes[0].LoadLedger(t.Context(), "x")
	if err != nil || !bytes.Equal(records["key"], got[0]) {
		t.Errorf("%.10q, %v", records["key"], err)
	}
}
