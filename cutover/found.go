package cutover

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill"
)

// Found counts the mail that was found in a mailbox that its user did not read,
// and was carried to the one that he did.
type Found struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last,omitzero"`
	// From names where it came from, as the topmost Received field says that a
	// server wrote for another host; the most frequent first, at most 20.
	From []Origin `json:"from,omitempty"`
}

// Origin is a host that mail came from.
type Origin struct {
	// Host is its name or address in brackets; "local" is mail that the server
	// delivered to itself, or that came without a Received field.
	Host  string    `json:"host"`
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// mostOrigins is how many hosts are kept for a user. What comes from others
// counts for the host with this name.
const (
	mostOrigins  = 20
	otherOrigins = "others"
)

// add counts messages that were found at a time, n of them, and where those came
// from of which that is known.
func (f *Found) add(n int, hosts []string, at time.Time) {
	f.Count += n
	f.Last = at
	f.From = slices.Clone(f.From) // statuses that were given out share it
	for _, host := range hosts {
		i := slices.IndexFunc(f.From, func(o Origin) bool { return o.Host == host })
		if i < 0 && len(f.From) >= mostOrigins-1 && host != otherOrigins {
			host = otherOrigins
			i = slices.IndexFunc(f.From, func(o Origin) bool { return o.Host == host })
		}
		if i < 0 {
			f.From = append(f.From, Origin{Host: host})
			i = len(f.From) - 1
		}
		f.From[i].Count++
		f.From[i].Last = at
	}
	slices.SortStableFunc(f.From, func(a, b Origin) int { return cmp.Compare(b.Count, a.Count) })
}

// Left counts the mail that sweeps see in the mailbox that its user does not read and
// cannot carry to the one that he does: that one refuses it, or is full, or a server
// wants it slower.
type Left struct {
	Count int       `json:"count"`
	Since time.Time `json:"since,omitzero"` // when there was first some
	Grew  time.Time `json:"grew,omitzero"`  // when there were last more than before
	Text  string    `json:"text,omitempty"` // why, of one of them
}

// seen takes what a look left. One at some folders, and one that did not go through,
// do not tell that there is less.
func (l *Left) seen(n int, whole bool, text string, at time.Time) (changed bool) {
	was := *l
	if n > 0 && text != "" {
		l.Text = text
	}
	l.Count = max(n, l.Count)
	if whole {
		l.Count = n
	}
	if l.Count > was.Count {
		l.Grew = at.Truncate(time.Second)
	}
	switch {
	case l.Count == 0:
		*l = Left{}
	case l.Since.IsZero():
		l.Since = at
	}
	return *l != was
}

// Sweep is how the mailbox does that a user does not read: old after his flip,
// new before it.
type Sweep struct {
	// Old is what was found on old since the flip (stragglers), New what was found
	// on new while the user read old.
	Old Found `json:"old"`
	New Found `json:"new"`
	// OldLeft and NewLeft are found and not carried.
	OldLeft Left `json:"old_left,omitzero"`
	NewLeft Left `json:"new_left,omitzero"`
	// Flipped is when the user came to read new, Closes when his window may close
	// at the earliest, and Waits what is missing for that.
	Flipped time.Time `json:"flipped,omitzero"`
	Closes  time.Time `json:"closes,omitzero"`
	Waits   string    `json:"waits,omitempty"`
	// Looked is when the last look into all folders began that went through.
	Looked time.Time `json:"looked,omitzero"`
	// Err is why the last look did not, after Attempts of them; the next is at Next.
	Err      string    `json:"error,omitempty"`
	Attempts int       `json:"attempts,omitempty"`
	Next     time.Time `json:"next,omitzero"`
	// Off says why nothing can be looked at.
	Off string `json:"off,omitempty"`
	// Uncopied: the user was set new by hand, and nothing was copied before that.
	Uncopied bool `json:"uncopied,omitempty"`
	// Mirror: old is kept current after the flip, as of Mirrored.
	Mirror   bool      `json:"mirror,omitempty"`
	Mirrored time.Time `json:"mirrored,omitzero"`
}

// Stray is mail that was found by one pass in the mailbox that its user does not
// read.
type Stray struct {
	User  string   `json:"user"`
	Side  string   `json:"side"` // where it was found: old or new
	Count int      `json:"count"`
	From  []string `json:"from,omitempty"` // as in Origin, one for each message of which it is known
}

// record is what is kept of a user over restarts.
type record struct {
	// Since is when the user entered the state in which Flipped was found out.
	Since    time.Time `json:"since,omitzero"`
	Flipped  time.Time `json:"flipped,omitzero"`
	Uncopied bool      `json:"uncopied,omitempty"`
	// Carried: for one who is Uncopied, a look into all folders went through since.
	Carried bool  `json:"carried,omitempty"`
	Mirror  bool  `json:"mirror,omitempty"`
	Old     Found `json:"old"`
	New     Found `json:"new"`
	OldLeft Left  `json:"old_left,omitzero"`
	NewLeft Left  `json:"new_left,omitzero"`
}

// recordName is the record's, beside the request of the same user.
const recordName = "sweep"

// pages is what is kept of a user, as his move has it. It belongs to the goroutine of
// the move.
type pages struct {
	book *record // nil: not read yet
	// waiting are changes that came while it could not be read: they are made when it
	// can, as what is on record must not begin anew.
	waiting []func(*record)
	// unsaved: what is here is newer than what is on record.
	unsaved bool
}

// openBook reads what is kept of the user, once.
func (m *move) openBook(ctx context.Context) error {
	if m.book != nil {
		return nil
	}
	records, err := m.c.cfg.Requests.LoadLedger(ctx, requestsOf+":"+m.user)
	if err != nil {
		return fmt.Errorf("reading what was found for %s: %w", m.user, err)
	}
	var r record
	if data, ok := records[recordName]; ok {
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("reading what was found for %s: the record %q is damaged: %w", m.user, recordName, err)
		}
	}
	m.book = &r
	for _, change := range m.waiting {
		change(m.book)
		m.unsaved = true
	}
	m.waiting = nil
	m.showBook()
	return nil
}

