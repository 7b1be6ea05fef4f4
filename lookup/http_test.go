package lookup

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"crossfade/router"
)

const password = "hunter2-never-logged"

// get asks over HTTP with the right key.
func get(t *testing.T, addr, path string, header map[string]string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Key", settings().Key)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func nginxHeader(protocol, user string) map[string]string {
	return map[string]string{"Auth-Method": "plain", "Auth-Protocol": protocol, "Auth-User": user, "Auth-Pass": password, "Auth-Login-Attempt": "1"}
}

func TestNginx(t *testing.T) {
	set := settings()
	set.Upstreams[POP3] = Sides{Old: Upstream{"old.internal", 110, Clear}, New: Upstream{"new.internal", 995, Implicit}}
	w := newWorld(t, router.PolicyVerify, set)
	w.hosts.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) {
		if host != "old.internal" {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("2001:db8::5"), netip.MustParseAddr("192.0.2.5")}, nil
	}
	addr := listen(t, w.ServeHTTP)
	for _, tt := range []struct{ protocol, user, status, server, port, name string }{
		{"imap", "old@example.org", "OK", "10.0.0.1", "143", ""}, {"imap", "cutover", "OK", "10.0.0.1", "143", ""},
		{"imap", "new@example.org", "OK", "10.0.0.2", "1143", ""}, {"imap", "rollback", "OK", "10.0.0.2", "1143", ""},
		{"imap", "named", "OK", "10.0.0.2", "1143", "named1"}, {"imap", "info", "OK", "10.0.0.2", "1143", "new@example.org"},
		{"pop3", "old", "OK", "192.0.2.5", "110", ""}, {"imap", "o%6Cd", "OK", "10.0.0.1", "143", ""},
		{"imap", "nobody", "Invalid login or password", "", "", ""}, {"imap", "both", "Invalid login or password", "", "", ""},
		{"imap", "", "Invalid login or password", "", "", ""}, {"imap", "a%20b", "Invalid login or password", "", "", ""},
		{"imap", "loop", "[UNAVAILABLE] Temporary authentication failure", "", "", ""},
		{"pop3", "new", "[SYS/TEMP] Temporary authentication failure", "", "", ""},
		{"smtp", "old", "This way to log in is not offered here", "", "", ""}, {"imap", "%zz", "This way to log in is not offered here", "", "", ""},
		{"ldap", "old", "This way to log in is not offered here", "", "", ""},
	} {
		resp, _ := get(t, addr, "/nginx", nginxHeader(tt.protocol, tt.user))
		h := resp.Header
		if resp.StatusCode != 200 || h.Get("Auth-Status") != tt.status || h.Get("Auth-Server") != tt.server || h.Get("Auth-Port") != tt.port || h.Get("Auth-User") != tt.name {
			t.Errorf("%s %s: %d %v", tt.protocol, tt.user, resp.StatusCode, h)
		}
		if (h.Get("Auth-Wait") != "") != (tt.status != "OK") {
			t.Errorf("%s %s: Auth-Wait %q", tt.protocol, tt.user, h.Get("Auth-Wait"))
		}
		if h.Get("Auth-Pass") != "" {
			t.Error("a password in an answer")
		}
	}
	for _, method := range []string{"none", "cram-md5", "apop", "external", ""} {
		h := nginxHeader("imap", "old")
		h["Auth-Method"] = method
		if resp, _ := get(t, addr, "/nginx", h); resp.Header.Get("Auth-Status") != "This way to log in is not offered here" {
			t.Errorf("%s: %v", method, resp.Header)
		}
	}
	h := nginxHeader("imap", "nobody")
	h["Auth-Login-Attempt"] = "10"
	if resp, _ := get(t, addr, "/nginx", h); resp.Header.Get("Auth-Wait") != "" {
		t.Error("the tenth try of a connection may go on")
	}
	w.table.break_(errStore)
	for protocol, want := range map[string]string{"imap": "[UNAVAILABLE]", "pop3": "[SYS/TEMP]"} {
		if resp, _ := get(t, addr, "/nginx", nginxHeader(protocol, "old")); !strings.HasPrefix(resp.Header.Get("Auth-Status"), want) {
			t.Errorf("%s with a broken store: %v", protocol, resp.Header)
		}
	}
	if log := w.log.String(); strings.Contains(log, password) || strings.Contains(log, set.Key) {
		t.Errorf("a secret is in the log:\n%s", log)
	}
}

func TestNginxSMTP(t *testing.T) {
	set := settings()
	set.NginxSMTP = true
	w := newWorld(t, router.PolicyVerify, set)
	addr := listen(t, w.ServeHTTP)
	for user, want := range map[string][2]string{
		"new": {"OK", ""}, "nobody": {"Invalid login or password", "535 5.7.8"}, "loop": {"Temporary authentication failure", "454 4.7.0"},
	} {
		resp, _ := get(t, addr, "/nginx", nginxHeader("smtp", user))
		if got := [2]string{resp.Header.Get("Auth-Status"), resp.Header.Get("Auth-Error-Code")}; got != want {
			t.Errorf("%s: %q", user, got)
		}
	}
	h := nginxHeader("smtp", "")
	h["Auth-Method"] = "none"
	if resp, _ := get(t, addr, "/nginx", h); resp.Header.Get("Auth-Error-Code") != "504 5.5.4" {
		t.Errorf("nobody logged in: %v", resp.Header)
	}
}

