package daemon_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// planted are secrets that must be found nowhere.
type planted struct {
	t     *testing.T
	names []string
	forms map[string][]string // what to look for, by name
	seen  int                 // octets that were searched
}

// plant makes a secret that is unlike anything else, with characters that encodings
// change.
func (p *planted) plant(name string) string {
	secret := fmt.Sprintf("Pl4nt/%s+%x&=?", name, len(p.names)*7919+104729)
	p.add(name, secret)
	return secret
}

// add looks for a secret as it is and as it is encoded for the web, for JSON, in
// hexadecimal and in base64, wherever in a text it began.
func (p *planted) add(name, secret string) {
	if p.forms == nil {
		p.forms = map[string][]string{}
	}
	quoted, _ := json.Marshal(secret)
	forms := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strings.Trim(string(quoted), `"`), hex.EncodeToString([]byte(secret)), strings.Trim(fmt.Sprintf("%q", secret), `"`)}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			text := enc.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
			forms = append(forms, text[(shift*8+5)/6:len(text)-2]) // what depends on the secret alone
		}
	}
	slices.Sort(forms)
	p.names, p.forms[name] = append(p.names, name), slices.Compact(forms)
}

// search looks into what was written somewhere.
func (p *planted) search(where string, text []byte) {
	p.t.Helper()
	p.seen += len(text)
	for _, name := range p.names {
		for _, form := range p.forms[name] {
			if i := bytes.Index(text, []byte(form)); i >= 0 {
				p.t.Errorf("%s shows the secret %s as %q: ...%q...", where, name, form, text[max(0, i-200):min(len(text), i+200)])
				break
			}
		}
	}
}

// hostile is a server that gives back in its errors what clients sent, decoded too:
// some do.
func hostile(t *testing.T, greeting string, answer func(line string) string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				fmt.Fprint(c, greeting)
				for lines := bufio.NewScanner(c); lines.Scan(); {
					if _, err := io.WriteString(c, answer(lines.Text())); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// decoded gives the words of a line, and what they are in base64.
func decoded(line string) string {
	out := line
	for _, word := range strings.Fields(line) {
		if text, err := base64.StdEncoding.DecodeString(word); err == nil {
			out += " " + strings.NewReplacer("\x00", " ", "\x01", " ", "\r", "", "\n", "").Replace(string(text))
		}
	}
	return out
}

func hostileIMAP(t *testing.T, caps string) string {
	return hostile(t, "* OK [CAPABILITY IMAP4rev1 "+caps+"] ready\r\n", func(line string) string {
		tag, cmd, _ := strings.Cut(line, " ")
		switch {
		case strings.HasPrefix(cmd, "AUTHENTICATE"), strings.HasPrefix(cmd, "LOGIN"):
			return tag + " NO [AUTHENTICATIONFAILED] wrong: " + decoded(cmd) + "\r\n"
		case cmd == "CAPABILITY":
			return "* CAPABILITY IMAP4rev1 " + caps + "\r\n" + tag + " OK done\r\n"
		case cmd == "LOGOUT":
			return "* BYE\r\n" + tag + " OK\r\n"
		}
		return tag + " BAD no: " + decoded(line) + "\r\n"
	})
}

func hostileSMTP(t *testing.T) string {
	return hostile(t, "220 hostile ESMTP\r\n", func(line string) string {
		switch verb, _, _ := strings.Cut(strings.ToUpper(line), " "); verb {
		case "EHLO":
			return "250-hostile\r\n250 AUTH PLAIN LOGIN\r\n"
		case "AUTH":
			return "535 5.7.8 wrong: " + decoded(line) + "\r\n"
		case "RCPT", "DATA":
			return "451 4.3.0 not now: " + line + "\r\n"
		case "QUIT":
			return "221 bye\r\n"
		}
		return "250 ok\r\n"
	})
}

// secretsWorld is a relay with a secret in every place that takes one, whose backends
// refuse everything and give back what they are shown.
type secretsWorld struct {
	*planted
	dir, program    string
	smtp, tls, api  string
	lookup          string
	out             bytes.Buffer
	cmd             *exec.Cmd
	admin, imap     string
	body, submitter string
	all             bool // run every command
}

func (w *secretsWorld) put(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *secretsWorld) run(stdin string, args ...string) []byte {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), w.program, args...)
	cmd.Stdin, cmd.Dir = strings.NewReader(stdin), w.dir
	cmd.Env = append(os.Environ(), "PLANT_ENV="+w.imap)
	out, _ := cmd.CombinedOutput() // most fail here, which is what is wanted
	return out
}

