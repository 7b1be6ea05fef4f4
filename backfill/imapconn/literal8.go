package imapconn

import (
	"bufio"
	"bytes"
	"errors"
)

// plainLiterals makes literals of the literal8s ("~{3}", RFC 3516, 4.4) in what
// a server sends, for go-imap. RFC 3516 has them in BINARY only; Cyrus answers
// BODY[] with one when the message has a NUL, and go-imap would end the
// connection. Octets of literals go through as they are.
type plainLiterals struct {
	br *bufio.Reader

	out     []byte // of a line, to be handed out
	literal int64  // octets of a literal that come next
	inside  bool   // the next line goes on with a response
	data    bool   // of the response: literals are meant
	err     error
}

func (p *plainLiterals) Read(b []byte) (int, error) {
	for {
		switch {
		case len(p.out) > 0:
			n := copy(b, p.out)
			p.out = p.out[n:]
			return n, nil
		case p.literal > 0:
			n, err := p.br.Read(b[:min(int64(len(b)), p.literal)])
			p.literal -= int64(n)
			return n, err
		case p.err != nil:
			return 0, p.err
		}
		p.line()
	}
}

// line reads a line. What came of it before an error is handed out before the
// error.
func (p *plainLiterals) line() {
	var line []byte
	for {
		part, err := p.br.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			p.out, p.err = line, err
			return
		}
	}
	if !p.inside {
		p.data = isData(line)
	}
	p.inside = false
	if n, ok := literalSize(line); ok && p.data {
		p.inside, p.literal = true, n
		if at := bytes.LastIndexByte(line, '{'); at > 0 && line[at-1] == '~' {
			line = append(line[:at-1], line[at:]...)
		}
	}
	p.out = line
}

// isData tells whether a response is data: a status may end in {5} without
// meaning it.
func isData(line []byte) bool {
	rest, untagged := bytes.CutPrefix(line, []byte("* "))
	if !untagged {
		return false
	}
	name, _, _ := bytes.Cut(bytes.TrimRight(rest, "\r\n"), []byte(" "))
	r := response{name: string(bytes.ToUpper(name))}
	return !r.isStatus()
}
