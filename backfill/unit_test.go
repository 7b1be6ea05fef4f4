package backfill

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"crossfade/backfill/imapconn"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func identityOf(t testing.TB, host, msg string) identity {
	t.Helper()
	h := newHasher(host)
	if _, err := h.Write([]byte(msg)); err != nil {
		t.Fatal(err)
	}
	id := h.end()
	// However the message is cut into pieces.
	for _, r := range []io.Reader{iotest.OneByteReader(strings.NewReader(msg)), iotest.HalfReader(strings.NewReader(msg))} {
		h := newHasher(host)
		if _, err := io.Copy(struct{ io.Writer }{h}, r); err != nil {
			t.Fatal(err)
		}
		if again := h.end(); again != id {
			t.Errorf("%q: the identity depends on how it is cut: %+v, %+v", msg, id, again)
		}
	}
	return id
}

func TestIdentity(t *testing.T) {
	tests := []struct {
		name, a, b   string
		exact, loose bool
	}{
		{"line ends", "a\r\nb\r\n", "a\nb\n", true, true},
		{"nothing", "", "", true, true},
		{"one letter", "a\r\n", "b\r\n", false, false},
		{"NUL", "a\x00b\r\n", "a\x80b\r\n", false, true},
		{"CR inside", "a\rb\r\n", "ab\r\n", false, true},
		{"CR at the end", "a\r\nb\r", "a\r\nb", false, true},
		{"CR CR LF", "a\r\r\nb\r\n", "a\r\nb\r\n", false, true},
		{"no line end at the end", "a\r\nb", "a\r\nb\r\n", false, true},
		{"empty lines at the end", "a\r\n\r\n\r\n", "a\r\n", false, true},
		{"empty lines inside", "a\r\n\r\nb\r\n", "a\r\nb\r\n", false, false},
		{"spaces", "a \r\n", "a\r\n", false, false},
		{"a lone CR is no line end", "a\rb\r\n", "a\r\nb\r\n", false, false},
	}
	for _, tt := range tests {
		a, b := identityOf(t, "", tt.a), identityOf(t, "", tt.b)
		if (a.Exact == b.Exact) != tt.exact || (a.Loose == b.Loose) != tt.loose {
			t.Errorf("%s: exact %v, loose %v", tt.name, a.Exact == b.Exact, a.Loose == b.Loose)
		}
	}
	if id := identityOf(t, "", "a\nb\n"); id.Exact != sha256.Sum256([]byte("a\r\nb\r\n")) || id.Size != 6 || id.Fragile {
		t.Errorf("%+v", id)
	}
	for _, s := range []string{"a\x00\n", "a\rb\n", "a\r", "a"} {
		if !identityOf(t, "", s).Fragile {
			t.Errorf("%q is not fragile", s)
		}
	}
	big := strings.Repeat("x\x00\r\n\n", 50_000)
	identityOf(t, "mx", big)
}

