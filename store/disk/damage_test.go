package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/storetest"
)

func TestCorrupt(t *testing.T) {
	for name, size := range map[string]int{"segment": 5000, "own file": 1<<20 + 5000} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			e := mustPut(t, s, size, "a@example.org")
			whole := mustPut(t, s, 100, "a@example.org")
			s.Close()
			hurt(t, s, e.ID, 1000)
			s = open(t, dir, Options{})
			r, err := s.Open(ctx, e.ID)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); !errors.Is(err, queue.ErrCorrupt) || n != int64(size) {
				t.Fatalf("read %d: %v", n, err)
			}
			r.Close()
			if err := readBody(ctx, s, &queue.Lease{Envelope: whole}); err != nil {
				t.Fatal(err)
			}
			s.Close()
			hurt(t, s, e.ID, -20) // the head
			s = open(t, dir, Options{})
			if _, err := s.Open(ctx, e.ID); !errors.Is(err, queue.ErrCorrupt) {
				t.Fatalf("open: %v", err)
			}
			s.Close()
			os.RemoveAll(filepath.Join(dir, "bodies"))
			s = open(t, dir, Options{})
			if _, err := s.Open(ctx, e.ID); !errors.Is(err, queue.ErrCorrupt) {
				t.Fatalf("open without a file: %v", err)
			}
		})
	}
}

