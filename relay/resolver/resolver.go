package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// System is the word that stands for the resolvers of /etc/resolv.conf.
const System = "system"

// Defaults of [Config].
const (
	DefaultTimeout     = 5 * time.Second
	DefaultMaxRecords  = 100
	DefaultMaxInFlight = 256
	DefaultCacheSize   = 20_000   // answers
	DefaultCacheOctets = 16 << 20 // octets of records in the cache
)

// Dial connects to host:port; net.Dialer.DialContext is one.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Config is what a [Resolver] works with. The zero value asks the resolvers of /etc/resolv.conf.
type Config struct {
	// Servers are addresses of recursive resolvers, with a port where it is not 53; the word "system" stands for those of
	// /etc/resolv.conf, as an empty list does. They are asked in this order.
	Servers []string
	// TrustAD believes what any of the servers says about DNSSEC. Without it only those on a loopback address are
	// believed: on any other way the bit can be set by whoever carries the packet (RFC 6840, 5.8).
	TrustAD bool

	Timeout     time.Duration // of one question over all tries and servers
	MaxRecords  int           // of one answer
	MaxInFlight int           // questions under way at once
	CacheSize   int           // answers in the cache
	CacheOctets int           // octets of them

	Dial Dial             // nil: net.Dialer
	Now  func() time.Time // nil: time.Now
	// Looked is told of each lookup: the type ("TXT"), what became of it, and how long the servers took (0 unless they
	// were asked). It must not block. Nil is told nothing.
	Looked func(typ string, r Result, took time.Duration)

	resolvConf string // /etc/resolv.conf, but for tests
}

// Result is what became of a lookup, for those who count.
type Result string

// The results. Hit and Shared were not asked for on the network: they came from the cache, or another lookup was asking
// the same already.
const (
	Hit       Result = "hit"
	Shared    Result = "shared"
	Found     Result = "found"
	NoData    Result = "nodata"
	NoName    Result = "noname"
	Temporary Result = "temporary"
	Permanent Result = "permanent"
)

// Resolver looks names up. Many goroutines may use it; it has none of its own when nobody waits for an answer.
type Resolver struct {
	cfg     Config
	servers []*server
	slots   chan struct{}

	mu      sync.Mutex
	cache   cache
	flights map[question]*flight
	shares  map[netip.Prefix]*share
}

// New makes a Resolver; it asks nobody yet. An error names what is wrong with the configuration.
func New(cfg Config) (*Resolver, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	cfg.MaxRecords = cmp.Or(cfg.MaxRecords, DefaultMaxRecords)
	cfg.MaxInFlight = cmp.Or(cfg.MaxInFlight, DefaultMaxInFlight)
	cfg.CacheSize = cmp.Or(cfg.CacheSize, DefaultCacheSize)
	cfg.CacheOctets = cmp.Or(cfg.CacheOctets, DefaultCacheOctets)
	cfg.resolvConf = cmp.Or(cfg.resolvConf, "/etc/resolv.conf")
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Looked == nil {
		cfg.Looked = func(string, Result, time.Duration) {}
	}
	r := &Resolver{cfg: cfg, slots: make(chan struct{}, cfg.MaxInFlight), flights: map[question]*flight{}, shares: map[netip.Prefix]*share{}}
	r.cache = newCache(cfg.CacheSize, cfg.CacheOctets)
	addrs, err := serverAddresses(cfg)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		r.servers = append(r.servers, &server{addr: a, believed: cfg.TrustAD || a.Addr().IsLoopback()})
	}
	return r, nil
}

