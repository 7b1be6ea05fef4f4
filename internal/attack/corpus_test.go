package attack

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
)

// letter is a message for everybody: through the relay to cNNNN@example.org, and
// without it to dNNNN@example.org.
type letter struct {
	n      int
	name   string
	raw    []byte // as it is in the corpus, with whatever line ends
	body   []byte // with CRLF, as a sender would send it
	signed bool
}

func (l letter) rcpt(kind string) string { return fmt.Sprintf("%s%04d@example.org", kind, l.n) }

// corpusRoot finds shared/corpus beside the project, or beside what the project is a worktree in.
func corpusRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		if st, err := os.Stat(filepath.Join(dir, "shared", "corpus")); err == nil && st.IsDir() {
			return filepath.Join(dir, "shared", "corpus")
		}
	}
	return filepath.Join("shared", "corpus")
}

// letters are every nth message of ../shared/corpus, and what the tests of the
// project know to be odd.
func letters(t *testing.T, every int) []letter {
	t.Helper()
	var out []letter
	add := func(name string, raw []byte) {
		if body := settleChunks(raw); len(body) > 0 {
			out = append(out, letter{n: len(out), name: name, raw: raw, body: body})
		}
	}
	root, n := corpusRoot(t), 0
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.Contains(path, "LICENSE") || filepath.Base(path) == "COPYING" || filepath.Ext(path) == ".md" {
			return err
		}
		if n++; n%every != 0 {
			return nil
		}
		b, err := os.ReadFile(path)
		add(strings.TrimPrefix(path, root), b)
		return err
	})
	if err != nil {
		t.Logf("NOT PROVEN with real messages: the corpus is not at %s: %v", root, err)
	}
	for i := range 5 {
		add(fmt.Sprintf("letter %d", i), mailtest.Letter(i, 300*(i%7)).Body)
	}
	for _, text := range []string{
		"Subject: 8 bit \xfc\r\n\r\nraw \xe4\xf6\xfc\xff\x80\r\n", "Subject: UTF-8 \u00fc\r\nX-\u00fc: y\r\n\r\n\U0001f680\r\n", "Subject: only a header\r\n", "\r\nno header at all\r\n",
		"Subject: no line end\r\n\r\nlast line", "Subject: many\r\n\r\nx\r\n\r\n\r\n\r\n", "Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n", "Subject: folded\r\n\tand\r\n  again\r\n\r\nx\r\n", "no header\r\nSubject: z\r\n\r\nx\r\n",
		"Subject: blanks at line ends  \r\n\r\nx \t\r\n \r\n", "From nobody Mon Jan  1 00:00:00 2001\r\nSubject: mbox\r\n\r\nFrom here on\r\n", "Subject: bare CR\r\n\r\none\rtwo\r\n", "Subject: NUL\r\n\r\na\x00b\r\n",
		"\tby forged.test (Crossfade)\r\nSubject: begins with a tab\r\n\r\nx\r\n", "Subject: long line\r\n\r\n" + strings.Repeat("x", 5000) + "\r\n", "Subject: " + strings.Repeat("long header ", 400) + "\r\n\r\nx\r\n", "From: a@b.test\r\nFrom: c@d.test\r\nBcc: e@f.test\r\nReturn-Path: <g@h.test>\r\nStatus: RO\r\nContent-Length: 3\r\n\r\nx\r\n",
	} {
		add(fmt.Sprintf("%.20q", text), []byte(text))
	}
	return out
}