// configure writes the files; logins is what differs between the runs.
func (w *secretsWorld) configure(logins string) {
	w.t.Helper()
	port := func() string { return fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(w.t)) }
	w.smtp, w.tls, w.api, w.lookup = port(), port(), port(), port()
	w.put("crossfade.yaml", fmt.Sprintf(`hostname: mx.example.org
domains: [example.org]
store: ./data
log: {level: debug}
smtp:
  listen: [%q]
  listeners: [{address: %q, tls: implicit, auth: offer}]
  tls: {cert: cert.pem, key: key.pem}
  users_file: ./submitters
  arc: {domain: example.org, selector: arc, key: arc.pem}
  tls_reports: {contact: postmaster@example.org}
  trusted: [127.0.0.1/32]
  smart_host: {url: "smtp+insecure://%s", user: smart, password_file: ./smart.pw}
admin: {listen: %q, token_file: ./admin.token}
lookup: {http: [%q], token_file: ./lookup.token, imap: {old: "imaps://127.0.0.1:1", new: "imaps://127.0.0.1:2"}}
routing: {unknown: old}
queue: {min_free: 0}
%s`, w.smtp, w.tls, hostileSMTP(w.t), w.api, w.lookup, logins))
}

// TestNoSecretInAnyOutput plants secrets wherever one can be configured or sent, drives
// the real program through errors of every kind, and looks for them in all that
// it wrote, in its last words too, as they are and encoded.
func TestNoSecretInAnyOutput(t *testing.T) {
	beside(t)
	p := &planted{t: t}
	program := binary(t)
	passwords := func(w *secretsWorld) string {
		w.put("old.pw", w.plant("imap-old")+"\n")
		w.put("users.csv", "anna@example.org,,"+w.plant("imap-anna")+"\nbert@example.org,bert,"+w.plant("imap-bert")+"\n")
		return fmt.Sprintf("backends:\n  old: {smtp: \"smtp+insecure://%s\", imap: \"imap+insecure://%s\", imap_login: {user: master, password_file: ./old.pw, as: \"suffix:*\"}}\n"+
			"  new: {smtp: \"smtp+insecure://%s\", imap: \"imap+insecure://%s\", imap_login: {as: user, passwords_file: ./users.csv}}\n",
			hostileSMTP(t), hostileIMAP(t, "SASL-IR AUTH=PLAIN"), hostileSMTP(t), hostileIMAP(t, ""))
	}
	tokens := func(w *secretsWorld) string {
		ends := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			rw.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(rw, `{"error":"invalid_client","error_description":%q}`, "wrong: "+string(body))
		}))
		t.Cleanup(ends.Close)
		w.put("secret", w.plant("oauth-client")+"\n")
		access := strings.NewReplacer("/", "-", "+", "_", "&", ".", "=", "~", "?", ".").Replace(w.plant("oauth-access-base")) // what a token may have
		w.add("oauth-access", access)
		w.put("anna@example.org.tok", fmt.Sprintf(`{"access_token":%q}`, access))
		return fmt.Sprintf("backends:\n  old: {smtp: \"smtp+insecure://%s\", imap: \"imap+insecure://%s\", imap_login: {as: xoauth2, token: {microsoft: {tenant: t.example, client_id: c, secret_file: secret, authority: %q}}}}\n"+
			"  new: {smtp: \"smtp+insecure://%s\", imap: \"imap+insecure://%s\", imap_login: {as: oauthbearer, token: {file: \"{user}.tok\"}}}\n",
			hostileSMTP(t), hostileIMAP(t, "SASL-IR AUTH=XOAUTH2"), ends.URL, hostileSMTP(t), hostileIMAP(t, "SASL-IR AUTH=OAUTHBEARER"))
	}
	env := func(w *secretsWorld) string {
		return fmt.Sprintf("backends:\n  old: {smtp: \"smtp+insecure://%s\", imap: \"imap+insecure://%s\", imap_login: {user: master, password_env: PLANT_ENV, as: authzid, mechanism: plain}}\n"+
			"  new: {smtp: \"smtp+insecure://%s\", imap: \"imap+insecure://%s\", imap_login: {user: master, password_env: PLANT_ENV, as: \"suffix:*\", mechanism: login}}\n",
			hostileSMTP(t), hostileIMAP(t, "SASL-IR AUTH=PLAIN"), hostileSMTP(t), hostileIMAP(t, "AUTH=LOGIN"))
	}
	for i, logins := range []func(*secretsWorld) string{passwords, tokens, env} {
		w := &secretsWorld{planted: p, dir: t.TempDir(), program: program, all: i == 0}
		w.plantAll()
		w.configure(logins(w))
		w.start()
		w.drive()
		w.end()
	}
	t.Logf("%d secrets, %d octets searched", len(p.names), p.seen)
}

