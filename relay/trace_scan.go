package relay

import (
	"bytes"
	"fmt"
	"strings"

	"crossfade/mail"
)

// Limits of a message's header.
const (
	maxHeader   = 1 << 20 // octets; more is 552
	maxHops     = 50      // Received headers; more is a loop (RFC 5321, 6.3)
	maxOwnHops  = 3       // of those, ours: so many are a loop
	maxFieldLen = 1024    // of a field that is looked at, unfolded
	maxMsgID    = 512     // octets of a Message-ID that are kept
)

var (
	errManyHops = mail.Replyf(554, mail.Enhanced{5, 4, 6}, "mail loop: more than %d Received headers", maxHops)
	errOwnHops  = mail.Replyf(554, mail.Enhanced{5, 4, 6}, "mail loop: the message came through here %d times already", maxOwnHops)
	// errLoopLater is for a message that was accepted here before: refused for good,
	// one without a sender to tell would be lost.
	errLoopLater = mail.Replyf(451, mail.Enhanced{4, 4, 6}, "mail loop: the message came through here before, and too many do so now")
	errHeader    = mail.Replyf(552, mail.Enhanced{5, 3, 4}, "the message header is larger than %d octets", maxHeader)
	// Refused for good: no real message has as many, and a temporary refusal would
	// only be tried again for days.
	errHeaderFields = mail.Replyf(554, mail.Enhanced{5, 6, 0}, "the message has too many header fields")
)

// headerScan reads the header of a message as it streams by, in pieces of any
// size, and keeps little of it: it counts hops and finds the Message-ID. The
// zero value with own set is ready for use.
//
// The header ends at the first empty line, or at the first line that is no
// header field. A message without any header is no error.
type headerScan struct {
	own string // "hostname (Crossfade)", as our own trace headers have it
	// ours is for mail of our own systems: too many hops are counted and not an
	// error, because delivery parks such mail with an explanation.
	ours bool
	// take tells whether a stranger's message that was here before may be taken in, to
	// be parked; nil: no.
	take      func() bool
	maxFields int // 0: no bound
	fields    int
	size      int // octets of header so far
	hops      int
	ownHops   int
	passage   mail.Passage // of own hops: ids and recipients
	messageID string
	noTLS     bool // TLS-Required: No
	over      bool

	line []byte   // the beginning of the present line
	kind scanKind // what the present field is
	text []byte   // its text, unfolded
}

type scanKind uint8

const (
	scanOther scanKind = iota
	scanReceived
	scanMessageID
	scanTLSRequired
)

// scan looks at the next bytes. After an error it must not be called again.
func (h *headerScan) scan(p []byte) error {
	for !h.over && len(p) > 0 {
		part, rest := p, []byte(nil)
		i := bytes.IndexByte(p, '\n')
		if i >= 0 {
			part, rest = p[:i+1], p[i+1:]
		}
		if h.size += len(part); h.size > maxHeader {
			return errHeader
		}
		if room := maxFieldLen - len(h.line); room < len(part) {
			h.line = append(h.line, part[:room]...)
		} else {
			h.line = append(h.line, part...)
		}
		if i >= 0 {
			if err := h.endLine(); err != nil {
				return err
			}
		}
		p = rest
	}
	return nil
}

// close ends the header where the message ends.
func (h *headerScan) close() error {
	if h.over {
		return nil
	}
	if len(h.line) > 0 {
		if err := h.endLine(); err != nil {
			return err
		}
	}
	return h.finish()
}

