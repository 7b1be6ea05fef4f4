package token

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestGoogleAsksForOneUser(t *testing.T) {
	s := newStandIn(t)
	g := s.google(t)
	tok, err := g.Fetch(t.Context(), "anna@example.org")
	if err != nil || tok.Value != "token-1" || time.Until(tok.Expires) < 59*time.Minute || time.Until(tok.Expires) > time.Hour {
		t.Fatalf("%q until %s, %v", tok.Value, tok.Expires, err)
	}
	form := s.seen()[0]
	if form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		t.Errorf("%v", form)
	}
	header, claims := readJWT(t, form.Get("assertion"))
	if header["alg"] != "RS256" || header["kid"] != "kid-1" || header["typ"] != "JWT" {
		t.Errorf("header %v", header)
	}
	want := map[string]any{"iss": "mover@project.iam.example", "sub": "anna@example.org", "scope": "https://mail.google.com/", "aud": s.URL + "/token"}
	for k, v := range want {
		if claims[k] != v {
			t.Errorf("%s is %v, want %v", k, claims[k], v)
		}
	}
	iat, exp := claims["iat"].(float64), claims["exp"].(float64)
	if now := float64(time.Now().Unix()); iat > now || exp <= now || exp-iat > 3600 {
		t.Errorf("from %v to %v", iat, exp)
	}
	if _, err := g.Fetch(t.Context(), "anna"); err == nil || !strings.Contains(err.Error(), "old_login") || len(s.seen()) != 1 {
		t.Errorf("a name that is no address: %v", err)
	}
}

func TestGoogleKeyFiles(t *testing.T) {
	key := strings.ReplaceAll(pemKey(t), "\n", `\n`)
	good := func(uri string) string {
		return `{"type":"service_account","client_email":"a@b","private_key":"` + key + `","token_uri":"` + uri + `"}`
	}
	for text, want := range map[string]string{
		"hunter2": "not the JSON file",
		`{"type":"authorized_user","client_email":"a@b"}`: "not the key of a service account",
		good("http://oauth.example/token"):                "not https",
		good(""):                                          "not a URL",
		good("https://u:hunter2@oauth.example/token"):     "no user, password",
		`{"type":"service_account","client_email":"a@b","private_key":"hunter2","token_uri":"https://oauth.example"}`:                   "no private key in PEM",
		strings.Replace(good("https://oauth.example"), key[60:90], "hunter2", 1):                                                        "no private key in PEM",
		`{"type":"service_account","client_email":"a@b","private_key":["hunter2"],"token_uri":"https://oauth.example"}`:                 "not the JSON file",
		`{"type":"service_account","client_email":"a@b","token_uri":"https://x","private_key":"` + strings.Repeat("x", maxToken) + `"}`: "too large",
	} {
		_, err := NewGoogle(write(t, "sa.json", text), "", nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), key[60:90])) {
			t.Errorf("the message shows the key: %v", err)
		}
	}
	if _, err := NewGoogle(filepath.Join(t.TempDir(), "absent"), "", nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := NewGoogle(write(t, "sa.json", good("http://127.0.0.1:1/token")), "", nil); err != nil {
		t.Errorf("this machine itself: %v", err)
	}
}

func TestMicrosoftSecret(t *testing.T) {
	s := newStandIn(t)
	m := s.microsoft(t, MicrosoftOptions{Secret: secret("hunter2")})
	if tok, err := m.Fetch(t.Context(), "ignored@example.org"); err != nil || tok.Value != "token-1" || m.PerUser() {
		t.Fatalf("%q, %v", tok.Value, err)
	}
	want := url.Values{"grant_type": {"client_credentials"}, "client_id": {"client-1"}, "client_secret": {"hunter2"}, "scope": {"https://outlook.office365.com/.default"}}
	if got := s.seen()[0]; got.Encode() != want.Encode() {
		t.Errorf("%v", got)
	}
	if want := s.URL + "/tenant.example/oauth2/v2.0/token"; m.url != want {
		t.Errorf("%s, want %s", m.url, want)
	}
}

