package daemon_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crossfade/config"
	"crossfade/internal/daemon"
)

// bearerServer is as much of an IMAP server as a login by XOAUTH2 needs. It
// takes the initial response that is given.
func bearerServer(t *testing.T, user, token string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	want := base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01"))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { bearerDialogue(c, want) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func bearerDialogue(c net.Conn, want string) {
	defer c.Close()
	fmt.Fprint(c, "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] ready\r\n")
	for lines := bufio.NewScanner(c); lines.Scan(); {
		tag, cmd, _ := strings.Cut(lines.Text(), " ")
		switch verb, arg, _ := strings.Cut(cmd, " "); {
		case verb == "AUTHENTICATE" && arg != "XOAUTH2 "+want:
			fmt.Fprintf(c, "%s NO [AUTHENTICATIONFAILED] %s is wrong\r\n", tag, arg)
			continue
		case verb == "LIST":
			fmt.Fprint(c, "* LIST () \"/\" INBOX\r\n")
		case verb == "LOGOUT":
			fmt.Fprintf(c, "* BYE\r\n%s OK\r\n", tag)
			return
		}
		fmt.Fprintf(c, "%s OK [CAPABILITY IMAP4rev1] done\r\n", tag)
	}
}

// TestCheckTriesTokenLogins: from the configuration file over the token endpoint
// to the server, and what the operator reads when it fails.
func TestCheckTriesTokenLogins(t *testing.T) {
	ends := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/tenant.example/oauth2/v2.0/token" || r.PostFormValue("client_secret") != "hunter2-secret" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000215"}`)
			return
		}
		fmt.Fprint(w, `{"access_token":"token-of-the-application","expires_in":3599}`)
	}))
	defer ends.Close()
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("secret", "hunter2-secret\n")
	put("anna@company.test.tok", `{"access_token":"token-of-anna-alone"}`)
	cfg, err := config.Parse(filepath.Join(dir, "crossfade.yaml"), fmt.Appendf(nil, `hostname: mx.company.test
domains: [company.test]
backends:
  old:
    smtp: smtp://127.0.0.1:9
    imap: imap+insecure://%s
    imap_login: {as: xoauth2, token: {microsoft: {tenant: tenant.example, client_id: c, secret_file: secret, authority: "%s"}}}
  new:
    smtp: smtp://127.0.0.1:19
    imap: imap+insecure://%s
    imap_login: {as: xoauth2, token: {file: "{user}.tok"}}
`, bearerServer(t, "anna@company.test", "token-of-the-application"), ends.URL, bearerServer(t, "anna@company.test", "token-of-anna-alone")))
	if err != nil {
		t.Fatal(err)
	}
	findings := func() (old, neu daemon.Finding) {
		for _, f := range daemon.Check(t.Context(), cfg, "anna@company.test") {
			if strings.Contains(fmt.Sprint(f), "hunter2") || strings.Contains(fmt.Sprint(f), "token-of") {
				t.Errorf("a secret shows: %+v", f)
			}
			switch {
			case strings.HasPrefix(f.What, "backends.old.imap "):
				old = f
			case strings.HasPrefix(f.What, "backends.new.imap "):
				neu = f
			}
		}
		return old, neu
	}
	if old, neu := findings(); !old.OK || !neu.OK {
		t.Errorf("%+v\n%+v", old, neu)
	}
	put("secret", "hunter2-other")
	put("anna@company.test.tok", "token-of-the-past")
	old, neu := findings()
	for _, want := range []string{"anna@company.test", "backends.old.imap_login.token", "invalid_client", "AADSTS7000215", "app registration"} {
		if old.OK || !strings.Contains(old.Text, want) {
			t.Errorf("%+v lacks %q", old, want)
		}
	}
	for _, want := range []string{"anna@company.test", "AUTHENTICATIONFAILED", "docs/logins.md"} {
		if neu.OK || !strings.Contains(neu.Text, want) {
			t.Errorf("%+v lacks %q", neu, want)
		}
	}
}
