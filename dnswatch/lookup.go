package dnswatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"crossfade/internal/dnsask"

	"github.com/miekg/dns"
)

// Bounds of one check.
const (
	maxSilence   = 3  // questions without an answer before a server is not asked any more
	maxServers   = 13 // authoritative servers of one zone that are asked
	maxQuestions = 20000
	atOnce       = 16 // questions under way
)

// lookups answers questions for one check or one round, each once.
type lookups struct {
	client    client
	resolvers []Server
	override  []Server // authoritative servers of our domains, instead of those of the NS records
	domains   []string // canonical

	sem   chan struct{}
	mu    sync.Mutex
	left  int
	seen  map[string]*memo
	stats map[string]*serverStats // by address
}

// serverStats count how a server did.
type serverStats struct {
	server                   Server
	answered, failed, forged int
	problem                  string // of the last question without an answer
}

// memo is an answer that may still be under way.
type memo struct {
	once sync.Once
	view view
	zone zone
}

// view is what all resolvers say to one question.
type view struct {
	q       question
	answers []*answer // one of each resolver
	best    *answer   // of the largest group that agrees; nil: nobody answered
	rivals  []*answer // those that say something else
}

func newLookups(c client, resolvers, override []Server, domains []string) *lookups {
	return &lookups{client: c, resolvers: resolvers, override: override, domains: domains,
		sem: make(chan struct{}, atOnce), left: maxQuestions, seen: map[string]*memo{}, stats: map[string]*serverStats{}}
}

func (l *lookups) memo(key string) *memo {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.seen[key]
	if m == nil {
		m = &memo{}
		l.seen[key] = m
	}
	return m
}

var errTooMany = errors.New("too many questions for one check")

// askAll puts a question to servers at the same time.
func (l *lookups) askAll(ctx context.Context, servers []Server, q question) []*answer {
	out := make([]*answer, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { out[i] = l.askOne(ctx, s, q) })
	}
	wg.Wait()
	return out
}

func (l *lookups) askOne(ctx context.Context, s Server, q question) *answer {
	l.mu.Lock()
	l.left--
	over := l.left < 0
	st := l.stats[s.Address]
	dead := st != nil && st.answered == 0 && st.failed >= maxSilence
	l.mu.Unlock()
	switch {
	case over:
		return &answer{server: s, q: q, err: errTooMany}
	case dead:
		return &answer{server: s, q: q, err: fmt.Errorf("%w to the first %d questions", dnsask.ErrSilent, maxSilence)}
	}
	select {
	case l.sem <- struct{}{}:
	case <-ctx.Done():
		return &answer{server: s, q: q, err: fmt.Errorf("%w: %w", dnsask.ErrSilent, ctx.Err())}
	}
	defer func() { <-l.sem }()
	a := l.unhidden(ctx, s, q)
	l.count(a)
	return a
}

// unhidden asks again without validation where a resolver failed: one that validates hides what it finds forged behind
// SERVFAIL (RFC 4035, 5.5).
func (l *lookups) unhidden(ctx context.Context, s Server, q question) *answer {
	a := l.client.ask(ctx, s, q)
	if !s.Authoritative && a.err == nil && a.rcode == dns.RcodeServerFailure {
		unchecked := q
		unchecked.cd = true
		if b := l.client.ask(ctx, s, unchecked); b.ok() {
			b.bogus = true
			return b
		}
	}
	return a
}

func (l *lookups) count(a *answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats[a.server.Address]
	if st == nil {
		st = &serverStats{server: a.server}
		l.stats[a.server.Address] = st
	}
	if a.ok() {
		st.answered++
		return
	}
	st.failed++
	st.problem = a.q.String() + ": " + a.problem()
	if errors.Is(a.err, dnsask.ErrMismatch) {
		st.forged++
	}
}

// look asks all resolvers.
func (l *lookups) look(ctx context.Context, name string, typ uint16) view {
	q := ask(name, typ)
	m := l.memo(q.String())
	m.once.Do(func() { m.view = agree(q, l.askAll(ctx, l.resolvers, q)) })
	return m.view
}

