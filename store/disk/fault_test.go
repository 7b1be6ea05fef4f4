package disk

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/storetest"
)

var ctx = context.Background()

func tryPut(t testing.TB, s *Store, n int, rcpts ...string) (*mail.Envelope, error) {
	t.Helper()
	e := envelope(t, rcpts...)
	return e, s.Put(ctx, e, bytes.NewReader(pattern(e.ID, n)))
}

func mustPut(t testing.TB, s *Store, n int, rcpts ...string) *mail.Envelope {
	t.Helper()
	e, err := tryPut(t, s, n, rcpts...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestFailedSync: after a failed sync nothing is synced again and every call
// says that the store is closed, and why.
func TestFailedSync(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	boom := errors.New("input/output error")
	var bad atomic.Bool
	var after atomic.Int64
	for name, size := range map[string]int{"segment": 100, "own file": 1<<20 + 1} {
		t.Run(name, func(t *testing.T) {
			bad.Store(false)
			after.Store(0)
			dir := t.TempDir()
			s := open(t, dir, Options{sync: func(f *os.File) error {
				if bad.Load() {
					after.Add(1)
					return boom
				}
				return dataSync(f)
			}})
			first := mustPut(t, s, size, "a@example.org")
			bad.Store(true)
			lost, err := tryPut(t, s, size, "a@example.org")
			if !errors.Is(err, queue.ErrClosed) || !errors.Is(err, boom) {
				t.Fatalf("error is %v", err)
			}
			<-s.Failed()
			if !errors.Is(s.Err(), boom) || !errors.Is(s.Room(1), queue.ErrClosed) {
				t.Fatalf("Err %v, Room %v", s.Err(), s.Room(1))
			}
			if _, err := s.Claim(ctx, mail.Old, 1); !errors.Is(err, queue.ErrClosed) || !errors.Is(err, boom) {
				t.Fatalf("claim: %v", err)
			}
			if _, err := tryPut(t, s, 5, "a@example.org"); !errors.Is(err, boom) {
				t.Fatalf("put: %v", err)
			}
			if n := after.Load(); n != 1 {
				t.Fatalf("synced %d times after the failure", n)
			}
			s.Close()
			s = open(t, dir, Options{})
			if _, err := s.Get(ctx, first.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(ctx, lost.ID); !errors.Is(err, queue.ErrNotFound) {
				t.Fatalf("what was not acknowledged is there: %v", err)
			}
			s.Close()
		})
	}
}

func TestFailedCommit(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	boom := errors.New("commit failed")
	var bad atomic.Bool
	dir := t.TempDir()
	s := open(t, dir, Options{beforeCommit: func() error {
		if bad.Load() {
			return boom
		}
		return nil
	}})
	e := mustPut(t, s, 10, "a@example.org")
	l, err := s.Claim(ctx, mail.Old, 1)
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() {
		_, err := s.Claim(ctx, mail.New, 1)
		waiting <- err
	}()
	bad.Store(true)
	if err := s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}}); !errors.Is(err, queue.ErrClosed) || !errors.Is(err, boom) {
		t.Fatalf("settle: %v", err)
	}
	if err := <-waiting; !errors.Is(err, boom) {
		t.Fatalf("a waiting claim: %v", err)
	}
	if _, _, err := s.SetUser(ctx, router.User{Address: "x"}, router.Change{}); !errors.Is(err, boom) {
		t.Fatalf("set user: %v", err)
	}
	s.Close()
	s = open(t, dir, Options{})
	if _, err := s.Get(ctx, e.ID); err != nil {
		t.Fatal(err)
	}
	if d := s.InDoubt(); len(d) != 1 || d[0].ID != e.ID || d[0].Sending || d[0].Route != mail.Old {
		t.Fatalf("in doubt: %+v", d)
	}
	s.Close()
}

