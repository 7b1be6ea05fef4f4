package realtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// NSD is a running name server: authoritative, for the zones that it was given.
type NSD struct {
	Addr string // 127.0.0.1:port, UDP and TCP

	dir    string
	zones  []string
	daemon *daemon
}

// StartNSD starts an NSD for zones, by name without the final dot, each the text of a zone file. It runs as any user, and
// is stopped when the test ends.
func StartNSD(t testing.TB, zones map[string]string) *NSD {
	t.Helper()
	path := Need(t, "nsd")
	n := &NSD{dir: publicDir(t, "nsd")}
	port := freeBoth(t)
	n.Addr = fmt.Sprintf("127.0.0.1:%d", port)
	for name := range zones {
		n.zones = append(n.zones, name)
	}
	slices.Sort(n.zones)
	n.Write(t, zones)
	conf := filepath.Join(n.dir, "nsd.conf")
	if err := os.WriteFile(conf, []byte(n.config(port)), 0o600); err != nil {
		t.Fatalf("write the configuration of nsd: %v", err)
	}
	t.Cleanup(func() { n.Stop(t) })
	n.start(t, path, conf)
	return n
}

func (n *NSD) start(t testing.TB, path, conf string) {
	t.Helper()
	out := filepath.Join(n.dir, "log")
	d, err := startDaemon("nsd", out, nil, path, "-d", "-c", conf)
	if err != nil {
		t.Fatal(err)
	}
	n.daemon = d
	if err := d.ready(n.probe); err != nil {
		t.Fatal(err)
	}
}

// Write replaces the files of zones; Restart brings them into force.
func (n *NSD) Write(t testing.TB, zones map[string]string) {
	t.Helper()
	for name, text := range zones {
		if err := os.WriteFile(filepath.Join(n.dir, name+".zone"), []byte(text), 0o600); err != nil {
			t.Fatalf("write the zone %s: %v", name, err)
		}
	}
}

// Restart reads the zones anew, at the same address.
func (n *NSD) Restart(t testing.TB) {
	t.Helper()
	n.Stop(t)
	n.start(t, Need(t, "nsd"), filepath.Join(n.dir, "nsd.conf"))
}

// Stop ends the server. It may be called again.
func (n *NSD) Stop(t testing.TB) {
	t.Helper()
	if n.daemon != nil {
		n.daemon.stop(t)
		n.daemon = nil
	}
}

func (n *NSD) config(port int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `server:
  ip-address: 127.0.0.1
  port: %d
  do-ip6: no
  server-count: 1
  username: ""
  chroot: ""
  database: ""
  pidfile: ""
  zonesdir: %q
  zonelistfile: %q
  xfrdfile: %q
  xfrdir: %q
  minimal-responses: no
  rrl-ratelimit: 0
remote-control:
  control-enable: no
`, port, n.dir, n.dir+"/zone.list", n.dir+"/xfrd.state", n.dir)
	for _, z := range n.zones {
		fmt.Fprintf(&b, "zone:\n  name: %q\n  zonefile: %q\n", z, z+".zone")
	}
	return b.String()
}

// probe succeeds when every zone is served.
func (n *NSD) probe() error {
	c := &dns.Client{Timeout: time.Second, Net: "tcp"}
	for _, z := range n.zones {
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(z), dns.TypeSOA)
		resp, _, err := c.Exchange(m, n.Addr)
		if err != nil {
			return err
		}
		if resp.Rcode != dns.RcodeSuccess || len(resp.Answer) == 0 {
			log, _ := os.ReadFile(filepath.Join(n.dir, "log")) // for the message alone
			return fmt.Errorf("zone %s: %s: %w: %s", z, dns.RcodeToString[resp.Rcode], errors.New("not served"), log)
		}
	}
	return nil
}

// freeBoth gives a port that is free for UDP and TCP.
func freeBoth(t testing.TB) int {
	t.Helper()
	for range 20 {
		port := FreePort(t)
		pc, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = pc.Close()
			return port
		}
	}
	t.Fatal("no port is free for UDP and TCP")
	return 0
}
