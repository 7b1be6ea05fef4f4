package disk

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/transfer"
)

// auditBase makes a store with a message of each kind of body, and gives their
// ids.
func auditBase(t *testing.T) (dir string, small, big mail.ID) {
	t.Helper()
	ctx := context.Background()
	dir = filepath.Join(t.TempDir(), "s")
	s := open(t, dir, Options{MinFree: -1})
	if _, _, err := s.SetUser(ctx, router.User{Address: "a@example.org", Kind: router.KindMailbox, State: router.StateOld}, router.Change{By: "x"}); err != nil {
		t.Fatal(err)
	}
	e1, e2 := envelope(t, "a@example.org", "b@example.org"), envelope(t, "a@example.org")
	for e, size := range map[*mail.Envelope]int{e1: 5000, e2: 2 << 20} {
		if err := s.Put(ctx, e, bytes.NewReader(bytes.Repeat([]byte("x"), size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, e1.ID, e2.ID
}

// sql changes the database of a store that rests.
func sql(t *testing.T, dir, stmt string, args ...any) {
	t.Helper()
	c, err := openConn(dsn(dir, false))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if n, err := c.run(stmt, args...); err != nil || n == 0 {
		t.Fatalf("%s: %d rows, %v", stmt, n, err)
	}
}

// contents gives every file of a store, and its records as SQLite has them.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, "-shm") || strings.HasSuffix(path, "-wal") {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestAudit damages each thing on purpose: an audit finds it and changes
// nothing, one with repair makes it whole or parks it, and the store works on.
func TestAudit(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, dir string, small, big mail.ID)
		want string
		left bool // not to be repaired
	}{
		{"lane that there is not", func(t *testing.T, dir string, small, _ mail.ID) {
			sql(t, dir, "UPDATE recipient SET lane = 9 WHERE id = ? AND n = 1", string(small))
		}, transfer.BadLane, false},
		{"rows gone", func(t *testing.T, dir string, small, _ mail.ID) {
			sql(t, dir, "DELETE FROM recipient WHERE id = ?", string(small))
		}, transfer.NoRows, false},
		{"message gone", func(t *testing.T, dir string, small, _ mail.ID) {
			sql(t, dir, "DELETE FROM message WHERE id = ?", string(small))
		}, transfer.NoMessage, false},
		{"message and body gone", func(t *testing.T, dir string, _, big mail.ID) {
			sql(t, dir, "DELETE FROM message WHERE id = ?", string(big))
			remove(t, dir, "*.body")
		}, transfer.NoMessage, false},
		{"envelope damaged", func(t *testing.T, dir string, small, _ mail.ID) {
			sql(t, dir, "UPDATE message SET envelope = x'01ff' WHERE id = ?", string(small))
		}, transfer.BadEnvelope, false},
		{"row beyond its envelope", func(t *testing.T, dir string, small, _ mail.ID) {
			sql(t, dir, "UPDATE recipient SET n = 5 WHERE id = ? AND n = 1", string(small))
		}, transfer.BadEnvelope, false},
		{"body file gone", func(t *testing.T, dir string, _, _ mail.ID) { remove(t, dir, "*.body") }, transfer.NoBody, false},
		{"body damaged", func(t *testing.T, dir string, _, _ mail.ID) {
			name := files1(t, dir, "*.seg")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b[headerSize+100] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, transfer.NoBody, false},
		{"epoch behind the history", func(t *testing.T, dir string, _, _ mail.ID) {
			sql(t, dir, "INSERT INTO history (user, epoch, from_state, to_state, author, reason, forced, at) VALUES ('a@example.org', 7, '', '', '', '', 0, 1)")
		}, transfer.WrongEpoch, false},
		{"generation of the future", func(t *testing.T, dir string, _, _ mail.ID) {
			sql(t, dir, "UPDATE user SET gen = 9")
		}, transfer.WrongEpoch, false},
		{"state that there is not", func(t *testing.T, dir string, _, _ mail.ID) {
			sql(t, dir, "UPDATE user SET state = 'lost'")
		}, transfer.BadUser, true},
		{"boot gone", func(t *testing.T, dir string, _, _ mail.ID) { sql(t, dir, "DELETE FROM boot") }, transfer.Database, false},
		{"index without its rows", func(t *testing.T, dir string, _, _ mail.ID) {
			c, err := openConn(dsn(dir, false))
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			// A table that SQLite believes to be the same one, with fewer rows.
			for _, q := range []string{"UPDATE recipient SET due = 5", "PRAGMA writable_schema=ON",
				"UPDATE sqlite_schema SET sql = 'CREATE INDEX recipient_due ON recipient(lane, due) WHERE due = 6' WHERE name = 'recipient_due'", "PRAGMA writable_schema=RESET", "REINDEX recipient_due",
				"PRAGMA writable_schema=ON", "UPDATE sqlite_schema SET sql = 'CREATE INDEX recipient_due  ON recipient(lane, due) WHERE due IS NOT NULL' WHERE name = 'recipient_due'"} {
				if err := c.script(q); err != nil {
					t.Fatalf("%s: %v", q, err)
				}
			}
		}, transfer.Database, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, small, big := auditBase(t)
			if a := audited(t, dir, false); a.Left != 0 || a.Messages != 2 || a.Recipients != 3 || a.Users != 1 {
				t.Fatalf("a whole store: %+v", a)
			}
			c.do(t, dir, small, big)
			before := contents(t, dir)
			a := audited(t, dir, false)
			if a.Left == 0 || !slices.Contains(a.Kinds(), c.want) || a.Repaired != 0 {
				t.Fatalf("found %+v, want %q", a, c.want)
			}
			for k, v := range contents(t, dir) {
				if before[k] != v {
					t.Errorf("the audit changed %s", k)
				}
			}
			a = audited(t, dir, true)
			if c.left != (a.Left > 0) || !c.left && a.Repaired == 0 {
				t.Fatalf("the repair did %+v", a)
			}
			if a = audited(t, dir, false); c.left != (a.Left > 0) {
				t.Fatalf("after the repair there is %+v", a)
			}
			if !c.left {
				auditWorks(t, dir, small, big)
			}
		})
	}
}

func files1(t *testing.T, dir, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "bodies", pattern))
	if err != nil || len(list) != 1 {
		t.Fatalf("%s: %v %v", pattern, list, err)
	}
	return list[0]
}

