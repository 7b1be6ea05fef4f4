package dkim

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"slices"
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
	out     limitHash

	lines int64 // line ends that wait for something behind them
	cr    bool  // the last octet was a CR
	blank bool  // relaxed: white space waits for something behind it
	begun bool  // something was written
	done  bool
}

// NewBodyHash makes a hash of the body in a canonical form, which gives the hash
// of its first octets too, for each of the given numbers of octets (of l= tags).
func NewBodyHash(c Canon, limits ...int64) *BodyHash {
	slices.Sort(limits)
	return &BodyHash{relaxed: c == Relaxed, out: limitHash{hash: sha256.New(), limits: slices.Compact(limits)}}
}

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

// plain is the number of octets that go into the hash as they are.
func (b *BodyHash) plain(p []byte) int {
	if !b.relaxed {
		if i := bytes.IndexByte(p, '\r'); i >= 0 {
			return i
		}
		return len(p)
	}
	for i, c := range p {
		switch c {
		case '\r', '\t':
			return i
		case ' ':
			// One space within a line is what the canonical form has there too.
			if i == 0 || i+1 == len(p) || p[i+1] == ' ' || p[i+1] == '\t' || p[i+1] == '\r' {
				return i
			}
		}
	}
	return len(p)
}

// content writes what waited, and then p, which has no line end in it.
func (b *BodyHash) content(p []byte) {
	b.out.ends(b.lines)
	b.lines = 0
	if b.blank {
		b.out.write(spaceOctet)
		b.blank = false
	}
	b.out.write(p)
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
		b.out.ends(1)
	}
	b.out.flush()
}

// Sum is the hash of the whole body. Nothing may be written after it.
func (b *BodyHash) Sum() []byte {
	b.finish()
	return b.out.hash.Sum(nil)
}

// SumOf is the hash of the first octets of the canonical body, for a number that
// was given to [NewBodyHash]. It is false when the body is shorter. Nothing may be
// written after it.
func (b *BodyHash) SumOf(octets int64) ([]byte, bool) {
	b.finish()
	for i, l := range b.out.limits {
		if l == octets && i < len(b.out.sums) {
			return b.out.sums[i], true
		}
		if l == octets && l == b.out.n {
			return b.out.hash.Sum(nil), true
		}
	}
	return nil, false
}

// Len is the number of octets of the canonical body. Nothing may be written after
// it.
func (b *BodyHash) Len() int64 {
	b.finish()
	return b.out.n
}

// limitHash is a hash that notes its sum at some lengths. Small pieces are
// collected.
type limitHash struct {
	hash   hash.Hash
	n      int64
	limits []int64  // in rising order
	sums   [][]byte // of the limits that were passed
	small  []byte
}

// smallPieces is how much is collected.
const smallPieces = 1024

func (l *limitHash) write(p []byte) {
	if len(l.small)+len(p) > smallPieces {
		l.flush()
	}
	if len(p) < smallPieces/4 {
		l.small = append(l.small, p...)
		return
	}
	l.flush()
	l.sum(p)
}

func (l *limitHash) flush() {
	l.sum(l.small)
	l.small = l.small[:0]
}

func (l *limitHash) sum(p []byte) {
	for len(l.sums) < len(l.limits) {
		room := l.limits[len(l.sums)] - l.n
		if room > int64(len(p)) {
			break
		}
		_, _ = l.hash.Write(p[:room])
		l.n += room
		p = p[room:]
		l.sums = append(l.sums, l.hash.Sum(nil))
	}
	_, _ = l.hash.Write(p)
	l.n += int64(len(p))
}

var manyEnds = []byte(strings.Repeat("\r\n", 1024))

// ends writes n line ends.
func (l *limitHash) ends(n int64) {
	for n > 0 {
		part := min(n, int64(len(manyEnds)/2))
		l.write(manyEnds[:2*part])
		n -= part
	}
}
