package backfill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"crossfade/backfill/imapconn"
)

// Side is one of the two servers that a pass works with.
type Side string

// The sides of a pass.
const (
	SideSource Side = "source"
	SideDest   Side = "destination"
)

// Daily bounds the octets of messages that are read from, and appended to, the
// mailbox of one user in any 24 hours; 0 means no bound. The window slides, by
// whole hours: whenever a provider's day begins, it is kept.
type Daily struct{ Source, Dest int64 }

func (d Daily) of(s Side) int64 {
	if s == SideSource {
		return d.Source
	}
	return d.Dest
}

// DayLimit ends a pass because a side takes no more of this user today: what
// [Daily] allows is used up, or the server said so itself. It is no failure, and
// nothing is lost by it: a pass from Until on goes on from there.
type DayLimit struct {
	Side  Side
	Limit int64 // octets in 24 hours; 0 when it is the server's own
	Until time.Time
	Words string // the server's; empty when the limit is ours
}

// Error says whose limit it is, and when it goes on.
func (e *DayLimit) Error() string {
	until := e.Until.UTC().Format(time.RFC3339)
	if e.Words != "" {
		return fmt.Sprintf("the %s says that this account used up a limit: %s (it is asked again at %s; nothing is lost)", e.Side, e.Words, until)
	}
	return fmt.Sprintf("the daily limit of the %s, %d octets for each user, is used up (the next pass goes on at %s; nothing is lost)", e.Side, e.Limit, until)
}

const (
	dailyName  = "daily"        // of the record that passes write
	verifyName = "daily-verify" // and verifications, which may run beside them
	dayHours   = 24
	// firstBar and longestBar are how long a server is left alone that says that a
	// limit is used up, doubled each time. Google locks an account for up to a day.
	firstBar   = time.Hour
	longestBar = 12 * time.Hour
	// spared is the part of a limit, one in so many, that a first copy leaves for
	// what somebody waits for: new mail of a ready user, and his flip.
	spared = 20
	// worthIt is the part of a limit that must be free again before a pass that
	// ended at it is made anew.
	worthIt = 10
	// written is the part of a limit that may have been used since the record was
	// written: what a killed process does not count.
	written = 100
)

// hourUse is the use of one hour: hours of Unix time, octets. It counts until
// that hour is over for a day.
type hourUse [2]int64

func (h hourUse) ends() time.Time { return time.Unix((h[0]+1+dayHours)*3600, 0) }

// bar is the word of a server that an account may not go on for now.
type bar struct {
	Until int64  `json:"until"` // milliseconds of Unix time
	Tries int    `json:"tries"`
	Words string `json:"words"`
}

// dayRecord is what the ledger knows of a user's last 24 hours.
type dayRecord struct {
	Used map[Side][]hourUse `json:"used,omitempty"`
	Bars map[Side]*bar      `json:"bars,omitempty"`
}

// readDay gives a record; one that cannot be read is none, and is logged: to
// count anew is better than to copy nothing.
func readDay(b *book, name string, log *slog.Logger) (r dayRecord) {
	if data := b.known(name); len(data) > 0 {
		if err := json.Unmarshal(data, &r); err != nil {
			log.Warn("what was used of daily limits cannot be read; it is counted anew", "user", b.user, "record", name, "error", err)
			r = dayRecord{}
		}
	}
	if r.Used == nil {
		r.Used = map[Side][]hourUse{}
	}
	if r.Bars == nil {
		r.Bars = map[Side]*bar{}
	}
	return r
}

// day is what a pass may still use.
type day struct {
	ctx    context.Context
	book   *book
	limits Daily
	// exempt passes count and are not stopped; prompt ones may use what a first
	// copy spares.
	exempt, prompt bool
	back           bool // the pass reads from what is the destination for limits
	name           string

	mu      sync.Mutex
	rec     dayRecord
	others  dayRecord // of another name; only read
	unsaved int64
}

// openDay reads what was used. A pass counts under a name of its own, and a
// verification under another.
func (p *pass) openDay(verifies bool) {
	d := &day{ctx: p.ctx, book: p.book, limits: p.c.Daily, exempt: p.o.Final || verifies, prompt: p.o.Prompt, back: p.o.Back, name: dailyName}
	other := verifyName
	if verifies {
		d.name, other = verifyName, dailyName
	}
	d.rec, d.others = readDay(p.book, d.name, p.log), readDay(p.book, other, p.log)
	p.day = d
}

// side gives a side of the pass as the job names it: limits are a server's.
func (d *day) side(s Side) Side {
	switch {
	case !d.back:
		return s
	case s == SideSource:
		return SideDest
	}
	return SideSource
}

// ceiling is what this pass may use of a limit.
func (d *day) ceiling(s Side) int64 {
	limit := d.limits.of(s)
	if d.prompt {
		return limit
	}
	return limit - limit/spared
}

// hours gives the use of a side that still counts, the oldest first.
func (d *day) hours(s Side, now time.Time) []hourUse {
	var out []hourUse
	for _, h := range slices.Concat(d.rec.Used[s], d.others.Used[s]) {
		if h.ends().After(now) {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b hourUse) int { return int(a[0] - b[0]) })
	return out
}

func sumUse(hours []hourUse) (n int64) {
	for _, h := range hours {
		n += h[1]
	}
	return n
}

// take counts octets that are to be read or appended now, or says that they have
// to wait. More than half a limit needs only half of it to be free: a message
// that is larger than the limit would never be copied else.
func (d *day) take(s Side, octets int64) error {
	s = d.side(s)
	limit := d.limits.of(s)
	if limit <= 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	hours := d.hours(s, now)
	used, all := sumUse(hours), d.ceiling(s)
	if need := min(octets, all/2); !d.exempt && used+need > all {
		until := now
		free := max(need, all/worthIt)
		for _, h := range hours {
			if used+free <= all {
				break
			}
			used, until = used-h[1], h.ends()
		}
		return &DayLimit{Side: s, Limit: limit, Until: until}
	}
	return d.note(s, octets, now)
}

