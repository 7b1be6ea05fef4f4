package ondisk_test

import (
	"fmt"
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

// TestMaildirIsReadAsDovecotServesIt compares what lies on the disk with what its
// server says: folders, UIDs, octets, dates, flags and keywords, and then copies.
func TestMaildirIsReadAsDovecotServesIt(t *testing.T) {
	for _, c := range []struct {
		layout        realtest.Layout
		prefix, delim string
	}{{realtest.DotINBOX, "INBOX.", "."}, {realtest.Slash, "", "/"}} {
		t.Run(c.prefix+c.delim, func(t *testing.T) {
			t.Parallel()
			src := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: c.layout, MailFsync: "never"})
			dst := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: realtest.Slash, MailFsync: "never"})
			name := func(levels ...string) string { return c.prefix + strings.Join(levels, c.delim) }
			put(t, src, "INBOX", 0, 40, 300)
			put(t, src, "INBOX", 40, 41, 2<<20)
			put(t, src, name("Projekte", "Grün & Weiß", "2024"), 50, 60, 10)
			put(t, src, name("leer"), 0, 0, 0)
			cl := src.Login(t, user)
			if err := cl.Subscribe(name("leer")).Wait(); err != nil {
				t.Fatal(err)
			}
			from := ondisk.Maildir{Place: ondisk.Place{Base: src.MailRoot, Path: user + "/Maildir"}}
			l := &mailtest.Ledger{}
			want := served(t, src)
			before := tree(t, src.MailRoot)
			same(t, want, contents(t, from, l))
			folders, err := open(t, from, l).List()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range folders {
				if f.Subscribed != (f.Name == name("leer")) || f.Wire != imapconn.EncodeName(f.Name) {
					t.Errorf("%+v", f)
				}
			}
			j := job(from, dst)
			if r := pass(t, l, j, backfill.Options{}); r.Copied != 51 || len(r.Problems) > 0 {
				t.Errorf("first pass: %+v", r)
			}
			if after := tree(t, src.MailRoot); after != before {
				t.Error("something was written into the tree")
			}
			same(t, content(want, c.prefix, c.delim), content(served(t, dst), "", "/"))
			for _, o := range []backfill.Options{{}, {Final: true}} {
				if r := pass(t, l, j, o); !r.Clean() || r.Messages != 51 {
					t.Errorf("second pass: %+v", r)
				}
			}
			if v, err := (&backfill.Copier{Ledger: l}).Verify(t.Context(), j); err != nil || !v.OK() || len(v.Problems) > 0 {
				t.Errorf("verify: %+v, %v", v, err)
			}
			changesComeOver(t, src, dst, l, j)
			same(t, content(served(t, src), c.prefix, c.delim), content(served(t, dst), "", "/"))
		})
	}
}

