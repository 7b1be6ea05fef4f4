//go:build linux

package disk

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// smallDir gives a directory on a file system of its own.
func smallDir(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: a small file system can be mounted by root only; run this test as root")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Skipf("SKIPPED: a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFullDisk fills a real file system to the last octet: in whatever write
// that shows, the store gives ErrFull, goes on, and has all it acknowledged.
func TestFullDisk(t *testing.T) {
	dir := smallDir(t, "6m")
	s := open(t, dir, Options{MinFree: -1, segmentSize: 256 << 10, checkpointPages: 300})
	acked := map[mail.ID]*mail.Envelope{}
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	for round := range 6 {
		for n := 1 << 20; n > 0; {
			if _, err := ballast.Write(make([]byte, n)); err != nil {
				n /= 2
			}
		}
		room := int64(round) * 100 << 10
		if fi, err := ballast.Stat(); err != nil || ballast.Truncate(max(0, fi.Size()-room)) != nil {
			t.Fatal("make room", err)
		}
		refused := 0
		for i := 0; refused < 20; i++ {
			e, err := tryPut(t, s, []int{10, 3000, 100, 60000}[i%4], "a@example.org")
			switch {
			case err == nil:
				acked[e.ID] = e
			case errors.Is(err, queue.ErrFull):
				refused++
			default:
				t.Fatalf("round %d: put: %v", round, err)
			}
			if i > 3000 {
				t.Fatal("the disk does not become full")
			}
		}
		if err := ballast.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := ballast.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		awaitRoom(t, s)
		for range len(acked) * 9 / 10 {
			l, err := s.Claim(ctx, mail.Old, 1)
			if err == nil {
				err = readBody(ctx, s, l)
			}
			if err == nil {
				err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
			}
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			delete(acked, l.Envelope.ID)
		}
	}
	s.Close()
	s = open(t, dir, Options{MinFree: -1})
	for _, e := range acked {
		if err := readBody(ctx, s, &queue.Lease{Envelope: e}); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := s.Stats(ctx); err != nil || st.Messages != len(acked) {
		t.Fatalf("%+v, want %d messages: %v", st, len(acked), err)
	}
}

// TestFullCheckpoint: the write-ahead log cannot be moved into the database,
// which has no room to grow. The log keeps what it has until there is room.
func TestFullCheckpoint(t *testing.T) {
	dir := smallDir(t, "12m")
	var tried atomic.Int64
	s := open(t, dir, Options{MinFree: -1, checkpointPages: 3060, CrashPoint: func(name string) {
		if name == "checkpoint" {
			tried.Add(1)
		}
	}})
	var all []*mail.Envelope
	for range 330 {
		all = append(all, mustPut(t, s, 10, "a@example.org"))
	}
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 1 << 20; n > 0; {
		if _, err := f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
	if tried.Load() != 0 {
		t.Fatal("a checkpoint was made before the disk was full")
	}
	for range 60 { // they fill the log's count, not the log
		if _, err := tryPut(t, s, 1, "a@example.org"); err != nil && !errors.Is(err, queue.ErrFull) {
			t.Fatalf("put: %v", err)
		}
		if s.Err() != nil {
			t.Fatalf("a full disk stopped the store: %v", s.Err())
		}
	}
	before := tried.Load()
	if before == 0 {
		t.Fatal("no checkpoint was tried")
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	awaitRoom(t, s)
	for tried.Load() < before+2 { // at the second the first is over
		all = append(all, mustPut(t, s, 10, "a@example.org"))
	}
	if fi, err := os.Stat(filepath.Join(dir, dbName)); err != nil || fi.Size() < 60<<10 {
		t.Fatalf("the log was not moved into the database: %v, %d octets", err, fi.Size())
	}
	for _, e := range all {
		if _, err := s.Get(ctx, e.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullOwnWork: what the store has to write by itself waits while the disk
// is full, instead of trying without a pause, and is done when there is room.
func TestFullOwnWork(t *testing.T) {
	dir := smallDir(t, "6m")
	var tried atomic.Int64
	s := open(t, dir, Options{MinFree: -1, reserve: -1, CrashPoint: func(name string) {
		if name == "crash.before-commit" {
			tried.Add(1)
		}
	}})
	e := mustPut(t, s, 10, "a@example.org")
	l, err := s.Claim(ctx, mail.Old, 1)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 1 << 20; n > 0; {
		if _, err := f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
	s.abandon(l)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for tried.Load() == 0 {
		<-tick.C
	}
	for range 500 {
		<-tick.C
	}
	if n := tried.Load(); n > 3 {
		t.Fatalf("tried %d times within half a second", n)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	l, err = s.Claim(ctx, mail.Old, 1)
	if err != nil || l.Envelope.ID != e.ID || l.Items[0].Crashes != 1 {
		t.Fatal(err, l)
	}
}
