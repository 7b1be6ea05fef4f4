package realtest

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"crossfade/internal/mailtest"
)

// PostfixOptions says what kind of Postfix to start. NextHop or Maildir must be set.
type PostfixOptions struct {
	// Domains are what it accepts mail for; nil means example.org. Everything else is refused as relaying.
	Domains []string
	// Recipients are the addresses that exist; others are refused with 550 at RCPT. Nil means everybody in Domains.
	Recipients []string
	// NextHop is where accepted mail goes, as a Postfix transport: "lmtp:unix:/path", "lmtp:inet:127.0.0.1:24",
	// "smtp:[127.0.0.1]:2525".
	NextHop string
	// Maildir, in the place of NextHop, delivers all mail to one Maildir, Postfix.Maildir.
	Maildir bool
	// TLS, when set, offers STARTTLS with these files.
	TLS *mailtest.CertFiles
	// XClient lets clients on the loopback address use XCLIENT and XFORWARD.
	XClient bool
	// ProxyHeader has it listen on Postfix.ProxyAddr besides, where each connection begins with a PROXY header.
	ProxyHeader bool
	// MaxSize is message_size_limit in bytes; 0 means 100 MiB.
	MaxSize int64
	// Extra is put at the end of main.cf and overrides what stands above it.
	Extra string
}

// Postfix is a running Postfix.
type Postfix struct {
	Addr      string // where it speaks SMTP, 127.0.0.1:port
	ProxyAddr string // where it wants a PROXY header first; empty without PostfixOptions.ProxyHeader
	LogFile   string
	Queue     string // queue_directory
	Maildir   string // with PostfixOptions.Maildir

	dir    string
	daemon *daemon
}

var postfixMain = template.Must(template.New("main.cf").Parse(`compatibility_level = 3.6
queue_directory = {{.Dir}}/queue
data_directory = {{.Dir}}/data
maillog_file = {{.Dir}}/log
maillog_file_prefixes = {{.Dir}}
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.test
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtpd_peername_lookup = no
smtpd_relay_restrictions = reject_unauth_destination
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_error_sleep_time = 0
smtpd_sasl_auth_enable = no
virtual_mailbox_domains ={{range .O.Domains}} {{.}}{{end}}
virtual_mailbox_maps = texthash:{{.Dir}}/etc/recipients
virtual_transport = {{.O.NextHop}}
lmtp_destination_recipient_limit = 50
message_size_limit = {{.O.MaxSize}}
mailbox_size_limit = 0
virtual_mailbox_limit = 0
minimal_backoff_time = 1s
queue_run_delay = 1s
smtp_tls_security_level = none
{{- if .O.TLS}}
smtpd_tls_security_level = may
smtpd_tls_cert_file = {{.O.TLS.Cert}}
smtpd_tls_key_file = {{.O.TLS.Key}}
{{- end}}
{{- if .O.XClient}}
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_authorized_xforward_hosts = 127.0.0.0/8
{{- end}}
{{.O.Extra}}
`))