// agree finds what most resolvers say; of two groups of a size it is that of the resolver named first.
func agree(q question, answers []*answer) view {
	v := view{q: q, answers: answers}
	count := map[string]int{}
	for _, a := range answers {
		if a.ok() {
			count[a.digest()]++
		}
	}
	for _, a := range answers {
		if a.ok() && (v.best == nil || count[a.digest()] > count[v.best.digest()]) {
			v.best = a
		}
	}
	for _, a := range answers {
		if a.ok() && a.digest() != v.best.digest() {
			v.rivals = append(v.rivals, a)
		}
	}
	return v
}

// digest is the same for answers that say the same.
func (a *answer) digest() string { return strings.Join(values(a.records), "\x00") }

// records are those that most resolvers give.
func (v view) records() []dns.RR {
	if v.best == nil {
		return nil
	}
	return v.best.records
}

// known tells whether any resolver answered.
func (v view) known() bool { return v.best != nil }

// problem says why nobody answered.
func (v view) problem() string {
	var parts []string
	for _, a := range v.answers {
		parts = append(parts, a.server.String()+": "+a.problem())
	}
	if len(parts) == 0 {
		return "there is no resolver to ask"
	}
	return cut(strings.Join(parts, "; "))
}

// by names who gave the best answer.
func (v view) by() string {
	if v.best == nil {
		return ""
	}
	return v.best.server.String()
}

// texts gives the TXT records that begin with one of the versions of a protocol.
func (v view) texts(prefix string) (out []string) {
	for _, rr := range v.records() {
		t, ok := rr.(*dns.TXT)
		if !ok {
			continue
		}
		s := strings.Join(t.Txt, "")
		if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) && (len(s) == len(prefix) || strings.ContainsAny(s[len(prefix):len(prefix)+1], " ;")) {
			out = append(out, s)
		}
	}
	return out
}

// addresses gives A and AAAA of a host, and whether it is a CNAME and anybody knew.
func (l *lookups) addresses(ctx context.Context, host string) hostView {
	h := hostView{v4: l.look(ctx, host, dns.TypeA), v6: l.look(ctx, host, dns.TypeAAAA)}
	for _, v := range []view{h.v4, h.v6} {
		for _, rr := range v.records() {
			if ip, ok := address(rr); ok {
				h.addrs = append(h.addrs, ip)
			}
		}
		if v.best != nil && len(v.best.chain) > 0 {
			h.alias = v.best.chain[0]
		}
	}
	return h
}

type hostView struct {
	v4, v6 view
	addrs  []netip.Addr
	alias  string // where a CNAME leads
}

func (h hostView) known() bool { return h.v4.known() || h.v6.known() }

func address(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		ip, ok := netip.AddrFromSlice(rr.A.To4())
		return ip, ok
	case *dns.AAAA:
		ip, ok := netip.AddrFromSlice(rr.AAAA)
		return ip, ok
	}
	return netip.Addr{}, false
}

// zone is where a name is administered, and by whom.
type zone struct {
	name    string // canonical; empty: nobody could tell
	servers []Server
	missing []string // name servers that have no address
	problem string
}

// zone finds the zone that a name belongs to, and its servers.
func (l *lookups) zone(ctx context.Context, name string) zone {
	soa := l.look(ctx, name, dns.TypeSOA)
	apex := ""
	if best := soa.best; best != nil {
		switch {
		case len(best.records) > 0:
			apex = dns.CanonicalName(best.records[0].Header().Name)
		case best.soa != nil:
			apex = dns.CanonicalName(best.soa.Header().Name)
		}
	}
	if apex == "" || len(soa.best.chain) == 0 && !dns.IsSubDomain(apex, dns.CanonicalName(name)) {
		return zone{problem: "no resolver says which zone it belongs to: " + soa.problem()}
	}
	m := l.memo(apex + " zone")
	m.once.Do(func() { m.zone = l.findServers(ctx, apex) })
	return m.zone
}

