package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/queue"
	"crossfade/store/storetest"
)

// TestFaultsRedisKill: redis-server is killed and started again, under three
// nodes that work.
func TestFaultsRedisKill(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	r := newRig(t, place{URL: srv.URL(), Lease: 15 * time.Second}, busyLoad)
	r.load.Flip = [2]int{0, 3}
	r.startAll(3)
	kills := times(8, 100)
	for range kills {
		rest(t.Context(), time.Duration(150+rand.IntN(350))*time.Millisecond)
		began := time.Now()
		srv.Kill()
		rest(t.Context(), time.Duration(rand.IntN(300))*time.Millisecond)
		srv.Restart()
		r.acc.fault("", "Redis away", began)
	}
	rest(t.Context(), time.Second)
	r.stopAll()
	result(t, "kill -9 of redis-server, appendfsync always", "redis", kills, r.finish(40*time.Second))
}

// TestFaultsRedisStandsStill: redis-server is frozen, and goes on.
func TestFaultsRedisStandsStill(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	r := newRig(t, place{URL: srv.URL(), Lease: 15 * time.Second}, busyLoad)
	r.load.Flip = [2]int{0, 2}
	r.startAll(2)
	runs := times(3, 40)
	for range runs {
		rest(t.Context(), time.Duration(150+rand.IntN(350))*time.Millisecond)
		began := time.Now()
		srv.Stop()
		rest(t.Context(), time.Duration(300+rand.IntN(700))*time.Millisecond)
		srv.Cont()
		r.acc.fault("", "Redis away", began)
	}
	rest(t.Context(), 300*time.Millisecond)
	r.stopAll()
	result(t, "SIGSTOP of redis-server, then SIGCONT", "redis", runs, r.finish(30*time.Second))
}

// TestFaultsCutConnections: all connections to Redis break at any moment, with
// what is on its way in either direction.
func TestFaultsCutConnections(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	proxy := redistest.NewProxy(t, srv.Addr)
	r := newRig(t, place{URL: proxy.URL(), Lease: 15 * time.Second}, busyLoad)
	r.load.Flip = [2]int{0, 2}
	r.startAll(2)
	runs := times(60, 1000)
	for range runs {
		rest(t.Context(), time.Duration(5+rand.IntN(60))*time.Millisecond)
		began := time.Now()
		proxy.Cut()
		r.acc.fault("", "connections cut", began)
	}
	rest(t.Context(), 300*time.Millisecond)
	r.stopAll()
	result(t, "all connections to Redis cut", "redis", runs, r.finish(30*time.Second))
}

// TestFaultsMaxmemory: Redis is full. Mail is refused for now, what is queued
// is delivered, and then mail is taken again.
func TestFaultsMaxmemory(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	l := busyLoad
	l.Workers, l.Pause, l.Big, l.Flip = 0, 0, 5, [2]int{0, 0}
	r := newRig(t, place{URL: srv.URL(), Lease: 15 * time.Second}, l)
	limit := func(add int) {
		used, _ := strconv.Atoi(srv.Info("used_memory"))
		srv.Must("CONFIG", "SET", "maxmemory", used+add)
	}
	limit(20 << 20)
	r.inProcess("fill", l, func(ctx context.Context, s storetest.Store) {
		within(t, 30*time.Second, "puts are refused", func() bool { return r.acc.count(evFull) >= 5 })
		within(t, 5*time.Second, "Room says that Redis is full", func() bool { return errors.Is(s.Room(0), queue.ErrFull) })
	})
	// Now Redis itself refuses, before anybody has asked it how full it is.
	l.Putters = 0
	r.inProcess("over", l, func(ctx context.Context, s storetest.Store) {
		srv.Must("CONFIG", "SET", "maxmemory", 0)
		within(t, 5*time.Second, "room", func() bool { return s.Room(0) == nil })
		limit(-1 << 20)
		w := load{note: func(event) {}}
		w.note = func(e event) { e.who = "over"; r.acc.note(e) }
		for _, size := range []int{300, 300 << 10} {
			if err := w.putOne(ctx, s, w.envelope(userKey(0)), size); !errors.Is(err, queue.ErrFull) {
				t.Errorf("a put of %d octets into a full Redis: %v, want ErrFull", size, err)
			}
		}
	})
	waiting := r.acc.count(evAck)
	l.Workers = 3
	r.inProcess("drain", l, func(ctx context.Context, s storetest.Store) {
		within(t, 30*time.Second, "what is queued is delivered while Redis is over its limit", func() bool {
			st, err := s.Stats(ctx)
			return err == nil && st.Messages == 0
		})
		if n := r.acc.count(evSettled); n < waiting {
			t.Errorf("%d recipients were delivered, %d messages were waiting", n, waiting)
		}
	})
	limit(20 << 20)
	before := r.acc.count(evAck)
	l.Putters, l.Big = 2, 20 // long bodies stay for a minute after their delivery
	r.inProcess("again", l, func(ctx context.Context, s storetest.Store) {
		within(t, time.Minute, "mail is taken again", func() bool { return r.acc.count(evAck) > before+100 })
	})
	r.load.Workers = 3
	result(t, "Redis at maxmemory", "redis", 3, r.finish(30*time.Second))
}

