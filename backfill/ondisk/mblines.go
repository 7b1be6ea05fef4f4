package ondisk

import (
	"bytes"
	"errors"
	"io"
)

// lines reads an mbox file line by line, and anywhere in it.
type lines struct {
	r    io.ReaderAt
	size int64
	buf  []byte // of the file from off on
	off  int64
	mem  []byte
}

// at gives the line that begins at pos, with its line end, and where the next
// one begins. Of a line that is longer than the buffer only the beginning is
// given.
func (l *lines) at(pos int64) (line []byte, next int64, err error) {
	if pos < l.off || pos >= l.off+int64(len(l.buf)) {
		if err := l.fill(pos); err != nil {
			return nil, pos, err
		}
	}
	i := bytes.IndexByte(l.buf[pos-l.off:], '\n')
	if i < 0 && l.off+int64(len(l.buf)) < l.size && pos > l.off {
		if err := l.fill(pos); err != nil {
			return nil, pos, err
		}
		i = bytes.IndexByte(l.buf, '\n')
	}
	line = l.buf[pos-l.off:]
	if i >= 0 {
		return line[:i+1], pos + int64(i) + 1, nil
	}
	for next = l.off + int64(len(l.buf)); next < l.size; {
		more := make([]byte, min(int64(len(l.mem)), l.size-next))
		n, err := l.r.ReadAt(more, next)
		if n == 0 {
			return nil, pos, readError(err)
		}
		if i := bytes.IndexByte(more[:n], '\n'); i >= 0 {
			return line, next + int64(i) + 1, nil
		}
		next += int64(n)
	}
	return line, next, nil
}

func (l *lines) fill(pos int64) error {
	if l.mem == nil {
		l.mem = make([]byte, 256<<10)
	}
	n, err := l.r.ReadAt(l.mem[:min(int64(len(l.mem)), l.size-pos)], pos)
	if n == 0 {
		return readError(err)
	}
	l.buf, l.off = l.mem[:n], pos
	return nil
}

func readError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return errShrunk
	}
	return reason(err)
}

var errShrunk = errors.New("it was made shorter while it was read")
