package arc

import (
	"net/netip"
	"strconv"
	"strings"
)

// Status is the Chain Validation Status (RFC 8617, 4.4), or TempError.
type Status string

// The values of Status.
const (
	None Status = "none" // there is no chain
	Pass Status = "pass"
	Fail Status = "fail"
	// TempError is a chain that could not be judged, because a key could not be
	// looked up. RFC 8617, 5.2.1, makes no difference between that and Fail; here it
	// is kept apart, because the chain may be good, and sealing it as failed would
	// end it for everybody behind us.
	TempError Status = "temperror"
)

// Result is what was found out about a chain.
type Result struct {
	Status Status
	// Reason says in plain ASCII why the status is Fail or TempError. It has no quote,
	// backslash or line end.
	Reason string
	// Sets is the highest instance that any field names; 0 when there is no chain.
	Sets int
	// Ended is set when the newest set says itself that the chain failed: it must not
	// be extended (RFC 8617, 5.1).
	Ended bool
	// OldestPass is the instance of the oldest AMS that still verifies, 0 when all
	// do, and -1 when that is not known. It is set when the status is Pass.
	OldestPass int
	// Seals are the sets of a chain that passes, by instance.
	Seals []Seal
}

// Seal is one set of a chain that passes.
type Seal struct {
	Instance int
	Domain   string // of the ARC-Seal, in lower case
	Selector string
	// Results is what the sealer found out: an authserv-id and the results, as in
	// Authentication-Results (RFC 8601, 2.2), folds and all. It is a stranger's text.
	Results string
}

// Method is the result as it stands in Authentication-Results (RFC 8617, 6):
// "arc=pass smtp.remote-ip=192.0.2.1 header.oldest-pass=0". client may be the
// zero Addr.
func (r Result) Method(client netip.Addr) string {
	out := "arc=" + string(r.Status)
	if r.Reason != "" {
		out += ` reason="` + strings.Map(quotable, r.Reason) + `"`
	}
	if r.Status == None {
		return out
	}
	if client.IsValid() {
		ip := client.Unmap().WithZone("").String()
		if strings.Contains(ip, ":") {
			ip = `"` + ip + `"` // a colon is not of a token (RFC 2045, 5.1)
		}
		out += " smtp.remote-ip=" + ip
	}
	if r.Status == Pass && r.OldestPass >= 0 {
		out += " header.oldest-pass=" + strconv.Itoa(r.OldestPass)
	}
	return out
}

// quotable makes text fit for a quoted string.
func quotable(r rune) rune {
	if r < ' ' || r > '~' || r == '"' || r == '\\' {
		return '?'
	}
	return r
}
