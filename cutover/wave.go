package cutover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/router"
)

// ErrNoWave means that no user of the table has the wave that was named.
var ErrNoWave = errors.New("no user has this wave")

// WaveState is where a wave as a whole stands.
type WaveState string

// The states of a wave.
const (
	WavePlanned  WaveState = "planned"  // nobody has approved it; its users may be copied already
	WaveApproved WaveState = "approved" // users flip as they are ready, once not_before is over; none is on his way yet
	WaveRunning  WaveState = "running"
	WavePaused   WaveState = "paused"   // see Paused: by an operator, or by itself
	WaveFinished WaveState = "finished" // all its users are new or done
)

// Wave is a named group of users who are moved together: those with that wave in
// the table.
type Wave struct {
	Name      string    `json:"name"`
	State     WaveState `json:"state"`
	NotBefore time.Time `json:"not_before,omitzero"` // of the wave, beside each user's own
	// ApprovedBy said that the users may flip. With approve: auto nobody has to.
	ApprovedBy string    `json:"approved_by,omitempty"`
	ApprovedAt time.Time `json:"approved_at,omitzero"`
	Auto       bool      `json:"auto,omitempty"` // approve: auto
	// Members are mailboxes; States counts them by state.
	Members int                  `json:"members"`
	States  map[router.State]int `json:"states"`
	// Paused is the pause that the wave is under, of the copying or of flips.
	Paused *Pause `json:"paused,omitempty"`
	// FailedInRow are attempts at a flip that failed since the last one that did
	// not, Failing the users whose last attempt failed.
	FailedInRow int      `json:"failed_in_row,omitempty"`
	Failing     []string `json:"failing,omitempty"`
	// MaxHeld and FlipsPerMinute are those of the configuration; 0: no bound.
	MaxHeld        int `json:"max_held,omitempty"`
	FlipsPerMinute int `json:"flips_per_minute,omitempty"`
}

// waveRecord is a wave as it is kept, under "wave/" and its name.
type waveRecord struct {
	NotBefore  time.Time `json:"not_before,omitzero"`
	ApprovedBy string    `json:"approved_by,omitempty"`
	ApprovedAt time.Time `json:"approved_at,omitzero"`
	Row        int       `json:"failed_in_row,omitempty"`
	Failing    []string  `json:"failing,omitempty"`
}

const waveRecords = "wave/"

func (w waveRecord) approved() bool { return w.ApprovedBy != "" }

// sameOrders tells whether two records ask for the same.
func (w waveRecord) sameOrders(x waveRecord) bool {
	return w.NotBefore.Equal(x.NotBefore) && w.ApprovedBy == x.ApprovedBy && w.ApprovedAt.Equal(x.ApprovedAt)
}

func (w waveRecord) same(x waveRecord) bool {
	return w.sameOrders(x) && w.Row == x.Row && slices.Equal(w.Failing, x.Failing)
}

// wavesOf finds the waves among the conductor's records.
func (c *Conductor) wavesOf(records map[string][]byte) map[string]waveRecord {
	out := map[string]waveRecord{}
	for name, data := range records {
		wave, ok := strings.CutPrefix(name, waveRecords)
		if !ok {
			continue
		}
		var w waveRecord
		if err := json.Unmarshal(data, &w); err != nil {
			// Without an approval nobody flips, which is the safe reading of it.
			c.cfg.Log.Error("cutover: the record of a wave cannot be read: it counts as not approved", "wave", wave, "err", err)
			w = waveRecord{}
		}
		out[wave] = w
	}
	return out
}

// wave is what is said of a wave; nothing, when nobody said anything.
func (c *Conductor) wave(name string) waveRecord {
	if name == "" {
		return waveRecord{}
	}
	c.pauseMu.Lock()
	defer c.pauseMu.Unlock()
	return c.waves[name]
}

// changeWave changes what is said of a wave; no other node does meanwhile.
func (c *Conductor) changeWave(ctx context.Context, name string, change func(*waveRecord)) error {
	unlock, err := c.pace.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.readOrders(ctx); err != nil {
		return err
	}
	w := c.wave(name)
	before := w
	change(&w)
	if w.same(before) {
		return nil
	}
	data, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := c.cfg.Requests.SaveLedger(ctx, requestsOf, waveRecords+name, data); err != nil {
		return fmt.Errorf("noting it: %w", err)
	}
	return c.readOrders(ctx)
}

// SetWave sets the time before which nobody of a wave flips; the zero time takes
// it away. It is durable when SetWave returns.
func (c *Conductor) SetWave(ctx context.Context, name string, notBefore time.Time) (Wave, error) {
	return c.sayOfWave(ctx, "set", name, func(w *waveRecord) { w.NotBefore = notBefore.UTC().Truncate(time.Second) })
}

// ApproveWave lets the users of a wave flip as they are ready: those who are on
// their way, and those who come. Who approved it first stays on record.
func (c *Conductor) ApproveWave(ctx context.Context, name, by string) (Wave, error) {
	if by == "" {
		return Wave{}, errors.New("cutover wave approve: nobody says so")
	}
	return c.sayOfWave(ctx, "approve", name, func(w *waveRecord) {
		if !w.approved() {
			w.ApprovedBy, w.ApprovedAt = by, time.Now().UTC().Truncate(time.Second)
		}
	})
}