func TestDeliveryKey(t *testing.T) {
	const ours = "Received: from a (b [192.0.2.1])\r\n\tby MX.Example.org (Crossfade) with ESMTPS\r\n\tid Q1\r\n\tfor <a@b>; Sat\r\n"
	msg := "Subject: s\r\nFrom: f\r\n\r\nbody\r\n"
	base := identityOf(t, "mx.example.org", ours+msg)
	if base.QueueID != "Q1" {
		t.Fatalf("%+v", base)
	}
	for what, tt := range map[string]struct {
		msg  string
		same bool
	}{
		"fields of a backend on top": {"Return-Path: <x>\r\nReceived: by lmtp.old id LOCAL; x\r\nX-Spam: no\r\n" + ours + msg, true},
		"another queue id":           {strings.Replace(ours, "Q1", "Q2", 1) + msg, false},
		"another subject":            {ours + strings.Replace(msg, ": s", ": [list] s", 1), false},
		"another body":               {ours + msg + "footer\r\n", false},
		"relayed by us once more":    {strings.Replace(ours, "Q1", "Q2", 1) + ours + msg, false},
	} {
		if id := identityOf(t, "mx.example.org", tt.msg); (id.Delivery == base.Delivery) != tt.same {
			t.Errorf("%s: %+v", what, id)
		}
	}
	for _, m := range []string{msg, strings.Replace(ours, "MX.Example.org", "mx.example.org.evil.test", 1) + msg, "Received: by mx.example.org", msg + ours} {
		if id := identityOf(t, "mx.example.org", m); id.Delivery != (key{}) || id.QueueID != "" {
			t.Errorf("%q: %+v", m, id)
		}
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add([]byte("Received: by mx id 1\r\n\r\na\x00\r\n"), 3)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		a, b := newHasher("mx"), newHasher("mx")
		a.Write(data)
		if cut < 0 || cut > len(data) {
			cut = len(data) / 2
		}
		b.Write(data[:cut])
		b.Write(data[cut:])
		if a.end() != b.end() {
			t.Error("the identity depends on how it is cut")
		}
		queueID(data, "mx")
	})
}

func TestPairs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pairs
		want := map[uint32]uint32{}
		src := rapid.SliceOfN(rapid.Uint32Range(1, 60), 0, 60).Draw(t, "src")
		for _, s := range src {
			d := s + rapid.SampledFrom([]uint32{0, 0, 0, 100, 200}).Draw(t, "shift")
			if _, ok := want[s]; !ok {
				want[s] = d
			}
			p.add(s, d)
		}
		text, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var q pairs
		if err := q.UnmarshalText(text); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p, q) {
			t.Fatalf("%s: %v, %v", text, p, q)
		}
		n := 0
		for s := uint32(0); s < 70; s++ {
			d, ok := p.dest(s)
			if w, had := want[s]; ok != had || d != w {
				t.Fatalf("%d: %d %v, want %d", s, d, ok, w)
			}
			if ok {
				n++
			}
		}
		total := 0
		for i, r := range p {
			total += int(r.N)
			if i > 0 && p[i-1].Src+p[i-1].N == r.Src && p[i-1].Dst+p[i-1].N == r.Dst {
				t.Fatalf("runs that are one: %s", text)
			}
		}
		if n != total {
			t.Fatalf("%d pairs in runs of %d", n, total)
		}
	})
}

// TestLedgerIsSmall: 50,000 messages copied in order are one run.
func TestLedgerIsSmall(t *testing.T) {
	r := record{Source: "INBOX", Dest: "INBOX"}
	for i := uint32(1); i <= 50_000; i++ {
		r.Pairs.add(i+i/1000, i+7)
	}
	b, err := json.Marshal(r)
	if err != nil || len(b) > 2000 {
		t.Errorf("%d octets, %v", len(b), err)
	}
	var again record
	if err := json.Unmarshal(b, &again); err != nil || !slices.Equal(again.Pairs, r.Pairs) {
		t.Error(err)
	}
}

func FuzzPairs(f *testing.F) {
	f.Add([]byte("1:5000>1,5002>5001"))
	f.Add([]byte("4294967295>1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var p pairs
		if p.UnmarshalText(text) != nil {
			return
		}
		again, err := p.MarshalText()
		var q pairs
		if err != nil || q.UnmarshalText(again) != nil || !slices.Equal(p, q) {
			t.Errorf("%q: %q", text, again)
		}
	})
}

func TestAgreedFlags(t *testing.T) {
	a := agreed{1: `\Seen`, 2: `\Seen`, 3: "", 9: `\Flagged work`}
	b, err := encodeAgreed(a)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeAgreed(b)
	if err != nil || !cmp.Equal(a, got) {
		t.Errorf("%s: %v, %v", b, got, err)
	}
	if _, err := decodeAgreed([]byte(`{"x":"7:3"}`)); err == nil {
		t.Error("no error")
	}
}

