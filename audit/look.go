package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"crossfade/backfill"
	"crossfade/mail"
)

// Mailboxes looks into the mailboxes of both sides.
type Mailboxes interface {
	// Reads gives the side that a user reads.
	Reads(ctx context.Context, user string) (mail.Route, error)
	// Traced gives what came through the relay on one side of a user's mailbox.
	Traced(ctx context.Context, user string, side mail.Route, keep func(id string) bool) (backfill.Traced, error)
	// Settled gives what an operator said of mailboxes that were made anew, by user:
	// what was lost in them is not asked for any more.
	Settled(ctx context.Context) (map[string]Settled, error)
}

// Settled is an operator's word that a mailbox is well as it is: that it was made anew,
// and what was in it is not wanted, or that what sweeps cannot carry may stay behind.
type Settled struct {
	At     time.Time       `json:"at"`
	By     string          `json:"by"`
	Reason string          `json:"reason"`
	Anew   []backfill.Anew `json:"anew,omitempty"`
	// Left is how much of what sweeps cannot carry it was said of, and LeftAt when that
	// was found.
	Left   int       `json:"left,omitempty"`
	LeftAt time.Time `json:"left_at,omitzero"`
}

// CoversLeft tells whether it was said of what sweeps cannot carry: n messages, of
// which there were last more than before at grew. Others may have come since.
func (s Settled) CoversLeft(n int, grew time.Time) bool {
	at := s.LeftAt
	if at.IsZero() {
		at = s.At
	}
	return n <= s.Left && !grew.After(at)
}

// covers tells whether it was said of this.
func (s Settled) covers(a backfill.Anew) bool {
	return slices.ContainsFunc(s.Anew, func(x backfill.Anew) bool {
		return x.Folder == a.Folder && x.Was == a.Was && x.Now == a.Now && (a.Was != a.Now || !a.At.After(x.At))
	})
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
	// Gone were taken by a backend, and are on neither side now, of which the one that it
	// was delivered to was looked into: deleted or moved away by the user, or by a rule of
	// the mail system.
	Gone int `json:"gone"`
	// Behind are on the other side alone, and were never on the one that the user
	// reads. They are missing there.
	Behind int `json:"behind"`
	// Missing have been on the side that the user reads, or were delivered to it, and
	// the mailbox or a folder of it was made anew since: that they are not there does
	// not say that the user deleted them.
	Missing int `json:"missing,omitempty"`
	// Unknown were delivered to the other side, are not on the one that the user
	// reads, and the other one cannot be looked into; or there are messages on the one
	// that he reads that cannot be read.
	Unknown int `json:"unknown,omitempty"`
	// Twice are on the side that the user reads more than once.
	Twice int `json:"twice"`

	BehindIDs  []mail.ID `json:"behind_ids,omitempty"`
	MissingIDs []mail.ID `json:"missing_ids,omitempty"`
	UnknownIDs []mail.ID `json:"unknown_ids,omitempty"`
	TwiceIDs   []mail.ID `json:"twice_ids,omitempty"`
	GoneIDs    []mail.ID `json:"gone_ids,omitempty"` // the first 1,000

	// Other is why the side that the user does not read could not be looked into, or not
	// all of the one that he reads.
	Other string `json:"other,omitempty"`
	// Anew are the folders of the side that the user reads that were made anew.
	Anew []backfill.Anew `json:"anew,omitempty"`
	// Settled is what an operator said of that.
	Settled *Settled `json:"settled,omitempty"`
}

// Clean tells whether nothing is missing, twice or unknown.
func (l Look) Clean() bool {
	return l.Behind+l.Missing+l.Unknown+l.Twice == 0 && l.Error == ""
}

// add sums up.
func (l *Look) add(x *Look) {
	l.At = x.At
	for _, f := range []struct {
		to   *int
		from int
	}{
		{&l.There, x.There}, {&l.Deleted, x.Deleted}, {&l.Gone, x.Gone}, {&l.Behind, x.Behind}, {&l.Missing, x.Missing}, {&l.Unknown, x.Unknown}, {&l.Twice, x.Twice},
	} {
		*f.to += f.from
	}
}

// shownGone bounds GoneIDs: users delete mail.
const shownGone = 1000

// wanted is one message that was delivered to a user.
type wanted struct {
	n  int       // times: once for each of the addresses that lead to him
	at time.Time // the last of them
	to map[mail.Route]bool
}

// looking is a look under way.
type looking struct {
	*Look
	want        map[string]*wanted
	here, other backfill.Traced
	anew        []backfill.Anew // of here, but for what is settled
}

// look compares a user's deliveries with his mailboxes.
func look(ctx context.Context, m Mailboxes, l *ledger, settled map[string]Settled) *Look {
	k := looking{Look: &Look{At: time.Now().UTC().Truncate(time.Second)}, want: l.delivered()}
	if len(k.want) == 0 {
		return k.Look
	}
	if err := k.read(ctx, m, l.user); err != nil {
		k.Error = err.Error()
		return k.Look
	}
	if s, ok := settled[l.user]; ok {
		k.settle(s)
	}
	for id, w := range k.want {
		k.judge(mail.ID(id), w)
	}
	for _, ids := range [][]mail.ID{k.BehindIDs, k.MissingIDs, k.UnknownIDs, k.TwiceIDs, k.GoneIDs} {
		slices.Sort(ids)
	}
	return k.Look
}

