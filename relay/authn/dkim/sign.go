package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
)

// Signer signs messages of our own.
type Signer struct {
	Domain, Selector string
	Key              crypto.Signer // RSA or Ed25519
	Names            []string      // of the fields that are signed, in lower case; those that are there, each as often as it is named
}

// Sign gives the DKIM-Signature field, with its CRLF, for a message, which has CRLF line ends. Both canonical forms are relaxed.
func (s *Signer) Sign(message []byte, now time.Time) (string, error) {
	var h Header
	defer h.Release()
	body := h.Write(message)
	h.Close()
	fields, err := h.Fields()
	if err != nil {
		return "", fmt.Errorf("dkim: sign: %w", err)
	}
	sum := NewBodyHash(Relaxed)
	sum.Write(body)
	algorithm, opts := RSASHA256, crypto.SignerOpts(crypto.SHA256)
	if _, ok := s.Key.Public().(ed25519.PublicKey); ok {
		algorithm, opts = Ed25519SHA256, crypto.Hash(0) // the digest is the message (RFC 8463, 3)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "DKIM-Signature: v=1; a=%s; c=relaxed/relaxed;\r\n\td=%s; s=%s; t=%d;\r\n\th=%s;\r\n\tbh=%s;\r\n\tb=",
		algorithm, s.Domain, s.Selector, now.Unix(), strings.Join(s.Names, ":\r\n\t "), base64.StdEncoding.EncodeToString(sum.Sum()))
	own, ok := FieldOf([]byte(b.String() + "\r\n"))
	if !ok {
		return "", fmt.Errorf("dkim: sign: %q and %q make no field", s.Domain, s.Selector)
	}
	tags, err := ParseTags(own.Text())
	if err != nil {
		return "", fmt.Errorf("dkim: sign: %w", err)
	}
	value, err := s.Key.Sign(rand.Reader, fields.Digest(own, &Signature{Tags: tags, Header: Relaxed, Signed: s.Names}), opts)
	if err != nil {
		return "", fmt.Errorf("dkim: sign: %w", err)
	}
	text := base64.StdEncoding.AppendEncode(nil, value)
	for len(text) > 0 {
		n := min(len(text), 70)
		b.Write(text[:n])
		if text = text[n:]; len(text) > 0 {
			b.WriteString("\r\n\t ")
		}
	}
	return b.String() + "\r\n", nil
}
