package backfill_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"

	"github.com/emersion/go-imap/v2"
)

// A user once flipped to a mailbox that somebody had emptied after a trial: the
// ledger called all of it copied.
func TestGoneFromTheDestination(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 10, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	mustPass(t, c, job, backfill.Options{})
	cl := dst.Login(t, user)
	if _, err := cl.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	del := &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}, Silent: true}
	if err := cl.Store(imap.UIDSetNum(2, 3, 10), del, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Expunge().Collect(); err != nil {
		t.Fatal(err)
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("without Restore: %+v", r)
	}
	if r := mustPass(t, c, job, backfill.Options{Restore: true}); r.Copied != 3 || r.Adopted != 0 {
		t.Errorf("with Restore: %+v", r)
	}
	same(t, holds(t, src, user, false), holds(t, dst, user, false))
	if r := mustPass(t, c, job, backfill.Options{Final: true, Restore: true}); !r.Clean() {
		t.Errorf("a second time: %+v", r)
	}
}

// A folder out of a backup keeps its UIDVALIDITY and gives its UIDs to other
// messages: new mail was once taken for copied, and copies for being there.
func TestUIDNextWentBack(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"source", "destination"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
			d := map[string]*realtest.Dovecot{"source": src, "destination": dst}[side]
			c, job := copier(t, newLedger(t)), jobOf(src, dst)
			put(t, src, user, "INBOX", letters(0, 5, 100)...)
			mustPass(t, c, job, backfill.Options{})
			d.Stop(t)
			restore := backupOf(t, d)
			d.Start(t)
			put(t, src, user, "INBOX", letters(5, 10, 100)...)
			mustPass(t, c, job, backfill.Options{})
			d.Stop(t)
			restore()
			d.Start(t)
			want := 10
			if side == "source" {
				put(t, src, user, "INBOX", letters(20, 23, 100)...) // with the UIDs of others
				want = 13
			}
			mustPass(t, c, job, backfill.Options{})
			if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
				t.Errorf("%+v, %v", v, err)
			}
			if n := holds(t, dst, user, false).count(); n != want {
				t.Errorf("the destination has %d messages, want %d", n, want)
			}
			if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
				t.Errorf("%+v", r)
			}
		})
	}
}

