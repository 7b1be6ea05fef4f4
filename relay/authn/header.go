package authn

import (
	"bytes"
	"slices"
	"sync"

	"crossfade/relay/authn/dkim"
)

// freeHeader is what each check may keep of a header without asking, firstHeader what it begins with.
const (
	freeHeader  = 8 << 10
	firstHeader = freeHeader / 2
)

// headers have room for a header each, for one message after the other.
var headers = sync.Pool{New: func() any { return new([firstHeader]byte) }}

// header collects a header as it streams by. The zero value with limit set is ready for use. The header ends at the first
// empty line; a line that is no field is kept as one without a name, so that nothing behind it escapes notice.
type header struct {
	limit func(size int) bool // whether so many octets may be kept

	kept   []byte
	pooled *[firstHeader]byte // what kept began as; nil: it has not begun
	fields []field
	froms  [][]byte // text of the From fields, folded as it came: of many the first and the last
	signed int      // DKIM-Signature fields, kept or not

	over     bool   // the header has ended
	cut      string // why not all fields are kept; empty: they are
	busy     bool   // that is for now
	fromOver bool   // there were more From fields, or longer ones, than are kept

	start   int  // of the present field in kept
	line    int  // octets of the present line so far
	first   byte // of the present line
	inField bool
	tooLong bool   // the present field is not kept whole
	tail    []byte // the end of what is not kept of it
}

// field is one field in header.kept, with its line ends.
type field struct {
	start, end int
	name       string // lower case; empty: it is no field
}

// write takes the next octets, and gives those behind the header back when it is over.
func (h *header) write(p []byte) (rest []byte) {
	for len(p) > 0 {
		if h.line == 0 {
			h.beginLine(p[0])
		}
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i+1]
		}
		h.line += len(part)
		p = p[len(part):]
		if i >= 0 && (h.line == 1 || h.line == 2 && h.first == '\r') {
			h.close()
			return p
		}
		if h.line == 1 && h.first == '\r' { // the end of the header, cut in two
			continue
		}
		if h.line == len(part)+1 && h.first == '\r' {
			h.keep([]byte{'\r'})
		}
		h.keep(part)
		if i >= 0 {
			h.line = 0
		}
	}
	return nil
}

// beginLine ends the field before when a line does not continue it. The line may turn out to be the empty one.
func (h *header) beginLine(c byte) {
	h.first = c
	if (c == ' ' || c == '\t') && h.inField {
		return
	}
	h.endField()
}

func (h *header) keep(part []byte) {
	h.inField = true
	if room := max(maxField-(len(h.kept)-h.start), 0); room < len(part) {
		defer h.drop(part[room:]) // last: forget may drop what is before it
		part = part[:room]
	}
	if h.pooled == nil {
		h.pooled = headers.Get().(*[firstHeader]byte)
		h.kept = h.pooled[:0]
	}
	if need := len(h.kept) + len(part); need > cap(h.kept) {
		size := max(2*cap(h.kept), need)
		if size > freeHeader && !h.limit(size) {
			h.forget(part)
			return
		}
		grown := make([]byte, len(h.kept), size)
		copy(grown, h.kept)
		h.kept = grown
	}
	h.kept = append(h.kept, part...)
}

// letGo ends it. Nothing that was kept may be used any more.
func (h *header) letGo() {
	if h.pooled != nil {
		headers.Put(h.pooled)
	}
	*h = header{over: true}
}

// forget gives up all fields but the present one, because there is no memory for them: the author has to be found all the
// same.
func (h *header) forget(part []byte) {
	h.busy, h.cut = true, errBusy
	h.fields = nil
	h.kept = append(h.kept[:0], h.kept[h.start:]...)
	h.start = 0
	if room := cap(h.kept) - len(h.kept); room < len(part) {
		h.drop(part[room:])
		part = part[:room]
	}
	h.kept = append(h.kept, part...)
}

// drop notes the end of what is not kept of the present field: if it is From, that is what readers show.
func (h *header) drop(part []byte) {
	h.tooLong = true
	h.tail = append(h.tail, part[max(0, len(part)-maxFrom):]...)
	if len(h.tail) > 2*maxFrom {
		h.tail = append(h.tail[:0], h.tail[len(h.tail)-maxFrom:]...)
	}
}

// endField files the present field.
func (h *header) endField() {
	if !h.inField {
		return
	}
	text := h.kept[h.start:]
	name, value := splitField(text)
	if bytes.EqualFold(name, []byte("from")) {
		h.from(value)
	}
	if bytes.EqualFold(name, []byte("dkim-signature")) {
		h.signed++
	}
	switch {
	case h.tooLong && h.cut == "":
		h.cut = "a field is larger than 64 KiB"
	case len(h.kept) > maxHeader && h.cut == "":
		h.cut = "the header is larger than 128 KiB"
	}
	if h.cut != "" {
		h.kept = h.kept[:h.start]
	} else {
		h.fields = append(h.fields, field{h.start, len(h.kept), dkim.LowerName(name)})
	}
	h.start, h.inField, h.tooLong, h.tail = len(h.kept), false, false, h.tail[:0]
}

// from keeps the text of a From field. Nobody asked for this memory, so that of a long one it is the beginning and the
// end, and of many fields the first and the last.
func (h *header) from(value []byte) {
	if len(h.froms) == maxFroms {
		h.fromOver = true
		h.froms = slices.Delete(h.froms, maxFroms/2, maxFroms/2+1)
	}
	if !h.tooLong && len(value) <= 2*maxFrom {
		h.froms = append(h.froms, bytes.Clone(value))
		return
	}
	h.fromOver = true
	end := slices.Concat(value[max(0, len(value)-maxFrom):], h.tail)
	h.froms = append(h.froms, slices.Concat(value[:min(len(value), maxFrom)], []byte{' '}, end[max(0, len(end)-maxFrom):]))
}

// close ends the header.
func (h *header) close() {
	h.endField()
	h.over = true
}

// text is a field as it came, with the CRLF of its last line.
func (h *header) text(f field) []byte { return h.kept[f.start:f.end] }

// splitField parts a field at its colon. Blanks before the colon are allowed (RFC 5322, 4.5); what has other octets there
// that no name has is no field.
func splitField(text []byte) (name, value []byte) {
	colon := bytes.IndexByte(text, ':')
	if colon < 0 {
		return nil, nil
	}
	name = bytes.TrimRight(text[:colon], " \t")
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return nil, nil
		}
	}
	return name, text[colon+1:]
}