// plantAll plants what all runs have.
func (w *secretsWorld) plantAll() {
	w.t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := ca.Issue("mx.example.org")
	if err != nil {
		w.t.Fatal(err)
	}
	files, err := ca.WritePEM(w.dir, cert)
	if err != nil {
		w.t.Fatal(err)
	}
	for from, to := range map[string]string{files.Cert: "cert.pem", files.Key: "key.pem"} {
		text, err := os.ReadFile(from)
		if err != nil {
			w.t.Fatal(err)
		}
		w.put(to, string(text))
		if to == "key.pem" {
			w.add("tls-key", strings.Split(string(text), "\n")[1])
		}
	}
	arc, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		w.t.Fatal(err)
	}
	der := x509.MarshalPKCS1PrivateKey(arc)
	w.put("arc.pem", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der})))
	w.add("arc-key", string(der[len(der)/2:][:40])) // of its primes
	w.add("arc-key-exponent", arc.D.String()[:40])
	w.put("smart.pw", w.plant("smart-host")+"\n")
	w.imap, w.body, w.submitter = w.plant("imap-env"), w.plant("body"), w.plant("submitter")
	line := w.run(w.submitter+"\n", "password", "sam")
	w.search("crossfade password", line)
	w.put("submitters", string(line))
	_, hash, ok := strings.Cut(strings.TrimSpace(string(line)), ":")
	if !ok {
		w.t.Fatalf("crossfade password: %s", line)
	}
	w.add("submitter-hash", hash)
}

