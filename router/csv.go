package router

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"crossfade/mail"
)

// CSVOptions bounds what [ParseCSV] reads. Zero fields have the defaults named.
type CSVOptions struct {
	MaxBytes  int64 // of the whole file; 64 MiB
	MaxLines  int   // lines with a user; 1,000,000
	MaxErrors int   // reading stops after so many bad lines; 1,000
	// Domains are ours in normal form; when given, other addresses are errors.
	Domains []string
}

// LineError is what is wrong with one line of a CSV file.
type LineError struct {
	Line   int    `json:"line"`             // from 1; the header is a line
	Column string `json:"column,omitempty"` // empty: the line as a whole
	Text   string `json:"text"`
}

func (e LineError) Error() string {
	if e.Column == "" {
		return fmt.Sprintf("line %d: %s", e.Line, e.Text)
	}
	return fmt.Sprintf("line %d, %s: %s", e.Line, e.Column, e.Text)
}

// csvColumns are the columns there are, each with what reads it.
var csvColumns = []struct {
	name string
	read func(u *User, value string) error
}{
	{"address", readAddress},
	{"state", readState},
	{"wave", func(u *User, v string) error { return readWord(&u.Wave, v) }},
	{"not_before", readNotBefore},
	{"deliver", readDeliver},
	{"kind", readKind},
	{"target", readTargets},
	{"old_login", func(u *User, v string) error { return readWord(&u.OldLogin, v) }},
	{"new_login", func(u *User, v string) error { return readWord(&u.NewLogin, v) }},
}

// ParseCSV reads users from CSV (RFC 4180): a header line with `address` and
// any of the other columns in any order, then a line per user. A byte order
// mark, lines that end in CR LF, quotes, and semicolons in place of commas, as
// spreadsheets write them in some countries, are understood.
//
// The users of good lines are returned also when there are bad lines; a caller
// who wants all or nothing looks at the errors first. A field that is empty is
// the zero value: "not said" to [Table.ImportUsers]. A state counts only for
// users that are new to the table and can be old (also when nothing is said), new
// or done; it places them without a copy.
func ParseCSV(r io.Reader, opts CSVOptions) ([]User, []LineError) {
	p := csvParser{opts: opts.withDefaults(), seen: make(map[string]int)}
	limited := &limitReader{r: r, left: p.opts.MaxBytes}
	br := bufio.NewReader(limited)
	if err := p.open(br); err != nil {
		return nil, append(p.wrong, *err)
	}
	for p.next() {
	}
	return p.users, p.wrong
}

func (o CSVOptions) withDefaults() CSVOptions {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	if o.MaxLines <= 0 {
		o.MaxLines = 1_000_000
	}
	if o.MaxErrors <= 0 {
		o.MaxErrors = 1000
	}
	return o
}

type csvParser struct {
	opts    CSVOptions
	csv     *csv.Reader
	columns []int // field of the file -> index in csvColumns
	seen    map[string]int
	line    int // last one that was read
	users   []User
	wrong   []LineError
}

// open reads the header line.
func (p *csvParser) open(br *bufio.Reader) *LineError {
	start, _ := br.Peek(4096)
	switch {
	case bytes.HasPrefix(start, []byte{0xFF, 0xFE}), bytes.HasPrefix(start, []byte{0xFE, 0xFF}):
		return &LineError{Line: 1, Text: "the file is in UTF-16: save it as \"CSV UTF-8\""}
	case bytes.HasPrefix(start, []byte("\xEF\xBB\xBF")):
		start = start[3:]
		_, _ = br.Discard(3)
	}
	p.csv = csv.NewReader(br)
	p.csv.FieldsPerRecord = -1
	p.csv.ReuseRecord = true
	p.csv.TrimLeadingSpace = true
	first, _, _ := bytes.Cut(start, []byte("\n"))
	if bytes.IndexByte(first, ';') >= 0 && bytes.IndexByte(first, ',') < 0 {
		p.csv.Comma = ';'
	}
	header, err := p.csv.Read()
	switch {
	case errors.Is(err, io.EOF):
		return &LineError{Line: 1, Text: "the file is empty: the first line has to name the columns, address first among them"}
	case err != nil:
		return p.readError(err)
	}
	return p.header(header)
}

