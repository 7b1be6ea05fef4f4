package backfill_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
)

// picky stands in front of a destination that refuses messages with POISON in
// them, in whatever folder.
func picky(t *testing.T, dst *realtest.Dovecot) *gate {
	return newGate(t, dst.IMAPAddr, func(cmd string) string {
		if strings.HasPrefix(cmd, "APPEND") && strings.Contains(cmd, "POISON") {
			return "NO [CANNOT] Message contains what we do not like"
		}
		return ""
	})
}

// poisoned are messages that picky refuses: one in US-ASCII, one with all that a
// mail must not have, and one twice.
func poisoned() []mailtest.StoredMessage {
	a, b, c := letter(70, 50), letter(71, 50), letter(73, 50)
	a.Body = []byte("Subject: POISON\r\n\r\nx\r\n")
	b.Body = []byte("Subject: POISON gr\xfc\xdfe\n\na\rb\r\r\n" + strings.Repeat("long", 1000))
	c.Body = []byte("Subject: twice POISON\r\n\r\nx\r\n")
	return []mailtest.StoredMessage{a, b, c, c}
}

// wrapped reads the wrapped messages of a folder of the destination.
func wrapped(t *testing.T, dst *realtest.Dovecot, folder string) (bodies []string, all []mailtest.StoredMessage) {
	t.Helper()
	all = dst.Messages(t, user, folder)
	for _, m := range all {
		text, body, _ := backfill.Unwrap(t, m.Body)
		if !strings.Contains(text, "what we do not like") || !strings.Contains(text, "INBOX") {
			t.Errorf("text: %s", text)
		}
		bodies = append(bodies, string(body))
	}
	slices.Sort(bodies)
	return bodies, all
}

// TestWrapped: what the destination refuses comes as an attachment, once, and is
// told in every report; it is offered as it is only when somebody wants that.
func TestWrapped(t *testing.T) {
	t.Parallel()
	for what, caps := range appendCaps {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
			dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: caps}))
			put(t, src, user, "INBOX", append(letters(0, 10, 100), poisoned()...)...)
			put(t, src, user, "INBOX.Needs attention", letters(20, 22, 100)...) // of the user
			var want []string
			for _, m := range src.Messages(t, user, "INBOX")[10:] {
				want = append(want, string(m.Body))
			}
			slices.Sort(want)
			c := copier(t, newLedger(t))
			job := jobOf(src, dst)
			job.Dest.Server.Address = picky(t, dst).addr
			const folder = "Needs attention-2"
			for i, o := range []backfill.Options{{}, {}, {Final: true}, {Restore: true}, {RetryRefused: true}} {
				r := mustPass(t, c, job, o)
				if len(problems(r, backfill.ClassWrapped)) != 4 || len(problems(r, backfill.ClassRefused)) > 0 || r.Clean() != (i > 0) || i == 0 && (r.Wrapped != 4 || r.Copied != 12) {
					t.Errorf("pass %d: %+v", i, r)
				}
				got, all := wrapped(t, dst, folder)
				if !slices.Equal(got, want) {
					t.Fatalf("pass %d: %q instead of %q", i, got, want)
				}
				if m := all[0]; !m.InternalDate.Equal(letter(70, 0).InternalDate) || fmt.Sprint(m.Flags) != fmt.Sprint(letter(70, 0).Flags) {
					t.Errorf("date %v, flags %v", m.InternalDate, m.Flags)
				}
			}
			v, err := c.Verify(t.Context(), job)
			if err != nil || !v.OK() || v.Wrapped != 4 || len(v.Problems) != 4 {
				t.Errorf("verify: %+v, %v", v, err)
			}
			if r := mustPass(t, c, jobOf(src, dst), backfill.Options{RetryRefused: true}); r.Copied != 4 {
				t.Errorf("taken as they are: %+v", r)
			}
			if r := mustPass(t, c, jobOf(src, dst), backfill.Options{Final: true}); !r.Clean() || len(r.Problems) > 1 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestWrappedWithoutLedger: when the ledger is lost what is carried as an
