package arc

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"crossfade/relay/authn/dkim"
)

// WeakRSABits is the size below which a key of one's own is warned about (RFC
// 8301, 3.2).
const WeakRSABits = 2048

// ParseKey reads a private key in PEM form: RSA (PKCS #1 or PKCS #8) of 1024 to
// 4096 bits, or Ed25519 (PKCS #8). No error tells anything of the key itself.
func ParseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no private key in PEM form")
	}
	var parsed any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the key is encrypted: it has to lie there in clear, readable by crossfade alone")
		}
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("the key is encrypted: it has to lie there in clear, readable by crossfade alone")
	default:
		return nil, errors.New("the PEM block is no private key: RSA PRIVATE KEY or PRIVATE KEY is wanted")
	}
	if err != nil {
		return nil, errors.New("the private key cannot be read: it is damaged, or of a kind that is not known")
	}
	switch key := parsed.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < dkim.MinRSABits || bits > dkim.MaxRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits: %d to %d are verified everywhere, 2048 is usual", bits, dkim.MinRSABits, dkim.MaxRSABits)
		}
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("a key of kind %T: RSA or Ed25519 is wanted", parsed)
}

// Record is the TXT record that publishes the public half of a key (RFC 6376,
// 3.6.1; RFC 8463, 4), in one string.
func Record(public crypto.PublicKey) (string, error) {
	if key, ok := public.(ed25519.PublicKey); ok {
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(key), nil
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("write the public key: %w", err)
	}
	return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der), nil
}

// CheckRecord tells whether the records of a key's name publish public.
func CheckRecord(records []string, public crypto.PublicKey) error {
	key, err := dkim.FindKey(records)
	if err != nil {
		return err
	}
	equal, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !equal.Equal(key.Public) {
		return errors.New("the record publishes another key")
	}
	return nil
}

// keyCheck is how often a key file is looked at.
const keyCheck = 10 * time.Second

// KeyFile is a private key that is read again when its file changes. A file that
// cannot be read leaves the key before in use, with an alarm in the log.
type KeyFile struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex
	key     crypto.Signer
	stamp   time.Time
	size    int64
	checked time.Time
}

// OpenKey reads the key in a file. A nil logger discards.
func OpenKey(path string, log *slog.Logger) (*KeyFile, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &KeyFile{path: path, log: log, now: time.Now}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("arc key: %w", err)
	}
	return f, f.load(info)
}

func (f *KeyFile) load(info os.FileInfo) error {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return fmt.Errorf("arc key: %w", err)
	}
	key, err := ParseKey(text)
	if err != nil {
		return fmt.Errorf("arc key %s: %w", f.path, err)
	}
	f.key, f.stamp, f.size, f.checked = key, info.ModTime(), info.Size(), f.now()
	return nil
}

// Signer gives the present key. It may be called for every message.
func (f *KeyFile) Signer() crypto.Signer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now().Sub(f.checked) < keyCheck {
		return f.key
	}
	f.checked = f.now()
	info, err := os.Stat(f.path)
	if err == nil && (!info.ModTime().Equal(f.stamp) || info.Size() != f.size) {
		if err = f.load(info); err == nil {
			f.log.Info("arc: the key was read again", "file", f.path)
		}
	}
	if err != nil {
		f.log.Error("arc: the key cannot be read again; the one before stays in use", "err", err)
	}
	return f.key
}

// Warning says what is weak about a key; empty when nothing is.
func Warning(public crypto.PublicKey) string {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < WeakRSABits {
			return fmt.Sprintf("an RSA key of %d bits: make one of %d", bits, WeakRSABits)
		}
	case ed25519.PublicKey:
		return "an Ed25519 key: several large receivers verify rsa-sha256 alone"
	}
	return ""
}
