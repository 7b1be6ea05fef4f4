package dkim

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
)

// DefaultMaxHeader is how much of a header is looked at, in octets. Real ones
// have some tens of thousands.
const DefaultMaxHeader = 256 << 10

var (
	// ErrHeaderSize is a header that is larger than what is looked at.
	ErrHeaderSize = errors.New("the header is too large to be looked at")
	// ErrHeaderBusy is a header for which a [Budget] has no room.
	ErrHeaderBusy = errors.New("too many messages are looked at at once")
	// ErrHeaderForm is a line in the header that is no field. What follows is read
	// as header by some and as body by others, so that nothing can be said of it.
	ErrHeaderForm = errors.New("a line of the header is not a header field")
)

// Budget bounds what all headers that are being collected hold together. The
// zero value has no room at all.
type Budget struct {
	max  int64
	used atomic.Int64
}

// NewBudget makes a budget of so many octets.
func NewBudget(octets int64) *Budget { return &Budget{max: octets} }

// Used is what is held now, in octets.
func (b *Budget) Used() int64 { return b.used.Load() }

func (b *Budget) take(n int64) bool {
	if b == nil || b.used.Add(n) <= b.max {
		return true
	}
	b.used.Add(-n)
	return false
}

// Header collects the header of a message that streams by. The zero value is
// ready for use. One with a Budget has to be released.
type Header struct {
	// Max bounds the octets that are kept; zero is [DefaultMaxHeader].
	Max int
	// Budget bounds the octets of many headers; nil does not.
	Budget *Budget

	held   int64 // of the budget
	buf    []byte
	pooled *[firstHeld]byte // what buf began as
	line   int              // where the present line begins in buf
	over   bool
	err    error
}

// Write takes the next octets and gives back those that belong to the body.
func (h *Header) Write(p []byte) (body []byte) {
	for !h.over && len(p) > 0 {
		n := len(p)
		i := bytes.IndexByte(p, '\n')
		if i >= 0 {
			n = i + 1
		}
		if len(h.buf)+n > h.max() {
			h.stop(ErrHeaderSize)
			return nil
		}
		if !h.grow(n) {
			h.stop(ErrHeaderBusy)
			return nil
		}
		h.buf = append(h.buf, p[:n]...)
		p = p[n:]
		if i >= 0 {
			h.endLine()
		}
	}
	if h.err != nil {
		return nil
	}
	return p
}

// firstHeld is what is asked of the budget at first: most headers need no more.
const firstHeld = 8 << 10

// grow makes room for n octets more.
func (h *Header) grow(n int) bool {
	want := len(h.buf) + n
	if want <= cap(h.buf) {
		return true
	}
	want = max(want, min(2*cap(h.buf), h.max()), firstHeld)
	if !h.Budget.take(int64(want) - h.held) {
		return false
	}
	h.held = int64(want)
	if h.pooled == nil && want == firstHeld {
		h.pooled = headers.Get().(*[firstHeld]byte)
		h.buf = h.pooled[:0]
		return true
	}
	h.buf = append(make([]byte, 0, want), h.buf...)
	h.unpool() // it is not counted any more
	return true
}

// headers have room for a header each, for one message after the other.
var headers = sync.Pool{New: func() any { return new([firstHeld]byte) }}

// Release gives back what was asked of the budget, and the memory, when nothing of the header, nor of its Fields, is
// used any more. It may be called more than once.
func (h *Header) Release() {
	h.unpool()
	if h.Budget != nil {
		h.Budget.used.Add(-h.held)
	}
	h.held, h.buf, h.over = 0, nil, true
}

// unpool gives back the memory that buf began in, of which nothing is used any more.
func (h *Header) unpool() {
	if h.pooled != nil {
		headers.Put(h.pooled)
		h.pooled = nil
	}
}

// Err tells why not all of the header was taken; nil: it was.
func (h *Header) Err() error { return h.err }

// Over tells whether the header has ended.
func (h *Header) Over() bool { return h.over }

// Any tells whether a field that was taken has a name that begins so; prefix is in lower case.
func (h *Header) Any(prefix string) bool {
	for rest := h.buf; len(rest) >= len(prefix); {
		if beginsWith(rest, prefix) {
			return true
		}
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		rest = rest[i+1:]
	}
	return false
}