func TestDovecot(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	addr := listen(t, w.ServeHTTP)
	for query, want := range map[string]string{
		"user=old%40example.org&service=imap": "200 proxy=y nopassword=y host=10.0.0.1 port=143",
		"user=new&service=pop3":               "200 proxy=y nopassword=y host=new.internal port=110 starttls=yes",
		"user=old&service=pop3":               "200 proxy=y nopassword=y host=old.internal port=995 ssl=yes",
		"user=named&service=imap":             "200 proxy=y nopassword=y host=10.0.0.2 port=1143 destuser=named1",
		"user=info&service=submission":        "200 proxy=y nopassword=y host=10.0.0.2 port=587 destuser=new@example.org",
		"user=cutover&service=imap":           "200 proxy=y nopassword=y host=10.0.0.1 port=143",
		"user=cutover&service=lmtp":           "503 temporary failure", "user=loop&service=imap": "503 temporary failure",
		"user=nobody&service=imap": "404 no such user", "user=&service=imap": "404 no such user",
		"user=old&service=doveadm": "400 ", "user=old": "400 ", "user=old&service=sieve": "400 ", "": "400 ",
	} {
		resp, body := get(t, addr, "/dovecot?"+query, nil)
		got := strings.TrimSpace(resp.Status[:4] + strings.ReplaceAll(strings.TrimSpace(body), "\n", " "))
		if got != want && !(strings.HasPrefix(want, "400") && strings.HasPrefix(got, "400")) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	w.table.set(router.User{Address: "evil@example.org", Kind: router.KindMailbox, State: router.StateOld, OldLogin: "x\nnologin=y"})
	if resp, body := get(t, addr, "/dovecot?user=evil&service=imap", nil); resp.StatusCode != 503 {
		t.Errorf("a field in a login name: %s %q", resp.Status, body)
	}
	w.table.break_(errStore)
	if resp, body := get(t, addr, "/dovecot?user=old&service=imap", nil); resp.StatusCode != 503 || strings.Contains(body, "fire") {
		t.Errorf("with a broken store: %s %q", resp.Status, body)
	}
}

func TestKey(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	addr := listen(t, w.ServeHTTP)
	for header, want := range map[[2]string]int{
		{"X-Auth-Key", settings().Key}: 200, {"X-Auth-Key", "wrong"}: 403, {"X-Auth-Key", ""}: 403, {"X-Auth-Key", settings().Key + " "}: 200,
	} {
		if resp, _ := get(t, addr, "/dovecot?user=old&service=imap", map[string]string{header[0]: header[1]}); resp.StatusCode != want {
			t.Errorf("%q: %s", header, resp.Status)
		}
	}
	if resp, _ := get(t, addr, "/dovecot?user=old&service=imap", map[string]string{"X-Auth-Key": "", "Authorization": "Bearer " + settings().Key}); resp.StatusCode != 200 {
		t.Errorf("bearer: %s", resp.Status)
	}
	if resp, _ := get(t, addr, "/nginx", map[string]string{"X-Auth-Key": "wrong", "Auth-Pass": password}); resp.StatusCode != 403 || resp.Header.Get("Auth-Status") != "" {
		t.Errorf("nginx with a wrong key: %v", resp.Header)
	}
	for _, path := range []string{"/", "/nginx/x", "/debug/pprof"} {
		if resp, _ := get(t, addr, path, nil); resp.StatusCode != 404 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	set := settings()
	set.Key = ""
	w.Update(set)
	if resp, _ := get(t, addr, "/dovecot?user=old&service=imap", map[string]string{"X-Auth-Key": ""}); resp.StatusCode != 403 {
		t.Errorf("no key is configured and none is shown: %s", resp.Status)
	}
	if log := w.log.String(); !strings.Contains(log, "without the right key") || strings.Contains(log, password) || strings.Contains(log, settings().Key) {
		t.Errorf("log:\n%s", log)
	}
	c := connect(t, addr) // may be cut while it writes
	_, _ = c.Write([]byte("GET /nginx HTTP/1.0\r\nX-Auth-Key: " + settings().Key + "\r\nAuth-User: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"))
	if answer, _ := io.ReadAll(c.r); len(answer) > 0 && !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
		t.Errorf("an endless header: %.200q", answer)
	}
}

func TestHosts(t *testing.T) {
	asked, fail := 0, false
	h := hosts{lookup: func(context.Context, string, string) ([]netip.Addr, error) {
		asked++
		if fail {
			return nil, errors.New("SERVFAIL")
		}
		return []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")}, nil
	}}
	for range 3 {
		if ip, err := h.address(t.Context(), "old.internal"); err != nil || ip.String() != "192.0.2.1" {
			t.Errorf("%v, %v", ip, err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	fail = true
	h.known["old.internal"] = hostAddress{ip: h.known["old.internal"].ip}
	if ip, err := h.address(t.Context(), "old.internal"); err != nil || asked != 2 {
		t.Errorf("a silent name server: %v, %v", ip, err)
	}
	if _, err := h.address(t.Context(), "other.internal"); err == nil {
		t.Error("a host that nobody knows")
	}
}
