package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"crossfade/config"
	"crossfade/lookup"
	"crossfade/mail"
)

// lookupKey reads the key that clients show, and makes one where there is none.
func lookupKey(path string) (config.Secret, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = makeKey(path); errors.Is(err, fs.ErrExist) {
			b, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return config.Secret{}, fmt.Errorf("lookup.token_file: %w", err)
	}
	key := strings.TrimRight(string(b), "\r\n")
	if len(key) < 16 || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return config.Secret{}, fmt.Errorf("lookup.token_file: %s: the key has to be one line of at least 16 printable ASCII characters without blanks: remove the file to get a new one", path)
	}
	return config.NewSecret(key), nil
}

// makeKey writes a random key to a file that must not exist, whole or not at all.
func makeKey(path string) ([]byte, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	key := []byte(rand.Text() + "\n")
	tmp := path + ".new"
	if err := os.WriteFile(tmp, key, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(tmp)
	return key, os.Link(tmp, path)
}

// lookupSettings are the answers of a configuration.
func lookupSettings(cfg *config.Config) (lookup.Settings, error) {
	l := &cfg.Lookup
	set := lookup.Settings{
		Upstreams: map[lookup.Protocol]lookup.Sides{}, Transports: lookup.Transports(l.Transport),
		LoginDomain: l.LoginDomain, Networks: l.Networks, NginxSMTP: l.NginxSMTP,
	}
	if set.LoginDomain == "" {
		set.LoginDomain = cfg.Domains[0]
	}
	for name, sides := range l.Sides() {
		set.Upstreams[lookup.Protocol(name)] = lookup.Sides{Old: upstream(sides.Old), New: upstream(sides.New)}
	}
	if len(l.HTTP) == 0 {
		return set, nil
	}
	key, err := lookupKey(l.TokenFile)
	set.Key = key.Reveal()
	return set, err
}

func upstream(s config.LookupServer) lookup.Upstream {
	u := lookup.Upstream{Host: s.Host, Port: s.Port, TLS: lookup.Clear}
	switch s.TLS {
	case config.TLSImplicit:
		u.TLS = lookup.Implicit
	case config.TLSRequired:
		u.TLS = lookup.StartTLS
	}
	return u
}

// newAnswers makes the answers of another configuration, when somebody may ask.
func (d *Daemon) newAnswers(cfg *config.Config) (lookup.Settings, error) {
	if d.lookup == nil {
		return lookup.Settings{}, nil
	}
	return lookupSettings(cfg)
}

// checkLookup looks at what the section lookup needs of the disk, and makes
// nothing there.
func checkLookup(cfg *config.Config) (out []Finding) {
	l := &cfg.Lookup
	if len(l.HTTP) > 0 {
		f := Finding{What: "lookup.token_file", OK: true, Text: l.TokenFile + " will be made at the start"}
		if _, err := os.Stat(l.TokenFile); err == nil {
			f.Text = l.TokenFile + " holds a key"
			if _, err := lookupKey(l.TokenFile); err != nil {
				f.OK, f.Text, f.Hint = false, err.Error(), "the proxies show this key as X-Auth-Key"
			}
		}
		out = append(out, f)
	}
	for _, address := range slices.Concat(l.Socketmap, l.TCPTable, l.HTTP) {
		path, socket := config.SocketPath(address)
		if !socket {
			continue
		}
		f := Finding{What: "lookup " + address, OK: true, Text: "its directory is there"}
		if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
			f.OK, f.Text, f.Hint = false, filepath.Dir(path)+" is no directory", "make it, for the user who runs crossfade"
		}
		out = append(out, f)
	}
	return out
}

// lookupListener is one address on which lookups are answered.
type lookupListener struct {
	net.Listener
	name  string
	serve func(ctx context.Context, l net.Listener) error
}

// openLookup makes what answers other programs, and binds its addresses.
func (d *Daemon) openLookup() error {
	l := &d.cfg.Lookup
	if !l.Enabled() {
		return nil
	}
	set, err := lookupSettings(d.cfg)
	if err != nil {
		return err
	}
	d.lookup, err = lookup.New(lookup.Config{
		Router: d.router, Settings: set, Unknown: d.lookupUnknown, MaxConns: l.MaxConnections, Logger: d.log, Answered: d.metrics.LookedUp,
	})
	if err != nil {
		return err
	}
	tcpTable := func(ctx context.Context, ln net.Listener) error {
		return d.lookup.ServeTCPTable(ctx, ln, l.TCPTableMap)
	}
	for _, kind := range []struct {
		name      string
		addresses []string
		serve     func(context.Context, net.Listener) error
	}{{"socketmap", l.Socketmap, d.lookup.ServeSocketmap}, {"tcp_table", l.TCPTable, tcpTable}, {"http", l.HTTP, d.lookup.ServeHTTP}} {
		for i, address := range kind.addresses {
			ln, err := d.passed(kind.name, i)
			if ln == nil && err == nil {
				ln, err = listenLookup(address, l.SocketMode)
			}
			if err != nil {
				return fmt.Errorf("lookup.%s: %w", kind.name, err)
			}
			d.lookups = append(d.lookups, lookupListener{Listener: ln, name: "lookup " + kind.name + " on " + ln.Addr().String(), serve: kind.serve})
		}
	}
	return nil
}

// listenLookup binds a TCP address or a unix socket. A socket that a process
// which died left behind is removed; one that answers is somebody else's.
func listenLookup(address, mode string) (net.Listener, error) {
	path, socket := config.SocketPath(address)
	if !socket {
		return net.Listen("tcp", address)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s is there and no socket: remove it, or name another path", path)
		}
		if conn, err := net.Dial("unix", path); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("another process answers on %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove a socket that is left: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	bits, err := strconv.ParseUint(mode, 8, 32)
	if err == nil {
		err = os.Chmod(path, fs.FileMode(bits))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("permissions of %s: %w", path, err), l.Close())
	}
	return l, nil
}

// lookupUnknown asks both sides about an address in no table, as for mail.
func (d *Daemon) lookupUnknown(ctx context.Context, addr mail.Address) lookup.Known {
	v := d.verifier.Verify(ctx, addr)
	return lookup.Known{Exists: v.Exists, Side: v.Hint, Guess: !v.Sure}
}

// LookupAddrs gives the addresses on which lookups are answered, in the order of
// the configuration: socketmap, tcp_table, http. After Started.
func (d *Daemon) LookupAddrs() []net.Addr {
	var out []net.Addr
	for _, l := range d.lookups {
		out = append(out, l.Addr())
	}
	return out
}