// within polls until it is so.
func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for !ok() {
		if !rest(ctx, 10*time.Millisecond) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// mount gives a small file system of its own: an ext4 in a file, or nothing
// where the kernel has none. The file is what a disk would hold.
func mount(t testing.TB, megabytes int) (dir, image string) {
	t.Helper()
	needRoot(t, "mounting a file system")
	base := t.TempDir()
	dir, image = filepath.Join(base, "mnt"), filepath.Join(base, "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(int64(megabytes)<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		missing(t, "mkfs.ext4: %v\n%s", err, out)
	}
	attach(t, image, dir)
	return dir, image
}

// attach mounts an image until the test's end.
func attach(t testing.TB, image, dir string) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		missing(t, "mount -o loop: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		for range 50 {
			if err := syscall.Unmount(dir, 0); err == nil || errors.Is(err, syscall.EINVAL) {
				return
			}
			rest(context.Background(), 100*time.Millisecond)
		}
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	})
}

// missing is for what root may not do here: the kernel forbids it, as it does in
// containers, or a tool lacks.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	what := fmt.Sprintf(format, args...)
	if _, err := os.Stat("/dev/loop-control"); err == nil && os.Getenv("CI") != "" {
		t.Fatal(what)
	}
	t.Skipf("the kernel does not let us mount a file system here, so this is NOT tested: %s", what)
}

// TestFaultsAOFDiskFull: the disk under Redis fills up. Redis ends rather than
// answer what it cannot write; once there is room and it runs again, all that
// it acknowledged is there.
func TestFaultsAOFDiskFull(t *testing.T) {
	t.Parallel()
	runs := times(2, 20)
	dir, _ := mount(t, 256)
	srv := redistest.Start(t, "--dir", dir, "--auto-aof-rewrite-percentage", "0")
	l := busyLoad
	l.Big = 10
	r := newRig(t, place{URL: srv.URL(), Lease: 30 * time.Second}, l)
	r.load.Flip = [2]int{0, 2}
	r.startAll(2)
	for run := range runs {
		rest(t.Context(), 300*time.Millisecond)
		began := time.Now()
		ballast := filepath.Join(dir, "ballast")
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 256<<10))
		}
		f.Close()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if run%2 == 1 { // a little room, so that it ends in the middle of a write
			info, err := os.Stat(ballast)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(ballast, max(0, info.Size()-1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		within(t, 60*time.Second, "Redis notices the full disk", func() bool {
			_, err := srv.Do("PING")
			return err != nil
		})
		refused := r.acc.count(evRefused)
		rest(t.Context(), 500*time.Millisecond)
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		srv.Restart()
		r.acc.fault("", "Redis away", began)
		acked := r.acc.count(evAck)
		within(t, time.Minute, "mail is taken again", func() bool { return r.acc.count(evAck) > acked })
		t.Logf("run %d: %d puts were refused meanwhile", run, r.acc.count(evRefused)-refused)
	}
	r.stopAll()
	result(t, "disk of the AOF full", "redis", runs, r.finish(40*time.Second))
}

// TestFaultsClock: the clock of Redis jumps by an hour, forth and back. It
// cannot be set in a test; what the store remembers of it can, and from there a
// jump looks the same. (Jumps of a node's clock: leases are counted on the
// monotonic one, and due times are Redis'.)
func TestFaultsClock(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	r := newRig(t, place{URL: srv.URL(), Lease: 15 * time.Second}, busyLoad)
	r.load.Flip = [2]int{0, 2}
	r.startAll(2)
	runs := times(8, 200)
	for i := range runs {
		rest(t.Context(), time.Duration(100+rand.IntN(200))*time.Millisecond)
		by := time.Hour
		if i%2 == 1 {
			by = -by
		}
		srv.Must("HSET", "cx:{q}:s", "now", time.Now().Add(by).UnixMilli())
	}
	rest(t.Context(), 300*time.Millisecond)
	r.stopAll()
	result(t, "jumps of Redis' clock by an hour, forth and back", "redis", runs, r.finish(30*time.Second))
}