func (l *lookups) findServers(ctx context.Context, apex string) zone {
	z := zone{name: apex}
	ours := slices.ContainsFunc(l.domains, func(d string) bool { return dns.IsSubDomain(apex, d) || dns.IsSubDomain(d, apex) })
	if len(l.override) > 0 && ours {
		z.servers = l.override
		return z
	}
	ns := l.look(ctx, apex, dns.TypeNS)
	for _, rr := range ns.records() {
		host := rr.(*dns.NS).Ns
		h := l.addresses(ctx, host)
		if len(h.addrs) == 0 {
			z.missing = append(z.missing, bare(dns.CanonicalName(host)))
			continue
		}
		for _, ip := range reachable(h.addrs) {
			if len(z.servers) < maxServers {
				z.servers = append(z.servers, Server{Name: bare(dns.CanonicalName(host)), Address: net.JoinHostPort(ip.String(), "53"), Authoritative: true})
			}
		}
	}
	slices.SortFunc(z.servers, func(a, b Server) int { return strings.Compare(a.String(), b.String()) })
	slices.Sort(z.missing)
	if len(z.servers) == 0 {
		z.problem = "its name servers are not known: " + ns.problem()
	}
	return z
}

// reachable prefers IPv4: a host without a route for IPv6 would call every server dead.
func reachable(addrs []netip.Addr) []netip.Addr {
	var v4 []netip.Addr
	for _, a := range addrs {
		if a.Is4() {
			v4 = append(v4, a)
		}
	}
	if len(v4) > 0 {
		return v4[:min(len(v4), 2)]
	}
	return addrs[:min(len(addrs), 2)]
}

// truth is what the authoritative servers say of a name and type; where none of them can be asked, most resolvers.
type truth struct {
	q       question
	view    view
	answers []*answer // of the authoritative servers
	source  []*answer // those that records are taken from
	zone    zone
}

func (l *lookups) truth(ctx context.Context, name string, typ uint16) truth {
	t := truth{q: ask(name, typ), view: l.look(ctx, name, typ), zone: l.zone(ctx, name)}
	t.answers = l.authoritative(ctx, t.zone, t.q)
	for _, a := range t.answers {
		if a.speaksFor(t.zone.name) {
			t.source = append(t.source, a)
		}
	}
	if len(t.source) == 0 && t.view.best != nil {
		t.source = []*answer{t.view.best}
	}
	return t
}

func (l *lookups) authoritative(ctx context.Context, z zone, q question) []*answer {
	m := l.memo(z.name + " at " + q.String())
	m.once.Do(func() { m.view.answers = l.askAll(ctx, z.servers, q) })
	return m.view.answers
}

func (t truth) known() bool { return len(t.source) > 0 }

// problem says why nothing is known.
func (t truth) problem() string {
	if t.zone.problem != "" {
		return t.view.problem() + "; " + t.zone.problem
	}
	return t.view.problem()
}

// sighting is a record with those who gave it.
type sighting struct {
	rr dns.RR
	by []string
}

// records are those of all sources, each once, with its greatest TTL.
func (t truth) records() (out []sighting) {
	for _, a := range t.source {
		for _, rr := range a.records {
			i := slices.IndexFunc(out, func(s sighting) bool { return value(s.rr) == value(rr) })
			if i < 0 {
				out = append(out, sighting{rr: rr, by: []string{a.server.String()}})
				continue
			}
			out[i].by = append(out[i].by, a.server.String())
			if rr.Header().Ttl > out[i].rr.Header().Ttl {
				out[i].rr = rr
			}
		}
	}
	slices.SortStableFunc(out, func(a, b sighting) int { return strings.Compare(value(a.rr), value(b.rr)) })
	return out
}

// rrs are the records alone.
func (t truth) rrs() (out []dns.RR) {
	for _, s := range t.records() {
		out = append(out, s.rr)
	}
	return out
}
