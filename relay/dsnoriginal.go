package relay

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"crossfade/mail"
)

// The bounds of what a notification returns of a message.
const (
	dsnMaxFull   = 1 << 20  // a message that is larger is returned as its header
	dsnMaxHeader = 64 << 10 // of a header
	dsnMaxLine   = 998      // RFC 5322, 2.1.1, without CRLF
)

// dsnReturnsFull tells whether a notification of this kind returns the whole
// message: only a failure does, when the sender asked for it or did not say,
// and only within bounds (RFC 3461, 4.3 and 6.2), and never of one that requires
// TLS (RFC 8689, 5).
func dsnReturnsFull(kind mail.Notify, env *mail.Envelope) bool {
	return kind == mail.NotifyFailure && env.Ret != mail.RetHdrs && !env.RequireTLS && env.WholeSize() <= dsnMaxFull
}

// dsnOriginal reads what is returned of a message. full asks for all of it;
// what comes back is the header alone when the rest is too long or has lines
// that no mail may have.
func dsnOriginal(r io.Reader, full bool) (original []byte, isFull bool, err error) {
	if full {
		all, err := io.ReadAll(io.LimitReader(r, dsnMaxFull+1))
		if err != nil {
			return nil, false, fmt.Errorf("read the message for a notification: %w", err)
		}
		if len(all) <= dsnMaxFull && dsnLinesFit(all) {
			return all, true, nil
		}
		r = bytes.NewReader(all)
	}
	header, err := dsnHeader(r)
	return header, false, err
}

func dsnLinesFit(b []byte) bool {
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n')
		if n < 0 {
			n = len(b)
		}
		if n > dsnMaxLine+1 {
			return false
		}
		b = b[min(n+1, len(b)):]
	}
	return true
}

// dsnHeader reads a header up to its empty line. Lines that are too long are
// cut, and a header that is too long ends early: it is there to be recognised.
func dsnHeader(r io.Reader) ([]byte, error) {
	br := bufio.NewReaderSize(r, 4096)
	var out []byte
	for mid := false; len(out) < dsnMaxHeader; {
		line, err := br.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, fmt.Errorf("read the header for a notification: %w", err)
		}
		ended := bytes.HasSuffix(line, []byte("\n"))
		text := bytes.TrimRight(line, "\r\n")
		if !mid {
			if len(text) == 0 {
				break
			}
			out = append(append(out, text[:min(len(text), dsnMaxLine)]...), "\r\n"...)
		}
		mid = !ended
		if errors.Is(err, io.EOF) {
			break
		}
	}
	return out, nil
}
