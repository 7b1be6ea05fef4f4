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

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// Layout is how a Dovecot names and stores folders.
type Layout int

const (
	// Slash separates folders with "/" and stores them as nested directories (LAYOUT=fs).
	Slash Layout = iota
	// DotINBOX is Maildir++ with "." between levels, everything below "INBOX.".
	DotINBOX
)

// DovecotOptions says what kind of Dovecot to start. The zero value serves IMAP for every user name with the password
// "secret", with "/" between folders.
type DovecotOptions struct {
	Layout Layout
	// LMTP starts the delivery side too: over TCP and over a unix socket.
	LMTP bool
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
	// Extra is put at the end of dovecot.conf.
	Extra string
}

// Dovecot is a running Dovecot. Fields stay the same over Stop and Start.
type Dovecot struct {
	IMAPAddr   string // 127.0.0.1:port
	LMTPAddr   string // 127.0.0.1:port, empty without LMTP
	LMTPSocket string // path, empty without LMTP
	MailRoot   string // below it: user/Maildir
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
protocols = imap{{if .O.LMTP}} lmtp{{end}}
listen = 127.0.0.1
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
mail_location = maildir:{{.MailRoot}}/%u/Maildir{{if .Slash}}:LAYOUT=fs{{end}}
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
{{- if .O.Users}}
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
  separator = {{if .Slash}}/{{else}}.
  prefix = INBOX.{{end}}
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
	d := &Dovecot{Options: o, dir: dir, path: path, MailRoot: filepath.Join(dir, "mail"), LogFile: filepath.Join(dir, "log")}
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
	}
	t.Fatalf("%v\n%s", err, logTail(d.LogFile))
	return nil
}

func (d *Dovecot) configure(t testing.TB) {
	t.Helper()
	imapPort, lmtpPort := FreePort(t), FreePort(t)
	d.IMAPAddr = fmt.Sprintf("127.0.0.1:%d", imapPort)
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
		"O": d.Options, "Dir": d.dir, "LogFile": d.LogFile, "MailRoot": d.MailRoot, "Slash": d.Options.Layout == Slash,
		"Self": self, "SelfGroup": group, "UID": uid, "GID": gid, "IMAPPort": imapPort, "LMTPPort": lmtpPort,
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

// IMAPURL returns the URL for Crossfade's configuration.
func (d *Dovecot) IMAPURL() string { return "imap+insecure://" + d.IMAPAddr }

// LMTPURL returns the URL of the unix socket for Crossfade's configuration.
func (d *Dovecot) LMTPURL() string { return "lmtp+unix://" + d.LMTPSocket }

// Login connects as a user. The connection is closed when the test ends; close it earlier if there are many.
func (d *Dovecot) Login(t testing.TB, user string) *imapclient.Client {
	t.Helper()
	c, err := imapclient.DialInsecure(d.IMAPAddr, nil)
	if err != nil {
		t.Fatalf("connect to dovecot: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Login(user, d.Options.Password).Wait(); err != nil {
		t.Fatalf("log in to dovecot as %s: %v", user, err)
	}
	return c
}

// Append puts a message into a folder, which is made when it does not exist, and returns its UID.
func (d *Dovecot) Append(t testing.TB, user, folder string, m mailtest.StoredMessage) uint32 {
	t.Helper()
	c := d.Login(t, user)
	defer func() { _ = c.Close() }()
	if !strings.EqualFold(folder, "INBOX") {
		_ = c.Create(folder, nil).Wait() // it may exist; if it cannot be made APPEND will say so
	}
	opts := &imap.AppendOptions{Time: m.InternalDate}
	for _, f := range m.Flags {
		opts.Flags = append(opts.Flags, imap.Flag(f))
	}
	cmd := c.Append(folder, int64(len(m.Body)), opts)
	if _, err := cmd.Write(m.Body); err != nil {
		t.Fatalf("append to %s of %s: %v", folder, user, err)
	}
	if err := cmd.Close(); err != nil {
		t.Fatalf("append to %s of %s: %v", folder, user, err)
	}
	data, err := cmd.Wait()
	if err != nil {
		t.Fatalf("append to %s of %s: %v", folder, user, err)
	}
	return uint32(data.UID)
}

// Folders returns the names of a user's selectable folders, sorted.
func (d *Dovecot) Folders(t testing.TB, user string) []string {
	t.Helper()
	c := d.Login(t, user)
	defer func() { _ = c.Close() }()
	l, err := c.List("", "*", nil).Collect()
	if err != nil {
		t.Fatalf("list the folders of %s: %v", user, err)
	}
	var names []string
	for _, data := range l {
		if !slices.Contains(data.Attrs, imap.MailboxAttrNoSelect) && !slices.Contains(data.Attrs, imap.MailboxAttrNonExistent) {
			names = append(names, data.Mailbox)
		}
	}
	slices.Sort(names)
	return names
}

// Messages returns what a folder holds, over IMAP, in UID order and without changing it.
func (d *Dovecot) Messages(t testing.TB, user, folder string) []mailtest.StoredMessage {
	t.Helper()
	c := d.Login(t, user)
	defer func() { _ = c.Close() }()
	sel, err := c.Select(folder, &imap.SelectOptions{ReadOnly: true}).Wait()
	if err != nil {
		t.Fatalf("open %s of %s: %v", folder, user, err)
	}
	if sel.NumMessages == 0 {
		return nil
	}
	section := &imap.FetchItemBodySection{Peek: true}
	bufs, err := c.Fetch(imap.SeqSet{{Start: 1, Stop: sel.NumMessages}}, &imap.FetchOptions{
		UID: true, Flags: true, InternalDate: true, BodySection: []*imap.FetchItemBodySection{section},
	}).Collect()
	if err != nil {
		t.Fatalf("read %s of %s: %v", folder, user, err)
	}
	l := make([]mailtest.StoredMessage, 0, len(bufs))
	for _, b := range bufs {
		m := mailtest.StoredMessage{UID: uint32(b.UID), InternalDate: b.InternalDate, Body: b.FindBodySection(section)}
		for _, f := range b.Flags {
			if f != `\Recent` { // says something about the session, not the message
				m.Flags = append(m.Flags, string(f))
			}
		}
		slices.Sort(m.Flags)
		l = append(l, m)
	}
	return l
}

// MaildirFiles returns the message files of a user, all folders together, without asking Dovecot.
func (d *Dovecot) MaildirFiles(t testing.TB, user string) []string {
	t.Helper()
	var files []string
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
