package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
)

// acmeStore is the directory of one authority: another directory URL is another account and another certificate, so
// that a trial with a staging authority leaves nothing behind.
type acmeStore struct{ dir string }

var unsafeName = regexp.MustCompile(`[^A-Za-z0-9.-]`)

func newACMEStore(dir, directory string) acmeStore {
	host := "ca"
	if u, err := url.Parse(directory); err == nil && u.Host != "" {
		host = unsafeName.ReplaceAllString(u.Host, "_")
	}
	sum := sha256.Sum256([]byte(directory))
	return acmeStore{filepath.Join(dir, host+"-"+hex.EncodeToString(sum[:4]))}
}

// Kept is the certificate of an authority that lies in dir, the Dir of an [ACMEConfig]; ErrNone when there is none.
// Nothing is made.
func Kept(dir, directory string) (*tls.Certificate, error) {
	return newACMEStore(dir, directory).certificate()
}

const (
	accountFile     = "account.pem"
	certificateFile = "certificate.pem"
)

// accountKey reads the key of the account, or makes it.
func (s acmeStore) accountKey() (crypto.Signer, error) {
	name := filepath.Join(s.dir, accountFile)
	data, err := os.ReadFile(name)
	if err == nil {
		return parseKey(name, data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the account key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an account key: %w", err)
	}
	block, err := keyBlock(key)
	if err != nil {
		return nil, err
	}
	return key, s.write(accountFile, block)
}

func parseKey(name string, data []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PRIVATE KEY" {
			continue
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read the key in %s: %w", name, err)
		}
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("read %s: there is no private key in it; remove the file to have another one made", name)
}

func keyBlock(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// certificate reads what was saved; ErrNone when nothing was.
func (s acmeStore) certificate() (*tls.Certificate, error) {
	name := filepath.Join(s.dir, certificateFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	pair, err := parsePair(data)
	if err != nil {
		return nil, fmt.Errorf("read the certificate in %s: %w", name, err)
	}
	return pair, nil
}

func parsePair(data []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	if pair.Leaf == nil { // only with GODEBUG=x509keypairleaf=0
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &pair, nil
}

// makePair joins chain and key, and gives the text of one file for both, so that they
// always belong together.
func makePair(chain [][]byte, key crypto.Signer) (*tls.Certificate, []byte, error) {
	block, err := keyBlock(key)
	if err != nil {
		return nil, nil, err
	}
	b := bytes.NewBuffer(block)
	for _, der := range chain {
		if err := pem.Encode(b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, nil, fmt.Errorf("write the certificate: %w", err)
		}
	}
	pair, err := parsePair(b.Bytes())
	if err != nil {
		return nil, nil, fmt.Errorf("what the authority sent is no certificate for our key: %w", err)
	}
	return pair, b.Bytes(), nil
}

// write replaces a file whole or not at all, for our user alone.
func (s acmeStore) write(name string, data []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	tmp, err := os.CreateTemp(s.dir, name+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	defer os.Remove(tmp.Name()) // gone when it was renamed
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(s.dir, name))
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return nil
}
