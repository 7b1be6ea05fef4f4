package ondisk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/backfill/ondisk"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
)

// mboxText has what splits wrongly if one is careless: quoted and unquoted "From "
// lines, a Content-Length that tells the end and one that lies, fields of the
// server's own in the middle of others, no empty line at the end.
const mboxText = "From MAILER-DAEMON Fri Jan  2 03:04:05 2015\n" +
	"Subject: one\nStatus: RO\nX-Status: AF\nX-Keywords: work $Label1       \nX-Other: stays\n\nbody\n>From the quoted\n>>From twice Fri Jan  2 03:04:05 2015\nFrom me to you, not a date\n\n" +
	"From a@example.org Sat Jan  3 03:04:05 2015\n" +
	"Subject: two\nContent-Length: 69\nStatus: O\n\nFrom inside@example.org Sat Jan  3 03:04:05 2015\nis not the next one\n" + "\n" +
	"From b@example.org  Sun Jan  4 03:04:05 2015 +0200\n" +
	"Subject: three\nContent-Length: 3\n\nlonger than it says\n\n\n" +
	"From \"b c\"@example.org Mon Jan 05 13:04:05 2015\n" +
	"Subject: four\n\n\n" +
	"From d Tue Jan  6 13:04 2015\n" +
	"Subject: five\n\nno line end"

func startMbox(t *testing.T) (*realtest.Dovecot, string) {
	d := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never",
		Extra: "mail_location = mbox:%h/mail:INBOX=%h/spool\nmbox_read_locks = fcntl\nmbox_write_locks = fcntl\nmbox_lazy_writes = no\nmail_privileged_group =\n"})
	return d, filepath.Join(d.MailRoot, user)
}

func own(t testing.TB, d *realtest.Dovecot, dir string) {
	t.Helper()
	st, err := os.Stat(d.MailRoot)
	if err != nil {
		t.Fatal(err)
	}
	id := st.Sys().(*syscall.Stat_t)
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, int(id.Uid), int(id.Gid)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMboxIsReadAsDovecotServesIt compares a tree that others wrote, and then that
// Dovecot wrote, with what Dovecot says of it, and then copies it.
func TestMboxIsReadAsDovecotServesIt(t *testing.T) {
	t.Parallel()
	src, home := startMbox(t)
	dst := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never"})
	write(t, filepath.Join(home, "spool"), mboxText)
	write(t, filepath.Join(home, "mail", "Archiv", "Gr&APwA3w-e"), mboxText+"\n\n")
	write(t, filepath.Join(home, "mail", "crlf"), strings.ReplaceAll(mboxText, "\n", "\r\n")+"\r\n\r\n")
	write(t, filepath.Join(home, "mail", "empty"), "")
	write(t, filepath.Join(home, "mail", ".subscriptions"), "crlf\n")
	own(t, src, home)
	from := ondisk.Mbox{Folders: ondisk.Place{Base: src.MailRoot, Path: user + "/mail"}, Inbox: ondisk.Place{Base: src.MailRoot, Path: user + "/spool"}}
	l := &mailtest.Ledger{}
	before := contents(t, from, l) // Dovecot writes into the files when it opens them
	want := served(t, src)
	same(t, content(want, "", "/"), content(before, "", "/"))

	put(t, src, "INBOX", 0, 10, 300)
	put(t, src, "INBOX", 10, 11, 2<<20)
	put(t, src, "Neu", 11, 16, 10)
	want = served(t, src)
	if n := len(want["INBOX"]); n != 16 {
		t.Errorf("Dovecot has %d messages in INBOX", n)
	}
	same(t, want, contents(t, from, &mailtest.Ledger{}))
	still := tree(t, home)
	j := job(from, dst)
	if r := pass(t, l, j, backfill.Options{}); r.Copied != 32 || len(r.Problems) > 0 {
		t.Errorf("first pass: %+v", r)
	}
	same(t, content(want, "", "/"), content(served(t, dst), "", "/"))
	for _, o := range []backfill.Options{{}, {Final: true}} {
		if r := pass(t, l, j, o); !r.Clean() || r.Messages != 32 {
			t.Errorf("second pass: %+v", r)
		}
	}
	if tree(t, home) != still {
		t.Error("something was written into the tree")
	}
	mboxChanges(t, src)
	if r := pass(t, l, j, backfill.Options{}); r.Copied != 1 || r.Flagged != 1 || len(r.Problems) > 0 {
		t.Errorf("after changes: %+v", r)
	}
	if r := pass(t, l, j, backfill.Options{}); !r.Clean() {
		t.Errorf("after changes, second pass: %+v", r)
	}
}

// mboxChanges has the server rewrite the file: everything moves.
func mboxChanges(t *testing.T, src *realtest.Dovecot) {
	t.Helper()
	cl := src.Login(t, user)
	if _, err := cl.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	flag := &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagFlagged}, Silent: true}
	if err := cl.Store(imap.UIDSetNum(3), flag, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if err := cl.Store(imap.UIDSetNum(2), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}, Silent: true}, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if err := cl.Expunge().Close(); err != nil {
		t.Fatal(err)
	}
	if err := cl.Logout().Wait(); err != nil {
		t.Fatal(err)
	}
	put(t, src, "INBOX", 90, 91, 10)
}

