package cutover

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"crossfade/router"
)

// Pause is the word that no mail is copied for now, or that nobody is flipped:
// for all users, or for those of a wave. Who is held is never paused, nor is the
// pass after a flip.
type Pause struct {
	Wave string `json:"wave,omitempty"` // empty: everybody
	// Flips stops new holds alone: users are copied on, and kept in sync.
	Flips  bool      `json:"flips,omitempty"`
	By     string    `json:"by"` // an operator, or [Itself]
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
}

// Itself is who stops the flips of a wave when errors pass a bound.
const Itself = "crossfade"

// String says what is paused, and why.
func (p Pause) String() string {
	what := "all"
	if p.Wave != "" {
		what = "wave " + p.Wave
	}
	if p.Flips {
		what = "flips of " + what
	}
	s := fmt.Sprintf("%s, by %s since %s", what, p.By, p.Since.UTC().Format(time.RFC3339))
	if p.Reason != "" {
		s += ": " + p.Reason
	}
	return s
}

// Records of pauses; a slash and the wave's name follow, when it is one of a wave.
const (
	pauseAll  = "pause"
	pauseFlip = "stop"
	pauseTime = 5 * time.Second // between two looks at what is said elsewhere
)

// record is the name under which a pause is kept.
func (p Pause) record() string {
	name := pauseAll
	if p.Flips {
		name = pauseFlip
	}
	if p.Wave != "" {
		name += "/" + p.Wave
	}
	return name
}

// what is the command that makes and ends a pause.
func (p Pause) what() string {
	if p.Flips {
		return "cutover"
	}
	return "backfill"
}

// Pause stops the copying for everybody, or for a wave: passes end, and none
// begins until Resume. Or it stops flips alone. It is durable when Pause returns,
// and nobody is held after it; other nodes end their passes within seconds.
func (c *Conductor) Pause(ctx context.Context, p Pause) error {
	if p.By == "" {
		return fmt.Errorf("%s pause: nobody says so", p.what())
	}
	p.Since = time.Now().UTC().Truncate(time.Second)
	if err := c.savePause(ctx, p); err != nil {
		return fmt.Errorf("%s pause: noting it: %w", p.what(), err)
	}
	return c.readOrders(ctx)
}

func (c *Conductor) savePause(ctx context.Context, p Pause) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return c.cfg.Requests.SaveLedger(ctx, requestsOf, p.record(), data)
}

// Resume ends a pause of the copying; that of everybody does not end those of
// waves. false: there was none.
func (c *Conductor) Resume(ctx context.Context, wave string) (bool, error) {
	return c.resume(ctx, Pause{Wave: wave})
}

// ResumeFlips ends a pause of the flips, as Resume does. What had failed before
// does not count any more.
func (c *Conductor) ResumeFlips(ctx context.Context, wave string) (bool, error) {
	if wave != "" {
		if err := c.changeWave(ctx, wave, func(w *waveRecord) { w.Row, w.Failing = 0, nil }); err != nil {
			return false, fmt.Errorf("cutover resume: %w", err)
		}
	}
	return c.resume(ctx, Pause{Wave: wave, Flips: true})
}

func (c *Conductor) resume(ctx context.Context, p Pause) (bool, error) {
	if err := c.readOrders(ctx); err != nil {
		return false, fmt.Errorf("%s resume: %w", p.what(), err)
	}
	known := slices.ContainsFunc(c.Pauses(), func(x Pause) bool { return x.Wave == p.Wave && x.Flips == p.Flips })
	if err := c.cfg.Requests.SaveLedger(ctx, requestsOf, p.record(), nil); err != nil {
		return false, fmt.Errorf("%s resume: noting it: %w", p.what(), err)
	}
	return known, c.readOrders(ctx)
}

// Pauses lists what is paused: everybody first, then waves by name.
func (c *Conductor) Pauses() []Pause {
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	return slices.Clone(c.pauses)
}

// pausedBy gives the pause that the copying of a wave is under.
func (c *Conductor) pausedBy(wave string) (Pause, bool) {
	return c.pauseOf(wave, func(p Pause) bool { return !p.Flips })
}

