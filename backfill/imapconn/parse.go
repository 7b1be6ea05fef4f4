package imapconn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	maxLine    = 1 << 20 // octets of one response without its literals
	maxLiteral = 1 << 20 // octets of the literals in it; bodies do not come this way
	maxDepth   = 32
)

// response is one response of a server: a continuation request, a status
// (OK, NO, BAD, BYE, PREAUTH) or data. Data is taken apart on demand only, so
// that data nobody asked for cannot end a connection.
type response struct {
	tag  string // "*", "+", or the tag of a command
	name string // upper case; "" in a continuation request
	num  uint32 // the number before the name of message data

	// Of a status: the response code, upper case, what follows it, and the text.
	code, arg, text string

	rest []byte // of data: what follows the name, literals in their place
}

func (r *response) isStatus() bool {
	switch r.name {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
		return true
	}
	return false
}

// readResponse reads one response with its literals.
func readResponse(br *bufio.Reader) (*response, error) {
	line, err := readLine(br, nil)
	if err != nil {
		return nil, err
	}
	r, err := parseHead(line)
	if err != nil {
		return nil, err
	}
	if r.tag == "+" || r.isStatus() {
		return r, nil
	}
	// A status may end in {5} without meaning it; data means it.
	buf, total := line, int64(0)
	for {
		n, ok := literalSize(buf)
		if !ok {
			break
		}
		if total += n; total > maxLiteral {
			return nil, fmt.Errorf("a literal of %d octets in a response that should have none so large", n)
		}
		at := len(buf)
		buf = append(buf, make([]byte, n)...)
		if _, err := io.ReadFull(br, buf[at:]); err != nil {
			return nil, err
		}
		if buf, err = readLine(br, buf); err != nil {
			return nil, err
		}
	}
	r, err = parseHead(buf)
	return r, err
}