func (p *csvParser) header(fields []string) *LineError {
	line, _ := p.csv.FieldPos(0)
	for _, field := range fields {
		name := strings.ToLower(strings.TrimSpace(field))
		i := slices.IndexFunc(csvColumns, func(c struct {
			name string
			read func(u *User, value string) error
		}) bool {
			return c.name == name
		})
		switch {
		case i < 0 && strings.Contains(name, "@"):
			return &LineError{Line: line, Text: "the first line has to name the columns, such as address,state,wave"}
		case i < 0:
			return &LineError{Line: line, Column: clip(name), Text: unknownColumn(name)}
		case slices.Contains(p.columns, i):
			return &LineError{Line: line, Column: name, Text: "the column is there twice"}
		}
		p.columns = append(p.columns, i)
	}
	if !slices.Contains(p.columns, 0) {
		return &LineError{Line: line, Text: "there is no column address"}
	}
	return nil
}

// next reads one line; false ends the reading.
func (p *csvParser) next() bool {
	record, err := p.csv.Read()
	if errors.Is(err, io.EOF) {
		return false
	}
	if err != nil {
		p.wrong = append(p.wrong, *p.readError(err))
		var syntax *csv.ParseError
		return errors.As(err, &syntax) && p.room(syntax.Line)
	}
	line, _ := p.csv.FieldPos(0)
	p.line = line
	if blank(record) {
		return true
	}
	if len(p.users) >= p.opts.MaxLines {
		p.fail(line, "", fmt.Sprintf("more than %d users in one file: split it", p.opts.MaxLines))
		return false
	}
	p.record(line, record)
	return p.room(line)
}

// room stops a file that is wrong all over.
func (p *csvParser) room(line int) bool {
	if len(p.wrong) < p.opts.MaxErrors {
		return true
	}
	p.fail(line, "", fmt.Sprintf("stopped reading after %d errors", p.opts.MaxErrors))
	return false
}

func (p *csvParser) fail(line int, column, text string) {
	p.wrong = append(p.wrong, LineError{Line: line, Column: column, Text: text})
}

func (p *csvParser) readError(err error) *LineError {
	var syntax *csv.ParseError
	if errors.As(err, &syntax) {
		return &LineError{Line: syntax.Line, Text: "not CSV: " + syntax.Err.Error()}
	}
	if errors.Is(err, errTooLarge) {
		return &LineError{Line: p.line + 1, Text: fmt.Sprintf("the file is larger than %d bytes: split it", p.opts.MaxBytes)}
	}
	return &LineError{Line: p.line + 1, Text: "cannot read on: " + err.Error()}
}

func (p *csvParser) record(line int, record []string) {
	if len(record) > len(p.columns) {
		p.fail(line, "", fmt.Sprintf("%d fields, but the header names %d columns", len(record), len(p.columns)))
		return
	}
	var u User
	bad := len(p.wrong)
	for i, field := range record {
		column := csvColumns[p.columns[i]]
		value := strings.TrimSpace(field)
		if value == "" {
			continue
		}
		if err := column.read(&u, value); err != nil {
			p.fail(line, column.name, err.Error())
		}
	}
	if len(p.wrong) > bad {
		return
	}
	if e := p.finish(&u); e != nil {
		p.fail(line, e.Column, e.Text)
		return
	}
	if first, twice := p.seen[u.Address]; twice {
		p.fail(line, "address", fmt.Sprintf("%s was already on line %d", u.Address, first))
		return
	}
	p.seen[u.Address] = line
	p.users = append(p.users, u)
}

