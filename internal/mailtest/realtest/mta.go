package realtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// MTA is a running mail server that is not Postfix. All mail for its domains, whoever it is for, is delivered to one
// Maildir, which the server's own delivery agent writes; everything else is refused as relaying.
type MTA struct {
	Name    string
	Addr    string // where it speaks SMTP, 127.0.0.1:port
	Maildir string
	LogFile string

	dir    string
	daemon *daemon
}

// SMTPURL returns the URL for Crossfade's configuration.
func (m *MTA) SMTPURL() string { return "smtp://" + m.Addr }

// MaildirFiles returns the messages of a Maildir, whoever wrote it.
func MaildirFiles(t testing.TB, maildir string) []string {
	t.Helper()
	var files []string
	for _, sub := range []string{"new", "cur"} {
		entries, err := os.ReadDir(filepath.Join(maildir, sub))
		if err != nil && !os.IsNotExist(err) {
			t.Fatalf("read a Maildir: %v", err)
		}
		for _, e := range entries {
			files = append(files, filepath.Join(maildir, sub, e.Name()))
		}
	}
	return files
}

// startMTA starts a server whose setup script is made for a port, and waits until it greets.
func startMTA(t testing.TB, name string, setup func(port int) string) *MTA {
	t.Helper()
	tree := needTree(t, name)
	m := &MTA{Name: name, dir: publicDir(t, name)}
	m.Maildir, m.LogFile = filepath.Join(m.dir, "mail", "Maildir"), filepath.Join(m.dir, "log")
	t.Cleanup(func() {
		if m.daemon != nil {
			m.daemon.stop(t)
		}
		if t.Failed() {
			t.Logf("%s's log ends with:\n%s", name, logTail(m.LogFile))
		}
	})
	var err error
	for range 3 { // a port that was free may be taken by now
		port := FreePort(t)
		m.Addr = fmt.Sprintf("127.0.0.1:%d", port)
		if err = os.RemoveAll(filepath.Join(m.dir, "jail")); err != nil {
			t.Fatal(err)
		}
		if m.daemon, err = startJailed(name, tree, m.dir, setup(port)); err == nil {
			if err = m.daemon.ready(greets(m.Addr, "220 ")); err == nil {
				return m
			}
			m.daemon.stop(t)
		}
		m.daemon = nil
	}
	t.Fatal(err)
	return nil
}

// EximOptions says what kind of Exim to start.
type EximOptions struct {
	Domains []string // nil means example.org
	// NextHop, host:port, makes it a sender too: it takes what clients on the loopback address have for other domains, and
	// hands that to NextHop, only under TLS with a certificate of CA (a file) when that is set.
	NextHop, CA string
	// Extra is put into the first section of the configuration.
	Extra string
}

// StartExim starts an Exim. It is stopped when the test ends. It needs root.
func StartExim(t testing.TB, o EximOptions) *MTA {
	t.Helper()
	if o.Domains == nil {
		o.Domains = []string{"example.org"}
	}
	relay, host, port := "", "127.0.0.1", "25"
	if o.NextHop != "" {
		relay = "\n  accept hosts = 127.0.0.1"
		host, port, _ = strings.Cut(o.NextHop, ":")
	}
	secure := ""
	if o.CA != "" {
		secure = "hosts_require_tls = *\n  tls_verify_hosts = *\n  tls_verify_certificates = " + o.CA
	}
	return startMTA(t, "exim", func(listen int) string {
		return strings.NewReplacer("@LISTEN@", fmt.Sprint(listen), "@DOMAINS@", strings.Join(o.Domains, " : "), "@RELAY@", relay,
			"@HOST@", host, "@PORT@", port, "@SECURE@", secure, "@EXTRA@", o.Extra).Replace(eximSetup)
	})
}

// eximSetup leaves to Exim what it does by default, but for DNS and ident, which there are none of here.
const eximSetup = `S=$1
echo 'Debian-exim:x:5994:5994::/var/spool/exim4:/bin/false' >> /etc/passwd
echo 'Debian-exim:x:5994:' >> /etc/group
chmod 4755 /usr/sbin/exim4
mkdir -p /etc/exim4 /var/log/exim4
chown Debian-exim:Debian-exim /var/log/exim4
mkdir -p $S/mail $S/spool $S/logs
chown Debian-exim:Debian-exim $S/mail $S/spool $S/logs
cat > /etc/exim4/exim4.conf <<END
exim_path = /usr/sbin/exim4
spool_directory = $S/spool
log_file_path = $S/logs/%slog
pid_file_path = $S/pid
primary_hostname = mx.exim.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = @LISTEN@
disable_ipv6 = true
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
keep_environment =
smtp_accept_max = 200
smtp_accept_queue_per_connection = 0
message_size_limit = 100M
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
acl_smtp_rcpt = rcpt
acl_smtp_data = data
@EXTRA@
begin acl
rcpt:
  accept domains = @DOMAINS@@RELAY@
data:
  accept
begin routers
ours:
  driver = accept
  domains = @DOMAINS@
  transport = box
others:
  driver = manualroute
  domains = ! @DOMAINS@
  route_list = * @HOST@
  self = send
  transport = onwards
begin transports
box:
  driver = appendfile
  directory = $S/mail/Maildir
  maildir_format
  delivery_date_add
  envelope_to_add
  return_path_add
  user = Debian-exim
onwards:
  driver = smtp
  hosts_override
  allow_localhost
  port = @PORT@
  @SECURE@
begin retry
* * F,1h,2s
END
exim4 -bdf -q2s > $S/log 2>&1 &
wait
`