func TestMicrosoftCertificate(t *testing.T) {
	s := newStandIn(t)
	cert, key, der := certificate(t, time.Now().Add(time.Hour))
	m := s.microsoft(t, MicrosoftOptions{CertFile: cert, KeyFile: key})
	ids := map[any]bool{}
	for range 2 {
		if _, err := m.Fetch(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, form := range s.seen() {
		if form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || form.Has("client_secret") {
			t.Errorf("%v", form)
		}
		header, claims := readJWT(t, form.Get("client_assertion"))
		thumb := sha256.Sum256(der)
		if header["alg"] != "PS256" || header["x5t#S256"] != base64.RawURLEncoding.EncodeToString(thumb[:]) {
			t.Errorf("header %v", header)
		}
		if claims["iss"] != "client-1" || claims["sub"] != "client-1" || claims["aud"] != m.url {
			t.Errorf("claims %v", claims)
		}
		ids[claims["jti"]] = true
	}
	if len(ids) != 2 {
		t.Errorf("an assertion was used twice: %v", ids)
	}
}

func TestMicrosoftOptionsThatCannotWork(t *testing.T) {
	ended, key, _ := certificate(t, time.Now().Add(-time.Hour))
	for want, o := range map[string]MicrosoftOptions{
		"neither an id nor a domain": {Tenant: "a/../b", Secret: secret("x")},
		"not https":                  {Tenant: "t", Authority: "http://login.example", Secret: secret("x")},
		"is gone":                    {Tenant: "t", Secret: func() (string, error) { return "", errors.New("is gone") }},
		"ended at":                   {Tenant: "t", CertFile: ended, KeyFile: key},
		"no certificate in PEM":      {Tenant: "t", CertFile: key, KeyFile: key},
		"no private key in PEM":      {Tenant: "t", CertFile: ended, KeyFile: ended},
	} {
		if _, err := NewMicrosoft(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestWrongAnswers: what an endpoint may say in place of a token, and that
// nothing of what was sent comes back in an error.
func TestWrongAnswers(t *testing.T) {
	say := func(status int, text string) func(http.ResponseWriter, url.Values) {
		return func(w http.ResponseWriter, form url.Values) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, strings.ReplaceAll(text, "SENT", form.Get("client_secret")))
		}
	}
	tests := map[string]struct {
		answer  func(http.ResponseWriter, url.Values)
		want    string
		asked   int
		lasting bool
	}{
		"wrong secret":        {say(401, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret SENT provided."}`), "AADSTS7000215", 1, true},
		"a part of it":        {say(401, `{"error":"invalid_client","error_description":"secret beginning with hunter2-is-lo"}`), "<redacted>", 1, true},
		"withdrawn":           {say(400, `{"error":"invalid_grant","error_description":"gone"}`), "HTTP 400 invalid_grant: gone", 1, true},
		"no consent":          {say(400, `{"error":"unauthorized_client"}`), "IMAP.AccessAsApp", 1, true},
		"no OAuth error":      {say(403, `<html>SENT</html>`), "HTTP 403", 1, true},
		"trouble":             {say(503, `<html>`), "HTTP 503", 3, false},
		"trouble, as OAuth":   {say(400, `{"error":"temporarily_unavailable"}`), "temporarily_unavailable", 3, false},
		"a login page":        {say(200, `<html>log in</html>`), "not JSON", 3, false},
		"nothing":             {say(200, ``), "not JSON", 3, false},
		"no token":            {say(200, `{"expires_in":3600}`), "no token", 3, false},
		"a token of spaces":   {say(200, `{"access_token":"a b"}`), "not a token", 3, false},
		"another type":        {say(200, `{"access_token":"x","token_type":"mac"}`), `"mac"`, 3, false},
		"an odd type of JSON": {say(200, `{"access_token":["SENT"]}`), "cannot be read", 3, false},
		"without end":         {say(200, strings.Repeat(" ", maxToken+1)), "too large", 3, false},
		"cut short": {func(w http.ResponseWriter, _ url.Values) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"access_token":"`)
		}, "unexpected EOF", 3, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStandIn(t)
			s.answer = func(_ int, form url.Values, w http.ResponseWriter, _ *http.Request) { tt.answer(w, form) }
			m := s.microsoft(t, MicrosoftOptions{Secret: secret("hunter2-is-long-enough")})
			_, err := m.Fetch(t.Context(), "")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the secret shows: %v", err)
			}
			var e *Error
			if !errors.As(err, &e) || e.Lasting != tt.lasting {
				t.Errorf("%+v", e)
			}
			if n := len(s.seen()); n != tt.asked {
				t.Errorf("asked %d times instead of %d", n, tt.asked)
			}
		})
	}
}

// TestGoogleSaysWhatToDo: the assertion is a credential, too.
func TestGoogleSaysWhatToDo(t *testing.T) {
	s := newStandIn(t)
	for code, want := range map[string]string{"unauthorized_client": "delegate the scope https://mail.google.com/ to the client id 1234567890", "invalid_grant": "active mailbox"} {
		s.answer = func(_ int, form url.Values, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"error":%q,"error_description":"no %s"}`, code, form.Get("assertion")[:300])
		}
		_, err := s.google(t).Fetch(t.Context(), "anna@example.org")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "anna@example.org") || strings.Contains(err.Error(), "eyJ") {
			t.Errorf("%v", err)
		}
	}
}

func TestTriesAgain(t *testing.T) {
	s := newStandIn(t)
	s.answer = func(n int, _ url.Values, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			w.WriteHeader(500)
			return
		}
		fmt.Fprint(w, `{"access_token":"second","expires_in":"3599"}`) // a number in quotes, as some write it
	}
	tok, err := s.microsoft(t, MicrosoftOptions{Secret: secret("x")}).Fetch(t.Context(), "")
	if err != nil || tok.Value != "second" || time.Until(tok.Expires) < 59*time.Minute {
		t.Errorf("%q %s %v", tok.Value, tok.Expires, err)
	}
}

// TestRetryAfter: a long one ends the renewal, for others who ask, too.
func TestRetryAfter(t *testing.T) {
	s := newStandIn(t)
	s.answer = func(_ int, _ url.Values, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "120")
		w.WriteHeader(429)
		fmt.Fprint(w, `{"error":"rate_limited"}`)
	}
	g := s.google(t)
	for _, user := range []string{"a@example.org", "b@example.org"} {
		_, err := g.Fetch(t.Context(), user)
		var e *Error
		if !errors.As(err, &e) || e.Lasting || e.RetryAfter < 100*time.Second {
			t.Errorf("%+v", err)
		}
	}
	if n := len(s.seen()); n != 1 {
		t.Errorf("asked %d times", n)
	}
	now := time.Now()
	for text, want := range map[string]time.Duration{"": 0, "-1": 0, "x": 0, "7": 7 * time.Second, now.Add(time.Hour).UTC().Format(http.TimeFormat): time.Hour, "999999999": 24 * time.Hour} {
		if got := retryAfter(text, now); got > want || got < want-2*time.Second {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestSlowEndpoint(t *testing.T) {
	s := newStandIn(t)
	s.answer = func(_ int, _ url.Values, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	m := s.microsoft(t, MicrosoftOptions{Secret: secret("x")})
	m.endpoint.client.Timeout = 400 * time.Millisecond // time to connect and ask, on a busy machine too
	if _, err := m.Fetch(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "can it be reached") || len(s.seen()) != requests {
		t.Errorf("%v after %d requests", err, len(s.seen()))
	}
	m.endpoint.client.Timeout = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.Fetch(ctx, ""); err == nil {
		t.Error("no error")
	}
}

// TestCredentialsStayWhereTheyBelong: no redirect is followed, and nobody else's
// certificate is taken.
func TestCredentialsStayWhereTheyBelong(t *testing.T) {
	thief, s := newStandIn(t), newStandIn(t)
	s.answer = func(_ int, _ url.Values, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
	}
	if _, err := s.microsoft(t, MicrosoftOptions{Secret: secret("x")}).Fetch(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "HTTP 307") {
		t.Error(err)
	}
	m, err := NewMicrosoft(MicrosoftOptions{Tenant: "t", ClientID: "c", Authority: thief.URL, Secret: secret("x")})
	if err != nil {
		t.Fatal(err)
	}
	quick(t, m.endpoint)
	if _, err := m.Fetch(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
	if n := len(thief.seen()); n != 0 {
		t.Errorf("%d requests went astray", n)
	}
	for _, u := range []string{"http://login.example/", "ftp://x", "x", "", "http://127.0.0.1.example/", "https://x/#f"} {
		if CheckURL(u) == nil {
			t.Errorf("%q is taken", u)
		}
	}
	for _, u := range []string{"https://login.example/t", "http://127.0.0.1:1/", "http://[::1]/", "http://localhost:80/"} {
		if err := CheckURL(u); err != nil {
			t.Error(err)
		}
	}
}

func TestFile(t *testing.T) {
	path := write(t, "tok", "first\n")
	f := File{Path: path}
	if tok, err := f.Fetch(t.Context(), ""); err != nil || tok.Value != "first" || f.PerUser() {
		t.Errorf("%q %v", tok.Value, err)
	}
	for text, want := range map[string]string{
		`{"access_token":"second","expires_in":3600}`: "second", "\ufeff third \r\n": "third",
		`{"access_token":"x","expiry":"2001-01-01T00:00:00Z"}`: "ended at 2001-01-01T00:00:00Z", `{"access_token":"x","expires_at":1000000000}`: "ended at 2001-09-09",
		"": "no token", "hunter2 hunter2": "not a token", "{hunter2": "cannot be read", strings.Repeat("x", maxToken+1): "too large",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		tok, err := f.Fetch(t.Context(), "")
		if tok.Value != want && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40q: %q, %v", text, tok.Value, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the file shows: %v", err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "anna@example.org.tok"), []byte("hers"), 0o600); err != nil {
		t.Fatal(err)
	}
	f = File{Path: filepath.Join(dir, "{user}.tok")}
	if tok, err := f.Fetch(t.Context(), "anna@example.org"); err != nil || tok.Value != "hers" || !f.PerUser() {
		t.Errorf("%q %v", tok.Value, err)
	}
	for _, user := range []string{"", "..", "../anna@example.org", "a/b", `a\b`, "bob@example.org"} {
		if _, err := f.Fetch(t.Context(), user); err == nil {
			t.Errorf("%q has a token", user)
		}
	}
}

func TestCommand(t *testing.T) {
	run := func(user string, args ...string) (Token, error) { return Command{Args: args}.Fetch(t.Context(), user) }
	if tok, err := run("", "/bin/echo", "tok"); err != nil || tok.Value != "tok" || time.Until(tok.Expires) > unsaid {
		t.Errorf("%q %v", tok.Value, err)
	}
	tok, err := run("an'na; x@example.org", "/bin/sh", "-c", `printf '{"access_token":"for-%s","expires_in":900}' "$0" | tr "'; " ___`, "{user}")
	if err != nil || tok.Value != "for-an_na__x@example.org" || time.Until(tok.Expires) < 14*time.Minute {
		t.Errorf("%q %s %v", tok.Value, tok.Expires, err)
	}
	long := strings.Repeat("hunter2x", 5)
	for want, args := range map[string][]string{
		"no such file":  {"/absent/program"},
		"exit status 3": {"/bin/sh", "-c", "exit 3"},
		"it says: no key <redacted>; by hand as the user": nil,
		"no token":  {"/bin/true"},
		"too much":  {"/bin/sh", "-c", "head -c 100000 /dev/zero"},
		"not a tok": {"/bin/echo", "hunter2 hunter2"},
	} {
		if args == nil {
			args, want = []string{"/bin/sh", "-c", "echo first >&2; echo no key " + long + " >&2; exit 1"}, "it says: no key <redacted>"
		}
		if _, err := run("", args...); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := run("-rf", "/bin/echo", "{user}"); err == nil || !strings.Contains(err.Error(), "option") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (Command{Args: []string{"/bin/sleep", "20"}}).Fetch(ctx, ""); err == nil || !strings.Contains(err.Error(), "did not end in time") {
		t.Error(err)
	}
}

func TestTokenNeverShows(t *testing.T) {
	tok := Token{Value: "hunter2"}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "t", tok)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "t", struct{ T Token }{tok})
	fmt.Fprintf(&b, "%v %+v %#v %s %x %v", tok, tok, tok, tok, tok, &struct{ T Token }{tok})
	if strings.Contains(b.String(), "hunter2") || strings.Contains(b.String(), "68756e74657232") {
		t.Error(b.String())
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"access_token":"a","expires_in":"1e9"}`))
	f.Add([]byte("token\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		made := time.Now()
		tok, err := parse(data, made)
		if err == nil && (tok.Value == "" || strings.ContainsAny(tok.Value, " \r\n\x00\x01")) {
			t.Errorf("%q", tok.Value)
		}
	})
}

func FuzzCut(f *testing.F) {
	f.Add("secret-of-some-length", "a secret-of-some-length b")
	f.Fuzz(func(t *testing.T, secret, text string) {
		var x Redactor
		x.Add(secret)
		if got := x.Cut(text); len(secret) > len(redacted) && strings.Contains(got, secret) {
			t.Errorf("%q in %q", secret, got)
		}
	})
}
