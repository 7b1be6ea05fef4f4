package backfill_test

import (
	"path/filepath"
	"slices"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/google/go-cmp/cmp"
)

// sides are an old and a new server with one mailbox each, and its ledger.
type sides struct {
	t        *testing.T
	src, dst *realtest.Dovecot
	c        *backfill.Copier
	job      backfill.Job
}

func newSides(t *testing.T) *sides {
	t.Helper()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	return &sides{t: t, src: src, dst: dst, c: copier(t, newLedger(t)), job: jobOf(src, dst)}
}

// equal wants the same messages on both sides, each as often, wherever they lie.
func (s *sides) equal() {
	s.t.Helper()
	if d := cmp.Diff(contents(s.t, s.dst, user), contents(s.t, s.src, user)); d != "" {
		s.t.Errorf("the sides differ (- new, + old):\n%s", d)
	}
}

// once wants so many messages, none twice.
func (s *sides) once(d *realtest.Dovecot, n int) {
	s.t.Helper()
	got := contents(s.t, d, user)
	if sizeOf(got) != n || len(got) != n {
		s.t.Errorf("%d messages, %d different, want %d", sizeOf(got), len(got), n)
	}
}

// TestSweepOfWhatAPhoneMoved: a phone that is still set to old after the flip files
// messages away there. They are on new already, where the user may have moved them
// too.
func TestSweepOfWhatAPhoneMoved(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", letters(0, 12, 100)...)
	put(t, s.src, user, "INBOX.Ablage", letters(20, 22, 100)...)
	passOn(t, s.c, s.job, "forth")
	moveMail(t, s.dst, user, "INBOX", "Neu", 3)
	moveMail(t, s.src, user, "INBOX", "INBOX.Ablage", 1)
	moveMail(t, s.src, user, "INBOX", "INBOX.Handy", 3)
	copyMail(t, s.src, "INBOX", "INBOX.Handy", 5)
	setFlags(t, user, s.src, "INBOX", 5, imap.StoreFlagsAdd, imap.FlagDeleted)
	put(t, s.src, user, "INBOX", letters(50, 51, 100)...) // a straggler
	want := holds(t, s.dst, user, true)
	if r := passOn(t, s.c, s.job, "settled forth"); r.Copied != 1 || r.Adopted != 3 || r.Flagged > 0 {
		t.Errorf("the sweep: %+v", r)
	}
	deleteMail(t, s.dst, user, "INBOX", imap.UID(len(want["INBOX"])+2)) // UIDs 1 to 12, and 13 is the straggler
	same(t, want, holds(t, s.dst, user, true))
	quiet(t, s.c, s.job, "settled forth", "settled forth")
	moveMail(t, s.src, user, "INBOX.Ablage", "INBOX.Woanders", 3) // the first once more
	if r := passOn(t, s.c, s.job, "settled forth"); r.Copied != 0 {
		t.Errorf("moved a second time: %+v", r)
	}
	put(t, s.src, user, "INBOX.Handy", letters(60, 61, 100)...)
	if r := passOn(t, s.c, s.job, "settled forth"); r.Copied != 1 {
		t.Errorf("mail in a folder that new does not have: %+v", r)
	}
	s.once(s.dst, 15)
	passOn(t, s.c, s.job, "settled back")
	passOn(t, s.c, s.job, "settled back")
	quiet(t, s.c, s.job, "settled back", "settled forth", "settled back")
	s.once(s.dst, 15)
	// Of the one that the phone copied and marked as deleted old still has both.
	deleteMail(t, s.src, user, "INBOX", 5)
	passOn(t, s.c, s.job, "settled back")
	s.equal()
}