func beginsWith(line []byte, prefix string) bool {
	for i := range len(prefix) {
		if c := line[i]; c != prefix[i] && (c < 'A' || c > 'Z' || c+'a'-'A' != prefix[i]) {
			return false
		}
	}
	return true
}

// Close ends a header that the end of the message ends.
func (h *Header) Close() {
	if !h.over && h.line < len(h.buf) {
		h.endLine()
	}
	h.over = true
}

func (h *Header) max() int {
	if h.Max > 0 {
		return h.Max
	}
	return DefaultMaxHeader
}

// stop ends the header before a line that cannot be taken.
func (h *Header) stop(err error) { h.over, h.err, h.buf = true, err, h.buf[:h.line] }

// endLine looks at a line that is there whole.
func (h *Header) endLine() {
	line := h.buf[h.line:]
	switch {
	case len(line) == 1 && line[0] == '\n' || len(line) == 2 && line[0] == '\r' && line[1] == '\n':
		h.buf, h.over = h.buf[:h.line], true
		return
	case line[0] == ' ' || line[0] == '\t':
		if h.line == 0 {
			h.stop(ErrHeaderForm)
			return
		}
	default:
		if colon := bytes.IndexByte(line, ':'); colon <= 0 || !fieldName(line[:colon]) {
			h.stop(ErrHeaderForm)
			return
		}
	}
	h.line = len(h.buf)
}

// fieldName tells whether name is one of RFC 5322, 3.6.8, with the blanks before
// the colon of RFC 5322, 4.5.
func fieldName(name []byte) bool {
	name = bytes.TrimRight(name, " \t")
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(name) > 0
}

// Fields gives the fields of a header that has ended, in their order, and lets go
// of them. With an error ([ErrHeaderSize], [ErrHeaderForm], [ErrHeaderBusy]) they are those before
// what could not be taken.
func (h *Header) Fields() (*Fields, error) {
	f := &Fields{}
	for rest := h.buf; len(rest) > 0; {
		end := 0
		for {
			i := bytes.IndexByte(rest[end:], '\n')
			if i < 0 {
				end = len(rest)
				break
			}
			if end += i + 1; end == len(rest) || rest[end] != ' ' && rest[end] != '\t' {
				break
			}
		}
		f.add(rest[:end])
		rest = rest[end:]
	}
	h.buf = nil
	return f, h.err
}

// FieldsOf makes Fields of header fields that were taken apart already, each whole
// and with its CRLF. They are not copied. What is no field is left out.
func FieldsOf(raw [][]byte) *Fields {
	f := &Fields{list: make([]Field, 0, len(raw))}
	for _, one := range raw {
		if bytes.IndexByte(one, ':') > 0 {
			f.add(one)
		}
	}
	return f
}

// FieldOf makes a Field of one that was taken apart already; ok is false for what is no field.
func FieldOf(raw []byte) (f *Field, ok bool) {
	if bytes.IndexByte(raw, ':') <= 0 {
		return nil, false
	}
	one := newField(raw)
	return &one, true
}

// Fields are the fields of one header.
type Fields struct {
	list   []Field
	byName map[string][]int // places in list; nil while there are few
}

// few is how many of a kind are looked through instead of being put into a map.
const few = 64

// Field is one header field.
type Field struct {
	Name    string // in lower case
	raw     []byte // with its line ends
	colon   int
	relaxed []byte // when it was asked for
}

func newField(raw []byte) Field {
	colon := bytes.IndexByte(raw, ':')
	return Field{Name: LowerName(bytes.TrimRight(raw[:colon], " \t")), raw: raw, colon: colon}
}

func (f *Fields) add(raw []byte) {
	f.list = append(f.list, newField(raw))
	switch n := len(f.list); {
	case n == few+1:
		f.byName = map[string][]int{}
		for i := range f.list {
			f.file(i)
		}
	case n > few:
		f.file(n - 1)
	}
}

func (f *Fields) file(i int) {
	name := f.list[i].Name
	f.byName[name] = append(f.byName[name], i)
}

// Named gives the fields of a name in lower case, the topmost first.
func (f *Fields) Named(name string) (out []*Field) {
	if f.byName != nil {
		for _, i := range f.byName[name] {
			out = append(out, &f.list[i])
		}
		return out
	}
	for i := range f.list {
		if f.list[i].Name == name {
			out = append(out, &f.list[i])
		}
	}
	return out
}

