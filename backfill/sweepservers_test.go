package backfill_test

import (
	"fmt"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// bothCopies are a message as our relay brings it to each side.
func bothCopies(n int) (old, fresh mailtest.StoredMessage) {
	for side, m := range map[string]*mailtest.StoredMessage{"old": &old, "new": &fresh} {
		*m = letter(n, 100)
		m.Flags = nil
		m.Body = []byte(fmt.Sprintf("Return-Path: <x@%s>\r\nReceived: from far.example (far [192.0.2.1])\r\n\tby mx.example.org with ESMTP\r\n\tid Q%d; today\r\n%s", side, n, m.Body))
	}
	return old, fresh
}

// TestSweepOfWhatWasDeliveredToBoth: the two copies are one message, also when the
// reader moved his before anybody looked.
func TestSweepOfWhatWasDeliveredToBoth(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", letters(0, 3, 100)...)
	passOn(t, s.c, s.job, "forth")
	for n := range 3 {
		old, fresh := bothCopies(10 + n)
		put(t, s.src, user, "INBOX", old)
		put(t, s.dst, user, "INBOX", fresh)
	}
	moveMail(t, s.dst, user, "INBOX", "Ablage", 5)
	if r := passOn(t, s.c, s.job, "settled forth"); r.Copied != 0 || r.Adopted != 3 {
		t.Errorf("%+v", r)
	}
	quiet(t, s.c, s.job, "settled forth", "settled back", "settled forth")
	for _, d := range []*realtest.Dovecot{s.src, s.dst} {
		if n := holds(t, d, user, false).count(); n != 6 {
			t.Errorf("%d messages", n)
		}
	}
}

// TestRenamedFolders: the reader renames a folder on new and a phone one on old.
func TestRenamedFolders(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", letters(0, 3, 100)...)
	put(t, s.src, user, "INBOX.Eins", letters(10, 20, 100)...)
	put(t, s.src, user, "INBOX.Zwei", letters(20, 30, 100)...)
	passOn(t, s.c, s.job, "forth")
	if err := s.dst.Login(t, user).Rename("Eins", "Uno", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if err := s.src.Login(t, user).Rename("INBOX.Zwei", "INBOX.Due", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	want := holds(t, s.dst, user, true)
	if r := passOn(t, s.c, s.job, "settled forth"); r.Copied != 0 {
		t.Errorf("the sweep: %+v", r)
	}
	quiet(t, s.c, s.job, "settled forth")
	same(t, want, holds(t, s.dst, user, true))
	for range 2 {
		passOn(t, s.c, s.job, "settled back")
	}
	quiet(t, s.c, s.job, "settled back", "settled forth")
	s.equal()
	s.once(s.src, 23)
}

// TestBackToCyrus: a rollback to Cyrus, which numbers and munges in its own way, with
// what a phone did there meanwhile.
func TestBackToCyrus(t *testing.T) {
	t.Parallel()
	src := realtest.StartCyrus(t, realtest.CyrusOptions{})
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	_ = src.Login(t, user).Close()
	for _, m := range letters(0, 8, 100) {
		src.Append(t, user, "INBOX", m)
	}
	c, job := copier(t, newLedger(t)), imapJob(&src.IMAP, &dst.IMAP, user)
	pass := func(how string) backfill.Report { return passOn(t, c, job, how) }
	if r := pass("forth"); r.Copied != 8 {
		t.Fatalf("%+v", r)
	}
	odd := letter(50, 100)
	odd.Body = []byte("Subject: gr\xfc\xdfe letter 50\r\n\r\nx\r\n")
	put(t, dst, user, "INBOX", letter(40, 100), odd)
	moveMail(t, dst, user, "INBOX", "Ablage", 2)
	deleteMail(t, dst, user, "INBOX", 3)
	moveOn(t, src.Login(t, user), "INBOX", src.Folder("Handy"), 5)
	if r := pass("settled forth"); r.Copied != 0 || r.Adopted != 1 {
		t.Errorf("the sweep: %+v", r)
	}
	if r := pass("settled back"); r.Copied != 3 || r.Moved != 1 || r.Deleted != 1 {
		t.Errorf("the rollback: %+v", r)
	}
	quiet(t, c, job, "settled back", "settled forth", "forth", "back")
	got := map[string]int{}
	for _, f := range src.Folders(t, user) {
		for _, m := range src.Messages(t, user, f) {
			got[subjectOf(m)]++
		}
	}
	if len(got) != 9 || sizeOf(got) != 9 || got["2"] != 0 {
		t.Errorf("%v", got)
	}
}

func moveOn(t *testing.T, cl *imapclient.Client, from, to string, uid imap.UID) {
	t.Helper()
	defer func() { _ = cl.Close() }()
	_ = cl.Create(to, nil).Wait() // it may be there
	if _, err := cl.Select(from, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Move(imap.UIDSetNum(uid), to).Wait(); err != nil {
		t.Fatal(err)
	}
}
