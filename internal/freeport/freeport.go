// Package freeport gives the servers that tests start ports of their own. Tests of several packages run at once, and the
// kernel gives a port that was free a moment ago to the next who asks: a server that is started again on it may find another
// there.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// The ports that Take gives: below those that the kernel gives to connections and to listeners on port 0.
const (
	firstPort = 12_000
	lastPort  = 31_999
)

// Take returns a port of 127.0.0.1 that is free, and that nobody else gets from here until the test ends, in this
// process or another. A port that was only free a moment ago may be that of another test's server when ours
// wants it, and then its greeting is taken for the one of ours.
func Take(t testing.TB) int {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "cf-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatalf("find a free port: %v", err)
	}
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		lock, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			t.Fatalf("find a free port: %v", err)
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && isFree(port) {
			t.Cleanup(func() { _ = lock.Close() })
			return port
		}
		_ = lock.Close()
	}
	t.Fatal("find a free port: a thousand were tried")
	return 0
}

// isFree tells whether TCP and UDP are: a name server wants both, and resolvers ask from any port.
func isFree(port int) bool {
	address := fmt.Sprintf("127.0.0.1:%d", port)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", address)
	if err != nil {
		return false
	}
	return u.Close() == nil
}
