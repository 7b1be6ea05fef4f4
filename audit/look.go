package audit

import (
	"context"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill"
	"crossfade/mail"
)

// Mailboxes looks into the mailboxes of both sides.
type Mailboxes interface {
	// Traced gives what came through the relay on both sides of a user's mailbox.
	// reads is the side that the user reads.
	Traced(ctx context.Context, user string, keep func(id string) bool) (old, new backfill.Traced, reads mail.Route, err error)
}

// Look is what lies in the mailboxes, beside what the journal says was delivered.
type Look struct {
	At    time.Time  `json:"at"`
	Reads mail.Route `json:"reads,omitempty"` // the side that the user reads
	// Error is why nobody could look. All else is empty then.
	Error string `json:"error,omitempty"`

	There int `json:"there"` // delivered, and on the side that the user reads
	// Deleted were delivered, are on the other side, and have been on this one: the
	// user deleted them there.
	Deleted int `json:"deleted"`
	// Gone were taken by a backend, and are on neither side now: deleted or moved
	// away by the user, or by a rule of the mail system.
	Gone int `json:"gone"`
	// Behind are on the other side alone, and were never on the one that the user
	// reads. They are missing there.
	Behind int `json:"behind"`
	// Twice are on the side that the user reads more than once.
	Twice int `json:"twice"`

	BehindIDs []mail.ID `json:"behind_ids,omitempty"`
	TwiceIDs  []mail.ID `json:"twice_ids,omitempty"`
	GoneIDs   []mail.ID `json:"gone_ids,omitempty"` // the first 1,000
}

// Clean tells whether nothing is missing or twice.
func (l Look) Clean() bool { return l.Behind == 0 && l.Twice == 0 && l.Error == "" }

// shownGone bounds GoneIDs: users delete mail.
const shownGone = 1000

// look compares a user's deliveries with his mailboxes.
func look(ctx context.Context, m Mailboxes, l *ledger) *Look {
	out := &Look{At: time.Now().UTC().Truncate(time.Second)}
	delivered := map[string]int{}
	for _, it := range l.items {
		if it.delivered > 0 {
			delivered[string(it.id)]++ // once for each of the addresses that lead to him
		}
	}
	if len(delivered) == 0 {
		return out
	}
	old, neu, reads, err := m.Traced(ctx, l.user, func(id string) bool { return delivered[id] > 0 })
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.Reads = reads
	here, other := old.Places, neu.Places
	if reads == mail.New {
		here, other = other, here
	}
	for id, n := range delivered {
		out.judge(mail.ID(id), n, here[id], other[id])
	}
	for _, ids := range [][]mail.ID{out.BehindIDs, out.TwiceIDs, out.GoneIDs} {
		slices.Sort(ids)
	}
	return out
}

// judge takes one message that was delivered n times.
func (l *Look) judge(id mail.ID, n int, here, other []backfill.Place) {
	l.There += min(n, len(here))
	if len(here) > n {
		l.Twice += len(here) - n
		l.TwiceIDs = append(l.TwiceIDs, id)
	}
	for range n - min(n, len(here)) {
		l.absent(id, other)
	}
}

// absent takes a delivery that is not on the side that the user reads.
func (l *Look) absent(id mail.ID, other []backfill.Place) {
	switch {
	case slices.ContainsFunc(other, func(p backfill.Place) bool { return p.Paired }):
		l.Deleted++
	case len(other) > 0:
		l.Behind++
		l.BehindIDs = append(l.BehindIDs, id)
	default:
		if l.Gone++; len(l.GoneIDs) < shownGone {
			l.GoneIDs = append(l.GoneIDs, id)
		}
	}
}

// String says in words what a look found.
func (l Look) String() string {
	if l.Error != "" {
		return "not looked at: " + l.Error
	}
	return fmt.Sprintf("%d there, %d deleted by the user, %d gone, %d on the other side only, %d twice", l.There, l.Deleted, l.Gone, l.Behind, l.Twice)
}
