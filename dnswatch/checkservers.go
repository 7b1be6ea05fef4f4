package dnswatch

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// delegation looks at the zone's name servers, asking each of them.
func (r *run) delegation(ctx context.Context) {
	z := r.l.zone(ctx, r.domain)
	if len(z.servers) == 0 {
		r.add(Finding{Severity: Warn, Check: "ns-unknown", Seen: z.problem, Why: "the zone's own servers cannot be asked: what resolvers say may be old"})
		return
	}
	for _, host := range z.missing {
		r.add(Finding{Severity: Warn, Check: "ns-lame", Seen: record(z.name, r.s.TTL, "NS", host+"."), Why: "this name server has no address: resolvers that choose it lose time, or give up",
			Change: "remove: " + record(z.name, r.s.TTL, "NS", host+".") + ", or give the host an address"})
	}
	lame := 0
	answers := r.l.authoritative(ctx, z, ask(z.name, dns.TypeSOA))
	for _, a := range answers {
		text := ""
		switch {
		case !a.ok():
			text = a.problem()
		case !a.speaksFor(z.name) || len(a.records) == 0:
			text = "it answers without authority for " + bare(z.name)
		default:
			continue
		}
		lame++
		r.add(Finding{Severity: Warn, Check: "ns-lame", Seen: text, Server: a.server.String(),
			Why:    "resolvers that choose it find no answer, or an old one, and a part of the senders cannot see a change",
			Change: fmt.Sprintf("let it serve %s, or remove it from the NS records of the zone and of its parent", bare(z.name))})
	}
	if lame == len(answers) {
		r.add(Finding{Severity: Stop, Check: "ns-lame", Seen: "no name server of " + bare(z.name) + " answers with authority",
			Why: "the domain lives by what caches still have: then mail is returned", Change: "mend the name servers before anything else"})
	}
	r.serials(answers)
	r.parent(ctx, z)
	r.serversDiffer(ctx, z)
}

// maxParents is how many servers of the parent are asked.
const maxParents = 3

// parent compares the delegation with the zone's own NS records. Resolvers begin with what the parent says.
func (r *run) parent(ctx context.Context, z zone) {
	above, ok := parentName(z.name)
	if !ok || len(r.l.override) > 0 {
		return // the parent's servers are not those that were named
	}
	p := r.l.zone(ctx, above)
	own := nameSet(r.l.look(ctx, z.name, dns.TypeNS).records())
	for _, a := range r.l.authoritative(ctx, zone{name: p.name, servers: p.servers[:min(len(p.servers), maxParents)]}, ask(z.name, dns.TypeNS)) {
		var said []dns.RR
		for _, ns := range a.ns {
			if dns.CanonicalName(ns.Hdr.Name) == z.name {
				said = append(said, ns)
			}
		}
		if !a.ok() || a.aa || len(said) == 0 || len(own) == 0 {
			continue // it serves the zone itself, or does not tell
		}
		delegated := nameSet(said)
		if slices.Equal(delegated, own) {
			return
		}
		r.add(Finding{Severity: Warn, Check: "ns-parent", Server: a.server.String(),
			Seen:   fmt.Sprintf("%s delegates %s to %s; the zone itself names %s", bare(p.name), bare(z.name), list(delegated), list(own)),
			Why:    "resolvers begin with the servers that the parent names: one that is not the zone's any more has an old version of it, or none",
			Change: "have the registrar delegate to " + list(own)})
		return
	}
}

func parentName(name string) (string, bool) {
	i, end := dns.NextLabel(name, 0)
	return name[min(i, len(name)):], !end
}

