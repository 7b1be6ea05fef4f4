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
// Loose is the sum over what is left of that when what servers are known to alter is
// taken away: without a CR that is none of a line end, NUL made 0x80 (both as Dovecot does it), without
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
	// NUL, a CR that is not followed by LF, or no line end at its end.
	Fragile bool
	NUL     bool // it has a NUL, which an IMAP literal must not have (RFC 3501, 9)
}

const (
	maxHeader = 256 << 10 // octets of a header that are searched for our Received
)

// hasher computes the identity of a message while it streams by. Most messages
// have nothing that servers alter: for them exact and loose are one sum, and only
// the line ends at the end tell them apart.
type hasher struct {
	host     string // of our Received fields; empty: no delivery key
	id       identity
	exact    sum
	loose    sum // without a hash until it differs from exact
	munged   sum // without a hash until it differs from loose
	delivery hash.Hash

	cr   bool // a CR came last: what follows says what it is
	head bool // no empty line yet
	text bool // of the header's line that is being read: it is not empty

	header   []byte // until its end is seen
	inHeader bool
}

// sum is a sum over a message without the line ends that came last.
type sum struct {
	hash.Hash
	ends int
}

var crlf = []byte("\r\n")

// newHasher makes a hasher; host is our own name in Received fields.
func newHasher(host string) *hasher {
	return &hasher{host: host, exact: sum{Hash: sha256.New()}, inHeader: host != "", head: true}
}

// reset makes the hasher ready for another message.
func (h *hasher) reset() {
	h.exact.Reset()
	*h = hasher{host: h.host, exact: sum{Hash: h.exact.Hash}, inHeader: h.host != "", head: true}
}

// Write never fails. It works line by line and not octet by octet: it sees every
// octet of every message, and two servers want the processor meanwhile.
func (h *hasher) Write(p []byte) (int, error) {
	n := len(p)
	h.id.CRs += int64(bytes.Count(p, crlf[:1]))
	if h.cr && n > 0 {
		h.cr = false
		if p[0] == '\n' {
			h.take(crlf)
			p = p[1:]
		} else {
			h.take(crlf[:1])
		}
	}
	if k := len(p); k > 0 && p[k-1] == '\r' {
		h.cr = true
		p = p[:k-1]
	}
	h.take(p)
	return n, nil
}

// take adds what does not end between a CR and its LF: the header by lines.
func (h *hasher) take(p []byte) {
	for h.head && len(p) > 0 {
		line := p
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			line = p[:i+1]
		}
		p = p[len(line):]
		h.text = h.text || len(bytes.Trim(line, "\r\n")) > 0
		if h.munged.Hash == nil && slices.ContainsFunc(line, altered) {
			h.munged = h.fork()
		}
		h.add(line)
		if line[len(line)-1] == '\n' {
			h.head, h.text = h.text, false
		}
	}
	h.add(p)
}

// add adds octets as they are, as far as all sums have them the same.
func (h *hasher) add(p []byte) {
	for len(p) > 0 {
		n := plain(p)
		h.addPlain(p[:n])
		if p = p[n:]; len(p) > 0 {
			h.addOdd(p[0])
			p = p[1:]
		}
	}
}

// plain gives how many octets of p come before the first NUL, CR or LF that is
// none of a CRLF.
func plain(p []byte) int {
	for at := 0; ; {
		line, ended := p[at:], false
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line, ended = line[:i], true
		}
		cr, nul := bytes.IndexByte(line, '\r'), bytes.IndexByte(line, 0)
		switch {
		case nul >= 0 && (cr < 0 || nul < cr):
			return at + nul
		case cr >= 0 && (!ended || cr < len(line)-1):
			return at + cr
		case !ended:
			return len(p)
		case cr < 0:
			return at + len(line)
		}
		at += len(line) + 1
	}
}

