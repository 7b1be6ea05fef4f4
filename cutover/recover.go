package cutover

import (
	"context"
	"errors"

	"crossfade/router"
)

// recover makes a move for every user on whom there is work.
func (c *Conductor) recover(ctx context.Context) error {
	return c.underWay(ctx, true, func(u router.User, req Request) { c.adopt(ctx, u, req) })
}

// scanning takes up, from time to time, users whom nobody asked for: those who
// were imported, or set to another state by hand.
func (c *Conductor) scanning(ctx context.Context) {
	for pause(ctx, c.cfg.Tail, c.lookNow) {
		if err := c.underWay(ctx, false, func(u router.User, req Request) { c.adopt(ctx, u, req) }); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("cutover: looking for users to take up failed; trying again", "err", err)
		}
		c.poke()
	}
}

// underWay calls each for every user on whom there is work: who is on his way,
// who is swept, and with all, who is done and is to be rolled back.
func (c *Conductor) underWay(ctx context.Context, all bool, each func(router.User, Request)) error {
	counts, err := c.cfg.Table.CountUsers(ctx)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	states := []router.State{router.StateCutover, router.StateRollback, router.StateReady, router.StateSyncing, router.StateNew}
	if all {
		states = append(states, router.StateDone)
	}
	if c.cfg.SweepNew {
		states = append(states, router.StateOld)
	}
	for _, st := range states {
		if err == nil && counts[st] == 0 {
			continue // nobody: no need to go through a large table
		}
		if err := c.inState(ctx, st, each); err != nil {
			return err
		}
	}
	return nil
}

func (c *Conductor) inState(ctx context.Context, st router.State, each func(router.User, Request)) error {
	cursor := ""
	for {
		users, next, err := c.cfg.Table.Users(ctx, router.Filter{State: st, Kind: router.KindMailbox}, cursor, 500)
		if err != nil {
			return err
		}
		for _, u := range users {
			if c.atWork(u) {
				continue
			}
			req := Request{User: u.Address, By: Itself, Sync: true}
			// Who is old has none, and who takes over from another node reads it.
			if st == router.StateDone || c.cfg.Owners == nil && st != router.StateOld {
				if req, _, err = c.loadRequest(ctx, u.Address); err != nil {
					return err
				}
			}
			if st != router.StateDone || req.Rollback {
				each(u, req)
			}
		}
		if cursor = next; next == "" {
			return nil
		}
	}
}

// atWork tells whether a user has a move here that goes on.
func (c *Conductor) atWork(u router.User) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.users[u.Address]
	return m != nil && !m.finished
}

func (c *Conductor) adopt(ctx context.Context, u router.User, req Request) {
	m := newMove(c, u, req)
	if u.State != router.StateOld {
		m.remember(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.users[u.Address]
	if old != nil && !old.finished {
		return
	}
	m.running = old != nil && old.running // until its goroutine has ended, see ended
	c.users[u.Address] = m
}
