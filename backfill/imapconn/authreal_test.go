package imapconn_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crossfade/backfill/imapconn"
	"crossfade/backfill/imapconn/token"
	"crossfade/internal/mailtest/realtest"
)

// TestDovecotLogins: the mechanisms against a real server. Its tokens are
// looked up at an introspection endpoint of ours.
func TestDovecotLogins(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.String()+r.Header.Get("Authorization"), "token-of-anna") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"email":"anna@example.org","active":true}`))
	}))
	defer srv.Close()
	dir := t.TempDir()
	ext := filepath.Join(dir, "oauth2.conf")
	conf := "introspection_url = " + srv.URL + "/\nintrospection_mode = auth\nforce_introspection = yes\nusername_attribute = email\n"
	if err := os.WriteFile(ext, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	d := realtest.StartDovecot(t, realtest.DovecotOptions{Extra: "auth_mechanisms = plain login scram-sha-256 xoauth2 oauthbearer\n" +
		"passdb {\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = " + ext + "\n}\n"})
	open := func(l imapconn.Login) error {
		s, err := (&imapconn.Dialer{}).Open(t.Context(), imapconn.Account{Server: imapconn.Server{Address: d.IMAPAddr, Mode: imapconn.TLSNone}, Login: l})
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.List()
		return err
	}
	for _, m := range []imapconn.Mechanism{imapconn.MechanismAuto, imapconn.MechanismPlain, imapconn.MechanismLogin, imapconn.MechanismSCRAM} {
		if err := open(imapconn.Login{User: "anna@example.org", Password: "secret", Mechanism: m}); err != nil {
			t.Errorf("%q: %v", m, err)
		}
		if err := open(imapconn.Login{User: "anna@example.org", Password: "wrong-one", Mechanism: m}); err == nil || !strings.Contains(err.Error(), "AUTHENTICATIONFAILED") || strings.Contains(err.Error(), "wrong-one") {
			t.Errorf("%q with a wrong password: %v", m, err)
		}
	}
	path := filepath.Join(dir, "token")
	for _, m := range []imapconn.Mechanism{imapconn.MechanismXOAuth2, imapconn.MechanismOAuthBearer} {
		for text, good := range map[string]bool{"token-of-anna": true, "another-token-0": false} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := open(imapconn.Login{User: "anna@example.org", Mechanism: m, Tokens: token.New("test", token.File{Path: path})})
			if good != (err == nil) || err != nil && strings.Contains(err.Error(), "another-token") {
				t.Errorf("%s, %s: %v", m, text, err)
			}
		}
	}
}
