package authn

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"strings"
	"testing"

	"crossfade/mail"
)

// BenchmarkCheck checks a message of 4 KiB with one RSA-2048 signature; the cache is warm.
func BenchmarkCheck(b *testing.B) {
	c := newChecker(b, nil, domain("example.com", "v=DMARC1; p=reject")...)
	msg := sign(b, letter("a@example.com", strings.Repeat("The quick brown fox jumps over the lazy dog, and so on.\n", 72)), "example.com", "rsa", nil)
	m := Message{Client: client, Helo: "x", From: mail.Address{Local: "a", Domain: "example.com"}}
	b.ReportAllocs()
	for b.Loop() {
		k := c.Begin(b.Context(), m)
		k.Write(msg)
		if r := k.End(b.Context()); r.DMARC.Result != Pass || r.SPF.Result != Pass || r.BestDKIM() != Pass || r.Trace("mx.example.org") == "" {
			b.Fatal(r)
		}
		k.Close()
	}
}

// BenchmarkLeast is what of that nobody can do without: SHA-256 of 4 KiB, and the signature.
func BenchmarkLeast(b *testing.B) {
	key := keys()["rsa"].(*rsa.PrivateKey)
	body := make([]byte, 4<<10)
	sum := sha256.Sum256(body)
	sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if sum := sha256.Sum256(body); rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], sig) != nil {
			b.Fatal("it does not fit")
		}
	}
}
