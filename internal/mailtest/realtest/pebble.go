package realtest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/miekg/dns"
)

// pebblePath is where .ci/run puts Pebble, which is no Debian package.
const pebblePath = "/usr/local/lib/acme-servers/pebble"

// Pebble is a running ACME server (github.com/letsencrypt/pebble), which issues certificates that nobody trusts. Every
// name leads to 127.0.0.1 for it, where it looks for answers to challenges.
type Pebble struct {
	Directory string         // URL
	Roots     *x509.CertPool // of its own HTTPS
	Lifetime  time.Duration  // of certificates

	manage  string
	rootPEM []byte
	client  *http.Client
}

// PebblePorts is where a [Pebble] looks for the answers to challenges.
type PebblePorts struct{ HTTP01, ALPN01 int }

// StartPebble starts a Pebble, which is stopped when the test ends.
func StartPebble(t testing.TB, ports PebblePorts, lifetime time.Duration) *Pebble {
	t.Helper()
	path, err := exec.LookPath(pebblePath)
	if err != nil {
		if os.Getenv("CROSSFADE_PEBBLE") == "required" {
			t.Fatalf("%v; CI must run this test", err)
		}
		t.Skipf("SKIPPED, NOT PROVEN: %s is not there (.ci/run builds it)", pebblePath)
	}
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	dir := publicDir(t, "pebble")
	files, err := ca.WritePEM(dir, cert)
	if err != nil {
		t.Fatal(err)
	}
	listen, manage := fmt.Sprintf("127.0.0.1:%d", FreePort(t)), fmt.Sprintf("127.0.0.1:%d", FreePort(t))
	config := map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": manage, "certificate": files.Cert, "privateKey": files.Key,
		"httpPort": ports.HTTP01, "tlsPort": ports.ALPN01, "keyAlgorithm": "ecdsa",
		"profiles": map[string]any{"default": map[string]any{"description": "for tests", "validityPeriod": int(lifetime.Seconds())}},
	}}
	data, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
	}
	if err != nil {
		t.Fatalf("write the configuration of pebble: %v", err)
	}
	p := &Pebble{Directory: "https://" + listen + "/dir", Roots: ca.Pool(), Lifetime: lifetime, manage: "https://" + manage, rootPEM: ca.PEM()}
	p.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: p.Roots}}}
	d, err := startDaemon("pebble", filepath.Join(dir, "log"), []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0"}, path,
		"-config", filepath.Join(dir, "config.json"), "-dnsserver", oneAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(t) })
	if err := d.ready(func() error { _, err := p.get(p.Directory); return err }); err != nil {
		t.Fatal(err)
	}
	return p
}

// IssuedRoots are the roots of the certificates that the server issues.
func (p *Pebble) IssuedRoots(t testing.TB) *x509.CertPool {
	t.Helper()
	data, err := p.get(p.manage + "/roots/0")
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(data) {
		t.Fatalf("read the root of pebble: %v", err)
	}
	return pool
}

// WriteRoots writes the roots of its own HTTPS into a file.
func (p *Pebble) WriteRoots(t testing.TB, name string) {
	t.Helper()
	if err := os.WriteFile(name, p.rootPEM, 0o600); err != nil {
		t.Fatalf("write the roots of pebble: %v", err)
	}
}

func (p *Pebble) get(url string) ([]byte, error) {
	resp, err := p.client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}

// oneAddress is a name server for which every name is 127.0.0.1 and has nothing else.
func oneAddress(t testing.TB) string {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if len(q.Question) == 1 && q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(127, 0, 0, 1)})
		}
		_ = w.WriteMsg(m)
	})
	addr := fmt.Sprintf("127.0.0.1:%d", freeBoth(t))
	for _, network := range []string{"udp", "tcp"} {
		up := make(chan struct{})
		s := &dns.Server{Addr: addr, Net: network, Handler: handler, NotifyStartedFunc: func() { close(up) }}
		ended := make(chan error, 1)
		go func() { ended <- s.ListenAndServe() }()
		select {
		case <-up:
		case err := <-ended:
			t.Fatalf("name server on %s: %v", addr, err)
		}
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-ended
		})
	}
	return addr
}
