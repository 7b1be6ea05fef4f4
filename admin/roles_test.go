package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// openOperations may be asked without a token. Nothing else is, and no test passes
// that adds one without saying so here.
var openOperations = []string{"healthz", "readyz", "metrics", "openapi"}

// route is an operation as GET /openapi.json describes it.
type route struct {
	method, path, id string
	role             Role
	secured          bool
	body             bool
}

// routes walks the description.
func (r *rig) routes() []route {
	r.t.Helper()
	_, text := r.ask("", "GET", "/openapi.json", "")
	var doc struct {
		Paths map[string]map[string]struct {
			ID       string `json:"operationId"`
			Role     Role   `json:"x-role"`
			Security []any  `json:"security"`
			Body     any    `json:"requestBody"`
		} `json:"paths"`
	}
	check(r.t, json.Unmarshal([]byte(text), &doc))
	var out []route
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for method, o := range doc.Paths[path] {
			out = append(out, route{method: strings.ToUpper(method), path: path, id: o.ID, role: o.Role, secured: len(o.Security) > 0, body: o.Body != nil})
		}
	}
	return out
}

// TestEveryRouteHasALeastRole asks every route of the description without a token,
// with a wrong one and with each role: below the least role it is refused, from it
// on it is not. A route that has no role fails, unless it is known to be open.
func TestEveryRouteHasALeastRole(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TokenStore = &memTokens{} })
	r.server.now = steps(lockoutForget + time.Second) // nobody is locked out
	param := regexp.MustCompile(`\{[a-z]+\}`)
	routes := r.routes()
	if len(routes) < 50 {
		t.Fatalf("only %d routes", len(routes))
	}
	for _, o := range routes {
		if slices.Contains(openOperations, o.id) {
			continue
		}
		if o.role.rank() == 0 || !o.secured {
			t.Errorf("%s %s (%s) has no least role: give its op one", o.method, o.path, o.id)
			continue
		}
		path, body := param.ReplaceAllString(o.path, "x"), ""
		if o.body {
			body = "{}"
		}
		for _, c := range []struct {
			token string
			role  Role
			want  int
		}{{"", "", 401}, {"wrong-0123456789abcdef", "", 401}, {readToken, RoleRead, 403}, {operateToken, RoleOperate, 403}, {adminToken, RoleAdmin, 0}} {
			if c.role.May(o.role) {
				c.want = 0
			}
			if c.want == 0 && o.id == "events" {
				continue // it would not end
			}
			resp, text := r.ask(c.token, o.method, path, body)
			if got := resp.StatusCode; c.want != 0 && got != c.want || c.want == 0 && (got == 401 || got == 403) {
				t.Errorf("%s %s as %q: %d, want %d: %s", o.method, o.path, c.role, got, c.want, text)
			}
		}
	}
}

// TestRolesPage compares the table of docs/admin.md with the routes.
func TestRolesPage(t *testing.T) {
	page, err := os.ReadFile("../docs/admin.md")
	check(t, err)
	row := regexp.MustCompile("^\\| `([A-Z]+) ([^`]+)` \\| ([a-z]+) \\|")
	have := map[string]string{}
	for sc := bufio.NewScanner(strings.NewReader(string(page))); sc.Scan(); {
		if m := row.FindStringSubmatch(sc.Text()); m != nil {
			have[m[1]+" "+m[2]] = m[3]
		}
	}
	for _, o := range newRig(t, nil).routes() {
		name, role := o.method+" "+o.path, string(o.role)
		if role == "" {
			role = "open"
		}
		if o.id == "metrics" {
			role = "read" // but from this machine
		}
		if have[name] != role {
			t.Errorf("docs/admin.md says %q of `%s`, the code %s", have[name], name, role)
		}
		delete(have, name)
	}
	for name := range have {
		t.Errorf("docs/admin.md has `%s`, the code has not", name)
	}
}

