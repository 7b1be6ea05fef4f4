package wire

import (
	"bytes"
	"unicode/utf8"
)

// findPath finds the path in a MAIL or RCPT line, reading it as the library does:
// line[start:end] is the mailbox with an optional source route, line[end:] what
// follows, '>' included. It is not ok when the library would refuse the line.
func findPath(line []byte, keyword string) (start, end int, ok bool) {
	i := len("MAIL ")
	if len(line) < i {
		return 0, 0, false
	}
	i += skipBlank(line[i:])
	if len(line)-i < len(keyword) || !bytes.EqualFold(line[i:i+len(keyword)], []byte(keyword)) {
		return 0, 0, false
	}
	i += len(keyword)
	i += skipBlank(line[i:])
	bracket := i < len(line) && line[i] == '<'
	if bracket {
		i++
	}
	start = i
	if i < len(line) && line[i] == '@' {
		colon := bytes.IndexByte(line[i:], ':')
		if colon < 0 {
			return 0, 0, false
		}
		i += colon + 1
	}
	if i, ok = skipLocalPart(line, i); !ok {
		return 0, 0, false
	}
	for i < len(line) && line[i] != ' ' && line[i] != '\t' && line[i] != '>' {
		i++
	}
	if bracket && (i == len(line) || line[i] != '>') {
		return 0, 0, false
	}
	return start, i, true
}

func skipBlank(b []byte) (n int) {
	for n < len(b) && (b[n] == ' ' || b[n] == '\t') {
		n++
	}
	return n
}

// skipLocalPart steps over a quoted local part; one without quotes ends where the
// rest of the path does.
func skipLocalPart(line []byte, i int) (int, bool) {
	if i == len(line) || line[i] != '"' {
		return i, true
	}
	for i++; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case '"':
			return i + 1, true
		}
	}
	return i, false
}

// hasWord says whether word stands alone among the blank-separated words of s.
func hasWord(s []byte, word string) bool {
	for _, f := range bytes.Fields(s) {
		if len(f) == len(word) && bytes.EqualFold(f, []byte(word)) {
			return true
		}
	}
	return false
}

// lineFlaw looks for what no command may hold: control characters, bytes that are
// not ASCII and not UTF-8 text either, and the separators of lines and paragraphs,
// U+2028 and U+2029: an address stands in our trace header, which some programs
// take apart at them. high says that there is something that is not ASCII.
func lineFlaw(line []byte) (bad, high bool) {
	for _, b := range line {
		if b < ' ' || b == 0x7f {
			return true, false
		}
		high = high || b >= utf8.RuneSelf
	}
	if !high {
		return false, false
	}
	if !utf8.Valid(line) {
		return true, true
	}
	for _, r := range string(line) {
		if r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return true, true // C1 controls, line and paragraph separator
		}
	}
	return false, true
}