// TestMboxWithoutUIDs keeps its numbers when messages in front are removed, and
// tells two that are the same apart by their number.
func TestMboxWithoutUIDs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "inbox")
	msg := func(n int, extra string) string {
		return fmt.Sprintf("From a Fri Jan  2 03:04:05 2015\nSubject: %d\n%s\nbody\n\n", n, extra)
	}
	write(t, file, msg(1, "")+msg(2, "")+msg(2, "")+msg(3, "X-UID: 1\n"))
	from, l := ondisk.Mbox{Folders: ondisk.Place{Base: dir}}, &mailtest.Ledger{}
	first := contents(t, from, l)["INBOX"]
	if len(first) != 4 {
		t.Fatalf("%v", first)
	}
	write(t, file, msg(2, "Status: RO\n")+msg(2, "")+msg(3, "X-UID: 77\n")+msg(4, ""))
	second := contents(t, from, l)["INBOX"]
	for i, want := range []uint32{2, 3, 4, 5} {
		if second[i].UID != want || i < 3 && second[i].Body != first[i+1].Body {
			t.Errorf("%+v", second)
		}
	}
}

// TestMboxThatIsChangedWhileItIsRead: whatever somebody does to the file between
// the list and the messages, no message is handed on under another's UID.
func TestMboxThatIsChangedWhileItIsRead(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "INBOX")
	msg := func(n int) string {
		return fmt.Sprintf("From a Fri Jan  2 03:04:05 2015\nSubject: %04d\n\nbody\n\n", n)
	}
	write(t, file, msg(1)+msg(2)+msg(3))
	box := open(t, ondisk.Mbox{Folders: ondisk.Place{Base: dir}}, &mailtest.Ledger{})
	folders, err := box.List()
	if err != nil || len(folders) != 1 {
		t.Fatal(folders, err)
	}
	r := box.NewReader()
	if _, err := r.Select(folders[0]); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	// The same size, and a writer who even sets the time back.
	write(t, file, msg(3)+msg(9)+msg(1))
	if err := os.Chtimes(file, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	k := &taker{t: t}
	failures, err := r.Fetch([]uint32{1, 2, 3}, imapconn.Items{Body: true, Flags: true, Date: true}, k)
	if err != nil {
		t.Fatal(err)
	}
	for uid, b := range k.bytes {
		if !strings.Contains(string(b), fmt.Sprintf("Subject: %04d", uid)) {
			t.Errorf("UID %d is %q", uid, b)
		}
	}
	if len(k.msgs)+len(failures) != 3 {
		t.Errorf("%v %v", k.msgs, failures)
	}
	// With a new time it is read anew, and what is still there is found.
	write(t, file, msg(3)+msg(9)+msg(1))
	if _, err := r.Select(folders[0]); err != nil {
		t.Fatal(err)
	}
	k = &taker{t: t}
	failures, err = r.Fetch([]uint32{1, 2, 3}, imapconn.Items{Body: true, Flags: true, Date: true}, k)
	if err != nil || len(k.msgs) != 2 || len(failures) != 1 || !failures[0].Gone || failures[0].UID != 2 {
		t.Errorf("%v, %+v, %v", k.msgs, failures, err)
	}
}

// TestMboxLocks: a lock is waited for, and a stale one is not.
func TestMboxLocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "INBOX")
	write(t, file, mboxText)
	write(t, file+".lock", "")
	from := ondisk.Mbox{Folders: ondisk.Place{Base: dir, Path: "INBOX"}}
	box := open(t, from, &mailtest.Ledger{})
	if _, err := box.List(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, errs, err := box.Statuses([]string{"INBOX"})
	if err != nil || errs["INBOX"] == nil || !errors.Is(errs["INBOX"], backfill.ErrFolder) || time.Since(began) > 20*time.Second {
		t.Errorf("locked: %v, %v after %v", errs, err, time.Since(began))
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file+".lock", old, old); err != nil {
		t.Fatal(err)
	}
	if _, errs, err = box.Statuses([]string{"INBOX"}); err != nil || len(errs) > 0 {
		t.Errorf("stale lock: %v, %v", errs, err)
	}
}

// TestMboxOddTrees: what is no mbox is told, and nothing outside is read.
func TestMboxOddTrees(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "anna")
	write(t, filepath.Join(base, "other"), mboxText)
	write(t, filepath.Join(dir, "notes.txt"), "just text\n")
	write(t, filepath.Join(dir, "inbox"), "From MAILER-DAEMON Fri Jan  2 03:04:05 2015\nSubject: DON'T DELETE\nX-IMAP: 1420000000 0000000012\nStatus: RO\n\ninternal\n\n"+
		"From a Fri Jan  2 03:04:05 2015\nSubject: c\nX-UID: 12\n\nbody\n")
	if err := os.Symlink("../other", filepath.Join(dir, "stolen")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	box := open(t, ondisk.Mbox{Folders: ondisk.Place{Base: base, Path: "anna"}}, &mailtest.Ledger{})
	folders, err := box.List()
	if err != nil || len(folders) != 4 {
		t.Fatal(folders, err)
	}
	st, errs, err := box.Statuses([]string{"INBOX", "notes.txt", "pipe", "stolen"})
	if err != nil || len(errs) != 3 || !strings.Contains(errs["notes.txt"].Error(), "no mbox") {
		t.Errorf("%v, %v", errs, err)
	}
	if s := st["INBOX"]; s.Messages != 1 || s.UIDNext != 13 || s.UIDValidity != 1420000000 {
		t.Errorf("%+v", s)
	}
}

