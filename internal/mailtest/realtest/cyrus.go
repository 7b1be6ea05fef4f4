package realtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/template"
)

// CyrusOptions says what kind of Cyrus to start. The zero value is a Cyrus 3 as it comes: "/" between the levels, folders
// beside INBOX, every user name with the password "secret".
type CyrusOptions struct {
	// Classic names folders as Cyrus 2 did: "." between the levels, everything below "INBOX.".
	Classic  bool
	Password string // default "secret"
	// Admin, with AdminPassword (default "adminsecret"), may log in for everybody by PLAIN with the user as
	// authorization identity (proxyservers).
	Admin, AdminPassword string
	// LMTP takes mail on a socket, Cyrus.LMTPSocket, for any user.
	LMTP     bool
	QuotaKiB int // of a new mailbox; 0 is none
	// Extra is put at the end of imapd.conf.
	Extra string
}

// Cyrus is a running Cyrus IMAP server.
type Cyrus struct {
	IMAP
	LMTPSocket string // path, empty without LMTP
	Options    CyrusOptions

	dir    string
	daemon *daemon
}

var cyrusConf = template.Must(template.New("imapd.conf").Parse(`configdirectory: {{.Dir}}/conf
defaultpartition: default
partition-default: {{.Dir}}/spool
proc_path: {{.Dir}}/conf/proc
mboxname_lockpath: {{.Dir}}/conf/lock
idlesocket: {{.Dir}}/conf/socket/idle
lmtpsocket: {{.Dir}}/conf/socket/lmtp
notifysocket: {{.Dir}}/conf/socket/notify
servername: cyrus.test
cyrus_user: {{.User}}
cyrus_group: {{.Group}}
admins: cyrusadmin
{{- if .O.Admin}}
proxyservers: {{.O.Admin}}
{{- end}}
virtdomains: userid
defaultdomain: cyrus.test
altnamespace: {{if .O.Classic}}no{{else}}yes{{end}}
unixhierarchysep: {{if .O.Classic}}no{{else}}yes{{end}}
autocreate_quota: {{.O.QuotaKiB}}
autocreate_post: yes
allowplaintext: yes
skiplist_unsafe: yes
sasl_mech_list: PLAIN LOGIN
sasl_pwcheck_method: saslauthd
sasl_saslauthd_path: {{.Dir}}/auth/mux
{{.O.Extra}}
`))

const cyrusServices = `START {
  recover cmd="ctl_cyrusdb -r"
}
SERVICES {
  imap cmd="%s" listen="127.0.0.1:%d" proto="tcp4" prefork=0 maxchild=200
%s}
EVENTS {
}
`

// StartCyrus starts a Cyrus and waits until it answers. It is stopped, and its mail removed, when the test ends. Mailboxes
// are made at the first login.
func StartCyrus(t testing.TB, o CyrusOptions) *Cyrus {
	t.Helper()
	master := needServer(t, "cyrus-common", "/usr/lib/cyrus/bin/master", "/usr/lib/cyrus/bin/ctl_cyrusdb")
	imapd := needServer(t, "cyrus-imapd", "/usr/lib/cyrus/bin/imapd", "/usr/lib/cyrus/bin/imapd")
	o.Password, o.AdminPassword = defaultTo(o.Password, "secret"), defaultTo(o.AdminPassword, "adminsecret")
	c := &Cyrus{Options: o, dir: publicDir(t, "cyrus")}
	c.IMAP = IMAP{Name: "cyrus", Password: o.Password, Separator: "/"}
	if o.Classic {
		c.Separator, c.Prefix = ".", "INBOX."
	}
	more := ""
	if o.LMTP {
		lmtpd := needServer(t, "cyrus-common", "/usr/lib/cyrus/bin/lmtpd", "/usr/lib/cyrus/bin/lmtpd")
		c.LMTPSocket = filepath.Join(c.dir, "conf", "socket", "lmtp")
		more = fmt.Sprintf("  lmtp cmd=%q listen=%q prefork=0 maxchild=50\n", lmtpd+" -C "+filepath.Join(c.dir, "imapd.conf"), c.LMTPSocket)
	}
	c.configure(t)
	c.serveLogins(t)
	t.Cleanup(func() {
		c.Stop(t)
		if t.Failed() {
			t.Logf("cyrus printed:\n%s", logTail(filepath.Join(c.dir, "out")))
		}
	})
	var err error
	for range 3 { // a port that was free may be taken by now
		port := FreePort(t)
		c.IMAPAddr = fmt.Sprintf("127.0.0.1:%d", port)
		writeFile(t, filepath.Join(c.dir, "cyrus.conf"), fmt.Sprintf(cyrusServices, imapd+" -C "+filepath.Join(c.dir, "imapd.conf"), port, more))
		if err = c.start(master); err == nil {
			return c
		}
		c.Stop(t)
	}
	t.Fatal(err)
	return nil
}

