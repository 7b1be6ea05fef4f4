package faults

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"crossfade/internal/redistest"
)

// forget drops what a life noted after a moment: then its machine had no power
// any more, and nobody heard of it.
func (a *account) forget(life string, after time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	kept := a.events[:0]
	for _, e := range a.events {
		if e.who != life || e.what == evOffer || !e.at.After(after) {
			kept = append(kept, e)
		}
	}
	a.events = kept
}

// TestFaultsPowerDisk: the power fails under the embedded store, at any moment.
// What its disk had not flushed is gone, or there in part.
func TestFaultsPowerDisk(t *testing.T) {
	t.Parallel()
	needRoot(t, "mounting a drive")
	v, cuts := powerDisk(t, times(4, 60), "")
	result(t, "power failure, the disk drops what was not flushed", "disk", cuts, v)
}

func powerDisk(t *testing.T, cuts int, variant string) (*verdict, int) {
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	held := formatted(t, 96)
	r := newRig(t, place{Dir: filepath.Join(dir, "data"), Lease: 2 * time.Second}, busyLoad)
	r.variant, r.load.Workers, r.load.Big = variant, 3, 100
	for range cuts {
		d := plugIn(t, held, dir)
		n := r.start(0)
		r.await(n)
		rest(t.Context(), time.Duration(200+rand.IntN(500))*time.Millisecond)
		began := time.Now()
		held = d.cut()
		r.acc.fault(n.life, "power failure", began)
		r.kill(0)
		r.acc.forget(n.life, began)
		d.pull(dir)
	}
	d := plugIn(t, held, dir)
	defer d.pull(dir)
	return r.finish(40 * time.Second), cuts
}

// TestFaultsDiskErrors: the disk under the embedded store answers every access
// with EIO, and the process lives on. What it acknowledges from then on counts.
func TestFaultsDiskErrors(t *testing.T) {
	t.Parallel()
	needRoot(t, "mounting a drive")
	runs := times(2, 30)
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	held := formatted(t, 96)
	r := newRig(t, place{Dir: filepath.Join(dir, "data"), Lease: 2 * time.Second}, busyLoad)
	for range runs {
		d := plugIn(t, held, dir)
		n := r.start(0)
		r.await(n)
		rest(t.Context(), time.Duration(200+rand.IntN(300))*time.Millisecond)
		began := time.Now()
		held = d.cut()
		within(t, 20*time.Second, "puts are refused", func() bool { return r.acc.count(evRefused) > 0 })
		rest(t.Context(), 300*time.Millisecond)
		r.acc.fault(n.life, "EIO", began)
		r.kill(0)
		d.pull(dir)
	}
	d := plugIn(t, held, dir)
	defer d.pull(dir)
	result(t, "EIO from the disk, the process lives on", "disk", runs, r.finish(40*time.Second))
}

// TestFaultsDiskFull: the disk under the embedded store fills up with what is
// not ours, and is emptied again. Mail is refused meanwhile, what is queued is
// delivered, and mail is taken again without a restart.
func TestFaultsDiskFull(t *testing.T) {
	t.Parallel()
	dir, _ := mount(t, 128)
	l := busyLoad
	l.Big = 10
	r := newRig(t, place{Dir: filepath.Join(dir, "data"), Lease: 15 * time.Second}, l)
	r.await(r.start(0))
	runs := times(2, 30)
	for range runs {
		acked := r.acc.count(evAck)
		within(t, 30*time.Second, "mail is taken", func() bool { return r.acc.count(evAck) > acked+50 })
		f, err := os.Create(filepath.Join(dir, "ballast"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 64<<10))
		}
		f.Close()
		full := r.acc.count(evFull)
		within(t, 30*time.Second, "puts are refused as full", func() bool { return r.acc.count(evFull) > full+20 })
		settled := r.acc.count(evSettled)
		rest(t.Context(), 300*time.Millisecond)
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d recipients were delivered on the full disk", r.acc.count(evSettled)-settled)
	}
	acked := r.acc.count(evAck)
	within(t, 30*time.Second, "mail is taken again", func() bool { return r.acc.count(evAck) > acked+50 })
	r.stopAll()
	result(t, "disk full, and emptied again", "disk", runs, r.finish(40*time.Second))
}

// TestFaultsPowerRedis: the power of Redis' host fails. The nodes' goes on.
func TestFaultsPowerRedis(t *testing.T) {
	t.Parallel()
	needRoot(t, "mounting a drive")
	v, cuts := powerRedis(t, times(3, 40), "always")
	result(t, "power failure of Redis' host, appendfsync always", "redis", cuts, v)
}

// powerRedis cuts the power under a Redis that syncs so.
func powerRedis(t *testing.T, cuts int, fsync string) (*verdict, int) {
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := plugIn(t, formatted(t, 64), dir)
	srv := redistest.Start(t, "--dir", dir, "--auto-aof-rewrite-min-size", "8mb")
	t.Cleanup(srv.Kill)
	r := newRig(t, place{URL: srv.URL(), Lease: 15 * time.Second, Service: fsync != "always"}, busyLoad)
	r.load.Flip, r.load.Big = [2]int{0, 2}, 100
	r.startAll(2)
	for range cuts {
		srv.Must("CONFIG", "SET", "appendfsync", fsync)
		acked := r.acc.count(evAck)
		within(t, 30*time.Second, "mail is taken", func() bool { return r.acc.count(evAck) > acked+50 })
		rest(context.Background(), time.Duration(rand.IntN(400))*time.Millisecond)
		began := time.Now()
		held := d.cut()
		srv.Kill()
		d.pull(dir)
		d = plugIn(t, held, dir)
		srv.Restart()
		r.acc.fault("", "power failure of Redis", began)
	}
	r.stopAll()
	v := r.finish(40 * time.Second)
	srv.Kill()
	return v, cuts
}
