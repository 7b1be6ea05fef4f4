package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Bounds of keys. RFC 8301, 3.2, asks that 1024 to 4096 bits are verified.
// Beyond, a key costs a verifier more than it is worth.
const (
	MinRSABits = 1024
	MaxRSABits = 4096

	maxKeyDER    = 1024 // octets; a key of 4096 bits has 550
	maxKeyText   = 4096 // of one record
	maxKeyNumber = 8    // of records at one name
)

// Key is a public key as a signer published it (RFC 6376, 3.6.1).
type Key struct {
	Algorithm string // the one it is for: RSASHA256 or Ed25519SHA256
	Public    crypto.PublicKey
	Strict    bool // t=s: i= of DKIM has to have the very domain of d=
}

// Errors of key records. All are permanent.
var (
	ErrNoKey      = errors.New("there is no key record")
	ErrKeyRevoked = errors.New("the key is revoked")
	ErrKeyForm    = errors.New("the key record cannot be used")
	// ErrKeySize is a kind of ErrKeyForm: an RSA key that is too small to prove anything, or too large to be tried.
	ErrKeySize = fmt.Errorf("%w: its size", ErrKeyForm)
)

// FindKey gives the key among the TXT records of one name. Where there are more
// of them (which RFC 6376, 3.6.2.2, leaves undefined), the first that can be used
// counts.
func FindKey(records []string) (*Key, error) {
	if len(records) == 0 {
		return nil, ErrNoKey
	}
	if len(records) > maxKeyNumber {
		return nil, fmt.Errorf("%w: %d records at one name", ErrKeyForm, len(records))
	}
	var first error
	for _, r := range records {
		key, err := ParseKey(r)
		if err == nil {
			return key, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// ParseKey reads a key record.
func ParseKey(record string) (*Key, error) {
	if len(record) > maxKeyText {
		return nil, fmt.Errorf("%w: a record of %d octets (RSA keys of more than %d bits are not used)", ErrKeySize, len(record), MaxRSABits)
	}
	tags, err := ParseTags(record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyForm, err)
	}
	if v, ok := tags.Get("v"); ok && (v != "DKIM1" || tags[0].Name != "v") {
		return nil, fmt.Errorf("%w: it is of another version", ErrKeyForm)
	}
	if h, ok := tags.Get("h"); ok && !hasWord(h, "sha256") {
		return nil, fmt.Errorf("%w: it is not for sha256", ErrKeyForm)
	}
	if s, ok := tags.Get("s"); ok && !hasWord(s, "*") && !hasWord(s, "email") {
		return nil, fmt.Errorf("%w: it is not for mail", ErrKeyForm)
	}
	p, ok := tags.Get("p")
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: there is no p=", ErrKeyForm)
	case p == "":
		return nil, ErrKeyRevoked
	}
	der, err := Base64(p)
	if err != nil {
		return nil, fmt.Errorf("%w: p= is not base64", ErrKeyForm)
	}
	flags, _ := tags.Get("t")
	key := &Key{Strict: hasWord(flags, "s")}
	kind, ok := tags.Get("k")
	if !ok {
		kind = "rsa"
	}
	if err := key.set(strings.ToLower(kind), der); err != nil {
		return nil, err
	}
	return key, nil
}

// set reads the octets of p=.
func (k *Key) set(kind string, der []byte) error {
	switch kind {
	case "rsa":
		public, err := parseRSA(der)
		if err != nil {
			return err
		}
		k.Algorithm, k.Public = RSASHA256, public
	case "ed25519":
		if len(der) != ed25519.PublicKeySize {
			return fmt.Errorf("%w: an Ed25519 key has 32 octets", ErrKeyForm)
		}
		k.Algorithm, k.Public = Ed25519SHA256, ed25519.PublicKey(der)
	default:
		return fmt.Errorf("%w: the kind of key is not known", ErrKeyForm)
	}
	return nil
}

// parseRSA reads a SubjectPublicKeyInfo, which is what is published, or an
// RSAPublicKey, which is what RFC 6376 says.
func parseRSA(der []byte) (*rsa.PublicKey, error) {
	if len(der) > maxKeyDER {
		return nil, fmt.Errorf("%w: RSA keys of more than %d bits are not used", ErrKeySize, MaxRSABits)
	}
	var public *rsa.PublicKey
	if parsed, err := x509.ParsePKIXPublicKey(der); err == nil {
		public, _ = parsed.(*rsa.PublicKey)
	} else {
		public, _ = x509.ParsePKCS1PublicKey(der)
	}
	if public == nil {
		return nil, fmt.Errorf("%w: p= is no RSA key", ErrKeyForm)
	}
	if bits := public.N.BitLen(); bits < MinRSABits || bits > MaxRSABits {
		return nil, fmt.Errorf("%w: an RSA key of %d bits (%d to %d are used)", ErrKeySize, bits, MinRSABits, MaxRSABits)
	}
	return public, nil
}

// ErrSignature is a signature that is not of what it should be of.
var ErrSignature = errors.New("the signature is wrong")

// Verify tells whether value is the signature of a SHA-256 digest.
func (k *Key) Verify(algorithm string, digest, value []byte) error {
	if algorithm != k.Algorithm {
		return fmt.Errorf("%w: it is for %s", ErrKeyForm, k.Algorithm)
	}
	switch public := k.Public.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(public, crypto.SHA256, digest, value) == nil {
			return nil
		}
	case ed25519.PublicKey:
		// RFC 8463, 3: what is signed is the digest.
		if ed25519.Verify(public, digest, value) {
			return nil
		}
	}
	return ErrSignature
}