// stoppedBy gives the pause, of the copying or of flips, that lets nobody of a
// wave be held.
func (c *Conductor) stoppedBy(wave string) (Pause, bool) {
	return c.pauseOf(wave, func(Pause) bool { return true })
}

func (c *Conductor) pauseOf(wave string, counts func(Pause) bool) (Pause, bool) {
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	return pauseIn(c.pauses, wave, counts)
}

func pauseIn(pauses []Pause, wave string, counts func(Pause) bool) (Pause, bool) {
	for _, p := range pauses {
		if (p.Wave == "" || p.Wave == wave) && counts(p) {
			return p, true
		}
	}
	return Pause{}, false
}

// readOrders takes from the store what is paused and what is said of waves, and
// puts it into force here.
func (c *Conductor) readOrders(ctx context.Context) error {
	c.reading.Lock() // so that an older look does not overwrite a newer one
	defer c.reading.Unlock()
	records, err := c.cfg.Requests.LoadLedger(ctx, requestsOf)
	if err != nil {
		return fmt.Errorf("reading what is paused: %w", err)
	}
	pauses, waves := c.pausesOf(records), c.wavesOf(records)
	c.gate.Lock() // nobody is about to be held under what was said before
	c.pauseMu.Lock()
	before := c.pauses
	same := slices.Equal(before, pauses) && maps.EqualFunc(c.waves, waves, waveRecord.sameOrders)
	c.pauses, c.waves = pauses, waves
	c.pauseMu.Unlock()
	c.gate.Unlock()
	if !same {
		c.ordersChanged(before)
	}
	return nil
}

// pausesOf finds the pauses among the conductor's records.
func (c *Conductor) pausesOf(records map[string][]byte) []Pause {
	var out []Pause
	for name, data := range records {
		kind, wave, _ := strings.Cut(name, "/")
		if kind != pauseAll && kind != pauseFlip {
			continue
		}
		p := Pause{}
		if err := json.Unmarshal(data, &p); err != nil {
			// It is a pause all the same, whatever it says.
			c.cfg.Log.Warn("cutover: the record of a pause cannot be read; it counts", "record", name, "err", err)
		}
		p.Wave, p.Flips = wave, kind == pauseFlip
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Pause) int {
		return cmp.Or(compareWaves(a.Wave, b.Wave), strings.Compare(a.Wave, b.Wave), strings.Compare(a.record(), b.record()))
	})
	return out
}

// ordersChanged ends the passes that are not wanted any more, and lets those
// begin that are. before is what was paused.
func (c *Conductor) ordersChanged(before []Pause) {
	flips := func(p Pause) bool { return p.Flips }
	for _, m := range c.moves() {
		m.followPause()
		wave := m.snapshot().Wave
		_, was := pauseIn(before, wave, flips)
		if _, stopped := c.stoppedBy(wave); was && !stopped {
			m.tryAnew()
		}
		m.lookAgain()
	}
	c.places.look()
	c.tails.look()
	c.sweeps.look()
}

// tryAnew has a flip that failed tried at once, when somebody lets his wave go on.
func (m *move) tryAnew() {
	if s := m.snapshot(); s.State == router.StateReady && s.Attempts > 0 {
		m.note(func(s *Status) { s.Attempts, s.Next = 0, time.Time{} })
		token(m.again)
	}
}

// watchPauses follows what is said on other nodes.
func (c *Conductor) watchPauses(ctx context.Context) {
	for pause(ctx, pauseTime, nil) {
		if err := c.readOrders(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("cutover: what is paused cannot be read; trying again", "err", err)
		}
	}
}

// pausable tells whether a pause stops the work on a user in a state: not while
// he is held, and not once he reads new.
func pausable(s router.State) bool {
	return s == router.StateOld || s == router.StateSyncing || s == router.StateReady
}

// followPause puts the pauses into force for one user.
func (m *move) followPause() {
	m.mu.Lock()
	wave, stop, state := m.wave, m.stopPass, m.status.State
	m.mu.Unlock()
	p, paused := m.c.pausedBy(wave)
	text := ""
	switch stopped, yes := m.c.stoppedBy(wave); {
	case paused && pausable(state):
		text = p.String()
		if stop != nil {
			stop(errPaused)
		}
	case yes && state == router.StateReady:
		text = stopped.String()
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