// TestDeniedIsRecorded: who tried what with too low a role; and deleting by a
// filter needs what deleting one message needs.
func TestDeniedIsRecorded(t *testing.T) {
	r := newRig(t, nil)
	for _, tt := range []struct{ token, method, path, body string }{
		{readToken, "PATCH", "/v1/users/anna@example.org", `{"wave":"two"}`},
		{operateToken, "POST", "/v1/queue:apply", `{"filter":{"state":"held"},"action":"delete"}`},
		{operateToken, "GET", "/v1/queue/" + string(id1) + "/message", ""},
	} {
		if resp, text := r.ask(tt.token, tt.method, tt.path, tt.body); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, resp.StatusCode, text)
		}
	}
	var denied []string
	for _, rec := range r.records() {
		if rec.Result == ResultDenied {
			denied = append(denied, rec.By+" "+rec.Action)
		}
	}
	if want := []string{"olga export-message", "olga apply-queue", "rita change-user"}; !slices.Equal(denied, want) {
		t.Errorf("the audit log has the attempts %q, want %q", denied, want)
	}
}

// TestDenials: a token that asks without end for what it may not does not fill the disk with the lines about it, and
// nothing of that is left uncounted.
func TestDenials(t *testing.T) {
	r := newRig(t, nil)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r.server.now = func() time.Time { return now }
	try := func(token string, n int) {
		for range n {
			if resp, text := r.ask(token, "PATCH", "/v1/users/anna@example.org", `{"wave":"two"}`); resp.StatusCode != http.StatusForbidden {
				t.Fatalf("%d %s", resp.StatusCode, text)
			}
		}
	}
	try(readToken, denialsInFull+250)
	now = now.Add(denialsSpan)
	try(readToken, 2)
	var lines int
	var counted float64
	for _, rec := range r.records() {
		if rec.Result == ResultDenied {
			lines++
			n, _ := rec.Detail["not_recorded_before"].(float64)
			counted += n
		}
	}
	if lines != denialsInFull+2 || counted != 250 {
		t.Errorf("%d lines of %d denials, %v counted besides", lines, denialsInFull+252, counted)
	}
}

// steps is a clock that goes on by d at each look.
func steps(d time.Duration) func() time.Time {
	var mu sync.Mutex
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
		return now
	}
}

// from makes a request whose client has an address.
func (r *rig) from(addr, token string) *http.Response {
	r.t.Helper()
	req := httptest.NewRequestWithContext(r.t.Context(), "GET", "http://localhost/v1/users", nil)
	req.RemoteAddr = addr
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	r.server.Handler().ServeHTTP(w, req)
	return w.Result()
}

// TestLockout: an address that sends wrong tokens is locked out for longer and
// longer, and then also with the right one; others, and this machine, are not.
func TestLockout(t *testing.T) {
	var mu sync.Mutex
	counts := map[string]int{}
	r := newRig(t, func(c *Config) {
		c.Refused = func(reason string) { mu.Lock(); defer mu.Unlock(); counts[reason]++ }
	})
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r.server.now = func() time.Time { return now }
	const wrong, far = "wrong-0123456789abcdef", "192.0.2.7:4711"
	for range lockoutFree {
		if got := r.from(far, wrong).StatusCode; got != 401 {
			t.Fatalf("a free try was answered %d", got)
		}
		r.from(far, "") // without a token it is no try
	}
	for _, want := range []string{"1", "2", "4", "8", "16"} {
		if got := r.from(far, wrong); got.StatusCode != 401 {
			t.Fatalf("the next try was answered %d", got.StatusCode)
		}
		for _, token := range []string{wrong, readToken, ""} {
			got := r.from("192.0.2.7:99", token)
			if got.StatusCode != 429 || got.Header.Get("Retry-After") != want {
				t.Errorf("locked out, with %q: %d, Retry-After %q, want %s", token, got.StatusCode, got.Header.Get("Retry-After"), want)
			}
		}
		if got := r.from("192.0.2.8:99", readToken).StatusCode; got != 200 {
			t.Errorf("another address: %d", got)
		}
		now = now.Add(time.Duration(len(want)) * 16 * time.Second)
	}
	if got := r.from(far, readToken).StatusCode; got != 200 {
		t.Errorf("when the lock-out is over: %d", got)
	}
	for range 40 {
		r.from(far, wrong)
		now = now.Add(lockoutMost)
	}
	r.from(far, wrong)
	if wait := r.server.lockouts.locked(netip.MustParseAddr("192.0.2.7"), now); wait != lockoutMost {
		t.Errorf("the longest lock-out is %v", wait)
	}
	for range 30 {
		r.from("127.0.0.1:5", wrong)
		r.from("[::1]:5", wrong)
	}
	if got := r.from("127.0.0.1:6", wrong); got.StatusCode != 429 {
		t.Errorf("a wrong token from here: %d", got.StatusCode)
	}
	for _, here := range []string{"127.0.0.1:6", "[::1]:6"} {
		if got := r.from(here, readToken).StatusCode; got != 200 {
			t.Errorf("the operator on this machine is locked out by somebody on it: %d", got)
		}
	}
	if counts["token"] == 0 || counts["locked-out"] == 0 {
		t.Errorf("counted %v", counts)
	}
}

