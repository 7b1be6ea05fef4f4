package matrix

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// folder is a folder of the source with what is put into it.
type folder struct {
	levels     []string
	msgs       []mailtest.StoredMessage
	subscribed bool
}

func letters(from, to int) (out []mailtest.StoredMessage) {
	for n := from; n < to; n++ {
		out = append(out, mailtest.Letter(n, 300*(n%7)))
	}
	return out
}

// odd are messages with what real ones have and the rules do not allow, and what they allow and nobody expects.
func odd() []mailtest.StoredMessage {
	var out []mailtest.StoredMessage
	for i, text := range []string{
		"Subject: 8 bit \xfc and \xe9\r\n\r\nraw \xe4\xf6\xfc\xff\x80\r\n",
		"Subject: UTF-8 \u00fc\r\nX-\u00fc: y\r\n\r\n\U0001f680\r\n",
		"Subject: long line\r\n\r\n" + strings.Repeat("x", 70_000) + "\r\n",
		"Subject: long header " + strings.Repeat("y", 20_000) + "\r\n\r\nx\r\n",
		"Subject: no line end at the end\r\n\r\nlast line",
		"Subject: many line ends at the end\r\n\r\nx\r\n\r\n\r\n\r\n",
		"Subject: only a header\r\n",
		"Subject: header and an empty line\r\n\r\n",
		"\r\nno header at all\r\n",
		"From nobody Mon Jan  1 00:00:00 2001\r\nSubject: mbox line first\r\n\r\nFrom here on\r\n",
		"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n",
		"Subject: looks like a literal {5}\r\n\r\n{3}\r\n)\r\nA1 OK done\r\n",
		"Subject: folded\r\n\tand\r\n  folded again\r\n\r\nx\r\n",
		"this is not a header\r\nSubject: z\r\n\r\nx\r\n",
		"Subject: bare CR\r\n\r\none\rtwo\r\n",
		"Subject: bare CR at the end\r\n\r\none\r",
		"Subject: NUL\r\n\r\na\x00b\r\n",
		"Subject: bare LF\n\nunix\nlines\n",
	} {
		out = append(out, mailtest.StoredMessage{Body: []byte(text), InternalDate: time.Date(1999, 12, 31, 23, 59, i, 0, time.UTC)})
	}
	return out
}

// corpusRoot finds shared/corpus beside the project, or beside what the project is a worktree in.
func corpusRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		if root := filepath.Join(dir, "shared", "corpus"); isDir(root) {
			return root
		}
	}
	return filepath.Join("shared", "corpus")
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// corpus gives every nth message of ../shared/corpus.
func corpus(t testing.TB, every int) []mailtest.StoredMessage {
	t.Helper()
	root := corpusRoot(t)
	var out []mailtest.StoredMessage
	n := 0
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.Contains(filepath.Base(path), "LICENSE") || filepath.Ext(path) == ".md" {
			return err
		}
		if n++; n%every != 0 {
			return nil
		}
		b, err := os.ReadFile(path)
		if len(b) > 0 {
			out = append(out, mailtest.StoredMessage{Body: b, InternalDate: time.Date(2010, 1, 1, 0, 0, n, 0, time.UTC)})
		}
		return err
	})
	if err != nil {
		t.Logf("NOT PROVEN with real messages: the corpus is not at %s: %v", root, err)
	}
	return out
}

