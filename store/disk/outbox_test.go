package disk

import (
	"context"
	"strings"
	"testing"

	"crossfade/queue"
)

// TestUpgrade opens a store of the schema before the journal.
func TestUpgrade(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if err := s.Put(context.Background(), envelope(t, "a@example.org"), strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := openConn(dsn(dir, false))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.script("DROP TABLE outbox", "PRAGMA user_version=2"); err != nil {
		t.Fatal(err)
	}
	c.close()
	s = open(t, dir, Options{})
	if err := s.Put(context.Background(), envelope(t, "b@example.org"), strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	batches, err := s.Pending(context.Background(), 0, 1<<20)
	if err != nil || len(batches) != 1 || batches[0].Number != 1 {
		t.Fatalf("%+v, %v", batches, err)
	}
	list, _, err := s.List(context.Background(), queue.Filter{}, "", 10)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d messages, %v", len(list), err)
	}
}
