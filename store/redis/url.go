package redis

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// The ways in which a store's Redis may be set up.
const (
	kindAlone    = "alone"
	kindSentinel = "sentinel"
	kindCluster  = "cluster"
)

// target is what a URL names.
type target struct {
	scheme string
	kind   string
	tls    bool
	addrs  []string // host:port; of the sentinels, or nodes of the cluster
	master string   // as the sentinels call it
	db     int
	user   string
	pass   string
}

// String gives the URL without user and password.
func (t target) String() string {
	s := t.scheme + "://" + strings.Join(t.addrs, ",")
	switch t.kind {
	case kindSentinel:
		s += "/" + t.master
	case kindCluster:
		return s
	}
	return s + "/" + strconv.Itoa(t.db)
}

// parseURL reads the URL of a store. Its errors repeat nothing that may be part
// of a password.
func parseURL(raw string) (target, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	t := target{scheme: scheme}
	if !ok {
		return t, errors.New("it has no scheme: write redis://host:6379/0")
	}
	base, kind, _ := strings.Cut(scheme, "+")
	t.tls = base == "rediss"
	t.kind = kind
	if kind == "" && !strings.Contains(scheme, "+") {
		t.kind = kindAlone
	}
	if base != "redis" && base != "rediss" || t.kind != kindAlone && t.kind != kindSentinel && t.kind != kindCluster || kind == kindAlone {
		return t, errors.New("unknown scheme: use redis, rediss, redis+sentinel, rediss+sentinel, redis+cluster or rediss+cluster")
	}
	if strings.ContainsAny(rest, "?#") {
		return t, errors.New("it may have no ? and no #: settings stand under redis: in the configuration, and in a password they are written %3F and %23")
	}
	if i := strings.LastIndex(rest, "@"); i >= 0 {
		if strings.Contains(rest[:i], "/") {
			return t, errors.New("there is a / before the @: in a password it is written %2F")
		}
		if err := t.login(rest[:i]); err != nil {
			return t, err
		}
		rest = rest[i+1:]
	}
	hosts, path, _ := strings.Cut(rest, "/")
	if err := t.hosts(hosts); err != nil {
		return t, err
	}
	return t, t.path(strings.TrimSuffix(path, "/"))
}

func (t *target) login(s string) (err error) {
	user, pass, _ := strings.Cut(s, ":")
	if t.user, err = url.PathUnescape(user); err != nil {
		return errors.New("the user has a % that is no escape: write it %25")
	}
	if t.pass, err = url.PathUnescape(pass); err != nil {
		return errors.New("the password has a % that is no escape: write it %25")
	}
	return nil
}

func (t *target) hosts(s string) error {
	port := "6379"
	if t.kind == kindSentinel {
		port = "26379"
	}
	list := strings.Split(s, ",")
	if t.kind == kindAlone && len(list) > 1 {
		return fmt.Errorf("several hosts: write %s+sentinel:// or %s+cluster://, or name one", t.scheme, t.scheme)
	}
	for _, h := range list {
		addr, err := hostPort(h, port)
		if err != nil {
			return err
		}
		t.addrs = append(t.addrs, addr)
	}
	return nil
}

func hostPort(s, port string) (string, error) {
	host := s
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	} else if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		host = s[1 : len(s)-1]
	} else if strings.Contains(s, ":") {
		return "", errors.New("an IPv6 address stands in brackets: [::1]:6379")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", errors.New("a port is a number from 1 to 65535")
	}
	if host == "" {
		return "", errors.New("a host is missing")
	}
	if strings.Contains(host, ":") && net.ParseIP(host) == nil || strings.IndexFunc(host, notOfHost) >= 0 {
		return "", errors.New("a host is a name or an address")
	}
	return net.JoinHostPort(host, port), nil
}

func notOfHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_:", r)
}

func (t *target) path(s string) error {
	db := s
	if t.kind == kindSentinel {
		t.master, db, _ = strings.Cut(s, "/")
		if t.master == "" {
			return fmt.Errorf("the master's name is missing, as the sentinels know it: %s://host1,host2/NAME/0", t.scheme)
		}
	}
	if db == "" {
		return nil
	}
	n, err := strconv.Atoi(db)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no number of a database", db)
	}
	if t.kind == kindCluster && n != 0 {
		return errors.New("a cluster has only database 0")
	}
	t.db = n
	return nil
}
