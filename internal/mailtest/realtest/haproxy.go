package realtest

import (
	"fmt"
	"path/filepath"
	"testing"
)

// StartHAProxy starts a HAProxy (Debian: haproxy) that passes TCP connections on to backend, each with a PROXY header of
// the version given (1 or 2), and waits until it takes connections. It is stopped when the test ends.
func StartHAProxy(t testing.TB, backend string, version int) (addr string) {
	t.Helper()
	path := Need(t, "haproxy")
	send := map[int]string{1: "send-proxy", 2: "send-proxy-v2"}[version]
	dir := publicDir(t, "haproxy")
	conf := filepath.Join(dir, "haproxy.cfg")
	var err error
	for range 3 { // a port that was free may be taken by now
		addr = freeAddr(t)
		writeFile(t, conf, fmt.Sprintf("defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"+
			"listen mail\n  bind %s\n  server relay %s %s\n", addr, backend, send))
		var d *daemon
		if d, err = startDaemon("haproxy", filepath.Join(dir, "out"), nil, path, "-db", "-f", conf); err != nil {
			t.Fatal(err)
		}
		if err = d.ready(greets(addr, "220 ")); err == nil {
			t.Cleanup(func() { d.stop(t) })
			return addr
		}
		d.stop(t)
	}
	t.Fatalf("%v\n%s", err, logTail(filepath.Join(dir, "out")))
	return ""
}
