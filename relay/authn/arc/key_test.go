package arc

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func pemBlock(t *testing.T, kind string, der []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pkcs8(t *testing.T, key any) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pemBlock(t, "PRIVATE KEY", der, err)
}

func TestParseKey(t *testing.T) {
	k := testKeys()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		text []byte
		want string // empty: good
	}{
		{"PKCS 1", []byte(pemOf(k.usual)), ""}, {"PKCS 8", pkcs8(t, k.usual), ""}, {"Ed25519", pkcs8(t, k.ed), ""}, {"behind a comment", append([]byte("key of arc\n"), pkcs8(t, k.small)...), ""},
		{"ECDSA", pkcs8(t, ec), "RSA or Ed25519"}, {"nothing", nil, "no private key"}, {"text", []byte("p=abc"), "no private key"},
		{"a public key", pemBlock(t, "PUBLIC KEY", x509.MarshalPKCS1PublicKey(&k.small.PublicKey), nil), "no private key"},
		{"damaged", pemBlock(t, "PRIVATE KEY", []byte("secret-octets"), nil), "cannot be read"}, {"damaged PKCS 1", pemBlock(t, "RSA PRIVATE KEY", []byte("secret-octets"), nil), "cannot be read"},
		{"encrypted", pemBlock(t, "ENCRYPTED PRIVATE KEY", []byte("x"), nil), "encrypted"},
		{"encrypted PKCS 1", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x")}), "encrypted"},
	} {
		key, err := ParseKey(c.text)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %T, %v", c.name, key, err)
		}
	}
}

func TestCheckRecord(t *testing.T) {
	k := testKeys()
	for _, key := range []crypto.Signer{k.small, k.usual, k.ed} {
		r := record(t, key)
		if err := CheckRecord([]string{r}, key.Public()); err != nil {
			t.Errorf("%T: its own record: %v", key, err)
		}
		for _, other := range [][]string{nil, {"v=DKIM1; p="}, {record(t, k.other)}, {"v=spf1 -all"}} {
			if err := CheckRecord(other, key.Public()); err == nil {
				t.Errorf("%T: %q is taken for its record", key, other)
			}
		}
	}
	if w := Warning(k.small.Public()); !strings.Contains(w, "1024 bits") {
		t.Errorf("1024 bits: %q", w)
	}
	if w := Warning(k.usual.Public()); w != "" {
		t.Errorf("2048 bits: %q", w)
	}
	if w := Warning(k.ed.Public()); !strings.Contains(w, "rsa-sha256") {
		t.Errorf("Ed25519: %q", w)
	}
}

// TestKeySize: keys that others do not verify are refused. One of 512 bits cannot
// be made any more; the parser is asked about its size alone.
func TestKeySize(t *testing.T) {
	for _, bits := range []uint{768, 8192} {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}, D: big.NewInt(3), Primes: []*big.Int{big.NewInt(3), big.NewInt(5)}}
		if got, err := ParseKey([]byte(pemOf(key))); err == nil {
			t.Errorf("%d bits: %T", bits, got)
		}
	}
}

func TestKeyFile(t *testing.T) {
	k := testKeys()
	path := filepath.Join(t.TempDir(), "arc.pem")
	write := func(text []byte, at time.Time) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenKey(path, nil); err == nil {
		t.Error("a file that is not there")
	}
	start := time.Unix(1_700_000_000, 0)
	write([]byte(pemOf(k.small)), start)
	var log bytes.Buffer
	f, err := OpenKey(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	f.now = func() time.Time { return now }
	is := func(what string, want crypto.Signer) {
		t.Helper()
		if got := f.Signer().Public().(interface{ Equal(crypto.PublicKey) bool }); !got.Equal(want.Public()) {
			t.Errorf("%s: another key", what)
		}
	}
	is("at first", k.small)
	write([]byte(pemOf(k.other)), start.Add(time.Hour))
	is("within ten seconds", k.small)
	now = now.Add(time.Minute)
	is("later", k.other)
	write([]byte("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"), start.Add(2*time.Hour))
	now = now.Add(time.Minute)
	is("a broken file", k.other)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	is("no file", k.other)
	write([]byte(pemOf(k.small)), start.Add(3*time.Hour))
	now = now.Add(time.Minute)
	is("mended", k.small)
	if text := log.String(); strings.Count(text, "level=ERROR") != 2 || strings.Contains(text, "c2VjcmV0") || strings.Contains(text, "BEGIN") {
		t.Errorf("the log:\n%s", text)
	}
}
