package daemon

import (
	"fmt"
	"testing"
	"time"

	"crossfade/audit"
	"crossfade/internal/redistest"
)

// TestAuditOnRedis: the journal lies in Redis, so that another node, on a machine
// that never saw the mail, audits all of it, with the same key.
func TestAuditOnRedis(t *testing.T) {
	r := redistest.Start(t)
	s := newSite(t, "").onRedis(r.URL(), "")
	if err := s.tryStart(nil); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		s.send(fmt.Sprintf("audit-%d", i), "a@outside.example", anna)
	}
	s.empty()
	first, err := s.d.audits.make(t.Context(), audit.Request{})
	if err != nil || !first.Clean || first.Total.Accepted != 5 || first.Total.Delivered != 5 {
		t.Fatalf("%+v, %v", first, err)
	}
	if n, err := s.d.journal.Drain(t.Context(), 0); n != 10 || err != nil {
		t.Fatalf("%d lines were moved into a block, %v", n, err)
	}
	s.stop()
	s.cfg.Node = "other"
	if err := s.tryStart(nil); err != nil {
		t.Fatal(err)
	}
	last, err := s.d.audits.Last(t.Context())
	if err != nil || !last.Issued.Equal(first.Issued) {
		t.Fatalf("the last audit: %+v, %v", last, err)
	}
	id := s.send("later", "a@outside.example", anna)
	s.empty()
	again, err := s.d.audits.make(t.Context(), audit.Request{})
	if err != nil || !again.Clean || again.Total.Accepted != 6 || again.Journal.Blocks != 1 || again.Signature.Key != first.Signature.Key {
		t.Fatalf("%+v, %v", again, err)
	}
	lives, err := s.d.audits.Why(t.Context(), string(id), false)
	if err != nil || len(lives) != 1 || lives[0].Recipients[0].Now != "delivered to old" {
		t.Fatalf("%+v, %v", lives, err)
	}
	began := time.Now()
	if n, err := s.d.journal.Shelf.Prune(t.Context(), began.Add(time.Hour)); n != 0 || err != nil { // the newest block stays
		t.Fatalf("%d blocks were removed, %v", n, err)
	}
}
