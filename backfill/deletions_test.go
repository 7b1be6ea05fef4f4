package backfill_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
)

// deleteMail expunges messages with a client of the test's own.
func deleteMail(t testing.TB, d *realtest.Dovecot, name, folder string, uids ...imap.UID) {
	t.Helper()
	cl := d.Login(t, name)
	defer func() { _ = cl.Close() }()
	if _, err := cl.Select(folder, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if err := cl.Store(imap.UIDSetNum(uids...), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}, Silent: true}, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Expunge().Collect(); err != nil {
		t.Fatal(err)
	}
}

func moveMail(t testing.TB, d *realtest.Dovecot, name, from, to string, uids ...imap.UID) {
	t.Helper()
	cl := d.Login(t, name)
	defer func() { _ = cl.Close() }()
	_ = cl.Create(to, nil).Wait() // it may be there
	if _, err := cl.Select(from, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Move(imap.UIDSetNum(uids...), to).Wait(); err != nil {
		t.Fatal(err)
	}
}

var reads = backfill.Options{Deletions: true, Restore: true}

// TestDeletions: what is deleted on the source is deleted on the destination, and
// nothing else, up to the ceiling; above it somebody has to say so.
func TestDeletions(t *testing.T) {
	t.Parallel()
	for _, caps := range []string{"", "IMAP4rev1 UIDPLUS LITERAL+"} {
		t.Run(caps, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, Capability: caps}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: caps}))
			put(t, src, user, "INBOX", letters(0, 40, 100)...)
			put(t, dst, user, "INBOX", letters(100, 103, 100)...) // delivered there
			c, job := copier(t, newLedger(t)), jobOf(src, dst)
			mustPass(t, c, job, reads)
			// Of the user, who is not done yet: it stays.
			setFlags(t, user, dst, "INBOX", 1, imap.StoreFlagsAdd, imap.FlagDeleted)
			deleteMail(t, src, user, "INBOX", 3, 4, 40)
			if r := mustPass(t, c, job, backfill.Options{Restore: true, Final: true}); !r.Clean() || len(r.Problems) > 0 {
				t.Errorf("without Deletions: %+v", r)
			}
			c.DeleteCeiling = -1
			if r := mustPass(t, c, job, reads); !r.Clean() {
				t.Errorf("with a ceiling below zero: %+v", r)
			}
			c.DeleteCeiling = 0
			if r := mustPass(t, c, job, reads); r.Deleted != 3 || len(r.Problems) > 0 || r.Clean() {
				t.Errorf("%+v", r)
			}
			if n := holds(t, dst, user, false).count(); n != 40 {
				t.Errorf("%d messages", n)
			}
			if r := mustPass(t, c, job, backfill.Options{Deletions: true, Restore: true, Final: true}); !r.Clean() {
				t.Errorf("again: %+v", r)
			}
			deleteMail(t, src, user, "INBOX", 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
			for i, o := range []backfill.Options{reads, reads, {Deletions: true, Final: true}} {
				r := mustPass(t, c, job, o)
				if p := problems(r, backfill.ClassDeletions); !r.Clean() || len(p) != 1 || !strings.Contains(p[0], "11 of 37") || !strings.Contains(p[0], "--allow-deletions "+user) {
					t.Errorf("pass %d above the ceiling: %+v", i, r)
				}
			}
			allow := reads
			allow.AllowDeletions = true
			if r := mustPass(t, c, job, allow); r.Deleted != 11 || len(r.Problems) > 0 {
				t.Errorf("allowed: %+v", r)
			}
			deleteMail(t, src, user, "INBOX", 21, 22)
			c.DeleteCeiling = 0.01
			if r := mustPass(t, c, job, reads); r.Deleted != 2 {
				t.Errorf("a few are always within it: %+v", r)
			}
			got := holds(t, dst, user, false)
			for _, m := range letters(100, 103, 100) {
				put(t, src, user, "INBOX", m)
			}
			same(t, holds(t, src, user, false), got)
		})
	}
}