// serverAddresses are the servers of a configuration, each once.
func serverAddresses(cfg Config) (out []netip.AddrPort, err error) {
	names := cfg.Servers
	if len(names) == 0 {
		names = []string{System}
	}
	for _, name := range names {
		var more []netip.AddrPort
		if name == System {
			more, err = systemServers(cfg.resolvConf)
		} else {
			var a netip.AddrPort
			a, err = ParseServer(name)
			more = []netip.AddrPort{a}
		}
		if err != nil {
			return nil, err
		}
		for _, a := range more {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// ParseServer reads the address of a resolver: 192.0.2.53, 192.0.2.53:5353, 2001:db8::53 or [2001:db8::53]:5353.
func ParseServer(name string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	a, err := netip.ParseAddrPort(name)
	if err != nil || a.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("resolver %q is no address: write one such as 192.0.2.53 or [2001:db8::53]:53", name)
	}
	return a, nil
}

// systemServers are those of /etc/resolv.conf; without any, the one that libc would ask.
func systemServers(path string) (out []netip.AddrPort, err error) {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the system's resolvers from %s: %w", path, err)
	}
	if err == nil {
		for _, s := range conf.Servers {
			if a, err := ParseServer(s); err == nil {
				out = append(out, a)
			}
		}
	}
	if len(out) == 0 {
		out = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return out, nil
}

// LookupTXT gives the TXT records of a name, the strings of each joined.
func (r *Resolver) LookupTXT(ctx context.Context, name string) (Answer[string], error) {
	return look(ctx, r, question{name, dns.TypeTXT}, func(rr dns.RR) (string, bool) {
		t, ok := rr.(*dns.TXT)
		if !ok {
			return "", false
		}
		return text(t), true
	})
}

// LookupMX gives the MX records of a name in the order of their preference. A null MX (RFC 7505) has the host "".
func (r *Resolver) LookupMX(ctx context.Context, name string) (Answer[MX], error) {
	a, err := look(ctx, r, question{name, dns.TypeMX}, func(rr dns.RR) (MX, bool) {
		m, ok := rr.(*dns.MX)
		if !ok {
			return MX{}, false
		}
		return MX{Host: bare(m.Mx), Preference: m.Preference}, true
	})
	slices.SortStableFunc(a.Records, func(a, b MX) int { return cmp.Compare(a.Preference, b.Preference) })
	return a, err
}

// LookupA gives the IPv4 addresses of a host.
func (r *Resolver) LookupA(ctx context.Context, host string) (Answer[netip.Addr], error) {
	return look(ctx, r, question{host, dns.TypeA}, address)
}

// LookupAAAA gives the IPv6 addresses of a host.
func (r *Resolver) LookupAAAA(ctx context.Context, host string) (Answer[netip.Addr], error) {
	return look(ctx, r, question{host, dns.TypeAAAA}, address)
}

// LookupPTR gives the names of an address.
func (r *Resolver) LookupPTR(ctx context.Context, ip netip.Addr) (Answer[string], error) {
	name, err := ReverseName(ip)
	if err != nil {
		return Answer[string]{}, err
	}
	return look(ctx, r, question{name, dns.TypePTR}, func(rr dns.RR) (string, bool) {
		p, ok := rr.(*dns.PTR)
		if !ok {
			return "", false
		}
		return bare(p.Ptr), true
	})
}

// LookupTLSA gives the TLSA records (RFC 6698) of a name such as _25._tcp.mx.example.org.
func (r *Resolver) LookupTLSA(ctx context.Context, name string) (Answer[TLSA], error) {
	return look(ctx, r, question{name, dns.TypeTLSA}, func(rr dns.RR) (TLSA, bool) {
		t, ok := rr.(*dns.TLSA)
		if !ok {
			return TLSA{}, false
		}
		return TLSA{Usage: t.Usage, Selector: t.Selector, MatchingType: t.MatchingType, Certificate: t.Certificate}, true
	})
}

// look asks a question and reads the records of its answer.
func look[T any](ctx context.Context, r *Resolver, q question, read func(dns.RR) (T, bool)) (Answer[T], error) {
	name, ok := canonical(q.name)
	if !ok {
		return Answer[T]{}, &Error{Question: fmt.Sprintf("%q %s", q.name, dns.TypeToString[q.typ]), Kind: ErrNoName, Detail: "it is no domain name"}
	}
	q.name = name
	e, err := r.lookup(ctx, q)
	if err != nil {
		return Answer[T]{}, err
	}
	if e.err != nil {
		return Answer[T]{Authentic: e.authentic}, e.err
	}
	a := Answer[T]{Name: bare(e.name), Authentic: e.authentic, TTL: max(0, e.until.Sub(r.cfg.Now()))}
	for _, rr := range e.records {
		if v, ok := read(rr); ok {
			a.Records = append(a.Records, v)
		}
	}
	return a, nil
}
