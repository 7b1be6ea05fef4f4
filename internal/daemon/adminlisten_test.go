package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/internal/mailtest"
)

// serveTest runs a daemon until the test ends.
func serveTest(t *testing.T, dir, text string) *Daemon {
	t.Helper()
	d, _ := serveLogged(t, parse(t, dir, text), nil, Options{})
	return d
}

// serveLogged runs a daemon until the test ends, or until stop.
func serveLogged(t *testing.T, cfg *config.Config, log *slog.Logger, opts Options) (d *Daemon, stop func()) {
	t.Helper()
	d, err := New(cfg, log, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-d.Started():
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("the daemon does not start")
	}
	return d, stop
}

// fileClient is a client with the token of the token file.
func fileClient(t *testing.T, d *Daemon) *admin.Client {
	t.Helper()
	tokens, err := admin.LoadTokens(d.cfg.Admin.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := admin.NewClient(d.AdminURL(), tokens[0].Value())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestAdminSpeaksTLS: with admin.tls the API is served under TLS and in no other way.
// It once was plain HTTP on a public address, whatever admin.tls said.
func TestAdminSpeaksTLS(t *testing.T) {
	dir := t.TempDir()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(dir, cert)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(reloadConfig, `{listen: "127.0.0.1:0", token`, `{listen: "0.0.0.0:0", tls: {cert: "`+files.Cert+`", key: "`+files.Key+`"}, token`, 1)
	d := serveTest(t, dir, text)
	_, port, err := net.SplitHostPort(d.adminListener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://127.0.0.1:" + port + "/healthz")
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("the API answers over plain HTTP")
		}
	}
	tokens, err := admin.LoadTokens(d.cfg.Admin.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := admin.NewClient("https://127.0.0.1:"+port, tokens[0].Value())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	chain, err := os.ReadFile(files.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.TrustCertificate(append(chain, ca.PEM()...)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stats(t.Context()); err != nil {
		t.Errorf("over TLS: %v", err)
	}
}

// TestAdminAddress: what is not a loopback address needs TLS or a word of the
// operator, in the configuration and when it is bound.
func TestAdminAddress(t *testing.T) {
	d, err := New(parse(t, t.TempDir(), reloadConfig), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for addr, ok := range map[net.Addr]bool{
		&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}: true, &net.TCPAddr{IP: net.IPv4(127, 9, 9, 9)}: true, &net.TCPAddr{IP: net.IPv6loopback}: true,
		&net.TCPAddr{IP: net.IPv4zero}: false, &net.TCPAddr{IP: net.IPv6unspecified}: false, &net.TCPAddr{}: false,
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}: false, &net.UnixAddr{Name: "/run/x", Net: "unix"}: false,
	} {
		if err := d.mayServeAdmin(addr); (err == nil) != ok {
			t.Errorf("%s %s: %v", addr.Network(), addr, err)
		}
	}
	d.cfg.Admin.Insecure = true
	if err := d.mayServeAdmin(&net.TCPAddr{IP: net.IPv4zero}); err != nil {
		t.Errorf("insecure: %v", err)
	}
}

// TestTokensLive: made over the API, kept as hashes, valid after a restart, and
// revoked; the token file is read again at a reload.
func TestTokensLive(t *testing.T) {
	dir := t.TempDir()
	var made admin.TokenMade
	t.Run("first", func(t *testing.T) {
		d := serveTest(t, dir, reloadConfig)
		c := fileClient(t, d)
		var err error
		if made, err = c.AddToken(t.Context(), admin.TokenRequest{Name: "mon", Role: admin.RoleRead}); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(d.cfg.Admin.TokenFile, d.cfg.Admin.TokenFile+".away"); err != nil {
			t.Fatal(err)
		}
		tok, err := admin.MakeToken("ops", admin.RoleAdmin)
		if err != nil {
			t.Fatal(err)
		}
		if err := admin.AddTokenLine(d.cfg.Admin.TokenFile, tok); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Reload(t.Context(), parse(t, dir, reloadConfig)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Stats(t.Context()); err == nil {
			t.Error("a token that was taken out of the file is still valid")
		}
		ops, err := admin.NewClient(d.AdminURL(), tok.Value())
		if err != nil {
			t.Fatal(err)
		}
		defer ops.Close()
		if list, err := ops.Tokens(t.Context()); err != nil || len(list) != 2 {
			t.Errorf("%v %v", list, err)
		}
		if err := os.Chmod(d.cfg.Admin.TokenFile, 0o622); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Reload(t.Context(), parse(t, dir, reloadConfig)); err == nil || !strings.Contains(err.Error(), "token file") {
			t.Errorf("a reload with a token file that cannot be used says %v", err)
		}
		if err := os.Rename(d.cfg.Admin.TokenFile+".away", d.cfg.Admin.TokenFile); err != nil {
			t.Fatal(err)
		}
		if err := d.store.SaveLedger(t.Context(), tokenRecords, "torn", []byte(`{"name":"to`)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("second", func(t *testing.T) {
		d := serveTest(t, dir, reloadConfig)
		mon, err := admin.NewClient(d.AdminURL(), made.Token)
		if err != nil {
			t.Fatal(err)
		}
		defer mon.Close()
		if _, err := mon.Stats(t.Context()); err != nil {
			t.Errorf("after a restart: %v", err)
		}
		if _, err := mon.Tokens(t.Context()); err == nil {
			t.Error("a token that may read lists the tokens")
		}
		if err := fileClient(t, d).RevokeToken(t.Context(), "mon", "gone"); err != nil {
			t.Fatal(err)
		}
		if _, err := mon.Stats(t.Context()); err == nil {
			t.Error("a revoked token is still valid")
		}
		c := fileClient(t, d)
		list, err := c.Tokens(t.Context())
		if err != nil || !slices.ContainsFunc(list, func(i admin.TokenInfo) bool { return i.Name == "torn" && strings.Contains(i.By, "damaged") }) {
			t.Errorf("a damaged record: %+v, %v", list, err)
		}
		if err := c.RevokeToken(t.Context(), "torn", "damaged"); err != nil {
			t.Error(err)
		}
	})
	log, err := admin.CheckAuditLog([]string{filepath.Join(dir, "data", "audit.jsonl")}, "", admin.AuditHead{})
	if err != nil || log.Bad != nil || log.Lines != 6 || log.Unsigned > 0 || len(log.Keys) != 1 || len(log.Notes) > 0 { // two starts, a token made, two revoked, a request denied
		t.Errorf("the audit log: %+v %v %v", log, log.Bad, err)
	}
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if strings.Contains(string(text), made.Token[4:]) {
			t.Errorf("the token is in %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