func copyMail(t *testing.T, d *realtest.Dovecot, from, to string, uids ...imap.UID) {
	t.Helper()
	cl := d.Login(t, user)
	defer func() { _ = cl.Close() }()
	if _, err := cl.Select(from, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Copy(imap.UIDSetNum(uids...), to).Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestSweepOfOneFolder: what a phone moves into the folder that a tail has told of
// is not new, though the folder that it was in is not looked at.
func TestSweepOfOneFolder(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", letters(0, 4, 100)...)
	put(t, s.src, user, "INBOX.Ablage", letters(10, 14, 100)...)
	passOn(t, s.c, s.job, "forth")
	quiet(t, s.c, s.job, "settled forth")
	moveMail(t, s.src, user, "INBOX.Ablage", "INBOX", 2)
	put(t, s.src, user, "INBOX", letters(20, 21, 100)...)
	job, _ := way(s.job, "settled forth")
	if r := mustPass(t, s.c, job, backfill.Options{Only: []string{"INBOX"}, Prompt: true}); r.Copied != 1 || r.Adopted != 1 {
		t.Errorf("%+v", r)
	}
	s.once(s.dst, 9)
	quiet(t, s.c, s.job, "settled forth", "settled back")
	s.once(s.src, 9)
}

// TestSweepMakesFoldersForMailOnly: folders that the server of the side which is not
// read makes by itself are not made where the user reads.
func TestSweepMakesFoldersForMailOnly(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", letters(0, 3, 100)...)
	put(t, s.dst, user, "Templates")
	put(t, s.dst, user, "Gesendet", letters(5, 6, 100)...)
	if r := passOn(t, s.c, s.job, "back"); r.Copied != 1 {
		t.Errorf("%+v", r)
	}
	if got := folders(holds(t, s.src, user, false)); !slices.Equal(got, []string{"Gesendet", "INBOX"}) {
		t.Errorf("%q", got)
	}
	quiet(t, s.c, s.job, "back")
}

// TestReaderDoesAwayWithAFolder: the sweep does not fill it again, and makes it for
// new mail only.
func TestReaderDoesAwayWithAFolder(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", letters(0, 3, 100)...)
	put(t, s.src, user, "INBOX.Liste", letters(10, 15, 100)...)
	passOn(t, s.c, s.job, "forth")
	cl := s.dst.Login(t, user)
	if err := cl.Delete("Liste").Wait(); err != nil {
		t.Fatal(err)
	}
	quiet(t, s.c, s.job, "settled forth")
	if got := folders(holds(t, s.dst, user, false)); !slices.Equal(got, []string{"INBOX"}) {
		t.Errorf("%q", got)
	}
	put(t, s.src, user, "INBOX.Liste", letters(20, 21, 100)...)
	if r := passOn(t, s.c, s.job, "settled forth"); r.Copied != 1 {
		t.Errorf("%+v", r)
	}
	quiet(t, s.c, s.job, "settled forth")
	s.once(s.dst, 4)
}

// TestMovedWhereNobodyReads: a user who looks into new before his flip moves mail
// there. It is there once on the day he is moved, and goes when he deletes it where
// he reads.
func TestMovedWhereNobodyReads(t *testing.T) {
	t.Parallel()
	for _, back := range []bool{false, true} {
		name := map[bool]string{false: "copies first", true: "sweep first"}[back]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSides(t)
			put(t, s.src, user, "INBOX", letters(0, 10, 100)...)
			passOn(t, s.c, s.job, "forth")
			moveMail(t, s.dst, user, "INBOX", "Probe", 2, 3)
			deleteMail(t, s.dst, user, "INBOX", 4)
			if back {
				if r := passOn(t, s.c, s.job, "back"); r.Copied != 0 || r.Adopted != 2 {
					t.Errorf("%+v", r)
				}
			}
			if r := passOn(t, s.c, s.job, "forth"); r.Copied != 1 {
				t.Errorf("%+v", r)
			}
			quiet(t, s.c, s.job, "forth", "back", "forth")
			s.once(s.dst, 10)
			deleteMail(t, s.src, user, "INBOX", 2)
			if r := passOn(t, s.c, s.job, "forth"); r.Deleted != 1 {
				t.Errorf("deleted where he reads: %+v", r)
			}
			moveMail(t, s.src, user, "INBOX", "INBOX.Neu", 3)
			if r := passOn(t, s.c, s.job, "forth"); r.Copied != 1 || r.Deleted+r.Moved != 1 {
				t.Errorf("moved where he reads: %+v", r)
			}
			quiet(t, s.c, s.job, "forth", "back", "settled back", "settled forth")
			s.once(s.dst, 9)
			s.equal()
		})
	}
}

// TestMovedTwiceWhereNobodyReads: what lies apart is looked after.
func TestMovedTwiceWhereNobodyReads(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", letters(0, 6, 100)...)
	passOn(t, s.c, s.job, "forth")
	moveMail(t, s.dst, user, "INBOX", "Eins", 2, 3)
	passOn(t, s.c, s.job, "forth")
	moveMail(t, s.dst, user, "Eins", "Zwei", 1)
	deleteMail(t, s.dst, user, "Eins", 2)
	if r := passOn(t, s.c, s.job, "forth"); r.Copied != 1 {
		t.Errorf("%+v", r)
	}
	quiet(t, s.c, s.job, "forth", "back")
	s.once(s.dst, 6)
	s.once(s.src, 6)
}

// TestUIDValidityAfterTheFlip: what the user moved on new is not copied again when
// UIDs mean other messages, on either side.
func TestUIDValidityAfterTheFlip(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"old", "new"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			s := newSides(t)
			put(t, s.src, user, "INBOX", append(letters(0, 10, 100), letter(3, 100))...)
			passOn(t, s.c, s.job, "forth")
			moveMail(t, s.dst, user, "INBOX", "Ablage", 1, 2, 4)
			put(t, s.src, user, "INBOX", letters(20, 22, 100)...)
			put(t, s.dst, user, "INBOX", letters(30, 32, 100)...)
			d := map[string]*realtest.Dovecot{"old": s.src, "new": s.dst}[side]
			d.Stop(t)
			changeValidityOf(t, filepath.Join(d.MailRoot, user, "Maildir"))
			d.Start(t)
			if r := passOn(t, s.c, s.job, "settled forth"); r.Copied != 2 {
				t.Errorf("the sweep: %+v", r)
			}
			quiet(t, s.c, s.job, "settled forth")
			if n := sizeOf(contents(t, s.dst, user)); n != 15 {
				t.Errorf("%d messages on new", n)
			}
			passOn(t, s.c, s.job, "settled back")
			quiet(t, s.c, s.job, "settled back", "settled forth")
			s.equal()
		})
	}
}

// TestWrappedIsNotCarriedBack: what carries a message that new refused stays there,
// also where the user put it, and his own mail in that folder goes back.
func TestWrappedIsNotCarriedBack(t *testing.T) {
	t.Parallel()
	s := newSides(t)
	put(t, s.src, user, "INBOX", append(letters(0, 3, 100), poisoned()[0], poisoned()[2])...)
	s.job.Dest.Server.Address = picky(t, s.dst).addr
	if r := passOn(t, s.c, s.job, "forth"); r.Wrapped != 2 {
		t.Fatalf("%+v", r)
	}
	quiet(t, s.c, s.job, "back", "settled back")
	moveMail(t, s.dst, user, "Needs attention", "INBOX", 1)
	put(t, s.dst, user, "Needs attention", letter(7, 100), letter(8, 100))
	if r := passOn(t, s.c, s.job, "settled back"); r.Copied != 2 {
		t.Errorf("%+v", r)
	}
	quiet(t, s.c, s.job, "settled back", "settled forth")
	if got := holds(t, s.src, user, false); got.count() != 7 || len(got["Needs attention"]) != 2 {
		t.Errorf("%v", got)
	}
}
