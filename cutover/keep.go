package cutover

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

const (
	// keptRecord is the name under which a user's status is kept, beside his request.
	keptRecord = "status"
	// keepEvery is the time between two looks which statuses changed: what is lost
	// of the counts when the process is killed.
	keepEvery = 10 * time.Second
)

// kept is what of a Status survives a restart, and what reports are made of.
type kept struct {
	Started   time.Time          `json:"started"`
	State     router.State       `json:"state"`
	Wave      string             `json:"wave,omitempty"`
	Passes    int                `json:"passes"`
	Copied    int                `json:"copied"`
	Bytes     int64              `json:"bytes"`
	Problems  []backfill.Problem `json:"problems,omitempty"` // at most maxProblems
	Classes   map[string]int     `json:"classes,omitempty"`
	Throttled time.Duration      `json:"throttled_ns,omitempty"`
	Synced    time.Time          `json:"synced,omitzero"`
	HoldTime  time.Duration      `json:"hold_ns,omitempty"`
	Err       string             `json:"error,omitempty"`
	Attempts  int                `json:"attempts,omitempty"`
	Failures  int                `json:"failures,omitempty"`
	Next      time.Time          `json:"next,omitzero"`
	Updated   time.Time          `json:"updated"`
}

// keptOf is what is kept of a status.
func keptOf(s Status) kept {
	return kept{
		Started: s.Started, State: s.State, Wave: s.Wave, Passes: s.Passes, Copied: s.Copied, Bytes: s.Bytes,
		Problems: slices.Clone(s.Problems[:min(len(s.Problems), maxProblems)]), Classes: s.Classes, Throttled: s.Throttled, Synced: s.Synced,
		HoldTime: s.HoldTime, Err: s.Err, Attempts: s.Attempts, Failures: s.Failures, Next: s.Next, Updated: s.Updated,
	}
}

// news tells whether k says something that before did not. That a pass ran which
// found nothing is none: users who are ready have one each minute.
func (k kept) news(before kept) bool {
	return !k.Started.Equal(before.Started) || k.State != before.State || k.Wave != before.Wave || k.Copied != before.Copied ||
		len(k.Problems) != len(before.Problems) || k.HoldTime != before.HoldTime || k.Err != before.Err ||
		k.Attempts != before.Attempts || k.Failures != before.Failures
}

// keep writes the status down when it has news.
func (m *move) keep() {
	if m.check() != nil {
		return // another node's by now
	}
	s := m.snapshot()
	if s.quiet() {
		return // thousands may be
	}
	now := keptOf(s)
	m.keeping.Lock() // the loop and the move itself keep
	defer m.keeping.Unlock()
	if m.kept != nil && !now.news(*m.kept) {
		return
	}
	data, err := json.Marshal(now)
	if err != nil {
		return // it is made of plain values
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	if err := m.c.cfg.Requests.SaveLedger(ctx, requestsOf+":"+m.user, keptRecord, data); err != nil {
		m.c.cfg.Log.Debug("cutover: a status cannot be kept; trying again", "user", m.user, "err", err)
		return
	}
	m.kept = &now
}

// keepingStatuses keeps what has news, until ctx ends.
func (c *Conductor) keepingStatuses(ctx context.Context) {
	for pause(ctx, keepEvery, nil) {
		for _, m := range c.moves() {
			m.keep()
		}
	}
}

// loadKept gives what is kept of a user; false: nothing is.
func (c *Conductor) loadKept(ctx context.Context, user string) (kept, bool, error) {
	var k kept
	records, err := c.cfg.Requests.LoadLedger(ctx, requestsOf+":"+user)
	if err != nil {
		return k, false, fmt.Errorf("reading how the move of %s went: %w", user, err)
	}
	data, ok := records[keptRecord]
	if !ok {
		return k, false, nil
	}
	if err := json.Unmarshal(data, &k); err != nil {
		return k, false, fmt.Errorf("reading how the move of %s went: %w", user, err)
	}
	return k, true, nil
}

// remember goes on counting where an earlier process left off. What cannot be
// read is no reason not to go on.
func (m *move) remember(ctx context.Context) {
	k, ok, err := m.c.loadKept(ctx, m.user)
	if err != nil {
		m.c.cfg.Log.Warn("cutover: how a move went before cannot be read: its counts begin anew", "user", m.user, "err", err)
	}
	if !ok || k.State == router.StateOld {
		return
	}
	m.keeping.Lock()
	m.kept = &k
	m.keeping.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.status
	s.Started, s.Passes, s.Copied, s.Bytes, s.Throttled, s.Synced = k.Started, k.Passes, k.Copied, k.Bytes, k.Throttled, k.Synced
	s.Problems, s.Classes, s.HoldTime, s.Err, s.Attempts, s.Failures, s.Next = k.Problems, k.Classes, k.HoldTime, k.Err, k.Attempts, k.Failures, k.Next
	s.Wave = k.Wave
}

// backOff gives how long a move that was taken up waits before its next attempt,
// because the last one, in an earlier process, failed. Who is held is not kept
// waiting.
func (m *move) backOff() time.Duration {
	s := m.snapshot()
	m.keeping.Lock()
	before := m.kept
	m.keeping.Unlock()
	if before == nil || s.Attempts == 0 || s.State == router.StateCutover || s.State == router.StateRollback || m.request().At.After(before.Updated) {
		return 0
	}
	wait := min(time.Until(s.Next), m.c.cfg.RetryMax)
	if wait > 0 {
		m.note(func(s *Status) { s.Phase = PhaseFailed })
	}
	return wait
}

// counting carries what a pass has copied so far into the status, and tells of it.
type counting struct {
	m              *move
	copied, before int
	bytes, octets  int64
}

func (m *move) counting() *counting {
	s := m.snapshot()
	return &counting{m: m, before: s.Copied, octets: s.Bytes}
}

// upTo takes the counts of the pass, from its beginning.
func (n *counting) upTo(s *Status, copied int, octets int64) {
	s.Copied, s.Bytes = n.before+copied, n.octets+octets
	more, moreOctets := max(0, copied-n.copied), max(0, octets-n.bytes)
	n.copied, n.bytes = n.copied+more, n.bytes+moreOctets
	if f := n.m.c.cfg.Hooks.Copying; f != nil && (more > 0 || moreOctets > 0) {
		f(more, moreOctets)
	}
}

// Rates adds up how fast the passes under way on this node are: messages and
// octets in a second.
func (c *Conductor) Rates() (messages, octets float64) {
	for _, m := range c.moves() {
		m.mu.Lock()
		p, running := m.status.Progress, m.passing
		m.mu.Unlock()
		if running && p.MessagesDone < p.Messages {
			messages += p.MessagesPerSecond
			octets += p.BytesPerSecond
		}
	}
	return messages, octets
}

func (m *move) setPassing(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.passing = yes
}
