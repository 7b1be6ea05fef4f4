package dnswatch

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"crossfade/internal/dnsask"

	"github.com/miekg/dns"
)

// run is one check under way.
type run struct {
	c     *Checker
	s     *Site
	l     *lookups
	phase Phase
	past  *State // nil: nothing is known of before
	now   time.Time

	domain string // canonical
	relay  []netip.Addr
	out    []Finding
}

// Check looks at everything that decides whether mail arrives in a phase; an empty phase is guessed from the MX records. past is what a [Watch] has seen, and may be
// nil: then nobody knows which TTLs there were before. Nothing that a server answers is an error; there is one when no
// server can be asked at all, or ctx ends.
func (c *Checker) Check(ctx context.Context, phase Phase, past *State) (Report, error) {
	began := c.cfg.Now()
	limited, cancel := context.WithTimeout(ctx, c.cfg.Limit)
	defer cancel()
	l, err := c.lookups(limited)
	if err != nil {
		return Report{}, err
	}
	r := &run{c: c, s: &c.site, l: l, phase: phase, past: past, now: began}
	if phase == "" {
		r.phase = r.guess(limited)
	}
	r.relayHosts(limited)
	if r.phase != BeforeRelay {
		r.newHosts(limited)
	}
	for _, d := range c.site.Domains {
		r.domain = d
		r.checkDomain(limited)
	}
	r.domain = ""
	r.resolvers()
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("dns check: %w", err)
	}
	if limited.Err() != nil {
		r.add(Finding{Severity: Warn, Check: "time", Seen: fmt.Sprintf("the check was not through after %s", c.cfg.Limit),
			Why: "what was not asked is not known", Change: "look at the servers that are silent, or name faster resolvers (dns.resolvers)"})
	}
	slices.SortStableFunc(r.out, func(a, b Finding) int { return rank[b.Severity] - rank[a.Severity] })
	return Report{Phase: r.phase, Guessed: phase == "", At: began.UTC(), Took: c.cfg.Now().Sub(began), Findings: r.out}, nil
}

func (r *run) checkDomain(ctx context.Context) {
	hosts := r.mx(ctx)
	r.delegation(ctx)
	r.disagreement(ctx)
	r.ttls(ctx, hosts)
	dmarc := r.dmarc(ctx)
	r.spf(ctx, dmarc)
	r.dkim(ctx)
	r.mtaSTS(ctx, hosts)
	r.tlsReports(ctx)
	r.dane(ctx, hosts)
}

// add notes a finding about the domain at hand.
func (r *run) add(f Finding) {
	f.Domain, f.Seen, f.Why, f.Change = bare(r.domain), cut(f.Seen), cut(f.Why), cutLines(f.Change)
	r.out = append(r.out, f)
}

// cutLines bounds a change, whose lines are meant to be copied.
func cutLines(s string) string {
	if len(s) > 10*maxText {
		return strings.ToValidUTF8(s[:10*maxText], "") + " ..."
	}
	return s
}

// moving tells whether the MX is about to move.
func (r *run) moving() bool { return r.phase == BeforeRelay || r.phase == BeforeNew }

// guess concludes the phase from where the MX records lead.
func (r *run) guess(ctx context.Context) Phase {
	leads := map[role]bool{}
	for _, d := range r.s.Domains {
		for _, rr := range r.l.truth(ctx, d, dns.TypeMX).rrs() {
			leads[r.s.role(dns.CanonicalName(rr.(*dns.MX).Mx))] = true
		}
	}
	switch {
	case leads[roleRelay]:
		return Relay
	case leads[roleNew]:
		return After
	}
	return BeforeRelay
}

// relayHosts looks at the names and addresses by which strangers know the relay.
func (r *run) relayHosts(ctx context.Context) {
	for _, host := range r.s.RelayMX {
		h := r.l.addresses(ctx, host)
		for _, ip := range h.addrs {
			if !slices.Contains(r.relay, ip) {
				r.relay = append(r.relay, ip)
			}
		}
		if r.phase != After {
			r.relayHost(host, h)
		}
	}
	if len(r.s.RelayAddrs) > 0 {
		r.relay = r.s.RelayAddrs
	}
	if r.phase == After {
		return
	}
	r.helo(ctx)
	for _, ip := range r.relay {
		r.reverse(ctx, ip)
	}
}

