package backfill_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
)

// TestEmptiedMailbox: a source that shows little of a mailbox any more, a bit less
// of each small folder, is above the ceiling as a whole; one that shows nothing is
// not believed at all.
func TestEmptiedMailbox(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 30, 100)...)
	for i := range 5 {
		put(t, src, user, fmt.Sprintf("INBOX.f%d", i), letters(100+10*i, 107+10*i, 100)...)
	}
	put(t, src, "few@example.org", "INBOX", letters(0, 3, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	for i := range 5 {
		deleteMail(t, src, user, fmt.Sprintf("INBOX.f%d", i), 1, 2, 3, 4, 5, 6)
	}
	final := reads
	final.Final = true
	for i, o := range []backfill.Options{reads, reads, final} {
		put(t, src, user, "INBOX.f0", letter(200+i, 100)) // a folder that is looked into again alone
		r := mustPass(t, c, job, o)
		if p := problems(r, backfill.ClassDeletions); r.Deleted != 0 || len(p) != 5 || !strings.Contains(strings.Join(p, ""), "30 of ") {
			t.Errorf("pass %d: %+v", i, r)
		}
	}
	allow := reads
	allow.AllowDeletions = true
	if r := mustPass(t, c, job, allow); r.Deleted != 30 || len(r.Problems) > 0 {
		t.Errorf("allowed: %+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))

	c, job = copier(t, newLedger(t)), jobFor(src, dst, "few@example.org")
	mustPass(t, c, job, reads)
	deleteMail(t, src, "few@example.org", "INBOX", 1, 2, 3)
	for _, o := range []backfill.Options{reads, final} {
		if r := mustPass(t, c, job, o); r.Deleted != 0 || !strings.Contains(strings.Join(problems(r, backfill.ClassDeletions), ""), "no mail at all") {
			t.Errorf("nothing is left: %+v", r)
		}
	}
	put(t, src, "few@example.org", "INBOX", letter(9, 100)) // so he has emptied it himself
	if r := mustPass(t, c, job, reads); r.Deleted != 3 {
		t.Errorf("%+v", r)
	}
}

// TestMovedAndNotCarried: a message that was filed away, and cannot be read or is
// refused where it is now, or left out by a filter that came since, keeps the copy
// that it has.
func TestMovedAndNotCarried(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for what, test := range map[string]struct {
		hinder func(c *backfill.Copier, job *backfill.Job)
		left   int // of the three messages that are gone from the INBOX
	}{
		"refused": {func(_ *backfill.Copier, job *backfill.Job) {
			job.Dest.Server.Address = newGate(t, dst.IMAPAddr, func(cmd string) string {
				if strings.HasPrefix(cmd, "APPEND") && strings.Contains(cmd, "letter 3") {
					return "NO [TOOBIG] Message too large"
				}
				return ""
			}).addr
		}, 2},
		"filtered": {func(c *backfill.Copier, _ *backfill.Job) {
			c.Filter = backfill.Filter{MaxSize: 1000}
		}, 1},
	} {
		t.Run(what, func(t *testing.T) {
			name := what + "@example.org"
			msgs := letters(0, 12, 100)
			msgs[3].Body = append(msgs[3].Body, []byte("letter 3 "+strings.Repeat("long line\r\n", 200))...)
			put(t, src, name, "INBOX", msgs...)
			c, job := copier(t, newLedger(t)), jobFor(src, dst, name)
			mustPass(t, c, job, reads)
			moveMail(t, src, name, "INBOX", "INBOX.x", 4, 5)
			deleteMail(t, src, name, "INBOX", 6)
			test.hinder(c, &job)
			for range 3 {
				r := mustPass(t, c, job, reads)
				t.Log(r)
			}
			found := false
			for _, m := range dst.Messages(t, name, "INBOX") {
				found = found || strings.Contains(string(m.Body), "letter 3 ")
			}
			if n := len(holds(t, dst, name, false)["INBOX"]); !found || n != 9+test.left {
				t.Errorf("the copy is there: %v; %d messages in the INBOX", found, n)
			}
			c.Filter, job = backfill.Filter{}, jobFor(src, dst, name)
			retry := reads
			retry.RetryRefused = true
			mustPass(t, c, job, retry)
			same(t, holds(t, src, name, true), holds(t, dst, name, true))
		})
	}
}

// TestOtherMailbox: a login that leads into somebody else's mailbox, on a server
// whose folders all have one UIDVALIDITY, deletes nothing.
func TestOtherMailbox(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 9, 100)...)
	put(t, src, "other@example.org", "INBOX", letters(100, 130, 100)...)
	deleteMail(t, src, "other@example.org", "INBOX", 2, 3, 4, 5, 6)
	validity := regexp.MustCompile(`UIDVALIDITY \d+`)
	gmail := newProxy(t, src.IMAPAddr, func(_ *proxy, b []byte) []byte { return validity.ReplaceAll(b, []byte("UIDVALIDITY 1")) }).addr
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Source.Server.Address = gmail
	mustPass(t, c, job, reads)
	wrong := job
	wrong.Source = jobFor(src, dst, "other@example.org").Source
	wrong.Source.Server.Address = gmail
	for range 2 {
		if r := mustPass(t, c, wrong, reads); r.Deleted != 0 {
			t.Errorf("%+v", r)
		}
	}
	left := map[string]bool{}
	for _, m := range dst.Messages(t, user, "INBOX") {
		left[string(m.Body)] = true
	}
	for n := range 9 {
		if !left[string(letter(n, 100).Body)] {
			t.Errorf("letter %d is gone", n)
		}
	}
}

// TestReadsTheDestinationByNow: an operator set the user new while the pass ran.
func TestReadsTheDestinationByNow(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	deleteMail(t, src, user, "INBOX", 2)
	moveMail(t, src, user, "INBOX", "INBOX.x", 3)
	o := reads
	flipped := errors.New("he reads new")
	o.MayDelete = func(context.Context) error { return flipped }
	if r, err := c.Pass(t.Context(), job, o); !errors.Is(err, flipped) || r.Deleted+r.Moved != 0 || r.Copied != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	o.MayDelete = func(context.Context) error { return nil }
	mustPass(t, c, job, o)
	same(t, holds(t, src, user, false), holds(t, dst, user, false))
}

// TestDeletionsOnAnAlteringServer: a server that alters what it takes, in a way
// that nobody knows, is not taken for one that came out of a backup: nothing is
// copied once more.
func TestDeletionsOnAnAlteringServer(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 12, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = newProxy(t, dst.IMAPAddr, func(_ *proxy, b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("with something in it"), []byte("with something on it"))
	}).addr
	mustPass(t, c, job, reads)
	deleteMail(t, src, user, "INBOX", 2, 3)
	if r := mustPass(t, c, job, reads); r.Deleted != 2 || r.Copied != 0 {
		t.Errorf("%+v", r)
	}
	deleteMail(t, src, user, "INBOX", 12) // with the highest UID
	if r := mustPass(t, c, job, reads); r.Copied != 0 {
		t.Errorf("%+v", r)
	}
	if r := mustPass(t, c, job, reads); !r.Clean() {
		t.Errorf("%+v", r)
	}
	if n := holds(t, dst, user, false).count(); n > 10 {
		t.Errorf("%d messages", n)
	}
}

