package dnswatch

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const whyPermerror = "receivers that find it broken treat all of your mail as if there were none, or refuse it (permerror)"

// spf looks at the one record that says who may send for the domain. enforced: DMARC tells receivers to act on it.
func (r *run) spf(ctx context.Context, enforced bool) {
	v := r.l.look(ctx, r.domain, dns.TypeTXT)
	if !v.known() {
		r.add(Finding{Severity: Warn, Check: "spf", Seen: "the TXT records are not known: " + v.problem(), Why: "receivers may see the same, and delay your mail"})
		return
	}
	records := v.texts(spfVersion)
	switch {
	case len(records) == 0:
		r.add(Finding{Severity: Note, Check: "spf-missing", Seen: bare(r.domain) + " has no SPF record", Server: v.by(), Why: "receivers cannot tell your mail from forged mail; some refuse it",
			Change: "add: " + record(r.domain, r.s.TTL, "TXT", quoted(strings.Join(append(append([]string{spfVersion}, r.spfWanted()...), "~all"), " ")))})
		return
	case len(records) > 1:
		r.add(Finding{Severity: Warn, Check: "spf-multiple", Seen: strings.Join(records, "; "), Server: v.by(), Why: whyPermerror + " (RFC 7208, 4.5)",
			Change: "leave one: " + record(r.domain, r.s.TTL, "TXT", quoted(merged(records)))})
		return
	}
	before := len(r.out)
	res := walkSPF(ctx, r.l, r.domain, records[0])
	r.spfLimits(records[0], res)
	r.spfSenders(records[0], res, enforced)
	for i := range r.out[before:] {
		r.out[before+i].Server = v.by()
	}
	if len(r.out) == before {
		r.add(Finding{Severity: OK, Check: "spf", Seen: fmt.Sprintf("%s (%d of %d lookups)", records[0], res.lookups, spfLookups), Server: v.by()})
	}
}

func (r *run) spfLimits(text string, res spfResult) {
	if len(res.problems) > 0 {
		r.add(Finding{Severity: Warn, Check: "spf-broken", Seen: text + ": " + strings.Join(res.problems, "; "), Why: whyPermerror,
			Change: "mend or remove the terms named"})
	}
	if res.lookups > spfLookups {
		r.add(Finding{Severity: Warn, Check: "spf-lookups", Seen: fmt.Sprintf("%s: %d terms ask the DNS", text, res.lookups),
			Why: fmt.Sprintf("%s; %d are allowed (RFC 7208, 4.6.4)", whyPermerror, spfLookups), Change: "replace includes by the networks that they stand for (ip4:, ip6:), or remove what sends no longer"})
	}
	if res.all == '+' {
		r.add(Finding{Severity: Warn, Check: "spf-all", Seen: text, Why: "+all lets everybody send in your name: SPF protects nothing, and receivers take it for a sign of spam",
			Change: record(r.domain, r.s.TTL, "TXT", quoted(strings.Replace(strings.Replace(text, "+all", "~all", 1), " all", " ~all", 1)))})
	}
}

// spfWanted are the terms that this phase needs.
func (r *run) spfWanted() []string {
	var out []string
	if r.phase != After {
		out = append(out, r.s.SPFRelay...)
	}
	return append(out, r.s.SPFNew...)
}

// spfSenders: relay and new must be allowed before they send, and old need not be afterwards.
func (r *run) spfSenders(text string, res spfResult, enforced bool) {
	has := func(term string) bool {
		term = strings.TrimPrefix(strings.ToLower(term), "+")
		return slices.Contains(res.terms, term)
	}
	missing := func(want []string) (out []string) {
		for _, t := range want {
			if !has(t) {
				out = append(out, t)
			}
		}
		return out
	}
	severity := Warn
	if enforced && r.phase != BeforeRelay {
		severity = Stop
	}
	if lack := missing(r.s.SPFNew); len(lack) > 0 {
		f := Finding{Severity: severity, Check: "spf-new", Seen: text + ": it lacks " + list(lack), Change: r.spfChange(text, lack),
			Why: "users who are on new send from there: receivers refuse their mail or mark it"}
		if r.phase == BeforeRelay {
			f.Severity, f.Why = Note, "before the first user moves: "+f.Why
		}
		r.add(f)
	}
	if r.phase == After {
		r.spfLeft(text, has)
		return
	}
	lack, severity := missing(r.s.SPFRelay), Warn
	if len(r.s.SPFRelay) == 0 {
		severity = Note // nobody said that it has to be there
		for _, ip := range r.relay {
			if !res.permits(ip) && !private(ip) {
				lack = append(lack, ipTerm(ip))
			}
		}
	}
	if len(lack) > 0 {
		r.add(Finding{Severity: severity, Check: "spf-relay", Seen: text + ": it lacks " + list(lack), Change: r.spfChange(text, lack),
			Why: "what reaches the backends, and what is forwarded, comes from the relay's address: filters behind it that look at SPF refuse it or mark it"})
	}
}

// spfLeft: what need not be there any more.
func (r *run) spfLeft(text string, has func(string) bool) {
	var left []string
	for _, t := range slices.Concat(r.s.SPFOld, r.s.SPFRelay) {
		if has(t) && !slices.Contains(r.s.SPFNew, t) {
			left = append(left, t)
		}
	}
	if len(left) > 0 {
		r.add(Finding{Severity: Note, Check: "spf-left", Seen: text + ": it still has " + list(left), Why: "whoever gets these addresses next may send in your name",
			Change: "when nothing sends from old and from the relay any more, remove " + list(left)})
	}
}

func ipTerm(ip netip.Addr) string {
	if ip.Is4() {
		return "ip4:" + ip.String()
	}
	return "ip6:" + ip.String()
}

// spfChange is the record with more terms, which go to the front: behind "all" nothing counts.
func (r *run) spfChange(text string, terms []string) string {
	fields := strings.Fields(text)
	fields = slices.Insert(fields, 1, terms...)
	return record(r.domain, r.s.TTL, "TXT", quoted(strings.Join(fields, " ")))
}

// merged is one record with the terms of several.
func merged(records []string) string {
	out, last := []string{spfVersion}, "~all"
	for _, rec := range records {
		for _, t := range strings.Fields(rec)[1:] {
			if strings.HasSuffix(strings.ToLower(t), "all") && len(t) <= 4 {
				last = t
			} else if !slices.Contains(out, t) {
				out = append(out, t)
			}
		}
	}
	return strings.Join(append(out, last), " ")
}
