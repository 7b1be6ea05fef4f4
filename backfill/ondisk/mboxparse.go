package ondisk

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"crossfade/backfill"
)

// mbMessage is a message in an mbox file, by offsets.
type mbMessage struct {
	start int64 // of its header, behind the "From " line
	body  int64
	end   int64 // without the line end in front of the next "From " line
	date  time.Time
	flags []string
	uid   uint32 // X-UID, 0 when there is none that can be true
	sum   [sha256.Size]byte
	// name is its content, and which of the messages with the same one it is. Line
	// ends at the end are not part of it: a server adds one before it appends.
	name string
}

// mbIndex is what an mbox file holds.
type mbIndex struct {
	messages []mbMessage
	validity uint32 // X-IMAPbase or X-IMAP; 0 without
	last     uint32 // the highest UID given, as the same field says
	// keywords are the server's: others in X-Keywords are the sender's.
	keywords map[string]bool
}

// hidden are the fields that Dovecot and UW-imap keep their notes in and do not
// show to clients.
var hidden = []string{"content-length", "status", "x-imap", "x-imapbase", "x-keywords", "x-status", "x-uid"}

const (
	// mostHeader is how much of a header is searched for such fields.
	mostHeader = 1 << 20
	mostField  = 64 << 10 // octets of one of them
)

// fromLine is "From sender Wed Jan  1 12:34:56 2003", with what some servers put
// around the year. Without a date it is text (RFC 4155; Dovecot takes it so too).
var fromLine = regexp.MustCompile(`^From (?:.*\s)?(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +(\d{1,2}) (\d{1,2}):(\d\d)(?::(\d\d))?` +
	`(?: +(?:[A-Za-z]{1,5}|([+-]\d{4})))?(?: +[A-Za-z]{1,5})? +(\d{4})(?: +(?:[A-Za-z]{1,5}|([+-]\d{4})))?(?: remote from .*)?\r?\n?$`)

// parseFrom reads a "From " line. Without a zone the time is one of this machine,
// as it is for the server whose disk this is.
func parseFrom(line []byte) (time.Time, bool) {
	if !bytes.HasPrefix(line, []byte("From ")) || len(line) > 1000 {
		return time.Time{}, false
	}
	m := fromLine.FindSubmatch(line)
	if m == nil {
		return time.Time{}, false
	}
	sec, zone := string(m[5]), string(m[6])+string(m[8])
	if sec == "" {
		sec = "00"
	}
	text := fmt.Sprintf("%s %s %s:%s:%s %s", m[1], m[2], m[3], m[4], sec, m[7])
	if len(zone) == 5 {
		t, err := time.Parse("Jan 2 15:4:5 2006 -0700", text+" "+zone)
		return t, err == nil
	}
	t, err := time.ParseInLocation("Jan 2 15:4:5 2006", text, time.Local)
	return t, err == nil
}

var errNotMbox = errors.New(`it does not begin with a "From " line: it is no mbox; move it out of the tree`)

// indexMbox finds the messages of an mbox file.
func indexMbox(r io.ReaderAt, size int64) (*mbIndex, error) {
	x := &mbIndex{}
	l := &lines{r: r, size: size}
	pos, err := skipBlank(l)
	if err != nil {
		return nil, err
	}
	count := map[[sha256.Size]byte]int{}
	for first := true; pos < size; first = false {
		m := mbMessage{}
		p := &mbParser{l: l, index: x, m: &m, first: first}
		if pos, err = p.message(pos); err != nil {
			return nil, err
		}
		if p.pseudo {
			continue
		}
		h, short := sha256.New(), &trimmed{h: sha256.New()}
		served, err := m.open(r)
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.MultiWriter(h, short), served); err != nil {
			return nil, readError(err)
		}
		h.Sum(m.sum[:0])
		content := [sha256.Size]byte(short.h.Sum(nil))
		count[content]++
		m.name = hex.EncodeToString(content[:]) + "#" + strconv.Itoa(count[content])
		x.messages = append(x.messages, m)
	}
	return x, nil
}

// trimmed sums octets up without the line ends at their end.
type trimmed struct {
	h    hash.Hash
	kept []byte
}

func (t *trimmed) Write(p []byte) (int, error) {
	text := bytes.TrimRight(p, "\r\n")
	if len(text) > 0 {
		t.h.Write(t.kept)
		t.h.Write(text)
		t.kept = t.kept[:0]
	}
	t.kept = append(t.kept, p[len(text):]...)
	return len(p), nil
}

// skipBlank passes over empty lines in front of the first message.
func skipBlank(l *lines) (int64, error) {
	pos := int64(0)
	for pos < l.size {
		line, next, err := l.at(pos)
		if err != nil {
			return pos, err
		}
		if _, ok := parseFrom(line); ok {
			return pos, nil
		}
		if len(bytes.TrimRight(line, "\r\n")) > 0 {
			return pos, errNotMbox
		}
		pos = next
	}
	return pos, nil
}