// TestLockoutIsBounded: memory has a limit, whatever number of addresses tries; an
// IPv6 customer is one address; and what was long ago is forgotten.
func TestLockoutIsBounded(t *testing.T) {
	var l lockouts
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	six := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)) }
	for i := range lockoutFree + 1 {
		l.wrong(six(i+1), now)
	}
	if l.locked(six(99), now) == 0 {
		t.Error("an IPv6 network tries with each of its addresses")
	}
	if l.locked(netip.MustParseAddr("2001:db8:0:1::1"), now) != 0 {
		t.Error("another network is locked out with it")
	}
	for range lockoutFree + 1 {
		l.wrong(netip.MustParseAddr("::ffff:192.0.2.1"), now)
	}
	if l.locked(netip.MustParseAddr("192.0.2.1"), now) == 0 {
		t.Error("an IPv4 address that is written as an IPv6 one is another")
	}
	for i := range 3 * lockoutAddresses {
		now = now.Add(time.Millisecond)
		l.wrong(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if n := len(l.seen); n > lockoutAddresses {
		t.Errorf("%d addresses are remembered", n)
	}
	l.wrong(netip.Addr{}, now)
	addr := netip.MustParseAddr("192.0.2.9")
	for range lockoutFree + 3 {
		l.wrong(addr, now)
	}
	if got := l.wrong(addr, now.Add(lockoutForget+time.Second)); got != 0 {
		t.Errorf("after an hour the first wrong token costs %v", got)
	}
}

// TestNoWebPage: what a browser sends for a page never reaches a handler, no answer
// allows another origin or sets a cookie, and a name of strangers is not answered.
func TestNoWebPage(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Hosts = []string{"mx.example.org"} })
	ask := func(method, path, host string, header map[string]string, body string) *http.Response {
		req := httptest.NewRequestWithContext(t.Context(), method, "http://localhost"+path, strings.NewReader(body))
		req.Host = host
		req.Header.Set("Authorization", "Bearer "+adminToken)
		for k, v := range header {
			req.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		r.server.Handler().ServeHTTP(w, req)
		resp := w.Result()
		for name := range resp.Header {
			if strings.HasPrefix(name, "Access-Control-") || name == "Set-Cookie" {
				t.Errorf("%s %s: the answer has %s", method, path, name)
			}
		}
		for _, name := range []string{"X-Content-Type-Options", "X-Frame-Options", "Cache-Control", "Content-Security-Policy", "Referrer-Policy", "Cross-Origin-Resource-Policy"} {
			if resp.Header.Get(name) == "" {
				t.Errorf("%s %s: the answer has no %s", method, path, name)
			}
		}
		return resp
	}
	for _, tt := range []struct {
		name, method, path, host string
		header                   map[string]string
		body                     string
		want                     int
	}{
		{"a program", "GET", "/v1/users", "127.0.0.1:8025", nil, "", 200},
		{"the address bar", "GET", "/healthz", "localhost:8025", map[string]string{"Sec-Fetch-Site": "none"}, "", 200},
		{"a page", "GET", "/v1/users", "localhost", map[string]string{"Origin": "https://evil.example"}, "", 403},
		{"a page from a file", "GET", "/v1/users", "localhost", map[string]string{"Origin": "null"}, "", 403},
		{"an image", "GET", "/metrics", "localhost", map[string]string{"Sec-Fetch-Site": "cross-site"}, "", 403},
		{"a neighbour", "GET", "/metrics", "localhost", map[string]string{"Sec-Fetch-Site": "same-site"}, "", 403},
		{"a page of our own name", "GET", "/readyz", "localhost", map[string]string{"Sec-Fetch-Site": "same-origin"}, "", 403},
		{"preflight", "OPTIONS", "/v1/users:import", "localhost", map[string]string{"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}, "", 403},
		{"options", "OPTIONS", "/v1/users:import", "localhost", nil, "", 405},
		{"a form", "POST", "/v1/reload", "localhost", map[string]string{"Origin": "https://evil.example", "Content-Type": "application/x-www-form-urlencoded"}, "a=b", 403},
		{"a form without an origin", "PUT", "/v1/users/anna@example.org/state", "localhost", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, "a=b", 415},
		{"plain text", "PUT", "/v1/users/anna@example.org/state", "localhost", map[string]string{"Content-Type": "text/plain"}, `{"state":"syncing"}`, 415},
		{"no type", "PUT", "/v1/users/anna@example.org/state", "localhost", nil, `{"state":"syncing"}`, 415},
		{"rebinding", "GET", "/readyz", "evil.example:8025", nil, "", 421},
		{"rebinding of metrics", "GET", "/metrics", "evil.example", nil, "", 421},
		{"rebinding with a dot", "GET", "/metrics", "evil.example.", nil, "", 421},
		{"looks like one of ours", "GET", "/readyz", "mx.example.org.evil.example", nil, "", 421},
		{"looks like an address", "GET", "/readyz", "127.0.0.1.evil.example", nil, "", 421},
		{"no name", "GET", "/readyz", "", nil, "", 421},
		{"our name", "GET", "/readyz", "MX.example.org:8025", nil, "", 200},
		{"a container's name", "GET", "/readyz", "node-a:8025", nil, "", 200},
		{"IPv6", "GET", "/readyz", "[::1]:8025", nil, "", 200},
		{"cookie", "GET", "/v1/users", "localhost", map[string]string{"Authorization": "", "Cookie": "token=" + adminToken}, "", 401},
		{"token in the query", "GET", "/v1/users?access_token=" + adminToken, "localhost", map[string]string{"Authorization": ""}, "", 401},
		{"basic", "GET", "/v1/users", "localhost", map[string]string{"Authorization": "Basic " + adminToken}, "", 401},
		{"profiles", "GET", "/debug/pprof/", "localhost", nil, "", 404},
		{"variables", "GET", "/debug/vars", "localhost", nil, "", 404},
		{"files", "GET", "/../../etc/passwd", "localhost", nil, "", 404},
	} {
		if got := ask(tt.method, tt.path, tt.host, tt.header, tt.body).StatusCode; got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	if len(r.table.changes) > 0 {
		t.Error("something was changed")
	}
}

// TestSmuggledRequests: of a message whose length can be read in two ways there is one
// request at most, and the connection ends.
func TestSmuggledRequests(t *testing.T) {
	r := newRig(t, nil)
	for name, head := range map[string]string{
		"length and chunks":   "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
		"two lengths":         "Content-Length: 4\r\nContent-Length: 40\r\n",
		"a length with plus":  "Content-Length: +4\r\n",
		"a spaced name":       "Content-Length : 4\r\n",
		"an unknown encoding": "Transfer-Encoding: xchunked\r\n",
		"a folded header":     "X: y\r\n Transfer-Encoding: chunked\r\n",
		"a bare CR":           "X: y\rTransfer-Encoding: chunked\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		check(t, err)
		check(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		fmt.Fprintf(conn, "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\n%s\r\n0\r\n\r\nDELETE /v1/users/anna@example.org?force=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", head, adminToken)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil && resp.StatusCode < 400 {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
		conn.Close()
	}
	if _, err := r.table.User(t.Context(), "anna@example.org"); err != nil {
		t.Errorf("a smuggled request was obeyed: %v", err)
	}
}

// memTokens is a TokenStore.
type memTokens struct {
	mu   sync.Mutex
	list map[string]StoredToken
	err  error
}

func (m *memTokens) LoadTokens(context.Context) ([]StoredToken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.list)), m.err
}

func (m *memTokens) SaveToken(_ context.Context, t StoredToken) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.list == nil {
		m.list = map[string]StoredToken{}
	}
	m.list[t.Name] = t
	return m.err
}

func (m *memTokens) DeleteToken(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.list, name)
	return m.err
}

// TestTokens: made, used, listed without a value, ended and revoked, also on a node
// that did not do it; and the audit log has all of it but the value.
func TestTokens(t *testing.T) {
	book := &memTokens{}
	r := newRig(t, func(c *Config) { c.TokenStore = book })
	other := newRig(t, func(c *Config) { c.TokenStore = book })
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r.server.now = func() time.Time { return now }
	c, ctx := r.client(adminToken), t.Context()
	made, err := c.AddToken(ctx, TokenRequest{Name: "mon", Role: RoleRead, Expires: "2026-01-02", Reason: "dashboards"})
	check(t, err)
	if len(made.Token) != 47 || made.By != "ada" || made.From != "api" {
		t.Errorf("made %+v", made.TokenInfo)
	}
	if resp, _ := r.ask(made.Token, "GET", "/v1/users", ""); resp.StatusCode != 200 {
		t.Errorf("the new token: %d", resp.StatusCode)
	}
	if resp, _ := r.ask(made.Token, "POST", "/v1/reload", ""); resp.StatusCode != 403 {
		t.Errorf("the new token as admin: %d", resp.StatusCode)
	}
	check(t, other.server.RefreshTokens(ctx))
	if resp, _ := other.ask(made.Token, "GET", "/v1/users", ""); resp.StatusCode != 401 {
		t.Errorf("on a node whose clock is past the token's end: %d", resp.StatusCode)
	}
	for _, bad := range []struct {
		req  TokenRequest
		kind string
	}{
		{TokenRequest{Name: "mon", Role: RoleRead}, ProblemTokenName}, {TokenRequest{Name: "ada", Role: RoleRead}, ProblemTokenName},
		{TokenRequest{Name: "two words", Role: RoleRead}, ProblemInvalid}, {TokenRequest{Name: "x", Role: "king"}, ProblemInvalid},
		{TokenRequest{Name: "x", Role: RoleRead, Expires: "soon"}, ProblemInvalid}, {TokenRequest{Name: "x", Role: RoleRead, Expires: "2025-12-31"}, ProblemInvalid},
	} {
		_, err := c.AddToken(ctx, bad.req)
		wantProblem(t, err, bad.kind)
	}
	list, err := c.Tokens(ctx)
	check(t, err)
	var names []string
	for _, i := range list {
		names = append(names, i.Name+" "+string(i.Role)+" "+i.From)
	}
	if got := strings.Join(names, ", "); got != "ada admin file, mon read api, olga operate file, rita read file" {
		t.Errorf("listed %s", got)
	}
	now = now.Add(24 * time.Hour)
	if resp, text := r.ask(made.Token, "GET", "/v1/users", ""); resp.StatusCode != 401 || !strings.Contains(text, "come to its end") {
		t.Errorf("after its end: %d %s", resp.StatusCode, text)
	}
	now = now.Add(-time.Hour)
	check(t, c.RevokeToken(ctx, "mon", "leak"))
	if resp, _ := r.ask(made.Token, "GET", "/v1/users", ""); resp.StatusCode != 401 {
		t.Errorf("revoked: %d", resp.StatusCode)
	}
	wantProblem(t, c.RevokeToken(ctx, "mon", ""), ProblemNoToken)
	wantProblem(t, c.RevokeToken(ctx, "olga", ""), ProblemRefused)
	text, err := os.ReadFile(r.audit.path)
	check(t, err)
	for _, want := range []string{`"add-token"`, `"revoke-token"`, "leak", "dashboards"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in the audit log", want)
		}
	}
	if strings.Contains(string(text), made.Token[4:20]) {
		t.Error("the token is in the audit log")
	}
	for _, st := range book.list {
		if strings.Contains(fmt.Sprintf("%+v", st), made.Token[4:20]) {
			t.Error("the token is in the store")
		}
	}
}