// note adds to the use of this hour. It is written before so much was used that
// a killed process would matter, and with the end of the pass.
func (d *day) note(s Side, octets int64, now time.Time) error {
	if d.limits.of(s) <= 0 || octets <= 0 {
		return nil
	}
	hours := slices.DeleteFunc(d.rec.Used[s], func(h hourUse) bool { return !h.ends().After(now) })
	hour := now.Unix() / 3600
	if n := len(hours); n > 0 && hours[n-1][0] >= hour {
		hours[n-1][1] += octets
	} else {
		hours = append(hours, hourUse{hour, octets})
	}
	d.rec.Used[s] = hours
	if d.unsaved += octets; d.unsaved >= d.limits.of(s)/written {
		return d.write()
	}
	return nil
}

// count adds what was not taken before: what a server was offered again.
func (d *day) count(s Side, octets int64) error {
	s = d.side(s)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.note(s, octets, time.Now())
}

func (d *day) write() error {
	d.unsaved = 0
	data, err := json.Marshal(d.rec)
	if err != nil {
		return fmt.Errorf("encode what was used of daily limits: %w", err)
	}
	return d.book.write(d.ctx, d.name, data)
}

// barred says whether a server wants to be left alone.
func (d *day) barred() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range []Side{SideSource, SideDest} {
		if b := d.rec.Bars[s]; b != nil && time.UnixMilli(b.Until).After(time.Now()) {
			return &DayLimit{Side: s, Until: time.UnixMilli(b.Until), Words: b.Words}
		}
	}
	return nil
}

// bar notes the word of a server; anew says that something went through before.
func (d *day) bar(limit *DayLimit, anew bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	limit.Side = d.side(limit.Side)
	b := d.rec.Bars[limit.Side]
	if b == nil || anew {
		b = &bar{}
		d.rec.Bars[limit.Side] = b
	}
	wait := min(firstBar<<min(b.Tries, 8), longestBar)
	b.Tries++
	limit.Until = time.Now().Add(wait).Truncate(time.Second)
	b.Until, b.Words = limit.Until.UnixMilli(), limit.Words
	return d.write()
}

// end writes what is not yet, and forgets the words of servers after a pass that
// went through.
func (d *day) end(through bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	forget := through && len(d.rec.Bars) > 0
	if forget {
		clear(d.rec.Bars)
	}
	if !forget && d.unsaved == 0 {
		return nil
	}
	return d.write()
}

// endDay turns the end of a pass at a limit into a [DayLimit] by itself, keeps
// the server's word and writes what was used.
func (p *pass) endDay(err error) error {
	var limit *DayLimit
	if !errors.As(err, &limit) {
		limit = exhausted("", err)
		if limit != nil {
			limit.Side = sideOf(err)
			err = limit
		}
	}
	if limit != nil && limit.Words != "" {
		p.mu.Lock()
		anew := p.report.Copied > 0
		p.mu.Unlock()
		return errors.Join(err, p.day.bar(limit, anew))
	}
	return errors.Join(err, p.day.end(err == nil))
}

// exhausted makes a DayLimit of the words of a server that mean one; else nil.
func exhausted(s Side, err error) *DayLimit {
	var limit *DayLimit
	if errors.As(err, &limit) {
		return limit
	}
	if !imapconn.Exhausted(err) {
		return nil
	}
	return &DayLimit{Side: s, Words: err.Error()}
}

// sideError is an error of one side.
type sideError struct {
	side Side
	err  error
}

func (e *sideError) Error() string { return string(e.side) + ": " + e.err.Error() }
func (e *sideError) Unwrap() error { return e.err }

// sideOf tells whose error it is; the source's, where nobody says.
func sideOf(err error) Side {
	var s *sideError
	if errors.As(err, &s) {
		return s.side
	}
	return SideSource
}

// waits gives how much longer it takes to copy so many octets because of daily
// limits than it takes at a speed (octets in a second; 0 when it is not known).
func (d *day) waits(octets int64, speed float64) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	longest := time.Duration(0)
	for _, s := range []Side{SideSource, SideDest} {
		all := d.ceiling(s)
		if d.limits.of(s) > 0 && all > 0 && octets > 0 {
			longest = max(longest, waits(now, octets, all, speed, d.hours(s, now)))
		}
	}
	return longest
}

// longestLook bounds what anybody wants to know of the future.
const longestLook = 1000 * 24 * time.Hour

// waits plays the copy of octets under a limit through.
func waits(now time.Time, octets, limit int64, speed float64, hours []hourUse) time.Duration {
	hours = slices.Clone(hours)
	at, free, idle := now, limit-sumUse(hours), time.Duration(0)
	for octets > 0 && idle < longestLook && at.Sub(now) < longestLook {
		if n := min(octets, max(free, 0)); n > 0 {
			if speed > 0 { // an hour at a time: what was moved in it comes back a day later
				n = min(n, max(int64(speed*3600), 1))
			}
			octets, free = octets-n, free-n
			if speed > 0 {
				at = at.Add(time.Duration(float64(n) / speed * float64(time.Second)))
			}
			hours = append(hours, hourUse{at.Unix() / 3600, n})
			continue
		}
		next := hours[0].ends()
		if next.After(at) {
			idle, at = idle+next.Sub(at), next
		}
		free += hours[0][1]
		hours = hours[1:]
	}
	return min(idle, longestLook)
}