// TestFull: no room while a body is written passes.
func TestFull(t *testing.T) {
	var full atomic.Bool
	s := open(t, t.TempDir(), Options{write: func(*os.File) error {
		if full.Load() {
			return &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
		}
		return nil
	}})
	for _, size := range []int{100, 1<<20 + 100} {
		before := mustPut(t, s, size, "a@example.org")
		full.Store(true)
		e, err := tryPut(t, s, size, "a@example.org")
		if !errors.Is(err, queue.ErrFull) {
			t.Fatalf("put: %v", err)
		}
		l, err := s.Claim(ctx, mail.Old, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}}); err != nil {
			t.Fatalf("a full disk keeps mail from leaving: %v", err)
		}
		full.Store(false)
		if _, err := s.Get(ctx, e.ID); !errors.Is(err, queue.ErrNotFound) {
			t.Fatal("it is there")
		}
		awaitRoom(t, s)
		after := mustPut(t, s, size, "a@example.org")
		_ = before
		if err := readBody(ctx, s, &queue.Lease{Envelope: after}); err != nil {
			t.Fatal(err)
		}
		l, err = s.Claim(ctx, mail.Old, 1)
		if err == nil {
			err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if st, _ := s.Stats(ctx); st.Messages != 0 || st.Bytes != 0 {
		t.Fatalf("left: %+v", st)
	}
}

// TestFullDatabase: SQLite has no room for the commit, which is rolled back.
func TestFullDatabase(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	mustPut(t, s, 10, "a@example.org")
	v, _, err := s.db.ints("PRAGMA page_count") // the writer is idle
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.db.ints(fmt.Sprintf("PRAGMA max_page_count=%d", v[0]+3)); err != nil {
		t.Fatal(err)
	}
	var id mail.ID
	for err = nil; err == nil; {
		var e *mail.Envelope
		e, err = tryPut(t, s, 10, "a@example.org", "b@example.org")
		id = e.ID
	}
	if !errors.Is(err, queue.ErrFull) || s.Err() != nil {
		t.Fatalf("put: %v; the store: %v", err, s.Err())
	}
	if _, err := s.Get(ctx, id); !errors.Is(err, queue.ErrNotFound) {
		t.Fatal("half of it is there")
	}
	l, err := s.Claim(ctx, mail.Old, 1)
	if err == nil {
		err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.db.ints("PRAGMA max_page_count=1000000"); err != nil {
		t.Fatal(err)
	}
	awaitRoom(t, s)
	mustPut(t, s, 10, "a@example.org")
}

func TestLimits(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxBytes: 10000})
	mustPut(t, s, 6000, "a@example.org")
	if _, err := tryPut(t, s, 6000, "a@example.org"); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("put: %v", err)
	}
	if err := s.Room(6000); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("room: %v", err)
	}
	mustPut(t, s, 1000, "a@example.org")
	s2 := open(t, t.TempDir(), Options{MinFree: 1 << 60})
	if _, err := tryPut(t, s2, 1, "a@example.org"); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("put: %v", err)
	}
	if st, _ := s2.Stats(ctx); st.Free <= 0 {
		t.Fatalf("stats: %+v", st)
	}
}

