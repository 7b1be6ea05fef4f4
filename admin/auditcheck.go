package admin

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
)

// AuditCheck is what a check of audit logs found.
type AuditCheck struct {
	Lines    int       `json:"lines"`    // of the chain
	Unsigned int       `json:"unsigned"` // of them
	First    AuditHead `json:"first"`
	Last     AuditHead `json:"last"`
	Keys     []string  `json:"keys,omitempty"` // that signed, public
	Notes    []string  `json:"notes,omitempty"`
	// Bad is the first line that is not what was written; nil: there is none.
	Bad *AuditBad `json:"bad,omitempty"`
}

// AuditBad is a line that is not what was written, or is not there.
type AuditBad struct {
	File string `json:"file"`
	Line int    `json:"line"` // from 1
	Text string `json:"text"`
}

// String gives file, line and text.
func (b AuditBad) String() string { return fmt.Sprintf("%s:%d: %s", b.File, b.Line, b.Text) }

// CheckAuditLog reads the files of one log, the oldest first, and follows the
// chain. key is the public key that has to have signed every line; empty:
// whichever did. want is a line that has to be there; the zero value: none. An
// error means that a file cannot be read.
func CheckAuditLog(files []string, key string, want AuditHead) (AuditCheck, error) {
	c := &chainCheck{key: key, want: want, signatures: true}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return c.AuditCheck, fmt.Errorf("checking the audit log: %w", err)
		}
		_, err = c.file(name, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return c.AuditCheck, fmt.Errorf("checking the audit log %s: %w", name, err)
		}
	}
	c.end()
	return c.AuditCheck, nil
}

// chainCheck follows a chain.
type chainCheck struct {
	AuditCheck
	key        string // that has to sign
	want       AuditHead
	found      bool // want was there
	signatures bool // look at them

	name    string
	line    int
	signer  string // of the last open-log line
	region  region
	goodEnd int64 // where the last line of the chain ends in the present file
}

// region are lines, one after the other, that are no part of the chain.
type region struct {
	hash   hash.Hash // of all but the last line end
	octets int64
	lines  int
	first  AuditBad // where it began
	old    bool     // records from before the chain, all of them
}

func (r *region) add(line []byte) {
	if r.lines == 0 {
		r.hash = sha256.New()
	} else {
		r.hash.Write([]byte{'\n'})
		r.octets++
	}
	r.hash.Write(line)
	r.octets += int64(len(line))
	r.lines++
}

// is tells whether a line tells of this region, with its last line end or without.
func (r *region) is(o *outside) bool {
	if o == nil {
		return false
	}
	if r.octets == o.Octets {
		return hex.EncodeToString(r.hash.Sum(nil)) == o.SHA256
	}
	r.hash.Write([]byte{'\n'})
	return r.octets+1 == o.Octets && hex.EncodeToString(r.hash.Sum(nil)) == o.SHA256
}

// file reads a file. torn is what stands behind its last line end.
func (c *chainCheck) file(name string, r io.Reader) (torn []byte, err error) {
	c.name, c.line, c.goodEnd = name, 0, 0
	in := bufio.NewReaderSize(r, auditBlock)
	var at int64
	for {
		line, err := readLine(in)
		at += int64(len(line))
		switch {
		case err == io.EOF:
			if len(line) > 0 {
				c.note("the last line of %s is cut short (a crash, or it is being written): %d octets", name, len(line))
			}
			return line, nil
		case err != nil:
			return nil, err
		}
		c.line++
		if c.one(line[:len(line)-1]) {
			c.goodEnd = at
		}
	}
}

// readLine reads a line with its end.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
		if len(line) > auditMaxLine {
			return line, fmt.Errorf("a line is longer than %d octets: this is no audit log", auditMaxLine)
		}
	}
}

func (c *chainCheck) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

func (c *chainCheck) bad(format string, args ...any) {
	if c.Bad == nil {
		c.Bad = &AuditBad{File: c.name, Line: c.line, Text: fmt.Sprintf(format, args...)}
	}
}

