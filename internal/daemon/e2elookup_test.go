package daemon_test

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/router"

	"github.com/emersion/go-imap/v2/imapclient"
)

// lookupWorld is two Dovecots and two submission servers, and a daemon that
// answers lookups about who is where.
type lookupWorld struct {
	*world
	*running
	public            string // a directory that every user may enter
	socket, tcp, http string
	submit            map[string]*mailtest.Sink
	key               string
}

// thisIsNew is in a message that only the new mailboxes have.
const thisIsNew = "this mailbox is on new"

func newLookupWorld(t *testing.T, users int) *lookupWorld {
	t.Helper()
	l := &lookupWorld{world: newWorld(t, users, 4), submit: map[string]*mailtest.Sink{}}
	for _, side := range []string{"old", "new"} {
		s, err := mailtest.NewSink(mailtest.SinkConfig{Hostname: side + ".test", Auth: func(_, password string) bool { return password == "secret" }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		l.submit[side] = s
	}
	dir, err := os.MkdirTemp("", "cf-lookup-") // Postfix, as another user, has to get in
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l.public, l.socket = dir, filepath.Join(dir, "socketmap")
	l.key = "a-key-that-proxies-know"
	l.share("key", l.key+"\n")
	l.configure("127.0.0.1:0", "127.0.0.1:0")
	b, err := os.ReadFile(l.cfgPath)
	if err != nil {
		t.Fatal(err)
	}
	l.write("crossfade.yaml", string(b)+fmt.Sprintf(`routing: {unknown: reject}
lookup:
  socketmap: ["127.0.0.1:0", "unix:%s"]
  tcp_table: ["127.0.0.1:0"]
  http: ["127.0.0.1:0"]
  token_file: %s
  socket_mode: "0666"
  nginx_smtp: true
  transport: {old: "lmtp:unix:%s", new: "lmtp:unix:%s", relay: "smtp:[127.0.0.1]:%d"}
  imap: {old: "imap+insecure://%s", new: "imap+insecure://%s"}
  submission: {old: "submission+insecure://%s", new: "submission+insecure://%s"}
`, l.socket, filepath.Join(l.public, "key"), l.old.LMTPSocket, l.new.LMTPSocket, 9, l.old.IMAPAddr, l.new.IMAPAddr, l.submit["old"].Addr(), l.submit["new"].Addr()))
	l.running = l.serve()
	addrs := l.d.LookupAddrs()
	l.tcp, l.http = addrs[2].String(), addrs[3].String()
	var lines []string
	for _, u := range l.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, l.client, append(lines, "info@"+e2eDomain+",,,alias,"+l.users[0]))
	for _, u := range l.users { // old has past mail; this one tells new from it
		l.new.Append(t, u, "INBOX", mailtest.StoredMessage{InternalDate: time.Now(), Body: []byte("Subject: new\r\n\r\n" + thisIsNew + "\r\n")})
	}
	return l
}

// share writes a file that programs of other users read.
func (l *lookupWorld) share(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.public, name), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// move sets a user's state by hand.
func (l *lookupWorld) move(t *testing.T, user string, to router.State) {
	t.Helper()
	if _, err := l.client.SetState(t.Context(), user, admin.StateChange{State: to, Force: true, Reason: "lookup"}); err != nil {
		t.Fatal(err)
	}
}

// read logs in at a proxy and tells on which side the mailbox is.
func (l *lookupWorld) read(t *testing.T, addr, login string) string {
	t.Helper()
	proxy := realtest.IMAP{Name: "the proxy", IMAPAddr: addr, Password: "secret"}
	all := proxy.Messages(t, login, "INBOX")
	if len(all) == 0 {
		t.Fatalf("%s sees an empty mailbox through the proxy", login)
	}
	if strings.Contains(string(all[0].Body), thisIsNew) {
		return "new"
	}
	return "old"
}

// refusal gives the words with which a login is refused.
func (l *lookupWorld) refusal(t *testing.T, addr, login, password string) string {
	t.Helper()
	c, err := imapclient.DialInsecure(addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Login(login, password).Wait(); err != nil {
		return err.Error()
	}
	t.Errorf("%s may log in with %s", login, password)
	return ""
}

// steps is one user's way through the states, with the side that he reads.
var steps = []struct {
	to   router.State
	side string
}{{"", "old"}, {router.StateSyncing, "old"}, {router.StateReady, "old"}, {router.StateCutover, "old"}, {router.StateNew, "new"}, {router.StateRollback, "new"}, {router.StateOld, "old"}}

// TestLookupNginx: people log in through the mail proxy of nginx, are flipped,
// log in again, and arrive at the other server.
func TestLookupNginx(t *testing.T) {
	t.Parallel()
	l := newLookupWorld(t, 2)
	n := realtest.StartNginx(t, realtest.NginxOptions{AuthHTTP: l.http + "/nginx", Key: l.key, SMTPAuth: true})
	user, other := l.users[0], l.users[1]
	for _, s := range steps {
		if s.to != "" {
			l.move(t, user, s.to)
		}
		for _, login := range []string{user, "info@" + e2eDomain, strings.TrimSuffix(user, "@"+e2eDomain) + "+tag@" + e2eDomain} {
			if got := l.read(t, n.IMAPAddr, login); got != s.side {
				t.Errorf("%s in state %q arrives at %s", login, s.to, got)
			}
		}
		if got := submitAs(t, n.SMTPAddr, user, "secret"); got != "" {
			t.Errorf("submission in state %q: %s", s.to, got)
		}
		if got := l.submit[s.side].Count(); got == 0 {
			t.Errorf("submission in state %q did not arrive at %s", s.to, s.side)
		}
		l.submit["old"].Forget()
		l.submit["new"].Forget()
	}
	if got := l.read(t, n.IMAPAddr, other); got != "old" {
		t.Errorf("somebody else arrives at %s", got)
	}
	for _, login := range []string{"nobody@" + e2eDomain, "ann@elsewhere.test"} {
		if got := l.refusal(t, n.IMAPAddr, login, "secret"); !strings.Contains(got, "Invalid login or password") {
			t.Errorf("%s: %s", login, got)
		}
	}
	if got := l.refusal(t, n.IMAPAddr, user, "wrong"); !strings.Contains(strings.ToLower(got), "authentication failed") {
		t.Errorf("a wrong password: %s", got)
	}
	if got := submitAs(t, n.SMTPAddr, user, "wrong"); !strings.HasPrefix(got, "535") {
		t.Errorf("a wrong password for submission: %q", got)
	}
	l.noSecrets(t)
}

// noSecrets looks for passwords and the key in the log.
func (l *lookupWorld) noSecrets(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(l.logPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"secret", "wrong", l.key} {
		if strings.Contains(string(b), "="+secret) || strings.Contains(string(b), l.key) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

// submitAs logs in for submission and sends a message; it gives the reply that
// refused one of the two.
func submitAs(t *testing.T, addr, user, password string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	s := &smtpSession{conn: conn, text: textproto.NewConn(conn)}
	defer func() { _ = s.close() }()
	if _, _, err := s.text.ReadResponse(220); err != nil {
		t.Fatal(err)
	}
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
	for _, step := range []struct {
		code int
		line string
	}{{250, "EHLO client.test"}, {235, "AUTH PLAIN " + plain}, {250, "MAIL FROM:<" + user + ">"}, {250, "RCPT TO:<x@elsewhere.test>"}, {354, "DATA"}, {250, "Subject: x\r\n\r\nx\r\n."}} {
		if err := s.cmd(step.code, "%s", step.line); err != nil {
			return err.Error()
		}
	}
	return ""
}

// TestLookupDovecot: the same through a Dovecot proxy with the Lua passdb of
// deploy/, and what it says while Crossfade is away.
func TestLookupDovecot(t *testing.T) {
	t.Parallel()
	realtest.NeedDovecotLua(t)
	l := newLookupWorld(t, 1)
	script, err := os.ReadFile("../../deploy/dovecot/crossfade.lua")
	if err != nil {
		t.Fatal(err)
	}
	text := string(script)
	for from, to := range map[string]string{
		`"http://127.0.0.1:8026/dovecot"`: fmt.Sprintf("%q", "http://"+l.http+"/dovecot"), `"/etc/crossfade/lookup.token"`: fmt.Sprintf("%q", filepath.Join(l.public, "key")),
	} {
		if !strings.Contains(text, from) {
			t.Fatalf("the example has no %s", from)
		}
		text = strings.Replace(text, from, to, 1)
	}
	l.share("crossfade.lua", text)
	p := realtest.StartDovecot(t, realtest.DovecotOptions{
		Passdb: "passdb {\n  driver = lua\n  args = file=" + filepath.Join(l.public, "crossfade.lua") + " blocking=yes\n}\nuserdb {\n  driver = prefetch\n}\nauth_cache_size = 0\n",
	})
	user := l.users[0]
	for _, s := range steps {
		if s.to != "" {
			l.move(t, user, s.to)
		}
		for _, login := range []string{user, "info@" + e2eDomain} {
			if got := l.read(t, p.IMAPAddr, login); got != s.side {
				t.Errorf("%s in state %q arrives at %s", login, s.to, got)
			}
		}
	}
	if got := l.refusal(t, p.IMAPAddr, "nobody@"+e2eDomain, "secret"); !strings.Contains(got, "AUTHENTICATIONFAILED") {
		t.Errorf("an unknown user: %s", got)
	}
	if got := l.refusal(t, p.IMAPAddr, user, "wrong"); !strings.Contains(got, "AUTHENTICATIONFAILED") {
		t.Errorf("a wrong password: %s", got)
	}
	l.noSecrets(t)
	l.running.stop()
	if got := l.refusal(t, p.IMAPAddr, user, "secret"); !strings.Contains(got, "UNAVAILABLE") || strings.Contains(got, "AUTHENTICATIONFAILED") {
		t.Errorf("while Crossfade is away a client must not lose its password: %s", got)
	}
}

// holding counts the messages of a mailbox that hold a text. Sweeps carry others
// there at any time.
func holding(t *testing.T, dc *realtest.Dovecot, user, text string) (n int) {
	t.Helper()
	for _, name := range dc.MaildirFiles(t, user) {
		b, err := os.ReadFile(name)
		if err != nil && !os.IsNotExist(err) { // it may have moved from new to cur
			t.Fatal(err)
		}
		if strings.Contains(string(b), text) {
			n++
		}
	}
	return n
}

// TestLookupPostfix: postmap and a running Postfix ask both protocols, and the
// Postfix delivers where the user is.
func TestLookupPostfix(t *testing.T) {
	t.Parallel()
	l := newLookupWorld(t, 2)
	user, other := l.users[0], l.users[1]
	table := "socketmap:unix:" + l.socket + ":transport"
	p := realtest.StartPostfix(t, realtest.PostfixOptions{
		Domains: []string{e2eDomain}, NextHop: "smtp:[127.0.0.1]:9", Recipients: []string{user, other},
		Extra: "transport_maps = socketmap:unix:" + l.socket + ":transport\nvirtual_mailbox_maps = socketmap:unix:" + l.socket + ":recipient\nvirtual_alias_maps = socketmap:unix:" + l.socket + ":alias\n",
	})
	way := map[string]string{"old": "lmtp:unix:" + l.old.LMTPSocket, "new": "lmtp:unix:" + l.new.LMTPSocket}
	box := map[string]*realtest.Dovecot{"old": l.old, "new": l.new}
	for n, s := range steps {
		if s.to != "" {
			l.move(t, user, s.to)
		}
		want := way[s.side]
		held := s.to.Held()
		if held {
			want = "smtp:[127.0.0.1]:9"
		}
		for _, name := range []string{table, "tcp:" + l.tcp, strings.Replace(table, "unix:"+l.socket, "inet:"+l.d.LookupAddrs()[0].String(), 1)} {
			if got, found, err := p.Postmap(t, name, user); err != nil || !found || got != want {
				t.Errorf("%s in state %q: %q, %t, %v; want %q", name, s.to, got, found, err, want)
			}
		}
		if held {
			continue
		}
		// qmgr remembers the last address that it resolved for 30 s: ask for another one in between.
		for _, to := range []string{other, user, "info@" + e2eDomain} {
			if out, status := realtest.Swaks(t, t.Context(), p.Addr, "--from", "sender@outside.test", "--to", to, "--header", fmt.Sprintf("Subject: lookup-%d.", n)); status != 0 {
				t.Fatalf("swaks: %s", out)
			}
		}
		poll(t, 20*time.Second, "mail in state "+string(s.to), func() (bool, error) {
			have := holding(t, box[s.side], user, fmt.Sprintf("Subject: lookup-%d.", n))
			return have == 2, fmt.Errorf("%d messages on %s, want 2", have, s.side)
		})
	}
	if out, status := realtest.Swaks(t, t.Context(), p.Addr, "--from", "sender@outside.test", "--to", "nobody@"+e2eDomain); status == 0 || !strings.Contains(out, "User unknown in virtual mailbox table") {
		t.Errorf("an unknown user at Postfix: %s", out)
	}
	for _, name := range []string{table, "tcp:" + l.tcp} {
		for _, key := range []string{"nobody@" + e2eDomain, e2eDomain, "ann@elsewhere.test"} {
			if got, found, err := p.Postmap(t, name, key); err != nil || found {
				t.Errorf("%s %s: %q, %t, %v", name, key, got, found, err)
			}
		}
	}
	l.running.stop()
	if got, found, err := p.Postmap(t, table, user); err == nil {
		t.Errorf("while Crossfade is away: %q, %t", got, found)
	}
	if _, err := os.Stat(l.socket); err == nil {
		t.Error("the socket stays behind")
	}
}
