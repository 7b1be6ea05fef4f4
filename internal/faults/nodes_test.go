package faults

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"crossfade/internal/redistest"
)

// busyLoad is what nodes do while something breaks.
var busyLoad = load{Users: 24, Flip: [2]int{0, 1}, Putters: 2, Workers: 2, Pause: 4 * time.Millisecond, Big: 40, Slow: 6 * time.Millisecond}

// TestFaultsKillNodes: three nodes on one Redis, and any of them is killed at
// any time and comes back under its name.
func TestFaultsKillNodes(t *testing.T) {
	t.Parallel()
	r := newRig(t, place{URL: redistest.Start(t).URL(), Lease: 2 * time.Second}, busyLoad)
	r.load.Flip = [2]int{0, 3}
	kills := times(25, 300)
	r.startAll(3)
	for range kills {
		rest(t.Context(), time.Duration(20+rand.IntN(180))*time.Millisecond)
		slot := rand.IntN(3)
		r.kill(slot)
		n := r.start(slot)
		if rand.IntN(3) > 0 {
			r.await(n)
		}
	}
	r.stopAll()
	result(t, "kill -9 of any of three nodes", "redis", kills, r.finish(30*time.Second))
}

// TestFaultsKillDisk is the same for the embedded store, which has one node.
func TestFaultsKillDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t, place{Dir: t.TempDir(), Lease: 2 * time.Second}, busyLoad)
	kills := times(25, 300)
	for range kills {
		n := r.start(0)
		r.await(n)
		rest(t.Context(), time.Duration(20+rand.IntN(180))*time.Millisecond)
		r.kill(0)
	}
	result(t, "kill -9", "disk", kills, r.finish(30*time.Second))
}

// TestFaultsFreeze: a node stands still for longer than its leases last, others
// take its mail over, and it goes on as if nothing had been.
func TestFaultsFreeze(t *testing.T) {
	t.Parallel()
	const lease = 700 * time.Millisecond
	r := newRig(t, place{URL: redistest.Start(t).URL(), Lease: lease}, busyLoad)
	r.load.Flip = [2]int{0, 3}
	r.startAll(3)
	runs := times(6, 60)
	for range runs {
		rest(t.Context(), time.Duration(100+rand.IntN(200))*time.Millisecond)
		r.freeze(context.Background(), rand.IntN(3), lease+time.Duration(rand.IntN(700))*time.Millisecond)
	}
	rest(t.Context(), 300*time.Millisecond)
	r.stopAll()
	result(t, "SIGSTOP of a node beyond its leases, then SIGCONT", "redis", runs, r.finish(30*time.Second))
}