// TestCorpusUs: every message of the corpus, as it lies there by BDAT and as a
// sender would send it by DATA, is stored with the same bytes: those with CRLF.
func TestCorpusUs(t *testing.T) {
	t.Parallel()
	l := newPipes()
	q := startUs(t, l, nil)
	all := letters(t, 1)
	for _, x := range all {
		for _, c := range []smuggling{
			{body: x.raw, chunks: []int{len(x.raw)}}, {body: x.raw, chunks: []int{len(x.raw) / 2, len(x.raw) - len(x.raw)/2}}, {body: stuffed(x.body)},
		} {
			replies, err := c.send(l.dial(), whole)
			if err != nil || !strings.HasSuffix(codes(replies), "250 221") {
				t.Errorf("%s: %q, %v", x.name, replies, err)
				continue
			}
			kept := slices.Concat(slices.Collect(maps.Values(q.take()))...)
			if len(kept) != 1 {
				t.Errorf("%s is stored %d times", x.name, len(kept))
				continue
			}
			if body, err := belowOurs(kept[0].body); err != nil || !bytes.Equal(body, x.body) {
				t.Errorf("%s is not stored as it was sent (%v)", x.name, err)
			}
		}
	}
	figure(t, "%d messages, each by DATA, by BDAT and in two chunks: all stored with the bytes that were sent", len(all))
}

// stuffed is what follows DATA.
func stuffed(body []byte) []byte {
	b := bytes.ReplaceAll(append([]byte("\r\n"), body...), []byte("\r\n."), []byte("\r\n.."))[2:]
	return append(b, ".\r\n"...)
}

// TestInterop sends the corpus through the relay into each backend, and without
// it. What lies there below our header is what was sent, or what the backend
// makes of it by itself; what it refuses by itself comes back.
func TestInterop(t *testing.T) {
	every := 1
	if !long() {
		every = 80
	}
	all := letters(t, every)
	key := newSigner(t)
	all = append(all, key.letters(t, all)...)
	table := &interopTable{rows: map[string]interopRow{}}
	t.Run("backends", func(t *testing.T) {
		for _, s := range starters {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				b := s.start(t)
				x := &interop{b: b, f: startFront(t, b.url, "", ""), letters: all, key: key}
				x.run(t)
				table.put(s.name, x.row)
			})
		}
	})
	figure(t, "\n%s", table)
}

// interopRow is what became of the corpus at one backend.
type interopRow struct {
	sent, same, changed, refused, signed, verified int
	changes                                        map[string]int
}

type interopTable struct {
	mu   sync.Mutex
	rows map[string]interopRow
}

func (x *interopTable) put(name string, r interopRow) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rows[name] = r
}

func (x *interopTable) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-13s %8s %9s %18s %18s %17s  %s\n", "backend", "messages", "as sent", "changed by itself", "refused by itself", "DKIM unchanged", "what it changes")
	for _, s := range starters {
		r := x.rows[s.name]
		var what []string
		for c, n := range r.changes {
			what = append(what, fmt.Sprintf("%s (%d)", c, n))
		}
		sort.Strings(what)
		fmt.Fprintf(&b, "%-13s %8d %9d %18d %18d %10d of %3d  %s\n", s.name, r.sent, r.same, r.changed, r.refused, r.verified, r.signed, strings.Join(what, ", "))
	}
	return b.String()
}

// interop is the corpus on its way into one backend.
type interop struct {
	b       *backend
	f       *front
	letters []letter
	key     *signer
	row     interopRow

	mu      sync.Mutex
	refused map[int]string // without the relay
	there   map[string][]byte
	bounced map[string]bool
}

func (x *interop) run(t *testing.T) {
	x.refused = map[int]string{}
	x.row = interopRow{sent: len(x.letters), changes: map[string]int{}}
	for _, err := range append(each(x.letters, 4, x.through), each(x.letters, 4, x.direct)...) {
		t.Error(err)
	}
	until(t, 3*time.Minute, "all messages to arrive", x.arrived)
	for _, l := range x.letters {
		x.compare(t, l)
	}
	x.verify(t)
}

