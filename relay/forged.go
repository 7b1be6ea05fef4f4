package relay

import (
	"bytes"
	"mime"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// resultsField is the field in which systems write down how they authenticated
// a message (RFC 8601).
const resultsField = "authentication-results"

// maxResults bounds a field that is held back until it is known whether it goes.
const maxResults = 64 << 10

// forgedFilter takes away Authentication-Results that claim to be ours, out of
// messages of those who are not: whoever reads ours behind us believes them
// (RFC 8601, 5). It is the one thing that changes in a message below our trace
// header. When it cannot be told whose name a field bears, ours being in it, the
// field goes.
//
// It works on the header as it streams by, in pieces of any size, up to the first
// empty line: what others may take for the end of the header does not stop it.
type forgedFilter struct {
	own     string // our name, as skeleton has it
	removed int
	// verdicts are names of fields that go too, in small letters; with * at the end,
	// all that begin so. They are those by which the systems behind us know what
	// the organisation's scanner said.
	verdicts []string
	taken    int // fields of these names

	over  bool
	line  []byte // the beginning of a line that came in pieces; wire bounds it
	field []byte // lines of a field that may go; nil: there is none
	long  bool   // it is longer than what is held back
	goes  bool   // it is a verdict
	out   []byte
}

// next gives what stays of the next octets, good until the next call, and at the
// end of the message what was held back.
func (f *forgedFilter) next(p []byte, end bool) []byte {
	if f.over || f.harmless(p) {
		return p
	}
	f.out = f.out[:0]
	for len(p) > 0 && !f.over {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 {
			f.line = append(f.line, p...)
			p = nil
			break
		}
		line := p[:i]
		if len(f.line) > 0 {
			f.line = append(f.line, line...)
			line = f.line
		}
		f.take(line)
		f.line, p = f.line[:0], p[i:]
	}
	if end && !f.over {
		f.take(f.line)
		f.endField()
	}
	return append(f.out, p...)
}

// harmless tells whether nothing in p has to be held back, which is so for nearly
// all messages.
func (f *forgedFilter) harmless(p []byte) bool {
	if len(f.line) > 0 || f.field != nil {
		return false
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 || isResults(p[:i]) || f.isVerdict(p[:i]) {
			return false
		}
		if empty(p[:i]) {
			f.over = true
			return true
		}
		p = p[i:]
	}
	return true
}

// take is given a whole line, or the last one of a message without its end.
func (f *forgedFilter) take(line []byte) {
	switch {
	case len(line) == 0:
		return
	case f.field != nil && (line[0] == ' ' || line[0] == '\t'):
		if f.goes || len(f.field)+len(line) > maxResults {
			f.long = true
			return
		}
		f.field = append(f.field, line...)
		return
	}
	f.endField()
	if f.goes = f.isVerdict(line); f.goes || isResults(line) {
		f.field = append([]byte(nil), line...)
		return
	}
	f.out = append(f.out, line...)
	f.over = empty(line)
}

// endField decides about the field that is held back. Nobody who means well
// writes one that is longer than the bound.
func (f *forgedFilter) endField() {
	if f.field == nil {
		return
	}
	switch {
	case f.goes:
		f.taken++
	case f.long || f.forged(f.field):
		f.removed++
	default:
		f.out = append(f.out, f.field...)
	}
	f.field, f.long, f.goes = nil, false, false
}

func empty(line []byte) bool { return len(bytes.TrimRight(line, "\r\n")) == 0 }

// isVerdict tells whether a line begins with one of the names that go. Octets that
// no name has are passed over, as isResults does.
func (f *forgedFilter) isVerdict(line []byte) bool {
	if len(f.verdicts) == 0 || line[0] == ' ' || line[0] == '\t' {
		return false
	}
	var buf [64]byte
	name, colon := buf[:0], false
	for _, c := range line {
		if colon = c == ':'; colon || len(name) == cap(name) {
			break
		}
		if c > ' ' && c <= '~' {
			if c >= 'A' && c <= 'Z' {
				c |= 0x20
			}
			name = append(name, c)
		}
	}
	for _, v := range f.verdicts {
		if begin, open := strings.CutSuffix(v, "*"); open && bytes.HasPrefix(name, []byte(begin)) || !open && string(name) == v {
			return true
		}
	}
	return false
}

// isResults tells whether a line begins with the name of the field, in any case
// and whatever octets that no name has are in it, and nothing that would make it
// another. The colon may be missing: some look for it on the next line.
func isResults(line []byte) bool {
	if line[0]|0x20 != 'a' && line[0] > ' ' && line[0] <= '~' || line[0] == ' ' || line[0] == '\t' {
		return false // nearly all
	}
	at := 0
	for _, c := range line {
		switch {
		case c == ':':
			return at == len(resultsField)
		case c <= ' ' || c > '~':
		case at == len(resultsField) || c|0x20 != resultsField[at]|0x20:
			return false
		default:
			at++
		}
	}
	return at == len(resultsField)
}

// forged tells whether a field is, or may be, in our name. One that is as RFC
// 8601, 2.2, wants it says so itself; of any other it is enough that our name can
// be read in it before the first result.
func (f *forgedFilter) forged(field []byte) bool {
	text := string(field)
	if i := strings.IndexByte(text, ':'); i >= 0 {
		text = text[i+1:]
	}
	if id, ok := plainServ(text); ok {
		return skeleton(id) == f.own
	}
	for _, reading := range readings(text) {
		if strings.Contains(reading, f.own) {
			return true
		}
	}
	return false
}

// plainServ is the authserv-id of a field that leaves no doubt about it: a name in
// ASCII, a version perhaps, and the end or a semicolon.
func plainServ(text string) (id string, ok bool) {
	text, _, _ = strings.Cut(text, ";")
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == '\n' })
	if len(words) == 0 || len(words) > 2 {
		return "", false
	}
	for i := range len(words[0]) {
		if c := words[0][i]; c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return "", false
		}
	}
	if len(words) == 2 && strings.Trim(words[1], "0123456789") != "" {
		return "", false
	}
	return words[0], true
}

