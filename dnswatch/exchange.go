package dnswatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Bounds of one question.
const (
	ednsSize   = 1232 // octets of an answer over UDP that no path fragments
	readSize   = 4096 // what is read all the same of a server that sends more
	maxStray   = 32   // packets that answer something else before a server is given up
	maxRecords = 100  // of one answer that are looked at
	maxChain   = 8    // CNAMEs of one answer that are followed
	udpTries   = 2
)

// Errors of a question. Each says what the server did.
var (
	errSilent    = errors.New("no answer")
	errMismatch  = errors.New("it answered another question, or with another id: it is broken, or somebody forges answers")
	errMalformed = errors.New("its answer is no DNS message")
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
	m.SetEdns0(ednsSize, true)
	resp, err := c.try(ctx, s, m)
	if err == nil && (resp.Rcode == dns.RcodeFormatError || resp.Rcode == dns.RcodeNotImplemented) {
		m.Extra = nil // a server of the time before EDNS
		resp, err = c.try(ctx, s, m)
	}
	if err != nil {
		return &answer{server: s, q: q, err: err}
	}
	return read(s, q, resp)
}

func (c *client) try(ctx context.Context, s Server, m *dns.Msg) (resp *dns.Msg, err error) {
	for range udpTries {
		m.Id = dns.Id()
		resp, err = c.once(ctx, "udp", s.Address, m)
		if err == nil || !errors.Is(err, errSilent) || ctx.Err() != nil {
			break
		}
	}
	if err == nil && resp.Truncated || errors.Is(err, errMalformed) { // larger than what was asked for, or cut off on its way
		if resp, err = c.once(ctx, "tcp", s.Address, m); err != nil {
			return nil, fmt.Errorf("its answer is too long for UDP, and over TCP: %w", err)
		}
		if resp.Truncated {
			return nil, errors.New("its answer is cut short over TCP too")
		}
	}
	return resp, err
}

// once sends m and waits for its answer. What answers something else is read over, for as long as the time allows:
// over UDP anybody may send it.
func (c *client) once(ctx context.Context, network, address string, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSilent, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	dc := &dns.Conn{Conn: conn, UDPSize: readSize}
	if err := dc.WriteMsg(m); err != nil {
		return nil, fmt.Errorf("%w: %w", errSilent, err)
	}
	stray := errSilent
	for range maxStray {
		resp, err := dc.ReadMsg()
		var ne net.Error
		switch {
		case errors.As(err, &ne) || err != nil && network == "tcp":
			if stray == errSilent {
				return nil, fmt.Errorf("%w: %w", errSilent, err)
			}
			return nil, stray
		case err != nil:
			stray = errMalformed
		case answers(resp, m):
			return resp, nil
		default:
			stray = errMismatch
		}
	}
	return nil, stray
}

// answers tells whether resp is the answer to m.
func answers(resp, m *dns.Msg) bool {
	if !resp.Response || resp.Id != m.Id {
		return false
	}
	if len(resp.Question) == 0 { // servers that refuse leave it out
		return resp.Rcode != dns.RcodeSuccess
	}
	want, got := m.Question[0], resp.Question[0]
	return len(resp.Question) == 1 && got.Qtype == want.Qtype && got.Qclass == want.Qclass && strings.EqualFold(got.Name, want.Name)
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
