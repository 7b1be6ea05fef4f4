package attack

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
)

const day = 24 * time.Hour

// certFault is a certificate of ours with its ends, and what /readyz says of it.
type certFault struct {
	name        string
	begins, end time.Duration // from now
	says        string        // empty: nothing
	later       string        // what it says when the certificate has ended meanwhile
}

var certFaults = []certFault{
	{"15 days are left", -75 * day, 15 * day, "", ""},
	{"14 days are left", -76 * day, 14 * day, "the certificate of smtp.tls ends in 13 days", ""},
	{"a day is left", -89 * day, day, "the certificate of smtp.tls ends in 24h0m0s", ""},
	{"of a week, a day is left", -6 * day, day, "the certificate of smtp.tls ends in 24h0m0s", ""},
	{"it ends while the relay runs", -90 * day, 3 * time.Second, "the certificate of smtp.tls ends in", "the certificate of smtp.tls ended on"},
	{"it has ended before the start", -90 * day, -time.Hour, "the certificate of smtp.tls ended on", ""},
	{"it has not begun", time.Hour, 90 * day, "", ""},
}

// TestFaultsCertificate: two weeks before a certificate of ours ends, and from then
// on, /readyz and the metrics say so; STARTTLS is offered and mail is taken all the
// same, before and behind its end.
func TestFaultsCertificate(t *testing.T) {
	t.Parallel()
	atOnce(t, certFaults, func(c certFault) string { return c.name }, func(t *testing.T, c certFault) { c.try(t) })
	figure(t, "%d certificates of ours at their ends", len(certFaults))
}

func (c certFault) try(t *testing.T) {
	t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	ends := time.Now().Add(c.end).Truncate(time.Second) // as the certificate has it
	files := issueFiles(t, ca, time.Now().Add(c.begins), ends)
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), fmt.Sprintf(", tls: {cert: %q, key: %q}", files.Cert, files.Key), "")
	look := func(says string) error {
		if reply, err := give(f.smtp, "ann@client.test", letterOf("client.test", "tls"), &tls.Config{InsecureSkipVerify: true}); err != nil || !strings.HasPrefix(reply, "250") {
			t.Fatalf("under TLS: %s, %v", reply, err)
		}
		if status, w := f.readyz(); status != 200 || says == "" && w != "" || !strings.Contains(w, says) {
			return fmt.Errorf("readyz says %d, %q; want %q", status, w, says)
		}
		return nil
	}
	if err := look(c.says); err != nil && (c.later == "" || time.Now().Before(ends)) {
		t.Error(err)
	}
	if c.later != "" {
		until(t, 20*time.Second, "the end", func() error { return look(c.later) })
	}
	if want := time.Now().After(ends); f.counts(`crossfade_certificate_expiry_seconds{certificate="smtp.tls"} -`) != want {
		t.Errorf("the metrics show time left: %t", want)
	}
}

// issueFiles writes a certificate for mx.example.org and 127.0.0.1.
func issueFiles(t *testing.T, ca *mailtest.CA, begins, ends time.Time) mailtest.CertFiles {
	t.Helper()
	cert, err := ca.IssueValid(begins, ends, "mx.example.org", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// backendFault is a certificate that a backend shows, and whether mail goes to it
// where TLS is required (smtp+starttls://) and where it is not (smtp://).
type backendFault struct {
	name             string
	cert             func(ca *mailtest.CA) (tls.Certificate, error)
	required, plain  bool
	says             string // of /readyz
	saysRequiredOnly bool
}

var backendFaults = []backendFault{
	{"it ends in 13 days", func(ca *mailtest.CA) (tls.Certificate, error) {
		return ca.IssueValid(time.Now().Add(-77*day), time.Now().Add(13*day), "127.0.0.1")
	}, true, true, "the certificate of backends.old.smtp ends in", false},
	{"it has ended", func(ca *mailtest.CA) (tls.Certificate, error) {
		return ca.IssueValid(time.Now().Add(-90*day), time.Now().Add(-time.Hour), "127.0.0.1")
	}, false, true, "the certificate of backends.old.smtp ended on", true},
	{"its key has 16,384 bits", func(ca *mailtest.CA) (tls.Certificate, error) { return largeCertificate(16384) }, false, true, "", false},
}

// nobodysKey has a public half of many bits, and signs at random: nobody gets as far
// as to look at that.
type nobodysKey struct{ public *rsa.PublicKey }

func (k nobodysKey) Public() crypto.PublicKey { return k.public }

func (k nobodysKey) Sign(random io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	sig := make([]byte, k.public.Size())
	_, err := io.ReadFull(random, sig)
	return sig, err
}

// largeCertificate is for a key with so many bits.
func largeCertificate(bits int) (tls.Certificate, error) {
	n := make([]byte, bits/8)
	if _, err := rand.Read(n); err != nil {
		return tls.Certificate{}, err
	}
	n[0] |= 0x80
	n[len(n)-1] |= 1
	key := nobodysKey{&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}}
	// Another key signs: a small one of its own.
	signer, err := someKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "large"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * day), DNSNames: []string{"127.0.0.1"}}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: "nobody"}}, key.public, signer)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// TestFaultsBackendCertificate: a backend whose certificate is no good gets no mail
// where TLS is required, and mail waits; where it is not, mail goes on.
func TestFaultsBackendCertificate(t *testing.T) {
	t.Parallel()
	type run struct {
		backendFault
		scheme string
	}
	var runs []run
	for _, c := range backendFaults {
		runs = append(runs, run{c, "smtp+starttls"}, run{c, "smtp"})
	}
	atOnce(t, runs, func(r run) string { return r.name + ", " + r.scheme }, func(t *testing.T, r run) { r.try(t, r.scheme) })
	figure(t, "%d certificates of backends that are no good", len(backendFaults))
}

func (c backendFault) try(t *testing.T, scheme string) {
	t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	roots := t.TempDir() + "/ca.pem"
	if err := os.WriteFile(roots, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	cert, err := c.cert(ca)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := mailtest.NewSink(mailtest.SinkConfig{STARTTLS: true, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFrontOf(t, fmt.Sprintf("smtp: %q, tls: {ca: %q}", scheme+"://"+sink.Addr(), roots), "", "")
	if reply, err := give(f.smtp, "ann@client.test", letterOf("client.test", "tls"), nil); err != nil || !strings.HasPrefix(reply, "250") {
		t.Fatalf("%s, %v", reply, err)
	}
	goes := c.plain
	if scheme != "smtp" {
		goes = c.required
	}
	until(t, 20*time.Second, "a delivery", func() error {
		if goes && sink.Count() != 1 || !goes && !f.counts(`crossfade_delivery_tls_total{policy="no-policy-found"`) {
			return fmt.Errorf("%d messages arrived", sink.Count())
		}
		return nil
	})
	if !goes && sink.Count() != 0 {
		t.Error("mail went to a server that could not be verified")
	}
	if status, w := f.readyz(); status != 200 || (!c.saysRequiredOnly || scheme != "smtp") && !strings.Contains(w, c.says) {
		t.Errorf("readyz says %d, %q, want %q", status, w, c.says)
	}
}
