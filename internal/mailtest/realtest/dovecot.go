package realtest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"

	"crossfade/internal/mailtest"
)

// Layout is how a Dovecot names and stores folders.
type Layout int

const (
	// Slash separates folders with "/" and stores them as nested directories (LAYOUT=fs).
	Slash Layout = iota
	// DotINBOX is Maildir++ with "." between levels, everything below "INBOX.".
	DotINBOX
	// Dot is Maildir++ with "." between levels and no prefix, Dovecot's default with a Maildir.
	Dot
	// Sdbox separates folders with "/" and keeps a file for each message in Dovecot's own format.
	Sdbox
)

// names gives the separator and the prefix of the user's own folders.
func (l Layout) names() (separator, prefix string) {
	switch l {
	case DotINBOX:
		return ".", "INBOX."
	case Dot:
		return ".", ""
	}
	return "/", ""
}

// location is Dovecot's mail_location for mail below a directory.
func (l Layout) location(root string) string {
	switch l {
	case Slash:
		return "maildir:" + root + "/%u/Maildir:LAYOUT=fs"
	case Sdbox:
		return "sdbox:" + root + "/%u/sdbox"
	}
	return "maildir:" + root + "/%u/Maildir"
}

// DovecotOptions says what kind of Dovecot to start. The zero value serves IMAP for every user name with the password
// "secret", with "/" between folders.
type DovecotOptions struct {
	Layout Layout
	// LMTP starts the delivery side too: over TCP and over a unix socket.
	LMTP bool
	// POP3 serves the INBOX over POP3 too (Debian: dovecot-pop3d).
	POP3 bool
	// Users limits who exists, at login and at RCPT of LMTP. Nil means everybody. The password is Password for all.
	Users    []string
	Password string // default "secret"
	// MasterUser, with MasterPassword (default "mastersecret"), may log in for everybody: as "user*master", and by PLAIN
	// with the user as authorization identity.
	MasterUser, MasterPassword string
	// SpecialUse are folders made and subscribed at first login, with their RFC 6154 attribute ("\\Sent"). Names are
	// without the namespace prefix.
	SpecialUse map[string]string
	// MailFsync is optimized (default), always or never.
	MailFsync string
	// Capability replaces the IMAP capabilities, or adds to them when it begins with "+".
	Capability string
	// TLS, when set, offers STARTTLS on both ports with these files; clear-text logins stay allowed.
	TLS *mailtest.CertFiles
	// Passdb replaces the passdb and userdb: a Dovecot that only proxies.
	Passdb string
	// Extra is put at the end of dovecot.conf.
	Extra string
}

// Dovecot is a running Dovecot. Fields stay the same over Stop and Start.
type Dovecot struct {
	IMAP
	LMTPAddr   string // 127.0.0.1:port, empty without LMTP
	LMTPSocket string // path, empty without LMTP
	POP3Addr   string // 127.0.0.1:port, empty without POP3
	MailRoot   string // below it: user/Maildir or user/sdbox
	LogFile    string
	Options    DovecotOptions

	dir    string
	path   string
	daemon *daemon
}

