package admin

import (
	"sync"
	"time"
)

// What a token may have recorded of what it was denied.
const (
	denialsInFull = 100 // in each span
	denialsSpan   = time.Hour
)

// denials bounds the lines that a token can have written into the audit log by asking for what its role does not allow:
// who steals a token that may only read could else fill the disk on which mail is accepted. What is not recorded is
// counted (crossfade_admin_refused_total), and the next line that is says how many it stands for. Its zero value is ready.
type denials struct {
	mu   sync.Mutex
	seen map[string]*denied // by name of the token: no more than there are
}

type denied struct {
	since   time.Time
	lines   int
	skipped int
}

// record tells whether a denial is to be recorded, how many before it were not, and whether it is the last one of its
// span that is.
func (d *denials) record(token string, now time.Time) (yes bool, skipped int, last bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen = map[string]*denied{}
	}
	n := d.seen[token]
	if n == nil {
		n = &denied{since: now}
		d.seen[token] = n
	}
	if now.Sub(n.since) >= denialsSpan {
		n.since, n.lines = now, 0
	}
	if n.lines == denialsInFull {
		n.skipped++
		return false, 0, false
	}
	n.lines++
	skipped, n.skipped = n.skipped, 0
	return true, skipped, n.lines == denialsInFull
}