// delivered gives the messages of a ledger that were delivered.
func (l *ledger) delivered() map[string]*wanted {
	out := map[string]*wanted{}
	for _, it := range l.items {
		if it.delivered == 0 {
			continue
		}
		w := out[string(it.id)]
		if w == nil {
			w = &wanted{to: map[mail.Route]bool{}}
			out[string(it.id)] = w
		}
		w.n++
		w.to[it.route] = true
		if it.at.After(w.at) {
			w.at = it.at
		}
	}
	return out
}

// read reads the side that the user reads, and the other one for what is not there.
func (k *looking) read(ctx context.Context, m Mailboxes, user string) (err error) {
	if k.Reads, err = m.Reads(ctx, user); err != nil {
		return err
	}
	if k.here, err = m.Traced(ctx, user, k.Reads, func(id string) bool { return k.want[id] != nil }); err != nil {
		return err
	}
	k.Anew, k.anew = k.here.Anew, k.here.Anew
	absent := map[string]bool{}
	for id, w := range k.want {
		absent[id] = len(k.here.Places[id]) < w.n
	}
	if !slices.Contains(slices.Collect(maps.Values(absent)), true) {
		return nil
	}
	other := mail.Old
	if k.Reads == mail.Old {
		other = mail.New
	}
	if k.other, err = m.Traced(ctx, user, other, func(id string) bool { return absent[id] }); err != nil {
		k.Other = err.Error()
	} else if n := k.other.Unread; n > 0 {
		k.Other = fmt.Sprintf("%d messages on %s cannot be read", n, other)
	}
	if n := k.here.Unread; n > 0 && k.Other == "" {
		k.Other = fmt.Sprintf("%d messages on %s, which the user reads, cannot be read", n, k.Reads)
	}
	return ctx.Err()
}

// settle takes an operator's word.
func (k *looking) settle(s Settled) {
	k.anew = nil
	for _, a := range k.Anew {
		if s.covers(a) {
			k.Settled = &s
		} else {
			k.anew = append(k.anew, a)
		}
	}
}

// judge takes one message.
func (k *looking) judge(id mail.ID, w *wanted) {
	here := len(k.here.Places[string(id)])
	k.There += min(w.n, here)
	if here > w.n {
		k.Twice += here - w.n
		k.TwiceIDs = append(k.TwiceIDs, id)
	}
	for range w.n - min(w.n, here) {
		k.absent(id, w, k.other.Places[string(id)])
	}
}

// absent takes a delivery that is not on the side that the user reads.
func (k *looking) absent(id mail.ID, w *wanted, other []backfill.Place) {
	paired := slices.IndexFunc(other, func(p backfill.Place) bool { return p.Paired })
	switch {
	case paired >= 0 && k.still(other[paired].Twin):
		k.Deleted++
	case paired < 0 && len(other) > 0:
		k.Behind++
		k.BehindIDs = append(k.BehindIDs, id)
	case paired >= 0, k.madeSince(w.at):
		k.Missing++
		k.MissingIDs = append(k.MissingIDs, id)
	case k.here.Unread > 0, k.Other != "" && !w.to[k.Reads]:
		k.Unknown++
		k.UnknownIDs = append(k.UnknownIDs, id)
	default:
		if k.Gone++; len(k.GoneIDs) < shownGone {
			k.GoneIDs = append(k.GoneIDs, id)
		}
	}
}

// still tells whether the place of a copy is the one that it was copied to, so that it
// was deleted there: its folder is the same one, or the reader did away with it.
func (k *looking) still(at backfill.Twin) bool {
	validity, there := k.here.Folders[at.Wire]
	if !there {
		return !slices.ContainsFunc(k.anew, func(a backfill.Anew) bool { return strings.EqualFold(a.Folder, "INBOX") })
	}
	if validity == at.Validity {
		return !slices.ContainsFunc(k.anew, func(a backfill.Anew) bool { return a.Was == a.Now && a.Now == validity })
	}
	return k.Settled != nil && len(k.anew) == 0
}

// madeSince tells whether a folder was made anew behind a delivery: nobody knows in
// which one it was.
func (k *looking) madeSince(at time.Time) bool {
	return slices.ContainsFunc(k.anew, func(a backfill.Anew) bool { return !a.At.Before(at) })
}

// String says in words what a look found; what it says nothing of is 0.
func (l Look) String() string {
	if l.Error != "" {
		return "not looked at: " + l.Error
	}
	text := fmt.Sprintf("%d there", l.There)
	for _, x := range []struct {
		n    int
		what string
	}{{l.Deleted, "deleted by the user"}, {l.Gone, "gone"}, {l.Behind, "on the other side only"}, {l.Missing, "missing since the mailbox was made anew"}, {l.Twice, "twice"}} {
		if x.n > 0 {
			text += fmt.Sprintf(", %d %s", x.n, x.what)
		}
	}
	if l.Unknown > 0 {
		text += fmt.Sprintf(", %d not known: a mailbox cannot be looked into: %s", l.Unknown, l.Other)
	}
	if l.Settled != nil {
		text += fmt.Sprintf("; made anew, and settled by %s: %s", l.Settled.By, l.Settled.Reason)
	}
	return text
}
