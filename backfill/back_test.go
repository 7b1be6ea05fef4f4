package backfill_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
	"github.com/google/go-cmp/cmp"
)

// passOn makes a pass in one of the ways of way.
func passOn(t testing.TB, c *backfill.Copier, job backfill.Job, how string) backfill.Report {
	t.Helper()
	job, o := way(job, how)
	r, err := c.Pass(t.Context(), job, o)
	if err != nil {
		t.Fatalf("%s: %v", how, err)
	}
	return r
}

// quiet makes final passes in both directions, which must find nothing.
func quiet(t testing.TB, c *backfill.Copier, job backfill.Job, hows ...string) {
	t.Helper()
	for _, how := range hows {
		job, o := way(job, how)
		o.Final = true
		if r, err := c.Pass(t.Context(), job, o); err != nil || !r.Clean() {
			t.Errorf("%s finds something where there is nothing: %+v, %v", how, r, err)
		}
	}
}

// contents counts the messages of a mailbox by their content, wherever they lie.
func contents(t testing.TB, d *realtest.Dovecot, name string) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, lines := range holds(t, d, name, false) {
		for _, l := range lines {
			out[strings.Fields(l)[0][:12]]++
		}
	}
	return out
}

func sizeOf(m map[string]int) (n int) {
	for v := range maps.Values(m) {
		n += v
	}
	return n
}

// TestBack: mail that colleagues on new sent is copied to the mailbox on old that
// the user still reads, and nothing comes back as an echo.
func TestBack(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, SpecialUse: map[string]string{"Gesendet": `\Sent`}}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{SpecialUse: map[string]string{"Sent Items": `\Sent`}}))
	put(t, src, user, "INBOX", letters(0, 10, 100)...)
	put(t, src, user, "INBOX.Gesendet", letters(10, 14, 100)...)
	put(t, src, user, "INBOX.Archiv.2020", letters(14, 16, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	if r := passOn(t, c, job, "forth"); r.Copied != 16 {
		t.Fatalf("%+v", r)
	}
	quiet(t, c, job, "back", "forth", "back")
	put(t, dst, user, "INBOX", letters(20, 24, 100)...)
	put(t, dst, user, "Sent Items", letters(24, 25, 100)...)
	put(t, dst, user, "Archiv/2021", letters(25, 27, 100)...) // a folder that old does not have
	if r := passOn(t, c, job, "back"); r.Copied != 7 || r.Adopted != 0 {
		t.Errorf("%+v", r)
	}
	quiet(t, c, job, "forth", "back", "forth")
	same(t, holds(t, src, user, true), renamed(holds(t, dst, user, true), "Sent Items", "Gesendet"))
	// The user deletes one of them where he reads, and a copy goes.
	deleteMail(t, src, user, "INBOX", 12)
	if r := passOn(t, c, job, "forth"); r.Deleted != 1 {
		t.Errorf("%+v", r)
	}
	// What is deleted where nobody reads stays, and is restored.
	deleteMail(t, dst, user, "INBOX", 3)
	quiet(t, c, job, "back")
	if r := passOn(t, c, job, "forth"); r.Copied != 1 || r.Deleted != 0 {
		t.Errorf("%+v", r)
	}
	quiet(t, c, job, "forth", "back")
	if n := holds(t, src, user, false).count(); n != 22 {
		t.Errorf("%d messages", n)
	}
	same(t, holds(t, src, user, true), renamed(holds(t, dst, user, true), "Sent Items", "Gesendet"))
}

func renamed(s stored, from, to string) stored {
	s[to] = s[from]
	delete(s, from)
	return s
}

// TestRollback: what arrived or changed on new since the flip goes back to old, and
// forth again.
func TestRollback(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 40, 100)...)
	put(t, src, user, "INBOX.Projekt", letters(40, 50, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	passOn(t, c, job, "forth")
	quiet(t, c, job, "forth", "settled forth") // the flip
	put(t, dst, user, "INBOX", letters(60, 65, 100)...)
	put(t, src, user, "INBOX", letters(70, 72, 100)...) // stragglers
	moveMail(t, dst, user, "INBOX", "Projekt", 1, 2)
	moveMail(t, dst, user, "INBOX", "Neu", 3)
	deleteMail(t, dst, user, "INBOX", 4, 5)
	setFlags(t, user, dst, "INBOX", 7, imap.StoreFlagsSet, imap.FlagFlagged, "wichtig")
	if r := passOn(t, c, job, "settled forth"); r.Copied != 2 || r.Flagged+r.Deleted+r.Moved != 0 {
		t.Errorf("the sweep: %+v", r)
	}
	want := holds(t, dst, user, true)
	if r := passOn(t, c, job, "settled back"); r.Copied != 8 || r.Moved != 3 || r.Deleted != 2 || r.Flagged != 1 || len(r.Problems) > 0 {
		t.Errorf("the rollback: %+v", r)
	}
	quiet(t, c, job, "settled back", "forth", "back")
	same(t, want, holds(t, src, user, true))
	moveMail(t, src, user, "INBOX.Projekt", "INBOX", 11)
	put(t, src, user, "INBOX", letters(80, 82, 100)...)
	if r := passOn(t, c, job, "forth"); r.Copied != 3 || r.Moved != 1 || r.Deleted != 0 {
		t.Errorf("forth again: %+v", r)
	}
	quiet(t, c, job, "forth", "settled forth", "settled back")
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}

// TestNoWayBack: what cannot be written to says so before anything is done.
func TestNoWayBack(t *testing.T) {
	t.Parallel()
	job := backfill.Job{User: user, From: fakeSource{}, Dest: account("127.0.0.1:1", user, "secret")}
	c := copier(t, newLedger(t))
	if _, err := c.Pass(t.Context(), job, backfill.Options{Back: true}); !errors.Is(err, backfill.ErrNoWayBack) || !errors.Is(job.WayBack(), backfill.ErrNoWayBack) {
		t.Errorf("%v, %v", err, job.WayBack())
	}
	job = backfill.Job{User: user, Source: account("127.0.0.1:1", user, "secret"), Dest: account("127.0.0.1:1", user, "secret")}
	if err := job.WayBack(); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		settled bool
		o       backfill.Options
	}{
		{true, backfill.Options{Restore: true}}, {true, backfill.Options{Deletions: true}}, {true, backfill.Options{AllowDeletions: true}},
		{false, backfill.Options{Back: true, Restore: true}}, {false, backfill.Options{Back: true, Deletions: true}},
	} {
		job.Settled = tt.settled
		if _, err := c.Pass(t.Context(), job, tt.o); !errors.Is(err, backfill.ErrNotRead) {
			t.Errorf("settled %v, %+v: %v", tt.settled, tt.o, err)
		}
	}
}

