package daemon_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// want is what must be in a mailbox: a message, as often as it was put there.
type want struct {
	count  int // copies that must be there
	maybe  int // sent, and the reply was lost: may be there or not
	sum    [sha256.Size]byte
	past   bool
	folder string // in the layout of new: "" is INBOX, "Archive/2025"
	flags  string // past mail: sorted letters of the Maildir name
	when   int64  // past mail: INTERNALDATE, seconds
}

// book is what must be somewhere in the end, by user and token.
type book struct {
	mu   sync.Mutex
	want map[string]map[string]*want
}

func newBook() *book { return &book{want: map[string]map[string]*want{}} }

// note adds one message for one user.
func (b *book) note(user, token string, w want) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.want[user] == nil {
		b.want[user] = map[string]*want{}
	}
	if have := b.want[user][token]; have != nil {
		have.count += w.count
		have.maybe += w.maybe
		return
	}
	b.want[user][token] = &w
}

// totals counts past and sent messages.
func (b *book) totals() (past, sent int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, user := range b.want {
		for _, w := range user {
			if w.past {
				past += w.count
			} else {
				sent += w.count
			}
		}
	}
	return past, sent
}

const tokenField = "X-E2e-Token: "

// kinds of messages that compose makes, and the one without a body.
const (
	kinds  = 8
	noBody = 6
)

// compose makes a message with CRLF line ends; equal arguments give equal
// messages. It begins with the token field.
func compose(token, messageID, to string, n int) []byte {
	rnd := rand.New(rand.NewPCG(uint64(n), 7))
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\nMessage-ID: %s\nFrom: Somebody <somebody@outside.test>\nTo: <%s>\nDate: Sat, 01 Mar 2025 08:00:00 +0000\n", tokenField, token, messageID, to)
	switch n % kinds {
	case 0:
		b.WriteString("Subject: short\n\nHello.\n")
	case 1:
		b.WriteString("Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nÄpfel, Öl und Übermut: 漢字 🚚\n")
	case 2:
		b.WriteString("Subject: latin-1, not UTF-8\nContent-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: 8bit\n\nGr\xfc\xdfe aus K\xf6ln \xff\xfe\x80\n")
	case 3:
		b.WriteString("Subject: long lines\n\n" + strings.Repeat("0123456789", 200+rnd.IntN(1500)) + "\n" + strings.Repeat("ä", 3000) + "\nend\n")
	case 4:
		b.WriteString("Subject: dots\n\n.\n..\n.a line\n...\n\n.\nFrom the start of a line\n>From quoted\n\n\n")
	case 5:
		raw := make([]byte, 8000+rnd.IntN(24000))
		for i := range raw {
			raw[i] = byte(rnd.UintN(256))
		}
		b.WriteString("Subject: attachment\nMIME-Version: 1.0\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n")
		for text := base64.StdEncoding.EncodeToString(raw); text != ""; {
			k := min(76, len(text))
			b.WriteString(text[:k] + "\n")
			text = text[k:]
		}
	case noBody:
		b.WriteString("Subject: no body\n\n")
	case 7:
		b.WriteString("Subject: folded\n header\n\tand 8-bit Gr\xc3\xbc\xc3\x9fe\nReceived: from a by b; Sat, 1 Mar 2025 08:00:00 +0000\nDelivered-To: somebody@else.test\n\nspaces at the end   \n\ttab\n")
	}
	return []byte(strings.ReplaceAll(b.String(), "\n", "\r\n"))
}

