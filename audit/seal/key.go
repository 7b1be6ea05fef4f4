package seal

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Key signs. Make one with NewKey, ParseKey or LoadOrCreate; the zero value signs
// nothing.
type Key struct{ private ed25519.PrivateKey }

// NewKey makes a key that nobody else has.
func NewKey() (Key, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return Key{}, fmt.Errorf("make a key to sign with: %w", err)
	}
	return Key{private}, nil
}

// Public gives the key that checks what this one signed, in base64.
func (k Key) Public() string {
	if k.private == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(k.private.Public().(ed25519.PublicKey))
}

// pemType is that of PKCS #8, which openssl reads.
const pemType = "PRIVATE KEY"

// PEM gives the key itself, for a file that nobody else can read.
func (k Key) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, fmt.Errorf("write the key to sign with: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// ParseKey reads what PEM gave.
func ParseKey(data []byte) (Key, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != pemType {
		return Key{}, errors.New("it holds no private key in PEM")
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Key{}, err
	}
	private, ok := any.(ed25519.PrivateKey)
	if !ok {
		return Key{}, fmt.Errorf("it holds a key of the kind %T; Ed25519 is needed", any)
	}
	return Key{private}, nil
}

// LoadOrCreate reads a key from a file, which it makes with the mode 0600 when
// there is none. A file that cannot be read as a key is an error: another key
// would make two installations of one.
func LoadOrCreate(path string) (k Key, created bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		k, err = create(path)
		return k, err == nil, err
	}
	if err == nil {
		k, err = ParseKey(data)
	}
	if err != nil {
		return k, false, fmt.Errorf("read the key to sign with, %s: %w (restore it from a backup; or move it away, and a new one is made: what the old one signed is then checked with --key)", path, err)
	}
	return k, false, nil
}

// create writes a new key beside its place, syncs it and moves it there.
func create(path string) (Key, error) {
	k, err := NewKey()
	if err != nil {
		return k, err
	}
	data, err := k.PEM()
	if err != nil {
		return k, err
	}
	fail := func(err error) (Key, error) { return Key{}, fmt.Errorf("make the key to sign with: %w", err) }
	f, err := os.CreateTemp(filepath.Dir(path), ".signing-*") // mode 0600
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fail(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fail(err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fail(err)
	}
	return k, nil
}
