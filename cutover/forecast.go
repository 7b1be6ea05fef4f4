package cutover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// What a forecast takes for granted where nothing is known.
const (
	usualRate     = 2 << 20         // octets in a second, of one user
	usualMessages = 200             // messages in a second, of one user
	usualHold     = 2 * time.Second // of one user
	passOverhead  = 2 * time.Second // connections, folders, and the small passes behind the first
)

// MovePlan says what a start would do: who goes, in which order, and when. It
// changes nothing.
type MovePlan struct {
	Wave  string        `json:"wave,omitempty"`
	Users []PlannedMove `json:"users"`
	// NotBefore is that of the wave.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Paused is what keeps users from being flipped now.
	Paused *Pause `json:"paused,omitempty"`
	// The pace of the configuration; 0: no bound.
	MaxHeld        int `json:"max_held,omitempty"`
	FlipsPerMinute int `json:"flips_per_minute,omitempty"`
	Concurrency    int `json:"concurrency"`
	// Rate is how many octets of a user are copied in a second, Hold how long mail
	// is held; measured says of both that they are what was seen here, and not what
	// is usual.
	Rate         float64       `json:"bytes_per_second"`
	RateMeasured bool          `json:"rate_measured"`
	Hold         time.Duration `json:"hold_ns"`
	HoldMeasured bool          `json:"hold_measured"`
	// Sums over those who go, and when the last of them is new.
	Going    int       `json:"going"`
	Messages int       `json:"messages"`
	Bytes    int64     `json:"bytes"`
	Unknown  int       `json:"unknown,omitempty"` // of them, whose size nobody knows
	Ends     time.Time `json:"ends,omitzero"`
}

// PlannedMove is one user of a plan.
type PlannedMove struct {
	User  string       `json:"user"`
	Wave  string       `json:"wave,omitempty"`
	State router.State `json:"state"`
	// Messages and Bytes are to copy yet, when Known.
	Messages int   `json:"messages"`
	Bytes    int64 `json:"bytes"`
	Known    bool  `json:"known"`
	// Copy is how long that takes, Flip when the user is new.
	Copy time.Duration `json:"copy_ns,omitempty"`
	Flip time.Time     `json:"flip,omitzero"`
	// WhyNot says why he does not go now. Who only waits for a time has a Flip too.
	WhyNot []string `json:"why_not,omitempty"`
	// OtherWave is another wave than the one to start, which is under way and has
	// the user.
	OtherWave string `json:"other_wave,omitempty"`

	NotBefore time.Time `json:"not_before,omitzero"` // of the user, or of his wave
	Cannot    bool      `json:"cannot_go,omitempty"` // WhyNot is more than a time
	// LimitWaits is how long daily limits make the copy wait.
	LimitWaits time.Duration `json:"limit_waits_ns,omitempty"`
}

// PlanMoves plans a start of users, of a wave, or both. A user who is named twice
// is an error, as for a start; so is a wave that nobody has.
func (c *Conductor) PlanMoves(ctx context.Context, users []string, wave string) (MovePlan, error) {
	p := MovePlan{Wave: wave, Users: []PlannedMove{}, MaxHeld: c.cfg.MaxHeld, FlipsPerMinute: c.cfg.FlipsPerMinute, Concurrency: c.cfg.Concurrency}
	if err := c.readOrders(ctx); err != nil {
		return p, fmt.Errorf("cutover plan: %w", err)
	}
	known := map[string]Status{}
	for _, s := range c.Status() {
		known[s.User] = s
	}
	p.measureBy(known)
	if stopped, yes := c.stoppedBy(wave); yes {
		p.Paused = &stopped
	}
	p.NotBefore = c.wave(wave).NotBefore
	seen := map[string]bool{}
	if wave != "" {
		err := c.members(ctx, wave, func(u router.User) {
			seen[u.Address] = true
			p.Users = append(p.Users, c.planned(u, known[u.Address], wave))
		})
		if err == nil && len(seen) == 0 {
			err = ErrNoWave
		}
		if err != nil {
			return p, fmt.Errorf("cutover plan: wave %s: %w", wave, err)
		}
	}
	twice := map[string]bool{}
	for _, name := range users {
		m, err := c.plannedByName(ctx, name, known, wave)
		if err != nil {
			return p, fmt.Errorf("cutover plan: %w", err)
		}
		if twice[m.User] {
			return p, fmt.Errorf("cutover plan: %w: %s", ErrTwice, m.User)
		}
		twice[m.User] = true
		if !seen[m.User] {
			p.Users = append(p.Users, m)
		}
	}
	p.Forecast(time.Now())
	return p, nil
}