// attachment is not carried once more, and a folder that the user made is his.
func TestWrappedWithoutLedger(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", append(letters(0, 10, 100), poisoned()...)...)
	put(t, dst, user, "Needs attention", letters(20, 22, 100)...) // of the user
	job := jobOf(src, dst)
	job.Dest.Server.Address = picky(t, dst).addr
	const folder = "Needs attention-2"
	if r := mustPass(t, copier(t, newLedger(t)), job, backfill.Options{}); r.Wrapped != 4 || r.Copied != 10 {
		t.Fatalf("%+v", r)
	}
	before := holds(t, dst, user, true)
	c := copier(t, newLedger(t))
	for i := range 3 {
		r := mustPass(t, c, job, backfill.Options{Restore: i == 2})
		if len(problems(r, backfill.ClassWrapped)) != 4 || r.Copied != 0 || i == 0 && r.Adopted != 10 || i > 0 && !r.Clean() {
			t.Errorf("pass %d without a ledger: %+v", i, r)
		}
		same(t, before, holds(t, dst, user, true))
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() || v.Wrapped != 4 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	if all := dst.Messages(t, user, folder); len(all) != 4 {
		t.Errorf("%d mails carry messages", len(all))
	}
}

// TestWrappedAndGone: a wrapped message is known again by its content, whatever
// happens to the UIDs of either side, and comes again when it is gone.
func TestWrappedAndGone(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", append(letters(0, 3, 100), poisoned()...)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = picky(t, dst).addr
	mustPass(t, c, job, backfill.Options{})
	const folder = "Needs attention"
	want, _ := wrapped(t, dst, folder)

	src.Stop(t)
	changeValidity(t, src)
	src.Start(t)
	if r := mustPass(t, c, job, backfill.Options{}); r.Wrapped != 0 || len(problems(r, backfill.ClassWrapped)) != 4 {
		t.Errorf("other UIDs on the source: %+v", r)
	}
	dst.Stop(t)
	changeValidityOf(t, filepath.Join(dst.MailRoot, user, "Maildir", "Needs attention"))
	dst.Start(t)
	if r := mustPass(t, c, job, backfill.Options{Restore: true}); r.Wrapped != 0 || len(problems(r, backfill.ClassWrapped)) != 4 {
		t.Errorf("other UIDs on the destination: %+v", r)
	}
	if got, _ := wrapped(t, dst, folder); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	cl := dst.Login(t, user)
	if err := cl.Delete(folder).Wait(); err != nil {
		t.Fatal(err)
	}
	if r := mustPass(t, c, job, backfill.Options{}); !r.Clean() {
		t.Errorf("a user may throw it away: %+v", r)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || v.Missing != 4 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	if r := mustPass(t, c, job, backfill.Options{Restore: true}); r.Wrapped != 4 {
		t.Errorf("gone from the destination: %+v", r)
	}
	if got, _ := wrapped(t, dst, folder); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	_, all := wrapped(t, dst, folder)
	setFlags(t, user, dst, folder, all[0].UID, imap.StoreFlagsAdd, imap.FlagDeleted)
	cl = dst.Login(t, user)
	if _, err := cl.Select(folder, nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Expunge().Collect(); err != nil {
		t.Fatal(err)
	}
	if r := mustPass(t, c, job, backfill.Options{Restore: true}); r.Wrapped != 1 {
		t.Errorf("one is gone: %+v", r)
	}
	if got, _ := wrapped(t, dst, folder); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestWrapperRefusedToo: then the message counts as refused, and blocks the flip.
func TestWrapperRefusedToo(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", append(letters(0, 3, 100), poisoned()...)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	var full bool
	g := newGate(t, dst.IMAPAddr, func(cmd string) string {
		switch {
		case !strings.HasPrefix(cmd, "APPEND"):
		case full && strings.Contains(cmd, "crossfade_"):
			return "NO [OVERQUOTA] Quota exceeded"
		case strings.Contains(cmd, "POISON"), strings.Contains(cmd, "crossfade_"):
			return "NO [CANNOT] Message contains what we do not like"
		}
		return ""
	})
	job.Dest.Server.Address = g.addr
	for i, o := range []backfill.Options{{}, {Final: true}, {RetryRefused: true}} {
		if r := mustPass(t, c, job, o); len(problems(r, backfill.ClassRefused)) != 4 || len(problems(r, backfill.ClassWrapped)) > 0 || r.Wrapped != 0 {
			t.Errorf("pass %d: %+v", i, r)
		}
	}
	full = true
	_, err := c.Pass(t.Context(), job, backfill.Options{RetryRefused: true})
	if err == nil || !strings.Contains(err.Error(), "raise its quota") {
		t.Errorf("over quota: %v", err)
	}
	job.Dest.Server.Address = picky(t, dst).addr
	if r := mustPass(t, c, job, backfill.Options{RetryRefused: true}); r.Wrapped != 4 || len(problems(r, backfill.ClassWrapped)) != 4 {
		t.Errorf("%+v", r)
	}
	if got, _ := wrapped(t, dst, "Needs attention"); len(got) != 4 {
		t.Errorf("%q", got)
	}
}

// TestWrapKilled kills the process while it wraps, and goes on.
func TestWrapKilled(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	addr := picky(t, dst).addr
	for i, step := range [][]string{{"after-wrap", "after-wrap"}, {"after-append", "after-append"}, {"after-journal", "after-journal", "after-journal"}, {"after-create", "after-wrap"}, {"after-record", "after-record"}} {
		name := fmt.Sprintf("user%d@example.org", i)
		put(t, src, name, "INBOX", poisoned()...)
		l := newLedger(t)
		for j, point := range step {
			killed(t, src.IMAPAddr, addr, name, l.path, point, j+1)
		}
		c, job := copier(t, l), jobFor(src, dst, name)
		job.Dest.Server.Address = addr
		mustPass(t, c, job, backfill.Options{})
		if r := mustPass(t, c, job, backfill.Options{Final: true, Restore: true}); !r.Clean() || len(problems(r, backfill.ClassWrapped)) != 4 {
			t.Errorf("%v: %+v", step, r)
		}
		n := 0
		for _, m := range dst.Messages(t, name, "Needs attention") {
			if bytes.Contains(m.Body, []byte("message.eml")) {
				n++
			}
		}
		if got := holds(t, dst, name, false); n != 4 || got.count() != 4 || len(got) != 2 {
			t.Errorf("%v: %d wrapped, %v", step, n, folders(got))
		}
		if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() || v.Wrapped != 4 {
			t.Errorf("%v: %+v, %v", step, v, err)
		}
	}
}

// TestReadOnlyFolder: a folder that takes nothing is no reason to wrap all of it.
func TestReadOnlyFolder(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	put(t, src, user, "INBOX", letters(0, 3, 100)...)
	put(t, src, user, "INBOX.x", letters(3, 5, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	job.Dest.Server.Address = newProxy(t, dst.IMAPAddr, func(_ *proxy, b []byte) []byte {
		if bytes.Contains(b, []byte("INBOX")) || bytes.Contains(b, []byte("UIDVALIDITY")) {
			return bytes.ReplaceAll(b, []byte("[READ-WRITE]"), []byte("[READ-ONLY]"))
		}
		return b
	}).addr
	_, err := c.Pass(t.Context(), job, backfill.Options{})
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("%v", err)
	}
	if got := holds(t, dst, user, false); got.count() != 0 {
		t.Errorf("%v", got)
	}
	if r := mustPass(t, c, jobOf(src, dst), backfill.Options{}); r.Copied != 5 {
		t.Errorf("%+v", r)
	}
}
