package cutover

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/router"
)

// reportsAtOnce is how many users a report reads at a time.
const reportsAtOnce = 16

// historyRead is how many changes of a user a report looks at.
const historyRead = 1000

// MoveReport says how moves went: made of the history and of what is kept of
// each user, so it is the same after a restart.
type MoveReport struct {
	Wave  string       `json:"wave,omitempty"` // empty: everybody who was moved or is on his way
	At    time.Time    `json:"at"`
	Users []UserReport `json:"users"`
	Total ReportTotal  `json:"total"`
}

// UserReport is one user of a report. Times and counts are those of his last
// way from old; who was rolled back since has RolledBack.
type UserReport struct {
	User    string         `json:"user"`
	Wave    string         `json:"wave,omitempty"`
	State   router.State   `json:"state"`
	Started time.Time      `json:"started,omitzero"` // became syncing
	Flipped time.Time      `json:"flipped,omitzero"` // became new
	Forced  bool           `json:"forced,omitempty"` // by an operator, without a final pass
	Hold    time.Duration  `json:"hold_ns,omitempty"`
	Copied  int            `json:"copied"`
	Bytes   int64          `json:"bytes"`
	Classes map[string]int `json:"problems,omitempty"` // by class
	// Holds are the attempts in which his mail was held, Failures all attempts that
	// failed.
	Holds      int    `json:"holds,omitempty"`
	Failures   int    `json:"failures,omitempty"`
	RolledBack int    `json:"rolled_back,omitempty"`
	Err        string `json:"error,omitempty"` // of the last attempt, while it is not mended
}

// ReportTotal adds a report up.
type ReportTotal struct {
	Users      int            `json:"users"`
	Flipped    int            `json:"flipped"`
	Forced     int            `json:"forced,omitempty"`
	Underway   int            `json:"under_way,omitempty"`
	Failing    int            `json:"failing,omitempty"`
	RolledBack int            `json:"rolled_back,omitempty"` // users
	Copied     int            `json:"copied"`
	Bytes      int64          `json:"bytes"`
	Classes    map[string]int `json:"problems,omitempty"`
	Failures   int            `json:"failures,omitempty"`
	HoldP50    time.Duration  `json:"hold_p50_ns,omitempty"`
	HoldP99    time.Duration  `json:"hold_p99_ns,omitempty"`
	HoldMax    time.Duration  `json:"hold_max_ns,omitempty"`
	First      time.Time      `json:"first_flip,omitzero"`
	Last       time.Time      `json:"last_flip,omitzero"`
}

// Report says how the moves of a wave went, or of all users when wave is empty.
func (c *Conductor) Report(ctx context.Context, wave string) (MoveReport, error) {
	r := MoveReport{Wave: wave, At: time.Now().UTC().Truncate(time.Second), Users: []UserReport{}}
	live := map[string]Status{}
	for _, s := range c.Status() {
		live[s.User] = s
	}
	var users []router.User
	err := c.members(ctx, wave, func(u router.User) { users = append(users, u) })
	if err == nil && wave != "" && len(users) == 0 {
		err = ErrNoWave
	}
	if err == nil {
		r.Users, err = c.reportOnAll(ctx, users, live, wave != "")
	}
	if err != nil {
		return r, fmt.Errorf("cutover report: %w", err)
	}
	r.sum()
	return r, nil
}

// reportOnAll reports on users, in their order; all says that on those too who never
// began. Several are read at once: each costs two round trips to the store.
func (c *Conductor) reportOnAll(ctx context.Context, users []router.User, live map[string]Status, all bool) ([]UserReport, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	reports, moved := make([]UserReport, len(users)), make([]bool, len(users))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(reportsAtOnce, len(users)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(users) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				var err error
				if reports[i], moved[i], err = c.reportOn(ctx, users[i], live); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	out := []UserReport{}
	for i, x := range reports {
		if moved[i] || all {
			out = append(out, x)
		}
	}
	return out, context.Cause(ctx)
}

// reportOn says how the move of one user went; moved is false when he never began.
func (c *Conductor) reportOn(ctx context.Context, u router.User, live map[string]Status) (x UserReport, moved bool, err error) {
	x = UserReport{User: u.Address, Wave: u.Wave, State: u.State}
	k, known, err := c.loadKept(ctx, u.Address)
	if err != nil {
		return x, false, err
	}
	if s, ok := live[u.Address]; ok && (!known || !s.Updated.Before(k.Updated)) {
		k, known = keptOf(s), true
	}
	if !known && (u.State == router.StateOld || u.State == "") {
		return x, false, nil
	}
	x.Copied, x.Bytes, x.Classes, x.Failures, x.Err = k.Copied, k.Bytes, k.Classes, k.Failures, k.Err
	changes, err := c.cfg.Table.History(ctx, u.Address, historyRead)
	if err != nil {
		return x, false, fmt.Errorf("reading the history of %s: %w", u.Address, err)
	}
	var held time.Time
	for i := len(changes) - 1; i >= 0; i-- { // oldest first
		x.follow(changes[i], &held)
	}
	if x.Hold == 0 && !x.Forced && !x.Flipped.IsZero() {
		x.Hold = k.HoldTime // the history is longer than what was read
	}
	return x, true, nil
}

// follow takes one change of the user.
func (x *UserReport) follow(ch router.Change, held *time.Time) {
	if ch.From == ch.To {
		return
	}
	switch ch.To {
	case router.StateSyncing:
		if ch.From == router.StateOld || ch.From == "" {
			x.Started, x.Flipped, x.Hold, x.Forced, x.Holds = ch.At, time.Time{}, 0, false, 0
		}
	case router.StateCutover:
		*held = ch.At
		x.Holds++
	case router.StateNew:
		if ch.From == router.StateDone || ch.From == router.StateRollback {
			return
		}
		x.Flipped, x.Forced, x.Hold = ch.At, ch.Forced, 0
		if ch.From == router.StateCutover && !held.IsZero() {
			x.Hold = ch.At.Sub(*held)
		}
	case router.StateRollback:
		x.RolledBack++
	case router.StateOld:
		if ch.From == router.StateNew || ch.From == router.StateDone {
			x.RolledBack++ // by force
		}
	}
}

func (r *MoveReport) sum() {
	t := &r.Total
	t.Users = len(r.Users)
	var holds []time.Duration
	for _, x := range r.Users {
		t.add(x)
		if x.Hold > 0 {
			holds = append(holds, x.Hold)
		}
	}
	t.HoldP50, t.HoldP99, t.HoldMax = nearestRank(holds, 50), nearestRank(holds, 99), nearestRank(holds, 100)
}

func (t *ReportTotal) add(x UserReport) {
	switch x.State {
	case router.StateNew, router.StateDone:
		t.Flipped++
		if x.Forced {
			t.Forced++
		}
		if t.First.IsZero() || !x.Flipped.IsZero() && x.Flipped.Before(t.First) {
			t.First = x.Flipped
		}
		t.Last = later(t.Last, x.Flipped)
	case router.StateSyncing, router.StateReady, router.StateCutover, router.StateRollback:
		t.Underway++
		if x.Err != "" {
			t.Failing++
		}
	}
	if x.RolledBack > 0 {
		t.RolledBack++
	}
	t.Copied += x.Copied
	t.Bytes += x.Bytes
	t.Failures += x.Failures
	for class, n := range x.Classes {
		if t.Classes == nil {
			t.Classes = map[string]int{}
		}
		t.Classes[class] += n
	}
}
