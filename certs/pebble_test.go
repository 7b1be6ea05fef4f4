package certs_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/certs"
	"crossfade/internal/mailtest/realtest"
)

// run runs an ACME until the test ends.
func run(t *testing.T, a *certs.ACME) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// shown is the certificate that a handshake gets.
func shown(t *testing.T, a *certs.ACME) *x509.Certificate {
	t.Helper()
	c, err := a.Get(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

// talk is a log into the output of a test.
func talk(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func agree(string) bool { return true }

// TestPebble gets a certificate from a real ACME server in both ways, and renews it when two thirds of its time are over.
func TestPebble(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"http-01", "tls-alpn-01"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			ports := realtest.PebblePorts{HTTP01: realtest.FreePort(t), ALPN01: realtest.FreePort(t)}
			p := realtest.StartPebble(t, ports, 5*time.Second)
			cfg := certs.ACMEConfig{
				Name: "smtp.tls", Directory: p.Directory, Email: "postmaster@example.org", Names: []string{"mx.example.org", "mx2.example.org"},
				Dir: t.TempDir(), Logger: talk(t), Terms: agree, Roots: p.Roots, KeepKey: kind == "http-01",
			}
			if kind == "http-01" {
				cfg.HTTP01 = fmt.Sprintf("127.0.0.1:%d", ports.HTTP01)
			} else {
				cfg.ALPN01 = fmt.Sprintf("127.0.0.1:%d", ports.ALPN01)
			}
			a, err := certs.NewACME(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if a.Ready() {
				t.Error("ready without a certificate")
			}
			run(t, a)
			eventually(t, "a certificate", a.Ready)
			first := shown(t, a)
			roots := p.IssuedRoots(t)
			pair, _ := a.Get(nil)
			between := x509.NewCertPool()
			for _, der := range pair.Certificate[1:] {
				if c, err := x509.ParseCertificate(der); err == nil {
					between.AddCert(c)
				}
			}
			for _, name := range cfg.Names {
				if _, err := first.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			eventually(t, "a renewal", func() bool { return shown(t, a).SerialNumber.Cmp(first.SerialNumber) != 0 })
			if same := first.PublicKey.(*ecdsa.PublicKey).Equal(shown(t, a).PublicKey); same != cfg.KeepKey {
				t.Errorf("the key is the same: %t", same)
			}
			if st := a.Status(); st.Problem != "" || st.Ends.IsZero() {
				t.Errorf("%+v", st)
			}
			again, err := certs.NewACME(cfg)
			if err != nil || !again.Ready() {
				t.Errorf("a new start has no certificate: %v", err)
			}
			modes(t, cfg.Dir)
		})
	}
}

// modes: keys are for our user alone.
func modes(t *testing.T, dir string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
	if len(files) != 2 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
}

// TestTwoNodes: a node answers http-01 for another one that has the same account.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	ports := realtest.PebblePorts{HTTP01: realtest.FreePort(t), ALPN01: realtest.FreePort(t)}
	p := realtest.StartPebble(t, ports, time.Hour)
	cfg := certs.ACMEConfig{Name: "smtp.tls", Directory: p.Directory, Names: []string{"mx.example.org"}, Dir: t.TempDir(), Logger: talk(t), Terms: agree, Roots: p.Roots,
		HTTP01: fmt.Sprintf("127.0.0.1:%d", ports.HTTP01)}
	first, err := certs.NewACME(cfg)
	if err != nil {
		t.Fatal(err)
	}
	second := cfg
	second.Dir, second.HTTP01 = t.TempDir(), "127.0.0.1:0" // the authority never asks this one
	if err := os.CopyFS(second.Dir, os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	other, err := certs.NewACME(second)
	if err != nil {
		t.Fatal(err)
	}
	run(t, first)
	eventually(t, "the first node's certificate", first.Ready)
	run(t, other)
	eventually(t, "the second node's certificate", other.Ready)
	if shown(t, first).SerialNumber.Cmp(shown(t, other).SerialNumber) == 0 {
		t.Error("the nodes have the same certificate")
	}
}

// TestPebbleRefuses: the authority does not reach us. What there is stays in use, the status says why, and when the way
// is free again the certificate is had.
func TestPebbleRefuses(t *testing.T) {
	t.Parallel()
	ports := realtest.PebblePorts{HTTP01: realtest.FreePort(t), ALPN01: realtest.FreePort(t)}
	p := realtest.StartPebble(t, ports, time.Hour)
	attempts := make(chan bool, 10)
	cfg := certs.ACMEConfig{Name: "smtp.tls", Directory: p.Directory, Names: []string{"mx.example.org"}, Dir: t.TempDir(), Logger: talk(t), Terms: agree, Roots: p.Roots,
		HTTP01: "127.0.0.1:0", Attempted: func(ok bool) { attempts <- ok }}
	a, err := certs.NewACME(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, a)
	if <-attempts {
		t.Fatal("a certificate without an answer to the challenge")
	}
	eventually(t, "the problem", func() bool { return a.Status().Problem != "" })
	st := a.Status()
	if !strings.Contains(st.Problem, "prove by http-01 that mx.example.org is ours") || st.Since.IsZero() || time.Until(st.Next) < 30*time.Second {
		t.Errorf("%+v", st)
	}
	if _, err := a.Get(nil); err == nil {
		t.Error("a certificate out of nothing")
	}
}

// TestUnkept: a certificate for which there is no room on the disk is used all the same, and no other is asked for.
func TestUnkept(t *testing.T) {
	t.Parallel()
	ports := realtest.PebblePorts{HTTP01: realtest.FreePort(t), ALPN01: realtest.FreePort(t)}
	p := realtest.StartPebble(t, ports, time.Hour)
	attempts := make(chan bool, 10)
	dir := filepath.Join(t.TempDir(), "acme")
	a, err := certs.NewACME(certs.ACMEConfig{Name: "smtp.tls", Directory: p.Directory, Names: []string{"mx.example.org"}, Dir: dir, Logger: talk(t), Terms: agree, Roots: p.Roots,
		HTTP01: fmt.Sprintf("127.0.0.1:%d", ports.HTTP01), Attempted: func(ok bool) { attempts <- ok }})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // in its place
		t.Fatal(err)
	}
	run(t, a)
	if !<-attempts || !a.Ready() {
		t.Error("it is not used")
	}
	eventually(t, "the problem", func() bool { return strings.Contains(a.Status().Problem, "is lost with the next start") })
	eventually(t, "the plan", func() bool { return time.Until(a.Status().Next) > 30*time.Minute })
}

// TestTermsNotAccepted: without consent no account is made.
func TestTermsNotAccepted(t *testing.T) {
	t.Parallel()
	ports := realtest.PebblePorts{HTTP01: realtest.FreePort(t), ALPN01: realtest.FreePort(t)}
	p := realtest.StartPebble(t, ports, time.Hour)
	attempts := make(chan bool, 10)
	a, err := certs.NewACME(certs.ACMEConfig{Name: "smtp.tls", Directory: p.Directory, Names: []string{"mx.example.org"}, Dir: t.TempDir(), Roots: p.Roots,
		HTTP01: fmt.Sprintf("127.0.0.1:%d", ports.HTTP01), Terms: func(string) bool { return false }, Attempted: func(ok bool) { attempts <- ok }})
	if err != nil {
		t.Fatal(err)
	}
	run(t, a)
	if <-attempts {
		t.Error("registered without consent")
	}
}

// TestAuthorityDown: nobody there, one that says too much was asked, and one that answers nonsense.
func TestAuthorityDown(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "https://" + l.Addr().String() + "/dir"
	_ = l.Close()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"nonsense": true`)
	})}
	go func() { _ = srv.Serve(busy) }()
	t.Cleanup(func() { _ = srv.Close() })
	for _, dir := range []string{gone, "http://" + busy.Addr().String() + "/dir"} {
		attempts := make(chan bool, 10)
		a, err := certs.NewACME(certs.ACMEConfig{Name: "smtp.tls", Directory: dir, Names: []string{"mx.example.org"}, Dir: t.TempDir(), Terms: agree,
			HTTP01: "127.0.0.1:0", Attempted: func(ok bool) { attempts <- ok }})
		if err != nil {
			t.Fatal(err)
		}
		run(t, a)
		if <-attempts {
			t.Error("a certificate from nobody")
		}
		eventually(t, "the problem", func() bool { return strings.Contains(a.Status().Problem, "register with "+dir) })
	}
}
