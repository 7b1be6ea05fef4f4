package wire

import "bytes"

// flaw is why a message is refused for its bytes.
type flaw uint8

const (
	flawNone    flaw = iota
	flawNewline      // a look-alike of the end of data
	flawLine         // a line longer than the limit
)

// settler turns message bytes, in pieces of any size, into what the library is
// given: lines that end in CRLF, dots stuffed, CR LF . CR LF at the end. Clean
// text is copied line by line; only what stands out goes through step.
//
// A run of CRs is kept as a number until the byte behind it says what it was: one
// line end with an LF behind it, that many line ends otherwise.
type settler struct {
	chunked bool // BDAT: no dot-stuffing and no end of data in the input
	plain   bool // write the text itself: no dot-stuffing, no end of data
	maxLine int

	mid     bool // inside a line
	dot     bool // the line so far is the one dot that begins it, not yet written
	bare    bool // the line end before this line was settled: its first dot is text
	crs     int  // CRs whose meaning is not known yet
	lineLen int
	owed    int  // CRLFs still to be written
	closing bool // chunked input is complete

	settled int  // line ends changed
	flaw    flaw // first flaw found; the input is still followed to its end
	ended   bool // the end was reached and written
}

// settleRoom is the space that one step may need.
const settleRoom = 8

func (s *settler) reset(chunked bool, maxLine int) {
	*s = settler{chunked: chunked, maxLine: maxLine}
}

// next settles bytes of src into dst, which has at least settleRoom bytes, and
// returns how many were written and used. It stops at the end of the message, and
// when it finds a flaw.
func (s *settler) next(dst, src []byte) (nd, ns int) {
	before := s.flaw
	for len(dst)-nd >= settleRoom && !s.ended && s.flaw == before {
		switch {
		case s.owed > 0:
			nd += copy(dst[nd:], "\r\n")
			s.owed--
		case ns == len(src):
			if !s.closing {
				return nd, ns
			}
			nd += s.end(dst[nd:])
		case s.crs == 0 && !s.dot && (s.mid || src[ns] != '.') && src[ns] != '\n' && src[ns] != '\r':
			n := s.run(dst[nd:], src[ns:])
			nd += n
			ns += n
		default:
			n, used := s.step(dst[nd:], src[ns])
			nd += n
			ns += used
		}
	}
	return nd, ns
}

// run copies a clean line, or the clean part of one. There is at least a byte.
func (s *settler) run(dst, src []byte) int {
	part := src[:min(len(src), len(dst))]
	lf := bytes.IndexByte(part, '\n')
	if lf >= 0 {
		part = part[:lf+1]
	}
	cr := bytes.IndexByte(part, '\r')
	switch {
	case cr < 0 && lf < 0: // no end in sight
		s.mid = true
	case cr >= 0 && cr == lf-1: // a whole clean line
		if s.lineLen += len(part); s.lineLen > s.maxLine {
			s.spoil(flawLine)
		}
		s.mid, s.bare, s.lineLen = false, false, 0
		return copy(dst, part)
	case cr < 0: // a bare LF
		part = part[:lf]
		s.mid = true
	default:
		part = part[:cr]
		s.mid = true
	}
	if s.lineLen += len(part); s.lineLen > s.maxLine {
		s.spoil(flawLine)
	}
	return copy(dst, part)
}

// step takes one byte that stands at a line end, behind a CR or behind the dot
// that begins a line. It does not use the byte when line ends must go out first.
func (s *settler) step(dst []byte, b byte) (n, used int) {
	switch {
	case b == '\r':
		if s.crs++; s.crs+s.lineLen > s.maxLine {
			s.spoil(flawLine)
			s.crs = 2 // the run may go on for ever; only that it is not one CR matters now
		}
		return 0, 1
	case b == '\n':
		return s.endLine(dst), 1
	case s.crs > 0:
		s.bareCRs()
		return 0, 0
	case s.dot:
		return s.dotAnd(dst, b), 1
	case b == '.' && !s.mid && s.chunked:
		s.mid = true
		s.lineLen++
		return s.dots(dst, 2), 1
	case b == '.' && !s.mid:
		s.dot = true
		if s.bare {
			s.lineLen++
		}
		return 0, 1
	}
	s.mid = true
	s.lineLen++
	dst[0] = b
	return 1, 1
}

// dotAnd takes the byte behind a dot that begins a line. Behind a CRLF that dot
// was put there for transparency (RFC 5321, 4.5.2); behind a settled line end the
// client cannot have meant it so.
func (s *settler) dotAnd(dst []byte, b byte) int {
	n := 1
	if s.bare {
		n = 2
	}
	s.dot, s.mid = false, true
	s.lineLen++
	n = s.dots(dst, n)
	dst[n] = b
	return n + 1
}

// dots writes n dots at the beginning of a line, one less in plain text.
func (s *settler) dots(dst []byte, n int) int {
	if s.plain {
		n--
	}
	return copy(dst, ".."[:n])
}

// end writes the end of data.
func (s *settler) end(dst []byte) int {
	s.ended = true
	if s.plain {
		return 0
	}
	return copy(dst, ".\r\n")
}

// endLine takes the LF of a line end.
func (s *settler) endLine(dst []byte) (n int) {
	exact := s.crs == 1
	if !exact {
		s.settled++
	}
	if s.dot {
		if exact && !s.bare {
			return s.end(dst)
		}
		s.spoil(flawNewline)
	}
	if s.lineLen+2 > s.maxLine {
		s.spoil(flawLine)
	}
	s.bare = s.crs == 0
	s.mid, s.dot, s.crs, s.lineLen = false, false, 0, 0
	return copy(dst, "\r\n")
}

// bareCRs makes a line end of each CR that has no LF behind it.
func (s *settler) bareCRs() {
	if s.dot {
		s.spoil(flawNewline)
	}
	s.settled += s.crs
	s.owed += s.crs
	s.bare, s.mid, s.dot, s.crs, s.lineLen = true, false, false, 0, 0
}

// close is called at the end of chunked input.
func (s *settler) close() {
	if s.crs > 0 {
		s.bareCRs()
	}
	if s.mid {
		s.settled++
		s.owed++
		s.mid = false
	}
	s.closing = true
}

// spoil notes the first flaw.
func (s *settler) spoil(f flaw) {
	if s.flaw == flawNone {
		s.flaw = f
	}
}
