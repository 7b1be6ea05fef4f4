package dnswatch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// longTTL is what a TTL may go back to when nothing is to change any more.
const longTTL = time.Hour

// ttls looks at how long caches keep what is about to change: the MX, the addresses of its hosts, and the TXT records.
func (r *run) ttls(ctx context.Context, hosts []mxHost) {
	before := len(r.out)
	r.ttl(ctx, r.domain, dns.TypeMX)
	r.ttl(ctx, r.domain, dns.TypeTXT)
	names := slices.Clone(r.s.RelayMX)
	for _, h := range hosts {
		if h.host != "." && !slices.Contains(names, h.host) && r.s.role(h.host) != roleElse {
			names = append(names, h.host)
		}
	}
	if r.phase == After {
		names = nil // the hosts are the new system's own, and nothing is to change
	}
	for _, host := range names {
		r.ttl(ctx, host, dns.TypeA)
		r.ttl(ctx, host, dns.TypeAAAA)
	}
	if len(r.out) == before && r.phase != After {
		r.add(Finding{Severity: OK, Check: "ttl", Seen: fmt.Sprintf("MX, TXT and the hosts' addresses are cached for %s at most", span(r.s.TTL))})
	}
}

func (r *run) ttl(ctx context.Context, name string, typ uint16) {
	t := r.l.truth(ctx, name, typ)
	rrs := t.rrs()
	if len(rrs) == 0 {
		return
	}
	now := ttlOf(rrs)
	switch {
	case r.phase == After:
		r.ttlAfter(typ, now, t)
		return
	case now > r.s.TTL:
		r.ttlHigh(rrs, now, t)
		return
	}
	if r.past == nil {
		return
	}
	was, ok := r.past.highest(name, typ, r.now, r.s.TTL)
	if !ok {
		return
	}
	f := Finding{Severity: Note, Check: "ttl-cached", Server: t.source[0].server.String(),
		Seen:   fmt.Sprintf("%s was seen with a TTL of %s until %s: caches may keep that until %s", t.q, span(was.ttl()), moment(was.Last), moment(was.until())),
		Why:    "until then a part of the senders does not see a change of it, forward or back",
		Change: "nothing; it runs out at " + moment(was.until())}
	if r.moving() {
		f.Severity, f.Why = Warn, "whoever has it in a cache goes on by it until then, whatever you change"
		f.Change = "wait until " + moment(was.until()) + " before the MX moves"
	}
	r.add(f)
}

func (r *run) ttlHigh(rrs []dns.RR, now time.Duration, t truth) {
	f := Finding{Severity: Note, Check: "ttl-high", Seen: line(greatest(rrs)), Server: t.source[0].server.String(),
		Why: fmt.Sprintf("a change, also one that takes the move back, reaches a part of the senders %s late", span(now))}
	if r.moving() {
		f.Severity = Warn
		f.Why = fmt.Sprintf("senders that have it in a cache go the old way for %s after the change", span(now))
		if t.q.typ == dns.TypeTXT {
			f.Why = fmt.Sprintf("receivers that have it in a cache judge by it for %s after a change (SPF)", span(now))
		}
	}
	for i, rr := range rrs {
		if i > 0 {
			f.Change += "\n"
		}
		data := value(rr)
		if t.q.typ == dns.TypeTXT {
			data = quoted(data)
		}
		f.Change += record(t.q.name, r.s.TTL, dns.TypeToString[t.q.typ], data)
	}
	if r.moving() {
		f.Change += fmt.Sprintf("\nthen wait %s, until no cache has it with the old TTL any more: %s if it is changed now", span(now), moment(r.now.Add(now)))
	}
	r.add(f)
}

// ttlAfter: what was short for the move may be long again.
func (r *run) ttlAfter(typ uint16, now time.Duration, t truth) {
	if typ != dns.TypeMX || now >= longTTL {
		return
	}
	r.add(Finding{Severity: Note, Check: "ttl-low", Seen: line(t.rrs()[0]), Server: t.source[0].server.String(),
		Why: "a short TTL was for the move; it makes mail depend on the name servers every few minutes", Change: fmt.Sprintf("raise the TTL to %d when the window is closed and nobody wants to go back", int(longTTL.Seconds()))})
}

func greatest(rrs []dns.RR) dns.RR {
	return slices.MaxFunc(rrs, func(a, b dns.RR) int { return int(lifetime(a.Header().Ttl) - lifetime(b.Header().Ttl)) })
}
