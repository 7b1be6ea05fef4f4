package pop3

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"strings"
	"time"
)

// body reads a message up to the line with the dot, and takes the dots away that
// were put in front of others (RFC 1939, 3). Every other octet stays. Lines begin
// behind CRLF, because servers put dots only there; a server that ends its own
// lines with LF alone is taken at that.
type body struct {
	br     *bufio.Reader
	bareLF bool

	begun bool
	last  [2]byte // the last octets
	rest  []byte
	done  bool
}

func (b *body) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if b.done {
			return 0, io.EOF
		}
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// next takes a line, or what the buffer holds of one.
func (b *body) next() error {
	line, err := b.br.ReadSlice('\n')
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the end of the connection is no end of a message
		}
		return err
	}
	starts := !b.begun || b.last == [2]byte{'\r', '\n'} || b.bareLF && b.last[1] == '\n'
	b.begun = true
	if n := len(line); n > 1 {
		b.last = [2]byte{line[n-2], line[n-1]}
	} else {
		b.last = [2]byte{b.last[1], line[0]}
	}
	if starts && line[0] == '.' {
		if string(line) == ".\r\n" || b.bareLF && string(line) == ".\n" {
			b.done = true
			return nil
		}
		line = line[1:]
	}
	b.rest = line
	return nil
}

// maxDates is how much of a message is searched for its date.
const maxDates = 256 << 10

// received gives the date that stands for the one of the delivery, which POP3
// does not tell: that of the topmost Received field, which the server wrote, else
// of Date. Zero when there is none that makes sense.
func received(message []byte) time.Time {
	var date time.Time
	name, value := "", ""
	take := func() (time.Time, bool) {
		switch strings.ToLower(name) {
		case "received":
			if i := strings.LastIndexByte(value, ';'); i >= 0 {
				if t, err := mail.ParseDate(strings.TrimSpace(value[i+1:])); err == nil {
					return t, true
				}
			}
		case "date":
			if t, err := mail.ParseDate(strings.TrimSpace(value)); err == nil && date.IsZero() {
				date = t
			}
		}
		return time.Time{}, false
	}
	message = message[:min(len(message), maxDates)]
	for len(message) > 0 {
		line, rest, _ := bytes.Cut(message, []byte("\n"))
		message = rest
		text := strings.TrimRight(string(line), "\r")
		if text != "" && (text[0] == ' ' || text[0] == '\t') {
			value += " " + strings.TrimSpace(text)
			continue
		}
		if t, ok := take(); ok {
			return t
		}
		if name = ""; text == "" {
			break
		}
		name, value, _ = strings.Cut(text, ":")
	}
	if t, ok := take(); ok {
		return t
	}
	return date
}

// errReceiver is an error of the receiver: it ends the pass.
type errReceiver struct{ err error }

func (e *errReceiver) Error() string { return e.err.Error() }
func (e *errReceiver) Unwrap() error { return e.err }

// errConn is an error of the connection: what was not read is asked for again.
type errConn struct{ err error }

func (e *errConn) Error() string { return fmt.Sprintf("the connection ended: %v", e.err) }
func (e *errConn) Unwrap() error { return e.err }
