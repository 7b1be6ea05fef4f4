package dnswatch

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// longPolicy is a max_age that is too long while the MX moves.
const longPolicy = 24 * time.Hour

var policyID = regexp.MustCompile(`^[A-Za-z0-9]{1,32}$`)

// mtaSTS looks at the policy that tells senders which MX hosts to deliver to.
func (r *run) mtaSTS(ctx context.Context, hosts []mxHost) {
	name := "_mta-sts." + r.domain
	v := r.l.look(ctx, name, dns.TypeTXT)
	records := v.texts("v=STSv1")
	switch {
	case !v.known():
		r.add(Finding{Severity: Warn, Check: "mta-sts", Seen: bare(name) + " is not known: " + v.problem(), Why: "a policy that does not name the MX hosts of this phase keeps mail away"})
		return
	case len(records) == 0:
		r.add(Finding{Severity: OK, Check: "mta-sts", Seen: bare(name) + " has no record: senders know no policy, unless one of before is still in their caches", Server: v.by()})
		return
	case len(records) > 1 || !policyID.MatchString(tags(records[0])["id"]):
		r.add(Finding{Severity: Warn, Check: "mta-sts-broken", Seen: strings.Join(records, "  and  "), Server: v.by(),
			Why:    "senders pass over it and keep the policy that they have until its max_age (RFC 8461, 3.1): a change does not reach them",
			Change: "leave one: " + r.newPolicyID()})
		return
	}
	p, err := r.c.fetchPolicy(ctx, r.l, r.domain)
	if err != nil {
		r.add(Finding{Severity: Warn, Check: "mta-sts-fetch", Seen: fmt.Sprintf("%s: %v", policyURL(r.domain), err), Server: policyURL(r.domain),
			Why: "senders that have an older policy keep it until its max_age, also one that does not name the MX hosts of this phase; the others go without", Change: "mend the web server, its certificate or the file; then " + r.newPolicyID()})
		return
	}
	before := len(r.out)
	r.policyHosts(p, hosts)
	if p.MaxAge > longPolicy && p.Mode == "enforce" && r.phase != After {
		r.add(Finding{Severity: r.ifMoving(Warn, Note), Check: "mta-sts-age", Seen: fmt.Sprintf("mode: %s, max_age: %d", p.Mode, int(p.MaxAge.Seconds())), Server: policyURL(r.domain),
			Why:    fmt.Sprintf("senders keep a policy for %s: one that does not name an MX of later keeps their mail away for so long, should they not see the new one", span(p.MaxAge)),
			Change: fmt.Sprintf("max_age: %d, and %s; then wait %s", int(longPolicy.Seconds()), r.newPolicyID(), span(p.MaxAge))})
	}
	if len(r.out) == before {
		r.add(Finding{Severity: OK, Check: "mta-sts", Seen: fmt.Sprintf("mode: %s, max_age: %d, mx: %s", p.Mode, int(p.MaxAge.Seconds()), list(p.MX)), Server: policyURL(r.domain)})
	}
}

func (r *run) newPolicyID() string {
	return record("_mta-sts."+r.domain, r.s.TTL, "TXT", fmt.Sprintf(`"v=STSv1; id=%s"`, r.now.UTC().Format("20060102150405")))
}

func (r *run) ifMoving(yes, no Severity) Severity {
	if r.moving() {
		return yes
	}
	return no
}

// policyHosts: the policy names the MX hosts of now and of the next step, before that step is made.
func (r *run) policyHosts(p Policy, hosts []mxHost) {
	if p.Mode == "none" {
		return
	}
	var want, next []string
	for _, h := range hosts {
		want = append(want, h.host)
	}
	switch r.phase {
	case BeforeRelay:
		next = r.s.RelayMX
	case Relay:
		want = append(want, r.s.RelayMX...)
	case BeforeNew:
		want, next = append(want, r.s.RelayMX...), r.s.NewMX
	case After:
		want = append(want, r.s.NewMX...)
	}
	severity := Stop
	if p.Mode == "testing" {
		severity = Warn
	}
	report := func(lack []string, why string) {
		if len(lack) == 0 {
			return
		}
		var lines []string
		for _, host := range lack {
			lines = append(lines, "mx: "+bare(host))
		}
		r.add(Finding{Severity: severity, Check: "mta-sts-mx", Seen: fmt.Sprintf("mode: %s, mx: %s", p.Mode, list(p.MX)), Server: policyURL(r.domain), Why: why,
			Change: "add to " + policyURL(r.domain) + ":\n" + strings.Join(lines, "\n") + "\nand then: " + r.newPolicyID() + fmt.Sprintf("\nsenders keep the policy of now for %s at most", span(p.MaxAge))})
	}
	report(uncovered(p, want), "senders that know the policy do not deliver to an MX that it does not name (RFC 8461, 5): their mail is delayed and returned")
	report(uncovered(p, next), "as soon as the MX moves, senders that know the policy do not deliver to a host that it does not name (RFC 8461, 5): their mail is delayed and returned")
}

func uncovered(p Policy, hosts []string) (out []string) {
	for _, h := range hosts {
		if h != "." && !p.Covers(h) && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}