// TestBudget: bodies that arrive at once stay within the budget of memory.
func TestBudget(t *testing.T) {
	s := open(t, t.TempDir(), Options{MemoryBudget: 64 << 10})
	var wg sync.WaitGroup
	pr, pw := io.Pipe()
	for range 20 {
		wg.Go(func() {
			e := mustPut(t, s, 300<<10, "a@example.org")
			if err := readBody(ctx, s, &queue.Lease{Envelope: e}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Go(func() {
		e := envelope(t, "a@example.org")
		if err := s.Put(ctx, e, pr); err != nil || e.Size != 5 {
			t.Error(err, e.Size)
		}
	})
	io.WriteString(pw, "hello")
	pw.Close()
	wg.Wait()
	if b := s.budget.Load(); b != 64<<10 {
		t.Fatalf("%d octets of the budget are left", b)
	}
}

// powerLoss copies a store as a disk would show it after the power failed:
// body files end where they were last synced.
func powerLoss(t *testing.T, from string, synced map[string]int64) string {
	t.Helper()
	to := t.TempDir()
	err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(from, path)
		if err != nil || rel == "." {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil || rel == "lock" || strings.HasSuffix(rel, "-shm") {
			return err
		}
		if strings.HasPrefix(rel, "bodies") {
			b = b[:min(int64(len(b)), synced[path])]
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// TestPowerLoss sees that what was acknowledged had been synced, and that the
// same check finds a store that does not sync.
func TestPowerLoss(t *testing.T) {
	for name, honest := range map[string]bool{"synced": true, "broken: not synced": false} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			synced := map[string]int64{}
			s := open(t, t.TempDir(), Options{segmentSize: 64 << 10, sync: func(f *os.File) error {
				mu.Lock()
				defer mu.Unlock()
				if fi, err := f.Stat(); err == nil && honest {
					synced[f.Name()] = fi.Size()
				}
				return nil
			}})
			c := storetest.NewChecker()
			var ids []*mail.Envelope
			for i := range 40 {
				e := mustPut(t, s, []int{10, 4000, 1<<20 + 1}[i%3], "a@example.org")
				c.Note(fmt.Sprintf("offer %s 1", e.ID))
				c.Note("ack " + string(e.ID))
				ids = append(ids, e)
			}
			s2 := open(t, powerLoss(t, s.dir, synced), Options{})
			left, err := storetest.Left(ctx, s2)
			if err != nil {
				t.Fatal(err)
			}
			var whole []queue.Entry // what can be delivered
			for _, e := range left {
				if readBody(ctx, s2, &queue.Lease{Envelope: e.Envelope}) == nil {
					whole = append(whole, e)
				}
			}
			r := c.Check(whole)
			if honest && !r.Clean() {
				t.Fatalf("%+v", r)
			}
			if !honest && len(r.Lost) == 0 {
				t.Fatal("a store that does not sync was not found out")
			}
		})
	}
}

// TestStaleRoute proves that the check of a flip sees a store that routes from
// a cache.
func TestStaleRoute(t *testing.T) {
	if err := storetest.FlipCheck(ctx, open(t, t.TempDir(), Options{})); err != nil {
		t.Fatal(err)
	}
	if err := storetest.FlipCheck(ctx, open(t, t.TempDir(), Options{staleRoute: true})); err == nil {
		t.Fatal("a store that routes from a cache was not found out")
	} else {
		t.Log(err)
	}
}

// TestThreeKills: what was being delivered at three kills in a row is parked.
func TestThreeKills(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	e := mustPut(t, s, 10, "a@example.org")
	for i := range queue.MaxCrashes {
		l, err := s.Claim(ctx, mail.Old, 1)
		if err != nil || l.Items[0].Crashes != i {
			t.Fatal(err, l)
		}
		if err := s.Renew(ctx, l, true); err != nil {
			t.Fatal(err)
		}
		copyTo := t.TempDir()
		if err := os.CopyFS(copyTo, os.DirFS(dir)); err != nil { // as a kill would leave it
			t.Fatal(err)
		}
		s.Close()
		dir = copyTo
		s = open(t, dir, Options{})
		if d := s.InDoubt(); len(d) != 1 || !d[0].Sending || d[0].ID != e.ID {
			t.Fatalf("in doubt: %+v", d)
		}
	}
	got, err := s.Get(ctx, e.ID)
	if err != nil || got.Rcpts[0].State != queue.Parked || !strings.HasPrefix(got.Rcpts[0].LastReply, "three deliveries ended in a crash") {
		t.Fatal(err, got)
	}
}

// TestLocked: an operator's transaction in sqlite3 holds writes up and breaks
// nothing; reading beside it works, and the view for people does.
func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if err := s.do(&op{plan: func() error { return nil }, name: "x", alone: true}); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, 10, "a@example.org")
	if _, _, err := s.db.ints("PRAGMA busy_timeout=50"); err != nil { // the writer is idle
		t.Fatal(err)
	}
	c, err := openConn(dsn(dir, false))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := c.run("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if _, err := tryPut(t, s, 10, "a@example.org"); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("put: %v", err)
	}
	if _, err := c.run("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, 10, "a@example.org")
	var seen []string
	err = c.each(func(cols []driver.Value) error {
		seen = append(seen, asString(cols[0])+" "+asString(cols[1])+" "+asString(cols[2]))
		return nil
	}, "SELECT recipient, sender, state FROM queue")
	if err != nil || len(seen) != 2 || seen[0] != "a@example.org sender@example.com queued" {
		t.Fatal(err, seen)
	}
}