// TestAdoptedIsNotDeleted: what was on the destination without us stays there when
// the source loses it, until an operator says otherwise.
func TestAdoptedIsNotDeleted(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 20, 100)...)
	put(t, dst, user, "INBOX", letters(0, 2, 100)...) // as a copy that the relay delivered to both
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	if r := mustPass(t, c, job, reads); r.Adopted != 2 || r.Copied != 18 {
		t.Fatalf("%+v", r)
	}
	deleteMail(t, src, user, "INBOX", 1, 10)
	for range 2 {
		r := mustPass(t, c, job, reads)
		if p := problems(r, backfill.ClassDeletions); len(p) != 1 || !strings.Contains(p[0], "1 messages") {
			t.Errorf("%+v", r)
		}
	}
	if n := holds(t, dst, user, false).count(); n != 19 {
		t.Errorf("%d messages", n)
	}
	allow := reads
	allow.AllowDeletions = true
	if r := mustPass(t, c, job, allow); r.Deleted != 1 || len(r.Problems) > 0 {
		t.Errorf("allowed: %+v", r)
	}
	// Whose they are does not depend on what the source calls them.
	src.Stop(t)
	changeValidity(t, src)
	src.Start(t)
	mustPass(t, c, job, reads)
	deleteMail(t, src, user, "INBOX", 2, 11)
	if r := mustPass(t, c, job, reads); r.Deleted != 1 || len(problems(r, backfill.ClassDeletions)) != 1 {
		t.Errorf("after a new UIDVALIDITY on the source: %+v", r)
	}
}

