package wire

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// fate is what the reference says of a DATA body.
type fate struct {
	content string // what a session should read
	settled int
	flaw    bool // a look-alike: refused
	used    int  // bytes up to and with the end of data; -1: no end
}

// reference reads a body in the slow and obvious way: cut it into lines with their
// line ends, then look at each line.
func reference(in string, chunked bool) fate {
	f := fate{used: -1}
	var out strings.Builder
	prev := "\r\n" // the line end before
	pos := 0
	for pos < len(in) {
		text, end := cutLine(in[pos:])
		if !chunked && strings.Trim(in[pos+len(text):], "\r") == "" {
			break // not complete: nobody knows what the CRs at the end will be
		}
		pos += len(text) + len(end)
		exact := end == "\r\n"
		dotted := strings.HasSuffix(prev, "\r\n") // CR CR LF counts as CRLF for the line behind it
		if !chunked && text == "." {
			if exact && dotted {
				f.used = pos
				break
			}
			f.flaw = true
		}
		if !exact {
			f.settled++
		}
		if !chunked && dotted {
			text = strings.TrimPrefix(text, ".")
		}
		out.WriteString(text + "\r\n")
		prev = end
	}
	if chunked {
		f.used = len(in)
	}
	f.content = out.String()
	return f
}

// cutLine takes a line and its end: CRs with an LF behind them, an LF, or one CR.
func cutLine(s string) (text, end string) {
	i := strings.IndexAny(s, "\r\n")
	if i < 0 {
		return s, ""
	}
	j := i
	for j < len(s) && s[j] == '\r' {
		j++
	}
	if j < len(s) && s[j] == '\n' {
		return s[:i], s[i : j+1]
	}
	return s[:i], s[i : i+1]
}

// unstuff reads what the settler wrote as the library would.
func unstuff(t *testing.T, s string) (string, bool) {
	t.Helper()
	var out strings.Builder
	for len(s) > 0 {
		line, rest, ok := strings.Cut(s, "\r\n")
		if !ok {
			t.Fatalf("a piece without CRLF: %q", s)
		}
		if strings.ContainsAny(line, "\r\n") {
			t.Fatalf("a bare CR or LF went through: %q", line)
		}
		if line == "." {
			if rest != "" {
				t.Fatalf("bytes behind the end of data: %q", rest)
			}
			return out.String(), true
		}
		out.WriteString(strings.TrimPrefix(line, ".") + "\r\n")
		s = rest
	}
	return out.String(), false
}

// settleAll runs the settler with random splits of input and output.
func settleAll(in string, chunked, plain bool, rng *rand.Rand) (out string, used int, s settler) {
	s.reset(chunked, 1<<20)
	s.plain = plain
	src := []byte(in)
	var b strings.Builder
	clean := true
	for !s.ended {
		piece := src[used:min(len(src), used+1+rng.IntN(9))]
		dst := make([]byte, settleRoom+rng.IntN(12))
		nd, ns := s.next(dst, piece)
		used += ns
		if s.flaw != flawNone {
			clean = false
		}
		if clean {
			b.Write(dst[:nd])
		}
		if nd == 0 && ns == 0 && used == len(src) {
			if !chunked {
				break
			}
			s.close()
		}
	}
	return b.String(), used, s
}

// checkBody compares the settler with the reference.
func checkBody(t *testing.T, in string, chunked bool, seed uint64) {
	t.Helper()
	want := reference(in, chunked)
	out, used, s := settleAll(in, chunked, false, rand.New(rand.NewPCG(seed, 1)))
	if got := s.flaw != flawNone; got != want.flaw {
		t.Fatalf("%q chunked %v: refused %v, want %v", in, chunked, got, want.flaw)
	}
	if s.ended != (want.used >= 0) {
		t.Fatalf("%q chunked %v: ended %v, want %v", in, chunked, s.ended, want.used >= 0)
	}
	if !s.ended {
		return
	}
	if used != want.used {
		t.Fatalf("%q chunked %v: ended after %d bytes, want %d", in, chunked, used, want.used)
	}
	if want.flaw {
		return
	}
	content, ended := unstuff(t, out)
	if text, _, _ := settleAll(in, chunked, true, rand.New(rand.NewPCG(seed, 2))); text != content {
		t.Fatalf("%q chunked %v: plain text %q, want %q", in, chunked, text, content)
	}
	if !ended || content != want.content || s.settled != want.settled {
		t.Fatalf("%q chunked %v: %q, settled %d, ended %v; want %q, settled %d",
			in, chunked, content, s.settled, ended, want.content, want.settled)
	}
}