// mailbox says what a source is filled with.
func mailbox(t testing.TB, s server) []folder {
	every, many := 80, 30
	if long() {
		every, many = 3, 400
	}
	deleted := mailtest.Letter(900, 50)
	deleted.Flags = []string{`\Deleted`, `\Seen`}
	inbox := slices.Concat(letters(0, many), odd(), corpus(t, every), []mailtest.StoredMessage{deleted, mailtest.Letter(3, 900)}) // 3 is there twice
	foreign := "a.b"
	if s.Separator == "." {
		foreign = "a/b"
	}
	return []folder{
		{levels: []string{"INBOX"}, msgs: inbox, subscribed: true},
		{levels: []string{"Projekte", "Gr\u00fcn & Wei\u00df", "2024"}, msgs: letters(300, 305), subscribed: true},
		{levels: []string{"Gr\u00fc\u00dfe \U0001f680"}, msgs: letters(310, 312)},
		{levels: []string{"leer"}, subscribed: true},
		{levels: []string{foreign}, msgs: letters(320, 322)},
		{levels: []string{"a_b"}, msgs: letters(322, 324)},
		{levels: []string{"Ordner"}, msgs: letters(330, 332)},
		{levels: []string{"ORDNER"}, msgs: letters(332, 334)},
		{levels: []string{"Sent Items"}, msgs: letters(340, 343), subscribed: true},
		{levels: []string{"Papierkorb"}, msgs: letters(343, 345)},
		{levels: []string{"Entw\u00fcrfe"}, msgs: letters(345, 346)},
		{levels: []string{`quote " and \`}, msgs: letters(350, 351)},
		{levels: []string{"50% *"}, msgs: letters(351, 352)},
		{levels: []string{"tmp"}, msgs: letters(352, 353)},
		{levels: []string{"1", "2", "3", "4", "5", "6"}, msgs: letters(360, 362)},
	}
}

// fill puts a mailbox into the source. What the server does not take cannot be in anybody's mailbox there: it is logged and
// left out.
func fill(t testing.TB, s server, user string) {
	t.Helper()
	var refused []string
	for _, f := range mailbox(t, s) {
		name := s.Folder(f.levels...)
		c := s.Login(t, user)
		if name != "INBOX" {
			if err := c.Create(name, nil).Wait(); err != nil && !exists(t, s, user, name) {
				refused = append(refused, fmt.Sprintf("folder %q (%v)", name, err))
				_ = c.Close()
				continue
			}
		}
		if f.subscribed {
			if err := c.Subscribe(name).Wait(); err != nil {
				t.Errorf("%s: subscribe to %q: %v", s.name, name, err)
			}
		}
		for _, m := range f.msgs {
			if s.inbox != nil && name == "INBOX" && plant(t, s.inbox(user), m) {
				continue
			}
			err := put(c, name, m)
			if err != nil {
				_ = c.Close()
				c = s.Login(t, user)
				err = put(c, name, withCRLF(m)) // Cyrus takes no other line ends
			}
			if err != nil {
				subject, _, _ := strings.Cut(string(m.Body), "\r\n")
				refused = append(refused, fmt.Sprintf("%.30q (%v)", subject, err))
				_ = c.Close()
				c = s.Login(t, user)
			}
		}
		_ = c.Close()
	}
	if n := len(refused); n > 0 {
		t.Logf("%s does not take %d, so nobody has them there: %s", s.name, n, strings.Join(refused[:min(n, 10)], "; "))
	}
}

func withCRLF(m mailtest.StoredMessage) mailtest.StoredMessage {
	m.Body = bytes.ReplaceAll(bytes.ReplaceAll(m.Body, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
	return m
}

func exists(t testing.TB, s server, user, name string) bool {
	return slices.Contains(s.Folders(t, user), name)
}

// plant puts a message that APPEND would alter or refuse into a Maildir as it is, as a delivery agent might have done.
func plant(t testing.TB, dir string, m mailtest.StoredMessage) bool {
	t.Helper()
	if len(m.Flags) > 0 || !slices.Contains(m.Body, 0) && !slices.Contains(m.Body, '\r') {
		return false
	}
	if !strings.Contains(strings.ReplaceAll(string(m.Body), "\r\n", ""), "\r") && !slices.Contains(m.Body, 0) {
		return false
	}
	sub := filepath.Join(dir, "new")
	if _, err := os.Stat(sub); err != nil {
		return false // not made yet
	}
	entries, err := os.ReadDir(sub)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(sub, fmt.Sprintf("%d.M%dP1.planted", m.InternalDate.Unix(), len(entries)))
	if err := os.WriteFile(path, m.Body, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, m.InternalDate, m.InternalDate); err != nil {
		t.Fatal(err)
	}
	return true
}

func put(c *imapclient.Client, folder string, m mailtest.StoredMessage) error {
	opts := &imap.AppendOptions{Time: m.InternalDate}
	for _, f := range m.Flags {
		opts.Flags = append(opts.Flags, imap.Flag(f))
	}
	cmd := c.Append(folder, int64(len(m.Body)), opts)
	if _, err := cmd.Write(m.Body); err != nil {
		return err
	}
	if err := cmd.Close(); err != nil {
		return err
	}
	_, err := cmd.Wait()
	return err
}

// change is what happens to a mailbox between two passes: new mail, flags set and taken away, a message moved, one deleted,
// a new folder. It gives the number of messages that are new to the other side.
func change(t testing.TB, s server, user string) int {
	t.Helper()
	c := s.Login(t, user)
	defer func() { _ = c.Close() }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: change the mailbox: %v", s.name, err)
		}
	}
	deep, fresh := s.Folder("Projekte", "Gr\u00fcn & Wei\u00df", "2024"), s.Folder("neu", "von heute")
	must(put(c, "INBOX", mailtest.Letter(500, 100)))
	must(put(c, deep, mailtest.Letter(501, 2000)))
	must(c.Create(fresh, nil).Wait())
	must(put(c, fresh, mailtest.Letter(502, 10)))
	sel, err := c.Select("INBOX", nil).Wait()
	must(err)
	if sel.NumMessages < 20 {
		t.Fatalf("%s: INBOX has %d messages", s.name, sel.NumMessages)
	}
	must(c.Store(imap.SeqSetNum(1), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagFlagged, "$Label1"}}, nil).Close())
	must(c.Store(imap.SeqSetNum(2, 4), &imap.StoreFlags{Op: imap.StoreFlagsDel, Flags: []imap.Flag{imap.FlagSeen}}, nil).Close())
	_, err = c.Copy(imap.SeqSetNum(5), deep).Wait()
	must(err)
	must(c.Store(imap.SeqSetNum(5, 8), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}}, nil).Close())
	must(c.Expunge().Close())
	return 4
}
