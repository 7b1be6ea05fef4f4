package cutover

import (
	"context"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

const (
	sizeEvery = 2 * time.Second // between two looks at a mailbox whose user waits
	sizeTime  = time.Minute     // for one look
	// usualMessage is the size of a message where a server does not tell the size
	// of a folder.
	usualMessage = 35 << 10
	// etaAfter is how long a pass runs before its speed says something.
	etaAfter = 10 * time.Second
	// longestETA is what is no estimate any more.
	longestETA = 1000 * 24 * time.Hour
)

// sizing looks how large the mailboxes of those are who wait for their first
// copy, one at a time: large ones go first, and somebody has to know which they
// are.
func (c *Conductor) sizing(ctx context.Context) {
	for pause(ctx, sizeEvery, nil) {
		if m := c.unsized(); m != nil {
			m.measure(ctx)
		}
	}
}

// unsized gives a user who waits together with others and whose mailbox nobody
// has looked at.
func (c *Conductor) unsized() *move {
	var found *move
	waiting := 0
	for _, m := range c.moves() {
		if m.check() != nil {
			continue
		}
		m.mu.Lock()
		waits := m.status.State == router.StateSyncing && m.status.Phase == PhaseWaiting && !m.placed && m.status.Paused == ""
		sized := m.sized
		m.mu.Unlock()
		if !waits {
			continue
		}
		waiting++
		if !sized && (found == nil || m.user < found.user) {
			found = m
		}
	}
	if waiting < 2 {
		return nil
	}
	return found
}

// measure looks at the mailbox. One that cannot be looked at counts as small: its
// pass says what is wrong.
func (m *move) measure(ctx context.Context) {
	m.mu.Lock()
	m.sized = true
	m.mu.Unlock()
	u, err := m.c.cfg.Table.User(ctx, m.user)
	if err != nil {
		return
	}
	job, err := m.c.cfg.Mailboxes.Job(u)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sizeTime)
	defer cancel()
	plan, err := m.c.cfg.Looker.Plan(ctx, job)
	if err != nil {
		m.c.cfg.Log.Info("cutover: how large a mailbox is cannot be found out; its turn comes among the small ones", "user", m.user, "err", err)
		return
	}
	m.size.Store(max(plan.Bytes, int64(plan.Messages)*usualMessage/4, 1))
	m.note(func(s *Status) { s.Size, s.Messages, s.LimitWaits = plan.CopyBytes, plan.Copy, plan.LimitWaits })
}

// eta tells when a pass that began at a time will have copied what it found to
// copy, by how fast it was so far and by what daily limits allow; zero when that cannot be said.
func eta(began, now time.Time, p backfill.Progress) time.Time {
	took := now.Sub(began)
	done, all := float64(p.BytesDone), float64(p.Bytes)
	if all <= 0 {
		done, all = float64(p.MessagesDone), float64(p.Messages)
	}
	if took < etaAfter || done <= 0 || all <= done {
		return time.Time{}
	}
	left := float64(took) * (all - done) / done
	if left+float64(p.LimitWaits) > float64(longestETA) {
		return time.Time{}
	}
	return now.Add(time.Duration(left) + p.LimitWaits).UTC().Truncate(time.Second)
}
