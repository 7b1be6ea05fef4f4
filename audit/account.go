package audit

import (
	"cmp"
	"slices"
	"time"

	"crossfade/journal"
	"crossfade/mail"
)

// Account is the equation of one user, or of all together. The numbers are
// recipients: a message to two users counts for each of them. A second delivery of
// `deliver: both` counts in Copies alone.
type Account struct {
	User  string `json:"user"` // empty: addresses that are not ours, such as the senders of what was bounced
	State string `json:"state,omitempty"`

	Accepted int `json:"accepted"`
	// Before of them were accepted before the journal begins.
	Before int `json:"before,omitempty"`
	// Found are messages that came to a mailbox past this relay and that a sweep
	// found there.
	Found int `json:"found"`

	Delivered int `json:"delivered"`
	// Swept are those of Found that a sweep has copied to the side that is read.
	Swept     int `json:"swept"`
	Bounced   int `json:"bounced"`
	Queued    int `json:"queued"` // held ones too
	Parked    int `json:"parked"`
	Removed   int `json:"removed"`   // by an operator
	Withdrawn int `json:"withdrawn"` // taken back: the sender got no 250
	// Left are those of Found that sweeps cannot carry: the side that is read refuses
	// them, or is full, or a server wants it slower. They are missing there.
	Left int `json:"left,omitempty"`

	Missing int `json:"missing"`
	Copies  int `json:"copies,omitempty"` // second deliveries that were made

	Differences []Difference `json:"differences,omitempty"`
	Look        *Look        `json:"look,omitempty"` // into the mailboxes; absent: nobody looked
}

// Balanced tells whether both sides of the equation are the same.
func (a Account) Balanced() bool {
	return a.Accepted+a.Found == a.Delivered+a.Swept+a.Bounced+a.Queued+a.Parked+a.Removed+a.Withdrawn+a.Left
}

// Clean tells whether nothing is missing and nothing is strange.
func (a Account) Clean() bool {
	for _, d := range a.Differences {
		if d.Kind != Removed && d.Kind != Bounced {
			return false
		}
	}
	return a.Balanced() && a.Missing == 0 && a.Left == 0 && (a.Look == nil || a.Look.Clean())
}

// missing counts what is missing by the journal and by the look into the mailboxes.
func (a Account) missing() int {
	if a.Look == nil {
		return a.Missing
	}
	return a.Missing + a.Look.Missing + a.Look.Behind
}

// add sums up.
func (a *Account) add(x *Account) {
	for _, f := range []struct {
		to   *int
		from int
	}{
		{&a.Accepted, x.Accepted}, {&a.Before, x.Before}, {&a.Found, x.Found}, {&a.Swept, x.Swept}, {&a.Delivered, x.Delivered},
		{&a.Bounced, x.Bounced}, {&a.Queued, x.Queued}, {&a.Parked, x.Parked}, {&a.Removed, x.Removed}, {&a.Withdrawn, x.Withdrawn},
		{&a.Missing, x.Missing}, {&a.Copies, x.Copies}, {&a.Left, x.Left},
	} {
		*f.to += f.from
	}
}

// DifferenceKind says what a Difference is.
type DifferenceKind string

// The kinds of Difference. Bounced and Removed are named because somebody may ask;
// all others are wrong.
const (
	Missing    DifferenceKind = "missing"    // accepted, and nothing is known of it since
	Twice      DifferenceKind = "twice"      // delivered more than once
	Unrecorded DifferenceKind = "unrecorded" // delivered or queued, and not accepted by what the journal has
	Conflict   DifferenceKind = "conflict"   // delivered, and bounced or removed too
	Bounced    DifferenceKind = "bounced"
	Removed    DifferenceKind = "removed"
	// NotCarried is found by a sweep; it has no queue id, and N is how many.
	NotCarried DifferenceKind = "not carried"
)

// Difference is one recipient of a message that was accepted and not delivered as it
// should have been.
type Difference struct {
	Kind DifferenceKind `json:"kind"`
	ID   mail.ID        `json:"id,omitempty"`
	N    int            `json:"n"`
	Text string         `json:"text"`
}

// item is what is known of one recipient of one message.
type item struct {
	id                                  mail.ID
	n                                   int
	accepted, withdrawn, queued, parked bool
	delivered, bounced, deleted         int
	at                                  time.Time  // of the last delivery
	route                               mail.Route // of it
	text                                string     // of the bounce, or of who deleted it
}

// ledger is what is known of one user's messages.
type ledger struct {
	user   string
	items  map[itemKey]*item
	copies int
}

type itemKey struct {
	id mail.ID
	n  int
}

func (l *ledger) item(id mail.ID, n int) *item {
	k := itemKey{id, n}
	it := l.items[k]
	if it == nil {
		it = &item{id: id, n: n}
		l.items[k] = it
	}
	return it
}

// take adds one fact.
func (l *ledger) take(f fact) {
	if f.copy {
		if f.kind == journal.Delivered {
			l.copies++
		}
		return
	}
	it := l.item(f.id, f.n)
	switch f.kind {
	case journal.Accepted:
		it.accepted = true
	case journal.Withdrawn:
		it.withdrawn = true
	case journal.Delivered:
		it.delivered++
		it.at, it.route = f.at, f.route
	case journal.Bounced:
		it.bounced++
		it.text = f.text
	case journal.Deleted:
		it.deleted++
		it.text = f.text
	case factQueued:
		it.queued = true
	case factParked:
		it.parked = true
	}
}

// account judges. before tells whether a message is older than the journal.
func (l *ledger) account(before func(mail.ID) bool) *Account {
	a := &Account{User: l.user, Copies: l.copies}
	for _, it := range l.items {
		if !it.accepted && it.empty() {
			continue // only a copy, or an operator's word about it
		}
		a.Accepted++
		if !it.accepted {
			if a.Before++; !before(it.id) {
				a.differ(it, Unrecorded, "the journal does not tell of its acceptance")
			}
		}
		a.judge(it)
	}
	slices.SortFunc(a.Differences, func(x, y Difference) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.ID, y.ID), cmp.Compare(x.N, y.N))
	})
	return a
}

func (it *item) empty() bool {
	return it.delivered+it.bounced+it.deleted == 0 && !it.queued && !it.parked && !it.withdrawn
}

// judge puts an item where it belongs, once.
func (a *Account) judge(it *item) {
	if it.delivered > 1 {
		a.differ(it, Twice, "it was delivered more than once")
	}
	if it.delivered > 0 && it.bounced+it.deleted > 0 {
		a.differ(it, Conflict, "it was delivered, and "+it.text)
	}
	switch {
	case it.delivered > 0:
		a.Delivered++
	case it.bounced > 0:
		a.Bounced++
		a.differ(it, Bounced, it.text)
	case it.deleted > 0:
		a.Removed++
		a.differ(it, Removed, it.text)
	case it.withdrawn:
		a.Withdrawn++
	case it.parked:
		a.Parked++
	case it.queued:
		a.Queued++
	default:
		a.Missing++
		a.differ(it, Missing, "it was accepted; it was neither delivered, bounced nor removed, and is not in the queue")
	}
}

func (a *Account) differ(it *item, kind DifferenceKind, text string) {
	a.Differences = append(a.Differences, Difference{Kind: kind, ID: it.id, N: it.n, Text: text})
}