// changesComeOver changes the old mailbox by its server, and without it.
func changesComeOver(t *testing.T, src, dst *realtest.Dovecot, l backfill.Ledger, j backfill.Job) {
	t.Helper()
	cl := src.Login(t, user)
	if _, err := cl.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	for _, ch := range []struct {
		uid  imap.UID
		op   imap.StoreFlagsOp
		flag imap.Flag
	}{{1, imap.StoreFlagsAdd, imap.FlagDraft}, {8, imap.StoreFlagsDel, imap.FlagFlagged}, {3, imap.StoreFlagsAdd, "later"}} {
		if err := cl.Store(imap.UIDSetNum(ch.uid), &imap.StoreFlags{Op: ch.op, Flags: []imap.Flag{ch.flag}, Silent: true}, nil).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.Logout().Wait(); err != nil {
		t.Fatal(err)
	}
	// Delivered by something that knows nothing of UIDs: it is copied under a number
	// of ours, and is the same message when the server has numbered it.
	inbox := filepath.Join(src.MailRoot, user, "Maildir", "new")
	if err := os.MkdirAll(inbox, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(inbox, "1500000000.M1P2.host")
	write(t, file, "Subject: by procmail\n\nlines\nthat end in LF\n")
	when := time.Unix(1500000000, 0)
	if err := os.Chtimes(file, when, when); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Dir(inbox)); err == nil {
		own := st.Sys().(*syscall.Stat_t)
		if err := os.Chown(file, int(own.Uid), int(own.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if r := pass(t, l, j, backfill.Options{}); r.Copied != 1 || r.Flagged != 3 || len(r.Problems) > 0 {
		t.Errorf("pass after changes: %+v", r)
	}
	if msgs := src.Messages(t, user, "INBOX"); msgs[len(msgs)-1].UID != 42 {
		t.Fatalf("the server numbered it %d", msgs[len(msgs)-1].UID)
	}
	if r := pass(t, l, j, backfill.Options{Final: true}); r.Copied+r.Adopted != 0 || len(r.Problems) > 0 {
		t.Errorf("pass after the server numbered it: %+v", r)
	}
}

// TestCourierMaildir reads a tree as Courier leaves it: UIDs, keywords in a list
// and in files beside it, subscriptions, and names in modified UTF-7.
func TestCourierMaildir(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/courier")); err != nil {
		t.Fatal(err)
	}
	// A colon and a leading dot in a file's name are not for every checkout.
	for _, f := range [][2]string{
		{"cur/1400000001.M1P1V1.mx,S=9999", ":2,S"}, {"cur/1400000002.M1P1V1.mx", ":2,FRTP"},
		{"dot.Gr&APwA3w-e.sub/cur/1400000009.M9.mx", ":2,"}, {"courierimapkeywords/list", ""},
	} {
		to := filepath.Join(dir, strings.Replace(f[0], "dot.", ".", 1)+f[1])
		if f[1] == "" {
			to = filepath.Join(dir, "courierimapkeywords", ":list")
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, f[0]), to); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "dot.Gr&APwA3w-e.sub")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, ".Gr&APwA3w-e.sub", "courierimapuiddb"), "1 1400000000 1\n")
	for i, f := range []string{"cur/1400000001.M1P1V1.mx,S=9999:2,S", "cur/1400000002.M1P1V1.mx:2,FRTP"} {
		when := time.Unix(1400000001+int64(i), 0)
		if err := os.Chtimes(filepath.Join(dir, f), when, when); err != nil {
			t.Fatal(err)
		}
	}
	from := ondisk.Maildir{Place: ondisk.Place{Base: dir}}
	box := open(t, from, &mailtest.Ledger{})
	folders, err := box.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(folders) != 2 || folders[1].Name != "INBOX.Grüße.sub" || folders[1].Wire != "INBOX.Gr&APwA3w-e.sub" || !folders[1].Subscribed || !folders[0].Subscribed {
		t.Fatalf("%+v", folders)
	}
	msgs, failures := readFolder(t, box, folders[0])
	if len(failures) > 0 {
		t.Errorf("%v", failures)
	}
	body := []byte("Subject: one\r\n\r\nfirst\r\n")
	want := []seen{
		look(4, body, time.Unix(1400000001, 0), []string{`\Seen`, "$Forwarded", "urgent"}),
		look(7, []byte("Subject: two\r\n\r\nwith CRLF\r\non disk\r\n"), time.Unix(1400000002, 0), []string{`\Answered`, `\Deleted`, `\Flagged`, "$Forwarded", "newer"}),
	}
	same(t, want, msgs)
	st, errs, err := box.Statuses([]string{"INBOX", folders[1].Wire})
	if err != nil || len(errs) > 0 {
		t.Fatal(err, errs)
	}
	if s := st["INBOX"]; s.UIDValidity != 1399999999 || s.UIDNext != 8 || s.Messages != 2 || s.ModSeq == 0 {
		t.Errorf("%+v", s)
	}
	// The other one is not in Courier's list yet.
	if s := st[folders[1].Wire]; s.UIDValidity != 1400000000 || s.UIDNext != 1<<31+1 || s.Messages != 1 {
		t.Errorf("%+v", s)
	}
}

