package realtest

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
)

// rspamdConf is a Rspamd without rules of its own: what it knows are the GTUBE patterns.
const rspamdConf = `options {
  pidfile = "%[1]s/pid";
  tempdir = "%[1]s";
  filters = "";
  gtube_patterns = "all";
  enable_test_patterns = true;
  url_tld = "%[1]s/tld";
  disable_hyperscan = true;
  control_socket = "%[1]s/control mode=0600";
  dns { nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }
}
logging { type = "file"; filename = "%[1]s/log"; level = "info"; }
actions { reject = 15; add_header = 6; greylist = 4; }
worker "rspamd_proxy" {
  bind_socket = "%[2]s";
  milter = yes;
  count = 1;
  timeout = 10s;
  upstream "local" { default = yes; self_scan = yes; }
}
`

// StartRspamd starts a Rspamd (Debian: rspamd) that speaks the milter protocol at addr, and waits until it takes
// connections. It refuses the GTUBE text, and marks its variant that begins with Y. It is stopped when the test ends,
// or by stop.
func StartRspamd(t testing.TB) (addr string, stop func()) {
	t.Helper()
	path := Need(t, "rspamd")
	dir := publicDir(t, "rspamd")
	conf := filepath.Join(dir, "rspamd.conf")
	writeFile(t, filepath.Join(dir, "tld"), "com\norg\ntest\n")
	var err error
	for range 3 { // a port that was free may be taken by now
		addr = freeAddr(t)
		writeFile(t, conf, fmt.Sprintf(rspamdConf, dir, addr))
		var d *daemon
		if d, err = startDaemon("rspamd", filepath.Join(dir, "out"), nil, path, "-f", "-i", "-c", conf); err != nil {
			t.Fatal(err)
		}
		if err = d.ready(greets(addr, "")); err == nil {
			stop = sync.OnceFunc(func() { d.stop(t) })
			t.Cleanup(func() {
				stop()
				if t.Failed() {
					t.Logf("rspamd's log ends with:\n%s", logTail(filepath.Join(dir, "log")))
				}
			})
			return addr, stop
		}
		d.stop(t)
	}
	t.Fatalf("%v\n%s", err, logTail(filepath.Join(dir, "out")))
	return "", nil
}
