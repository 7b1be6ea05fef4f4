package dnswatch

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// mxHost is one host of the MX set.
type mxHost struct {
	host string // canonical
	rr   *dns.MX
	by   string // who said so
	role role
}

// mx looks at the MX set and gives its hosts.
func (r *run) mx(ctx context.Context) []mxHost {
	t := r.l.truth(ctx, r.domain, dns.TypeMX)
	if !t.known() {
		r.add(Finding{Severity: Stop, Check: "mx-unknown", Seen: "nobody says where mail for " + bare(r.domain) + " goes: " + t.problem(),
			Why: "senders may see the same, and keep the mail until somebody answers, or return it", Change: "look at the resolvers and the zone's name servers"})
		return nil
	}
	hosts := r.mxHosts(t)
	if len(hosts) == 0 {
		r.implicit(ctx, t)
		return nil
	}
	if slices.ContainsFunc(hosts, func(h mxHost) bool { return h.host == "." }) {
		r.add(Finding{Severity: Stop, Check: "mx-null", Seen: line(hosts[0].rr), Server: hosts[0].by,
			Why:    "a null MX says that the domain takes no mail (RFC 7505): every message is returned at once",
			Change: "remove it, and add: " + r.wantedLine() + "\nor, for a domain that is to take no mail, leave it out of dns.domains"})
		return nil
	}
	before := len(r.out)
	for _, h := range hosts {
		if !r.mxLiteral(h) {
			r.mxRole(h, hosts)
			r.mxAddress(ctx, h)
		}
	}
	r.mxMissing(hosts)
	if len(r.out) == before {
		r.add(Finding{Severity: OK, Check: "mx", Seen: mxList(hosts), Server: hosts[0].by})
	}
	return hosts
}

func (r *run) mxHosts(t truth) []mxHost {
	var hosts []mxHost
	for _, s := range t.records() {
		m, ok := s.rr.(*dns.MX)
		if !ok {
			continue
		}
		host := dns.CanonicalName(m.Mx)
		hosts = append(hosts, mxHost{host: host, rr: m, by: list(s.by), role: r.s.role(host)})
	}
	slices.SortStableFunc(hosts, func(a, b mxHost) int { return int(a.rr.Preference) - int(b.rr.Preference) })
	return hosts
}

func mxList(hosts []mxHost) string {
	var out []string
	for _, h := range hosts {
		out = append(out, line(h.rr))
	}
	return strings.Join(out, "; ")
}

// implicit: without an MX, senders take the address of the domain itself (RFC 5321, 5.1).
func (r *run) implicit(ctx context.Context, t truth) {
	f := Finding{Severity: Stop, Check: "mx-none", Server: t.source[0].server.String(), Change: "add: " + r.wantedLine(),
		Why: "without an MX mail goes to the address of the domain itself, if it has one (RFC 5321, 5.1), and not where this phase wants it"}
	h := r.l.addresses(ctx, r.domain)
	f.Seen = fmt.Sprintf("%s has no MX; its own addresses: %s", bare(r.domain), addrList(h.addrs))
	if r.phase != After && r.leadToRelay(ctx, h.addrs) {
		f.Severity = Note
		f.Why = "mail goes to the address of the domain itself (RFC 5321, 5.1), which is the relay's; whoever gives the domain a web server there later moves its mail"
		r.add(f)
		return
	}
	if len(h.addrs) == 0 && h.known() {
		f.Why = "without an MX and without an address the domain gets no mail at all (RFC 5321, 5.1): every message is returned at once"
		f.Change += "\nor, for a domain that gets none, leave it out of dns.domains"
	}
	if r.phase == BeforeRelay {
		f.Severity, f.Change = Warn, ""
		f.Why = "mail goes to the address of the domain itself (RFC 5321, 5.1); an MX can be tried and taken back, an absence is cached by the minimum of the SOA"
	}
	r.add(f)
}

// leadToRelay tells whether addresses are those of the relay, all of them.
func (r *run) leadToRelay(ctx context.Context, addrs []netip.Addr) bool {
	relay := r.s.RelayAddrs
	if len(relay) == 0 {
		for _, host := range r.s.RelayMX {
			relay = append(relay, r.l.addresses(ctx, host).addrs...)
		}
	}
	return len(addrs) > 0 && !slices.ContainsFunc(addrs, func(ip netip.Addr) bool { return !slices.Contains(relay, ip) })
}

// wanted are the roles that the MX may have in this phase.
func (r *run) wanted() []role {
	switch r.phase {
	case Relay, BeforeNew:
		return []role{roleRelay}
	case After:
		if len(r.s.NewMX) == 0 {
			return []role{roleNew, roleElse}
		}
		return []role{roleNew}
	}
	if len(r.s.OldMX) == 0 {
		return []role{roleOld, roleElse}
	}
	return []role{roleOld}
}

