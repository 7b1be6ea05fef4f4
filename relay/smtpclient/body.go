package smtpclient

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// bufferSize is how much of a message is written at once. A message that fits
// goes out in one write together with its final dot.
const bufferSize = 32 << 10

// buffers are held only while a transaction runs, so that idle connections
// cost little.
type buffers struct {
	in, out []byte
}

var bufferPool = sync.Pool{New: func() any {
	return &buffers{in: make([]byte, bufferSize), out: make([]byte, 0, bufferSize)}
}}

// dotWriter turns a message into what may follow DATA (RFC 5321, 4.5.2): dots
// doubled, every line ended by CRLF. A bare CR or bare LF, which a server may
// read as a line end where others do not (message smuggling), becomes CRLF; the
// receiving side has settled both already, this is the last defence.
type dotWriter struct {
	buf     []byte             // not yet written
	write   func([]byte) error // to the connection
	flushed bool               // something was written
	mid     bool               // inside a line
	cr      bool               // a CR waits for what follows it
}

func (d *dotWriter) flush() error {
	if len(d.buf) == 0 {
		return nil
	}
	d.flushed = true
	err := d.write(d.buf)
	d.buf = d.buf[:0]
	return err
}

func (d *dotWriter) put(p []byte) error {
	for len(p) > cap(d.buf)-len(d.buf) {
		n := copy(d.buf[len(d.buf):cap(d.buf)], p)
		d.buf, p = d.buf[:len(d.buf)+n], p[n:]
		if err := d.flush(); err != nil {
			return err
		}
	}
	d.buf = append(d.buf, p...)
	return nil
}

var (
	crlf    = []byte("\r\n")
	dot     = []byte(".")
	dotCRLF = []byte(".\r\n")
)

func (d *dotWriter) endLine() error {
	d.mid, d.cr = false, false
	return d.put(crlf)
}

// add appends the next piece of the message.
func (d *dotWriter) add(p []byte) error {
	for len(p) > 0 {
		n, err := d.piece(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// piece takes as much of p as one step can, which is a line where all is well.
func (d *dotWriter) piece(p []byte) (int, error) {
	if d.cr {
		n := 0
		if p[0] == '\n' {
			n = 1
		}
		return n, d.endLine()
	}
	if !d.mid && p[0] == '.' {
		if err := d.put(dot); err != nil {
			return 0, err
		}
	}
	line := p
	nl := bytes.IndexByte(p, '\n')
	if nl >= 0 {
		line = p[:nl]
	}
	switch cr := bytes.IndexByte(line, '\r'); {
	case cr < 0 && nl < 0:
		d.mid = true
		return len(p), d.put(p)
	case cr < 0: // bare LF
		if err := d.put(line); err != nil {
			return 0, err
		}
		return nl + 1, d.endLine()
	case cr == nl-1: // the usual line
		d.mid = false
		return nl + 1, d.put(p[:nl+1])
	default:
		d.mid, d.cr = true, true
		return cr + 1, d.put(p[:cr])
	}
}

// finish ends the last line.
func (d *dotWriter) finish() error {
	if d.cr || d.mid {
		return d.endLine()
	}
	return nil
}

// copyFrom reads the message to its end. size is the expected length in
// octets, 0 when unknown.
func (d *dotWriter) copyFrom(r io.Reader, size int64, in []byte) error {
	var total int64
	for empty := 0; ; {
		n, err := r.Read(in)
		total += int64(n)
		if n > 0 {
			empty = 0
			if err := d.add(in[:n]); err != nil {
				return err
			}
		} else if empty++; err == nil && empty > 100 {
			err = io.ErrNoProgress
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrSource, err)
		}
	}
	if size > 0 && total != size {
		return fmt.Errorf("%w: %w: it has %d octets, %d were expected", ErrSource, ErrLength, total, size)
	}
	return d.finish()
}
