package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crossfade/config"
	"crossfade/internal/redistest"
	"crossfade/journal"
	"crossfade/mail"
	"crossfade/store/disk"
)

// killedStore is a store as a process leaves it that is killed: the newest of its
// journal is in the database alone.
func killedStore(t *testing.T, dir string, n int) (ids []mail.ID) {
	t.Helper()
	s, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range n {
		from, err := mail.ParseAddress("a@outside.example")
		if err != nil {
			t.Fatal(err)
		}
		to, err := mail.ParseAddress(anna)
		if err != nil {
			t.Fatal(err)
		}
		e := &mail.Envelope{ID: mail.NewID(), From: from, Recipients: []mail.Recipient{{Addr: to, User: anna}}}
		if err := s.Put(t.Context(), e, strings.NewReader("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

// told gives the messages that the files of a journal tell of.
func told(t *testing.T, dir string) (ids []mail.ID) {
	t.Helper()
	shelf, err := journal.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer shelf.Close()
	r, err := (&journal.Journal{Outbox: nothing{}, Shelf: shelf}).Scan(t.Context(), func(e journal.Entry) error {
		ids = append(ids, e.ID)
		return nil
	})
	if err != nil || !r.Whole() {
		t.Fatalf("%+v, %v", r, err)
	}
	return ids
}

// nothing is an empty outbox.
type nothing struct{}

// Pending implements journal.Outbox.
func (nothing) Pending(context.Context, uint64, int) ([]journal.Batch, error) { return nil, nil }

// Forget implements journal.Outbox.
func (nothing) Forget(context.Context, uint64) error { return nil }

// TestCopyTakesTheNewestAlong: what a process that was killed left of the journal in the
// database goes along with the copy, once, and the next start on the copy goes on there.
func TestCopyTakesTheNewestAlong(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	ids := killedStore(t, from, 3)
	rep, err := CopyStore(t.Context(), StoreCopy{From: from, To: to})
	if err != nil || rep.Journal != filepath.Join(from, "journal") || rep.JournalMoved == 0 || rep.Messages != 3 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if got := told(t, rep.Journal); len(got) != 3 || got[0] != ids[0] {
		t.Errorf("the files tell of %v, want %v", got, ids)
	}
	if err := os.CopyFS(filepath.Join(to, "journal"), os.DirFS(rep.Journal)); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "")
	s.cfg.Store = to
	s.start()
	s.empty()
	doc, err := s.d.audits.make(t.Context(), asked{run: "x"})
	if err != nil || !doc.Clean || doc.Total.Accepted != 3 || doc.Total.Before != 0 || doc.Total.Delivered != 3 {
		t.Errorf("%+v, %v", doc, err)
	}
	s.stop()

	rep, err = CopyStore(t.Context(), StoreCopy{From: from, To: redistest.Start(t).URL()})
	if err != nil || rep.JournalMoved != 0 || len(told(t, rep.Journal)) != 3 {
		t.Errorf("a second copy moves nothing a second time: %+v, %v", rep, err)
	}
}

// TestCopyWithoutItsJournal: when the files are somewhere else, the copy says what to do
// and makes no second journal.
func TestCopyWithoutItsJournal(t *testing.T) {
	dir := t.TempDir()
	from, elsewhere := filepath.Join(dir, "a"), filepath.Join(dir, "elsewhere")
	killedStore(t, from, 2)
	cfg := config.Default()
	cfg.Store, cfg.Audit.Dir = from, elsewhere
	if rep, err := CopyStore(t.Context(), StoreCopy{From: from, To: filepath.Join(dir, "b"), Config: cfg}); err != nil || rep.Journal != elsewhere || rep.JournalMoved == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	s, err := disk.Open(from, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	shelf, err := journal.OpenDir(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&journal.Journal{Outbox: s, Shelf: shelf}).Begin(t.Context()); err != nil { // as a start does
		t.Fatal(err)
	}
	shelf.Close()
	s.Close()
	killedStore(t, from, 2)
	_, err = CopyStore(t.Context(), StoreCopy{From: from, To: filepath.Join(dir, "c")})
	if err == nil || !strings.Contains(err.Error(), "name the configuration with -c") {
		t.Errorf("the error is %v", err)
	}
	for _, left := range []string{filepath.Join(dir, "c"), filepath.Join(from, "journal")} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s was made", left)
		}
	}
}
