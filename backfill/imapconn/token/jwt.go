package token

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// assertionLife is how long an assertion is good for, and assertionSkew how
// much it is dated back, for clocks that are behind ours.
const (
	assertionLife = 10 * time.Minute
	assertionSkew = 30 * time.Second
)

// The algorithms of RFC 7518, 3.1 that are used here.
const (
	rs256 = "RS256" // RSASSA-PKCS1-v1_5 with SHA-256
	ps256 = "PS256" // RSASSA-PSS with SHA-256
)

// signJWT makes a signed JSON Web Token (RFC 7519, RFC 7515, 7.1). The
// algorithm is taken from the header's alg.
func signJWT(key *rsa.PrivateKey, header map[string]string, claims map[string]any) (string, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return "", err
	}
	c, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c)
	sum := sha256.Sum256([]byte(text))
	var sig []byte
	switch header["alg"] {
	case rs256:
		sig, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	case ps256:
		sig, err = rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	default:
		err = fmt.Errorf("the algorithm %q is not known", header["alg"])
	}
	if err != nil {
		return "", fmt.Errorf("sign an assertion: %w", err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// parseKey reads an RSA key in PEM, PKCS #8 or PKCS #1. Errors never hold what
// was read.
func parseKey(text []byte) (*rsa.PrivateKey, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("it holds no private key in PEM")
		}
		text = rest
		switch block.Type {
		case "RSA PRIVATE KEY":
			key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("its RSA PRIVATE KEY cannot be read")
			}
			return key, nil
		case "PRIVATE KEY":
			any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("its PRIVATE KEY cannot be read")
			}
			key, ok := any.(*rsa.PrivateKey)
			if !ok {
				return nil, errors.New("its key is not an RSA key")
			}
			return key, nil
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("its key is encrypted with a passphrase: store it without one, readable for crossfade alone")
		}
	}
}

// parseCertificate reads the first certificate in PEM.
func parseCertificate(text []byte) (*x509.Certificate, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("it holds no certificate in PEM")
		}
		text = rest
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
}

// readSmall reads a file that is at most 64 KiB.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err == nil && len(data) > maxToken {
		err = errors.New("it is too large for a key")
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), err
}
