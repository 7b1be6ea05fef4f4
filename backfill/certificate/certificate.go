// Package certificate turns the verification of a mailbox into files that last:
// one as JSON, which a later look can be compared with, and one as a page for
// people, which needs nothing but itself. It neither speaks to a server nor
// decides what is missing; both are package backfill's.
//
// Start reading at [New].
package certificate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"crossfade/audit/seal"
	"crossfade/backfill"
)

// Format is the version of the files' form. A reader refuses what it does not
// know.
const Format = 1

// Certificate says what was compared, by whom, and what came out. Its file is
// JSON with these names.
type Certificate struct {
	Format int       `json:"format"`
	Issued time.Time `json:"issued"`
	// Complete tells that nothing of the old mailbox is missing on the new one.
	Complete bool `json:"complete"`
	// Tool is the program that wrote the file, Relay the one that compared.
	Tool  string `json:"tool"`
	Relay string `json:"relay"`
	// State is the user's when the comparison ended: old, syncing, ready, new ...
	State        string                `json:"state,omitempty"`
	Verification backfill.Verification `json:"verification"`
	// Signature is the relay's, over Verification alone; see audit/seal. Relays before
	// they had a key gave none.
	Signature *seal.Signature `json:"signature,omitempty"`
	// Sum is the SHA-256, in hexadecimal, of the file's JSON in the canonical form
	// of RFC 8785, without this member. It shows an accidental change; whoever
	// changes a file on purpose can make a new sum.
	Sum string `json:"sha256,omitempty"`
}

// Maker is what a certificate says of its making.
type Maker struct {
	Tool, Relay string // versions
	State       string // the user's
	Now         time.Time
	Signature   *seal.Signature // of the relay, over what New is given; nil: none
}

// New makes a certificate of a verification and seals it.
func New(v backfill.Verification, by Maker) (Certificate, error) {
	c := Certificate{Format: Format, Issued: by.Now.UTC().Truncate(time.Second), Complete: v.OK(), Tool: by.Tool, Relay: by.Relay, State: by.State, Verification: v, Signature: by.Signature}
	var err error
	c.Sum, err = sumOf(c)
	return c, err
}

// Sum gives the SHA-256, in hexadecimal, of a JSON object in its canonical form
// (RFC 8785), without the member sha256.
func Sum(data []byte) (string, error) {
	object, err := seal.Object(data)
	if err != nil {
		return "", err
	}
	delete(object, "sha256")
	text, err := seal.Canonical(object)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// sumOf gives the sum over anything that has a member sha256 or none.
func sumOf(v any) (string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encoding a certificate: %w", err)
	}
	return Sum(data)
}

// Encode gives the file's text.
func (c Certificate) Encode() ([]byte, error) { return indent(c) }

func indent(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding a certificate: %w", err)
	}
	return b.Bytes(), nil
}

// maxFile bounds a file that is read, in octets: a certificate of a million
// messages fits.
const maxFile = 256 << 20

// ErrChanged tells that a file is not what was written.
var ErrChanged = errors.New("the certificate was changed since it was written: its sum does not fit")

// Read reads a certificate and checks its sum.
func Read(r io.Reader) (Certificate, error) {
	var c Certificate
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	switch {
	case err != nil:
		return c, fmt.Errorf("reading a certificate: %w", err)
	case len(data) > maxFile:
		return c, errors.New("reading a certificate: it is larger than 256 MiB, which none is")
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("reading a certificate: %w (is it the .json file?)", err)
	}
	if c.Format != Format {
		return c, fmt.Errorf("reading a certificate: its format is %d, known is %d", c.Format, Format)
	}
	sum, err := Sum(data)
	if err != nil {
		return c, fmt.Errorf("reading a certificate: %w", err)
	}
	if sum != c.Sum {
		return c, ErrChanged
	}
	return c, nil
}
