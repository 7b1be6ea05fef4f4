package daemon

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/audit"
	"crossfade/backfill"
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
	first, err := s.d.audits.make(t.Context(), asked{run: "one"})
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
	again, err := s.d.audits.make(t.Context(), asked{run: "two"})
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

// TestOneKey: whoever is first to need the key, all who ask at once get one.
func TestOneKey(t *testing.T) {
	r := redistest.Start(t)
	embedded, onRedis := newSite(t, ""), newSite(t, "").onRedis(r.URL(), "")
	other := newSite(t, "").onRedis(r.URL(), "")
	other.cfg.Node = "other"
	for _, nodes := range [][]*site{{embedded}, {onRedis, other}} {
		for _, s := range nodes {
			s.start()
		}
		keys := make([]string, 16)
		var wg sync.WaitGroup
		for i := range keys {
			wg.Go(func() {
				var err error
				if keys[i], err = nodes[i%len(nodes)].d.audits.PublicKey(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i := range keys {
			if keys[i] != keys[0] || keys[i] == "" {
				t.Errorf("%d got the key %q, the first %q", i, keys[i], keys[0])
			}
		}
	}
	// Both saw that there was none before either wrote.
	one, err1 := onRedis.d.audits.firstKey(t.Context())
	two, err2 := other.d.audits.firstKey(t.Context())
	if err := errors.Join(err1, err2); err != nil || string(one) != string(two) {
		t.Errorf("two nodes that found no key made two: %v", err)
	}
}

// TestWhoseAudit: what an audit says of its users is not given for another one.
func TestWhoseAudit(t *testing.T) {
	s := newSite(t, "").start()
	s.send("one", "a@outside.example", anna)
	s.empty()
	audit := func() string {
		t.Helper()
		run, err := s.d.audits.Start(t.Context(), audit.Request{})
		if err != nil || run.ID == "" {
			t.Fatalf("%+v, %v", run, err)
		}
		if _, err := s.d.audits.Start(t.Context(), audit.Request{}); !errors.Is(err, admin.ErrAuditing) {
			t.Errorf("a second one: %v", err)
		}
		eventually(t, 10*time.Second, "the audit ends", func() bool { st := s.d.audits.Status(); return st.ID == run.ID && !st.Running })
		return run.ID
	}
	first := audit()
	docs, next, err := s.d.audits.Each(t.Context(), first, "", 10)
	if err != nil || next != "" || len(docs) == 0 || docs[0].Run != first {
		t.Fatalf("%d documents, %q, %v", len(docs), next, err)
	}
	second := audit()
	if _, _, err := s.d.audits.Each(t.Context(), first, "", 10); !errors.Is(err, admin.ErrNoAudit) {
		t.Errorf("the first one, which was replaced: %v", err)
	}
	if last, err := s.d.audits.Last(t.Context()); err != nil || last.Run != second || first == second {
		t.Errorf("%+v, %v", last, err)
	}
	if _, _, err := s.d.audits.Each(t.Context(), second, "", 10); err != nil {
		t.Error(err)
	}
}

// TestSettleAgain: what was settled of mail that sweeps cannot carry is neither more nor
// newer when something else is settled of the same mailbox.
func TestSettleAgain(t *testing.T) {
	s := newSite(t, "").start()
	a := s.d.audits
	last := func(run string, issued time.Time, of audit.Account) {
		t.Helper()
		of.User = anna
		if err := s.d.store.SaveLedger(t.Context(), auditRecords, lastRun, []byte(run)); err != nil {
			t.Fatal(err)
		}
		a.kept.mu.Lock()
		defer a.kept.mu.Unlock()
		a.kept.doc, a.kept.word = &audit.Document{Run: run, Issued: issued, Users: []audit.Account{of}}, run
	}
	first := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	last("one", first, audit.Account{Left: 3})
	if got, err := a.Settle(t.Context(), anna, "op", "spam"); err != nil || got.Left != 3 || !got.LeftAt.Equal(first) {
		t.Errorf("%+v, %v", got, err)
	}
	anew := backfill.Anew{Folder: "INBOX", Was: 1, Now: 2, At: first}
	last("two", first.Add(time.Hour), audit.Account{Look: &audit.Look{Anew: []backfill.Anew{anew}}})
	if got, err := a.Settle(t.Context(), anna, "op", "restored"); err != nil || got.Left != 3 || !got.LeftAt.Equal(first) || len(got.Anew) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	last("three", first.Add(2*time.Hour), audit.Account{Left: 2})
	if got, err := a.Settle(t.Context(), anna, "op", "more spam"); err != nil || got.Left != 2 || !got.LeftAt.Equal(first.Add(2*time.Hour)) || len(got.Anew) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	last("four", first.Add(3*time.Hour), audit.Account{})
	if _, err := a.Settle(t.Context(), anna, "op", "nothing"); !errors.Is(err, admin.ErrNothingToSettle) {
		t.Errorf("nothing to settle: %v", err)
	}
}
