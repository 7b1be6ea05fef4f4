package cutover

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/router"
)

// Pause is an operator's word that no mail is copied for now: for all users, or
// for those of a wave. Who is held is never paused, nor is the pass after a flip.
type Pause struct {
	Wave   string    `json:"wave,omitempty"` // empty: everybody
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
}

// String says what is paused, and why.
func (p Pause) String() string {
	what := "all"
	if p.Wave != "" {
		what = "wave " + p.Wave
	}
	s := fmt.Sprintf("%s, by %s since %s", what, p.By, p.Since.UTC().Format(time.RFC3339))
	if p.Reason != "" {
		s += ": " + p.Reason
	}
	return s
}

const (
	pauseAll  = "pause"
	pauseWave = "pause/" // the wave's name follows
	pauseTime = 5 * time.Second
)

func pauseName(wave string) string {
	if wave == "" {
		return pauseAll
	}
	return pauseWave + wave
}

// Pause stops the copying for everybody, or for a wave: passes end, and none
// begins until Resume. It is durable when Pause returns, and other nodes follow
// within seconds.
func (c *Conductor) Pause(ctx context.Context, p Pause) error {
	if p.By == "" {
		return errors.New("backfill pause: nobody says so")
	}
	p.Since = time.Now().UTC().Truncate(time.Second)
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("backfill pause: %w", err)
	}
	if err := c.cfg.Requests.SaveLedger(ctx, requestsOf, pauseName(p.Wave), data); err != nil {
		return fmt.Errorf("backfill pause: noting it: %w", err)
	}
	return c.readPauses(ctx)
}

// Resume ends a pause; that of everybody does not end those of waves. false:
// there was none.
func (c *Conductor) Resume(ctx context.Context, wave string) (bool, error) {
	if err := c.readPauses(ctx); err != nil {
		return false, fmt.Errorf("backfill resume: %w", err)
	}
	known := slices.ContainsFunc(c.Pauses(), func(p Pause) bool { return p.Wave == wave })
	if err := c.cfg.Requests.SaveLedger(ctx, requestsOf, pauseName(wave), nil); err != nil {
		return false, fmt.Errorf("backfill resume: noting it: %w", err)
	}
	return known, c.readPauses(ctx)
}

// Pauses lists what is paused: everybody first, then waves by name.
func (c *Conductor) Pauses() []Pause {
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	return slices.Clone(c.pauses)
}

// pausedBy gives the pause that a wave is under.
func (c *Conductor) pausedBy(wave string) (Pause, bool) {
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	for _, p := range c.pauses {
		if p.Wave == "" || p.Wave == wave {
			return p, true
		}
	}
	return Pause{}, false
}

// readPauses takes the pauses from the store, and puts them into force here.
func (c *Conductor) readPauses(ctx context.Context) error {
	records, err := c.cfg.Requests.LoadLedger(ctx, requestsOf)
	if err != nil {
		return fmt.Errorf("reading what is paused: %w", err)
	}
	var now []Pause
	for name, data := range records {
		if name != pauseAll && !strings.HasPrefix(name, pauseWave) {
			continue
		}
		p := Pause{Wave: strings.TrimPrefix(strings.TrimPrefix(name, pauseAll), "/")}
		if err := json.Unmarshal(data, &p); err != nil {
			// It is a pause all the same, whatever it says.
			c.cfg.Log.Warn("cutover: the record of a pause cannot be read; it counts", "record", name, "err", err)
		}
		now = append(now, p)
	}
	slices.SortFunc(now, func(a, b Pause) int { return cmp.Or(compareWaves(a.Wave, b.Wave), strings.Compare(a.Wave, b.Wave)) })
	c.pauseMu.Lock()
	same := slices.Equal(c.pauses, now)
	c.pauses = now
	c.pauseMu.Unlock()
	if !same {
		c.pausesChanged()
	}
	return nil
}

// pausesChanged ends the passes that are not wanted any more, and lets those
// begin that are.
func (c *Conductor) pausesChanged() {
	for _, m := range c.moves() {
		m.followPause()
	}
	c.places.look()
	c.tails.look()
}

// watchPauses follows what is said on other nodes.
func (c *Conductor) watchPauses(ctx context.Context) {
	for pause(ctx, pauseTime, nil) {
		if err := c.readPauses(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("cutover: what is paused cannot be read; trying again", "err", err)
		}
	}
}

// pausable tells whether a pause stops the work on a user in a state: not while
// he is held, and not once he reads new.
func pausable(s router.State) bool { return s == router.StateSyncing || s == router.StateReady }

// followPause puts the pauses into force for one user.
func (m *move) followPause() {
	m.mu.Lock()
	wave, stop, state := m.wave, m.stopPass, m.status.State
	m.mu.Unlock()
	p, paused := m.c.pausedBy(wave)
	text := ""
	if paused && pausable(state) {
		text = p.String()
		if stop != nil {
			stop(errPaused)
		}
	}
	if m.snapshot().Paused != text {
		m.note(func(s *Status) { s.Paused = text })
	}
}

// interruptible gives a context for a pass that ends when a pause begins, and the
// function to call behind the pass. While the user is held it is ctx itself.
func (m *move) interruptible(ctx context.Context, u router.User) (context.Context, func()) {
	if !pausable(u.State) {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	m.mu.Lock()
	m.stopPass = cancel
	m.mu.Unlock()
	m.followPause() // one that began meanwhile
	return ctx, func() {
		m.mu.Lock()
		m.stopPass = nil
		m.mu.Unlock()
		cancel(nil)
	}
}