func (c *Cyrus) start(master string) error {
	d, err := startDaemon("cyrus", filepath.Join(c.dir, "out"), nil, master,
		"-D", "-C", filepath.Join(c.dir, "imapd.conf"), "-M", filepath.Join(c.dir, "cyrus.conf"), "-p", filepath.Join(c.dir, "master.pid"))
	if err != nil {
		return err
	}
	c.daemon = d
	return d.ready(greets(c.IMAPAddr, "* OK"))
}

// Stop stops it and cuts its connections; the mail stays. Stopping twice is harmless.
func (c *Cyrus) Stop(t testing.TB) {
	t.Helper()
	if c.daemon != nil {
		c.daemon.stop(t)
		c.daemon = nil
	}
}

// configure writes imapd.conf and makes the directories that Cyrus wants to find, owned by the user that it becomes.
func (c *Cyrus) configure(t testing.TB) {
	t.Helper()
	name, group, uid, gid := c.owner(t)
	var conf strings.Builder
	if err := cyrusConf.Execute(&conf, map[string]any{"Dir": c.dir, "O": c.Options, "User": name, "Group": group}); err != nil {
		t.Fatalf("write imapd.conf: %v", err)
	}
	writeFile(t, filepath.Join(c.dir, "imapd.conf"), conf.String())
	for _, sub := range []string{"conf", "conf/db", "conf/socket", "conf/proc", "conf/log", "conf/msg", "conf/ptclient", "conf/lock", "conf/user",
		"conf/quota", "conf/sieve", "spool", "spool/stage."} {
		dir := filepath.Join(c.dir, sub)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatalf("make a directory of cyrus: %v", err)
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatalf("give a directory of cyrus to its user: %v", err)
		}
	}
}

// owner is the user that Cyrus runs as: that of Debian's package when we are root, else ourselves.
func (c *Cyrus) owner(t testing.TB) (name, group string, uid, gid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		name, group = ownNames(t)
		return name, group, os.Getuid(), os.Getgid()
	}
	u, err := user.Lookup("cyrus")
	if err != nil {
		lack(t, "the user cyrus does not exist (Debian: apt-get install cyrus-common)")
		return
	}
	uid, _ = strconv.Atoi(u.Uid) // a number on every Unix
	gid, _ = strconv.Atoi(u.Gid)
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		t.Fatalf("the group of cyrus: %v", err)
	}
	return "cyrus", g.Name, uid, gid
}

// serveLogins answers Cyrus's questions about passwords as saslauthd would.
func (c *Cyrus) serveLogins(t testing.TB) {
	t.Helper()
	dir := filepath.Join(c.dir, "auth")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatalf("make a directory of cyrus: %v", err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "mux"))
	if err != nil {
		t.Fatalf("listen for cyrus's logins: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "mux"), 0o777); err != nil {
		t.Fatalf("open the socket for cyrus's logins: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.answerLogin(conn)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}

// answerLogin speaks saslauthd's protocol: user, password, service and realm, each behind its length in two octets; the
// answer is of the same form.
func (c *Cyrus) answerLogin(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	var words [4]string
	for i := range words {
		var n uint16
		if binary.Read(conn, binary.BigEndian, &n) != nil {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(conn, b); err != nil {
			return
		}
		words[i] = string(b)
	}
	name, password, realm := words[0], words[1], words[3]
	want := c.Options.Password
	if name == "cyrusadmin" || c.Options.Admin != "" && (name == c.Options.Admin || name+"@"+realm == c.Options.Admin) {
		want = c.Options.AdminPassword
	}
	answer := "NO"
	if password == want {
		answer = "OK"
	}
	_ = binary.Write(conn, binary.BigEndian, uint16(len(answer))) // Cyrus may be gone
	_, _ = io.WriteString(conn, answer)
}

// Spool is the directory of its mail, a file for each message.
func (c *Cyrus) Spool() string { return filepath.Join(c.dir, "spool") }
