package disk

import (
	"database/sql/driver"
	"strings"
	"testing"
)

// TestQueryPlans: what runs often, or over a long queue, uses an index and
// sorts nothing.
func TestQueryPlans(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	c := <-s.readers
	defer func() { s.readers <- c }()
	for sql, want := range map[string]string{
		"SELECT id, n, due FROM recipient INDEXED BY recipient_due WHERE lane = ? AND due >= ? AND due <= ? ORDER BY due": "COVERING INDEX recipient_due (lane=? AND due>? AND due<?)",
		"SELECT coalesce(min(due), ?) FROM recipient WHERE lane = ? AND due > ?":                                          "COVERING INDEX recipient_due (lane=? AND due>?)",
		sqlUserRows: "INDEX recipient_user (user=? AND lane=? AND (id,n)>(?,?))",
		"SELECT 1 FROM recipient INDEXED BY recipient_user WHERE user = ? AND due IS NOT NULL LIMIT 1": "INDEX recipient_user (user=?)",
		sqlRcpts: "PRIMARY KEY (id=?)",
		sqlUser:  "PRIMARY KEY (address=?)",
		"SELECT user, epoch, from_state, to_state, author, reason, forced, at FROM history WHERE user = ? ORDER BY id DESC LIMIT ?": "INDEX history_user (user=?)",
	} {
		var plan []string
		args := make([]any, strings.Count(sql, "?"))
		for i := range args {
			args[i] = int64(1)
		}
		err := c.each(func(cols []driver.Value) error {
			plan = append(plan, asString(cols[3]))
			return nil
		}, "EXPLAIN QUERY PLAN "+sql, args...)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(plan, "; ")
		if !strings.Contains(got, want) || strings.Contains(got, "TEMP B-TREE") || strings.Contains(got, "SCAN") {
			t.Errorf("%s\nplan is %q, want %q", sql, got, want)
		}
	}
}

// TestDurable: commits are synced, and nobody but us makes checkpoints.
func TestDurable(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for pragma, want := range map[string]int64{"synchronous": 2, "wal_autocheckpoint": 0} {
		if v, _, err := s.db.ints("PRAGMA " + pragma); err != nil || v[0] != want {
			t.Errorf("%s is %v, want %d (%v)", pragma, v, want, err)
		}
	}
	err := s.db.each(func(cols []driver.Value) error {
		if asString(cols[0]) != "wal" {
			t.Errorf("the journal is %v", cols[0])
		}
		return nil
	}, "PRAGMA journal_mode")
	if err != nil {
		t.Fatal(err)
	}
}
