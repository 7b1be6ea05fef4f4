package certificate

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"
)

var (
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	maker = Maker{Tool: "1.2.3", Relay: "1.2.2", State: "new", Now: noon}
)

// holds makes a folder; each message is named by a letter, its UID by its place.
func holds(folder, letters string) backfill.Holding {
	h := backfill.Holding{Folder: folder, Validity: 7, Messages: len(letters), Digest: hex.EncodeToString([]byte(letters))}
	for _, l := range letters {
		h.Keys = append(h.Keys, bytes.Repeat([]byte{byte(l)}, backfill.KeyOctets)...)
	}
	if len(letters) > 0 {
		h.UIDs = fmt.Sprintf("1:%d", len(letters))
	}
	return h
}

// hostile is text that strangers choose: names of folders and words of servers.
var hostile = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `</style><style>body{display:none}</style>`, `</svg><svg onload=alert(1)>`,
	`' onmouseover='alert(1)`, `{{.V.User}}`, `javascript:alert(1)`, "a\u202egnp.exe", "\u2028line", "nul\x00 esc\x1b[31m", `--><b>bold</b>`,
}

func verification() backfill.Verification {
	v := backfill.Verification{
		User: "anna@example.org", At: noon, Took: 90 * time.Second, Source: "old.example:993", Dest: "new.example:143", Missing: 2,
		Holds: []backfill.Holding{holds("INBOX", "aabcd")},
		History: []backfill.Point{{At: noon.Add(-time.Hour)}, {At: noon.Add(-30 * time.Minute), Messages: 600, Bytes: 100 << 20},
			{At: noon, Messages: 1000, Bytes: 120 << 20}},
	}
	for i, name := range hostile {
		v.Folders = append(v.Folders, backfill.FolderCheck{Source: name, Dest: "N/" + name, OnSource: 1000 + i, OnDest: 1001, Matched: 998, Missing: []uint32{3, 5}[:i%3%2*2],
			Classes: map[string]int{"altered": 1}, Validity: 1, Digest: "00"})
		v.Problems = append(v.Problems, backfill.Problem{Folder: name, UID: uint32(i + 1), Class: backfill.ClassRefused, Text: "the server said: " + name})
	}
	v.Problems = append(v.Problems, backfill.Problem{Folder: "INBOX", UIDs: "7:9", Count: 3, Class: backfill.ClassDeleted, Text: "gone"})
	for i := range shown + 20 {
		v.Problems = append(v.Problems, backfill.Problem{Folder: "INBOX", UID: uint32(i + 1), Class: backfill.ClassAltered, Text: "CR"})
	}
	return v
}

func sealed(t *testing.T, v backfill.Verification) (Certificate, []byte) {
	t.Helper()
	c, err := New(v, maker)
	if err != nil {
		t.Fatal(err)
	}
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return c, data
}

func TestRoundTrip(t *testing.T) {
	c, data := sealed(t, verification())
	got, err := Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.Encode()
	if err != nil || !bytes.Equal(again, data) || got.Sum != c.Sum {
		t.Errorf("read and written again it is another: %v", err)
	}
	// White space and the order of members mean nothing.
	var any map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&any); err != nil {
		t.Fatal(err)
	}
	other, err := json.Marshal(any)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(bytes.NewReader(other)); err != nil {
		t.Errorf("written in another way: %v", err)
	}
}