// one looks at a line, and tells whether it is one of the chain.
func (c *chainCheck) one(line []byte) bool {
	r, ok := decodeLine(line)
	if !ok {
		if c.region.lines == 0 {
			c.region = region{first: AuditBad{File: c.name, Line: c.line}, old: c.Lines == 0}
		}
		c.region.old = c.region.old && r.Action != ""
		c.region.add(line)
		return false
	}
	open := openDetailOf(r)
	c.explain(open)
	switch {
	case c.Lines == 0 && r.Seq > 1:
		c.note("%s begins with line %d of the log: what came before is in another file", c.name, r.Seq)
	case !r.follows(c.Last):
		c.bad("%s", c.why(r))
	}
	if open.Expected != nil {
		c.note("%s:%d: when the log was opened on %s, line %d had been written and was not in the file", c.name, c.line, r.Time.UTC().Format("2006-01-02 15:04:05"), open.Expected.Seq)
	}
	c.signature(line, r, open)
	c.Last = AuditHead{Seq: r.Seq, Hash: hashOf(line)}
	if c.Lines++; c.Lines == 1 {
		c.First = c.Last
	}
	if c.Last.Seq == c.want.Seq {
		c.found = true
		if c.want.Hash != c.Last.Hash {
			c.bad("line %d has the hash %s, and %s was noted: it or a line before it was changed", r.Seq, c.Last.Hash, c.want.Hash)
		}
	}
	return true
}

// explain looks whether a line tells of what stands before it.
func (c *chainCheck) explain(open openDetail) {
	if c.region.lines == 0 {
		return
	}
	reg := c.region
	c.region = region{}
	switch {
	case !reg.is(open.Outside):
		if c.Bad == nil {
			reg.first.Text = "it is no line of the chain, and nothing that was written later tells of it as it is"
			c.Bad = &reg.first
		}
	case reg.old:
		c.note("%s: %d lines from before there was a chain: they are as they were when it began", reg.first.File, reg.lines)
	default:
		c.note("%s:%d: a line was cut short (%d octets) and was told of when the log was opened again", reg.first.File, reg.first.Line, reg.octets)
	}
}

// why says what is wrong with a line that does not follow the last.
func (c *chainCheck) why(r Record) string {
	want := c.Last.Seq + 1
	switch {
	case r.Seq > want:
		return fmt.Sprintf("it is line %d of the log, and line %d should be here: %d lines are missing", r.Seq, want, r.Seq-want)
	case r.Seq < want:
		return fmt.Sprintf("it is line %d of the log, and line %d should be here: lines were put in, or the order was changed", r.Seq, want)
	}
	return fmt.Sprintf("line %d of the log, the one before this, is not what was written: it was changed", c.Last.Seq)
}

// signature looks at who signed a line.
func (c *chainCheck) signature(line []byte, r Record, open openDetail) {
	if open.Key != "" {
		c.signer = open.Key
	}
	if r.Sig == "" {
		c.Unsigned++
		if c.key != "" || c.signer != "" {
			c.bad("line %d of the log is not signed", r.Seq)
		}
		return
	}
	if !c.signatures {
		return
	}
	key := c.signer
	if c.key != "" {
		key = c.key
	}
	switch {
	case key == "":
		c.note("%s begins behind the line that names its key: --key is needed to check signatures", c.name)
		c.signatures = false
	case !signedBy(line, r.Sig, key):
		c.bad("line %d of the log was not signed with %s: it was changed, or somebody else wrote it", r.Seq, key)
	case !slices.Contains(c.Keys, key):
		c.Keys = append(c.Keys, key)
	}
}

// end looks at what is left when all was read.
func (c *chainCheck) end() {
	c.explain(openDetail{})
	if c.Lines == 0 {
		c.bad("there is no line of a chain in it")
	}
	if c.want.Seq > 0 && !c.found {
		c.bad("line %d was noted and is not there: the log ends with line %d", c.want.Seq, c.Last.Seq)
	}
}