// TestRevokeBesideTheFile: a token of the store can be taken away when the file has its
// name by now, and the file's is another one.
func TestRevokeBesideTheFile(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TokenStore = &memTokens{} })
	c := r.client(adminToken)
	made, err := c.AddToken(t.Context(), TokenRequest{Name: "mon", Role: RoleAdmin})
	check(t, err)
	const inFile = "file-0123456789abcdef"
	tokens, err := ParseTokens("mon read " + inFile + "\nada admin " + adminToken)
	check(t, err)
	check(t, r.server.SetTokens(tokens))
	check(t, c.RevokeToken(t.Context(), "mon", ""))
	for token, want := range map[string]int{made.Token: 401, inFile: 200} {
		if resp, _ := r.ask(token, "GET", "/v1/users", ""); resp.StatusCode != want {
			t.Errorf("%.4s...: %d, want %d", token, resp.StatusCode, want)
		}
	}
	wantProblem(t, c.RevokeToken(t.Context(), "mon", ""), ProblemRefused)
}

// TestRevokedOnAnotherNode: what one node revokes, the others do not take any more,
// and event streams end.
func TestRevokedOnAnotherNode(t *testing.T) {
	book := &memTokens{}
	r := newRig(t, func(c *Config) { c.TokenStore = book })
	ticks := make(chan time.Time)
	r.server.every = func(time.Duration) (<-chan time.Time, func()) { return ticks, func() {} }
	made, err := r.client(adminToken).AddToken(t.Context(), TokenRequest{Name: "dash", Role: RoleRead})
	check(t, err)
	open, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- r.client(made.Token).Listen(t.Context(), 0, func() { close(open) }, func(Event) error { return nil })
	}()
	<-open
	ticks <- time.Now() // it goes on
	ctx, stop := context.WithCancel(t.Context())
	kept := make(chan struct{})
	go func() { defer close(kept); r.server.keepTokens(ctx) }()
	check(t, book.DeleteToken(ctx, "dash")) // another node
	for ticking := true; ticking; {
		select {
		case ticks <- time.Now():
		case err := <-ended:
			if err != nil {
				t.Errorf("the stream ended with %v", err)
			}
			ticking = false
		}
	}
	if resp, _ := r.ask(made.Token, "GET", "/v1/users", ""); resp.StatusCode != 401 {
		t.Errorf("revoked elsewhere: %d", resp.StatusCode)
	}
	stop()
	<-kept
}

