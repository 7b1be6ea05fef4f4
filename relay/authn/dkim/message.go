package dkim

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

// ErrBodyChanged is a signature that does not fit a body.
var ErrBodyChanged = errors.New("the body has been changed")

// ParseSignature reads the text of a DKIM-Signature field (RFC 6376, 3.5): what
// [ParseMessageSignature] reads, and v= and i=.
func ParseSignature(text string) (*Signature, error) {
	tags, err := ParseTags(text)
	if err != nil {
		return nil, err
	}
	return ReadSignature(tags)
}

// ReadSignature is [ParseSignature] of tags that were read already.
func ReadSignature(tags TagList) (*Signature, error) {
	s, err := readMessageSignature(tags)
	if err != nil {
		return nil, err
	}
	if v, ok := s.Tags.Get("v"); !ok || v != "1" {
		return nil, errors.New("tag v= is missing or not 1")
	}
	domain, err := s.agent()
	if err != nil {
		return nil, err
	}
	if domain != s.Domain && !strings.HasSuffix(domain, "."+s.Domain) {
		return nil, errors.New("tag i= is of another domain than d=")
	}
	return s, nil
}

// agent is the domain of i=; that of d= where there is none.
func (s *Signature) agent() (string, error) {
	i, ok := s.Tags.Get("i")
	if !ok {
		return s.Domain, nil
	}
	at := strings.LastIndexByte(i, '@')
	if at < 0 {
		return "", errors.New("tag i= has no domain")
	}
	domain, err := DomainName(stripFWS(i[at+1:]))
	if err != nil {
		return "", errors.New("tag i= has no domain")
	}
	return domain, nil
}

// Digest is what a signature that covers a message signs: the fields that it names
// and the field that it is in (RFC 6376, 3.7).
func (f *Fields) Digest(field *Field, s *Signature) []byte {
	h := sha256.New()
	f.WriteSigned(h, s.Header, s.Signed)
	field.WriteUnsigned(h, s.Header, s.Tags)
	return h.Sum(nil)
}

// CheckBody tells whether the body is that of a signature, which covers the whole
// of it. body is of the signature's canonical form, and is at its end.
func (s *Signature) CheckBody(body *BodyHash) error {
	if !bytes.Equal(body.Sum(), s.BodyHash) {
		return ErrBodyChanged
	}
	return nil
}

// VerifySignature tells whether a signature of DKIM is of a digest, as far as the
// key's flags allow (RFC 6376, 3.6.1: with t=s, i= has to have the domain of d=).
func (k *Key) VerifySignature(s *Signature, digest []byte) error {
	if domain, err := s.agent(); k.Strict && (err != nil || domain != s.Domain) {
		return fmt.Errorf("%w: it is not for subdomains of d=", ErrKeyForm)
	}
	return k.Verify(s.Algorithm, digest, s.Value)
}
