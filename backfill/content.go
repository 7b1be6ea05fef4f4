package backfill

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
)

// key is a SHA-256 sum.
type key [sha256.Size]byte

func (k key) String() string { return base64.RawStdEncoding.EncodeToString(k[:]) }

func (k key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func (k *key) UnmarshalText(b []byte) error {
	raw, err := base64.RawStdEncoding.DecodeString(string(b))
	if err != nil || len(raw) != len(k) {
		return fmt.Errorf("content key %q: not a SHA-256 sum", b)
	}
	copy(k[:], raw)
	return nil
}

// identity is what tells messages apart.
//
// Exact is the content key: the sum over the message with each LF that has no
// CR before it made CRLF, and nothing else changed.
//
// Loose is the sum over what is left when what servers are known to alter is
// taken away: without any CR, NUL made 0x80 (both as Dovecot does it), without
// the empty lines and line ends at the end. Two messages with one loose and two
// exact keys are the class "altered", and only where one of them is Fragile can
// they be one message.
//
// Munged is Loose with each octet over 0x7f in the header made "X", as Cyrus does
// it when it takes a message; zero when there is none. It is compared with the
// Loose of the other side only: two messages that both have such octets are not
// one because they would look the same there.
//
// Delivery is for messages that our relay delivered to both sides: the sum over
// the queue id in our topmost Received field, the fields that name the message
// (From, To, Cc, Date, Subject, Message-ID), and the body. Zero without such a
// field.
type identity struct {
	Exact    key
	Loose    key
	Munged   key
	Delivery key
	QueueID  string
	Size     int64 // octets that went into Exact
	CRs      int64 // carriage returns, of line ends too
	// Fragile tells that the message has what servers are known to alter: a
	// NUL, or a CR that is not followed by LF.
	Fragile bool
	NUL     bool // it has a NUL, which an IMAP literal must not have (RFC 3501, 9)
}

const (
	maxHeader = 256 << 10 // octets of a header that are searched for our Received
	blockSize = 16 << 10
)

// hasher computes the identity of a message while it streams by.
type hasher struct {
	host     string // of our Received fields; empty: no delivery key
	id       identity
	exact    hash.Hash
	loose    hash.Hash
	delivery hash.Hash

	looseBuf []byte
	munged   hash.Hash // nil until it differs from loose
	head     bool      // no empty line yet
	text     bool      // of the header's line that is being read: it is not empty
	prev     byte
	newlines int // at the end of what came, not yet in loose

	header   []byte // until its end is seen
	inHeader bool
}

func newHasher(host string) *hasher {
	return &hasher{
		host: host, exact: sha256.New(), loose: sha256.New(), inHeader: host != "", head: true,
		looseBuf: make([]byte, 0, 2*blockSize),
	}
}

// reset makes the hasher ready for another message.
func (h *hasher) reset() {
	h.exact.Reset()
	h.loose.Reset()
	*h = hasher{host: h.host, exact: h.exact, loose: h.loose, looseBuf: h.looseBuf[:0], inHeader: h.host != "", head: true}
}

// Write never fails. It works line by line and not octet by octet: it sees every
// octet of every message, and two servers want the processor meanwhile.
func (h *hasher) Write(p []byte) (int, error) {
	clean := bytes.IndexByte(p, 0) < 0
	h.id.NUL = h.id.NUL || !clean
	start := 0 // of what is not in exact yet
	for at := 0; at < len(p); {
		end, ended := len(p), false
		if i := bytes.IndexByte(p[at:], '\n'); i >= 0 {
			end, ended = at+i, true
		}
		h.addLine(p[at:end], clean)
		if !ended {
			break
		}
		if h.prev != '\r' {
			h.addExact(p[start:end])
			h.addExact([]byte{'\r'})
			start = end
		}
		if h.head {
			h.endHeadLine()
		}
		h.newlines++
		h.prev = '\n'
		at = end + 1
	}
	h.addExact(p[start:])
	h.flushLoose()
	return len(p), nil
}

// addLine adds octets without LF to the loose sum; clean tells that they are
// without NUL.
func (h *hasher) addLine(line []byte, clean bool) {
	if len(line) == 0 {
		return
	}
	if h.prev == '\r' {
		h.id.Fragile = true
	}
	h.prev = line[len(line)-1]
	h.text = h.text || h.head && len(bytes.Trim(line, "\r")) > 0
	cr := bytes.IndexByte(line, '\r')
	if !clean || cr >= 0 && cr < len(line)-1 {
		h.addOdd(line)
		return
	}
	if cr >= 0 {
		h.id.CRs++
		line = line[:cr]
	}
	h.addLoose(line...)
}

// addOdd is addLine for a line with a NUL or a CR in its middle.
func (h *hasher) addOdd(line []byte) {
	for i, c := range line {
		if i > 0 && line[i-1] == '\r' {
			h.id.Fragile = true
		}
		switch c {
		case '\r':
			h.id.CRs++
		case 0:
			h.id.Fragile = true
			h.addLoose(0x80)
		default:
			h.addLoose(c)
		}
	}
}

// addLoose adds octets and the line ends before them.
func (h *hasher) addLoose(b ...byte) {
	if len(b) == 0 {
		return
	}
	for ; h.newlines > 0; h.newlines-- {
		h.looseBuf = append(h.looseBuf, '\n')
		if len(h.looseBuf) >= blockSize {
			h.flushLoose()
		}
	}
	if len(b) >= blockSize {
		h.flushLoose()
		h.writeLoose(b)
		return
	}
	h.looseBuf = append(h.looseBuf, b...)
	if len(h.looseBuf) >= blockSize {
		h.flushLoose()
	}
}

func (h *hasher) flushLoose() {
	h.writeLoose(h.looseBuf)
	h.looseBuf = h.looseBuf[:0]
}

func (h *hasher) writeLoose(b []byte) {
	if h.head && h.munged == nil && slices.ContainsFunc(b, eightBit) {
		h.munged = fork(h.loose)
	}
	h.loose.Write(b)
	switch {
	case h.munged == nil:
	case h.head:
		h.munged.Write(munge(b))
	default:
		h.munged.Write(b)
	}
}

// endHeadLine ends a line of the header; an empty one is the end of the header.
func (h *hasher) endHeadLine() {
	if !h.text {
		h.flushLoose()
		h.head = false
	}
	h.text = false
}

func eightBit(c byte) bool { return c >= 0x80 }

// munge gives what Cyrus makes of a piece of a header.
func munge(b []byte) []byte {
	out := bytes.Clone(b)
	for i, c := range out {
		if eightBit(c) {
			out[i] = 'X'
		}
	}
	return out
}

// fork gives a second sum over what the first one has so far. SHA-256 of the
// standard library can be cloned.
func fork(h hash.Hash) hash.Hash {
	if c, ok := h.(hash.Cloner); ok {
		if second, err := c.Clone(); err == nil {
			return second
		}
	}
	return nil // no second sum: such a message counts as missing where it is munged
}

func (h *hasher) addExact(b []byte) {
	h.exact.Write(b)
	h.id.Size += int64(len(b))
	switch {
	case h.inHeader:
		h.takeHeader(b)
	case h.delivery != nil:
		h.delivery.Write(b)
	}
}

// takeHeader collects the header; at its end it knows whether there is a
// delivery key.
func (h *hasher) takeHeader(b []byte) {
	from := max(len(h.header)-3, 0)
	h.header = append(h.header, b...)
	end := bytes.Index(h.header[from:], []byte("\r\n\r\n"))
	if end < 0 {
		if len(h.header) > maxHeader {
			h.inHeader, h.header = false, nil
		}
		return
	}
	h.endHeader(h.header[:from+end+2], h.header[from+end+4:])
}

func (h *hasher) endHeader(header, body []byte) {
	h.inHeader = false
	h.id.QueueID = queueID(header, h.host)
	if h.id.QueueID != "" {
		h.delivery = sha256.New()
		io.WriteString(h.delivery, h.id.QueueID+"\n")
		for _, f := range fields(header) {
			switch strings.ToLower(f.name) {
			case "from", "to", "cc", "date", "subject", "message-id":
				io.WriteString(h.delivery, strings.ToLower(f.name)+":"+f.value+"\n")
			}
		}
		h.delivery.Write(body)
	}
	h.header = nil
}

// sum ends the message.
func (h *hasher) sum() identity {
	if h.prev == '\r' {
		h.id.Fragile = true
	}
	if h.inHeader && len(h.header) > 0 {
		h.endHeader(h.header, nil)
	}
	h.exact.Sum(h.id.Exact[:0])
	h.loose.Sum(h.id.Loose[:0])
	if h.munged != nil {
		h.munged.Sum(h.id.Munged[:0])
		h.id.Fragile = true
	}
	if h.delivery != nil {
		h.delivery.Sum(h.id.Delivery[:0])
	}
	return h.id
}

type field struct{ name, value string }

// fields takes a header apart and unfolds it.
func fields(header []byte) []field {
	var out []field
	for line := range bytes.SplitSeq(header, []byte("\r\n")) {
		if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			if len(out) > 0 {
				out[len(out)-1].value += " " + strings.TrimSpace(string(line))
			}
			continue
		}
		if name, value, ok := strings.Cut(string(line), ":"); ok {
			out = append(out, field{strings.TrimSpace(name), strings.TrimSpace(value)})
		}
	}
	return out
}

// queueID gives the queue id of the topmost Received field that host wrote:
// "by HOST ... id QUEUEID".
func queueID(header []byte, host string) string {
	for _, f := range fields(header) {
		if !strings.EqualFold(f.name, "Received") {
			continue
		}
		words := strings.Fields(f.value)
		by := -1
		for i, w := range words {
			if by < 0 && i > 0 && strings.EqualFold(words[i-1], "by") && strings.EqualFold(strings.TrimRight(w, ".;"), host) {
				by = i
			}
			if by >= 0 && i > by && strings.EqualFold(words[i-1], "id") {
				return strings.TrimRight(w, ";")
			}
		}
	}
	return ""
}