func (r *run) relayHost(host string, h hostView) {
	next := "the MX records are to lead there"
	if r.phase != BeforeRelay {
		next = "the MX records lead there"
	}
	if len(h.addrs) == 0 {
		f := Finding{Severity: Stop, Check: "relay-address", Seen: bare(host) + " has no address", Server: h.v4.by(), Why: next + ": no mail would arrive",
			Change: "add: " + record(host, r.s.TTL, "A", r.relayAddress())}
		if !h.known() {
			f.Severity, f.Seen, f.Change = Warn, "the address of "+bare(host)+" is not known: "+h.v4.problem(), ""
		}
		r.add(f)
		return
	}
	if h.alias != "" {
		r.add(Finding{Severity: Warn, Check: "mx-cname", Seen: record(host, ttlOf(h.v4.best.records), "CNAME", h.alias), Server: h.v4.by(),
			Why:    next + ", and an MX may not name a CNAME (RFC 5321, 5.1; RFC 2181, 10.3): some senders refuse it",
			Change: "replace the CNAME by: " + record(host, r.s.TTL, "A", h.addrs[0].String())})
	}
	if len(r.s.RelayAddrs) == 0 {
		return
	}
	for _, ip := range h.addrs {
		if !slices.Contains(r.s.RelayAddrs, ip) {
			r.add(Finding{Severity: Stop, Check: "relay-address", Seen: record(host, ttlOf(h.v4.records()), typeOf(ip), ip.String()), Server: h.v4.by(),
				Why: next + ", and this address is none of the relay's (dns.relay_addresses)", Change: "remove it; the relay has: " + record(host, r.s.TTL, "A", r.relayAddress())})
		}
	}
}

// relayAddress is an address of the relay for an example.
func (r *run) relayAddress() string {
	if len(r.s.RelayAddrs) > 0 {
		return r.s.RelayAddrs[0].String()
	}
	return "<address of the relay>"
}

func typeOf(ip netip.Addr) string {
	if ip.Is4() {
		return "A"
	}
	return "AAAA"
}

// helo: the name in our greeting and HELO has to lead back to us, because receivers compare (RFC 5321, 4.1.4).
func (r *run) helo(ctx context.Context) {
	h := r.l.addresses(ctx, r.s.Hostname)
	if !h.known() || len(r.relay) == 0 {
		return
	}
	if slices.ContainsFunc(h.addrs, func(ip netip.Addr) bool { return slices.Contains(r.relay, ip) }) {
		return
	}
	r.add(Finding{Severity: Warn, Check: "helo", Seen: fmt.Sprintf("%s has the addresses %s, the relay has %s", r.s.Hostname, addrList(h.addrs), addrList(r.relay)), Server: h.v4.by(),
		Why:    "it is the name that the relay gives as HELO: backends and receivers of its bounces refuse one that leads elsewhere",
		Change: "add: " + record(r.s.Hostname, r.s.TTL, typeOf(r.relay[0]), r.relay[0].String())})
}

func addrList(ips []netip.Addr) string {
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return list(out)
}