// dovecotConf is written for Dovecot 2.3, which Debian 12 has.
var dovecotConf = template.Must(template.New("dovecot.conf").Parse(`base_dir = {{.Dir}}/run
state_dir = {{.Dir}}/state
log_path = {{.LogFile}}
protocols = imap{{if .O.LMTP}} lmtp{{end}}{{if .O.POP3}} pop3{{end}}
listen = 127.0.0.1
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
mail_location = {{.Location}}
mail_fsync = {{.O.MailFsync}}
mail_max_userip_connections = 1000
first_valid_uid = 1
default_vsz_limit = 0
default_process_limit = 1000
default_client_limit = 4000
shutdown_clients = yes
{{- if .Self}}
default_internal_user = {{.Self}}
default_internal_group = {{.SelfGroup}}
default_login_user = {{.Self}}
{{- end}}
{{- if .O.TLS}}
ssl = yes
ssl_cert = <{{.O.TLS.Cert}}
ssl_key = <{{.O.TLS.Key}}
{{- else}}
ssl = no
{{- end}}
{{- if .O.MasterUser}}
auth_master_user_separator = *
passdb {
  driver = passwd-file
  args = {{.Dir}}/masters
  master = yes
}
{{- end}}
{{- if .O.Passdb}}
{{.O.Passdb}}
{{- else if .O.Users}}
passdb {
  driver = passwd-file
  args = {{.Dir}}/users
}
userdb {
  driver = passwd-file
  args = {{.Dir}}/users
}
{{- else}}
passdb {
  driver = static
  args = password={{.O.Password}}
}
userdb {
  driver = static
  args = uid={{.UID}} gid={{.GID}} home={{.MailRoot}}/%u
}
{{- end}}
namespace inbox {
  inbox = yes
  separator = {{.Separator}}
  prefix = {{.Prefix}}
{{- range $name, $use := .O.SpecialUse}}
  mailbox "{{$name}}" {
    auto = subscribe
    special_use = {{$use}}
  }
{{- end}}
}
service imap-login {
  {{if .Self}}chroot =
  {{end}}service_count = 0
  inet_listener imap {
    port = {{.IMAPPort}}
  }
  inet_listener imaps {
    port = 0
  }
}
service anvil {
  {{if .Self}}chroot =
  {{end}}unix_listener anvil-auth-penalty {
    mode = 0
  }
}
{{- if .Self}}
service stats {
  chroot =
}
{{- end}}
{{- if .O.POP3}}
service pop3-login {
  {{if .Self}}chroot =
  {{end}}inet_listener pop3 {
    port = {{.POP3Port}}
  }
  inet_listener pop3s {
    port = 0
  }
}
{{- end}}
{{- if .O.LMTP}}
service lmtp {
  unix_listener lmtp {
    mode = 0666
  }
  inet_listener lmtp {
    address = 127.0.0.1
    port = {{.LMTPPort}}
  }
}
protocol lmtp {
  postmaster_address = postmaster@dovecot.test
  hostname = dovecot.test
}
{{- end}}
{{- if .O.Capability}}
protocol imap {
  imap_capability = {{.O.Capability}}
}
{{- end}}
{{.O.Extra}}
`))

// mailUID owns the mail when root starts Dovecot. Dovecot takes numbers that no passwd entry names.
const mailUID = 5999

// StartDovecot starts a Dovecot and waits until it answers. It is stopped, and its mail removed, when the test ends.
func StartDovecot(t testing.TB, o DovecotOptions) *Dovecot {
	t.Helper()
	path := Need(t, "dovecot")
	if o.POP3 {
		needServer(t, "dovecot-pop3d", "/usr/lib/dovecot/pop3", "/usr/lib/dovecot/pop3-login")
	}
	if o.Password == "" {
		o.Password = "secret"
	}
	if o.MasterPassword == "" {
		o.MasterPassword = "mastersecret"
	}
	if o.MailFsync == "" {
		o.MailFsync = "optimized"
	}
	dir := publicDir(t, "dovecot")
	sep, prefix := o.Layout.names()
	d := &Dovecot{
		IMAP: IMAP{Name: "dovecot", Password: o.Password, Separator: sep, Prefix: prefix}, Options: o,
		dir: dir, path: path, MailRoot: filepath.Join(dir, "mail"), LogFile: filepath.Join(dir, "log"),
	}
	t.Cleanup(func() {
		d.Stop(t)
		if t.Failed() {
			t.Logf("dovecot's log ends with:\n%s", logTail(d.LogFile))
		}
	})
	var err error
	for range 3 { // a port that was free may be taken by now
		d.configure(t)
		if err = d.start(); err == nil {
			return d
		}
		d.Stop(t)
	}
	t.Fatalf("%v\n%s", err, logTail(d.LogFile))
	return nil
}