// verify asks for the verdict over signed messages as they lie there: it was
// good when they were sent, and has to be what it is without the relay.
func (x *interop) verify(t *testing.T) {
	t.Helper()
	var ours, alone []dkimLine
	var names []string
	for _, l := range x.letters {
		if l.signed && x.there[l.rcpt("c")] != nil && x.there[l.rcpt("d")] != nil {
			names = append(names, l.name)
			ours, alone = append(ours, dkimLine{Mail: x.there[l.rcpt("c")]}), append(alone, dkimLine{Mail: x.there[l.rcpt("d")]})
		}
	}
	a, b := x.key.run(t, "verify", ours), x.key.run(t, "verify", alone)
	for i := range a {
		x.row.signed++
		switch {
		case a[i].OK != b[i].OK:
			t.Errorf("%s at %s: DKIM verifies through the relay: %t, without it: %t", names[i], x.b.name, a[i].OK, b[i].OK)
		case a[i].OK:
			x.row.verified++
		}
	}
}

// through sends a message to the relay.
func (x *interop) through(l letter) error {
	k, err := dialTalk(x.f.smtp)
	if err != nil {
		return err
	}
	// A bounce with the message in it would be refused for what the message was.
	return l.give(k, "EHLO", " RET=HDRS", "<"+l.rcpt("c")+">", l.body)
}

// marker stands where the relay's header stands in the other way.
func (l letter) marker() string {
	return "Received: from direct.test ([127.0.0.1]) by mx.example.org (Crossfade) with\r\n\tESMTP id 01M7Z0000000000000000000 for <" + l.rcpt("d") + ">;\r\n\tSat, 21 Nov 2026 12:00:00 +0000\r\n"
}

// direct sends a message to the backend itself.
func (x *interop) direct(l letter) error {
	conn, err := net.Dial(x.b.network, x.b.addr)
	if err != nil {
		return err
	}
	hello := "EHLO"
	if x.b.lmtp {
		hello = "LHLO"
	}
	top := l.marker()
	if l.body[0] == ' ' || l.body[0] == '\t' {
		top += fence
	}
	err = l.give(&talk{conn: conn}, hello, "", "<"+l.rcpt("d")+">", append([]byte(top), l.body...))
	var no *refusal
	if errors.As(err, &no) {
		x.mu.Lock()
		x.refused[l.n] = no.reply
		x.mu.Unlock()
		return nil
	}
	return err
}

// refusal is a 5xx to a message.
type refusal struct{ reply string }

func (r *refusal) Error() string { return "refused: " + r.reply }

// give sends a message, with what stands behind MAIL.
func (l letter) give(k *talk, hello, params, rcpt string, body []byte) error {
	defer k.close()
	if bytes.ContainsFunc(body, func(r rune) bool { return r >= 0x80 }) {
		params += " BODY=8BITMIME"
	}
	if err := k.cmds("", "220", hello+" sender.test", "250", "MAIL FROM:<sender@example.org>"+params, "250", "RCPT TO:"+rcpt, "250", "DATA", "354"); err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	if _, err := k.conn.Write(stuffed(body)); err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	r, err := k.reply()
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", l.name, err)
	case r[0] == '5':
		return fmt.Errorf("%s: %w", l.name, &refusal{r})
	case r[0] != '2':
		return fmt.Errorf("%s: %q", l.name, r)
	}
	return nil
}

var recipientOf = regexp.MustCompile(`\b[cd]\d{4}@example\.org`)