// enter changes what is kept. What cannot be read or saved now is tried again with
// each step of the move, and when it ends.
func (m *move) enter(ctx context.Context, change func(*record)) {
	m.waiting = append(m.waiting, change)
	if m.book != nil {
		change(m.book)
		m.waiting, m.unsaved = nil, true
		m.showBook()
	}
	if err := m.settleBook(ctx); err != nil && ctx.Err() == nil {
		m.c.cfg.Log.Warn("cutover: what was found for a user cannot be noted; it is known here, and tried again", "user", m.user, "err", err)
	}
}

// settleBook puts on record what is not there yet.
func (m *move) settleBook(ctx context.Context) error {
	if len(m.waiting) == 0 && !m.unsaved {
		return nil
	}
	if err := m.check(); err != nil {
		return err // another node writes it by now
	}
	if err := m.openBook(ctx); err != nil {
		return err
	}
	data, err := json.Marshal(m.book)
	if err == nil {
		err = m.c.cfg.Requests.SaveLedger(ctx, requestsOf+":"+m.user, recordName, data)
	}
	if err != nil {
		return fmt.Errorf("saving what was found for %s: %w", m.user, err)
	}
	m.unsaved = false
	return nil
}

// closeBook is settleBook where there is no next time.
func (m *move) closeBook() {
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	if err := m.settleBook(ctx); err != nil {
		m.c.cfg.Log.Error("cutover: what was found for a user is lost from his counts", "user", m.user, "err", err)
	}
}

// showBook puts what is kept into the status.
func (m *move) showBook() {
	r := *m.book
	m.noteSweep(func(s *Sweep) {
		s.Old, s.New, s.Flipped, s.Uncopied = r.Old, r.New, r.Flipped, r.Uncopied
		s.OldLeft, s.NewLeft = r.OldLeft, r.NewLeft
		s.Mirror = r.Mirror || m.c.cfg.Mirror
	})
}

// noteSweep changes the status of the sweeps.
func (m *move) noteSweep(f func(*Sweep)) {
	m.note(func(s *Status) {
		var w Sweep
		if s.Sweep != nil {
			w = *s.Sweep // what was given out stays as it is
		}
		f(&w)
		s.Sweep = &w
	})
}

// strays counts what a pass found.
func (m *move) strays(ctx context.Context, back bool, n int, hosts []string) {
	if n == 0 {
		return
	}
	side := "old"
	if back {
		side = "new"
	}
	now := time.Now().UTC()
	m.enter(ctx, func(r *record) {
		if back {
			r.New.add(n, hosts, now)
		} else {
			r.Old.add(n, hosts, now)
		}
	})
	m.c.cfg.Log.Info("cutover: mail was found in the mailbox that its user does not read, and carried over", "user", m.user, "found_on", side, "messages", n,
		"from", slices.Compact(slices.Sorted(slices.Values(hosts))))
	if m.c.cfg.Hooks.Found != nil {
		m.c.cfg.Hooks.Found(Stray{User: m.user, Side: side, Count: n, From: hosts})
	}
}

// notCarried keeps how much a look saw and did not carry.
func (m *move) notCarried(ctx context.Context, back bool, rep backfill.Report, whole bool, err error) {
	if m.book == nil && rep.Left == 0 {
		return // nobody knows better, and there is nothing to say
	}
	if berr := m.openBook(ctx); berr != nil {
		m.c.cfg.Log.Warn("cutover: how much a sweep left cannot be noted", "user", m.user, "messages", rep.Left, "err", berr)
		return
	}
	text := ""
	for _, p := range rep.Problems {
		if p.Class == backfill.ClassRefused || p.Class == backfill.ClassUnreadable {
			text = fmt.Sprintf("%s: %s", p.Folder, p.Text)
			break
		}
	}
	if text == "" && err != nil {
		text = err.Error()
	}
	now := m.book.OldLeft
	if back {
		now = m.book.NewLeft
	}
	if !now.seen(rep.Left, whole && err == nil, text, time.Now().UTC()) {
		return
	}
	m.enter(ctx, func(r *record) {
		if back {
			r.NewLeft = now
		} else {
			r.OldLeft = now
		}
	})
}

// Tally is what sweeps found for a user, on both sides.
type Tally struct {
	Old, New         Found // carried to the other side
	OldLeft, NewLeft Left  // not carried
}

// TallyOf reads what was found for a user in all his life and on all nodes; requests
// is what Config.Requests is.
func TallyOf(ctx context.Context, requests interface {
	LoadLedger(ctx context.Context, user string) (map[string][]byte, error)
}, user string) (Tally, error) {
	records, err := requests.LoadLedger(ctx, requestsOf+":"+user)
	if err != nil {
		return Tally{}, fmt.Errorf("reading what was found for %s: %w", user, err)
	}
	data, ok := records[recordName]
	if !ok {
		return Tally{}, nil
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return Tally{}, fmt.Errorf("reading what was found for %s: the record %q is damaged: %w", user, recordName, err)
	}
	return Tally{Old: r.Old, New: r.New, OldLeft: r.OldLeft, NewLeft: r.NewLeft}, nil
}
