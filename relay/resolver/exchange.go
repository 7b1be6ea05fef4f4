package resolver

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
	ednsSize = 1232 // octets of an answer over UDP that no path fragments
	readSize = 4096 // what is read all the same of a server that sends more
	maxStray = 32   // packets that answer something else before a try is given up
	maxChain = 8    // CNAMEs that are followed
	rounds   = 2    // times that every server is asked
	tryTime  = 1500 * time.Millisecond
)

// What a server did instead of answering.
var (
	errSilent    = errors.New("no answer")
	errMismatch  = errors.New("answers to other questions only: it is broken, or somebody forges answers")
	errMalformed = errors.New("its answer is no DNS message")
)

// ask puts a question to one server after the other until one answers.
func (r *Resolver) ask(ctx context.Context, q question) *entry {
	said := "no resolver answers"
	for range rounds {
		for _, s := range r.servers {
			if ctx.Err() != nil {
				return r.failure(q.failed(ErrTemporary, "no answer within %v; %s", r.cfg.Timeout, said))
			}
			if !r.awake(ctx, s) {
				continue
			}
			resp, err := r.try(ctx, s, q)
			if errors.Is(err, errSilent) && ctx.Err() == nil {
				r.fellSilent(ctx, s)
			}
			switch {
			case err != nil:
				said = s.addr.String() + ": " + err.Error()
			case resp.Rcode == dns.RcodeSuccess || resp.Rcode == dns.RcodeNameError:
				s.answered()
				return r.read(q, resp, s.believed)
			default:
				s.answered()
				said = s.addr.String() + " says " + dns.RcodeToString[resp.Rcode]
			}
		}
	}
	return r.failure(q.failed(ErrTemporary, "%s", said))
}

// try asks one server: over UDP, and over TCP when the answer is too long for that.
func (r *Resolver) try(ctx context.Context, s *server, q question) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.typ)
	m.AuthenticatedData = true // it is wanted in the answer (RFC 6840, 5.7)
	m.SetEdns0(ednsSize, false)
	resp, err := r.exchange(ctx, "udp", s, m)
	if err == nil && (resp.Rcode == dns.RcodeFormatError || resp.Rcode == dns.RcodeNotImplemented) {
		m.Extra = nil // a server of the time before EDNS
		resp, err = r.exchange(ctx, "udp", s, m)
	}
	if err == nil && resp.Truncated || errors.Is(err, errMalformed) {
		if resp, err = r.exchange(ctx, "tcp", s, m); err != nil {
			return nil, fmt.Errorf("its answer is too long for UDP, and over TCP: %w", err)
		}
		if resp.Truncated {
			return nil, errors.New("its answer is cut short over TCP too")
		}
	}
	return resp, err
}

// exchange sends m and waits for its answer. What answers something else is read over: over UDP anybody may send it.
func (r *Resolver) exchange(ctx context.Context, network string, s *server, m *dns.Msg) (*dns.Msg, error) {
	m.Id = dns.Id()
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	conn, err := r.cfg.Dial(ctx, network, s.addr.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSilent, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
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
		if stray == errMalformed && network == "udp" {
			return nil, stray // cut off on its way, perhaps: TCP will tell
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
		return resp.Rcode != dns.RcodeSuccess && resp.Rcode != dns.RcodeNameError
	}
	want, got := m.Question[0], resp.Question[0]
	return len(resp.Question) == 1 && got.Qtype == want.Qtype && got.Qclass == want.Qclass && strings.EqualFold(got.Name, want.Name)
}

// read takes out of a message what answers q. Records of other names are nobody's business.
func (r *Resolver) read(q question, m *dns.Msg, believed bool) *entry {
	e := &entry{name: q.name, authentic: believed && m.AuthenticatedData}
	ttl := maxTTL
	for chain := []string{q.name}; ; {
		next := ""
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != e.name {
				continue
			}
			c, alias := rr.(*dns.CNAME)
			switch {
			case h.Rrtype == q.typ:
				e.records = append(e.records, rr)
			case alias:
				next = dns.CanonicalName(c.Target)
			default:
				continue
			}
			ttl = min(ttl, time.Duration(h.Ttl)*time.Second)
		}
		if len(e.records) > 0 || next == "" {
			break
		}
		if slices.Contains(chain, next) || len(chain) > maxChain {
			return r.useless(e, q.failed(ErrPermanent, "its CNAMEs go in a circle, or there are more than %d", maxChain))
		}
		chain, e.name = append(chain, next), next
	}
	switch {
	case len(e.records) > r.cfg.MaxRecords:
		n := len(e.records)
		return r.useless(e, q.failed(ErrPermanent, "%d records, and more than %d are not looked at", n, r.cfg.MaxRecords))
	case len(e.records) == 0:
		ttl = negativeTTL(m)
		if m.Rcode == dns.RcodeNameError {
			e.err = q.failed(ErrNoName, "")
		}
	}
	e.until = r.now().Add(max(ttl, minTTL))
	return e
}

// useless makes of an answer one that says why it cannot be used.
func (r *Resolver) useless(e *entry, err *Error) *entry {
	e.records, e.err, e.until = nil, err, r.now().Add(maxNegative)
	return e
}

// negativeTTL is how long it is known that there is nothing (RFC 2308, 5).
func negativeTTL(m *dns.Msg) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxNegative)
		}
	}
	return noSOA
}
