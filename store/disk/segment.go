package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"crossfade/mail"
)

// A record is a header of 48 octets and the body:
//
//	magic "CFb1" | length uint64 | CRC-32C of the body | id, 26 octets | 2 zero | CRC-32C of the 44 octets before
//
// Numbers are little-endian. A segment is a row of records; a body in a file
// of its own is one record.
const (
	headerSize = 48
	idSize     = 26
)

var magic = [4]byte{'C', 'F', 'b', '1'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is a record's head.
type header struct {
	size int64
	sum  uint32
	id   mail.ID
}

var errHeader = errors.New("not the head of a record")

func (h header) append(b []byte) []byte {
	start := len(b)
	b = append(b, magic[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.size))
	b = binary.LittleEndian.AppendUint32(b, h.sum)
	var id [idSize]byte
	copy(id[:], h.id)
	b = append(b, id[:]...)
	b = append(b, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize || [4]byte(b[:4]) != magic {
		return header{}, errHeader
	}
	if binary.LittleEndian.Uint32(b[44:]) != crc32.Checksum(b[:44], castagnoli) {
		return header{}, errHeader
	}
	h := header{
		size: int64(binary.LittleEndian.Uint64(b[4:])),
		sum:  binary.LittleEndian.Uint32(b[12:]),
		id:   mail.ID(b[16 : 16+idSize]),
	}
	if h.size < 0 {
		return header{}, errHeader
	}
	return h, nil
}

// record is a record found by scan.
type record struct {
	header
	pos int64
}

// scanSegment calls f for each record from the beginning to the first octets
// that are none, and gives where it stopped. Bodies are not read. A torn tail
// ends the scan without an error: nothing refers to it.
func scanSegment(r io.ReaderAt, size int64, f func(record) error) (int64, error) {
	buf := make([]byte, headerSize)
	pos := int64(0)
	for pos+headerSize <= size {
		if _, err := r.ReadAt(buf, pos); err != nil {
			return pos, fmt.Errorf("scan a segment at %d: %w", pos, err)
		}
		h, err := parseHeader(buf)
		if err != nil || h.size > size-pos-headerSize {
			return pos, nil
		}
		if err := f(record{h, pos}); err != nil {
			return pos, err
		}
		pos += headerSize + h.size
	}
	return pos, nil
}

// bodyReader streams a stored body and compares its checksum at the end.
type bodyReader struct {
	r       io.ReaderAt
	pos     int64
	left    int64
	sum     uint32
	want    uint32
	err     error
	release func()
}

// openRecord checks the head of the record at pos and gives its body.
func openRecord(r io.ReaderAt, pos int64, id mail.ID, size int64) (*bodyReader, error) {
	buf := make([]byte, headerSize)
	if _, err := r.ReadAt(buf, pos); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	h, err := parseHeader(buf)
	if err != nil || h.id != id || h.size != size {
		return nil, errHeader
	}
	return &bodyReader{r: r, pos: pos + headerSize, left: size, want: h.sum}, nil
}

// Read implements io.Reader.
func (b *bodyReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		b.err = io.EOF
		if b.sum != b.want {
			b.err = errBadSum
		}
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.ReadAt(p, b.pos)
	b.sum = crc32.Update(b.sum, castagnoli, p[:n])
	b.pos += int64(n)
	b.left -= int64(n)
	switch {
	case n == len(p):
	case errors.Is(err, io.EOF):
		b.err = errBadSum // the file is shorter than its head says
		return n, b.err
	case err != nil:
		b.err = err
		return n, err
	}
	return n, nil
}

// Close lets go of the file.
func (b *bodyReader) Close() error {
	if b.release != nil {
		b.release()
		b.release = nil
	}
	if b.err == nil {
		b.err = errors.New("the body was closed")
	}
	return nil
}

var errBadSum = errors.New("the checksum does not match")