func folder(wire, delim string, attrs ...string) imapconn.Folder {
	name, err := imapconn.DecodeName(wire)
	if err != nil {
		name = wire
	}
	return imapconn.Folder{Name: name, Wire: wire, Delim: delim, Attrs: attrs}
}

func TestMapFolders(t *testing.T) {
	dot := imapconn.Namespaces{Prefix: "INBOX.", Delim: ".", Others: []string{"user."}}
	slash := imapconn.Namespaces{Delim: "/"}
	tests := []struct {
		name     string
		src, dst side
		known    map[string]string
		want     map[string]string
		problems int
	}{
		{"prefix to none", side{dot, []imapconn.Folder{folder("INBOX", "."), folder("INBOX.a.b", "."), folder("user.eve", "."), folder("INBOX.p", ".", `\noselect`)}},
			side{slash, nil}, nil, map[string]string{"INBOX": "INBOX", "INBOX.a.b": "a/b"}, 0},
		{"none to prefix", side{slash, []imapconn.Folder{folder("INBOX", "/"), folder("a/b.c", "/"), folder("INBOX/x", "/"), folder("x", "/")}},
			side{dot, nil}, nil, map[string]string{"INBOX": "INBOX", "a/b.c": "INBOX.a.b_c", "INBOX/x": "INBOX.x-2", "x": "INBOX.x"}, 2},
		{"by use", side{slash, []imapconn.Folder{folder("Envoy&AOk-s", "/", `\sent`), folder("Sent", "/"), folder("Spam", "/")}},
			side{slash, []imapconn.Folder{folder("Sent", "/", `\sent`), folder("Junk", "/", `\junk`)}}, nil,
			map[string]string{"Envoy&AOk-s": "Sent", "Sent": "Sent-2", "Spam": "Junk"}, 1},
		{"by name on both sides", side{slash, []imapconn.Folder{folder("Posta inviata", "/"), folder("Cestino", "/")}},
			side{slash, []imapconn.Folder{folder("sent items", "/"), folder("TRASH", "/")}}, nil,
			map[string]string{"Posta inviata": "sent items", "Cestino": "TRASH"}, 0},
		{"case", side{slash, []imapconn.Folder{folder("A", "/"), folder("a", "/"), folder("a/x", "/"), folder("A/x", "/")}}, side{slash, nil}, nil,
			map[string]string{"A": "A", "a": "a-2", "a/x": "a-2/x", "A/x": "A/x"}, 1},
		{"case of the destination", side{slash, []imapconn.Folder{folder("archive", "/"), folder("Foo", "/")}}, side{slash, []imapconn.Folder{folder("FOO", "/")}}, nil,
			map[string]string{"archive": "archive", "Foo": "FOO"}, 0},
		{"known places stay", side{slash, []imapconn.Folder{folder("b", "/"), folder("B", "/")}}, side{slash, []imapconn.Folder{folder("b-2", "/"), folder("B", "/")}},
			map[string]string{"b": "b-2"}, map[string]string{"b": "b-2", "B": "B"}, 0},
		{"empty levels", side{slash, []imapconn.Folder{folder("a/b", "/"), folder("a//b", "/"), folder("a//b/c", "/")}}, side{slash, nil}, nil,
			map[string]string{"a//b": "a/b", "a/b": "a/b-2", "a//b/c": "a/b/c"}, 1},
		{"outside the namespace", side{dot, []imapconn.Folder{folder("INBOX", "."), folder("INBOX.x", "."), folder("x", ".")}}, side{slash, nil}, nil,
			map[string]string{"INBOX": "INBOX", "INBOX.x": "x", "x": "x-2"}, 1},
		{"a name that is no modified UTF-7", side{slash, []imapconn.Folder{folder("R&D", "/")}}, side{slash, nil}, nil, map[string]string{"R&D": "R&-D"}, 0},
	}
	for _, tt := range tests {
		got := map[string]string{}
		ps, problems := mapFolders(tt.src, tt.dst, tt.known)
		for _, p := range ps {
			got[p.src.Wire] = p.wire
		}
		if d := cmp.Diff(tt.want, got); d != "" || len(problems) != tt.problems {
			t.Errorf("%s: %s\n%v", tt.name, d, problems)
		}
	}
}