// mbParser reads one message.
type mbParser struct {
	l      *lines
	index  *mbIndex
	m      *mbMessage
	first  bool
	pseudo bool // it is the server's own notes and no message
	length int64

	name             string // of the field that is being read; "" for one of no interest
	value            []byte
	notes            string // X-IMAP
	daemon, internal bool   // what the server's own notes say of themselves
}

// message reads the message whose "From " line is at pos, and gives where the
// next one is.
func (p *mbParser) message(pos int64) (next int64, err error) {
	line, pos, err := p.l.at(pos)
	if err != nil {
		return pos, err
	}
	p.m.date, _ = parseFrom(line) // it is one: that is how it was found
	p.daemon = bytes.HasPrefix(line, []byte("From MAILER-DAEMON"))
	p.m.start, p.length, p.m.flags = pos, -1, []string{}
	next, err = p.header(pos)
	p.headerEnds()
	if err != nil || p.m.end > 0 {
		return next, err
	}
	p.m.body = next
	if end, next, ok, err := p.byLength(); err != nil || ok {
		p.m.end = end
		return next, err
	}
	return p.scan(p.m.body)
}

// header reads the fields. A "From " line among them begins the next message.
func (p *mbParser) header(pos int64) (next int64, err error) {
	for pos < p.l.size {
		line, next, err := p.l.at(pos)
		if err != nil {
			return pos, err
		}
		text := bytes.TrimRight(line[:min(len(line), 4096)], "\r\n")
		if len(text) == 0 {
			return next, nil
		}
		if _, ok := parseFrom(line); ok && pos > p.m.start {
			p.m.body = pos
			p.ends(p.beforeFrom(pos))
			return pos, nil
		}
		if text[0] != ' ' && text[0] != '\t' {
			p.field()
			p.begin(text)
		} else if p.name != "" && len(p.value)+len(text) < mostField {
			p.value = append(append(p.value, ' '), bytes.TrimSpace(text)...)
		}
		pos = next
	}
	p.m.body, p.m.end = pos, pos
	return pos, nil
}

// begin takes the first line of a field. Only those that mean something are put
// together: a header has as many lines as its sender likes.
func (p *mbParser) begin(text []byte) {
	name, value, _ := bytes.Cut(text, []byte(":"))
	p.name, p.value = strings.ToLower(string(bytes.TrimSpace(name))), append(p.value[:0], value...)
	if p.name != "subject" && !slices.Contains(hidden, p.name) {
		p.name = ""
	}
}

// headerEnds takes what only the whole header tells.
func (p *mbParser) headerEnds() {
	p.field()
	slices.Sort(p.m.flags)
	p.m.flags = slices.Compact(p.m.flags)
	// UW-imap's own notes are the first message, and say what they are: the field
	// alone may be in anybody's mail.
	if p.first && p.notes != "" && (p.daemon || p.internal) {
		p.pseudo = p.base(p.notes)
	}
}

// field takes a field of the server's own.
func (p *mbParser) field() {
	value := strings.TrimSpace(string(p.value))
	switch p.name {
	case "content-length":
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && n >= 0 {
			p.length = n
		}
	case "status":
		p.flag(value, 'R', `\Seen`)
	case "x-status":
		p.flag(value, 'A', `\Answered`)
		p.flag(value, 'F', `\Flagged`)
		p.flag(value, 'T', `\Draft`)
		p.flag(value, 'D', `\Deleted`)
	case "x-keywords":
		p.m.flags = append(p.m.flags, slices.DeleteFunc(strings.Fields(value), func(k string) bool { return !p.index.keywords[k] })...)
	case "x-imapbase":
		if p.first {
			p.base(value)
		}
	case "x-imap":
		p.notes = value
	case "x-uid":
		p.m.uid = parseUID(value)
	case "subject":
		p.internal = strings.Contains(strings.ToUpper(value), "FOLDER INTERNAL DATA")
	}
	p.name = ""
}

// base reads "UIDVALIDITY, last UID, keywords".
func (p *mbParser) base(value string) bool {
	words := strings.Fields(value)
	if len(words) < 2 {
		return false
	}
	v, last := parseUID(words[0]), parseUID(strings.TrimLeft(words[1], "0"))
	if v == 0 {
		return false
	}
	p.index.validity, p.index.last, p.index.keywords = v, last, map[string]bool{}
	for _, k := range words[2:] {
		p.index.keywords[k] = true
	}
	return true
}