func (d *Dovecot) configure(t testing.TB) {
	t.Helper()
	imapPort, lmtpPort := FreePort(t), FreePort(t)
	d.IMAPAddr = fmt.Sprintf("127.0.0.1:%d", imapPort)
	pop3Port := 0
	if d.Options.POP3 {
		pop3Port = FreePort(t)
		d.POP3Addr = fmt.Sprintf("127.0.0.1:%d", pop3Port)
	}
	if d.Options.LMTP {
		d.LMTPAddr = fmt.Sprintf("127.0.0.1:%d", lmtpPort)
		d.LMTPSocket = filepath.Join(d.dir, "run", "lmtp")
	}
	uid, gid := os.Getuid(), os.Getgid()
	var self, group string
	if uid == 0 {
		uid, gid = mailUID, mailUID
	} else {
		self, group = ownNames(t)
	}
	var conf strings.Builder
	err := dovecotConf.Execute(&conf, map[string]any{
		"O": d.Options, "Dir": d.dir, "LogFile": d.LogFile, "MailRoot": d.MailRoot,
		"Location": d.Options.Layout.location(d.MailRoot), "Separator": d.Separator, "Prefix": d.Prefix,
		"POP3Port": pop3Port, "Self": self, "SelfGroup": group, "UID": uid, "GID": gid, "IMAPPort": imapPort, "LMTPPort": lmtpPort,
	})
	if err != nil {
		t.Fatalf("write dovecot.conf: %v", err)
	}
	var users strings.Builder
	for _, u := range d.Options.Users {
		fmt.Fprintf(&users, "%s:{PLAIN}%s:%d:%d::%s/%s\n", u, d.Options.Password, uid, gid, d.MailRoot, u)
	}
	masters := fmt.Sprintf("%s:{PLAIN}%s\n", d.Options.MasterUser, d.Options.MasterPassword)
	writeFile(t, filepath.Join(d.dir, "dovecot.conf"), conf.String())
	writeFile(t, filepath.Join(d.dir, "users"), users.String())
	writeFile(t, filepath.Join(d.dir, "masters"), masters)
	if err := os.MkdirAll(d.MailRoot, 0o755); err != nil {
		t.Fatalf("make the mail directory: %v", err)
	}
	if err := os.Chown(d.MailRoot, uid, gid); err != nil {
		t.Fatalf("give the mail directory to its user: %v", err)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatalf("write configuration: %v", err)
	}
}

func (d *Dovecot) start() error {
	dm, err := startDaemon("dovecot", filepath.Join(d.dir, "out"), nil, d.path, "-F", "-c", filepath.Join(d.dir, "dovecot.conf"))
	if err != nil {
		return err
	}
	d.daemon = dm
	if err := dm.ready(greets(d.IMAPAddr, "* OK")); err != nil {
		return err
	}
	if d.Options.POP3 {
		if err := dm.ready(greets(d.POP3Addr, "+OK")); err != nil {
			return err
		}
	}
	if d.Options.LMTP {
		return dm.ready(greets(d.LMTPAddr, "220 "))
	}
	return nil
}

// Start starts it again after Stop, on the same ports and with the same mail.
func (d *Dovecot) Start(t testing.TB) {
	t.Helper()
	if err := d.start(); err != nil {
		t.Fatalf("%v\n%s", err, logTail(d.LogFile))
	}
}

// Stop stops it and cuts its connections; the mail stays. Stopping twice is harmless.
func (d *Dovecot) Stop(t testing.TB) {
	t.Helper()
	if d.daemon != nil {
		d.daemon.stop(t)
		d.daemon = nil
	}
}

// LMTPURL returns the URL of the unix socket for Crossfade's configuration.
func (d *Dovecot) LMTPURL() string { return "lmtp+unix://" + d.LMTPSocket }

// MaildirFiles returns the message files of a user, all folders together, without asking Dovecot.
func (d *Dovecot) MaildirFiles(t testing.TB, user string) []string {
	t.Helper()
	// Dovecot renames what it shows to a client, from new to cur and for flags, and a
	// file that is renamed while a directory is read may be missed or seen twice. Two
	// equal looks in a row are the truth.
	before := d.lookAtMaildir(t, user)
	for range 20 {
		now := d.lookAtMaildir(t, user)
		if slices.Equal(before, now) {
			return now
		}
		before = now
	}
	return before
}

func (d *Dovecot) lookAtMaildir(t testing.TB, user string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(d.MailRoot, user), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if dir := filepath.Base(filepath.Dir(path)); !e.IsDir() && (dir == "cur" || dir == "new") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatalf("walk the Maildir of %s: %v", user, err)
	}
	return files
}

// CountAll returns the number of message files per user, read from the disk.
func (d *Dovecot) CountAll(t testing.TB) map[string]int {
	t.Helper()
	entries, err := os.ReadDir(d.MailRoot)
	if err != nil {
		t.Fatalf("read the mail directory: %v", err)
	}
	counts := make(map[string]int)
	for _, e := range entries {
		counts[e.Name()] = len(d.MaildirFiles(t, e.Name()))
	}
	return counts
}
