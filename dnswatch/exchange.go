package dnswatch

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"crossfade/internal/dnsask"

	"github.com/miekg/dns"
)

// Bounds of one question.
const (
	maxRecords = 100 // of one answer that are looked at
	maxChain   = 8   // CNAMEs of one answer that are followed
	udpTries   = 2
)

// Dial connects to host:port; net.Dialer.DialContext is one.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Server is a name server.
type Server struct {
	Name          string // as people know it: a host name or an address
	Address       string // host:port
	Authoritative bool   // asked without recursion
}

// String gives the name, and the address when that says more.
func (s Server) String() string {
	host := strings.TrimSuffix(s.Address, ":53")
	if s.Name == "" || s.Name == host || s.Name == s.Address {
		return host
	}
	return s.Name + " (" + host + ")"
}

type question struct {
	name string // with the final dot, lower case
	typ  uint16
	cd   bool // the resolver is not to validate
}

func ask(name string, typ uint16) question {
	return question{name: dns.CanonicalName(name), typ: typ}
}

func (q question) String() string { return q.name + " " + dns.TypeToString[q.typ] }

// answer is what one server said.
type answer struct {
	server  Server
	q       question
	rcode   int
	records []dns.RR // of the type asked, behind any CNAMEs
	chain   []string // names that CNAMEs led to
	soa     *dns.SOA // of the authority section: the zone of what does not exist
	ns      []*dns.NS
	aa, ad  bool
	signed  bool // there are signatures with it
	bogus   bool // it is what the resolver gave without validation, after SERVFAIL with it
	dropped int  // records beyond maxRecords
	err     error
}

// ok tells whether the server answered the question, be it that there is nothing.
func (a *answer) ok() bool {
	return a.err == nil && (a.rcode == dns.RcodeSuccess || a.rcode == dns.RcodeNameError)
}

// speaksFor tells whether the server answered with authority over a zone. One that has only the zone above it denies with
// authority whatever it was not told of.
func (a *answer) speaksFor(zone string) bool {
	return a.ok() && a.aa && (a.soa == nil || len(a.chain) > 0 || dns.CanonicalName(a.soa.Hdr.Name) == zone)
}

// problem says in words why there is no answer.
func (a *answer) problem() string {
	if a.err != nil {
		return a.err.Error()
	}
	return "it answered " + dns.RcodeToString[a.rcode]
}

// client asks servers. It has no state.
type client struct {
	dial Dial
	wait time.Duration // for one try
}

// ask puts q to a server: over UDP, twice when it is silent, and over TCP when the answer is truncated.
func (c *client) ask(ctx context.Context, s Server, q question) *answer {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.typ)
	m.RecursionDesired = !s.Authoritative
	m.CheckingDisabled = q.cd
	m.SetEdns0(dnsask.EDNSSize, true)
	resp, err := dnsask.Asker{Dial: c.dial, Wait: c.wait, Tries: udpTries}.Ask(ctx, s.Address, m)
	if err != nil {
		return &answer{server: s, q: q, err: err}
	}
	return read(s, q, resp)
}

// read takes out of a message what answers q, and no more than is of use.
func read(s Server, q question, m *dns.Msg) *answer {
	a := &answer{server: s, q: q, rcode: m.Rcode, aa: m.Authoritative, ad: m.AuthenticatedData}
	name := q.name
	for {
		next := ""
		for _, rr := range m.Answer {
			if dns.CanonicalName(rr.Header().Name) != name || rr.Header().Class != dns.ClassINET {
				continue
			}
			if c, ok := rr.(*dns.CNAME); ok && q.typ != dns.TypeCNAME {
				next = dns.CanonicalName(c.Target)
			}
			if rr.Header().Rrtype == dns.TypeRRSIG {
				a.signed = true
			}
			if rr.Header().Rrtype != q.typ {
				continue
			}
			if len(a.records) == maxRecords {
				a.dropped++
				continue
			}
			a.records = append(a.records, rr)
		}
		if len(a.records) > 0 || next == "" || len(a.chain) == maxChain || slices.Contains(a.chain, next) {
			break
		}
		a.chain, name = append(a.chain, next), next
	}
	for _, rr := range m.Ns[:min(len(m.Ns), maxRecords)] {
		switch rr := rr.(type) {
		case *dns.SOA:
			a.soa = rr
		case *dns.NS:
			a.ns = append(a.ns, rr)
		}
	}
	return a
}