// TestMapFoldersNeverMerges: whatever the names, no two folders of the source
// get one place.
func TestMapFoldersNeverMerges(t *testing.T) {
	part := rapid.SampledFrom([]string{"a", "A", "b", "a-2", "a_b", "a.b", "a/b", "INBOX", "inbox", "Sent", "sent", "Gesendet", "ß", "ss", "é", "e\u0301"})
	rapid.Check(t, func(t *rapid.T) {
		styles := []imapconn.Namespaces{{Prefix: "INBOX.", Delim: "."}, {Delim: "/"}, {Delim: "."}}
		sns, dns := rapid.SampledFrom(styles).Draw(t, "source"), rapid.SampledFrom(styles).Draw(t, "destination")
		draw := func(ns imapconn.Namespaces, what string) (out []imapconn.Folder) {
			seen := map[string]bool{"INBOX": true}
			out = append(out, folder("INBOX", ns.Delim))
			for _, l := range rapid.SliceOfN(rapid.SliceOfN(part, 1, 3), 0, 8).Draw(t, what) {
				name := ns.Prefix + strings.Join(l, ns.Delim)
				if wire := imapconn.EncodeName(name); !seen[wire] && !strings.EqualFold(name, "INBOX") && !strings.Contains(name, "//") {
					seen[wire] = true
					out = append(out, folder(wire, ns.Delim))
				}
			}
			return out
		}
		ps, _ := mapFolders(side{sns, draw(sns, "src")}, side{dns, draw(dns, "dst")}, nil)
		at := map[string]string{}
		for _, p := range ps {
			if other, ok := at[fold(p.name)]; ok {
				t.Fatalf("%q and %q both go to %q", other, p.src.Wire, p.name)
			}
			at[fold(p.name)] = p.src.Wire
		}
	})
}

func TestBodyInAFile(t *testing.T) {
	dir := t.TempDir()
	b, err := newBody(spoolOver+1, true, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 200_000)
	if _, err := b.Write(data); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.size))
	if err != nil || !bytes.Equal(got, data) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	b.close()
	if _, err := newBody(spoolOver+1, true, dir+"/gone", nil); err == nil {
		t.Error("no error")
	}
}