// hurt flips a bit of a stored body; the store is closed.
func hurt(t *testing.T, s *Store, id mail.ID, at int64) {
	t.Helper()
	c, err := openConn(dsn(s.dir, false))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	v, found, err := c.ints("SELECT file, pos FROM message WHERE id = ?", string(id))
	if err != nil || !found {
		t.Fatal(err, found)
	}
	ext := "seg"
	if v[1] < 0 {
		ext, v[1] = "body", 0
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "bodies", fmt.Sprintf("%010d.%s", v[0], ext)), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	off := v[1] + headerSize + at
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestBadDatabase(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Close()
	path := filepath.Join(dir, dbName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Clone(whole)
	newer[63] = 99 // user_version is at offset 60
	for name, tt := range map[string]struct {
		data []byte
		want []string
	}{
		"no database": {bytes.Repeat([]byte("garbage "), 1000), []string{path, "PRAGMA integrity_check", "backup"}},
		"newer":       {newer, []string{path, "schema version 99", "newer Crossfade"}},
		"cut short":   {whole[:5000], []string{path, "PRAGMA integrity_check"}},
	} {
		for _, x := range []string{"-wal", "-shm"} {
			os.Remove(path + x)
		}
		if err := os.WriteFile(path, tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, Options{})
		if err == nil {
			s.Close()
			t.Errorf("%s: it was opened", name)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q lacks %q", name, err, w)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Options{}); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("a file as directory: %v", err)
	}
}

// TestCollect: survivors are carried forward, and empty segments go.
func TestCollect(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{segmentSize: 64 << 10})
	var keep []*mail.Envelope
	for i := range 120 {
		e := mustPut(t, s, 4000, fmt.Sprintf("u%d@example.org", i))
		if i%10 == 0 {
			keep = append(keep, e)
			continue
		}
		if _, err := s.Apply(ctx, queue.Filter{IDs: []mail.ID{e.ID}}, queue.Action{Verb: queue.DoDelete}); err != nil {
			t.Fatal(err)
		}
	}
	slow, err := s.Open(ctx, keep[0].ID) // a reader of what is carried away
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadDir(filepath.Join(dir, "bodies"))
	hurtOpen(t, s, keep[1].ID)
	if err := s.Collect(); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadDir(filepath.Join(dir, "bodies"))
	if len(after) >= len(before) {
		t.Fatalf("%d files, then %d", len(before), len(after))
	}
	if b, err := io.ReadAll(slow); err != nil || !bytes.Equal(b, pattern(keep[0].ID, 4000)) {
		t.Fatalf("a reader lost its file: %v", err)
	}
	slow.Close()
	for range 2 {
		for i, e := range keep {
			err := readBody(ctx, s, &queue.Lease{Envelope: e})
			if i == 1 && !errors.Is(err, queue.ErrCorrupt) || i != 1 && err != nil {
				t.Fatalf("body %d: %v", i, err)
			}
		}
		waitParked(t, s, keep[1].ID)
		s.Close()
		s = open(t, dir, Options{segmentSize: 64 << 10})
	}
}

func waitParked(t *testing.T, s *Store, id mail.ID) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 2000 {
		e, err := s.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if e.Rcpts[0].State == queue.Parked {
			return
		}
		<-tick.C
	}
	t.Fatal("a damaged message that the store found is not parked")
}

func hurtOpen(t *testing.T, s *Store, id mail.ID) {
	t.Helper()
	l, err := s.locate(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.files.acquire(l.file)
	if err != nil {
		t.Fatal(err)
	}
	defer s.files.release(f)
	w, err := os.OpenFile(s.files.path(f), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt([]byte("XX"), l.pos+headerSize+500); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedRow: a message whose envelope cannot be read is parked and shown;
// the rest goes on.
func TestDamagedRow(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	bad := mustPut(t, s, 10, "a@example.org")
	good := mustPut(t, s, 10, "b@example.org")
	s.Close()
	c, err := openConn(dsn(dir, false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.run("UPDATE message SET envelope = ? WHERE id = ?", []byte{1, 255, 255}, string(bad.ID)); err != nil {
		t.Fatal(err)
	}
	c.close()
	s = open(t, dir, Options{})
	l, err := s.Claim(ctx, mail.Old, 1)
	if err != nil || l.Envelope.ID != good.ID {
		t.Fatal(err, l)
	}
	waitParked(t, s, bad.ID)
	all, err := storetest.Left(ctx, s)
	if err != nil || len(all) != 2 || all[0].Rcpts[0].Addr.String() != "a@example.org" {
		t.Fatal(err, all)
	}
}

// TestDamagedPage: what is on a damaged page gets an error, the rest goes on.
func TestDamagedPage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{ClaimWindow: 8})
	var ids []mail.ID
	for range 400 {
		ids = append(ids, mustPut(t, s, 10, "a@example.org").ID)
	}
	if _, _, err := s.db.ints("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil { // the writer is idle
		t.Fatal(err)
	}
	path := filepath.Join(dir, dbName)
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, id := range ids[200:] { // an inner page of the tree would damage more
		if at = bytes.Index(db, []byte(id)) / 4096 * 4096; db[at] == 0x0a {
			break
		}
	}
	for i := range 4096 {
		db[at+i] = 0xee
	}
	if err := os.WriteFile(path, db, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.run("PRAGMA shrink_memory"); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, id := range ids {
		_, err := s.Apply(ctx, queue.Filter{IDs: []mail.ID{id}}, queue.Action{Verb: queue.DoPark})
		if err != nil {
			failed++
		}
		if s.Err() != nil {
			t.Fatalf("the store stopped: %v", s.Err())
		}
	}
	mustPut(t, s, 10, "b@example.org")
	if failed == 0 || failed > 200 {
		t.Fatalf("%d of %d failed", failed, len(ids))
	}
	t.Logf("%d of %d failed", failed, len(ids))
}

// TestMisfiled: mail that a kill left under an old route comes out after a
// start, also what waits as held for a user who is not.
func TestMisfiled(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	for range sliceRows + 40 {
		mustPut(t, s, 10, "a@example.org")
	}
	if _, _, err := s.SetUser(ctx, router.User{Address: "a@example.org", Kind: router.KindMailbox, State: router.StateNew}, router.Change{}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	c, err := openConn(dsn(dir, false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.run("UPDATE recipient SET lane = 4 - 3 * (rowid_like % 2), gen = NULL FROM (SELECT id AS i, row_number() OVER () AS rowid_like FROM recipient) WHERE i = id"); err != nil {
		t.Fatal(err)
	}
	c.close()
	s = open(t, dir, Options{})
	for range sliceRows + 40 {
		l, err := s.Claim(ctx, mail.New, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}}); err != nil {
			t.Fatal(err)
		}
	}
	if st, _ := s.Stats(ctx); st.Messages != 0 || len(st.States) != 0 {
		t.Fatalf("left: %+v", st)
	}
}

// TestUnreadable: a file that cannot be opened now is not a damaged message,
// which would be parked: the error passes.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	e := mustPut(t, s, 10, "a@example.org")
	l, err := s.locate(ctx, e.ID)
	if err != nil {
		t.Fatal(err)
	}
	path := s.files.path(s.files.byNum[l.file])
	s.Close()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, path); err != nil { // a loop: ELOOP, as EMFILE would be
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	if _, err := s.Open(ctx, e.ID); err == nil || errors.Is(err, queue.ErrCorrupt) {
		t.Fatalf("open: %v", err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := readBody(ctx, s, &queue.Lease{Envelope: e}); err != nil {
		t.Fatal(err)
	}
}

// TestTornTail: what a kill left at the end of a segment is no alarm when the
// segment is carried forward; garbage in front of live mail is.
func TestTornTail(t *testing.T) {
	for name, behind := range map[string]bool{"torn tail": false, "damage": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			var first *mail.Envelope
			for i := range 20 {
				e := mustPut(t, s, 4000, "a@example.org")
				if i == 0 {
					first = e
					continue
				}
				if i == 19 && behind {
					continue
				}
				if _, err := s.Apply(ctx, queue.Filter{IDs: []mail.ID{e.ID}}, queue.Action{Verb: queue.DoDelete}); err != nil {
					t.Fatal(err)
				}
			}
			l, err := s.locate(ctx, first.ID)
			if err != nil {
				t.Fatal(err)
			}
			path := s.files.path(s.files.byNum[l.file])
			s.Close()
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte("torn"), 50), 19*(4000+headerSize)-150); err != nil {
				t.Fatal(err)
			}
			f.Close()
			var log bytes.Buffer
			s = open(t, dir, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			if err := s.Collect(); err != nil {
				t.Fatal(err)
			}
			if err := readBody(ctx, s, &queue.Lease{Envelope: first}); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); err == nil != behind {
				t.Fatalf("the segment: %v", err)
			}
			s.Close()
			if got := strings.Contains(log.String(), "alarm=true"); got != behind {
				t.Fatalf("alarm %t, want %t:\n%s", got, behind, &log)
			}
		})
	}
}

// TestCollectGone: a segment that went between the look and the carrying is no
// error, which would keep the others from being carried.
func TestCollectGone(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	if err := s.carry(99); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedUser: mail for a user whose row cannot be read is refused whole;
// a message without recipients would be taken for queued by a second Put.
func TestDamagedUser(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	u := router.User{Address: "a@example.org", Kind: router.KindGroup, Targets: []string{"b@example.org"}}
	if _, _, err := s.SetUser(ctx, u, router.Change{}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	c, err := openConn(dsn(dir, false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.run("UPDATE user SET targets = '[broken'"); err != nil {
		t.Fatal(err)
	}
	c.close()
	s = open(t, dir, Options{})
	e, err := tryPut(t, s, 10, "a@example.org")
	if err == nil || s.Err() != nil {
		t.Fatalf("put: %v, store: %v", err, s.Err())
	}
	if err := s.Put(ctx, e, strings.NewReader("x")); err == nil {
		t.Fatal("the second put finds half of the first")
	}
	mustPut(t, s, 10, "b@example.org")
}

// TestDatabaseAway: who moves a damaged database away to repair it still needs
// the bodies. An empty queue beside them is refused, and nothing is removed.
func TestDatabaseAway(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	mustPut(t, s, 10, "a@example.org")
	mustPut(t, s, 1<<20+10, "a@example.org")
	s.Close()
	db, away := filepath.Join(dir, dbName), filepath.Join(t.TempDir(), dbName)
	if err := os.Rename(db, away); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := Open(dir, Options{})
		if err == nil {
			s.Close()
			t.Fatal("it was opened as an empty queue")
		}
		for _, w := range []string{dir, "2 files", "whole directory"} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q lacks %q", err, w)
			}
		}
	}
	if err := os.Rename(away, db); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	left, err := storetest.Left(ctx, s)
	if err != nil || len(left) != 2 {
		t.Fatal(err, left)
	}
	for _, e := range left {
		if err := readBody(ctx, s, &queue.Lease{Envelope: e.Envelope}); err != nil {
			t.Fatal(err)
		}
	}
}
