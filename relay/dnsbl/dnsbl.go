// Package dnsbl asks DNS lists about the addresses of clients (RFC 5782): lists of
// those who send what nobody wants, and, with a negative weight, of those who do
// not.
//
// It only ever says that a client is listed when a list said so in the form that
// lists use. An answer outside 127.0.0.0/8 comes from a resolver or a domain that
// was sold, 127.255.255.x is how operators say that they do not answer this
// resolver, 127.0.0.1 is no listing (RFC 5782, 5), and a list that is silent says
// nothing: all of these are errors, which count for nobody and against nobody.
// Answers are kept by package resolver, for as long as the lists want it.
//
// Start reading at [Checker.Check].
package dnsbl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"crossfade/relay/resolver"
)

// List is one DNS list. Weight is what a listing counts; it may be negative.
type List struct {
	Zone   string
	Weight int
}

// MaxLists bounds the lists of a Checker: each is a question for each client.
const MaxLists = 20

// Config is what a Checker works with. Resolver and Lists are needed.
type Config struct {
	Resolver interface {
		LookupA(ctx context.Context, host string) (resolver.Answer[netip.Addr], error)
	}
	Lists []List
	// Threshold is the sum of weights from which a client counts as listed (1).
	Threshold int
	// Timeout bounds one check, all lists together (5 s).
	Timeout time.Duration
	// Looked is told what a list said of a client: "listed", "clear" or "error". It
	// must not block. It may be nil.
	Looked func(zone, result string)
}

// Verdict is what the lists say of an address.
type Verdict struct {
	Listed bool     // the score reaches the threshold
	Score  int      // the sum of weights
	Says   []string // "zone (127.0.0.2)" for each list that has it, in their order
}

// Checker asks. Its methods may be called by many goroutines.
type Checker struct {
	cfg   Config
	ahead chan struct{} // a token for each check that nobody waits for yet
}

// maxAhead bounds the checks that were begun before somebody needed them.
const maxAhead = 256

// New makes a Checker; it asks nobody yet.
func New(cfg Config) (*Checker, error) {
	if cfg.Resolver == nil || len(cfg.Lists) == 0 || len(cfg.Lists) > MaxLists {
		return nil, fmt.Errorf("dnsbl: a checker needs a resolver and 1 to %d lists, not %d", MaxLists, len(cfg.Lists))
	}
	if cfg.Threshold <= 0 {
		cfg.Threshold = 1
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Looked == nil {
		cfg.Looked = func(string, string) {}
	}
	return &Checker{cfg: cfg, ahead: make(chan struct{}, maxAhead)}, nil
}

// Begin asks about an address that will be checked soon, and does not wait. When
// much is under way already it does nothing.
func (c *Checker) Begin(ctx context.Context, a netip.Addr) {
	select {
	case c.ahead <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-c.ahead }()
		c.ask(ctx, a, func(string, string) {})
	}()
}

// Check asks all lists about an address. Lists that do not answer in time, or not
// as lists do, are left out: a failure lists nobody.
func (c *Checker) Check(ctx context.Context, a netip.Addr) Verdict {
	return c.ask(ctx, a, c.cfg.Looked)
}

func (c *Checker) ask(ctx context.Context, a netip.Addr, looked func(zone, result string)) (v Verdict) {
	prefix, ok := Reverse(a)
	if !ok {
		return v
	}
	ctx, cancel := context.WithTimeout(resolver.WithAsker(ctx, a), c.cfg.Timeout)
	defer cancel()
	codes := make([]string, len(c.cfg.Lists))
	var wg sync.WaitGroup
	for i, l := range c.cfg.Lists {
		wg.Go(func() {
			var result string
			codes[i], result = c.one(ctx, prefix+l.Zone)
			looked(l.Zone, result)
		})
	}
	wg.Wait()
	for i, l := range c.cfg.Lists {
		if codes[i] != "" {
			v.Score += l.Weight
			v.Says = append(v.Says, l.Zone+" ("+codes[i]+")")
		}
	}
	v.Listed = v.Score >= c.cfg.Threshold
	return v
}

// one asks one list; code is empty unless it has the address.
func (c *Checker) one(ctx context.Context, name string) (code, result string) {
	answer, err := c.cfg.Resolver.LookupA(ctx, name)
	switch {
	case errors.Is(err, resolver.ErrNoName):
		return "", "clear"
	case err != nil:
		return "", "error"
	case len(answer.Records) == 0:
		return "", "clear"
	}
	for _, r := range answer.Records {
		if !listing(r) {
			return "", "error"
		}
		if code == "" || r.String() < code {
			code = r.String()
		}
	}
	return code, "listed"
}

var loopback = netip.MustParsePrefix("127.0.0.0/8")
var refusals = netip.MustParsePrefix("127.255.255.0/24") // "your resolver is blocked", "too many questions"

// listing tells whether a record says that an address is listed.
func listing(r netip.Addr) bool {
	return loopback.Contains(r) && !refusals.Contains(r) && r != netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// Reverse is the name of an address in a list, with the dot at its end: the
// octets of an IPv4 address, the nibbles of an IPv6 address, backwards
// (RFC 5782, 2.1 and 2.4).
func Reverse(a netip.Addr) (prefix string, ok bool) {
	name, err := resolver.ReverseName(a)
	if err != nil || !a.IsValid() {
		return "", false
	}
	prefix, four := strings.CutSuffix(name, "in-addr.arpa.")
	if !four {
		prefix, ok = strings.CutSuffix(name, "ip6.arpa.")
		return prefix, ok
	}
	return prefix, true
}