// addPlain adds octets that all sums have, with line ends that are CRLF.
func (h *hasher) addPlain(b []byte) {
	content := len(bytes.TrimRight(b, "\r\n"))
	ends := (len(b) - content) / 2
	if content > 0 {
		h.addExact(b[:content])
	}
	h.exact.ends += ends
	for _, s := range []*sum{&h.loose, &h.munged} {
		if s.Hash == nil {
			continue
		}
		if content > 0 {
			s.flush()
			if s == &h.munged && h.head {
				s.Write(munge(b[:content]))
			} else {
				s.Write(b[:content])
			}
		}
		s.ends += ends
	}
}

// addOdd adds an octet that is not the same in all sums.
func (h *hasher) addOdd(c byte) {
	if c == '\n' {
		h.addPlain(crlf)
		return
	}
	h.id.Fragile = true
	if h.loose.Hash == nil {
		h.loose = h.fork()
	}
	h.addExact([]byte{c})
	if c == '\r' {
		return
	}
	h.id.NUL = true
	h.loose.flush()
	h.loose.Write([]byte{0x80})
	if h.munged.Hash != nil {
		h.munged.flush()
		if c = 0x80; h.head {
			c = 'X'
		}
		h.munged.Write([]byte{c})
	}
}

// altered tells whether Cyrus alters an octet of a header, or what became of it
// in the loose sum.
func altered(c byte) bool { return c >= 0x80 || c == 0 }

// munge gives what Cyrus makes of a piece of a header.
func munge(b []byte) []byte {
	out := bytes.Clone(b)
	for i, c := range out {
		if altered(c) {
			out[i] = 'X'
		}
	}
	return out
}

// fork gives a second sum over what the loose one has so far. SHA-256 of the
// standard library can be cloned.
func (h *hasher) fork() sum {
	from := h.loose
	if from.Hash == nil {
		from = h.exact
	}
	if c, ok := from.Hash.(hash.Cloner); ok {
		if second, err := c.Clone(); err == nil {
			return sum{second, from.ends}
		}
	}
	return sum{sha256.New(), from.ends} // of nothing else: such a message counts as missing where it is altered
}

// flush adds the line ends that came last: more follows.
func (s *sum) flush() {
	for ; s.ends > 0; s.ends-- {
		s.Write(crlf)
	}
}

// addExact adds octets to the exact sum, and the line ends before them.
func (h *hasher) addExact(b []byte) {
	for ; h.exact.ends > 0; h.exact.ends-- {
		h.writeExact(crlf)
	}
	h.writeExact(b)
}

func (h *hasher) writeExact(b []byte) {
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

// end ends the message and gives its identity.
func (h *hasher) end() identity {
	if h.cr {
		h.cr = false
		h.take(crlf[:1])
	}
	if h.exact.ends == 0 && h.id.Size > 0 {
		h.id.Fragile = true // Courier ends the last line
	}
	if h.loose.Hash == nil {
		h.exact.Sum(h.id.Loose[:0])
	} else {
		h.loose.Sum(h.id.Loose[:0])
	}
	h.addExact(nil)
	if h.inHeader && len(h.header) > 0 {
		h.endHeader(h.header, nil)
	}
	h.exact.Sum(h.id.Exact[:0])
	if h.munged.Hash != nil {
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

// relayMark stands behind our name in Received fields, whichever it is.
const relayMark = "(Crossfade)"

// queueID gives the queue id of the topmost Received field that host wrote:
// "by HOST ... id QUEUEID". Without a host it is one that any relay of ours did,
// by the comment behind its name.
func queueID(header []byte, host string) string {
	for _, f := range fields(header) {
		if !strings.EqualFold(f.name, "Received") {
			continue
		}
		words := strings.Fields(f.value)
		by := -1
		for i, w := range words {
			if by < 0 && i > 0 && strings.EqualFold(words[i-1], "by") {
				own := strings.EqualFold(strings.TrimRight(w, ".;"), host)
				if host == "" {
					own = i+1 < len(words) && words[i+1] == relayMark
				}
				if own {
					by = i
				}
			}
			if by >= 0 && i > by && strings.EqualFold(words[i-1], "id") {
				return strings.TrimRight(w, ";")
			}
		}
	}
	return ""
}