// Count is the number of fields of a name in lower case.
func (f *Fields) Count(name string) (n int) {
	if f.byName != nil {
		return len(f.byName[name])
	}
	for i := range f.list {
		if f.list[i].Name == name {
			n++
		}
	}
	return n
}

// lowest gives the field of a name below which n others of that name are; nil when there are not so many.
func (f *Fields) lowest(name string, n int) *Field {
	if f.byName != nil {
		places := f.byName[name]
		if n >= len(places) {
			return nil
		}
		return &f.list[places[len(places)-1-n]]
	}
	for i := len(f.list) - 1; i >= 0; i-- {
		if f.list[i].Name != name {
			continue
		}
		if n--; n < 0 {
			return &f.list[i]
		}
	}
	return nil
}

// LowerName is the name of a field in lower case. For names that nearly every message has nothing is allocated.
func LowerName(name []byte) string {
	var buf [40]byte
	if len(name) > len(buf) {
		return strings.ToLower(string(name))
	}
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	if s, ok := usualNames[string(buf[:len(name)])]; ok {
		return s
	}
	return string(buf[:len(name)])
}

// usualNames are the names of fields that nearly every message has.
var usualNames = func() map[string]string {
	m := map[string]string{}
	for name := range strings.FieldsSeq(`return-path delivered-to received authentication-results received-spf dkim-signature domainkey-signature
		arc-seal arc-message-signature arc-authentication-results x-received from sender reply-to to cc bcc subject date message-id
		in-reply-to references mime-version content-type content-transfer-encoding content-language content-disposition
		list-id list-unsubscribe list-unsubscribe-post list-post list-help precedence user-agent x-mailer feedback-id`) {
		m[name] = name
	}
	return m
}()

// Text is what stands behind the colon, folds and all.
func (f *Field) Text() string { return string(f.raw[f.colon+1:]) }

// WriteSigned writes the canonical form of the fields that a signature names, in
// the order of names, which are in lower case: of a name that comes more often
// the lowest field first, and nothing for a field that is not there (RFC 6376,
// 5.4.2).
func (f *Fields) WriteSigned(w io.Writer, c Canon, names []string) {
	var used map[string]int
	if len(names) > few {
		used = make(map[string]int, len(names))
	}
	for i, name := range names {
		n := used[name] // how often it was named before
		if used != nil {
			used[name] = n + 1
		} else {
			n = count(names[:i], name)
		}
		if field := f.lowest(name, n); field != nil {
			_, _ = w.Write(field.canonical(c))
		}
	}
}

// count tells how often a name is among names.
func count(names []string, name string) (n int) {
	for _, one := range names {
		if one == name {
			n++
		}
	}
	return n
}

// Relaxed is the canonical form with CRLF (RFC 6376, 3.4.2).
func (f *Field) Relaxed() []byte { return f.canonical(Relaxed) }

func (f *Field) canonical(c Canon) []byte {
	if c == Simple {
		return f.raw
	}
	if f.relaxed == nil {
		f.relaxed = AppendRelaxed(nil, f.Name, f.raw[f.colon+1:])
	}
	return f.relaxed
}

// WriteUnsigned writes the canonical form of a signature's own field: without the
// value of its b= tag, and without the last CRLF (RFC 6376, 3.7).
func (f *Field) WriteUnsigned(w io.Writer, c Canon, tags TagList) {
	text := tags.Without(f.Text(), "b")
	var out []byte
	if c == Simple {
		out = append(append(out, f.raw[:f.colon+1]...), text...)
	} else {
		out = AppendRelaxed(out, f.Name, []byte(text))
	}
	_, _ = w.Write(bytes.TrimSuffix(out, []byte("\r\n")))
}

// AppendRelaxed adds a field in its relaxed canonical form with CRLF (RFC 6376,
// 3.4.2). name is in lower case; text is what stands behind the colon.
func AppendRelaxed(b []byte, name string, text []byte) []byte {
	b = append(append(b, name...), ':')
	space, any := false, false
	for _, c := range text {
		switch c {
		case ' ', '\t':
			space = true
			continue
		case '\r', '\n':
			continue
		}
		if space && any {
			b = append(b, ' ')
		}
		b = append(b, c)
		space, any = false, true
	}
	return append(b, "\r\n"...)
}
