//go:build linux

package disk

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// ballast takes every octet of the store's file system.
func ballast(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "ballast"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fillUp(f)
	return f
}

func fillUp(f *os.File) {
	for n := 1 << 20; n > 0; {
		if _, err := f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
}

// TestFullSettle: nothing is free, and nobody makes room. What is queued can
// be settled out of the reserve, its segments go, and then mail is accepted
// again: also when the bounce of a delivery has to be queued.
func TestFullSettle(t *testing.T) {
	for _, size := range []int{100, 20_000} {
		dir := smallDir(t, "16m")
		s := open(t, dir, Options{MinFree: -1})
		var leases []*queue.Lease
		for range 60 {
			mustPut(t, s, size, "a@example.org")
		}
		for range 60 {
			l, err := s.Claim(ctx, mail.Old, 1)
			if err == nil {
				err = s.Renew(ctx, l, true)
			}
			if err != nil {
				t.Fatal(err)
			}
			leases = append(leases, l)
		}
		f := ballast(t, dir)
		for i := 0; ; i++ { // what is left in the log is used up
			if _, err := tryPut(t, s, 3000, "b@example.org"); errors.Is(err, queue.ErrFull) {
				break
			}
			if i > 3000 {
				t.Fatal("the disk does not become full")
			}
		}
		fillUp(f)
		if err := s.Room(0); !errors.Is(err, queue.ErrFull) {
			t.Errorf("room on a full disk: %v", err)
		}
		if _, _, err := s.SetUser(ctx, router.User{Address: "c@example.org", Kind: router.KindMailbox, State: router.StateNew}, router.Change{By: "t"}); err != nil {
			t.Errorf("set user: %v", err)
		}
		for i, l := range leases {
			o := queue.Outcome{N: 0, Kind: queue.Done}
			var msgs []queue.NewMessage
			if i%2 == 0 {
				o.Kind = queue.Fail
				msgs = append(msgs, queue.NewMessage{Envelope: envelope(t, "sender@example.com"), Body: make([]byte, 2000)})
			}
			if err := s.Settle(ctx, l, []queue.Outcome{o}, msgs...); err != nil {
				t.Fatalf("%d octets: settle number %d on a full disk: %v", size, i, err)
			}
		}
		for {
			st, err := s.Stats(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if st.Messages == 0 {
				break
			}
			l, err := s.Claim(ctx, mail.Old, 1)
			if err == nil {
				err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		awaitRoom(t, s)
		mustPut(t, s, 3000, "a@example.org")
		if fi, err := os.Stat(filepath.Join(dir, reserveName)); err != nil || fi.Size() != 2<<20 {
			t.Errorf("the reserve was not made again: %v, %v", fi, err)
		}
	}
}

// TestFullOfMail: the queue itself takes all of the disk, down to what the log
// and the database need. All of it leaves, out of the reserve, and what a start
// that was cut short left of a new reserve does not stay.
func TestFullOfMail(t *testing.T) {
	for _, size := range []int{10, 5000} {
		if raceEnabled && size == 10 {
			continue // many thousands of messages: half a minute
		}
		dir := smallDir(t, "40m")
		if err := os.WriteFile(filepath.Join(dir, reserveName+".new"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, Options{MinFree: -1})
		if _, err := os.Stat(filepath.Join(dir, reserveName+".new")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the half of a reserve stays: %v", err)
		}
		f := ballast(t, dir)
		if err := f.Truncate(20 << 20); err != nil {
			t.Fatal(err)
		}
		var full atomic.Bool
		var queued atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for !full.Load() {
					switch _, err := tryPut(t, s, size, "a@example.org"); {
					case errors.Is(err, queue.ErrFull):
						full.Store(true)
					case err != nil:
						t.Error(err)
						full.Store(true)
					default:
						queued.Add(1)
					}
				}
			})
		}
		wg.Wait()
		fillUp(f)
		n := queued.Load()
		t.Logf("%d messages of %d octets fill the disk", n, size)
		for ; n > 0; n-- {
			l, err := s.Claim(ctx, mail.Old, 1)
			if err == nil {
				err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
			}
			if err != nil {
				t.Fatalf("%d are left: %v", n, err)
			}
		}
		awaitRoom(t, s)
		mustPut(t, s, 3000, "a@example.org")
	}
}

// TestFullRoom: a store that leaves no room to others says that it is full
// while it is, and stops saying so by itself.
func TestFullRoom(t *testing.T) {
	dir := smallDir(t, "16m")
	s := open(t, dir, Options{MinFree: -1})
	mustPut(t, s, 100, "a@example.org")
	if err := s.Room(0); err != nil {
		t.Fatal(err)
	}
	f := ballast(t, dir)
	for {
		if _, err := tryPut(t, s, 40_000, "a@example.org"); errors.Is(err, queue.ErrFull) {
			break
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 120 {
		fillUp(f)
		if err := s.Room(0); !errors.Is(err, queue.ErrFull) {
			t.Fatalf("room on a full disk: %v", err)
		}
		<-tick.C
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	awaitRoom(t, s)
	mustPut(t, s, 40_000, "a@example.org")
}

// TestFullOpen: a store is opened on a full disk, thanks to its reserve, and
// what is queued leaves.
func TestFullOpen(t *testing.T) {
	dir := smallDir(t, "16m")
	s := open(t, dir, Options{MinFree: -1})
	for range 20 {
		mustPut(t, s, 30_000, "a@example.org")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ballast(t, dir)
	s = open(t, dir, Options{MinFree: -1})
	if err := s.Room(0); !errors.Is(err, queue.ErrFull) {
		t.Errorf("room on a full disk: %v", err)
	}
	for range 20 {
		l, err := s.Claim(ctx, mail.Old, 1)
		if err == nil {
			err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestDrainedSegment: the segment that is written to goes when nothing in it
// is live any more and it has some size.
func TestDrainedSegment(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	size := func() (n int64) {
		paths, err := filepath.Glob(filepath.Join(dir, "bodies", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			fi, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			n += fi.Size()
		}
		return n
	}
	for range 30 {
		mustPut(t, s, 60_000, "a@example.org")
	}
	for range 30 {
		l, err := s.Claim(ctx, mail.Old, 1)
		if err == nil {
			err = readBody(ctx, s, l)
		}
		if err == nil {
			err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := size(); n != 0 {
		t.Errorf("%d octets are left of a drained queue", n)
	}
	mustPut(t, s, 100, "a@example.org")
	if l, err := s.Claim(ctx, mail.Old, 1); err != nil || readBody(ctx, s, l) != nil {
		t.Fatal("after the segment went", err)
	}
}