// TestMoves: mail that the user files away is in its new folder and no longer in
// the old one, however much it is, and flags that were changed come with it.
func TestMoves(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", append(letters(0, 40, 100), letter(7, 100))...)
	put(t, src, user, "INBOX.a.b", letters(50, 62, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	var all []imap.UID
	for u := range imap.UID(30) {
		all = append(all, u+1)
	}
	moveMail(t, src, user, "INBOX", "INBOX.Archiv", all...)
	setFlags(t, user, src, "INBOX.Archiv", 3, imap.StoreFlagsAdd, "later")
	deleteMail(t, src, user, "INBOX", 35)
	r := mustPass(t, c, job, reads)
	if r.Moved != 30 || r.Deleted != 1 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
	// A folder that is renamed: nothing is there twice, and nothing is lost.
	if err := src.Login(t, user).Rename("INBOX.a.b", "INBOX.c", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if r = mustPass(t, c, job, reads); r.Moved != 12 || r.Deleted != 0 || len(problems(r, backfill.ClassDeletions)) > 0 {
		t.Errorf("%+v", r)
	}
	got := holds(t, dst, user, true)
	if len(got["a/b"]) != 0 {
		t.Errorf("%v", got)
	}
	delete(got, "a/b") // empty, and not deleted
	same(t, holds(t, src, user, true), got)
	for _, o := range []backfill.Options{reads, {Deletions: true, Final: true, Restore: true}} {
		if r := mustPass(t, c, job, o); !r.Clean() || len(r.Problems) > 0 {
			t.Errorf("%+v", r)
		}
	}
}

// TestFolderGoneFromTheSource: a folder is never deleted because it is not listed.
func TestFolderGoneFromTheSource(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 3, 100)...)
	put(t, src, user, "INBOX.x", letters(3, 5, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	if err := src.Login(t, user).Delete("INBOX.x").Wait(); err != nil {
		t.Fatal(err)
	}
	for _, final := range []bool{false, true} {
		r := mustPass(t, c, job, backfill.Options{Deletions: true, AllowDeletions: true, Final: final})
		if p := problems(r, backfill.ClassDeletions); !r.Clean() || len(p) != 1 || !strings.Contains(p[0], "2 messages stay") {
			t.Errorf("%+v", r)
		}
	}
	if got := holds(t, dst, user, false); len(got["x"]) != 2 {
		t.Errorf("%v", got)
	}
	v, err := c.Verify(t.Context(), job)
	if p := problems(backfill.Report{Problems: v.Problems}, backfill.ClassDeletions); err != nil || len(p) != 1 || !strings.Contains(p[0], "2 messages, which were copied, are not compared") {
		t.Errorf("%+v, %v", v, err)
	}
	// What stays there costs nothing when other mail comes.
	var read atomic.Int64
	job.Dest.Server.Address = newGate(t, dst.IMAPAddr, func(cmd string) string {
		if strings.Contains(cmd, "BODY.PEEK[]") {
			read.Add(1)
		}
		return ""
	}).addr
	put(t, src, user, "INBOX", letter(3, 100), letter(77, 2000))
	if r := mustPass(t, c, job, reads); r.Copied != 2 || read.Load() != 0 || r.Moved != 0 {
		t.Errorf("%+v, bodies were asked for %d times", r, read.Load())
	}
}

// TestFolderGoneDuringAHold: what came to a folder after the last pass is not
// known to be copied when the folder is not listed any more, so nobody flips then.
func TestFolderGoneDuringAHold(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX.x", letters(0, 2, 100)...)
	final := reads
	final.Final = true
	for name, ceiling := range map[string]float64{"deletions are carried over": 0, "and are not": -1} {
		c, job := copier(t, newLedger(t)), jobOf(src, dst)
		c.DeleteCeiling = ceiling
		mustPass(t, c, job, reads)
		cl := src.Login(t, user)
		for range 2 { // it comes back as it was, and goes again
			if err := cl.Rename("INBOX.x", "INBOX.y", nil).Wait(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Pass(t.Context(), job, final); err == nil || !strings.Contains(err.Error(), `"INBOX.x", of which 2 messages were copied, is not listed any more`) {
				t.Fatalf("%s: %v", name, err)
			}
			mustPass(t, c, job, reads)
			mustPass(t, c, job, final)
			if err := cl.Rename("INBOX.y", "INBOX.x", nil).Wait(); err != nil {
				t.Fatal(err)
			}
			mustPass(t, c, job, reads)
		}
	}
}

// TestFolderLeftDuringAHold: the mail of a folder that was filed away into another one
// and deleted during a hold is not twice on new afterwards, however many folders it were.
func TestFolderLeftDuringAHold(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX.w", letters(0, 2, 100)...)
	put(t, src, user, "INBOX.x", letters(2, 4, 100)...)
	put(t, src, user, "INBOX.z", letters(4, 8, 100)...)
	final := reads
	final.Final = true
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	cl := src.Login(t, user)
	for _, name := range []string{"INBOX.w", "INBOX.x"} {
		moveMail(t, src, user, name, "INBOX.z", uidsTo(2)...)
		if err := cl.Delete(name).Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Pass(t.Context(), job, final); err == nil || !strings.Contains(err.Error(), `"INBOX.w", of which 2`) || !strings.Contains(err.Error(), `"INBOX.x", of which 2`) {
		t.Fatal(err)
	}
	mustPass(t, c, job, final)
	mustPass(t, c, job, reads)
	mustPass(t, c, job, final)
	if got := holds(t, dst, user, false); got.count() != 8 || len(got["z"]) != 8 {
		t.Errorf("%d messages, %d of them in the folder that they were moved to", got.count(), len(got["z"]))
	}
}

// TestSourceThatForgets: a list that is short, a search that leaves UIDs out and a
// connection that breaks are no deletions.
func TestSourceThatForgets(t *testing.T) {
	t.Parallel()
	fetched, searched := regexp.MustCompile(`(?m)^\* \d+ FETCH \(UID [34] .*\r\n`), regexp.MustCompile(`(?m)^(\* SEARCH.*) 3 4 `)
	exists := regexp.MustCompile(`(?m)^\* 8 EXISTS`)
	for what, edit := range map[string]func(b []byte) []byte{
		"short list":          func(b []byte) []byte { return fetched.ReplaceAll(b, nil) },
		"short list, EXISTS":  func(b []byte) []byte { return exists.ReplaceAll(fetched.ReplaceAll(b, nil), []byte("* 6 EXISTS")) },
		"short search":        func(b []byte) []byte { return searched.ReplaceAll(b, []byte("$1 ")) },
		"short list + search": func(b []byte) []byte { return searched.ReplaceAll(fetched.ReplaceAll(b, nil), []byte("$1 ")) },
		"broken": func(b []byte) []byte {
			if fetched.Match(b) {
				return b[:len(b)/2]
			}
			return b
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			put(t, src, user, "INBOX", letters(0, 9, 100)...)
			c, job := copier(t, newLedger(t)), jobOf(src, dst)
			mustPass(t, c, job, reads)
			deleteMail(t, src, user, "INBOX", 9)
			var hits atomic.Int64
			job.Source.Server.Address = newProxy(t, src.IMAPAddr, func(_ *proxy, b []byte) []byte {
				e := edit(b)
				if !bytes.Equal(e, b) {
					hits.Add(1)
				}
				return e
			}).addr
			c.Dialer.Idle = time.Second
			r, err := c.Pass(t.Context(), job, backfill.Options{Deletions: true, Final: true})
			c.Dialer.Idle = 0
			t.Log(err)
			if hits.Load() == 0 {
				t.Error("the source forgot nothing")
			}
			if n := holds(t, dst, user, false).count(); n < 8 {
				t.Errorf("%d messages are left: %+v", n, r)
			}
			job = jobOf(src, dst)
			mustPass(t, c, job, reads)
			same(t, holds(t, src, user, true), holds(t, dst, user, true))
		})
	}
}

// TestDeletionsWithoutUIDPLUS are told, and left.
func TestDeletionsWithoutUIDPLUS(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: "IMAP4rev1 MULTIAPPEND LITERAL+"}))
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	deleteMail(t, src, user, "INBOX", 2)
	for _, o := range []backfill.Options{reads, reads, {Deletions: true, AllowDeletions: true}} {
		if r := mustPass(t, c, job, o); !r.Clean() || len(problems(r, backfill.ClassDeletions)) != 1 {
			t.Errorf("%+v", r)
		}
	}
	if n := holds(t, dst, user, false).count(); n != 5 {
		t.Errorf("%d messages", n)
	}
}

// TestDeletionAndBackup: the destination comes out of a backup, keeps its
// UIDVALIDITY and gives the UIDs of copies to mail that was delivered since. None
// of that mail is deleted.
func TestDeletionAndBackup(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 5, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, reads)
	dst.Stop(t)
	restore := backupOf(t, dst)
	dst.Start(t)
	put(t, src, user, "INBOX", letters(5, 10, 100)...)
	mustPass(t, c, job, reads)
	dst.Stop(t)
	restore()
	dst.Start(t)
	put(t, dst, user, "INBOX", letters(100, 110, 100)...) // with the UIDs of 5 to 10, and more
	deleteMail(t, src, user, "INBOX", 7, 8)
	for range 3 {
		r := mustPass(t, c, job, backfill.Options{Deletions: true})
		t.Log(r)
	}
	got := holds(t, dst, user, false)
	for n := 100; n < 110; n++ {
		found := false
		for _, m := range dst.Messages(t, user, "INBOX") {
			found = found || bytes.Equal(m.Body, letter(n, 100).Body)
		}
		if !found {
			t.Errorf("letter %d, delivered on the destination, is gone", n)
		}
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
	if got.count() != 18 {
		t.Errorf("%d messages", got.count())
	}
}

// TestDeletionKilled kills the process while it deletes, and goes on.
func TestDeletionKilled(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for i, point := range []string{"after-expunge", "after-append", "between-folders", "after-record"} {
		name := fmt.Sprintf("user%d@example.org", i)
		put(t, src, name, "INBOX", letters(0, 20, 100)...)
		l := newLedger(t)
		c, job := copier(t, l), jobFor(src, dst, name)
		mustPass(t, c, job, reads)
		moveMail(t, src, name, "INBOX", "INBOX.x", 1, 2, 3, 4)
		deleteMail(t, src, name, "INBOX", 18, 19)
		if !killed(t, src.IMAPAddr, dst.IMAPAddr, name, l.path, point, 1) {
			t.Errorf("%s was never reached", point)
		}
		mustPass(t, c, job, reads)
		if r := mustPass(t, c, job, backfill.Options{Deletions: true, Restore: true, Final: true}); !r.Clean() || len(r.Problems) > 0 {
			t.Errorf("%s: %+v", point, r)
		}
		same(t, holds(t, src, name, true), holds(t, dst, name, true))
	}
}
