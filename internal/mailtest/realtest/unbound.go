package realtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// SignedZone is a zone that was signed, and the key that a resolver has to believe for it.
type SignedZone struct {
	Text   string // of the zone file
	Anchor string // the DS record of its key
}

// SignZone signs a zone (DNSSEC, ECDSA P-256, NSEC), named without its final dot, as from a day ago until expires.
func SignZone(t testing.TB, name, text string, expires time.Time) SignedZone {
	t.Helper()
	dir := t.TempDir()
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), Need(t, program), args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			t.Fatalf("%s %q: %v: %s", program, args, err, failed.Stderr)
		}
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		return strings.TrimSpace(string(out))
	}
	zsk := run("ldns-keygen", "-a", "ECDSAP256SHA256", name)
	ksk := run("ldns-keygen", "-k", "-a", "ECDSAP256SHA256", name)
	if err := os.WriteFile(filepath.Join(dir, "zone"), []byte("$ORIGIN "+name+".\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	const form = "20060102150405"
	began := expires.Add(-30 * 24 * time.Hour)
	if yesterday := time.Now().AddDate(0, 0, -1); began.After(yesterday) {
		began = yesterday
	}
	run("ldns-signzone", "-i", began.UTC().Format(form), "-e", expires.UTC().Format(form), "-f", "signed", "-o", name, "zone", zsk, ksk)
	read := func(file string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return SignedZone{Text: read("signed"), Anchor: strings.Join(strings.Fields(read(ksk+".ds")), " ")}
}

// Unbound is a running resolver that validates.
type Unbound struct {
	Addr string // 127.0.0.1:port, UDP and TCP
}

// StartUnbound starts one that asks server about zones, named without their final dots, and believes the anchors, which
// are DS records. Nothing else can be asked. It runs as any user, and is stopped when the test ends.
func StartUnbound(t testing.TB, server string, zones, anchors []string) *Unbound {
	t.Helper()
	path := Need(t, "unbound")
	dir := publicDir(t, "unbound")
	port := freeBoth(t)
	var b strings.Builder
	fmt.Fprintf(&b, `server:
  interface: 127.0.0.1
  port: %d
  do-ip6: no
  num-threads: 1
  username: ""
  chroot: ""
  directory: %q
  pidfile: ""
  use-syslog: no
  module-config: "validator iterator"
  do-not-query-localhost: no
  val-log-level: 2
`, port, dir)
	for _, a := range anchors {
		fmt.Fprintf(&b, "  trust-anchor: %q\n", a)
	}
	for _, z := range zones {
		fmt.Fprintf(&b, "  local-zone: %q nodefault\n", z[strings.LastIndexByte(z, '.')+1:]+".")
	}
	host, at, _ := strings.Cut(server, ":")
	for _, z := range zones {
		fmt.Fprintf(&b, "stub-zone:\n  name: %q\n  stub-addr: %s@%s\n", z, host, at)
	}
	b.WriteString("remote-control:\n  control-enable: no\n")
	conf := filepath.Join(dir, "unbound.conf")
	if err := os.WriteFile(conf, []byte(b.String()), 0o600); err != nil {
		t.Fatalf("write the configuration of unbound: %v", err)
	}
	d, err := startDaemon("unbound", filepath.Join(dir, "log"), nil, path, "-d", "-c", conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(t) })
	u := &Unbound{Addr: fmt.Sprintf("127.0.0.1:%d", port)}
	if err := d.ready(func() error { return u.probe(zones[0]) }); err != nil {
		t.Fatal(err)
	}
	return u
}

// probe succeeds when the resolver answers; what it answers is the test's affair.
func (u *Unbound) probe(zone string) error {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(zone), dns.TypeSOA)
	_, _, err := (&dns.Client{Timeout: time.Second, Net: "tcp"}).Exchange(m, u.Addr)
	return err
}