func (p *mbParser) flag(value string, letter byte, flag string) {
	if strings.IndexByte(value, letter) >= 0 {
		p.m.flags = append(p.m.flags, flag)
	}
}

// byLength ends the message where Content-Length says, if another begins there or
// the file ends.
func (p *mbParser) byLength() (end, next int64, ok bool, err error) {
	end = p.m.body + p.length
	if p.length < 0 || end < p.m.body || end > p.l.size {
		return 0, p.m.body, false, nil
	}
	if end == p.l.size {
		return end, end, true, nil
	}
	line, next, err := p.l.at(end)
	if err != nil {
		return 0, 0, false, err
	}
	if len(bytes.TrimRight(line, "\r\n")) > 0 {
		_, ok := parseFrom(line)
		return end, end, ok && p.endsLine(end), nil
	}
	if next >= p.l.size {
		return end, next, true, nil
	}
	if line, _, err = p.l.at(next); err != nil {
		return 0, 0, false, err
	}
	_, ok = parseFrom(line)
	return end, next, ok, nil
}

// endsLine tells whether a line ends right before pos.
func (p *mbParser) endsLine(pos int64) bool {
	var b [1]byte
	n, _ := p.l.r.ReadAt(b[:], pos-1) // an error shows as no octet
	return pos == p.m.body || n == 1 && b[0] == '\n'
}

// scan looks for the next "From " line.
func (p *mbParser) scan(pos int64) (int64, error) {
	for pos < p.l.size {
		line, next, err := p.l.at(pos)
		if err != nil {
			return pos, err
		}
		if _, ok := parseFrom(line); ok {
			p.ends(p.beforeFrom(pos))
			return pos, nil
		}
		pos = next
	}
	p.ends(p.beforeEOF(pos))
	return pos, nil
}

// ends notes where the message ends; that may be in front of the empty line of its
// header.
func (p *mbParser) ends(end int64) {
	p.m.end, p.m.body = end, min(end, p.m.body)
}

// beforeFrom gives where a message ends with the next "From " line at pos: the
// line end in front of that is the file's, as an empty line or to end a message
// that has no line end.
func (p *mbParser) beforeFrom(pos int64) int64 {
	switch b := p.tail(pos, 2); {
	case strings.HasSuffix(b, "\r\n"):
		return pos - 2
	case strings.HasSuffix(b, "\n"):
		return pos - 1
	}
	return pos
}

// beforeEOF is beforeFrom for the last message. Without an empty line at the end
// the line end is the message's.
func (p *mbParser) beforeEOF(pos int64) int64 {
	switch b := p.tail(pos, 3); {
	case strings.HasSuffix(b, "\n\n"):
		return pos - 1
	case strings.HasSuffix(b, "\n\r\n"):
		return pos - 2
	}
	return pos
}

// tail gives the last n octets of the message in front of pos. What cannot be
// read now is found when the message is.
func (p *mbParser) tail(pos, n int64) string {
	b := make([]byte, max(min(n, pos-p.m.start), 0))
	got, _ := p.l.r.ReadAt(b, pos-int64(len(b)))
	return string(b[:got])
}

// open gives the message as its server would, but for the line ends.
func (m *mbMessage) open(r io.ReaderAt) (io.Reader, error) {
	n := min(m.body-m.start, mostHeader)
	header := make([]byte, n)
	if _, err := r.ReadAt(header, m.start); err != nil && !errors.Is(err, io.EOF) {
		return nil, readError(err)
	}
	return io.MultiReader(bytes.NewReader(visible(header)), io.NewSectionReader(r, m.start+n, m.end-m.start-n)), nil
}

// visible takes the hidden fields out of a header.
func visible(header []byte) []byte {
	out := make([]byte, 0, len(header))
	skip := false
	for len(header) > 0 {
		line := header
		if i := bytes.IndexByte(header, '\n'); i >= 0 {
			line = header[:i+1]
		}
		header = header[len(line):]
		if line[0] != ' ' && line[0] != '\t' {
			name, _, ok := bytes.Cut(line, []byte(":"))
			skip = ok && slices.Contains(hidden, strings.ToLower(strings.TrimSpace(string(name))))
		}
		if !skip {
			out = append(out, line...)
		}
	}
	return out
}

// store gives the UIDs that the server wrote into the file, where they can be
// true: ascending, and not above the last that was given.
func (x *mbIndex) store() backfill.StoreUIDs {
	if x.validity == 0 {
		return backfill.StoreUIDs{}
	}
	s := backfill.StoreUIDs{Validity: x.validity, Next: x.last + 1, UIDs: map[string]uint32{}, Proven: true}
	prev := uint32(0)
	for _, m := range x.messages {
		if m.uid > prev && m.uid <= x.last {
			s.UIDs[m.name], prev = m.uid, m.uid
		}
	}
	return s
}