// TestMaildirWithoutUIDs keeps its numbers over renames, deletions and passes.
func TestMaildirWithoutUIDs(t *testing.T) {
	dst := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never"})
	dir := t.TempDir()
	for n := range 20 {
		write(t, filepath.Join(dir, "new", fmt.Sprintf("14000000%02d.x.host", n)), fmt.Sprintf("Subject: %d\n\nbody\n", n))
	}
	write(t, filepath.Join(dir, ".Ä Umlaut & Co", "cur", "1.a:2,S"), "Subject: utf8\n\nname\n")
	from, l := ondisk.Maildir{Place: ondisk.Place{Base: filepath.Dir(dir), Path: filepath.Base(dir)}}, &mailtest.Ledger{}
	if r := pass(t, l, job(from, dst), backfill.Options{}); r.Copied != 21 || len(r.Problems) > 0 {
		t.Fatalf("%+v", r)
	}
	if err := os.Mkdir(filepath.Join(dir, "cur"), 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		old := filepath.Join(dir, "new", fmt.Sprintf("14000000%02d.x.host", n))
		if err := os.Rename(old, filepath.Join(dir, "cur", fmt.Sprintf("14000000%02d.x.host:2,S", n))); err != nil {
			t.Fatal(err)
		}
	}
	if r := pass(t, l, job(from, dst), backfill.Options{}); r.Copied != 0 || r.Flagged != 10 {
		t.Errorf("after they were read: %+v", r)
	}
	if got := served(t, dst); len(got["INBOX"]) != 20 || len(got["Ä Umlaut & Co"]) != 1 {
		t.Errorf("%v", got)
	}
	// The ledger is lost: what is there is known by its content.
	if r := pass(t, &mailtest.Ledger{}, job(from, dst), backfill.Options{}); r.Copied != 0 || r.Adopted != 21 {
		t.Errorf("without a ledger: %+v", r)
	}
}