// TestMovedBetweenPasses: a pass over the folder that a message was moved to does
// not make a deletion of the move: it is above no ceiling, and nothing is there
// twice.
func TestMovedBetweenPasses(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 40, 100)...)
	put(t, src, user, "INBOX.x", letter(90, 100))
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	moveMail(t, src, user, "INBOX", "INBOX.x", uidsTo(30)...)
	if r := mustPass(t, c, job, backfill.Options{Only: []string{"INBOX.x"}, Restore: true}); r.Copied != 30 {
		t.Errorf("%+v", r)
	}
	if r := mustPass(t, c, job, reads); r.Moved != 30 || r.Deleted != 0 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
	// What came once is not taken for what is gone later.
	deleteMail(t, src, user, "INBOX.x", 2, 3)
	if r := mustPass(t, c, job, reads); r.Moved != 0 || r.Deleted != 2 {
		t.Errorf("%+v", r)
	}
}

// TestMovedBeforeABrokenPass: what a pass copied to where it was moved to, and
// could not delete where it was, is a move in the next one too, however much it is.
func TestMovedBeforeABrokenPass(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 40, 100)...)
	put(t, src, user, "INBOX.old name", letters(40, 60, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	moveMail(t, src, user, "INBOX", "INBOX.x", uidsTo(30)...)
	if err := src.Login(t, user).Rename("INBOX.old name", "INBOX.new name", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	broken := reads
	broken.MayDelete = func(context.Context) error { return errors.New("the store is away") }
	if r, err := c.Pass(t.Context(), job, broken); err == nil || r.Copied != 50 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r := mustPass(t, c, job, reads); r.Moved != 50 || r.Deleted != 0 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	got := holds(t, dst, user, true)
	if len(got["old name"]) == 0 {
		delete(got, "old name") // no folder is deleted
	}
	same(t, holds(t, src, user, true), got)
}

// TestCameAndWentBetweenPasses: a message that came in a pass over its folder and
// is gone at the next one is a deletion, as any other, and no move.
func TestCameAndWentBetweenPasses(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	put(t, src, user, "INBOX", letters(5, 30, 100)...)
	if r := mustPass(t, c, job, backfill.Options{Only: []string{"INBOX"}, Restore: true}); r.Copied != 25 {
		t.Errorf("%+v", r)
	}
	deleteMail(t, src, user, "INBOX", uidsTo(30)[5:25]...)
	r := mustPass(t, c, job, reads)
	if p := problems(r, backfill.ClassDeletions); r.Moved != 0 || r.Deleted != 0 || len(p) != 1 || !strings.Contains(p[0], "20 of 30") {
		t.Errorf("%+v", r)
	}
}

// TestRenamedAndMadeAnew: a folder that is renamed, and whose name another one gets
// at once, is there once, under its new name.
func TestRenamedAndMadeAnew(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX.Projects", letters(0, 30, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	cl := src.Login(t, user)
	if err := cl.Rename("INBOX.Projects", "INBOX.Projects 2025", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	put(t, src, user, "INBOX.Projects", letters(30, 33, 100)...)
	if r := mustPass(t, c, job, reads); r.Copied != 33 || r.Moved != 30 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
	// What cannot be found elsewhere stays, and is told of.
	if err := cl.Delete("INBOX.Projects").Wait(); err != nil {
		t.Fatal(err)
	}
	put(t, src, user, "INBOX.Projects", letters(33, 34, 100)...)
	for range 2 {
		r := mustPass(t, c, job, reads)
		if p := problems(r, backfill.ClassDeletions); r.Deleted != 0 || len(p) != 1 || !strings.Contains(p[0], "3 messages that were copied out of it stay") {
			t.Errorf("%+v", r)
		}
	}
}

func uidsTo(n imap.UID) (uids []imap.UID) {
	for u := range n {
		uids = append(uids, u+1)
	}
	return uids
}
