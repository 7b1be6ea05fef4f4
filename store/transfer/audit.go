package transfer

import "slices"

// Finding is one thing that an audit found wrong, or changed.
type Finding struct {
	// Problem says what kind it is, in a few words that are the same for all of
	// a kind.
	Problem string `json:"problem"`
	Where   string `json:"where"`            // an id with the index of a recipient, a user, a key or a file
	Detail  string `json:"detail,omitempty"` // what is there, and what should be
	Repair  string `json:"repair,omitempty"` // what was done; empty: nothing
	// Note marks what is no damage: the store removes it by itself.
	Note bool `json:"note,omitempty"`
}

// maxFindings is how many findings are kept; beyond, they are only counted.
const maxFindings = 10_000

// Audit is the report of a look at a whole store.
type Audit struct {
	Store    string         `json:"store"`
	Counts                  // of what was looked at
	Problems map[string]int `json:"problems"` // how many of each kind
	Repaired int            `json:"repaired"`
	Left     int            `json:"left"`  // problems that are still there
	Notes    int            `json:"notes"` // no problems
	Findings []Finding      `json:"findings"`
}

// Add enters a finding.
func (a *Audit) Add(f Finding) {
	switch {
	case f.Note:
		a.Notes++
	case f.Repair != "":
		a.Repaired++
	default:
		a.Left++
	}
	if !f.Note {
		if a.Problems == nil {
			a.Problems = map[string]int{}
		}
		a.Problems[f.Problem]++
	}
	if len(a.Findings) < maxFindings {
		a.Findings = append(a.Findings, f)
	}
}

// Kinds gives the kinds of problem that were found, in order.
func (a *Audit) Kinds() []string {
	var out []string
	for k := range a.Problems {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// The problems that both stores know, by the same names.
const (
	NoBody      = "body missing or damaged"
	NoRows      = "message without recipients"
	NoMessage   = "recipient without message"
	BadEnvelope = "envelope missing or damaged"
	BadLane     = "recipient filed nowhere"
	WrongLane   = "recipient filed in the wrong place"
	Unindexed   = "recipient missing in an index"
	StrayEntry  = "index entry without its recipient"
	WrongCount  = "wrong counter"
	OrphanBody  = "body without message"
	BadUser     = "user damaged"
	LostUser    = "user out of reach"
	WrongEpoch  = "epoch behind the history"
	LooseLease  = "lease without recipients"
	NoLease     = "leased recipient without lease"
	Tombstone   = "tombstone of a queued message"
	Marked      = "a mark that does not fit" // of what the store has still to do
	Database    = "database damaged"
)

// Words with which an audit parks what it cannot make whole.
const (
	BodyGone = "alarm: the body of this message is missing or damaged, it cannot be delivered: restore the store from a backup, " +
		"or tell the sender and delete it"
	RowsGone = "alarm: the state of this recipient was lost: he may have got the message or not: look in his mailbox, then retry or delete it"
	HeadGone = "alarm: the envelope of this message was lost: its sender is not known: look at it before you retry it"
)