// reverse: an address that sends mail has a name, and that name leads back to it.
func (r *run) reverse(ctx context.Context, ip netip.Addr) {
	if private(ip) {
		return // seen by nobody outside; mx-private says so
	}
	name, err := dns.ReverseAddr(ip.String())
	if err != nil {
		return
	}
	v := r.l.look(ctx, name, dns.TypePTR)
	var names []string
	for _, rr := range v.records() {
		names = append(names, dns.CanonicalName(rr.(*dns.PTR).Ptr))
	}
	hostname := dns.CanonicalName(r.s.Hostname)
	change := "ask whoever gave the address (the provider) for: " + record(name, time.Hour, "PTR", hostname)
	const why = "receivers refuse or mark mail of addresses without a name that leads back to them: bounces and delay notices of the relay"
	switch {
	case !v.known():
		r.add(Finding{Severity: Note, Check: "ptr", Seen: "the name of " + ip.String() + " is not known: " + v.problem(), Why: why})
	case len(names) == 0:
		r.add(Finding{Severity: Warn, Check: "ptr", Seen: bare(name) + " has no PTR", Server: v.by(), Why: why, Change: change})
	case !r.leadsBack(ctx, ip, names):
		r.add(Finding{Severity: Warn, Check: "ptr", Seen: fmt.Sprintf("%s is called %s, and no such name has this address", ip, bareList(names)), Server: v.by(), Why: why, Change: change})
	case !slices.Contains(names, hostname):
		r.add(Finding{Severity: Note, Check: "ptr", Seen: fmt.Sprintf("%s is called %s, and its HELO is %s", ip, bareList(names), r.s.Hostname), Server: v.by(),
			Why: "strict receivers want both to be the same", Change: change})
	default:
		r.add(Finding{Severity: OK, Check: "ptr", Seen: fmt.Sprintf("%s is called %s, which leads back", ip, r.s.Hostname), Server: v.by()})
	}
}

func (r *run) leadsBack(ctx context.Context, ip netip.Addr, names []string) bool {
	for _, n := range names[:min(len(names), 10)] {
		if slices.Contains(r.l.addresses(ctx, n).addrs, ip) {
			return true
		}
	}
	return false
}

func bareList(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, bare(n))
	}
	return list(out)
}

// private tells whether strangers cannot reach an address.
func private(ip netip.Addr) bool {
	return ip.IsLoopback() || ip.IsPrivate() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast()
}

// newHosts looks at the MX hosts that the new system will have.
func (r *run) newHosts(ctx context.Context) {
	if len(r.s.NewMX) == 0 {
		if r.phase == BeforeNew || r.phase == After {
			r.add(Finding{Severity: Warn, Check: "new-mx", Seen: "dns.new_mx names no host", Why: "where the MX is to lead in the end cannot be compared", Change: "name the MX hosts of the new system in dns.new_mx"})
		}
		return
	}
	if r.phase != BeforeNew {
		return // with the MX records
	}
	for _, host := range r.s.NewMX {
		r.mxAddress(ctx, mxHost{host: host, role: roleNew})
	}
}

// resolvers reports those that are silent, forge, or give too much.
func (r *run) resolvers() {
	silent := 0
	r.l.mu.Lock()
	stats := r.l.stats
	r.l.mu.Unlock()
	for _, s := range r.l.resolvers {
		st := stats[s.Address]
		if st == nil {
			continue
		}
		switch {
		case st.answered == 0:
			silent++
			r.add(Finding{Severity: Warn, Check: "resolver-silent", Seen: cmp.Or(st.problem, "no answer"), Server: s.String(),
				Why: "what senders behind it see is not known", Change: "name another one in dns.resolvers, or open port 53 (UDP and TCP) to it"})
		case st.forged > 0:
			r.add(Finding{Severity: Warn, Check: "resolver-forged", Seen: dnsask.ErrMismatch.Error(), Server: s.String(), Why: "its answers cannot be trusted", Change: "name another one in dns.resolvers"})
		case st.failed > 0:
			r.add(Finding{Severity: Note, Check: "resolver-unsteady", Seen: fmt.Sprintf("%d of %d questions without an answer: %s", st.failed, st.failed+st.answered, st.problem), Server: s.String(),
				Why: "what it says of them is not known"})
		}
	}
	if silent > 0 && silent == len(r.l.resolvers) {
		r.add(Finding{Severity: Stop, Check: "resolver-silent", Seen: "no resolver answers", Why: "nothing is known of what senders see",
			Change: "name resolvers that can be reached from here in dns.resolvers"})
	}
}
