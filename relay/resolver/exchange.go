package resolver

import (
	"context"
	"slices"
	"time"

	"crossfade/internal/dnsask"

	"github.com/miekg/dns"
)

// Bounds of one question.
const (
	maxChain = 8 // CNAMEs that are followed
	rounds   = 2 // times that every server is asked
	tryTime  = 1500 * time.Millisecond
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
			switch {
			case err != nil:
				said = s.addr.String() + ": " + err.Error()
				r.gaveNone(ctx, s, err)
			case resp.Rcode == dns.RcodeSuccess || resp.Rcode == dns.RcodeNameError:
				s.helped()
				return r.read(q, resp, s.believed)
			default:
				said = s.addr.String() + " says " + dns.RcodeToString[resp.Rcode]
				s.answered()
				s.wasUseless(r.now(), "it says "+dns.RcodeToString[resp.Rcode])
			}
		}
	}
	return r.failure(q.failed(ErrTemporary, "%s", said))
}

// try asks one server.
func (r *Resolver) try(ctx context.Context, s *server, q question) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.typ)
	m.AuthenticatedData = true // it is wanted in the answer (RFC 6840, 5.7)
	m.SetEdns0(dnsask.EDNSSize, false)
	return r.asker(tryTime).Ask(ctx, s.addr.String(), m)
}

func (r *Resolver) asker(wait time.Duration) dnsask.Asker {
	return dnsask.Asker{Dial: r.cfg.Dial, Wait: wait}
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