func (c *Conductor) sayOfWave(ctx context.Context, what, name string, change func(*waveRecord)) (Wave, error) {
	if _, err := c.oneWave(ctx, name); err != nil {
		return Wave{}, fmt.Errorf("cutover wave %s %s: %w", what, name, err)
	}
	if err := c.changeWave(ctx, name, change); err != nil {
		return Wave{}, fmt.Errorf("cutover wave %s %s: %w", what, name, err)
	}
	return c.oneWave(ctx, name)
}

// Waves lists the waves that users of the table have, in the order in which they
// are copied; with a name that one, or [ErrNoWave].
func (c *Conductor) Waves(ctx context.Context, name string) ([]Wave, error) {
	if err := c.readOrders(ctx); err != nil {
		return nil, fmt.Errorf("cutover wave: %w", err)
	}
	if name != "" {
		w, err := c.oneWave(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("cutover wave %s: %w", name, err)
		}
		return []Wave{w}, nil
	}
	by := map[string]*Wave{}
	err := c.members(ctx, "", func(u router.User) {
		if u.Wave == "" {
			return
		}
		if by[u.Wave] == nil {
			by[u.Wave] = &Wave{Name: u.Wave, States: map[router.State]int{}}
		}
		by[u.Wave].add(u)
	})
	if err != nil {
		return nil, fmt.Errorf("cutover wave: %w", err)
	}
	out := make([]Wave, 0, len(by))
	for _, w := range by {
		c.describe(w)
		out = append(out, *w)
	}
	slices.SortFunc(out, func(a, b Wave) int {
		if n := compareWaves(a.Name, b.Name); n != 0 {
			return n
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

func (c *Conductor) oneWave(ctx context.Context, name string) (Wave, error) {
	w := Wave{Name: name, States: map[router.State]int{}}
	if name == "" {
		return w, errors.New("no wave was named")
	}
	if err := c.members(ctx, name, w.add); err != nil {
		return w, err
	}
	if w.Members == 0 {
		return w, ErrNoWave
	}
	c.describe(&w)
	return w, nil
}

func (w *Wave) add(u router.User) {
	w.Members++
	st := u.State
	if st == "" {
		st = router.StateOld
	}
	w.States[st]++
}

// members calls each for the mailboxes of a wave, or of all when wave is empty.
func (c *Conductor) members(ctx context.Context, wave string, each func(router.User)) error {
	cursor := ""
	for {
		users, next, err := c.cfg.Table.Users(ctx, router.Filter{Wave: wave, Kind: router.KindMailbox}, cursor, 500)
		if err != nil {
			return fmt.Errorf("listing users: %w", err)
		}
		for _, u := range users {
			each(u)
		}
		if cursor = next; cursor == "" {
			return nil
		}
	}
}

// describe says of a wave what is on record, and where that puts it.
func (c *Conductor) describe(w *Wave) {
	rec := c.wave(w.Name)
	w.NotBefore, w.ApprovedBy, w.ApprovedAt, w.Auto = rec.NotBefore, rec.ApprovedBy, rec.ApprovedAt, c.cfg.AutoApprove
	w.FailedInRow, w.Failing = rec.Row, rec.Failing
	w.MaxHeld, w.FlipsPerMinute = c.cfg.MaxHeld, c.cfg.FlipsPerMinute
	if p, yes := c.stoppedBy(w.Name); yes {
		w.Paused = &p
	}
	arrived := w.States[router.StateNew] + w.States[router.StateDone]
	switch {
	case arrived == w.Members:
		w.State = WaveFinished
	case !rec.approved() && !w.Auto:
		w.State = WavePlanned
	case w.Paused != nil:
		w.State = WavePaused
	case arrived == 0 && (w.States[router.StateOld] == w.Members || time.Until(w.NotBefore) > 0):
		w.State = WaveApproved
	default:
		w.State = WaveRunning
	}
}

// mayFlip tells whether a ready user is to be held now: somebody wants it, his
// time and that of his wave have come, nothing is stopped, and the pace allows
// it. Otherwise wait is when to look again; 0: when something is said.
func (m *move) mayFlip(ctx context.Context, u router.User) (now bool, wait time.Duration, err error) {
	w, wanted := m.c.wave(u.Wave), m.wanted(u.Wave)
	if m.snapshot().Flip != wanted {
		m.note(func(s *Status) { s.Flip = wanted })
	}
	due := later(u.NotBefore, w.NotBefore)
	_, stopped := m.c.stoppedBy(u.Wave)
	m.mu.Lock()
	wait = max(time.Until(due), 0)
	m.notBefore, m.waits = due, !wanted || wait > 0 || stopped
	m.mu.Unlock()
	switch {
	case !wanted:
		wait = 0
		fallthrough
	case wait > 0 || stopped:
		m.c.pace.leave(m)
		return false, wait, nil
	}
	wait, err = m.c.pace.admit(ctx, m)
	return wait == 0 && err == nil, wait, err
}

// wanted tells whether somebody wants the user to flip: who asked for him, who
// approved his wave, or the configuration.
func (m *move) wanted(wave string) bool {
	return !m.request().Sync || m.c.cfg.AutoApprove || m.c.wave(wave).approved()
}

// lookAgain wakes a move that waits for somebody's word, when that may allow it
// to flip now.
func (m *move) lookAgain() {
	m.mu.Lock()
	waits, wave := m.waits, m.wave
	m.mu.Unlock()
	if _, stopped := m.c.stoppedBy(wave); waits && !stopped && m.wanted(wave) {
		token(m.again)
	}
}
