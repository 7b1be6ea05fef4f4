package tlspolicy

import (
	"cmp"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/relay/smtpclient"
)

// The results of a session, as RFC 8460, 4.3 names failures; Success is ours.
const (
	Success           = "success"
	NoSTARTTLS        = "starttls-not-supported"
	HostMismatch      = "certificate-host-mismatch"
	Expired           = "certificate-expired"
	NotTrusted        = "certificate-not-trusted"
	ValidationFailure = "validation-failure"
	TLSAInvalid       = "tlsa-invalid"
	STSNotListed      = "sts-policy-invalid"
)

// Results lists every result.
func Results() []string {
	return []string{Success, NoSTARTTLS, HostMismatch, Expired, NotTrusted, ValidationFailure, TLSAInvalid, STSNotListed}
}

// Classify finds the result that an error stands for; nil is Success.
func Classify(err error) string {
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case err == nil:
		return Success
	case errors.Is(err, smtpclient.ErrNoTLS):
		return NoSTARTTLS
	case errors.Is(err, ErrTLSA):
		return TLSAInvalid
	case errors.Is(err, ErrNotListed):
		return STSNotListed
	case errors.As(err, &host):
		return HostMismatch
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Expired
	case errors.As(err, &unknown):
		return NotTrusted
	}
	return ValidationFailure
}

// NoPolicy is the type of sessions that no policy was found for (RFC 8460, 4.3.2.2).
const NoPolicy = "no-policy-found"

// Counts counts sessions by day (UTC), for today and the day before. It is safe for use by many goroutines; the zero value is
// ready for use.
type Counts struct {
	mu   sync.Mutex
	days map[string]map[Session]int64
}

// Session is what is counted of one: with whom, under which policy, and what came of it.
type Session struct {
	Server string `json:"server"`          // as the configuration names it
	Host   string `json:"host"`            // that it was then
	Owner  string `json:"owner,omitempty"` // the domain whose policies were looked at; empty: none were
	Policy string `json:"policy"`          // empty with Add: none was found
	Result string `json:"result"`
}

func compare(a, b Session) int {
	return cmp.Or(cmp.Compare(a.Server, b.Server), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Result, b.Result))
}

// Count is how many sessions of a day (YYYY-MM-DD) were the same, as it is kept over a restart.
type Count struct {
	Day string `json:"day"`
	Session
	Sessions int64 `json:"sessions"`
}

// All gives all counts, in a fixed order.
func (c *Counts) All() []Count {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Count
	for d, counts := range c.days {
		for s, n := range counts {
			out = append(out, Count{d, s, n})
		}
	}
	slices.SortFunc(out, func(a, b Count) int { return cmp.Or(cmp.Compare(a.Day, b.Day), compare(a.Session, b.Session)) })
	return out
}

// Restore adds counts of before; those of days that are over are forgotten with the next session.
func (c *Counts) Restore(counts []Count) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range counts {
		c.add(one.Day, one.Session, one.Sessions)
	}
}

func (c *Counts) add(day string, s Session, n int64) {
	if c.days == nil {
		c.days = map[string]map[Session]int64{}
	}
	if c.days[day] == nil {
		c.days[day] = map[Session]int64{}
	}
	c.days[day][s] += n
}

