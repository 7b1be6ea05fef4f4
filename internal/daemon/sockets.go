package daemon

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
)

// socketNames are the names of sockets that the service manager may pass
// (FileDescriptorName=).
var socketNames = []string{"smtp", "admin", "socketmap", "tcp_table", "http"}

// passed gives the nth socket of a name that was passed; nil: there is none. The
// socket itself stays with the daemon, so that its address may be served again.
func (d *Daemon) passed(name string, n int) (net.Listener, error) {
	files := d.opts.Sockets[name]
	if n >= len(files) {
		return nil, nil
	}
	l, err := net.FileListener(files[n])
	if err != nil {
		return nil, fmt.Errorf("the socket %s of the service manager is none that listens: %w", name, err)
	}
	return l, nil
}

// bind gives the nth socket of a name, or binds an address.
func (d *Daemon) bind(name string, n int, lc net.ListenConfig, address string) (net.Listener, error) {
	if l, err := d.passed(name, n); l != nil || err != nil {
		return l, err
	}
	return lc.Listen(context.Background(), "tcp", address)
}

// checkSockets refuses sockets that nothing would serve: whoever made the unit means
// something by them.
func (d *Daemon) checkSockets() error {
	l := &d.cfg.Lookup
	have := map[string]int{"smtp": len(d.cfg.SMTP.Listening()), "admin": 1, "socketmap": len(l.Socketmap), "tcp_table": len(l.TCPTable), "http": len(l.HTTP)}
	for _, name := range slices.Sorted(maps.Keys(d.opts.Sockets)) {
		n, known := have[name]
		switch {
		case !known:
			return fmt.Errorf("the service manager passed a socket named %q: FileDescriptorName= is one of %s", name, strings.Join(socketNames, ", "))
		case len(d.opts.Sockets[name]) > n:
			return fmt.Errorf("the service manager passed %d sockets named %s, and the configuration has %d addresses for them: each takes the place of one, in their order", len(d.opts.Sockets[name]), name, n)
		}
	}
	return nil
}

// Healthy tells what only a new start can mend, after Started.
func (d *Daemon) Healthy() error { return d.health(context.Background()) }
