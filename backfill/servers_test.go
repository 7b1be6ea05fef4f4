package backfill_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"
)

func imapJob(src, dst *realtest.IMAP, name string) backfill.Job {
	return backfill.Job{User: name, Host: "mx.example.org", Source: account(src.IMAPAddr, name, src.Password), Dest: account(dst.IMAPAddr, name, dst.Password)}
}

// TestCourierFolderThatNobodyOpened: Courier writes its list of UIDs when a folder is selected, not when it is examined. A
// folder that only ever got deliveries has another UIDVALIDITY for each connection.
func TestCourierFolderThatNobodyOpened(t *testing.T) {
	t.Parallel()
	src := realtest.StartCourier(t, realtest.CourierOptions{})
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	_ = src.Login(t, user).Close() // makes the Maildir
	root := filepath.Join(src.MailRoot, "u-"+user, "Maildir")
	deliver := func(n int) {
		t.Helper()
		path := filepath.Join(root, "new", fmt.Sprintf("%d.M%dP1.delivered", 1500000000+n, n))
		if err := os.WriteFile(path, letter(n, 100).Body, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 12 {
		deliver(n)
	}
	c, job := copier(t, newLedger(t)), imapJob(&src.IMAP, &dst.IMAP, user)
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 12 {
		t.Errorf("%+v", r)
	}
	<-time.After(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // its UIDVALIDITY was the time, in seconds
	for _, o := range []backfill.Options{{}, {Final: true}, {Final: true, Restore: true}} {
		if r := mustPass(t, c, job, o); !r.Clean() {
			t.Errorf("%+v: %+v", o, r)
		}
	}
	deliver(30)
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 1 || r.Adopted != 0 {
		t.Errorf("%+v", r)
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
}

// TestCourierEmptiesTheTrash: with IMAP_EMPTYTRASH, which Debian sets to 7 days, Courier deletes what lies in Trash for so long.
// What was just copied does not, whatever its date.
func TestCourierEmptiesTheTrash(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	dst := realtest.StartCourier(t, realtest.CourierOptions{Env: []string{"IMAP_EMPTYTRASH=Trash:7"}})
	put(t, src, user, "Trash", letters(0, 3, 100)...)
	fresh := letter(5, 100)
	fresh.InternalDate = time.Now().Add(-time.Hour)
	put(t, src, user, "Trash", fresh)
	c, job := copier(t, newLedger(t)), imapJob(&src.IMAP, &dst.IMAP, user)
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 4 {
		t.Errorf("%+v", r)
	}
	for range 2 { // it is emptied at each login, of what lies there for 7 days, however old it is
		if n := len(dst.Messages(t, user, dst.Folder("Trash"))); n != 4 {
			t.Errorf("%d messages in Trash", n)
		}
	}
}

// TestCyrusLoginForUsers: an account in proxyservers acts for others, by PLAIN with an authorization identity.
func TestCyrusLoginForUsers(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	dst := realtest.StartCyrus(t, realtest.CyrusOptions{Admin: "mover"})
	put(t, src, user, "INBOX", letters(0, 3, 10)...)
	c, job := copier(t, newLedger(t)), imapJob(&src.IMAP, &dst.IMAP, user)
	job.Dest.Login = imapconn.Login{User: "mover", Password: "adminsecret", Authz: user}
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 3 {
		t.Errorf("%+v", r)
	}
	if n := len(dst.Messages(t, user, "INBOX")); n != 3 {
		t.Errorf("%d messages in the user's mailbox", n)
	}
	job.Dest.Login.Password = "secret"
	if _, err := c.Pass(t.Context(), job, backfill.Options{}); err == nil || !strings.Contains(err.Error(), "check name and password") {
		t.Errorf("%v", err)
	}
}

// TestCyrusWithoutMunging: with munge8bit off nothing is altered, and a message with a NUL is there octet by octet.
func TestCyrusWithoutMunging(t *testing.T) {
	t.Parallel()
	src := realtest.StartCourier(t, realtest.CourierOptions{})
	dst := realtest.StartCyrus(t, realtest.CyrusOptions{Extra: "munge8bit: no\n"})
	_ = src.Login(t, user).Close()
	want := map[string]bool{}
	for n, text := range []string{"Subject: \xfc\xe9\r\n\r\nx\r\n", "Subject: NUL\r\n\r\na\x00b\r\n", "Subject: y\r\n\r\nno end"} {
		want[text] = true
		path := filepath.Join(src.MailRoot, "u-"+user, "Maildir", "new", fmt.Sprintf("%d.M%dP1.delivered", 1500000000+n, n))
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "\r\n", "\n")), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	c, job := copier(t, newLedger(t)), imapJob(&src.IMAP, &dst.IMAP, user)
	mustPass(t, c, job, backfill.Options{})
	got := map[string]bool{}
	for _, m := range dst.Messages(t, user, "INBOX") {
		got[string(m.Body)] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() || len(v.Problems) > 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestCyrusQuota: the words of a full mailbox end the pass, and with more room it goes on.
func TestCyrusQuota(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	dst := realtest.StartCyrus(t, realtest.CyrusOptions{QuotaKiB: 20})
	put(t, src, user, "INBOX", letters(0, 30, 2000)...)
	c, job := copier(t, newLedger(t)), imapJob(&src.IMAP, &dst.IMAP, user)
	c.BatchMessages = 4
	r, err := c.Pass(t.Context(), job, backfill.Options{})
	t.Logf("%+v, %v", r, err)
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "quota") || len(problems(r, backfill.ClassWrapped)) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}