// Add counts one session.
func (c *Counts) Add(now time.Time, s Session) {
	s.Policy = cmp.Or(s.Policy, NoPolicy)
	today, before := day(now), day(now.AddDate(0, 0, -1))
	c.mu.Lock()
	defer c.mu.Unlock()
	for d := range c.days {
		if d != today && d != before {
			delete(c.days, d)
		}
	}
	c.add(today, s, 1)
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// Report is what a day brought, in the shape of RFC 8460, 4.4.
type Report struct {
	Organization string         `json:"organization-name"`
	Range        ReportRange    `json:"date-range"`
	Contact      string         `json:"contact-info,omitempty"`
	ID           string         `json:"report-id"`
	Policies     []PolicyReport `json:"policies"`
}

// ReportRange is the time of a report.
type ReportRange struct {
	Start time.Time `json:"start-datetime"`
	End   time.Time `json:"end-datetime"`
}

// PolicyReport is one server under one kind of policy.
type PolicyReport struct {
	Policy   ReportPolicy    `json:"policy"`
	Summary  ReportSummary   `json:"summary"`
	Failures []ReportFailure `json:"failure-details,omitempty"`

	owner string
}

// ReportPolicy names the policy and the server.
type ReportPolicy struct {
	Type   string   `json:"policy-type" enum:"tlsa,sts,no-policy-found"`
	Lines  []string `json:"policy-string,omitempty" doc:"Of MTA-STS, in reports that are sent."`
	Domain string   `json:"policy-domain" doc:"The server as the configuration names it."`
	Hosts  []string `json:"mx-host" doc:"The server's host; of MTA-STS, in reports that are sent, those that the policy allows."`
}

// ReportSummary counts sessions.
type ReportSummary struct {
	Successful int64 `json:"total-successful-session-count"`
	Failed     int64 `json:"total-failure-session-count"`
}

// ReportFailure counts the sessions that failed in one way.
type ReportFailure struct {
	Result string `json:"result-type"`
	Host   string `json:"receiving-mx-hostname"`
	Failed int64  `json:"failed-session-count"`
}

// Owners are the domains whose policies were looked at.
func (r Report) Owners() (out []string) {
	for _, p := range r.Policies {
		if p.owner != "" && !slices.Contains(out, p.owner) {
			out = append(out, p.owner)
		}
	}
	return out
}

// For makes of a report the one for one of its owners: what it says of the servers that were under that domain's policies, under
// an id of its own, with the lines of the domain's MTA-STS policy.
func (r Report) For(owner, id string, sts []string) Report {
	all := r.Policies
	r.ID, r.Policies = id, nil
	for _, p := range all {
		if p.owner != owner {
			continue
		}
		p.Policy.Domain = owner
		if p.Policy.Type == RuleSTS {
			p.Policy.Lines = sts
			if mx := named(sts); len(mx) > 0 {
				p.Policy.Hosts = mx
			}
		}
		r.Policies = append(r.Policies, p)
	}
	return r
}

// named are the hosts that an MTA-STS policy allows, as it writes them: what mx-host is of such a policy (RFC 8460, 4.4).
func named(policy []string) (mx []string) {
	for _, line := range policy {
		if host, ok := strings.CutPrefix(line, "mx: "); ok {
			mx = append(mx, host)
		}
	}
	return mx
}

// Reports gives the days that are known, the latest first.
func (c *Counts) Reports(organization string) []Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Report
	for name, counts := range c.days {
		start, err := time.Parse(time.DateOnly, name)
		if err != nil {
			continue // days are our own
		}
		out = append(out, Report{
			Organization: organization, ID: name + "@" + organization, Policies: policies(counts),
			Range: ReportRange{start, start.AddDate(0, 0, 1).Add(-time.Second)},
		})
	}
	slices.SortFunc(out, func(a, b Report) int { return b.Range.Start.Compare(a.Range.Start) })
	return out
}

func policies(counts map[Session]int64) []PolicyReport {
	byPolicy := map[Session]*PolicyReport{}
	for s, n := range counts {
		of := s
		of.Result = ""
		p := byPolicy[of]
		if p == nil {
			p = &PolicyReport{Policy: ReportPolicy{Type: s.Policy, Domain: s.Server, Hosts: []string{s.Host}}, owner: s.Owner}
			byPolicy[of] = p
		}
		if s.Result == Success {
			p.Summary.Successful += n
			continue
		}
		p.Summary.Failed += n
		p.Failures = append(p.Failures, ReportFailure{Result: s.Result, Host: s.Host, Failed: n})
	}
	out := []PolicyReport{}
	for _, of := range slices.SortedFunc(maps.Keys(byPolicy), compare) {
		p := byPolicy[of]
		slices.SortFunc(p.Failures, func(a, b ReportFailure) int { return cmp.Compare(a.Result, b.Result) })
		out = append(out, *p)
	}
	return out
}