// lf is the form in which bodies are compared: Maildirs hold LF.
func lf(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")) }

// pastMessage is one message of a mailbox on old.
type pastMessage struct {
	token, folder, flags string // folder in the layout of new
	when                 time.Time
	body                 []byte
}

// pastMail makes n messages of a user: several folders and flags, Message-IDs
// that several different messages share, and messages that are there twice.
func pastMail(user string, seed, n int) []pastMessage {
	folders := []string{"", "", "Sent", "Archive/2025", "", "Archive/2025/Spring", "Lists"}
	flags := []string{"S", "", "RS", "FS", "S", "T"}
	local, _, _ := strings.Cut(user, "@")
	var all []pastMessage
	for i := range n {
		p := pastMessage{
			token: fmt.Sprintf("past-%s-%04d", local, i), folder: folders[i%len(folders)], flags: flags[(i+seed)%len(flags)],
			when: time.Date(2024, 5, 1, 8, 0, 0, 0, time.UTC).Add(time.Duration(i) * 5 * time.Hour),
		}
		id := fmt.Sprintf("<%d.%s@outside.test>", i-i%3, local) // three share one
		p.body = lf(append([]byte("Return-Path: <somebody@outside.test>\r\n"), compose(p.token, id, user, i+seed)...))
		all = append(all, p)
		if i%9 == 4 { // the very same message again, in the same folder
			all = append(all, p)
		}
		if i%9 == 5 { // and in another one
			p.folder = "Lists"
			p.token += "-lists"
			p.body = bytes.Replace(p.body, []byte(p.token[:len(p.token)-len("-lists")]), []byte(p.token), 1)
			all = append(all, p)
		}
	}
	return all
}

// fillMaildir writes past mail as an old server (Maildir++) would have it.
func fillMaildir(t *testing.T, root, user string, mail []pastMessage, b *book) {
	t.Helper()
	base := filepath.Join(root, user, "Maildir")
	for i, m := range mail {
		dir := base
		if m.folder != "" {
			dir = filepath.Join(base, "."+strings.ReplaceAll(m.folder, "/", "."))
		}
		for _, sub := range []string{"cur", "new", "tmp"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		name := filepath.Join(dir, "cur", fmt.Sprintf("%d.M%dP1.past,S=%d:2,%s", m.when.Unix(), i, len(m.body), m.flags))
		if err := os.WriteFile(name, m.body, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, m.when, m.when); err != nil {
			t.Fatal(err)
		}
		b.note(user, m.token, want{count: 1, sum: sha256.Sum256(m.body), past: true, folder: m.folder, flags: m.flags, when: m.when.Unix()})
	}
	chown(t, filepath.Join(root, user))
}

// chown gives a tree to the user that Dovecot works as.
func chown(t *testing.T, root string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Chown(path, mailOwner, mailOwner)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// found is one message file of a mailbox.
type found struct {
	path, token, folder, flags string
	queueID                    string // from the Received field of the product
	when                       int64
	sum                        [sha256.Size]byte // of what lies below the servers' fields
	whole                      [sha256.Size]byte
}

// readMaildir reads every message of a user. With dots, the layout is
// Maildir++, else nested directories.
func readMaildir(t *testing.T, root, user string, dots bool) []found {
	t.Helper()
	base := filepath.Join(root, user, "Maildir")
	var all []found
	err := filepath.WalkDir(base, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		sub := filepath.Base(filepath.Dir(path))
		if e.IsDir() || sub != "cur" && sub != "new" {
			return nil
		}
		f, err := readFound(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(base, filepath.Dir(filepath.Dir(path)))
		if err != nil {
			return err
		}
		if rel != "." {
			f.folder = rel
		}
		if dots {
			f.folder = strings.ReplaceAll(strings.TrimPrefix(f.folder, "."), ".", "/")
		}
		all = append(all, f)
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatalf("reading the Maildir of %s: %v", user, err)
	}
	return all
}

func readFound(path string) (f found, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return f, err
	}
	raw = lf(raw)
	f = found{path: path, when: info.ModTime().Unix(), whole: sha256.Sum256(raw)}
	if at := bytes.Index(raw, []byte(tokenField)); at >= 0 {
		line, _, _ := bytes.Cut(raw[at+len(tokenField):], []byte("\n"))
		f.token, f.sum = string(line), sha256.Sum256(raw[at:])
		f.queueID = queueID(string(raw[:at]))
	}
	if _, letters, ok := strings.Cut(filepath.Base(path), ":2,"); ok {
		flags := strings.Split(letters, "")
		slices.Sort(flags)
		f.flags = strings.Join(flags, "")
	}
	return f, nil
}

// queueID finds the product's id in the trace fields on top of a message.
func queueID(trace string) string {
	_, ours, ok := strings.Cut(trace, "by mx."+e2eDomain)
	if !ok {
		return ""
	}
	_, id, _ := strings.Cut(ours, " id ")
	return strings.Trim(strings.Fields(id + " ?")[0], ";")
}

// audit is the result of a count.
type audit struct {
	found, missing, twice, altered, stray, misplaced int
	doubles                                          map[string][]found // user and token -> copies, of sent mail that is there too often
}

// count compares what the user reads with the book. Every fault is reported
// but that of sent mail that is there twice, which the caller judges.
func (b *book) count(t *testing.T, user string, have []found) audit {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	a := audit{found: len(have), doubles: map[string][]found{}}
	seen := map[string][]found{}
	for _, f := range have {
		w := b.want[user][f.token]
		if w == nil {
			a.stray++
			t.Errorf("%s: a message that nobody sent to him: token %q in %s", user, f.token, f.path)
			continue
		}
		seen[f.token] = append(seen[f.token], f)
		sum := f.sum
		if w.past {
			sum = f.whole // nothing on top either
		}
		if sum != w.sum {
			a.altered++
			t.Errorf("%s: %s was altered: %s", user, f.token, f.path)
		}
		if w.folder != f.folder || w.past && (w.flags != f.flags || w.when != f.when) {
			a.misplaced++
			t.Errorf("%s: %s is in %q with flags %q and time %d, want %q, %q, %d", user, f.token, f.folder, f.flags, f.when, w.folder, w.flags, w.when)
		}
	}
	for token, w := range b.want[user] {
		switch n := len(seen[token]); {
		case n < w.count:
			a.missing += w.count - n
			t.Errorf("%s: %s is there %d times, want %d", user, token, n, w.count)
		case n > w.count+w.maybe && w.past:
			a.twice += n - w.count
			t.Errorf("%s: past mail %s is there %d times, want %d", user, token, n, w.count)
		case n > w.count+w.maybe:
			a.twice += n - w.count - w.maybe
			a.doubles[user+" "+token] = seen[token]
		}
	}
	return a
}

// add sums counts up.
func (a *audit) add(o audit) {
	a.found += o.found
	a.missing += o.missing
	a.twice += o.twice
	a.altered += o.altered
	a.stray += o.stray
	a.misplaced += o.misplaced
	if a.doubles == nil {
		a.doubles = map[string][]found{}
	}
	for k, v := range o.doubles {
		a.doubles[k] = v
	}
}