// backupOf remembers the INBOX of a server that is stopped, and gives a function
// that brings it back.
func backupOf(t *testing.T, d *realtest.Dovecot) (restore func()) {
	t.Helper()
	files := func(pattern string) []string {
		f, _ := filepath.Glob(filepath.Join(d.MailRoot, user, "Maildir", pattern))
		return f
	}
	had := append(files("new/*"), files("cur/*")...)
	uids := files("dovecot-uidlist")
	if len(had) != 5 || len(uids) != 1 {
		t.Fatalf("%d messages, %v", len(had), uids)
	}
	list, err := os.ReadFile(uids[0])
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		later := slices.DeleteFunc(append(files("new/*"), files("cur/*")...), func(f string) bool { return slices.Contains(had, f) })
		for _, f := range append(later, files("dovecot.*index*")...) {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(uids[0], list, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// One folder that cannot be made does not stop the others, and keeps the user
// from being flipped: the pass ends with an error.
func TestFolderThatCannotBeMade(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 2, 10)...)
	put(t, src, user, "INBOX.tmp", letters(2, 4, 10)...)
	put(t, src, user, "INBOX.z", letters(4, 6, 10)...)
	put(t, dst, user, "INBOX", letters(8, 9, 10)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = newGate(t, dst.IMAPAddr, func(cmd string) string {
		if strings.HasPrefix(cmd, "CREATE ") && strings.Contains(cmd, "tmp") { // and what it would be called instead
			return instead + `CREATE ""`
		}
		return ""
	}).addr
	for _, o := range []backfill.Options{{}, {Final: true}, {Final: true, Restore: true}} {
		_, err := c.Pass(t.Context(), job, o)
		if err == nil {
			t.Errorf("%+v: no error", o)
		}
		t.Log(err)
	}
	if got := holds(t, dst, user, false); len(got["z"]) != 2 || len(got["INBOX"]) != 3 {
		t.Errorf("%v", got)
	}
}

// closingLedger takes nothing more when it is closed, as after a kill.
type closingLedger struct {
	backfill.Ledger
	closed bool
}

func (l *closingLedger) SaveLedger(ctx context.Context, user, name string, data []byte) error {
	if l.closed {
		return errors.New("the process is dead")
	}
	return l.Ledger.SaveLedger(ctx, user, name, data)
}

// TestKilledWhileLostCopiesAreNoted: somebody moved copies on the side that is not
// read; a pass that dies while it notes where they are leaves nothing twice.
func TestKilledWhileLostCopiesAreNoted(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 20, 100)...)
	l := &closingLedger{Ledger: newLedger(t)}
	c, job := copier(t, l), jobOf(src, dst)
	mustPass(t, c, job, reads)
	moveMail(t, dst, user, "INBOX", "Elsewhere", uidsTo(10)...)
	noted := 0
	c.CrashPoint = func(name string) {
		if name == "after-apart" {
			noted++
			l.closed = noted == 4
		}
	}
	if r, err := c.Pass(t.Context(), job, reads); err == nil || noted != 4 {
		t.Fatalf("%+v, %v, %d noted", r, err, noted)
	}
	c.CrashPoint, l.closed = nil, false
	for range 2 {
		if r := mustPass(t, c, job, reads); r.Copied != 0 {
			t.Errorf("%+v", r)
		}
	}
	if got := holds(t, dst, user, false); got.count() != 20 || len(got["Elsewhere"]) != 10 {
		t.Errorf("%d messages, %d in the other folder", got.count(), len(got["Elsewhere"]))
	}
}

// TestKilledWhileMovesAreNoted: a phone on the side that is not read moved many messages there, some of them twice, and
// the process is killed at each of them in turn, in sweeps and in passes from the reader's side. Each message is on
// each side once, and the reader's folders stay as they are.
func TestKilledWhileMovesAreNoted(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"settled forth", "settled back"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: realtest.DotINBOX, MailFsync: "never"})
			dst := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never"})
			put(t, src, user, "INBOX", letters(0, 20, 100)...)
			put(t, src, user, "INBOX.Alt", letters(20, 30, 100)...)
			l := newLedger(t)
			job := jobOf(src, dst)
			passOn(t, copier(t, l), job, "forth")
			quiet(t, copier(t, l), job, "forth", "settled forth")
			read := holds(t, dst, user, false)
			kills := 0
			for _, x := range []struct {
				from, to string
				nth      int
			}{{"INBOX", "INBOX.Ablage", 1}, {"INBOX.Alt", "INBOX", 3}, {"INBOX.Ablage", "INBOX.Alt", 5}, {"INBOX", "INBOX.Ablage", 2}} {
				var uids []imap.UID
				for _, m := range src.Messages(t, user, x.from) {
					if len(uids) < 6 {
						uids = append(uids, imap.UID(m.UID))
					}
				}
				moveMail(t, src, user, x.from, x.to, uids...)
				for nth := x.nth; nth <= 6; nth += 2 {
					if killedOn(t, how, src.IMAPAddr, dst.IMAPAddr, user, l.path, "after-apart", nth) {
						kills++
					}
				}
			}
			if kills < 4 {
				t.Errorf("killed %d times", kills)
			}
			c := copier(t, l)
			for range 2 {
				passOn(t, c, job, "settled forth")
				passOn(t, c, job, "settled back")
			}
			quiet(t, c, job, "settled forth", "settled back")
			same(t, read, holds(t, dst, user, false))
			if diff := cmp.Diff(contents(t, dst, user), contents(t, src, user)); diff != "" {
				t.Errorf("old has not each message once (-new +old):\n%s", diff)
			}
		})
	}
}
