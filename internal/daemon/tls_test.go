package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/certs"
	"crossfade/config"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/smtpclient"
)

// tlsSite is a daemon with a certificate, in front of two sinks.
type tlsSite struct {
	t        *testing.T
	d        *Daemon
	ca       *mailtest.CA
	dir      string
	old, new *mailtest.Sink
	out      *mailtest.Sink
}

// newTLSSite starts it with the keys of section smtp, where OUT is a smart host, and more keys of section admin.
func newTLSSite(t *testing.T, smtp, more string) *tlsSite {
	t.Helper()
	s := &tlsSite{t: t, dir: t.TempDir()}
	var err error
	if s.ca, err = mailtest.NewCA(); err != nil {
		t.Fatal(err)
	}
	s.certificate(time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour), "mx.example.org", "127.0.0.1")
	for _, sink := range []**mailtest.Sink{&s.old, &s.new, &s.out} {
		if *sink, err = mailtest.NewSink(mailtest.SinkConfig{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*sink).Close() })
	}
	text := fmt.Sprintf(`hostname: mx.example.org
domains: [example.org]
store: ./data
smtp: {%s}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token%s}
backends:
  old: {smtp: "smtp://%s"}
  new: {smtp: "smtp+insecure://%s"}
routing: {unknown: old}
queue: {min_free: 0}
`, strings.ReplaceAll(smtp, "OUT", s.out.Addr()), more, s.old.Addr(), s.new.Addr())
	s.d, _ = serveLogged(t, parse(t, s.dir, text), slog.New(slog.NewTextHandler(t.Output(), nil)), Options{})
	return s
}

func (s *tlsSite) certificate(begins, ends time.Time, names ...string) mailtest.CertFiles {
	s.t.Helper()
	cert, err := s.ca.IssueValid(begins, ends, names...)
	if err != nil {
		s.t.Fatal(err)
	}
	files, err := s.ca.WritePEM(s.dir, cert)
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}

func (s *tlsSite) addr(n int) string { return s.d.SMTPAddrs()[n].String() }

const pairOf = `tls: {cert: cert.pem, key: key.pem}`