// finish looks at what the columns say together.
func (p *csvParser) finish(u *User) *LineError {
	wrong := func(column, format string, args ...any) *LineError {
		return &LineError{Column: column, Text: fmt.Sprintf(format, args...)}
	}
	if u.Address == "" {
		return wrong("address", "it is empty")
	}
	domain := u.Address[strings.LastIndexByte(u.Address, '@')+1:]
	if len(p.opts.Domains) > 0 && !slices.Contains(p.opts.Domains, domain) {
		return wrong("address", "%s is none of our domains (%s)", domain, strings.Join(p.opts.Domains, ", "))
	}
	if u.Kind == "" && len(u.Targets) > 0 {
		u.Kind = kindOf(len(u.Targets))
	}
	// A line without a kind leaves that of an existing user as it is.
	mailbox := u.Kind == KindMailbox || u.Kind == ""
	switch {
	case mailbox && u.Address[0] == '@':
		return wrong("kind", "%s is a domain: use kind alias with a target such as @example.org", u.Address)
	case mailbox && len(u.Targets) > 0:
		return wrong("target", "a mailbox has no target: use kind alias or group")
	case mailbox:
		return nil
	case len(u.Targets) == 0:
		return wrong("target", "kind %s needs a target", u.Kind)
	case u.Kind == KindAlias && len(u.Targets) > 1:
		return wrong("target", "an alias has one target, not %d: use kind group", len(u.Targets))
	case u.Address[0] == '@' && (u.Kind != KindAlias || u.Targets[0][0] != '@'):
		return wrong("target", "a domain alias has the kind alias and a target such as @example.org")
	case u.Address[0] != '@' && slices.ContainsFunc(u.Targets, func(t string) bool { return t[0] == '@' }):
		return wrong("target", "a whole domain can be the target of a domain alias only")
	case u.State != "" || u.Deliver != "" || u.OldLogin != "" || u.NewLogin != "":
		return wrong("kind", "state, deliver, old_login and new_login belong to mailboxes, not to kind %s", u.Kind)
	}
	return nil
}

func kindOf(targets int) Kind {
	if targets == 1 {
		return KindAlias
	}
	return KindGroup
}

func readAddress(u *User, value string) (err error) {
	u.Address, err = normalKey(value)
	return err
}

// normalKey gives the key of an address or of "@domain".
func normalKey(value string) (string, error) {
	if name, ok := strings.CutPrefix(value, "@"); ok {
		d, err := mail.NormalDomain(name)
		return "@" + d, err
	}
	a, err := mail.ParseAddress(value)
	return a.Key(), err
}

func readState(u *User, value string) error {
	s := State(strings.ToLower(value))
	if s != StateOld && s != StateNew && s != StateDone {
		return fmt.Errorf("%q: a file can place a user who is new to the table at old, new or done; other states are reached by cutover", clip(value))
	}
	u.State = s
	return nil
}

func readNotBefore(u *User, value string) error {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, value); err == nil && t.Year() >= 1 {
			u.NotBefore = t.UTC()
			return nil
		}
	}
	return fmt.Errorf("%q: write it as 2026-03-31 or 2026-03-31T20:00:00+02:00 (UTC where no offset is given)", clip(value))
}

func readDeliver(u *User, value string) error {
	switch d := Deliver(strings.ToLower(value)); d {
	case DeliverBoth:
		u.Deliver = d
	case "one":
	default:
		return fmt.Errorf("%q: use one (or nothing) or both", clip(value))
	}
	return nil
}

func readKind(u *User, value string) error {
	u.Kind = Kind(strings.ToLower(value))
	if u.Kind != KindMailbox && u.Kind != KindAlias && u.Kind != KindGroup {
		return fmt.Errorf("%q: use mailbox, alias or group", clip(value))
	}
	return nil
}

func readTargets(u *User, value string) error {
	for _, word := range strings.FieldsFunc(value, func(r rune) bool { return r == ';' || r == ' ' || r == '\t' || r == '\n' || r == '\r' }) {
		key, err := normalKey(word)
		if err != nil {
			return err
		}
		if !slices.Contains(u.Targets, key) {
			u.Targets = append(u.Targets, key)
		}
	}
	return nil
}

func readWord(to *string, value string) error {
	if len(value) > 256 || !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7F }) {
		return fmt.Errorf("%q: use at most 256 bytes of UTF-8 without control characters", clip(value))
	}
	*to = value
	return nil
}

func unknownColumn(name string) string {
	best, distance := "", 4
	names := make([]string, 0, len(csvColumns))
	for _, c := range csvColumns {
		names = append(names, c.name)
		if d := editDistance(clip(name), c.name); d < distance {
			best, distance = c.name, d
		}
	}
	text := "there is no such column; there are " + strings.Join(names, ", ")
	if best != "" {
		text = "there is no such column: did you mean " + best + "?"
	}
	return text
}

// editDistance is the number of bytes to add, remove or change.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

func blank(record []string) bool {
	return !slices.ContainsFunc(record, func(s string) bool { return strings.TrimSpace(s) != "" })
}

// clip shortens what an error quotes.
func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}

var errTooLarge = errors.New("the file is too large")

// limitReader fails, where io.LimitReader would end, behind left bytes.
type limitReader struct {
	r    io.Reader
	left int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	if l.left < 0 {
		return n - 1, errTooLarge
	}
	return n, err
}
