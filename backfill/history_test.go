package backfill

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestThin(t *testing.T) {
	at := func(s int) Point { return Point{At: time.Unix(int64(s), 0).UTC(), Messages: s} }
	got := thin([]Point{at(0), at(100), at(101), at(102), at(300)}, 4)
	if diff := cmp.Diff([]Point{at(0), at(100), at(102), at(300)}, got); diff != "" {
		t.Error(diff)
	}
	// A day of points, each ten seconds: the plot keeps its ends and no gap grows
	// beyond a few times the others.
	var points []Point
	for i := range 8640 {
		points = thin(append(points, at(10*i)), maxPoints)
	}
	if n := len(points); n != maxPoints || points[0] != at(0) || points[n-1] != at(86390) {
		t.Fatalf("%d points from %v to %v", n, points[0], points[n-1])
	}
	for i := 1; i < len(points); i++ {
		if gap := points[i].At.Sub(points[i-1].At); gap > 4*86400*time.Second/maxPoints {
			t.Errorf("a gap of %v before point %d", gap, i)
		}
	}
}

func TestHistoryRecord(t *testing.T) {
	want := []Point{{At: time.UnixMilli(1_700_000_000_123).UTC(), Messages: 5, Bytes: 1 << 40}}
	data, err := encodeHistory(want)
	if err != nil {
		t.Fatal(err)
	}
	b := &book{data: map[string][]byte{historyName: data}}
	got, err := b.history()
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	b.data[historyName] = []byte(`{"no": "list"}`)
	if _, err := b.history(); err == nil {
		t.Error("a broken record was read")
	}
}
