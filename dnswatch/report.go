package dnswatch

import (
	"fmt"
	"strings"
	"time"
)

// Phase is where a domain stands on its way.
type Phase string

// The phases, in order.
const (
	BeforeRelay Phase = "before-relay" // the MX leads to the old system, and is about to lead to the relay
	Relay       Phase = "relay"        // the MX leads to the relay
	BeforeNew   Phase = "before-new"   // the MX leads to the relay, and is about to lead to the new system
	After       Phase = "after"        // the MX leads to the new system
)

// Phases lists them in order.
func Phases() []Phase { return []Phase{BeforeRelay, Relay, BeforeNew, After} }

// ParsePhase reads the name of a phase.
func ParsePhase(s string) (Phase, error) {
	names := make([]string, 0, 4)
	for _, p := range Phases() {
		if s == string(p) {
			return p, nil
		}
		names = append(names, string(p))
	}
	return "", fmt.Errorf("unknown phase %q: one of %s", s, strings.Join(names, ", "))
}

// Severity says how much a finding matters.
type Severity string

// The severities, from harmless to what loses mail.
const (
	OK   Severity = "ok"   // as it should be
	Note Severity = "note" // worth knowing, nothing to do now
	Warn Severity = "warn" // something to change, mail is delayed, marked or sent where it is swept
	Stop Severity = "stop" // do not go on: mail is lost or refused as it is
)

var rank = map[Severity]int{OK: 0, Note: 1, Warn: 2, Stop: 3}

// Finding is one thing that a check looked at.
type Finding struct {
	Severity Severity `json:"severity" doc:"ok, note, warn (something to change) or stop (do not go on: mail is lost or refused)."`
	Check    string   `json:"check" doc:"What was looked at, such as mx-elsewhere; docs/dns.md lists them."`
	Domain   string   `json:"domain,omitempty" doc:"The domain of ours that it concerns."`
	Seen     string   `json:"seen" doc:"What was seen, as a record where it is one."`
	Server   string   `json:"server,omitempty" doc:"Who said so."`
	Why      string   `json:"why,omitempty" doc:"Why it matters in this phase."`
	Change   string   `json:"change,omitempty" doc:"What to change, as a record where it is one."`
}

// Report is the result of a check.
type Report struct {
	Phase    Phase         `json:"phase"`
	Guessed  bool          `json:"guessed,omitempty" doc:"Nobody named the phase: it was concluded from the MX records."`
	At       time.Time     `json:"at"`
	Took     time.Duration `json:"took_ns"`
	Findings []Finding     `json:"findings" doc:"Those that stop first, then in the order of domains."`
}

// Count gives the number of findings of a severity.
func (r Report) Count(s Severity) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// Worst gives the greatest severity; OK when nothing was found.
func (r Report) Worst() Severity {
	worst := OK
	for _, f := range r.Findings {
		if rank[f.Severity] > rank[worst] {
			worst = f.Severity
		}
	}
	return worst
}