// TestBodyMovesToAFile: a message that is larger than it was announced must not
// grow in memory.
func TestBodyMovesToAFile(t *testing.T) {
	p, dir := &pages{}, t.TempDir()
	f := &fetcher{keep: true, dir: dir, room: spoolOver, mem: arena{from: p}}
	defer f.close()
	data := bytes.Repeat([]byte("0123456789abcdef"), spoolOver/16)
	w, err := f.Begin(1, spoolOver)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if most := p.used * pageSize; most > spoolOver {
			t.Fatalf("%d octets are in memory", most)
		}
	}
	if err := f.End(imapconn.Meta{UID: 1}); err != nil {
		t.Fatal(err)
	}
	m := f.msgs[0]
	got, err := io.ReadAll(io.NewSectionReader(m.body, 0, m.body.size))
	if err != nil || !bytes.Equal(got, bytes.Repeat(data, 5)) || m.meta.Size != 5*spoolOver {
		t.Errorf("%d octets, %v", len(got), err)
	}
	if p.used != 0 || f.room != spoolOver {
		t.Errorf("%d pages are used, room for %d", p.used, f.room)
	}
	// The next one has the memory.
	if w, err = f.Begin(2, 3); err == nil {
		_, err = w.Write([]byte("abc"))
	}
	if err != nil || f.cur.file != nil {
		t.Errorf("%+v, %v", f.cur, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestTemporary(t *testing.T) {
	for text, want := range map[string]bool{
		"[OVERQUOTA] x": true, "[THROTTLED] slow": true, "[LIMIT] Quota of one message": false, "[TOOBIG] disk": false,
		"Disk quota exceeded": true, "message contains bare CR": false, "Suggested Backoff Time: 3000 milliseconds": true,
	} {
		e := &imapconn.Error{Text: text}
		if code, rest, ok := strings.Cut(text, "] "); ok {
			e.Code, e.Text = code[1:], rest
		}
		if temporary(e) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

// What was appended and not recognised is there: offered again, it would be
// there twice.
func TestForgetRefused(t *testing.T) {
	f := &folderRun{rec: &record{half: half{Refused: map[uint32]*refusal{1: {Text: unrecognised, Skip: never}, 2: {Text: "NO", Tries: 3, Skip: 4}}}}}
	f.forgetRefused()
	if a, b := f.rec.Refused[1], f.rec.Refused[2]; a.Skip != never || b.Skip != 0 || b.Tries != 0 {
		t.Errorf("%+v, %+v", a, b)
	}
}

// TestArena: messages lie in pages as they were written, an attempt that broke
// off leaves nothing, and all memory comes back.
func TestArena(t *testing.T) {
	p := &pages{}
	for round := range 3 {
		a := &arena{from: p}
		var bodies []*body
		var want [][]byte
		for i := range 60 {
			data := make([]byte, rand.IntN(3*pageSize))
			for j := range data {
				data[j] = byte(i + j)
			}
			b, err := newBody(int64(len(data)), false, "", a)
			if err != nil {
				t.Fatal(err)
			}
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(pageSize))
				if _, err := b.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if i%7 == 3 {
				b.close() // it broke off
				continue
			}
			bodies, want = append(bodies, b), append(want, data)
		}
		if _, err := bodies[0].Write([]byte("x")); err == nil {
			t.Error("a message grew into the one behind it")
		}
		for i, b := range bodies {
			got, err := io.ReadAll(io.NewSectionReader(b, 0, b.size))
			if err != nil || !bytes.Equal(got, want[i]) {
				t.Fatalf("round %d, message %d: %d octets of %d, %v", round, i, len(got), len(want[i]), err)
			}
		}
		if used := int64(p.used) * pageSize; used < a.size || used > a.size+pageSize {
			t.Errorf("%d octets take %d", a.size, used)
		}
		for _, b := range bodies[:30] {
			b.close()
		}
		for _, b := range bodies {
			b.close()
			b.close()
		}
		a.cut(0)
		a.cut(0)
		if p.used != 0 || len(p.slabs) > keptSlabs || len(p.free) != len(p.slabs)*slabSize/pageSize {
			t.Fatalf("afterwards %d pages are used, %d slabs and %d free pages are there", p.used, len(p.slabs), len(p.free))
		}
	}
}

// TestLanesAreShared: mailboxes that are copied at the same time share the lanes
// of one, but for distant servers.
func TestLanesAreShared(t *testing.T) {
	for _, tt := range []struct {
		connections, passes int
		far                 bool
		want                int
	}{
		{0, 1, false, 4}, {0, 2, false, 2}, {0, 4, false, 1}, {0, 40, false, 1}, {0, 40, true, 4}, {8, 1, false, 8}, {8, 3, false, 2}, {2, 4, true, 2},
	} {
		c := &Copier{Connections: tt.connections}
		c.together().passes.Add(int32(tt.passes))
		if got := (&pass{c: c, far: tt.far}).mostLanes(); got != tt.want {
			t.Errorf("connections %d, %d passes, far %v: %d lanes, want %d", tt.connections, tt.passes, tt.far, got, tt.want)
		}
	}
}