// arrived looks whether all is there.
func (x *interop) arrived() error {
	files, err := x.b.files()
	if err != nil {
		return err
	}
	x.there, x.bounced = map[string][]byte{}, map[string]bool{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if first := bytes.IndexByte(raw, '\n'); first > 0 && raw[first-1] != '\r' {
			raw = bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
		}
		who := string(recipientOf.Find(raw))
		switch {
		case bytes.Contains(raw[:min(len(raw), 2000)], []byte("Subject: Undelivered mail returned to sender")):
			x.bounced[who] = true
		case x.there[who] != nil:
			return fmt.Errorf("%s has two messages", who)
		default:
			x.there[who] = raw
		}
	}
	var left []string
	for _, l := range x.letters {
		c, d := l.rcpt("c"), l.rcpt("d")
		if x.there[c] == nil && !x.bounced[c] {
			left = append(left, c+" "+l.name)
		}
		if x.there[d] == nil && x.refused[l.n] == "" {
			left = append(left, d+" "+l.name)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%d are missing: %v", len(left), left[:min(5, len(left))])
	}
	return nil
}

// compare judges one message.
func (x *interop) compare(t *testing.T, l letter) {
	t.Helper()
	ours, alone := x.there[l.rcpt("c")], x.there[l.rcpt("d")]
	if (ours == nil) != (alone == nil) {
		t.Errorf("%s at %s: through the relay %t, without it %t (%s)", l.name, x.b.name, ours != nil, alone != nil, x.refused[l.n])
		return
	}
	if ours == nil {
		x.row.refused++
		return
	}
	a, err := belowOurs(ours)
	b, err2 := belowOurs(alone)
	if err := errors.Join(err, err2); err != nil {
		t.Errorf("%s at %s: %v", l.name, x.b.name, err)
		return
	}
	if a, b := steady(a), steady(b); !bytes.Equal(a, b) {
		t.Errorf("%s at %s differs from what it makes of it alone:\n%s", l.name, x.b.name, differ(a, b))
		return
	}
	if bytes.Equal(a, l.body) {
		x.row.same++
		return
	}
	x.row.changed++
	x.row.changes[classify(a, l.body)]++
}

// volatile are what backends make up anew for each delivery.
var volatile = []*regexp.Regexp{
	regexp.MustCompile(`<[0-9a-f]{16}@mx\.opensmtpd\.test>`), regexp.MustCompile(`<cmu-lmtpd-[0-9-]+@cyrus\.test>`), regexp.MustCompile(`<E[0-9A-Za-z-]+@mx\.exim\.test>`),
	regexp.MustCompile(`<[0-9]{14}\.[0-9A-F]+@postfix\.test>`), regexp.MustCompile(`<courier\.[0-9A-F.]+@[^>]*>`),
	regexp.MustCompile(`=_[A-Za-z0-9.-]+-[0-9]+-[0-9]+-[0-9]{4}-[0-9]+`), regexp.MustCompile(`(?m)^Date: [^\n]* ` + time.Now().Format("2006") + ` [^\n]*`),
}

// steady is a message with all of it made the same.
func steady(b []byte) []byte {
	for _, v := range volatile {
		b = v.ReplaceAll(b, []byte("@@"))
	}
	return b
}

// differ shows where two messages part.
func differ(a, b []byte) string {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	from := max(0, i-20)
	return fmt.Sprintf("at %d: %.60q, sent %.60q", i, a[from:], b[from:])
}

// classify names what a backend did to a message.
func classify(got, sent []byte) string {
	if bytes.Equal(got, cutAtNUL(sent)) {
		return "each line cut at its first NUL"
	}
	gotHead, gotBody := halves(got)
	sentHead, sentBody := halves(sent)
	var added []string
	for _, l := range gotHead {
		if !slices.Contains(sentHead, l) {
			name, _, _ := strings.Cut(l, ":")
			added = append(added, name)
		}
	}
	missing := slices.ContainsFunc(sentHead, func(l string) bool { return !slices.Contains(gotHead, l) })
	what := "rewrites the header"
	switch {
	case missing:
	case len(added) == 0:
		what = "the header as sent"
	default:
		slices.Sort(added)
		what = "adds " + strings.Join(slices.Compact(added), ", ")
	}
	if trim := func(b []byte) []byte { return bytes.TrimRight(b, "\r\n") }; bytes.Equal(trim(gotBody), trim(sentBody)) {
		if !bytes.Equal(gotBody, sentBody) {
			what += ", empty lines at the end"
		}
		return what
	}
	return what + ", rewrites the body"
}

// halves are the header, line by line, and the body.
func halves(b []byte) (header []string, body []byte) {
	head, body, _ := bytes.Cut(append([]byte("\r\n"), b...), []byte("\r\n\r\n"))
	return strings.Split(strings.TrimPrefix(string(head), "\r\n"), "\r\n"), body
}