// postfixMaster lists the services, none of them in a chroot.
const postfixMaster = `127.0.0.1:%d inet n - n - 100 smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
lmtp unix - - n - - lmtp
virtual unix - n n - - virtual
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

// StartPostfix starts a Postfix and waits until it greets. It is stopped when the test ends. It needs root.
func StartPostfix(t testing.TB, o PostfixOptions) *Postfix {
	t.Helper()
	path := Need(t, "postfix")
	needRoot(t, "postfix")
	if o.NextHop == "" && !o.Maildir {
		t.Fatal("start postfix: PostfixOptions.NextHop is empty; name a transport such as lmtp:unix:/path")
	}
	if o.Domains == nil {
		o.Domains = []string{"example.org"}
	}
	if o.MaxSize == 0 {
		o.MaxSize = 100 << 20
	}
	dir := publicDir(t, "postfix")
	p := &Postfix{dir: dir, LogFile: filepath.Join(dir, "log"), Queue: filepath.Join(dir, "queue")}
	if o.Maildir {
		p.Maildir = filepath.Join(dir, "mail", "Maildir")
		o.NextHop = "virtual"
		o.Extra = fmt.Sprintf("virtual_mailbox_base = %s/mail\nvirtual_uid_maps = static:%d\nvirtual_gid_maps = static:%[2]d\n", dir, mailUID) + o.Extra
	}
	p.layout(t, o)
	t.Cleanup(func() {
		p.Stop(t)
		if t.Failed() {
			t.Logf("postfix's log ends with:\n%s", logTail(p.LogFile))
		}
	})
	var err error
	for range 3 { // a port that was free may be taken by now
		port := FreePort(t)
		p.Addr = fmt.Sprintf("127.0.0.1:%d", port)
		services := fmt.Sprintf(postfixMaster, port)
		if o.ProxyHeader {
			p.ProxyAddr = fmt.Sprintf("127.0.0.1:%d", FreePort(t))
			services += p.ProxyAddr + " inet n - n - 100 smtpd -o smtpd_upstream_proxy_protocol=haproxy\n"
		}
		writeFile(t, filepath.Join(dir, "etc", "master.cf"), services)
		if out, cerr := exec.Command(path, "-c", filepath.Join(dir, "etc"), "check").CombinedOutput(); cerr != nil {
			t.Fatalf("postfix check: %v\n%s", cerr, out)
		}
		if err = p.start(); err == nil {
			return p
		}
		p.Stop(t)
	}
	t.Fatalf("%v\n%s", err, logTail(p.LogFile))
	return nil
}

// layout writes the configuration and the directories that Postfix expects to find.
func (p *Postfix) layout(t testing.TB, o PostfixOptions) {
	t.Helper()
	for _, d := range []string{"etc", "queue", "data", "mail"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatalf("make postfix's directories: %v", err)
		}
	}
	owner, err := user.Lookup("postfix")
	if err != nil {
		t.Fatalf("find the user postfix, which the Debian package makes: %v", err)
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		t.Fatalf("the user postfix has the id %q: %v", owner.Uid, err)
	}
	if err := os.Chown(filepath.Join(p.dir, "data"), uid, -1); err != nil {
		t.Fatalf("give postfix its data directory: %v", err)
	}
	if err := os.Chown(filepath.Join(p.dir, "mail"), mailUID, mailUID); err != nil {
		t.Fatalf("give postfix its mail directory: %v", err)
	}
	var main, rcpts strings.Builder
	if err := postfixMain.Execute(&main, map[string]any{"O": o, "Dir": p.dir}); err != nil {
		t.Fatalf("write main.cf: %v", err)
	}
	list := o.Recipients
	if list == nil {
		for _, d := range o.Domains {
			list = append(list, "@"+d)
		}
	}
	for _, r := range list {
		fmt.Fprintf(&rcpts, "%s Maildir/\n", r)
	}
	writeFile(t, filepath.Join(p.dir, "etc", "main.cf"), main.String())
	writeFile(t, filepath.Join(p.dir, "etc", "recipients"), rcpts.String())
}

// start runs master itself: "postfix start" would leave it to init, out of our reach.
func (p *Postfix) start() error {
	etc := filepath.Join(p.dir, "etc")
	out, err := exec.Command("postconf", "-c", etc, "-h", "daemon_directory").Output()
	if err != nil {
		return fmt.Errorf("start postfix: ask postconf for daemon_directory: %w", err)
	}
	master := filepath.Join(strings.TrimSpace(string(out)), "master")
	d, err := startDaemon("postfix", filepath.Join(p.dir, "out"), []string{"MAIL_CONFIG=" + etc}, master, "-c", etc, "-d")
	if err != nil {
		return err
	}
	p.daemon = d
	return d.ready(greets(p.Addr, "220 "))
}

// Start starts it again after Stop, on the same port and with the same queue.
func (p *Postfix) Start(t testing.TB) {
	t.Helper()
	// Its port may be another's for a moment: a child of the Postfix before that
	// is still ending, or a connection of another test that was given it.
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	err := p.start()
	for deadline := time.Now().Add(15 * time.Second); err != nil && time.Now().Before(deadline); err = p.start() {
		p.Stop(t)
		<-tick.C
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, logTail(p.LogFile))
	}
}

// Stop stops it; the queue stays. Stopping twice is harmless.
func (p *Postfix) Stop(t testing.TB) {
	t.Helper()
	if p.daemon != nil {
		p.daemon.stop(t)
		p.daemon = nil
	}
}

// SMTPURL returns the URL for Crossfade's configuration.
func (p *Postfix) SMTPURL() string { return "smtp://" + p.Addr }

// Queued returns the number of messages in Postfix's queue, read from the disk.
func (p *Postfix) Queued(t testing.TB) int {
	t.Helper()
	n := 0
	for _, q := range []string{"incoming", "active", "deferred", "hold"} {
		err := filepath.WalkDir(filepath.Join(p.Queue, q), func(_ string, e os.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				n++
			}
			return nil // files come and go while we look
		})
		if err != nil {
			t.Fatalf("walk postfix's queue: %v", err)
		}
	}
	return n
}