func (w *secretsWorld) start() {
	w.t.Helper()
	w.cmd = exec.CommandContext(w.t.Context(), w.program, "serve", "-c", "crossfade.yaml")
	w.cmd.Dir, w.cmd.Stdout, w.cmd.Stderr = w.dir, &w.out, &w.out
	w.cmd.Env = append(os.Environ(), "PLANT_ENV="+w.imap, "GOTRACEBACK=all")
	w.cmd.WaitDelay = 10 * time.Second
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	poll(w.t, 60*time.Second, "the relay", func() (bool, error) {
		resp, err := http.Get("http://" + w.api + "/readyz")
		if err != nil {
			return false, err
		}
		resp.Body.Close()
		return resp.StatusCode == 200, fmt.Errorf("readyz: %d", resp.StatusCode)
	})
	tokens, err := admin.LoadTokens(filepath.Join(w.dir, "admin.token"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.admin = tokens[0].Value()
	w.add("admin-token", w.admin)
	key, err := os.ReadFile(filepath.Join(w.dir, "lookup.token"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.add("lookup-token", strings.TrimSpace(string(key)))
}

// drive makes everything go wrong.
func (w *secretsWorld) drive() {
	w.t.Helper()
	conf := []string{"-c", "crossfade.yaml"}
	cli := func(args ...string) []byte {
		out := w.run("", append(args, conf...)...)
		if args[0] != "token" || args[1] != "add" {
			w.search("crossfade "+strings.Join(args, " "), out)
		}
		return out
	}
	made := regexp.MustCompile(`cxf_\S+`).Find(cli("token", "add", "mon", "--role", "admin"))
	if made == nil {
		w.t.Fatal("no token was made")
	}
	w.add("api-token", string(made))
	w.put("users-import.csv", "address,state\nanna@example.org,old\nbert@example.org,new\n")
	cli("user", "import", "users-import.csv")
	w.mail()
	commands := [][]string{
		{"check"}, {"check", "--user", "anna@example.org"}, {"check", "--json", "--user", "bert@example.org"}, {"token", "list"}, {"token", "list", "--json"},
		{"backfill", "run", "anna@example.org", "--no-wait"}, {"backfill", "run", "--dry-run", "anna@example.org"}, {"cutover", "start", "anna@example.org", "--no-wait"},
		{"backfill", "verify", "anna@example.org"}, {"cutover", "rollback", "bert@example.org", "--no-wait"}, {"backfill", "status", "--json"}, {"cutover", "status"}, {"queue", "list"}, {"queue", "list", "--json"},
		{"user", "list", "--json"}, {"audit", "--json"}, {"finish"}, {"finish", "--json"}, {"why", "<m@outside.example>", "--json"}, {"health"}, {"version", "--json"}, {"token", "revoke", "mon"},
		{"user", "list", "--token-file", "old.pw"}, {"user", "list", "--token-file", "key.pem"}, {"user", "list", "--token-file", "arc.pem"}, {"store", "audit"},
	}
	if !w.all {
		commands = commands[1:9]
	}
	for _, args := range commands {
		cli(args...)
	}
	w.routes()
	for _, bad := range []string{
		"store: redis://user:" + url.PathEscape(w.imap) + "@127.0.0.1:1/0\n", "smtp: {smart_host: {url: \"smtp://u:" + url.PathEscape(w.imap) + "@127.0.0.1\"}}\n",
		"backends: {old: {smtp: \"smtp://u:" + url.PathEscape(w.imap) + "@127.0.0.1\"}}\n", "smtp: {tls: {cert: smart.pw, key: smart.pw}}\n",
		"smtp: {users_file: smart.pw}\n", "smtp: {arc: {domain: example.org, selector: a, key: smart.pw}}\n", "smtp: {users_file: arc.pem}\n", "smtp: {tls: {cert: arc.pem, key: arc.pem}}\n",
		"smtp: {tls: {acme: {http01: \"127.0.0.1:0\", accept_terms: true, key_id: k, mac_key_file: smart.pw}}}\n", "admin: {token_file: smart.pw}\n", "store: redis://127.0.0.1:1/0\nredis: {password_file: smart.pw, durability: service}\n",
	} {
		w.put("bad.yaml", "hostname: mx.example.org\ndomains: [example.org]\n"+bad)
		out := w.run("", "check", "-c", "bad.yaml")
		if !strings.Contains(bad, url.PathEscape(w.imap)) { // an excerpt of the file shows what the operator himself wrote into it
			w.search("check of "+bad, out)
		}
	}
	w.put("smart.pw", w.plant("smart-host-2"))
	_ = w.cmd.Process.Signal(syscall.SIGHUP)
}

// mail sends mail and logs in, rightly and wrongly, in clear text and under TLS.
func (w *secretsWorld) mail() {
	w.t.Helper()
	blob := func(user, pw string) string {
		return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + pw))
	}
	wrong := w.plant("wrong-password")
	message := "Subject: x\r\nMessage-ID: <m@outside.example>\r\n\r\n" + w.body + "\r\n.\r\n"
	for _, dialogue := range []struct {
		tls  bool
		text string
	}{
		{false, "EHLO c.example\r\nAUTH PLAIN " + blob("sam", w.submitter) + "\r\nAUTH LOGIN\r\nc2Ft\r\n" + base64.StdEncoding.EncodeToString([]byte(w.submitter)) + "\r\n" + w.submitter + "\r\nQUIT\r\n"},
		{false, "EHLO c.example\r\nMAIL FROM:<s@outside.example>\r\nRCPT TO:<anna@example.org>\r\nRCPT TO:<bert@example.org>\r\nRCPT TO:<x@elsewhere.example>\r\nDATA\r\n" + message + "QUIT\r\n"},
		{true, "EHLO c.example\r\nAUTH PLAIN " + blob("sam", wrong) + "\r\nAUTH PLAIN\r\n" + blob("nobody", wrong) + "\r\nAUTH LOGIN\r\nc2Ft\r\n" + base64.StdEncoding.EncodeToString([]byte(wrong)) + "\r\nAUTH CRAM-MD5 " + blob("sam", wrong) + "\r\nQUIT\r\n"},
		{true, "EHLO c.example\r\nAUTH PLAIN " + blob("sam", w.submitter) + "\r\nMAIL FROM:<s@example.org>\r\nRCPT TO:<y@elsewhere.example>\r\nDATA\r\n" + message + "AUTH PLAIN " + blob("sam", w.submitter) + "\r\nQUIT\r\n"},
	} {
		addr := w.smtp
		if dialogue.tls {
			addr = w.tls
		}
		conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err != nil {
			w.t.Fatal(err)
		}
		if dialogue.tls {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		}
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		var said bytes.Buffer
		in := bufio.NewReader(conn)
		lines, reply := strings.SplitAfter(dialogue.text, "\r\n"), true
		for _, line := range append([]string{""}, lines...) {
			if _, err := io.WriteString(conn, line); err != nil {
				break
			}
			if line == "DATA\r\n" {
				reply = true
			}
			if reply {
				text, err := readReply(in)
				said.WriteString(text)
				if err != nil {
					break
				}
				reply = !strings.HasPrefix(text, "354")
			} else if line == ".\r\n" {
				text, _ := readReply(in)
				said.WriteString(text)
				reply = true
			}
		}
		conn.Close()
		w.search("a reply of SMTP", said.Bytes())
	}
}

func readReply(in *bufio.Reader) (string, error) {
	all := ""
	for {
		line, err := in.ReadString('\n')
		all += line
		if err != nil || len(line) < 4 || line[3] != '-' {
			return all, err
		}
	}
}

// routes asks for everything that may be asked for, with and without tokens.
func (w *secretsWorld) routes() {
	w.t.Helper()
	get := func(method, path string, header map[string]string) []byte {
		req, err := http.NewRequestWithContext(w.t.Context(), method, path, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			w.t.Errorf("%s %s: %v", method, path, err)
			return nil
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			w.t.Errorf("%s %s: %v", method, path, err)
		}
		for name, values := range resp.Header {
			text = append(text, fmt.Sprintf("\n%s: %s", name, values)...)
		}
		w.search(method+" "+path, text)
		return text
	}
	auth := map[string]string{"Authorization": "Bearer " + w.admin}
	var doc struct{ Paths map[string]map[string]any }
	spec := get("GET", "http://"+w.api+"/openapi.json", nil)
	if err := json.NewDecoder(bytes.NewReader(spec)).Decode(&doc); err != nil || len(doc.Paths) < 40 {
		w.t.Fatalf("%d paths: %v", len(doc.Paths), err)
	}
	for path, methods := range doc.Paths {
		if methods["get"] == nil || path == "/v1/events" || strings.HasSuffix(path, "/message") { // which gives the message to who may have it
			continue
		}
		path = strings.NewReplacer("{address}", "anna@example.org", "{id}", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "{name}", "w").Replace(path)
		switch path {
		case "/v1/route":
			path += "?rcpt=anna@example.org"
		case "/v1/why":
			path += "?id=%3Cm@outside.example%3E"
		}
		get("GET", "http://"+w.api+path, auth)
	}
	wrong := w.plant("wrong-token")
	for range 8 {
		get("GET", "http://"+w.api+"/v1/users", map[string]string{"Authorization": "Bearer " + wrong})
	}
	get("GET", "http://"+w.api+"/v1/users?access_token="+url.QueryEscape(wrong), nil)
	get("GET", "http://"+w.lookup+"/", map[string]string{"X-Auth-Key": wrong, "Auth-User": "anna@example.org", "Auth-Pass": wrong, "Auth-Protocol": "imap", "Auth-Method": "plain"})
	key, err := os.ReadFile(filepath.Join(w.dir, "lookup.token"))
	if err != nil {
		w.t.Fatal(err)
	}
	get("GET", "http://"+w.lookup+"/", map[string]string{"X-Auth-Key": strings.TrimSpace(string(key)), "Auth-User": "anna@example.org", "Auth-Pass": wrong, "Auth-Protocol": "imap", "Auth-Method": "plain"})
}

// end has the process die with the stacks of all goroutines, and looks into all that it
// left behind. What holds a message or a secret by its nature is named here.
func (w *secretsWorld) end() {
	w.t.Helper()
	_ = w.cmd.Process.Signal(syscall.SIGQUIT)
	_ = w.cmd.Wait() // it says how it died
	if !strings.Contains(w.out.String(), "goroutine 1 ") || !strings.Contains(w.out.String(), "level=DEBUG") {
		w.t.Errorf("there are no stacks or no lines of debugging in the log:\n%.3000s", w.out.String())
	}
	w.search("the log", w.out.Bytes())
	holds := []string{"old.pw", "users.csv", "smart.pw", "secret", ".tok", "submitters", "admin.token", "lookup.token", "key.pem", "bad.yaml"}
	files := 0
	err := filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || slices.ContainsFunc(holds, func(s string) bool { return strings.HasSuffix(path, s) }) || strings.HasSuffix(path, ".pem") && strings.Contains(path, "key") {
			return err
		}
		if info, err := e.Info(); err == nil && strings.Contains(path, "/data/") && info.Mode().Perm()&0o077 != 0 {
			w.t.Errorf("others may use %s: %v", path, info.Mode())
		}
		text, err := os.ReadFile(path)
		files++
		if strings.Contains(path, "/data/") { // the queue has the message: that is its purpose
			text = bytes.ReplaceAll(text, []byte(w.body), nil)
		}
		w.search(path, bytes.TrimRight(text, "\x00"))
		return err
	})
	if err != nil || files < 5 {
		w.t.Errorf("%d files: %v", files, err)
	}
}

// TestSecretsPrintRedacted: a configuration that is printed in any way shows no secret.
func TestSecretsPrintRedacted(t *testing.T) {
	p := &planted{t: t}
	s := config.NewSecret(p.plant("value"))
	held := struct {
		S config.Secret
		P *config.Secret
	}{s, &s}
	data, err := json.Marshal(held)
	if err != nil {
		t.Fatal(err)
	}
	p.search("JSON", data)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		p.search(verb, fmt.Appendf(nil, verb, held))
	}
}
