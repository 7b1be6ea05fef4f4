package cutover

import (
	"context"
	"encoding/json"
	"time"

	"crossfade/router"
)

// Board is where each node writes how its users do, for the others to show.
type Board interface {
	// Publish keeps data for a user, for a time.
	Publish(ctx context.Context, user string, data []byte, keep time.Duration) error
	// Published calls each for every user of whom something was published or on
	// whom there is work, or for the one user: the node that owns him now (empty:
	// none does), how often he was asked about, and the data (nil: none).
	Published(ctx context.Context, user string, each func(user, node string, asked int64, data []byte)) error
}

const (
	publishTime = time.Second    // at most so often per user
	keepTime    = 24 * time.Hour // what was published, while there is work
	keepEnded   = time.Hour      // and after the end
	maxProblems = 20             // in what is published
)

// bulletin is what is published of a user.
type bulletin struct {
	Asked  int64  `json:"asked"` // how often he was asked about, as far as the node had seen
	Status Status `json:"status"`
}

// publishing publishes what changed, until ctx ends.
func (c *Conductor) publishing(ctx context.Context) {
	for pause(ctx, publishTime, nil) {
		for _, m := range c.moves() {
			if m.check() == nil {
				m.publish()
			}
		}
	}
}

// publish lets the other nodes see the status, when it has changed.
func (m *move) publish() {
	b := m.c.cfg.Board
	if b == nil {
		return
	}
	m.mu.Lock()
	changed := m.changed
	m.changed = false
	m.mu.Unlock()
	if !changed {
		return
	}
	s := m.snapshot()
	s.Problems = s.Problems[:min(len(s.Problems), maxProblems)]
	data, err := json.Marshal(bulletin{Asked: m.asked(), Status: s})
	if err != nil {
		return // it is made of plain values
	}
	keep := keepTime
	if s.Phase == PhaseDone {
		keep = keepEnded
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	if err := b.Publish(ctx, m.user, data, keep); err != nil {
		m.c.cfg.Log.Debug("cutover: a status cannot be published", "user", m.user, "err", err)
		m.mu.Lock()
		m.changed = true
		m.mu.Unlock()
	}
}

// elsewhere gives the statuses that the board has, of all users or of one.
func (c *Conductor) elsewhere(user string) map[string]Status {
	if c.cfg.Board == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	out := map[string]Status{}
	err := c.cfg.Board.Published(ctx, user, func(user, node string, asked int64, data []byte) {
		if user != paceLock {
			out[user] = read(user, node, asked, data)
		}
	})
	if err != nil {
		c.cfg.Log.Warn("cutover: how users do on other nodes cannot be read", "err", err)
	}
	for user, s := range out {
		if s.State != "" {
			continue // as the node said last
		}
		if u, err := c.cfg.Table.User(ctx, user); err == nil {
			s.State = u.State
			out[user] = s
		}
	}
	return out
}

// read makes a status of what was published.
func read(user, node string, asked int64, data []byte) Status {
	var b bulletin
	if data == nil || json.Unmarshal(data, &b) != nil {
		return Status{User: user, Phase: PhaseWaiting, Node: node}
	}
	s := b.Status
	s.User, s.Node = user, node
	switch {
	case asked > b.Asked && !s.Active(): // what was asked since is not begun
		s.Phase = PhaseWaiting
	case node == "" && s.Active(): // its node died or gave it up; another takes it up
		s.Phase = PhaseWaiting
	}
	return s
}

// merge chooses between what is known here and what the board says.
func merge(here Status, finished bool, there Status) Status {
	if finished && there.Updated.After(here.Updated) {
		return there
	}
	return here
}

// resume goes on counting where another node, or this one, left off.
func (m *move) resume(s Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := &m.status
	if s.Started.IsZero() || s.State == router.StateOld || s.State == router.StateNew && now.State != s.State {
		return // nobody began this move
	}
	now.HoldTime = s.HoldTime
	now.Started, now.Passes, now.Copied, now.Bytes, now.Attempts = s.Started, s.Passes, s.Copied, s.Bytes, s.Attempts
	now.Problems, now.Classes, now.Throttled, now.Synced = s.Problems, s.Classes, s.Throttled, s.Synced
}
