package router

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"crossfade/mail"
)

// Policy says what becomes of an address of our domains that is in no table.
type Policy string

// The policies, as `routing.unknown` names them.
const (
	PolicyVerify Policy = "verify" // ask both sides
	PolicyReject Policy = "reject" // 550 5.1.1
	PolicyOld    Policy = "old"    // accept for the old side
	PolicyNew    Policy = "new"    // accept for the new side
)

// ParsePolicy reads a policy's name; the empty string is PolicyVerify.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case "":
		return PolicyVerify, nil
	case PolicyVerify, PolicyReject, PolicyOld, PolicyNew:
		return p, nil
	}
	return "", fmt.Errorf("unknown policy %q for unknown users: use one of verify, reject, old, new", s)
}

// Config is what a Router is told of the site. It can be exchanged while the
// Router runs; see [Router.Reload].
type Config struct {
	// Hostname is our own name. Mail for postmaster and abuse at it goes to the
	// first of Domains.
	Hostname string
	// Domains are ours. Everything else is refused: this is no forwarder.
	Domains []string
	// Subaddress parts a user from a tag, as in user+tag@example.org; empty
	// turns subaddresses off.
	Subaddress string
	// Unknown says what becomes of an address in no table; empty is
	// PolicyVerify.
	Unknown Policy
	// Logger gets what operators have to repair, loops of aliases for one; nil
	// discards.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Router answers who an address belongs to. It is safe for use by many
// goroutines.
type Router struct {
	table Table
	site  atomic.Pointer[site]
}

// site is a Config made ready for use; it never changes.
type site struct {
	hostname  string
	domains   map[string]bool
	first     string // of the domains
	separator string
	unknown   Policy
	log       *slog.Logger
	now       func() time.Time
}

// New makes a Router over table. Its error names the setting that is wrong.
func New(c Config, table Table) (*Router, error) {
	if table == nil {
		return nil, errors.New("router: there is no table of users")
	}
	r := &Router{table: table}
	if err := r.Reload(c); err != nil {
		return nil, err
	}
	return r, nil
}

// Reload exchanges the configuration. On an error the old one stays.
func (r *Router) Reload(c Config) error {
	s, err := newSite(c)
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	r.site.Store(s)
	return nil
}

func newSite(c Config) (*site, error) {
	s := &site{domains: make(map[string]bool, len(c.Domains)), separator: c.Subaddress, log: c.Logger, now: c.Now}
	if len(c.Domains) == 0 {
		return nil, errors.New("domains: at least one domain is needed")
	}
	for i, name := range c.Domains {
		d, err := mail.NormalDomain(name)
		if err != nil {
			return nil, fmt.Errorf("domains: %w", err)
		}
		if i == 0 {
			s.first = d
		}
		s.domains[d] = true
	}
	var err error
	if c.Hostname != "" {
		if s.hostname, err = mail.NormalDomain(c.Hostname); err != nil {
			return nil, fmt.Errorf("hostname: %w", err)
		}
	}
	if strings.Contains(c.Subaddress, "@") || strings.TrimSpace(c.Subaddress) != c.Subaddress {
		return nil, fmt.Errorf("routing.subaddress: %q cannot part a user from a tag: use a character such as + or -", c.Subaddress)
	}
	if s.unknown, err = ParsePolicy(string(c.Unknown)); err != nil {
		return nil, fmt.Errorf("routing.unknown: %w", err)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s, nil
}

// Unknown is the present policy for addresses in no table.
func (r *Router) Unknown() Policy { return r.site.Load().unknown }

// Domains gives our domains in normal form, sorted.
func (r *Router) Domains() []string {
	s := r.site.Load()
	names := make([]string, 0, len(s.domains))
	for d := range s.domains {
		names = append(names, d)
	}
	slices.Sort(names)
	return names
}

// Ours tells whether domain, in normal form, is one of ours.
func (r *Router) Ours(domain string) bool { return r.site.Load().domains[domain] }

// role tells whether local is a name that strangers may count on: RFC 5321,
// 4.5.1 for postmaster, RFC 2142 for abuse.
func role(local string) bool {
	return isPostmaster(local) || strings.EqualFold(local, "abuse")
}

func isPostmaster(local string) bool { return strings.EqualFold(local, "postmaster") }

// split cuts a tag off the local part: base and tag, the separator with the
// tag. ok is false where there is none.
func (s *site) split(a mail.Address) (base mail.Address, tag string, ok bool) {
	if s.separator == "" {
		return a, "", false
	}
	i := strings.Index(a.Local, s.separator)
	if i <= 0 {
		return a, "", false
	}
	return mail.Address{Local: a.Local[:i], Domain: a.Domain}, a.Local[i:], true
}