// nameSet gives the hosts of NS records, sorted.
func nameSet(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		if ns, ok := rr.(*dns.NS); ok {
			out = append(out, bare(dns.CanonicalName(ns.Ns)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// serials: servers of one zone that have another version of it.
func (r *run) serials(answers []*answer) {
	by := map[uint32][]string{}
	for _, a := range answers {
		if a.ok() && a.aa && len(a.records) > 0 {
			serial := a.records[0].(*dns.SOA).Serial
			by[serial] = append(by[serial], a.server.String())
		}
	}
	if len(by) < 2 {
		return
	}
	var parts []string
	for serial, servers := range by {
		parts = append(parts, fmt.Sprintf("%d at %s", serial, list(servers)))
	}
	slices.Sort(parts)
	r.add(Finding{Severity: Note, Check: "ns-serial", Seen: "the SOA has the serials " + strings.Join(parts, "; "),
		Why: "a change has not reached all of them yet; when it stays so, the secondary does not follow", Change: "look again in some minutes, then at the transfer of the zone (NOTIFY, AXFR)"})
}

// compared are the records that have to be the same everywhere.
func (r *run) compared() []question {
	return []question{ask(r.domain, dns.TypeMX), ask(r.domain, dns.TypeTXT), ask("_mta-sts."+r.domain, dns.TypeTXT), ask("_dmarc."+r.domain, dns.TypeTXT)}
}

// serversDiffer: what the authoritative servers say must be one thing.
func (r *run) serversDiffer(ctx context.Context, z zone) {
	for _, q := range r.compared() {
		var first *answer
		for _, a := range r.l.authoritative(ctx, z, q) {
			switch {
			case !a.speaksFor(z.name):
			case first == nil:
				first = a
			case a.digest() != first.digest():
				r.add(Finding{Severity: Warn, Check: "ns-differs", Server: a.server.String(),
					Seen:   fmt.Sprintf("%s: %s; at %s: %s", q, valueList(a), first.server, valueList(first)),
					Why:    "senders get one answer or the other by chance: a part of the mail takes the wrong way",
					Change: "bring both to the same version of the zone (serial, NOTIFY, AXFR)"})
			}
		}
	}
}

func valueList(a *answer) string {
	v := values(a.records)
	if len(v) == 0 {
		return "nothing"
	}
	return cut(strings.Join(v, ", "))
}

// disagreement: what resolvers say must be what the zone says, or what it said a TTL ago.
func (r *run) disagreement(ctx context.Context) {
	for _, q := range r.compared() {
		t := r.l.truth(ctx, q.name, q.typ)
		want := map[string]bool{}
		for _, a := range t.source {
			want[a.digest()] = true
		}
		for _, a := range t.view.answers {
			r.oddAnswer(a)
			if !a.ok() || want[a.digest()] || len(t.source) == 0 {
				continue
			}
			r.add(Finding{Severity: Warn, Check: "resolver-differs", Server: a.server.String(),
				Seen:   fmt.Sprintf("%s: %s for another %s; most, or the zone itself: %s", q, valueList(a), span(ttlOf(a.records)), valueList(t.source[0])),
				Why:    "senders behind it go by what it says: it has an old answer in its cache, or it does not tell the truth",
				Change: "look again when that time is over; one that still differs then is wrong, and its operator has to mend it"})
		}
	}
}

// oddAnswer reports what is wrong with an answer whatever it says.
func (r *run) oddAnswer(a *answer) {
	if a.bogus {
		r.add(Finding{Severity: Stop, Check: "dnssec-bogus", Seen: a.q.String() + ": SERVFAIL, and an answer with checking disabled", Server: a.server.String(),
			Why:    "the signatures do not fit (DNSSEC): senders whose resolver validates see no record at all, keep the mail and return it",
			Change: "sign the zone again, and compare the DS records of the parent with its DNSKEY; when DNSSEC was given up, remove the DS first"})
	}
	if a.dropped > 0 {
		r.add(Finding{Severity: Warn, Check: "answer-huge", Seen: fmt.Sprintf("%s: %d records, of which %d were looked at", a.q, len(a.records)+a.dropped, len(a.records)), Server: a.server.String(),
			Why: "no mail domain has so many: the server is broken or does not tell the truth, and senders look at a few of them only", Change: "remove what does not belong there"})
	}
}