// ErrTwice means that a list names a user twice.
var ErrTwice = errors.New("a user is named twice")

// measureBy takes the speed of the copies and the holds that are known.
func (p *MovePlan) measureBy(known map[string]Status) {
	p.Rate, p.Hold = usualRate, usualHold
	var rate float64
	var copying int
	var holds []time.Duration
	for _, s := range known {
		if s.Phase == PhaseCopy && s.Progress.BytesPerSecond > 0 {
			rate += s.Progress.BytesPerSecond
			copying++
		}
		if s.HoldTime > 0 {
			holds = append(holds, s.HoldTime)
		}
	}
	if copying > 0 {
		p.Rate, p.RateMeasured = rate/float64(copying), true
	}
	if len(holds) > 0 {
		p.Hold, p.HoldMeasured = nearestRank(holds, 50), true
	}
}

// plannedByName plans a user whom somebody named.
func (c *Conductor) plannedByName(ctx context.Context, name string, known map[string]Status, wave string) (PlannedMove, error) {
	key, err := userKey(name)
	if err != nil {
		m := PlannedMove{User: name}
		m.cannot("no address: %v", err)
		return m, nil
	}
	u, err := c.cfg.Table.User(ctx, key)
	if errors.Is(err, router.ErrNoUser) {
		u, err = router.User{Address: key, Kind: router.KindMailbox, State: router.StateOld}, nil
	}
	if err != nil {
		return PlannedMove{}, fmt.Errorf("reading the user %s: %w", key, err)
	}
	return c.planned(u, known[key], wave), nil
}

func (m *PlannedMove) cannot(format string, args ...any) {
	m.WhyNot, m.Cannot = append(m.WhyNot, fmt.Sprintf(format, args...)), true
}

// planned says what is known of one user's move.
func (c *Conductor) planned(u router.User, s Status, wave string) PlannedMove {
	m := PlannedMove{User: u.Address, Wave: u.Wave, State: u.State, NotBefore: later(u.NotBefore, c.wave(u.Wave).NotBefore)}
	switch {
	case u.Kind != router.KindMailbox && u.Kind != "":
		m.cannot("it is an %s: move the mailbox that it points to (%s)", u.Kind, strings.Join(u.Targets, ", "))
		return m
	case u.State == router.StateNew || u.State == router.StateDone:
		m.cannot("the user is %s already", u.State)
		return m
	case u.State == router.StateRollback:
		m.cannot("the user is being rolled back: wait for the end, then start again")
		return m
	}
	if _, err := c.cfg.Mailboxes.Job(u); err != nil {
		m.cannot("no login: %v", err)
	}
	if u.Wave != "" && u.Wave != wave && u.State != router.StateOld && (c.wave(u.Wave).approved() || c.cfg.AutoApprove) {
		m.OtherWave = u.Wave
		m.cannot("the user is in the wave %s, which is under way", u.Wave)
	}
	if time.Until(m.NotBefore) > 0 {
		m.WhyNot = append(m.WhyNot, "not before "+m.NotBefore.UTC().Format("2006-01-02 15:04 MST"))
	}
	m.size(u, s)
	return m
}

// size takes what is known of how much there is to copy.
func (m *PlannedMove) size(u router.User, s Status) {
	p := s.Progress
	switch {
	case u.State == router.StateReady || u.State == router.StateCutover:
		m.Known = true // in sync
	case s.State == router.StateSyncing && p.Messages > 0:
		m.Known, m.Messages, m.Bytes, m.LimitWaits = true, max(p.Messages-p.MessagesDone, 0), max(p.Bytes-p.BytesDone, 0), p.LimitWaits
	case s.Messages > 0 || s.Size > 0:
		m.Known, m.Messages, m.Bytes, m.LimitWaits = true, s.Messages, s.Size, s.LimitWaits
	}
}

