package dkim

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"strings"
)

// Canon is a canonical form of header or body (RFC 6376, 3.4).
type Canon uint8

// The canonical forms.
const (
	Simple Canon = iota
	Relaxed
)

// String is the name in a c= tag.
func (c Canon) String() string {
	if c == Relaxed {
		return "relaxed"
	}
	return "simple"
}

// BodyHash computes the SHA-256 of a body in canonical form while the body
// streams by, in linear time and constant memory: runs of blank lines and of
// white space are counted, never kept.
type BodyHash struct {
	relaxed bool
	hash    hash.Hash
	small   []byte // pieces that were collected

	lines int64 // line ends that wait for something behind them
	cr    bool  // the last octet was a CR
	blank bool  // relaxed: white space waits for something behind it
	begun bool  // something was written
	done  bool
}

// NewBodyHash makes a hash of the body in a canonical form.
func NewBodyHash(c Canon) *BodyHash { return &BodyHash{relaxed: c == Relaxed, hash: sha256.New()} }

// Write takes the next octets of the body, with CRLF line ends. A CR or LF alone
// is an octet like any other.
func (b *BodyHash) Write(p []byte) {
	for len(p) > 0 {
		if b.cr {
			b.cr = false
			if p[0] == '\n' {
				b.lines++
				b.blank = false
				p = p[1:]
				continue
			}
			b.content(crOctet)
		}
		n := b.plain(p)
		if n > 0 {
			b.content(p[:n])
			p = p[n:]
			continue
		}
		if p[0] == '\r' {
			b.cr = true
		} else {
			b.blank = true
		}
		p = p[1:]
	}
}

var crOctet = []byte{'\r'}

// plain is the number of octets that go into the hash as they are: whole lines, where nothing of them or between them is to
// be changed, so that most of a body needs no copy.
func (b *BodyHash) plain(p []byte) int {
	if !b.relaxed {
		return plainLines(p)
	}
	for i := 0; i < len(p); i++ {
		if p[i] > ' ' { // most octets
			continue
		}
		switch p[i] {
		case '\t':
			return i
		case ' ':
			// One space within a line is what the canonical form has there too.
			if i == 0 || i+1 == len(p) || p[i+1] == ' ' || p[i+1] == '\t' || p[i+1] == '\r' {
				return i
			}
		case '\r':
			if !lineEnd(p, i) || p[i+2] == ' ' || p[i+2] == '\t' {
				return i
			}
			i += 2
		}
	}
	return len(p)
}

// plainLines is plain for the simple form.
func plainLines(p []byte) int {
	for i := 0; ; i += 3 {
		cr := bytes.IndexByte(p[min(i, len(p)):], '\r')
		if cr < 0 {
			return len(p)
		}
		if i += cr; !lineEnd(p, i) {
			return i
		}
	}
}

// lineEnd tells whether the CR at i ends a line that is not blank and is followed by another one that is not.
func lineEnd(p []byte, i int) bool {
	return i > 0 && i+2 < len(p) && p[i+1] == '\n' && p[i+2] != '\r'
}

// content writes what waited, and then p, which neither begins nor ends with a line end.
func (b *BodyHash) content(p []byte) {
	b.ends(b.lines)
	b.lines = 0
	if b.blank {
		b.put(spaceOctet)
		b.blank = false
	}
	b.put(p)
	b.begun = true
}

var spaceOctet = []byte{' '}

// finish writes the last line end. Blank lines at the end do not count, white
// space at the end of the last line does not in the relaxed form, and a body of
// nothing is one line end in the simple form and nothing in the relaxed one (RFC
// 6376, 3.4.3 and 3.4.4).
func (b *BodyHash) finish() {
	if b.done {
		return
	}
	b.done = true
	if b.cr {
		b.cr = false
		b.content(crOctet)
	}
	if b.begun || !b.relaxed {
		b.ends(1)
	}
	b.flush()
}

// Sum is the hash. Nothing may be written after it.
func (b *BodyHash) Sum() []byte {
	b.finish()
	return b.hash.Sum(nil)
}

// smallPieces is how much of small pieces is collected.
const smallPieces = 1024

// put adds to the canonical form.
func (b *BodyHash) put(p []byte) {
	if len(b.small)+len(p) > smallPieces {
		b.flush()
	}
	if len(p) < smallPieces/4 {
		if b.small == nil {
			b.small = make([]byte, 0, smallPieces)
		}
		b.small = append(b.small, p...)
		return
	}
	b.flush()
	_, _ = b.hash.Write(p)
}

func (b *BodyHash) flush() {
	_, _ = b.hash.Write(b.small)
	b.small = b.small[:0]
}

var manyEnds = []byte(strings.Repeat("\r\n", 1024))

// ends adds n line ends.
func (b *BodyHash) ends(n int64) {
	for n > 0 {
		part := min(n, int64(len(manyEnds)/2))
		b.put(manyEnds[:2*part])
		n -= part
	}
}