// TestStreamsAreBounded: in number for one token; the count goes down when one ends.
func TestStreamsAreBounded(t *testing.T) {
	r := newRig(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var ends sync.WaitGroup
	for range maxStreamsToken {
		open := make(chan struct{})
		ends.Go(func() {
			_ = r.client(readToken).Listen(ctx, 0, func() { close(open) }, func(Event) error { return nil })
		})
		<-open
	}
	wantProblem(t, r.client(readToken).Listen(t.Context(), 0, nil, func(Event) error { return nil }), ProblemBusy)
	one, stop := context.WithCancel(t.Context())
	if err := r.client(operateToken).Listen(one, 0, stop, func(Event) error { return nil }); err == nil || one.Err() == nil {
		t.Errorf("another token: %v", err)
	}
	cancel()
	ends.Wait()
	for deadline := time.Now().Add(5 * time.Second); ; {
		r.server.streams.mu.Lock()
		left := r.server.streams.total
		r.server.streams.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are counted still", left)
		}
	}
}

// TestConnectionsAreBounded: what is beyond is closed at once, and an end makes room.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	turned := make(chan struct{}, 10)
	l := &limited{Listener: inner, open: &tally{}, turned: func() { turned <- struct{}{} }}
	defer l.Close()
	l.open.total = maxConns - 1
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		check(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := <-accepted
	dial()
	<-turned
	first.Close()
	first.Close() // counts once
	dial()
	<-accepted
	if l.open.total != maxConns {
		t.Errorf("%d are counted", l.open.total)
	}
}

// TestRefusalsAreMetrics: every reason has a series from the start.
func TestRefusalsAreMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewAPIMetrics(reg)
	check(t, err)
	m.Refuse("token")
	m.Sequence.Set(7)
	r := newRig(t, func(c *Config) { c.Metrics = reg })
	_, text := r.ask("", "GET", "/metrics", "")
	for _, line := range []string{`crossfade_admin_refused_total{reason="token"} 1`, `crossfade_admin_refused_total{reason="locked-out"} 0`, `crossfade_audit_log_sequence 7`} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("%s is missing", line)
		}
	}
}