// TestMboxOfAUserWhoIsNotThere: nobody's mailbox is not an empty one, and neither
// is one whose file system is not mounted.
func TestMboxOfAUserWhoIsNotThere(t *testing.T) {
	base := t.TempDir()
	place := func(levels ...string) ondisk.Place { return ondisk.Place{Base: base, Path: filepath.Join(levels...)} }
	for _, dir := range []string{"home/anna/mail", "home/bert/mail", "spool", "bare"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(base, "spool", "carla"), mboxText)
	write(t, filepath.Join(base, "home", "bert", "mail", "sent"), mboxText)
	for name, c := range map[string]struct {
		folders, inbox ondisk.Place
		want           string // of the error; "" for none
		messages       map[string]int
	}{
		"nobody":                  {place("home/nobody/mail"), place("spool/nobody"), "neither", nil},
		"nobody, no home":         {place("no/nobody"), place("spool/nobody"), "neither", nil},
		"INBOX only":              {place("home/carla/mail"), place("spool/carla"), "", map[string]int{"INBOX": 5}},
		"folders only":            {place("home/bert/mail"), place("spool/bert"), "", map[string]int{"INBOX": 0, "sent": 5}},
		"no mail at all":          {place("home/anna/mail"), place("spool/anna"), "", map[string]int{"INBOX": 0}},
		"spool not mounted":       {place("home/bert/mail"), place("bare/bert"), "mounted", nil},
		"no spool":                {place("home/bert/mail"), place("nowhere/bert"), "mounted", nil},
		"folders not mounted":     {place("bare"), ondisk.Place{}, "mounted", nil},
		"no folders and no INBOX": {place("home/nobody/mail"), ondisk.Place{}, "no such file", nil},
	} {
		t.Run(name, func(t *testing.T) {
			from := ondisk.Mbox{Folders: c.folders, Inbox: c.inbox}
			if c.want != "" {
				if box, err := from.Open(t.Context(), nil); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, %v", box, err)
				}
				return
			}
			got := map[string]int{}
			for folder, msgs := range contents(t, from, &mailtest.Ledger{}) {
				got[folder] = len(msgs)
			}
			same(t, c.messages, got)
		})
	}
}

// TestMboxFirstMessageThatOnlyLooksLikeNotes: the field that the server's own
// notes have may be in anybody's mail.
func TestMboxFirstMessageThatOnlyLooksLikeNotes(t *testing.T) {
	const field = "X-IMAP: 1420000000 0000000012\n"
	for text, want := range map[string]int{
		"From eve@example.net Fri Jan  2 03:04:05 2015\nSubject: hello\n" + field + "\nmail\n":                                                          1,
		"From MAILER-DAEMON Fri Jan  2 03:04:05 2015\nSubject: DON'T DELETE\n" + field + "\ninternal\n":                                                 0,
		"From anna Fri Jan  2 03:04:05 2015\n" + field + "Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\n\ninternal\n":                     0,
		"From a Fri Jan  2 03:04:05 2015\n\nfirst\n\nFrom MAILER-DAEMON Fri Jan  2 03:04:05 2015\n" + field + "Subject: FOLDER INTERNAL DATA\n\nmail\n": 2,
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "INBOX"), text)
		if got := contents(t, ondisk.Mbox{Folders: ondisk.Place{Base: dir}}, &mailtest.Ledger{})["INBOX"]; len(got) != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestMboxPassEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "INBOX"), mboxText)
	box := open(t, ondisk.Mbox{Folders: ondisk.Place{Base: dir}}, &mailtest.Ledger{})
	folders, err := box.List()
	if err != nil {
		t.Fatal(err)
	}
	r := box.NewReader()
	if _, err := r.Select(folders[0]); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	_, err = r.Fetch([]uint32{1, 2}, imapconn.Items{Body: true}, failing{stop})
	if !errors.Is(err, stop) {
		t.Errorf("an error of the receiver came back as %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n, err := backfill.NewNumbers(t.Context(), &mailtest.Ledger{}, user)
	if err != nil {
		t.Fatal(err)
	}
	gone, err := ondisk.Mbox{Folders: ondisk.Place{Base: dir}}.Open(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	if _, _, err := gone.Statuses([]string{"INBOX"}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) Begin(uint32, int64) (io.Writer, error) { return nil, f.err }
func (f failing) End(imapconn.Meta) error                { return f.err }