// wantedLine is the MX record of this phase.
func (r *run) wantedLine() string {
	hosts := r.s.RelayMX
	if r.phase == After {
		hosts = r.s.NewMX
	}
	if r.phase == BeforeRelay {
		hosts = r.s.OldMX
	}
	var out []string
	for i, h := range hosts {
		out = append(out, record(r.domain, r.s.TTL, "MX", fmt.Sprintf("%d %s", 10*(i+1), h)))
	}
	if len(out) == 0 {
		return record(r.domain, r.s.TTL, "MX", "10 <host>.")
	}
	return strings.Join(out, "\n")
}

// mxRole judges where one MX leads.
func (r *run) mxRole(h mxHost, all []mxHost) {
	if slices.Contains(r.wanted(), h.role) {
		return
	}
	backup := h.rr.Preference > all[0].rr.Preference
	f := Finding{Severity: Stop, Check: "mx-elsewhere", Seen: line(h.rr), Server: h.by, Change: "remove: " + line(h.rr)}
	if backup {
		f.Check = "mx-backup"
	}
	place := map[role]string{roleElse: "a host that is neither the relay nor one of old or new", roleOld: "the old system",
		roleNew: "the new system, past the relay", roleRelay: "the relay"}[h.role]
	switch {
	case r.phase == BeforeRelay && h.role == roleRelay:
		f.Severity, f.Check, f.Change = Note, "mx-early", ""
		f.Why = "a part of the mail comes through the relay already: the phase is rather relay"
	case r.phase == BeforeRelay:
		f.Severity, f.Change = Warn, "when the MX moves, remove it with the others: "+line(h.rr)
		f.Why = fmt.Sprintf("it leads to %s: find out what that host does with the mail, and let it go together with the others when the MX moves", place)
	case r.phase == After && h.role == roleRelay:
		f.Why = "it leads to the relay, which may be switched off in this phase"
		f.Severity = Warn
	case backup:
		f.Why = fmt.Sprintf("a secondary MX that leads to %s: senders use it whenever the first is busy, and what it does with the mail nobody controls", place)
	default:
		f.Why = fmt.Sprintf("it leads to %s: mail goes there in place of where its user reads it", place)
	}
	r.add(f)
}

// mxMissing: the host that the phase is about has to be there.
func (r *run) mxMissing(hosts []mxHost) {
	want, name := roleRelay, "the relay"
	switch r.phase {
	case BeforeRelay:
		return
	case After:
		if len(r.s.NewMX) == 0 {
			return
		}
		want, name = roleNew, "the new system"
	}
	if slices.ContainsFunc(hosts, func(h mxHost) bool { return h.role == want }) {
		return
	}
	r.add(Finding{Severity: Stop, Check: "mx-missing", Seen: mxList(hosts), Server: hosts[0].by, Why: "no MX leads to " + name, Change: "add: " + r.wantedLine()})
}

// literal gives the address that stands where a host name should.
func literal(host string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(strings.Trim(bare(host), "[]"))
	return ip, err == nil
}

func (r *run) mxLiteral(h mxHost) bool {
	ip, is := literal(h.host)
	if is {
		r.add(Finding{Severity: Stop, Check: "mx-literal", Seen: line(h.rr), Server: h.by, Why: "an MX names a host, never an address (RFC 5321, 5.1): senders look for a host called " + bare(h.host) + " and find none",
			Change: "replace it by the name of a host with: <host>. IN " + typeOf(ip) + " " + ip.String()})
	}
	return is
}

// mxAddress judges the name that an MX has, and the addresses behind it.
func (r *run) mxAddress(ctx context.Context, h mxHost) {
	seen := bare(h.host)
	if h.rr != nil {
		seen = line(h.rr)
	}
	v := r.l.addresses(ctx, h.host)
	if !v.known() {
		r.add(Finding{Severity: Warn, Check: "mx-unresolved", Seen: seen + ": " + v.v4.problem(), Server: h.by, Why: "whether its host can be found is not known"})
		return
	}
	if v.alias != "" && h.role != roleRelay { // the relay's own is judged once, see relayHost
		change := "name the host itself in the MX: " + bare(v.alias) + "."
		r.add(Finding{Severity: Warn, Check: "mx-cname", Seen: fmt.Sprintf("%s: %s. IN CNAME %s", seen, bare(h.host), v.alias), Server: v.v4.by(),
			Why: "an MX may not name a CNAME (RFC 5321, 5.1; RFC 2181, 10.3): some senders refuse it", Change: change})
	}
	if len(v.addrs) == 0 && h.role != roleRelay {
		r.add(Finding{Severity: Stop, Check: "mx-unresolved", Seen: seen + ": its host has no address", Server: v.v4.by(),
			Why: "senders that choose it keep the mail and return it after days; with no other MX all mail is lost to you", Change: "add: " + record(h.host, r.s.TTL, "A", "<its address>") + ", or remove the MX"})
	}
	for _, ip := range v.addrs {
		if private(ip) {
			r.add(Finding{Severity: Stop, Check: "mx-private", Seen: fmt.Sprintf("%s: %s. IN %s %s", seen, bare(h.host), typeOf(ip), ip), Server: v.v4.by(),
				Why: "strangers cannot reach this address: their mail is delayed for days and returned", Change: "remove it, and write the address that the Internet sees"})
		}
	}
}
