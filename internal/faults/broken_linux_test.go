package faults

import (
	"math/rand/v2"
	"testing"
	"time"

	"crossfade/internal/redistest"
)

// TestFaultsBroken breaks promises on purpose, one at a time: the suite has to
// see each.
func TestFaultsBroken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		variant string
		found   func(v *verdict) []string
	}{
		{ackEarly, func(v *verdict) []string { return v.Lost }},
		{settleEarly, func(v *verdict) []string { return v.Lost }},
		{routeCached, func(v *verdict) []string { return v.wrongSide }},
		{noPermission, func(v *verdict) []string { return append(v.wrongSide, v.Duplicates...) }},
	} {
		for _, store := range []string{"redis", "disk"} {
			t.Run(test.variant+", "+store, func(t *testing.T) {
				v := brokenRun(t, test.variant, store)
				caught(t, test.variant, store, 4, v, test.found(v))
			})
		}
	}
	t.Run("everysec and a power failure", func(t *testing.T) {
		needRoot(t, "mounting a drive")
		v, cuts := powerRedis(t, 1, "everysec")
		caught(t, "appendfsync everysec and a power failure", "redis", cuts, v, v.Lost)
	})
	t.Run(ackEarly+" and a power failure", func(t *testing.T) {
		needRoot(t, "mounting a drive")
		v, cuts := powerDisk(t, 2, ackEarly)
		caught(t, ackEarly+", and a power failure", "disk", cuts, v, v.Lost)
	})
}

// brokenRun kills nodes that break a promise.
func brokenRun(t *testing.T, variant, store string) *verdict {
	p, slots := place{Dir: t.TempDir(), Lease: 2 * time.Second}, 1
	if store == "redis" {
		p, slots = place{URL: redistest.Start(t).URL(), Lease: 2 * time.Second}, 2
	}
	l := busyLoad
	l.Users, l.Pause, l.Big = 6, 4*time.Millisecond, 0
	l.Flip = [2]int{0, slots}
	r := newRig(t, p, l)
	r.variant = variant
	r.startAll(slots)
	for range 4 {
		rest(t.Context(), time.Duration(150+rand.IntN(100))*time.Millisecond)
		slot := rand.IntN(slots)
		r.kill(slot)
		r.await(r.start(slot))
	}
	r.stopAll()
	r.variant = "" // who drains is well
	return r.finish(30 * time.Second)
}
