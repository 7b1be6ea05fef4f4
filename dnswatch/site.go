package dnswatch

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Site says which domains move, and from where to where. Only Domains and Hostname are required; names are host names
// in ASCII, with or without the final dot.
type Site struct {
	Domains  []string
	Hostname string // the relay's own name: its HELO, and its MX host unless RelayMX says others

	RelayMX    []string     // MX hosts that lead to the relay; empty: Hostname
	RelayAddrs []netip.Addr // where strangers reach the relay; empty: where DNS says that it is
	OldMX      []string     // MX hosts of the old system; empty: any that is none of the others
	NewMX      []string     // MX hosts of the new system

	SPFRelay, SPFNew, SPFOld []string // SPF terms such as "include:_spf.example.net" that each of the three needs
	DKIMNew, DKIMOld         []string // DKIM selectors

	TTL time.Duration // greatest that is wanted around a change; 0: 5 minutes
}

// Config is what a [Checker] works with. Site is required.
type Config struct {
	Site Site
	// Resolvers are addresses or names, with a port where it is not 53; the word "system" stands for those of
	// /etc/resolv.conf, as an empty list does.
	Resolvers []string
	// Nameservers are the authoritative servers of the domains, in the same form; empty: those of the NS records.
	Nameservers []string

	Dial  Dial             // nil: net.Dialer
	Roots *x509.CertPool   // for MTA-STS; nil: the system's
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: silent
	// Wait is how long one try of one question may take; 0: 3 seconds. Limit bounds a whole check; 0: 2 minutes for
	// each domain.
	Wait, Limit time.Duration
	// resolvConf is /etc/resolv.conf, but for tests.
	resolvConf string
}

// Checker looks at the records of a site. It keeps nothing; many goroutines may use it.
type Checker struct {
	cfg    Config
	site   Site
	client client
}

// DefaultTTL is the greatest TTL that is wanted around a change of the MX.
const DefaultTTL = 5 * time.Minute

// NewChecker makes a checker. It asks nobody yet. An error names what is missing.
func NewChecker(cfg Config) (*Checker, error) {
	if len(cfg.Site.Domains) == 0 || cfg.Site.Hostname == "" {
		return nil, errors.New("dns: neither domains nor the name of the relay may be missing")
	}
	nd := net.Dialer{}
	if cfg.Dial == nil {
		cfg.Dial = nd.DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Wait = cmp.Or(cfg.Wait, 3*time.Second)
	cfg.Limit = cmp.Or(cfg.Limit, 2*time.Minute*time.Duration(len(cfg.Site.Domains)))
	cfg.resolvConf = cmp.Or(cfg.resolvConf, "/etc/resolv.conf")
	s := cfg.Site
	s.TTL = cmp.Or(s.TTL, DefaultTTL)
	s.Domains, s.OldMX, s.NewMX = canonical(s.Domains), canonical(s.OldMX), canonical(s.NewMX)
	if s.RelayMX = canonical(s.RelayMX); len(s.RelayMX) == 0 {
		s.RelayMX = canonical([]string{s.Hostname})
	}
	return &Checker{cfg: cfg, site: s, client: client{dial: cfg.Dial, wait: cfg.Wait}}, nil
}

func canonical(names []string) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		out = append(out, dns.CanonicalName(n))
	}
	return out
}

// role says what an MX host belongs to.
type role string

const (
	roleRelay role = "relay"
	roleNew   role = "new"
	roleOld   role = "old"
	roleElse  role = "elsewhere"
)

// role of a host in canonical form. Where the old system's hosts are not named, a stranger may be one of them.
func (s *Site) role(host string) role {
	switch {
	case slices.Contains(s.RelayMX, host):
		return roleRelay
	case slices.Contains(s.NewMX, host):
		return roleNew
	case slices.Contains(s.OldMX, host):
		return roleOld
	}
	return roleElse
}

// lookups opens a fresh set of questions.
func (c *Checker) lookups(ctx context.Context) (*lookups, error) {
	resolvers, err := c.servers(ctx, c.cfg.Resolvers)
	if err != nil {
		return nil, fmt.Errorf("dns.resolvers: %w", err)
	}
	var override []Server
	if len(c.cfg.Nameservers) > 0 {
		if override, err = c.servers(ctx, c.cfg.Nameservers); err != nil {
			return nil, fmt.Errorf("dns.nameservers: %w", err)
		}
		for i := range override {
			override[i].Authoritative = true
		}
	}
	return newLookups(c.client, resolvers, override, c.site.Domains), nil
}

// System is the word that stands for the resolvers of /etc/resolv.conf.
const System = "system"

// servers turns names into servers; the system's own resolver finds their addresses.
func (c *Checker) servers(ctx context.Context, names []string) (out []Server, err error) {
	if len(names) == 0 {
		names = []string{System}
	}
	for _, name := range names {
		if name == System {
			of, err := c.system()
			if err != nil {
				return nil, err
			}
			out = append(out, of...)
			continue
		}
		s, err := server(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	var unique []Server
	for _, s := range out {
		if !slices.ContainsFunc(unique, func(u Server) bool { return u.Address == s.Address }) {
			unique = append(unique, s)
		}
	}
	return unique, nil
}

func server(ctx context.Context, name string) (Server, error) {
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		host, port = strings.Trim(name, "[]"), "53"
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return Server{Name: name, Address: net.JoinHostPort(ip.String(), port)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return Server{}, fmt.Errorf("the address of %s cannot be found: %w (write an address)", host, err)
	}
	ips := make([]netip.Addr, 0, len(addrs))
	for _, ip := range addrs {
		ips = append(ips, ip.Unmap())
	}
	ip := reachable(ips)[0] // LookupNetIP gives one at least, or an error
	return Server{Name: name, Address: net.JoinHostPort(ip.String(), port)}, nil
}

func (c *Checker) system() ([]Server, error) {
	f, err := os.Open(c.cfg.resolvConf)
	if err != nil {
		return nil, fmt.Errorf("the system's resolvers cannot be read: %w (name resolvers instead)", err)
	}
	defer f.Close()
	conf, err := dns.ClientConfigFromReader(f)
	if err != nil {
		return nil, fmt.Errorf("the system's resolvers cannot be read: %s: %w (name resolvers instead)", c.cfg.resolvConf, err)
	}
	var out []Server
	for _, s := range conf.Servers {
		out = append(out, Server{Name: s, Address: net.JoinHostPort(s, conf.Port)})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names no resolver: name some", c.cfg.resolvConf)
	}
	return out, nil
}