// TestAnyChangeIsSeen changes each octet that is not white space, one at a time.
func TestAnyChangeIsSeen(t *testing.T) {
	v := verification()
	v.Problems, v.Folders = v.Problems[:2], v.Folders[:2]
	_, data := sealed(t, v)
	for i, c := range data {
		if c == ' ' || c == '\n' {
			continue
		}
		broken := bytes.Clone(data)
		broken[i] ^= 1
		if bytes.EqualFold(broken[i:i+1], data[i:i+1]) {
			continue
		}
		if got, err := Read(bytes.NewReader(broken)); err == nil {
			t.Fatalf("octet %d (%q for %q) was changed unseen near %s: %+v", i, broken[i], c, data[max(0, i-30):i+10], got.Verification.User)
		}
	}
	for name, file := range map[string][]byte{
		"cut short": data[:len(data)-10], "with more behind": append(bytes.Clone(data), "{}"...), "empty": nil, "no object": []byte(`[1]`),
		"another format": bytes.Replace(data, []byte(`"format": 1`), []byte(`"format": 2`), 1),
		"a fraction":     bytes.Replace(data, []byte(`"missing": 2`), []byte(`"missing": 2.0`), 1),
	} {
		if _, err := Read(bytes.NewReader(file)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Read(bytes.NewReader(bytes.Replace(data, []byte(`"missing": 2`), []byte(`"missing": 0`), 1))); !errors.Is(err, ErrChanged) {
		t.Errorf("a changed count: %v", err)
	}
}

// TestSum holds the sum to one made elsewhere.
func TestSum(t *testing.T) {
	// printf '{"a":1}' | sha256sum
	if sum, err := Sum([]byte(`{ "sha256": "x", "a": 1 }`)); err != nil || sum != "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862" {
		t.Errorf("%s %v", sum, err)
	}
}

// TestPage parses the page: what strangers wrote is text and nothing else, and
// nothing is loaded from anywhere.
func TestPage(t *testing.T) {
	c, _ := sealed(t, verification())
	page, err := c.Page("anna@example.org.json")
	if err != nil {
		t.Fatal(err)
	}
	tags, text := parsePage(t, page)
	for tag, most := range map[string]int{"script": 0, "img": 0, "iframe": 0, "link": 0, "object": 0, "b": 0, "a": 0, "svg": 1, "style": 1, "form": 0} {
		if tags[tag] > most {
			t.Errorf("%d elements %s", tags[tag], tag)
		}
	}
	for _, s := range hostile {
		if s = strings.ReplaceAll(s, "\x00", "\ufffd"); strings.Count(text, s) < 3 { // old, new, words
			t.Errorf("%q is not on the page as it is", s)
		}
	}
	for _, want := range []string{"anna@example.org", "not complete", "old.example:993", "new.example:143", "1.2.3", "1.2.2", "7:9", "2026-03-01 12:00:00 UTC", c.Sum,
		"20 more are in the JSON file", "1\u202f000 messages", "120.0 MiB", "1m30s"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, rule := range []string{"prefers-color-scheme:dark", "@media print"} {
		if !bytes.Contains(page, []byte(rule)) {
			t.Errorf("the style lacks %s", rule)
		}
	}
	whole, _ := sealed(t, backfill.Verification{User: "bert@example.org", At: noon})
	if page, err = whole.Page("x.json"); err != nil {
		t.Fatal(err)
	}
	if _, text := parsePage(t, page); !strings.Contains(text, "complete. Nothing") || !strings.Contains(text, "Nothing was recorded") || !strings.Contains(text, "byte for byte") {
		t.Errorf("an empty mailbox: %s", text)
	}
}

// parsePage counts elements and gives the text. Attributes that load or run
// something are errors.
func parsePage(t *testing.T, page []byte) (tags map[string]int, text string) {
	t.Helper()
	root, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	tags = map[string]int{}
	var b strings.Builder
	for n := range root.Descendants() {
		switch n.Type {
		case html.TextNode:
			if n.Parent.Data != "style" {
				b.WriteString(n.Data)
			}
		case html.ElementNode:
			tags[n.Data]++
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "src" || a.Key == "href" && strings.Contains(a.Val, ":") || strings.Contains(a.Val, "url(") {
					t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
				}
			}
		}
	}
	return tags, b.String()
}

func TestPlot(t *testing.T) {
	p := newPlot([]backfill.Point{{At: noon}, {At: noon.Add(time.Minute), Messages: 50, Bytes: 1 << 20}, {At: noon.Add(2 * time.Minute), Messages: 100, Bytes: 1 << 21}})
	if p == nil || p.Messages != "10.0,190.0 360.0,100.0 710.0,10.0" || p.Bytes != p.Messages || p.MostMessages != "100" || p.MostBytes != "2.0 MiB" {
		t.Errorf("%+v", p)
	}
	for _, points := range [][]backfill.Point{nil, {{At: noon}}, {{At: noon}, {At: noon, Messages: 1}}, {{At: noon}, {At: noon.Add(1)}}} {
		if p := newPlot(points); p != nil {
			t.Errorf("%v: %+v", points, p)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name                            string
		then, now                       []backfill.Holding
		there, moved, missing, fresh, n int
		lost                            []uint32 // of the first folder
	}{
		{"the same", []backfill.Holding{holds("INBOX", "abc")}, []backfill.Holding{holds("INBOX", "abc")}, 3, 0, 0, 0, 3, nil},
		{"another order, and more", []backfill.Holding{holds("INBOX", "abc")}, []backfill.Holding{holds("INBOX", "xcab")}, 3, 0, 0, 1, 4, nil},
		{"one is gone", []backfill.Holding{holds("INBOX", "abc")}, []backfill.Holding{holds("INBOX", "ac")}, 2, 0, 1, 0, 2, []uint32{2}},
		{"one of two equal ones", []backfill.Holding{holds("INBOX", "aab")}, []backfill.Holding{holds("INBOX", "ab")}, 2, 0, 1, 0, 2, []uint32{2}},
		{"moved", []backfill.Holding{holds("INBOX", "abc"), holds("Work", "")}, []backfill.Holding{holds("INBOX", "a"), holds("Work", "cb")}, 1, 2, 0, 0, 3, nil},
		{"a folder renamed", []backfill.Holding{holds("Old", "ab")}, []backfill.Holding{holds("New", "abz")}, 0, 2, 0, 1, 3, nil},
		{"what is in its place is not what was moved", []backfill.Holding{holds("A", "x"), holds("B", "x")}, []backfill.Holding{holds("B", "x")}, 1, 0, 1, 0, 1, []uint32{1}},
		{"all gone", []backfill.Holding{holds("INBOX", "ab")}, nil, 0, 0, 2, 0, 0, []uint32{1, 2}},
		{"nothing then", nil, []backfill.Holding{holds("INBOX", "ab")}, 0, 0, 0, 2, 2, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := sealed(t, backfill.Verification{User: "a@b", Holds: tt.then})
			got, err := Compare(c, backfill.Inventory{User: "a@b", Folders: tt.now})
			if err != nil {
				t.Fatal(err)
			}
			if got.There != tt.there || got.Moved != tt.moved || got.Missing != tt.missing || got.New != tt.fresh || got.Now != tt.n || got.OK() != (tt.missing == 0) {
				t.Errorf("%+v", got)
			}
			if len(got.Folders) > 0 && !cmp.Equal(got.Folders[0].Missing, tt.lost) {
				t.Errorf("missing %v, want %v", got.Folders[0].Missing, tt.lost)
			}
		})
	}
}

// TestCompareRefusesNonsense: counts that do not fit are an error, and no reason
// to reserve memory for what is not there.
func TestCompareRefusesNonsense(t *testing.T) {
	for _, change := range []func(h *backfill.Holding){
		func(h *backfill.Holding) { h.Keys = h.Keys[1:] },
		func(h *backfill.Holding) { h.UIDs = "1:2" },
		func(h *backfill.Holding) { h.UIDs = "1:4294967295" },
		func(h *backfill.Holding) { h.UIDs = "3:1" },
		func(h *backfill.Holding) { h.UIDs = "a" },
		func(h *backfill.Holding) { h.Messages = 1 << 40 },
		func(h *backfill.Holding) { h.Messages = -1 },
	} {
		h := holds("INBOX", "abc")
		change(&h)
		c, _ := sealed(t, backfill.Verification{User: "a@b", Holds: []backfill.Holding{h}})
		if got, err := Compare(c, backfill.Inventory{}); err == nil {
			t.Errorf("%+v: %+v", h, got)
		}
		if got, err := Compare(Certificate{}, backfill.Inventory{Folders: []backfill.Holding{h}}); err == nil {
			t.Errorf("%+v: %+v", h, got)
		}
	}
}

func TestFileName(t *testing.T) {
	for address, want := range map[string]string{
		"anna@example.org": "anna@example.org", "../../etc/passwd@x": "=2e./../etc/passwd@x", `a"b c@x`: "a=22b=20c@x", ".hidden@x": "=2ehidden@x",
		"Ä@x": "=c3=84@x", "Anna@x": "=41nna@x", "a=b@x": "a=3db@x",
	} {
		want = strings.ReplaceAll(want, "/", "=2f")
		if got := FileName(address); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
	long := strings.Repeat("x", 300)
	if a, b := FileName(long+"1@x"), FileName(long+"2@x"); a == b || len(a) > 200 {
		t.Errorf("%s, %s", a, b)
	}
}

func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	r := &Run{Dir: dir, By: maker}
	file, page, err := r.Add(verification(), "ready")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Add(backfill.Verification{User: "bert@example.org", At: noon}, "new"); err != nil {
		t.Fatal(err)
	}
	r.Fail("<b>cleo</b>@example.org", errors.New("wrong <password>"))
	s, err := r.Finish()
	if err != nil || s.Complete || s.Users != 3 || s.Verified != 2 || s.CompleteUsers != 1 || s.Missing != 2 {
		t.Errorf("%+v %v", s, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := Read(f)
	if err != nil || c.State != "ready" || c.Sum != s.List[0].Sum {
		t.Errorf("%+v %v", c.Sum, err)
	}
	index, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	tags, text := parsePage(t, index)
	if tags["b"] > 0 || tags["a"] != 4 || !strings.Contains(text, "wrong <password>") || !strings.Contains(text, "2 of 3 mailboxes compared, 1 complete, 2 messages missing") {
		t.Errorf("%v\n%s", tags, text)
	}
	summary, err := os.ReadFile(filepath.Join(dir, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	if sum, err := Sum(summary); err != nil || sum != s.Sum {
		t.Errorf("%s %v", sum, err)
	}
	if info, err := os.Stat(page); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", info, err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 6 {
		t.Errorf("%v %v", names, err)
	}
}

func FuzzRead(f *testing.F) {
	c, err := New(verification(), maker)
	if err != nil {
		f.Fatal(err)
	}
	data, err := c.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"format":1,"sha256":""}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		c, err := Read(bytes.NewReader(file))
		if err != nil {
			return
		}
		if _, err := Compare(c, backfill.Inventory{}); err != nil {
			return
		}
		if _, err := c.Page("x.json"); err != nil {
			t.Error(err)
		}
	})
}

// TestSizeOfALargeMailbox holds docs/backfill.md to its figure.
func TestSizeOfALargeMailbox(t *testing.T) {
	const n = 50_000
	v := backfill.Verification{User: "a@b"}
	for f := range 20 {
		h := backfill.Holding{Folder: fmt.Sprint("folder ", f), Messages: n / 20, Keys: make([]byte, n/20*backfill.KeyOctets), UIDs: "1:2500", Digest: strings.Repeat("0", 64)}
		v.Holds = append(v.Holds, h)
	}
	_, data := sealed(t, v)
	if len(data) > 600_000 {
		t.Errorf("%d octets", len(data))
	}
}