// readings are what the beginning of a field may mean to somebody who reads it in
// one way or the other.
func readings(text string) []string {
	decoded := text
	if d, err := new(mime.WordDecoder).DecodeHeader(strings.NewReplacer("\r", "", "\n", "").Replace(text)); err == nil {
		decoded = d
	}
	var out []string
	for _, t := range []string{text, decoded} {
		plain, balanced := withoutComments(t)
		out = append(out, skeleton(before(plain)), skeleton(before(t)))
		if !balanced {
			out = append(out, skeleton(plain), skeleton(t))
		}
	}
	return out
}

// before is what stands before the first semicolon.
func before(s string) string {
	s, _, _ = strings.Cut(s, ";")
	return s
}

// withoutComments takes out comments, which nest, and the backslashes and quotes
// of quoted text, whose semicolons become blanks. balanced is false when one of
// them has no end.
func withoutComments(s string) (out string, balanced bool) {
	var b strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s) && (depth > 0 || quoted):
			i++
			if depth == 0 {
				b.WriteByte(s[i])
			}
		case quoted && c == ';':
			b.WriteByte(' ')
		case c == '"' && depth == 0:
			quoted = !quoted
		case c == '(' && !quoted:
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth == 0:
			b.WriteByte(c)
		}
	}
	return b.String(), depth == 0 && !quoted
}

// skeleton is what people and careless programs see of a name: compatible forms
// of letters made one, case and whatever is no letter, digit or mark of names
// gone, and the final dot.
func skeleton(s string) string {
	s = norm.NFKC.String(strings.ToValidUTF8(s, ""))
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '.' || r == '-' || r == '_' || r == ';':
			return r
		case r == '。' || r == '．' || r == '｡':
			return '.'
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, s)
	return strings.TrimRight(s, ".")
}