// TestTLSVersionsAndSuites is what an OpenSSL can agree on with us, by default and with old versions allowed.
func TestTLSVersionsAndSuites(t *testing.T) {
	openssl := realtest.Need(t, "openssl")
	strict := newTLSSite(t, `listen: ["127.0.0.1:0"], `+pairOf, "")
	loose := newTLSSite(t, `listen: ["127.0.0.1:0"], tls: {cert: cert.pem, key: key.pem, min_version: "1.0"}`, "")
	try := func(addr string, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		args = append([]string{"s_client", "-starttls", "smtp", "-connect", addr, "-brief"}, args...)
		cmd := exec.CommandContext(ctx, openssl, args...)
		cmd.Stdin = strings.NewReader("QUIT\r\n")
		out, _ := cmd.CombinedOutput() // it fails when nothing is agreed on
		version, suite := "", ""
		for line := range strings.SplitSeq(string(out), "\n") {
			if v, ok := strings.CutPrefix(line, "Protocol version: "); ok {
				version = v
			}
			if v, ok := strings.CutPrefix(line, "Ciphersuite: "); ok {
				suite = v
			}
		}
		return strings.TrimSpace(version + " " + suite)
	}
	legacy := []string{"-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"}
	for _, c := range []struct {
		name        string
		args        []string
		want, loose string // beginnings; empty: refused
	}{
		{"TLS 1.0", append([]string{"-tls1"}, legacy...), "", "TLSv1 ECDHE-"},
		{"TLS 1.1", append([]string{"-tls1_1"}, legacy...), "", "TLSv1.1 ECDHE-"},
		{"TLS 1.2", []string{"-tls1_2"}, "TLSv1.2 ECDHE-ECDSA-", "TLSv1.2 ECDHE-ECDSA-"},
		{"TLS 1.3", []string{"-tls1_3"}, "TLSv1.3 TLS_", "TLSv1.3 TLS_"},
		{"TLS 1.2, CBC with SHA-1", []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"}, "TLSv1.2 ECDHE-ECDSA-AES128-SHA", "TLSv1.2 ECDHE-"},
		{"TLS 1.2, no encryption", []string{"-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"}, "", ""},
		{"TLS 1.2, no authentication", []string{"-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"}, "", ""},
		{"TLS 1.2, static RSA", []string{"-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"}, "", ""},
		{"TLS 1.2, finite-field DH", []string{"-tls1_2", "-cipher", "kDHE:@SECLEVEL=0"}, "", ""},
		{"TLS 1.2, ChaCha20", []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"}, "TLSv1.2 ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2 ECDHE-"},
		{"TLS 1.3, AES 256", []string{"-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"}, "TLSv1.3 TLS_AES_256_GCM_SHA384", "TLSv1.3 TLS_"},
	} {
		for _, side := range []struct{ name, addr, want string }{{"default", strict.addr(0), c.want}, {`min_version: "1.0"`, loose.addr(0), c.loose}} {
			got := try(side.addr, c.args...)
			t.Logf("%-28s %-20s %s", c.name, side.name, got)
			if side.want == "" && got != "" || side.want != "" && !strings.HasPrefix(got, side.want) {
				t.Errorf("%s, %s: agreed on %q, want %q", c.name, side.name, got, side.want)
			}
		}
	}
}

// handshake is a STARTTLS, or TLS at once, and gives the SMTP client behind it.
func (s *tlsSite) handshake(addr string, implicit bool, c *tls.Config) (*smtp.Client, tls.ConnectionState) {
	s.t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if implicit {
		conn = tls.Client(conn, c)
	}
	client, err := smtp.NewClient(conn, "mx.example.org")
	if err == nil && !implicit {
		err = client.StartTLS(c)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	state, ok := client.TLSConnectionState()
	if !ok {
		s.t.Fatal("no TLS")
	}
	return client, state
}

// TestResumption: a ticket of one listener is good on another one, and outlives a renewal of the certificate.
func TestResumption(t *testing.T) {
	s := newTLSSite(t, `listen: ["127.0.0.1:0"], listeners: [{address: "127.0.0.1:0", tls: implicit}, {address: "127.0.0.1:0", tls: require}], `+pairOf, "")
	c := &tls.Config{RootCAs: s.ca.Pool(), ServerName: "mx.example.org", ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	if _, first := s.handshake(s.addr(0), false, c); first.DidResume {
		t.Error("the first session was resumed")
	}
	for n, implicit := range map[int]bool{1: true, 2: false} {
		client, state := s.handshake(s.addr(n), implicit, c)
		if err := client.Noop(); err != nil || !state.DidResume {
			t.Errorf("listener %d: resumed %t, %v", n, state.DidResume, err)
		}
	}
	s.certificate(time.Now().Add(-time.Minute), time.Now().Add(90*24*time.Hour), "mx.example.org", "renewed.example.org")
	s.d.tls.smtp.(interface{ Refresh() }).Refresh()
	if _, state := s.handshake(s.addr(0), false, c); !state.DidResume {
		t.Error("a renewal ended the session")
	}
	c.ClientSessionCache = nil
	if _, state := s.handshake(s.addr(0), false, c); state.PeerCertificates[0].VerifyHostname("renewed.example.org") != nil {
		t.Error("the old certificate is shown")
	}
}

// mayRelay tells how RCPT for an address outside is answered; code 0: it is taken.
func mayRelay(c *smtp.Client) (code string) {
	err := c.Mail("app@example.org")
	if err == nil {
		err = c.Rcpt("somebody@outside.example")
	}
	if err == nil {
		return "taken"
	}
	return err.Error()[:3]
}

// TestClientCertificates: a certificate of our own authority makes a client one of ours; somebody else's is no reason
// to break off, and none is not asked for on other listeners.
func TestClientCertificates(t *testing.T) {
	s := newTLSSite(t, `listen: ["127.0.0.1:0"], listeners: [{address: "127.0.0.1:0", client_certificate: ask}, {address: "127.0.0.1:0", tls: implicit, client_certificate: require}],
  tls: {cert: cert.pem, key: key.pem, client_ca: ca.pem, client_names: [app.example.org]}, smart_host: {url: "smtp+insecure://OUT"}, trusted: [192.0.2.0/24]`, "")
	stranger, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ca *mailtest.CA, name string) *tls.Certificate {
		cert, err := ca.Issue(name)
		if err != nil {
			t.Fatal(err)
		}
		return &cert
	}
	for _, c := range []struct {
		name string
		cert *tls.Certificate
		want [3]string // on the plain listener, on ask, on require
	}{
		{"ours", issue(s.ca, "app.example.org"), [3]string{"550", "taken", "taken"}},
		{"ours, for another name", issue(s.ca, "other.example.org"), [3]string{"550", "550", "530"}},
		{"somebody else's", issue(stranger, "app.example.org"), [3]string{"550", "550", "530"}},
		{"none", nil, [3]string{"550", "550", "530"}},
	} {
		for n, want := range c.want {
			asked := false
			conf := &tls.Config{RootCAs: s.ca.Pool(), ServerName: "mx.example.org", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				if c.cert == nil {
					return &tls.Certificate{}, nil
				}
				return c.cert, nil
			}}
			client, _ := s.handshake(s.addr(n), n == 2, conf)
			if got := mayRelay(client); got != want || asked != (n > 0) {
				t.Errorf("%s, listener %d: %s, want %s; asked for a certificate: %t", c.name, n, got, want, asked)
			}
		}
	}
}

// readyz asks what an orchestrator asks.
func (s *tlsSite) readyz(client *http.Client) (status int, warnings []string) {
	s.t.Helper()
	resp, err := client.Get(s.d.AdminURL() + "/readyz")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var out struct{ Warnings []string }
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, out.Warnings
}

func (s *tlsSite) metrics(client *http.Client) string {
	s.t.Helper()
	resp, err := client.Get(s.d.AdminURL() + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// TestAdminTLS: with a certificate the API speaks TLS and nothing else, and takes a new one while it runs.
func TestAdminTLS(t *testing.T) {
	s := newTLSSite(t, `listen: ["127.0.0.1:0"]`, `, tls: {cert: cert.pem, key: key.pem}`)
	pool := s.ca.Pool()
	client := func() *http.Client {
		return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	if status, w := s.readyz(client()); status != 200 || len(w) != 0 {
		t.Errorf("%d, %q", status, w)
	}
	resp, err := http.Get(strings.Replace(s.d.AdminURL(), "https:", "http:", 1) + "/readyz")
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Error("the API answers in clear")
		}
	}
	s.certificate(time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "127.0.0.1", "renewed.example.org")
	s.d.tls.admin.(interface{ Refresh() }).Refresh()
	conn, err := tls.Dial("tcp", s.d.adminListener.Addr().String(), &tls.Config{RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.ConnectionState().PeerCertificates[0].VerifyHostname("renewed.example.org") != nil {
		t.Error("the old certificate is shown")
	}
}

// send is one message to a user of ours, over STARTTLS when it is offered.
func (s *tlsSite) send() (encrypted bool) {
	s.t.Helper()
	c, err := smtp.Dial(s.addr(0))
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if encrypted, _ = c.Extension("STARTTLS"); encrypted {
		err = c.StartTLS(&tls.Config{InsecureSkipVerify: true})
	}
	err = errors.Join(err, c.Mail("a@client.example"), c.Rcpt("ann@example.org"))
	w, dataErr := c.Data()
	if err := errors.Join(err, dataErr); err != nil {
		s.t.Fatal(err)
	}
	_, err = io.WriteString(w, "Subject: x\r\n\r\nx\r\n")
	if err := errors.Join(err, w.Close()); err != nil {
		s.t.Fatal(err)
	}
	return encrypted
}

// TestCertificateEnds: what ends soon, has ended or cannot be replaced is said, and never in the way of mail.
func TestCertificateEnds(t *testing.T) {
	s := newTLSSite(t, `listen: ["127.0.0.1:0"], `+pairOf, "")
	refresh := s.d.tls.smtp.(interface{ Refresh() }).Refresh
	for _, c := range []struct {
		name, want string
		change     func()
	}{
		{"fresh", "", func() {}},
		{"last days", "the certificate of smtp.tls ends in 9 days", func() {
			s.certificate(time.Now().Add(-80*24*time.Hour), time.Now().Add(10*24*time.Hour-time.Minute), "mx.example.org")
		}},
		{"replaced by what has ended", "smtp.tls: read certificate", func() { s.certificate(time.Now().Add(-90*24*time.Hour), time.Now().Add(-time.Hour), "mx.example.org") }},
		{"renewed", "", func() { s.certificate(time.Now().Add(-time.Hour), time.Now().Add(90*24*time.Hour), "mx.example.org") }},
	} {
		c.change()
		refresh()
		status, w := s.readyz(http.DefaultClient)
		if text := strings.Join(w, "; "); status != 200 || c.want == "" && text != "" || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d, %q", c.name, status, w)
		}
		if !s.send() {
			t.Errorf("%s: STARTTLS is not offered", c.name)
		}
	}
	if m := s.metrics(http.DefaultClient); !strings.Contains(m, `crossfade_certificate_expiry_seconds{certificate="smtp.tls"} 7.7`) ||
		!strings.Contains(m, `crossfade_smtp_tls_handshakes_total{result="ok"} 4`) || !strings.Contains(m, `crossfade_certificate_problem{certificate="smtp.tls"} 0`) {
		t.Errorf("the metrics do not say it:\n%s", m)
	}
	tlsPoll(t, "the delivery", func() bool {
		return strings.Contains(s.metrics(http.DefaultClient), `crossfade_delivery_tls_total{policy="no-policy-found",result="starttls-not-supported",server="backends.old.smtp"}`)
	})
	var out admin.TLSReports
	token, err := os.ReadFile(filepath.Join(s.dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.d.AdminURL()+"/v1/tls", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || len(out.Reports) == 0 || out.Reports[0].Policies[0].Failures[0].Host != "127.0.0.1" {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestACME: without an authority the daemon starts and takes mail in clear and says why; with one, STARTTLS is offered
// as soon as there is a certificate.
func TestACME(t *testing.T) {
	ports := realtest.PebblePorts{HTTP01: realtest.FreePort(t), ALPN01: realtest.FreePort(t)}
	gone := newTLSSite(t, fmt.Sprintf(`listen: ["127.0.0.1:0"], tls: {acme: {directory: "https://127.0.0.1:1/dir", accept_terms: true, http01: "127.0.0.1:%d"}}`, realtest.FreePort(t)), "")
	tlsPoll(t, "the warning", func() bool {
		_, w := gone.readyz(http.DefaultClient)
		return strings.Contains(strings.Join(w, "; "), "smtp.tls: register with https://127.0.0.1:1/dir")
	})
	if gone.send() {
		t.Error("STARTTLS is offered without a certificate")
	}
	if m := gone.metrics(http.DefaultClient); !strings.Contains(m, `crossfade_acme_attempts_total{result="failed"} 1`) || !strings.Contains(m, `crossfade_certificate_problem{certificate="smtp.tls"} 1`) {
		t.Error("the metrics do not say it")
	}

	p := realtest.StartPebble(t, ports, 90*24*time.Hour)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	p.WriteRoots(t, ca)
	s := newTLSSite(t, fmt.Sprintf(`listen: ["127.0.0.1:0"], tls: {acme: {directory: %q, accept_terms: true, email: "postmaster@example.org", tls_alpn01: "127.0.0.1:%d", ca: %q}}`,
		p.Directory, ports.ALPN01, ca), "")
	tlsPoll(t, "a certificate", func() bool { return s.d.tls.smtp.Ready() })
	_, state := s.handshake(s.addr(0), false, &tls.Config{InsecureSkipVerify: true})
	if state.PeerCertificates[0].VerifyHostname("mx.example.org") != nil {
		t.Errorf("a certificate for %v", state.PeerCertificates[0].DNSNames)
	}
	if _, w := s.readyz(http.DefaultClient); len(w) != 0 {
		t.Errorf("%q", w)
	}
}

func tlsPoll(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestBackendVerification is every way to check a server, against a real handshake.
func TestBackendVerification(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, err := ca.Issue("old.example.org")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(dir, cert)
	if err != nil {
		t.Fatal(err)
	}
	var shown []*x509.Certificate
	sink, err := mailtest.NewSink(mailtest.SinkConfig{STARTTLS: true, TLS: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(s tls.ConnectionState) error { shown = s.PeerCertificates; return nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	key, whole := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo), sha256.Sum256(cert.Leaf.Raw)
	good, wrong := config.Pin{Key: true, Digest: key}, config.Pin{Digest: key}
	for _, c := range []struct {
		name string
		tls  config.BackendTLS
		host string
		fail string
	}{
		{"the system's roots", config.BackendTLS{}, "old.example.org", "unknown authority"},
		{"its CA", config.BackendTLS{CA: files.CA}, "old.example.org", ""},
		{"its CA, another name", config.BackendTLS{CA: files.CA}, "other.example.org", "other.example.org"},
		{"its CA, server_name", config.BackendTLS{CA: files.CA, ServerName: "old.example.org"}, "10.0.0.1", ""},
		{"its key, whatever its name", config.BackendTLS{Pins: []config.Pin{wrong, good}}, "other.example.org", ""},
		{"its certificate", config.BackendTLS{Pins: []config.Pin{{Digest: whole}}}, "old.example.org", ""},
		{"another pin", config.BackendTLS{Pins: []config.Pin{wrong}}, "old.example.org", "none of those that are pinned"},
		{"pin and CA, another name", config.BackendTLS{CA: files.CA, Pins: []config.Pin{good}}, "other.example.org", "other.example.org"},
		{"CA, another pin", config.BackendTLS{CA: files.CA, Pins: []config.Pin{wrong}}, "old.example.org", "none of those that are pinned"},
		{"anything", config.BackendTLS{InsecureSkipVerify: true}, "other.example.org", ""},
		{"with our certificate", config.BackendTLS{CA: files.CA, Cert: files.Cert, Key: files.Key}, "old.example.org", ""},
	} {
		conf, err := backendTLS(c.tls, c.host)
		if err != nil {
			t.Fatal(err)
		}
		shown = nil
		for n := range 2 { // the second time the session is resumed, and checked all the same
			conn, err := smtpclient.Dial(t.Context(), smtpclient.Target{Address: sink.Addr(), Mode: smtpclient.Required, TLS: conf})
			if c.fail == "" && err != nil || c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)) {
				t.Errorf("%s, connection %d: %v", c.name, n+1, err)
			}
			if conn != nil {
				conn.Quit(t.Context())
			}
		}
		if (len(shown) > 0) != (c.tls.Cert != "") {
			t.Errorf("%s: we showed %d certificates", c.name, len(shown))
		}
	}
}

// TestShownToServers: the end of a certificate that we show to a backend is watched too.
func TestShownToServers(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueValid(time.Now().AddDate(0, -3, 0), time.Now().AddDate(0, 0, 7), "relay.example.org")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	book := certs.NewBook(nil)
	for _, server := range []string{"backends.old.smtp", "backends.old.imap", "smtp.smart_host"} {
		conf, err := backendTLS(config.BackendTLS{Cert: files.Cert, Key: files.Key}, "old.example.org")
		if err != nil {
			t.Fatal(err)
		}
		(&ourTLS{book: book}).noting(server, conf)
	}
	got := book.Warnings()
	if len(got) != 2 || !strings.Contains(got[0], "backends.old.tls.cert ends in 6 days") || !strings.Contains(got[1], "smtp.smart_host.tls.cert") {
		t.Errorf("%q", got)
	}
}

// TestPostfixResumes: Postfix's own TLS client gets a session of us, and takes it up again.
func TestPostfixResumes(t *testing.T) {
	finger := realtest.Need(t, "posttls-finger")
	s := newTLSSite(t, `listen: ["127.0.0.1:0"], `+pairOf, "")
	_, port, err := net.SplitHostPort(s.addr(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "main.cf"), []byte("compatibility_level = 3.6\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, finger, "-c", "-r", "1", "-m", "1", "-l", "secure", "-F", filepath.Join(s.dir, "ca.pem"), "-L", "summary", "[127.0.0.1]:"+port, "mx.example.org")
	cmd.Env = append(os.Environ(), "MAIL_CONFIG="+s.dir)
	out, err := cmd.CombinedOutput()
	if n := strings.Count(string(out), "Verified TLS connection established"); err != nil || n != 2 || !strings.Contains(string(out), "Reusing old session") {
		t.Errorf("%d verified connections, %v\n%s", n, err, out)
	}
}