// StartOpenSMTPD starts an OpenSMTPD for a domain. It is stopped when the test ends. It needs root.
func StartOpenSMTPD(t testing.TB, domain string) *MTA {
	t.Helper()
	return startMTA(t, "opensmtpd", func(listen int) string {
		return strings.NewReplacer("@LISTEN@", fmt.Sprint(listen), "@DOMAIN@", domain).Replace(opensmtpdSetup)
	})
}

const opensmtpdSetup = `S=$1
cat >> /etc/passwd <<END
opensmtpd:x:5997:5997::/var/lib/opensmtpd/empty:/bin/false
opensmtpq:x:5996:5996::/var/lib/opensmtpd/empty:/bin/false
postbox:x:5995:5995::/:/bin/sh
END
printf 'opensmtpd:x:5997:\nopensmtpq:x:5996:\npostbox:x:5995:\n' >> /etc/group
mkdir -p /var/lib/opensmtpd/empty $S/mail
chown postbox:postbox $S/mail
cat > /etc/smtpd.conf <<END
table users { "@" = postbox }
listen on 127.0.0.1 port @LISTEN@ hostname mx.opensmtpd.test
smtp max-message-size 100M
action "in" maildir "$S/mail/Maildir" virtual <users>
match from any for domain "@DOMAIN@" action "in"
END
smtpd -d -f /etc/smtpd.conf > $S/log 2>&1 &
wait
`

// StartCourierMTA starts the SMTP server of Courier for a domain. It is stopped when the test ends. It needs root.
func StartCourierMTA(t testing.TB, domain string) *MTA {
	t.Helper()
	return startMTA(t, "courier", func(listen int) string {
		return strings.NewReplacer("@LISTEN@", fmt.Sprint(listen), "@DOMAIN@", domain).Replace(courierSetup)
	})
}

// courierSetup has Courier answer for every address of the domain: what is no account goes where .courier-default says.
const courierSetup = `S=$1
sed -i /^courier:/d /etc/passwd
sed -i /^courier:/d /etc/group
echo 'courier:x:5998:5998::/var/lib/courier:/bin/sh' >> /etc/passwd
echo 'courier:x:5998:' >> /etc/group
mkdir -p /var/lib/courier
cd /var/lib/courier
mkdir -p allfilters filters msgq msgs track tmp /run/courier/authdaemon
chown -R courier:courier /var/lib/courier /run/courier
chmod 770 tmp
cd /etc/courier
echo @DOMAIN@ > me
echo @DOMAIN@ > defaultdomain
printf 'localhost\n@DOMAIN@\n' > locals
echo postmaster@localhost > dsnfrom
echo @DOMAIN@ > esmtpacceptmailfor
printf '127.0.0.1\tallow\n' > smtpaccess/default
cat > authdaemonrc <<END
authmodulelist="authpwd"
daemons=2
authdaemonvar=/run/courier/authdaemon
subsystem=mail
DEBUG_LOGIN=0
DEFAULTOPTIONS=""
LOGGEROPTS=""
END
sed -i 's/^BOFHCHECKDNS=.*/BOFHCHECKDNS=0/; s/^TARPIT=.*/TARPIT=0/; s/^MAXPERIP=.*/MAXPERIP=200/; s/^MAXDAEMONS=.*/MAXDAEMONS=200/
s/^MAXPERC=.*/MAXPERC=200/; s/^PORT=.*/PORT=@LISTEN@/; s/^ADDRESS=.*//
s/-noidentlookup/-noidentlookup -nodnslookup/' esmtpd
echo ADDRESS=127.0.0.1 >> esmtpd
sed -i 's/^MAXDELS=.*/MAXDELS=40/; s/^MAXHOST=.*/MAXHOST=40/' module.local
mkdir -p aliasdir $S/mail/Maildir/cur $S/mail/Maildir/new $S/mail/Maildir/tmp
echo $S/mail/Maildir > aliasdir/.courier-default
chown -R courier:courier aliasdir $S/mail
chown courier:courier /usr/lib/courier/courier/submitmkdir
chmod 4755 /usr/lib/courier/courier/submitmkdir
ln -sf makedat.courier /usr/bin/makedat
cd /
makesmtpaccess
makealiases
makeacceptmailfor
authdaemond start > $S/log 2>&1
courier start >> $S/log 2>&1
/usr/lib/courier/esmtpd start >> $S/log 2>&1
while :; do sleep 3600; done
`
