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

// Sign gives the DKIM-Signature field, with its CRLF, for a message of our own, which has CRLF line ends. Both forms are
// relaxed; of the names, in lower case, those that are there are signed, each as often as it is named.
func Sign(message []byte, domain, selector string, key crypto.Signer, names []string, now time.Time) (string, error) {
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
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		algorithm, opts = Ed25519SHA256, crypto.Hash(0) // the digest is the message (RFC 8463, 3)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "DKIM-Signature: v=1; a=%s; c=relaxed/relaxed;\r\n\td=%s; s=%s; t=%d;\r\n\th=%s;\r\n\tbh=%s;\r\n\tb=",
		algorithm, domain, selector, now.Unix(), strings.Join(names, ":\r\n\t "), base64.StdEncoding.EncodeToString(sum.Sum()))
	own, ok := FieldOf([]byte(b.String() + "\r\n"))
	if !ok {
		return "", fmt.Errorf("dkim: sign: %q and %q make no field", domain, selector)
	}
	tags, err := ParseTags(own.Text())
	if err != nil {
		return "", fmt.Errorf("dkim: sign: %w", err)
	}
	value, err := key.Sign(rand.Reader, fields.Digest(own, &Signature{Tags: tags, Header: Relaxed, Signed: names}), opts)
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
