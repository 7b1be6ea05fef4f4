package cutover

import (
	"context"
	"errors"

	"crossfade/router"
)

// recover makes a move for every user who is on his way.
func (c *Conductor) recover(ctx context.Context) error {
	return c.underWay(ctx, true, func(u router.User, req Request) { c.adopt(ctx, u, req) })
}

// underWay calls each for every user who is on his way. With arrived a user
// who is new is when his request is still kept, because the pass after the flip
// was not made.
func (c *Conductor) underWay(ctx context.Context, arrived bool, each func(router.User, Request)) error {
	counts, err := c.cfg.Table.CountUsers(ctx)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	states := []router.State{router.StateCutover, router.StateReady, router.StateSyncing}
	if arrived {
		states = append(states, router.StateNew)
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
			var req Request
			asked := true
			if c.cfg.Owners == nil || st == router.StateNew { // else who takes him up reads it
				if req, asked, err = c.loadRequest(ctx, u.Address); err != nil {
					return err
				}
			}
			if asked || st != router.StateNew {
				each(u, req)
			}
		}
		if cursor = next; next == "" {
			return nil
		}
	}
}

func (c *Conductor) adopt(ctx context.Context, u router.User, req Request) {
	m := newMove(c, u, req)
	m.remember(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[u.Address] == nil {
		c.users[u.Address] = m
	}
}
