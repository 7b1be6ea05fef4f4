package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"crossfade/audit/seal"
	"crossfade/journal"
)

// Format is the version of the documents' form. A reader refuses what it does not
// know.
const Format = 1

// kindAudit is Document.Kind.
const kindAudit = "crossfade audit"

// Document is the result of an audit, signed: of all users, or of one.
type Document struct {
	Format   int       `json:"format"`
	Kind     string    `json:"kind"`
	Issued   time.Time `json:"issued"`
	Hostname string    `json:"hostname"`
	Relay    string    `json:"relay"` // version
	// Run names the audit: it and the documents of its users have the same one.
	Run string `json:"run,omitempty"`
	// Clean tells that nothing is missing, nothing is twice, and the journal is whole.
	Clean   bool           `json:"clean"`
	Request Request        `json:"request"`
	Total   Account        `json:"total"`
	Journal journal.Report `json:"journal"`
	Notes   []string       `json:"notes,omitempty"` // what this audit does not say
	Users   []Account      `json:"users"`

	Signature *seal.Signature `json:"signature,omitempty"`
}

// document makes the signed result.
func (r *run) document() (*Document, error) {
	d := &Document{
		Format: Format, Kind: kindAudit, Issued: time.Now().UTC().Truncate(time.Second), Hostname: r.a.Hostname, Relay: r.a.Version,
		Run: r.a.Name, Request: r.req, Journal: r.report, Notes: r.notes(), Users: r.users, Clean: r.report.Whole(),
	}
	if d.Users == nil {
		d.Users = []Account{}
	}
	d.sum()
	return d, d.sign(r.a.Key)
}

func (d *Document) sum() {
	d.Total = Account{}
	for i := range d.Users {
		d.Total.add(&d.Users[i])
		d.Clean = d.Clean && d.Users[i].Clean()
		if l := d.Users[i].Look; l != nil {
			if d.Total.Look == nil {
				d.Total.Look = &Look{}
			}
			d.Total.Look.add(l)
		}
	}
}

func (d *Document) sign(k seal.Key) (err error) {
	d.Signature = nil
	d.Signature, err = seal.Sign(d, k)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// notes says what the audit cannot say.
func (r *run) notes() (notes []string) {
	if r.a.Sweeps == nil {
		notes = append(notes, "found and swept are 0: this relay does not count yet what sweeps find")
	}
	switch {
	case !r.req.Mailboxes:
		notes = append(notes, "nobody looked into the mailboxes: delivered is what the backends answered")
	case r.a.Mailboxes == nil:
		notes = append(notes, "the mailboxes are not reached over IMAP: delivered is what the backends answered")
	}
	if r.report.First > 1 {
		notes = append(notes, fmt.Sprintf("the journal begins with batch %d, of %s: what came before was removed (audit.keep), and is not audited", r.report.First, r.report.From.Format(time.RFC3339)))
	}
	return notes
}

// ForUser gives a document about one of the users, signed as well; false when
// there is none.
func (d *Document) ForUser(user string, k seal.Key) (*Document, bool, error) {
	i, ok := slices.BinarySearchFunc(d.Users, user, func(a Account, user string) int { return strings.Compare(a.User, user) })
	if !ok {
		return nil, false, nil
	}
	out, err := d.At(i, k)
	return out, true, err
}

// Account gives what the document says of a user; false when that is nothing.
func (d *Document) Account(user string) (Account, bool) {
	i, ok := slices.BinarySearchFunc(d.Users, user, func(a Account, user string) int { return strings.Compare(a.User, user) })
	if !ok {
		return Account{}, false
	}
	return d.Users[i], true
}

// At gives a document about the i-th of the users, signed as well.
func (d *Document) At(i int, k seal.Key) (*Document, error) {
	out := *d
	out.Request.Users = []string{d.Users[i].User}
	out.Users = d.Users[i : i+1 : i+1]
	out.Clean = d.Journal.Whole()
	out.sum()
	return &out, out.sign(k)
}

// Encode gives the text of the file.
func (d *Document) Encode() ([]byte, error) {
	var b bytes.Buffer
	err := d.Write(&b)
	return b.Bytes(), err
}

// Write writes the text of the file, one user at a time: there may be very many.
func (d *Document) Write(w io.Writer) error {
	head := *d
	head.Users = []Account{}
	data, err := json.MarshalIndent(&head, "", " ")
	if err != nil {
		return fmt.Errorf("encode an audit: %w", err)
	}
	// No text and nothing deeper begins a line like that.
	before, behind, ok := bytes.Cut(data, []byte("\n \"users\": []"))
	if !ok {
		return errors.New("encode an audit: it has no users")
	}
	out := bufio.NewWriterSize(w, 64<<10)
	out.Write(before) // the first error is that of Flush
	out.WriteString("\n \"users\": [")
	for i := range d.Users {
		text, err := json.MarshalIndent(&d.Users[i], "  ", " ")
		if err != nil {
			return fmt.Errorf("encode an audit: %s: %w", d.Users[i].User, err)
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteString("\n  ")
		out.Write(text)
	}
	if len(d.Users) > 0 {
		out.WriteString("\n ")
	}
	out.WriteByte(']')
	out.Write(behind)
	out.WriteByte('\n')
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write an audit: %w", err)
	}
	return nil
}

// Read reads a document, and says whether it is what was signed. key is the public
// key that has to have signed it; empty: any.
func Read(data []byte, key string) (*Document, seal.Result, error) {
	result, err := seal.Check(data, key)
	if err != nil {
		return nil, result, err
	}
	var d Document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, result, fmt.Errorf("it is no audit: %w", err)
	}
	if d.Kind != kindAudit {
		return nil, result, fmt.Errorf("it is no audit: its kind is %q", d.Kind)
	}
	if d.Format != Format {
		return nil, result, fmt.Errorf("its format is %d, known is %d", d.Format, Format)
	}
	return &d, result, nil
}

// CheckFile says whether a signed file, of an audit or a certificate of a mailbox,
// is what was signed; see [seal.Check].
func CheckFile(data []byte, key string) (seal.Result, error) { return seal.Check(data, key) }