func remove(t *testing.T, dir, pattern string) {
	t.Helper()
	if err := os.Remove(files1(t, dir, pattern)); err != nil {
		t.Fatal(err)
	}
}

func audited(t *testing.T, dir string, repair bool) transfer.Audit {
	t.Helper()
	a, err := Audit(context.Background(), dir, repair)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// auditWorks looks that both messages are still there, deliverable or parked
// with a word, and that new mail is taken.
func auditWorks(t *testing.T, dir string, ids ...mail.ID) {
	t.Helper()
	ctx := context.Background()
	s := open(t, dir, Options{MinFree: -1})
	defer s.Close()
	for _, id := range ids {
		e, err := s.Get(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range e.Rcpts {
			if r.State != queue.Queued && (r.State != queue.Parked || !strings.HasPrefix(r.LastReply, "alarm:")) {
				t.Fatalf("recipient %+v", r)
			}
		}
	}
	if err := s.Put(ctx, envelope(t, "a@example.org"), strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(ctx, queue.Filter{State: queue.Parked}, queue.Action{Verb: queue.DoDelete}); err != nil {
		t.Fatal(err)
	}
	for {
		st, err := s.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st.Messages == 0 {
			return
		}
		cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		l, err := s.Claim(cctx, mail.Old, 10)
		cancel()
		if err != nil {
			t.Fatalf("%v, and there is %+v", err, st)
		}
		var all []queue.Outcome
		for _, it := range l.Items {
			all = append(all, queue.Outcome{N: it.N, Kind: queue.Done})
		}
		if err := s.Settle(ctx, l, all); err != nil {
			t.Fatal(err)
		}
	}
}