// TestBodyExhaustive tries every string, eight long, of the bytes that matter.
func TestBodyExhaustive(t *testing.T) {
	const alphabet = "\r\n.x"
	length := 8
	if testing.Short() {
		length = 6
	}
	buf := make([]byte, length)
	total := 1 << (2 * length)
	for n := range total {
		for i, v := 0, n; i < length; i, v = i+1, v>>2 {
			buf[i] = alphabet[v&3]
		}
		checkBody(t, string(buf), false, uint64(n))
		if n%8 == 0 {
			checkBody(t, string(buf), true, uint64(n))
		}
	}
}

func TestLookAlikes(t *testing.T) {
	ends := map[string]string{"LF": "\n", "CR": "\r", "CRLF": "\r\n", "CRCRLF": "\r\r\n"}
	for before, b := range ends {
		for after, a := range ends {
			body := "x" + b + "." + a + "y\r\n.\r\n"
			out, used, s := settleAll(body, false, false, rand.New(rand.NewPCG(1, 1)))
			wantEnd := strings.HasSuffix(b, "\r\n") && a == "\r\n"
			switch {
			case wantEnd && (s.flaw != flawNone || used != 1+len(b)+1+len(a)):
				t.Errorf("%s.%s should end the message: %q used %d flaw %d", before, after, out, used, s.flaw)
			case !wantEnd && (s.flaw != flawNewline || used != len(body)):
				t.Errorf("%s.%s should be refused and read to the true end: used %d of %d, flaw %d", before, after, used, len(body), s.flaw)
			}
		}
	}
}

func TestLineLength(t *testing.T) {
	const limit = 64
	for _, c := range []struct {
		body string
		want flaw
	}{
		{strings.Repeat("x", limit-2) + "\r\n.\r\n", flawNone},
		{strings.Repeat("x", limit-1) + "\r\n.\r\n", flawLine},
		{"." + strings.Repeat("x", limit-2) + "\r\n.\r\n", flawNone}, // the stuffed dot is not part of the line
		{"." + strings.Repeat("x", limit-1) + "\r\n.\r\n", flawLine},
		{strings.Repeat("x", limit-2) + "\n.y\r\n.\r\n", flawNone},
		{strings.Repeat("x", limit-1) + "\n.y\r\n.\r\n", flawLine},
		{strings.Repeat("\r", 3*limit) + "\n.\r\n", flawLine},
		{"." + strings.Repeat("\r", 3*limit+1) + "\nx\r\n.\r\n", flawLine},
		{"." + strings.Repeat("\r", limit) + "\nx\r\n.\r\n", flawNewline},
		{strings.Repeat("x", 10*limit) + "\r\n.\r\n", flawLine},
	} {
		for _, step := range []int{1, 7, 1 << 20} {
			var s settler
			s.reset(false, limit)
			dst := make([]byte, 4096)
			used := 0
			for used < len(c.body) && !s.ended {
				_, ns := s.next(dst, []byte(c.body[used:min(len(c.body), used+step)]))
				used += ns
			}
			if s.flaw != c.want || !s.ended || used != len(c.body) {
				t.Errorf("%.20q... (%d bytes, by %d): flaw %d, ended %v", c.body, len(c.body), step, s.flaw, s.ended)
			}
		}
	}
}

func FuzzBody(f *testing.F) {
	for _, s := range []string{
		"", ".\r\n", "a\r\n.\r\n", "a\n.\n", "a\r\r\n.\r\n", "..\r\n.\r\n", "a\r.\r\n\r\n.\r\n", "\r\r\r\n\r.\x00\r\n.\r\n",
	} {
		f.Add(s, false, uint64(1))
		f.Add(s, true, uint64(2))
	}
	f.Fuzz(func(t *testing.T, in string, chunked bool, seed uint64) {
		checkBody(t, in, chunked, seed)
	})
}

func BenchmarkSettle(b *testing.B) {
	body := []byte(strings.Repeat("From the mountains to the prairies, to the oceans white with foam, 7\r\n", 58) + ".\r\n")
	dst := make([]byte, 8192)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		var s settler
		s.reset(false, 64<<10)
		if s.next(dst, body); !s.ended {
			b.Fatal(fmt.Sprint("not ended"))
		}
	}
}