func (h *headerScan) endLine() error {
	line := bytes.TrimRight(h.line, "\r\n")
	h.line = h.line[:0]
	switch {
	case len(line) == 0:
		return h.finish()
	case line[0] == ' ' || line[0] == '\t':
		h.keep(line)
		return nil
	}
	if err := h.endField(); err != nil {
		return err
	}
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || !fieldName(line[:colon]) {
		// An mbox line on top is left to the systems behind us.
		if h.size > len(line)+2 || !bytes.HasPrefix(line, []byte("From ")) {
			return h.finish()
		}
		return nil
	}
	if h.fields++; h.maxFields > 0 && h.fields > h.maxFields {
		return fmt.Errorf("%w: more than %d", errHeaderFields, h.maxFields)
	}
	name := bytes.TrimRight(line[:colon], " \t")
	switch {
	case len(name) == 8 && bytes.EqualFold(name, []byte("Received")):
		h.kind = scanReceived
	case len(name) == 10 && bytes.EqualFold(name, []byte("Message-ID")) && h.messageID == "":
		h.kind = scanMessageID
	case len(name) == 12 && bytes.EqualFold(name, []byte("TLS-Required")):
		h.kind = scanTLSRequired
	}
	h.keep(line[colon+1:])
	return nil
}

// keep adds to the text of a field that matters.
func (h *headerScan) keep(part []byte) {
	if h.kind == scanOther {
		return
	}
	room := maxFieldLen - len(h.text)
	h.text = append(h.text, part[:min(room, len(part))]...)
}

// endField counts what the present field says.
func (h *headerScan) endField() error {
	kind := h.kind
	h.kind = scanOther
	defer func() { h.text = h.text[:0] }()
	switch kind {
	case scanReceived:
		h.hops++
		if rest := h.byUs(h.text); rest != nil {
			h.ownHops++
			h.notePassage(rest)
		}
	case scanMessageID:
		id := strings.TrimSpace(string(h.text))
		if len(id) > maxMsgID {
			id = id[:maxMsgID]
		}
		h.messageID = strings.ToValidUTF8(printable(id), "?")
	case scanTLSRequired:
		h.noTLS = strings.EqualFold(strings.TrimSpace(string(h.text)), "no")
	}
	return nil
}

// looped judges a whole header. Mail that goes round was accepted here at its first
// turn, and is accounted for: it is parked whoever hands it over. Only what never was
// here, or does not say as what, may be refused.
func (h *headerScan) looped() error {
	many := h.hops > maxHops
	switch {
	case h.ours || h.ownHops < maxOwnHops && !many:
		return nil
	case len(h.passage.IDs) == 0 && many:
		return errManyHops
	case len(h.passage.IDs) == 0:
		return errOwnHops
	case h.take != nil && h.take():
		return nil
	}
	return errLoopLater
}

// byUs gives the words behind our name when a Received header is one that we
// wrote, and nil otherwise. White space may have been folded anew on its way.
func (h *headerScan) byUs(text []byte) []string {
	if !bytes.Contains(text, []byte(traceMark)) {
		return nil
	}
	words := strings.Fields(string(text))
	for i := 0; i+2 < len(words); i++ {
		if strings.EqualFold(words[i], "by") && strings.EqualFold(words[i+1]+" "+words[i+2], h.own) {
			return words[i+1:]
		}
	}
	return nil
}

// maxPassages bounds what is kept of our own earlier trace headers.
const maxPassages = 10

// notePassage keeps id and recipient of one of our own trace headers.
func (h *headerScan) notePassage(words []string) {
	p := &h.passage
	for i := 0; i+1 < len(words); i++ {
		value := strings.TrimRight(words[i+1], ";")
		switch words[i] {
		case "id":
			if mail.ID(value).Valid() && len(p.IDs) < maxPassages {
				p.IDs = append(p.IDs, value)
			}
		case "for":
			a, err := mail.ParseAddress(strings.TrimSuffix(strings.TrimPrefix(value, "<"), ">"))
			if err == nil && !a.IsNull() && len(p.For) < maxPassages {
				p.For = append(p.For, a.Key())
			}
		}
	}
}

func (h *headerScan) finish() error {
	h.over = true
	if err := h.endField(); err != nil {
		return err
	}
	return h.looped()
}

// fieldName tells whether name is one of RFC 5322, 3.6.8, with the blanks
// before the colon that RFC 5322, 4.5, allows.
func fieldName(name []byte) bool {
	name = bytes.TrimRight(name, " \t")
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(name) > 0
}

// printable replaces control characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return '?'
		}
		return r
	}, s)
}