// Looked takes what a look at the user's mailboxes found; err: it could not be
// looked at.
func (p *MovePlan) Looked(user string, plan backfill.Plan, err error) {
	i := slices.IndexFunc(p.Users, func(m PlannedMove) bool { return m.User == user })
	if i < 0 {
		return
	}
	m := &p.Users[i]
	if err != nil {
		m.cannot("the mailboxes cannot be looked at: %v", err)
		return
	}
	m.Known, m.Messages, m.Bytes, m.LimitWaits = true, plan.Copy, plan.CopyBytes, plan.LimitWaits
	if q := plan.QuotaLeft; q != nil && *q < plan.CopyBytes {
		m.cannot("the quota on new has room for %d of %d octets", *q, plan.CopyBytes)
	}
}

// Forecast says of everybody who goes when he is new, as the conductor gives out
// places and turns, adds them up, and puts the users into that order; those who
// cannot go come last.
func (p *MovePlan) Forecast(now time.Time) {
	p.Going, p.Messages, p.Bytes, p.Unknown, p.Ends = 0, 0, 0, 0, time.Time{}
	var going []*PlannedMove
	for i := range p.Users {
		m := &p.Users[i]
		m.Copy, m.Flip = 0, time.Time{}
		if m.Cannot {
			continue
		}
		going = append(going, m)
		p.Going++
		p.Messages += m.Messages
		p.Bytes += m.Bytes
		if !m.Known {
			p.Unknown++
		}
	}
	ready := p.copies(now, going)
	slices.SortStableFunc(going, func(a, b *PlannedMove) int { return ready[a].Compare(ready[b]) })
	p.flips(now, going, ready)
	slices.SortStableFunc(p.Users, func(a, b PlannedMove) int {
		switch {
		case a.Flip.IsZero() != b.Flip.IsZero():
			return cmp.Compare(boolInt(a.Flip.IsZero()), boolInt(b.Flip.IsZero()))
		}
		return a.Flip.Compare(b.Flip)
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// copies gives when each user is ready and his time has come. Places go by turns
// to the largest mailbox and to who has waited longest, wave by wave.
func (p *MovePlan) copies(now time.Time, going []*PlannedMove) map[*PlannedMove]time.Time {
	ready := map[*PlannedMove]time.Time{}
	left := slices.Clone(going)
	slices.SortStableFunc(left, func(a, b *PlannedMove) int { return compareWaves(a.Wave, b.Wave) })
	places := slices.Repeat([]time.Time{now}, max(p.Concurrency, 1))
	for n := 0; len(left) > 0; n++ {
		next := 0
		if n%2 == 0 {
			for i, m := range left {
				if compareWaves(m.Wave, left[0].Wave) == 0 && m.Bytes > left[next].Bytes {
					next = i
				}
			}
		}
		m := left[next]
		left = slices.Delete(left, next, next+1)
		first := slices.IndexFunc(places, func(t time.Time) bool { return t.Equal(slices.MinFunc(places, time.Time.Compare)) })
		if m.State != router.StateReady && m.State != router.StateCutover {
			m.Copy = p.copyTime(m)
			places[first] = places[first].Add(m.Copy)
			ready[m] = later(places[first].Add(m.LimitWaits), m.NotBefore)
			continue
		}
		ready[m] = later(now, m.NotBefore)
	}
	return ready
}

func (p *MovePlan) copyTime(m *PlannedMove) time.Duration {
	seconds := max(float64(m.Bytes)/max(p.Rate, 1), float64(m.Messages)/usualMessages)
	return (time.Duration(seconds*float64(time.Second)) + passOverhead).Round(time.Second)
}

// flips gives each user his turn, in the order in which they are ready.
func (p *MovePlan) flips(now time.Time, going []*PlannedMove, ready map[*PlannedMove]time.Time) {
	most := p.Concurrency
	if p.MaxHeld > 0 {
		most = min(most, p.MaxHeld)
	}
	held := slices.Repeat([]time.Time{now}, max(most, 1))
	next := now
	for _, m := range going {
		slices.SortFunc(held, time.Time.Compare)
		at := later(later(ready[m], next), held[0])
		m.Flip = at.Add(p.Hold).UTC().Truncate(time.Second)
		held[0] = at.Add(p.Hold)
		if p.FlipsPerMinute > 0 {
			next = at.Add(time.Minute / time.Duration(p.FlipsPerMinute))
		}
		p.Ends = later(p.Ends, m.Flip)
	}
}

// nearestRank gives the p-th percentile of durations, which it sorts.
func nearestRank(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[max(0, min(len(all)-1, (len(all)*p+99)/100-1))]
}