// readLine appends a line with its end to buf.
func readLine(br *bufio.Reader, buf []byte) ([]byte, error) {
	for {
		part, err := br.ReadSlice('\n')
		buf = append(buf, part...)
		if len(buf) > maxLine+maxLiteral {
			return nil, errors.New("a response line without end")
		}
		if err == nil {
			return buf, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// literalSize tells whether a line ends in the announcement of a literal.
func literalSize(line []byte) (int64, bool) {
	line = bytes.TrimRight(line, "\r\n")
	if len(line) < 3 || line[len(line)-1] != '}' {
		return 0, false
	}
	at := bytes.LastIndexByte(line, '{')
	if at < 0 {
		return 0, false
	}
	digits := strings.TrimSuffix(string(line[at+1:len(line)-1]), "+")
	n, err := strconv.ParseInt(digits, 10, 63)
	return n, err == nil && n >= 0 && digits[0] != '+'
}

// parseHead takes tag, number and name off a response, and the code and text
// off a status.
func parseHead(line []byte) (*response, error) {
	line = bytes.TrimRight(line, "\r\n")
	tag, rest, _ := bytes.Cut(line, []byte(" "))
	r := &response{tag: string(tag)}
	if r.tag == "+" {
		r.text = string(rest)
		return r, nil
	}
	if r.tag == "" || len(rest) == 0 {
		return nil, fmt.Errorf("a response that is none: %q", printable(string(line)))
	}
	name, rest, _ := bytes.Cut(rest, []byte(" "))
	if n, err := strconv.ParseUint(string(name), 10, 32); err == nil {
		r.num = uint32(n)
		name, rest, _ = bytes.Cut(rest, []byte(" "))
	}
	r.name = strings.ToUpper(string(name))
	r.rest = rest
	if r.isStatus() {
		r.code, r.arg, r.text = parseStatus(string(rest))
	}
	return r, nil
}

// parseStatus takes "[CODE arg] text" apart.
func parseStatus(s string) (code, arg, text string) {
	s = strings.TrimSpace(s)
	if !strings.HasPrefix(s, "[") {
		return "", "", printable(s)
	}
	end := strings.IndexByte(s, ']')
	if end < 0 {
		return "", "", printable(s)
	}
	code, arg, _ = strings.Cut(s[1:end], " ")
	return strings.ToUpper(code), arg, printable(s[end+1:])
}

// value is an atom, a string or a list.
type value struct {
	str    string
	list   []value
	isList bool
	quoted bool // a quoted string or a literal: "NIL" is a word, not nothing
}

func (v value) isNil() bool { return !v.isList && !v.quoted && strings.EqualFold(v.str, "NIL") }

// parseValues takes the data of a response apart. It takes more than the
// grammar has: atoms may hold anything but space, quote and parenthesis.
func parseValues(b []byte) ([]value, error) {
	p := &parser{b: b}
	vs, err := p.values(0)
	if err != nil {
		return nil, err
	}
	if p.i < len(p.b) {
		return nil, errors.New("a closing parenthesis too many")
	}
	return vs, nil
}

type parser struct {
	b []byte
	i int
}

func (p *parser) values(depth int) ([]value, error) {
	if depth > maxDepth {
		return nil, errors.New("lists nested too deep")
	}
	var vs []value
	for p.i < len(p.b) {
		switch c := p.b[p.i]; c {
		case ' ':
			p.i++
		case ')':
			return vs, nil
		case '(':
			p.i++
			list, err := p.values(depth + 1)
			if err != nil {
				return nil, err
			}
			if p.i >= len(p.b) {
				return nil, errors.New("a list without end")
			}
			p.i++
			vs = append(vs, value{list: list, isList: true})
		default:
			v, err := p.scalar(c)
			if err != nil {
				return nil, err
			}
			vs = append(vs, v)
		}
	}
	return vs, nil
}

func (p *parser) scalar(c byte) (value, error) {
	switch c {
	case '"':
		return p.quoted()
	case '{':
		if v, ok, err := p.literal(); ok || err != nil {
			return v, err
		}
	}
	start := p.i
	for p.i < len(p.b) && p.b[p.i] != ' ' && p.b[p.i] != '(' && p.b[p.i] != ')' {
		p.i++
	}
	return value{str: string(p.b[start:p.i])}, nil
}

func (p *parser) quoted() (value, error) {
	var s []byte
	for p.i++; p.i < len(p.b); p.i++ {
		switch c := p.b[p.i]; c {
		case '"':
			p.i++
			return value{str: string(s), quoted: true}, nil
		case '\\':
			if p.i++; p.i < len(p.b) {
				s = append(s, p.b[p.i])
			}
		default:
			s = append(s, c)
		}
	}
	return value{}, errors.New("a quoted string without end")
}

// literal reads {n}CRLF and n octets; ok is false for an atom that begins so.
func (p *parser) literal() (v value, ok bool, err error) {
	end := bytes.IndexByte(p.b[p.i:], '\n')
	if end < 0 {
		return value{}, false, nil
	}
	n, ok := literalSize(p.b[p.i : p.i+end+1])
	if !ok || bytes.IndexByte(p.b[p.i:p.i+end], ' ') >= 0 {
		return value{}, false, nil
	}
	from := p.i + end + 1
	if n > int64(len(p.b)-from) {
		return value{}, false, errors.New("a literal cut short")
	}
	p.i = from + int(n)
	return value{str: string(p.b[from:p.i]), quoted: true}, true, nil
}

// parseUIDSet reads "7", "7:9" or "1:3,7" into its numbers, in their order. A
// set of more than limit numbers is an error.
func parseUIDSet(s string, limit int) ([]uint32, error) {
	var out []uint32
	for _, part := range strings.Split(s, ",") {
		a, b, isRange := strings.Cut(part, ":")
		first, err := strconv.ParseUint(a, 10, 32)
		if err != nil || first == 0 {
			return nil, fmt.Errorf("UID set %q: not a number", s)
		}
		last := first
		if isRange {
			if last, err = strconv.ParseUint(b, 10, 32); err != nil || last == 0 {
				return nil, fmt.Errorf("UID set %q: not a number", s)
			}
		}
		if last < first {
			first, last = last, first
		}
		if last-first >= uint64(limit) || len(out)+int(last-first) >= limit {
			return nil, fmt.Errorf("UID set %q: more than %d numbers", s, limit)
		}
		for n := first; n <= last; n++ {
			out = append(out, uint32(n))
		}
	}
	return out, nil
}
