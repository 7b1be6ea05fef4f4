package authn

import (
	"time"
)

// Result is what a method came to (RFC 8601, 2.7).
type Result string

// The results.
const (
	Pass      Result = "pass"
	Fail      Result = "fail"
	SoftFail  Result = "softfail"
	Neutral   Result = "neutral"
	None      Result = "none"
	Policy    Result = "policy"
	TempError Result = "temperror"
	PermError Result = "permerror"
)

// SPF is the result for the client's address.
type SPF struct {
	Result Result
	Helo   bool   // the HELO name was checked, because the reverse-path is null
	Domain string // that was checked; empty: there was none to check
	Sender string // the reverse-path as text, where it can stand in a field, else the domain
	Reason string // of an error
}

// DKIM is the result for one signature. None of its strings is to be trusted unless Result is pass.
type DKIM struct {
	Result    Result
	Domain    string // d=, in normal form where it is a domain
	Selector  string
	Algorithm string
	Signature string // the beginning of b= (RFC 6008)
	Reason    string // unless it passed

	skipped bool // it was not verified because of our own bounds
}

// DMARC is the result for the domain of the author.
type DMARC struct {
	Result Result
	Author string // domain of From; empty: there is none, or several
	Reason string

	// Of the record that was found; Policy is empty without one.
	PolicyDomain string // whose record it is
	Policy       DMARCPolicy
	Record       Record
}

// Report is what was found about a message.
type Report struct {
	SPF        SPF
	DKIM       []DKIM
	Unverified int // signatures that nobody looked at, because there were so many
	DMARC      DMARC
	// Others are results that somebody else came to, as they stand in the field: "arc=none".
	Others []string

	// Disposition is what to do with the message: EnforceNone unless a policy says otherwise and the configuration follows
	// it. Domain is whose policy that is, and VouchedBy who prevented it.
	Disposition Enforce
	Domain      string
	VouchedBy   string

	Took time.Duration // that the end of the message had to wait
}

// BestDKIM is pass if any signature passed, none if there is none, and otherwise the result of the first.
func (r *Report) BestDKIM() Result {
	if len(r.DKIM) == 0 {
		return None
	}
	for _, d := range r.DKIM {
		if d.Result == Pass {
			return Pass
		}
	}
	return r.DKIM[0].Result
}
