package cutover

import (
	"errors"
	"fmt"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// limited gives the daily limit at which a pass ended; nil when err is something
// else. A user who is still held must not wait for it: his hold is tried again
// soon, and ends at max_hold.
func (m *move) limited(err error) *backfill.DayLimit {
	var limit *backfill.DayLimit
	if !errors.As(err, &limit) || m.snapshot().State.Held() {
		return nil
	}
	return limit
}

// awaitLimit notes that the user waits for a daily limit, and gives how long. It
// counts as no attempt, and nothing backs off.
func (m *move) awaitLimit(limit *backfill.DayLimit) time.Duration {
	now := time.Now()
	until := limit.Until
	m.mu.Lock()
	if at := m.notBefore; at.After(now) && at.Before(until) && m.status.State == router.StateReady {
		until = at // his time has come: a small pass may go through all the same
	}
	m.mu.Unlock()
	until = later(until, now.Add(time.Second))
	m.note(func(s *Status) {
		s.Phase, s.Limit, s.Next, s.Err, s.ETA = PhaseLimit, limitText(limit), until, "", time.Time{}
		if left, ok := s.Progress.Left(); ok {
			s.ETA = now.Add(left).UTC().Truncate(time.Second)
		}
	})
	m.c.cfg.Log.Info("cutover: waits for a daily limit", "user", m.user, "side", sideName(limit.Side), "until", until, "words", limit.Words)
	return time.Until(until)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// limitText says what the user waits for.
func limitText(limit *backfill.DayLimit) string {
	text := fmt.Sprintf("waits for the daily limit of the %s server, goes on at %s", sideName(limit.Side), limit.Until.UTC().Format("2006-01-02 15:04 MST"))
	if limit.Words != "" {
		text += "; the server says: " + limit.Words
	}
	return text
}

// sideName is what operators call a side.
func sideName(s backfill.Side) string {
	if s == backfill.SideDest {
		return "new"
	}
	return "old"
}

// beyondLimit says that the user waits for no limit any more: a pass begins.
func (m *move) beyondLimit() {
	if m.snapshot().Limit != "" {
		m.note(func(s *Status) { s.Limit, s.Next = "", time.Time{} })
	}
}

// insistAgain says that the pass which was asked for ended before it was made.
func (m *move) insistAgain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.insist = true
}

// insists tells, once, whether somebody asked for a pass since the last one.
func (m *move) insists() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	yes := m.insist
	m.insist = false
	return yes
}
