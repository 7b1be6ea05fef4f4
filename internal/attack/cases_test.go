package attack

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// smuggling is one message that wants to be two.
type smuggling struct {
	id    string // stands in the subject, and in that of the message inside
	group string
	name  string
	// body is what follows the reply to DATA, with the true end of the message at
	// its end; or the content of the message, for BDAT.
	body []byte
	// chunks are the sizes of the BDAT commands, the last one with LAST. Nil: DATA.
	chunks []int
}

// want says what has to become of it.
func (c smuggling) want() settled {
	if c.chunks == nil {
		return settleData(c.body)
	}
	return settled{body: settleChunks(c.body), end: len(c.body)}
}

// honest says that the message ends where its sender says, so that what follows
// is no smuggling: the true end of data, which is there to show that the test
// would see two messages.
func (c smuggling) honest() bool {
	end := c.want().end
	return end >= 0 && end < len(c.body)
}

// The groups of the table.
const (
	groupEnds   = "look-alikes of the end of data: every pair of line ends around a dot"
	groupDots   = "look-alikes of the dot: stuffed, with NUL, blanks, tabs"
	groupEdges  = "look-alikes across buffer and line-length bounds"
	groupChunks = "the same inside BDAT, in chunks of all sizes"
)

// groups in the order of the table.
var groups = []string{groupEnds, groupDots, groupEdges, groupChunks}

// lineEnds are all that any mail system was ever seen to take for a line end.
var lineEnds = []struct{ name, text string }{
	{"CRLF", "\r\n"}, {"LF", "\n"}, {"CR", "\r"}, {"CRCRLF", "\r\r\n"}, {"LFCR", "\n\r"}, {"CRCR", "\r\r"}, {"LFLF", "\n\n"},
	{"CR NUL LF", "\r\x00\n"}, {"NUL CRLF", "\x00\r\n"}, {"CRLF NUL", "\r\n\x00"}, {"VT", "\v"}, {"FF", "\f"},
	{"U+0085 as one octet", "\x85"}, {"U+0085", "\u0085"}, {"U+2028", "\u2028"},
}

// dots are what stands between two line ends.
var dots = []struct{ name, text string }{
	{"..", ".."}, {"...", "..."}, {". NUL", ".\x00"}, {"NUL .", "\x00."}, {". blank", ". "}, {". tab", ".\t"}, {"blank .", " ."}, {". BS", ".\b"},
}

// hidden is what the inner message would be.
func hidden(id string) string {
	return "MAIL FROM:<smuggler@evil.test>\r\nRCPT TO:<smuggled@example.org>\r\nDATA\r\n" +
		"From: <boss@example.org>\r\nSubject: smuggled in " + id + ".\r\n\r\nsmuggled\r\n"
}

// outer is the message around it.
func outer(id, before, mark string) []byte {
	return []byte("From: attacker@evil.test\r\nTo: target@example.org\r\nSubject: " + id + ".\r\nDate: Sun, 1 Mar 2026 12:00:00 +0000\r\n" +
		"Message-ID: <" + id + "@evil.test>\r\n\r\nbefore" + before + mark + hidden(id))
}

// matrix makes all cases.
func matrix() []smuggling {
	m := &maker{}
	for _, a := range lineEnds {
		for _, b := range lineEnds {
			m.data(groupEnds, a.name+" . "+b.name, "", a.text+"."+b.text)
		}
	}
	for _, d := range dots {
		for _, a := range lineEnds[:4] {
			for _, b := range lineEnds[:4] {
				m.data(groupDots, a.name+" "+d.name+" "+b.name, "", a.text+d.text+b.text)
			}
		}
	}
	m.edges()
	m.bdat()
	return m.cases
}

type maker struct{ cases []smuggling }

func (m *maker) add(c smuggling) { m.cases = append(m.cases, c) }

func (m *maker) nextID() string { return fmt.Sprintf("case-%04d", len(m.cases)) }

func (m *maker) data(group, name, before, mark string) {
	id := m.nextID()
	m.add(smuggling{id: id, group: group, name: name, body: append(outer(id, before, mark), ".\r\n"...)})
}

// edges puts look-alikes where buffers end and where lines become too long.
func (m *maker) edges() {
	head := len(outer("case-0000", "", "")) - len(hidden("case-0000"))
	for _, at := range []int{4 << 10, 16 << 10, 32 << 10} {
		for _, mark := range []string{"\n.\n", "\r.\r", "\n.\r\n", "\r\n.\n", "\r\r\n.\r\r\n"} {
			for _, off := range []int{-3, -2, -1, 0} {
				lineLen := (at - head + off) % 512
				before := strings.Repeat("\r\n"+strings.Repeat("x", 510), (at-head+off)/512) + strings.Repeat("y", lineLen)
				m.data(groupEdges, fmt.Sprintf("%q at %d", mark, at+off), before, mark)
			}
		}
	}
	for _, n := range []int{998, 1000, 2048, maxLine - 3, maxLine - 2, maxLine - 1, maxLine, maxLine + 1} {
		for _, mark := range []string{"\n.\n", "\r.\r", "\n.\r\n"} {
			m.data(groupEdges, fmt.Sprintf("%q behind a line of %d", mark, n), "\r\n"+strings.Repeat("z", n), mark)
		}
	}
}

// bdat sends look-alikes and even true ends of data in chunks.
func (m *maker) bdat() {
	for _, a := range lineEnds[:8] {
		for _, b := range lineEnds[:8] {
			id := m.nextID()
			body := outer(id, "", a.text+"."+b.text)
			m.add(smuggling{id: id, group: groupChunks, name: a.name + " . " + b.name, body: body, chunks: []int{len(body)}})
		}
	}
	for _, mark := range []string{"\r\n.\r\n", "\n.\n", "\r.\r\n", "\r\n.\n"} {
		for _, at := range []int{0, 1, 2, 3, 4, 5} {
			id := m.nextID()
			body := outer(id, "", mark)
			cut := bytes.Index(body, []byte("before")) + len("before") + at
			for _, chunks := range [][]int{{cut, len(body) - cut}, {cut, 0, len(body) - cut}, {cut, len(body) - cut, 0}, {cut, 1, 1, len(body) - cut - 2}} {
				m.add(smuggling{id: id, group: groupChunks, name: fmt.Sprintf("%q in chunks of %v", mark, chunks), body: body, chunks: chunks})
				id = m.nextID()
				body = outer(id, "", mark)
			}
		}
	}
}

// sample takes every nth case of each group, and all that are honest.
func sample(cases []smuggling, every int) (out []smuggling) {
	for i, c := range cases {
		if i%every == 0 || c.honest() {
			out = append(out, c)
		}
	}
	return out
}

// The matrix is what the table says it is.
func TestMatrix(t *testing.T) {
	cases := matrix()
	if len(cases) < 500 {
		t.Errorf("%d cases", len(cases))
	}
	seen := map[string]bool{}
	refused, accepted, honest := 0, 0, 0
	for _, c := range cases {
		if seen[c.id] {
			t.Errorf("%s is there twice", c.id)
		}
		seen[c.id] = true
		if !slices.Contains(groups, c.group) {
			t.Errorf("%s: no group", c.id)
		}
		w := c.want()
		switch {
		case w.end < 0:
			t.Errorf("%s (%s) does not end", c.id, c.name)
		case c.honest():
			honest++
		case w.refused:
			refused++
		default:
			accepted++
		}
	}
	t.Logf("%d cases: %d to be refused, %d to be one message, %d with a true end of data", len(cases), refused, accepted, honest)
}