// fakeSource is one that is never opened.
type fakeSource struct{ backfill.Source }

// TestKilledInBothDirections kills passes in alternating directions at each point,
// while mail comes to both sides: in the end each message is on both sides once.
func TestKilledInBothDirections(t *testing.T) {
	t.Parallel()
	for what, caps := range map[string]string{"all": "", "sizes that lie": "", "no UIDPLUS": "IMAP4rev1 MULTIAPPEND LITERAL+ NAMESPACE"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, Capability: caps}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: caps}))
			points := slices.DeleteFunc(backfill.CrashPoints(), func(p string) bool { return p == "after-wrap" || p == "after-expunge" || p == "after-create" })
			if what != "all" {
				points = []string{"after-append", "after-journal"}
			}
			old, fresh := src.IMAPAddr, dst.IMAPAddr
			if what == "sizes that lie" { // then nothing but the journals can find what was appended
				lie := func(_ *proxy, b []byte) []byte { return wireSize.ReplaceAll(b, []byte("RFC822.SIZE 7")) }
				old, fresh = newProxy(t, old, lie).addr, newProxy(t, fresh, lie).addr
			}
			for i, point := range points {
				job := jobFor(src, dst, fmt.Sprintf("user%d@example.org", i))
				job.Source.Server.Address, job.Dest.Server.Address = old, fresh
				killBothWays(t, src, dst, job, point)
			}
		})
	}
}

func killBothWays(t *testing.T, src, dst *realtest.Dovecot, job backfill.Job, point string) {
	name := job.User
	want := map[string]int{}
	next := 0
	deliver := func(d *realtest.Dovecot, folder string, n int) {
		msgs := letters(next, next+n, 200)
		next += n
		put(t, d, name, folder, msgs...)
		for _, m := range msgs {
			want[sumOf(m)]++
		}
	}
	deliver(src, "INBOX", 12)
	deliver(src, "INBOX.Alt", 9)
	deliver(dst, "INBOX", 10)
	deliver(dst, "Alt", 8)
	l := newLedger(t)
	kills := 0
	for j, how := range []string{"forth", "back", "forth", "back"} {
		if killedOn(t, how, job.Source.Server.Address, job.Dest.Server.Address, name, l.path, point, 1+j/2) {
			kills++
		}
		deliver(src, "INBOX", 1)
		deliver(dst, "INBOX", 1)
	}
	if kills < 2 && point != "after-recover" {
		t.Errorf("%s: killed %d times", point, kills)
	}
	c := copier(t, l)
	for _, how := range []string{"back", "forth"} {
		passOn(t, c, job, how)
	}
	quiet(t, c, job, "forth", "back")
	for side, d := range map[string]*realtest.Dovecot{"old": src, "new": dst} {
		if diff := cmp.Diff(want, contents(t, d, name)); diff != "" {
			t.Errorf("%s: %s has not each message once:\n%s", point, side, diff)
		}
	}
}

func sumOf(m mailtest.StoredMessage) string {
	return fmt.Sprintf("%x", sha256.Sum256(m.Body))[:12]
}
