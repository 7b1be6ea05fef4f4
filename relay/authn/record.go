package authn

import (
	"errors"
	"strconv"
	"strings"
)

// DMARCPolicy is what the owner of a domain asks for (RFC 7489, 6.3).
type DMARCPolicy string

// The policies.
const (
	PolicyNone       DMARCPolicy = "none"
	PolicyQuarantine DMARCPolicy = "quarantine"
	PolicyReject     DMARCPolicy = "reject"
)

// Record is a DMARC record.
type Record struct {
	Policy    DMARCPolicy // p
	Subdomain DMARCPolicy // sp; empty: as p
	Missing   DMARCPolicy // np (RFC 9091), for subdomains that do not exist; empty: as sp
	StrictDKIM,
	StrictSPF bool // adkim, aspf
	Percent int // pct
}

// isDMARC tells whether a TXT record is meant as a DMARC record: it begins with the version (RFC 7489, 6.3).
func isDMARC(txt string) bool {
	first, _, _ := strings.Cut(txt, ";")
	name, value, ok := strings.Cut(first, "=")
	return ok && strings.TrimRight(name, " \t") == "v" && strings.Trim(value, " \t") == "DMARC1"
}

// ParseRecord reads a DMARC record. Errors in what it could do without are passed over, as RFC 7489, 6.3, asks; one
// without a policy counts as none when it asks for reports, and is an error otherwise (6.6.3). go-msgauth's reader gives
// up such a record as a whole, and so the policy with it.
func ParseRecord(txt string) (Record, error) {
	if !isDMARC(txt) {
		return Record{}, errors.New("it does not begin with v=DMARC1")
	}
	r := Record{Percent: 100}
	reports, badSub, seen := false, false, map[string]bool{}
	for part := range strings.SplitSeq(txt, ";") {
		name, value, ok := strings.Cut(part, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		value = strings.ToLower(strings.TrimSpace(value))
		if !ok || seen[name] || len(seen) == 50 {
			continue
		}
		seen[name] = true
		switch name {
		case "p":
			r.Policy, _ = policy(value)
		case "sp":
			r.Subdomain, ok = policy(value)
			badSub = !ok
		case "np":
			r.Missing, _ = policy(value)
		case "adkim":
			r.StrictDKIM = value == "s"
		case "aspf":
			r.StrictSPF = value == "s"
		case "pct":
			if n, err := strconv.Atoi(value); err == nil && n >= 0 && n <= 100 {
				r.Percent = n
			}
		case "rua":
			reports = strings.HasPrefix(value, "mailto:") && strings.Contains(value, "@")
		}
	}
	if r.Policy == "" || badSub {
		if !reports {
			return Record{}, errors.New("it has no policy")
		}
		r.Policy, r.Subdomain, r.Missing = PolicyNone, "", ""
	}
	return r, nil
}

func policy(s string) (DMARCPolicy, bool) {
	switch p := DMARCPolicy(s); p {
	case PolicyNone, PolicyQuarantine, PolicyReject:
		return p, true
	}
	return "", false
}
