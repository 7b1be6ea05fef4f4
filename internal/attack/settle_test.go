package attack

import (
	"bytes"
	"testing"
)

// settled is what must become of message bytes by the words of the package
// comment of relay/wire, in the plainest code that says them.
type settled struct {
	body    []byte // what is stored, below our own header
	refused bool
	end     int // how many bytes of the input are the message and its end; -1: it does not end
}

// line is a line of a message with the line end before and behind it.
type line struct {
	text          []byte
	before, after string
	end           int // offset behind it
}

// lines takes a message apart: a run of CRs with an LF behind it is one line
// end, every other CR is one by itself.
func lines(b []byte) []line {
	out := []line{{before: "\r\n"}}
	for i := 0; i < len(b); {
		last := &out[len(out)-1]
		run := 0
		for i+run < len(b) && b[i+run] == '\r' {
			run++
		}
		switch {
		case i+run < len(b) && b[i+run] == '\n':
			run++
		case run > 0:
			run = 1
		default:
			last.text = append(last.text, b[i])
			i++
			continue
		}
		last.after = string(b[i : i+run])
		i += run
		last.end = i
		out = append(out, line{before: last.after})
	}
	return out
}

// ended says that a line end has CR LF at its end.
func ended(lineEnd string) bool { return len(lineEnd) >= 2 && lineEnd[len(lineEnd)-1] == '\n' }

// maxLine is the longest line of a message, with its end.
const maxLine = 64 << 10

// settleData is for what follows DATA.
func settleData(b []byte) (s settled) {
	for _, l := range lines(b) {
		dot := bytes.HasPrefix(l.text, []byte("."))
		switch {
		case string(l.text) == "." && ended(l.before) && l.after == "\r\n":
			s.end = l.end
			return s
		case string(l.text) == "." && l.after != "":
			s.refused = true
		case dot && ended(l.before):
			l.text = l.text[1:]
		}
		s.refused = s.refused || len(l.text)+2 > maxLine
		s.body = append(append(s.body, l.text...), "\r\n"...)
	}
	s.end = -1
	return s
}

// settleChunks is for the bytes of a message that came by BDAT.
func settleChunks(b []byte) (body []byte) {
	all := lines(b)
	if len(all[len(all)-1].text) == 0 {
		all = all[:len(all)-1]
	}
	for _, l := range all {
		body = append(append(body, l.text...), "\r\n"...)
	}
	return body
}

// The plain code says what the documentation says.
func TestSettleIsPlain(t *testing.T) {
	for in, want := range map[string]settled{
		"a\r\n.\r\n":         {body: []byte("a\r\n"), end: 6},
		"a\r\r\n.\r\n":       {body: []byte("a\r\n"), end: 7},
		"a\n.\r\nb\r\n.\r\n": {refused: true, end: 11},
		"a\r\n.\nb\r\n.\r\n": {refused: true, end: 11},
		"a\n.b\rc\r\n.\r\n":  {body: []byte("a\r\n.b\r\nc\r\n"), end: 11},
		"..a\r\n.b\r\n.\r\n": {body: []byte(".a\r\nb\r\n"), end: 12},
		"a\r\n":              {body: []byte("a\r\n\r\n"), end: -1},
	} {
		got := settleData([]byte(in))
		if got.refused != want.refused || got.end != want.end || !got.refused && !bytes.Equal(got.body, want.body) {
			t.Errorf("%q: %q, refused %t, end %d", in, got.body, got.refused, got.end)
		}
	}
	if got := settleChunks([]byte("a\n.\r\nb\rc")); string(got) != "a\r\n.\r\nb\r\nc\r\n" {
		t.Errorf("%q", got)
	}
}
