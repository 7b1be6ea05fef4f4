package token

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testKey is made once: a key takes a while.
var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// standIn is a token endpoint over TLS. Answer says what it answers with; nil
// grants a token that names the number of the request.
type standIn struct {
	*httptest.Server
	mu     sync.Mutex
	forms  []url.Values
	answer func(n int, form url.Values, w http.ResponseWriter, r *http.Request)
}

func newStandIn(t *testing.T) *standIn {
	t.Helper()
	s := &standIn{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil || r.Method != http.MethodPost {
			t.Errorf("%s, %v", r.Method, err)
		}
		s.mu.Lock()
		s.forms = append(s.forms, r.PostForm)
		n, answer := len(s.forms), s.answer
		s.mu.Unlock()
		if answer != nil {
			answer(n, r.PostForm, w, r)
			return
		}
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":3600}`, n)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *standIn) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func (s *standIn) seen() []url.Values {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]url.Values(nil), s.forms...)
}

// quick makes an endpoint that waits for nothing, and closes its connections at the end.
func quick(t *testing.T, e *endpoint) {
	e.delay = time.Millisecond
	t.Cleanup(e.client.CloseIdleConnections)
}

func pemKey(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(testKey())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *standIn) google(t *testing.T) *Google {
	t.Helper()
	data, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "mover@project.iam.example", "client_id": "1234567890", "private_key_id": "kid-1",
		"private_key": pemKey(t), "token_uri": s.URL + "/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	g, err := NewGoogle(write(t, "sa.json", string(data)), "", s.roots())
	if err != nil {
		t.Fatal(err)
	}
	quick(t, g.endpoint)
	return g
}

func (s *standIn) microsoft(t *testing.T, o MicrosoftOptions) *Microsoft {
	t.Helper()
	o.Tenant, o.ClientID, o.Authority, o.Roots = "tenant.example", "client-1", s.URL, s.roots()
	m, err := NewMicrosoft(o)
	if err != nil {
		t.Fatal(err)
	}
	quick(t, m.endpoint)
	return m
}

func secret(text string) func() (string, error) {
	return func() (string, error) { return text, nil }
}

// readJWT checks the signature as the other side would, and gives header and claims.
func readJWT(t *testing.T, text string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	for i, into := range []*map[string]any{&header, &claims} {
		data, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, into); err != nil {
			t.Fatal(err)
		}
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if header["alg"] == "PS256" {
		err = rsa.VerifyPSS(&testKey().PublicKey, crypto.SHA256, sum[:], sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	} else {
		err = rsa.VerifyPKCS1v15(&testKey().PublicKey, crypto.SHA256, sum[:], sig)
	}
	if err != nil {
		t.Fatalf("the signature: %v", err)
	}
	return header, claims
}

// certificate makes a self-signed certificate for testKey.
func certificate(t *testing.T, ends time.Time) (certFile, keyFile string, der []byte) {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "crossfade"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &testKey().PublicKey, testKey())
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "app.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))), write(t, "app.key", pemKey(t)), der
}
