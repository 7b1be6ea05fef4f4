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

const (
	// maxDates is how much of a message is searched for its date.
	maxDates = 256 << 10
	maxField = 8 << 10 // of a field with a date
)

// received gives the date that stands for the one of the delivery, which POP3
// does not tell: that of the topmost Received field, which the server wrote, else
// of Date. Zero when there is none that makes sense.
func received(message []byte) time.Time {
	d := dates{}
	message = message[:min(len(message), maxDates)]
	for len(message) > 0 {
		line, rest, _ := bytes.Cut(message, []byte("\n"))
		message = rest
		text := bytes.TrimRight(line, "\r")
		if len(text) > 0 && (text[0] == ' ' || text[0] == '\t') {
			d.add(text)
			continue
		}
		if d.end() || len(text) == 0 {
			return d.best()
		}
		name, value, _ := bytes.Cut(text, []byte(":"))
		d.begin(name, value)
	}
	d.end()
	return d.best()
}

// dates looks at the fields of a header as they come. Only those with a date are
// put together.
type dates struct {
	name           string // "" for any other field
	value          []byte
	received, date time.Time
}

func (d *dates) begin(name, value []byte) {
	d.name, d.value = "", d.value[:0]
	for _, known := range []string{"received", "date"} {
		if bytes.EqualFold(name, []byte(known)) {
			d.name = known
			d.add(value)
		}
	}
}

func (d *dates) add(text []byte) {
	if d.name != "" && len(d.value)+len(text) < maxField {
		d.value = append(append(d.value, ' '), bytes.TrimSpace(text)...)
	}
}

// end tells whether the field had the date that is wanted most.
func (d *dates) end() bool {
	value := strings.TrimSpace(string(d.value))
	if d.name == "received" {
		if i := strings.LastIndexByte(value, ';'); i >= 0 {
			d.received, _ = mail.ParseDate(strings.TrimSpace(value[i+1:])) // zero where it makes no sense
		}
	}
	if d.name == "date" && d.date.IsZero() {
		d.date, _ = mail.ParseDate(value)
	}
	d.name = ""
	return !d.received.IsZero()
}

func (d *dates) best() time.Time {
	if !d.received.IsZero() {
		return d.received
	}
	return d.date
}

// errReceiver is an error of the receiver: it ends the pass.
type errReceiver struct{ err error }

func (e *errReceiver) Error() string { return e.err.Error() }
func (e *errReceiver) Unwrap() error { return e.err }

// errConn is an error of the connection: what was not read is asked for again.
type errConn struct{ err error }

func (e *errConn) Error() string { return fmt.Sprintf("the connection ended: %v", e.err) }
func (e *errConn) Unwrap() error { return e.err }