// TestMaildirNeverLosesWhatIsRenamed reads folders while every message in them
// is given other flags all the time.
func TestMaildirNeverLosesWhatIsRenamed(t *testing.T) {
	dir := t.TempDir()
	const count = 1500
	for n := range count {
		write(t, filepath.Join(dir, "new", fmt.Sprintf("%d.x", 1400000000+n)), fmt.Sprintf("Subject: %d\n\nbody\n", n))
	}
	if err := os.Mkdir(filepath.Join(dir, "cur"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := &mailtest.Ledger{}
	from := ondisk.Maildir{Place: ondisk.Place{Base: dir}}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- renameAll(dir, count, stop) }()
	box := open(t, from, l)
	if _, err := box.List(); err != nil {
		t.Fatal(err)
	}
	r := box.NewReader()
	for range 6 {
		sel, err := r.Select(imapconn.Folder{Name: "INBOX", Wire: "INBOX"})
		if err != nil || sel.Exists != count || sel.UIDNext != count+1 {
			t.Fatalf("%+v, %v", sel, err)
		}
	}
	k := &taker{t: t}
	failures, err := r.Fetch([]uint32{1, 2, 3, 500, 1000, 1499, 1500}, imapconn.Items{Body: true, Flags: true, Date: true}, k)
	if err != nil || len(failures) > 0 {
		t.Fatalf("%v, %v", failures, err)
	}
	for uid, b := range k.bytes {
		if want := fmt.Sprintf("Subject: %d\r\n\r\nbody\r\n", uid-1); string(b) != want {
			t.Errorf("UID %d is %q", uid, b)
		}
	}
	r.Close()
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// renameAll moves messages from new/ to cur/ and changes their flags, in bursts.
func renameAll(dir string, count int, stop chan struct{}) error {
	name := make([]string, count)
	for n := range name {
		name[n] = filepath.Join(dir, "new", fmt.Sprintf("%d.x", 1400000000+n))
	}
	for round := 0; ; round++ {
		for n := range name {
			to := filepath.Join(dir, "cur", fmt.Sprintf("%d.x:2,%s", 1400000000+n, []string{"S", "FS", ""}[round%3]))
			if err := os.Rename(name[n], to); err != nil {
				return err
			}
			name[n] = to
			if n%200 != 0 {
				continue
			}
			select {
			case <-stop:
				return nil
			case <-time.After(time.Millisecond):
			}
		}
	}
}

// TestMaildirRefusesWhatLeavesTheTree: a link of one user must not show another's
// mail, and a pipe must not stop anybody.
func TestMaildirRefusesWhatLeavesTheTree(t *testing.T) {
	base := t.TempDir()
	write(t, filepath.Join(base, "other", "cur", "1.secret:2,"), "Subject: secret\n\n")
	write(t, filepath.Join(base, "anna", "cur", "2.mine:2,"), "Subject: mine\n\n")
	anna := filepath.Join(base, "anna")
	for link, to := range map[string]string{"cur/3.stolen:2,": "../../other/cur/1.secret:2,", ".Stolen": "../other"} {
		if err := os.Symlink(to, filepath.Join(anna, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(anna, "cur", "4.pipe:2,"), 0o644); err != nil {
		t.Fatal(err)
	}
	from := ondisk.Maildir{Place: ondisk.Place{Base: base, Path: "anna"}}
	box := open(t, from, &mailtest.Ledger{})
	folders, err := box.List()
	if err != nil || len(folders) != 2 {
		t.Fatal(folders, err)
	}
	msgs, failures := readFolder(t, box, folders[0])
	if len(msgs) != 1 || len(failures) != 2 || failures[0].Gone || failures[1].Gone {
		t.Errorf("%v, %+v", msgs, failures)
	}
	if _, errs, err := box.Statuses([]string{"INBOX", folders[1].Wire}); err != nil || len(errs) != 1 || errs[folders[1].Wire] == nil {
		t.Errorf("the link is not refused: %v, %v", errs, err)
	}
	for _, path := range []string{"../anna", "nobody", "other/.."} {
		if _, err := (ondisk.Maildir{Place: ondisk.Place{Base: filepath.Join(base, "anna"), Path: path}}).Open(t.Context(), nil); err == nil {
			t.Errorf("%q was opened", path)
		}
	}
}

// TestMaildirNumbersStayWhenAServerBegins: a tree that was read without UIDs, and
// that Dovecot opens later, has the same messages.
func TestMaildirNumbersStayWhenAServerBegins(t *testing.T) {
	dir := t.TempDir()
	var list strings.Builder
	list.WriteString("3 V1400000000 N21 G3085f01b7f11094c501100008c4a11c1\n")
	for n := range 20 {
		name := fmt.Sprintf("%d.M1P1.host", 1400000000+n)
		write(t, filepath.Join(dir, "cur", name+":2,S"), fmt.Sprintf("Subject: %d\n\nbody\n", n))
		fmt.Fprintf(&list, "%d :%s\n", 20-n, name) // in an order of its own
	}
	from, l := ondisk.Maildir{Place: ondisk.Place{Base: dir}}, &mailtest.Ledger{}
	before := contents(t, from, l)
	box := open(t, from, l)
	if _, err := box.List(); err != nil {
		t.Fatal(err)
	}
	first, _, err := box.Statuses([]string{"INBOX"})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "dovecot-uidlist"), list.String())
	second, _, err := box.Statuses([]string{"INBOX"})
	if err != nil || first["INBOX"] != second["INBOX"] {
		t.Errorf("%+v, then %+v, %v", first, second, err)
	}
	same(t, before, contents(t, from, l))
}

// TestMaildirThatIsNotThere: an empty mount point is no empty mailbox.
func TestMaildirThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	_, err := ondisk.Maildir{Place: ondisk.Place{Base: dir}}.Open(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("%v", err)
	}
	write(t, filepath.Join(dir, "cur", "1.a:2,"), "x\n")
	write(t, filepath.Join(dir, ".A", "cur", "1.a:2,"), "x\n")
	write(t, filepath.Join(dir, "B", "cur", "1.a:2,"), "x\n")
	from := ondisk.Maildir{Place: ondisk.Place{Base: dir}}
	if _, err := open(t, from, &mailtest.Ledger{}).List(); err == nil || !strings.Contains(err.Error(), "layout=") {
		t.Errorf("%v", err)
	}
	for layout, want := range map[ondisk.Layout]string{ondisk.LayoutPlus: "INBOX.A", ondisk.LayoutFS: "B"} {
		from.Layout = layout
		folders, err := open(t, from, &mailtest.Ledger{}).List()
		if err != nil || len(folders) != 2 || folders[1].Name != want {
			t.Errorf("%s: %v, %v", layout, folders, err)
		}
	}
}
