package ondisk

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"

	"github.com/klauspost/compress/zstd"
)

// reason drops the path from an error of the file system: it is said before.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// folderError is one that other folders do not share.
func folderError(name string, err error) error {
	return fmt.Errorf("%q: %w: %w", name, backfill.ErrFolder, err)
}

var errNotRegular = errors.New("it is not a regular file")

// openFile opens a regular file, and never waits for one that is a pipe.
func openFile(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, reason(err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errNotRegular
	}
	if err != nil {
		f.Close()
		return nil, nil, reason(err)
	}
	return f, st, nil
}

// readSmall reads a file of a server's own notes; one that is not there is
// empty. More than most octets are an error: it is not what it seems to be.
func readSmall(root *os.Root, name string, most int64) ([]byte, error) {
	f, _, err := openFile(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, reason(err))
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("read %s: it has more than %d octets", name, most)
	}
	return b, nil
}

// appendCRLF adds src to dst with each LF that has no CR before it made CRLF.
// last is the octet before src, and the last one of src is given back.
func appendCRLF(dst, src []byte, last byte) ([]byte, byte) {
	for len(src) > 0 {
		i := bytes.IndexByte(src, '\n')
		if i < 0 {
			break
		}
		if i > 0 {
			last = src[i-1]
		}
		dst = append(dst, src[:i]...)
		if last != '\r' {
			dst = append(dst, '\r')
		}
		dst = append(dst, '\n')
		last, src = '\n', src[i+1:]
	}
	if len(src) > 0 {
		dst, last = append(dst, src...), src[len(src)-1]
	}
	return dst, last
}

// inMemory is the size up to which a message is read whole before it is handed
// on, so that its size is known exactly.
const inMemory = 1 << 20

// recvError is an error of the receiver: it ends the pass and not the message.
type recvError struct{ err error }

func (e *recvError) Error() string { return e.err.Error() }
func (e *recvError) Unwrap() error { return e.err }

// handing hands messages on; its buffers are used again.
type handing struct {
	recv imapconn.Receiver
	raw  bytes.Buffer
	out  []byte
	most int64 // octets of a message; 0 means backfill.MaxMessage
	// check, if there is one, tells behind the last octet whether they are the
	// ones that were meant.
	check func() error
}

// message hands one message on as IMAP would: with CRLF. A recvError is the
// receiver's, any other the reader's.
func (h *handing) message(m imapconn.Meta, r io.Reader) error {
	n, last, err := h.next(r, 0)
	if err != nil {
		return err
	}
	size := int64(len(h.out))
	if n == inMemory {
		size = max(size, m.Size, inMemory+1) // more follows, whatever was noted of it
	}
	w, err := h.recv.Begin(m.UID, size)
	if err != nil {
		return &recvError{err}
	}
	for m.Size = 0; ; {
		if m.Size += int64(len(h.out)); m.Size > cmp.Or(h.most, backfill.MaxMessage) {
			return errTooLarge
		}
		if _, err := w.Write(h.out); err != nil {
			return &recvError{err}
		}
		if n < inMemory {
			break
		}
		if n, last, err = h.next(r, last); err != nil {
			return err
		}
	}
	if err := h.recv.End(m); err != nil {
		return &recvError{err}
	}
	return nil
}

var errTooLarge = fmt.Errorf("it has more than %d octets, which is no message", int64(backfill.MaxMessage))

// next reads up to inMemory octets, and leaves them in out with CRLF. With fewer
// the message is over.
func (h *handing) next(r io.Reader, before byte) (n int64, last byte, err error) {
	h.raw.Reset()
	if n, err = h.raw.ReadFrom(io.LimitReader(r, inMemory)); err != nil {
		return n, before, reason(err)
	}
	h.out, last = appendCRLF(h.out[:0], h.raw.Bytes(), before)
	if n < inMemory && h.check != nil {
		err = h.check()
	}
	return n, last, err
}

// packed are the forms in which Dovecot's plugins keep messages (zlib,
// mail-crypt), by how they begin. No message begins so.
var packed = []struct {
	magic, name string
	open        func(io.Reader) (io.Reader, error)
}{
	{"\x1f\x8b", "gzip", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"BZh", "bzip2", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"\x28\xb5\x2f\xfd", "zstd", func(r io.Reader) (io.Reader, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}},
	{"Dovecot-LZ4\x0d\x2a\x9b\xc5", "LZ4", nil},
	{"\xfd7zXZ\x00", "xz", nil},
	{"CRYPTED\x03\x07", "encrypted", nil},
}

// unpack gives the message in a file. Forms that are not read here are an error:
// the server has to hand such messages out itself.
func unpack(f io.Reader) (io.Reader, error) {
	br := bufio.NewReaderSize(f, 32<<10)
	head, err := br.Peek(16)
	if err != nil && err != io.EOF {
		return nil, reason(err)
	}
	for _, p := range packed {
		if !bytes.HasPrefix(head, []byte(p.magic)) || p.name == "bzip2" && (len(head) < 10 || string(head[4:10]) != "1AY&SY") {
			continue
		}
		if p.open == nil {
			return nil, fmt.Errorf("the message is kept in a form that cannot be read here (%s): read this mailbox over IMAP", p.name)
		}
		r, err := p.open(br)
		if err != nil {
			return nil, fmt.Errorf("unpack (%s): %w", p.name, err)
		}
		return r, nil
	}
	return br, nil
}
