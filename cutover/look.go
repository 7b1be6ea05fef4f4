package cutover

import (
	"context"
	"errors"
	"fmt"

	"crossfade/backfill"
	"crossfade/router"
)

// Looker is what the conductor asks of the backfill for people who want to look
// before or after a move; nothing is changed by it.
type Looker interface {
	Plan(ctx context.Context, job backfill.Job) (backfill.Plan, error)
	Inventory(ctx context.Context, job backfill.Job) (backfill.Inventory, error)
}

// Plan says what a first pass for a user would do. A user in no table is looked
// at as one who comes from old.
func (c *Conductor) Plan(ctx context.Context, user string) (backfill.Plan, error) {
	var out backfill.Plan
	err := c.lookInto(ctx, "backfill plan", user, true, func(job backfill.Job) (err error) {
		out, err = c.cfg.Looker.Plan(ctx, job)
		return err
	})
	return out, err
}

// Verify compares both mailboxes of a user, whatever his state.
func (c *Conductor) Verify(ctx context.Context, user string) (backfill.Verification, error) {
	var out backfill.Verification
	err := c.lookInto(ctx, "backfill verify", user, false, func(job backfill.Job) (err error) {
		out, err = c.cfg.Copier.Verify(ctx, job)
		return err
	})
	return out, err
}

// Inventory lists what a user's mailbox on new holds.
func (c *Conductor) Inventory(ctx context.Context, user string) (backfill.Inventory, error) {
	var out backfill.Inventory
	err := c.lookInto(ctx, "backfill inventory", user, false, func(job backfill.Job) (err error) {
		out, err = c.cfg.Looker.Inventory(ctx, job)
		return err
	})
	return out, err
}

func (c *Conductor) lookInto(ctx context.Context, what, user string, unknown bool, f func(backfill.Job) error) error {
	key, err := userKey(user)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	u, err := c.cfg.Table.User(ctx, key)
	if unknown && errors.Is(err, router.ErrNoUser) {
		u, err = router.User{Address: key, Kind: router.KindMailbox, State: router.StateOld}, nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, key, err)
	}
	job, err := c.cfg.Mailboxes.Job(u)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, key, err)
	}
	job.Settled = u.State == router.StateNew || u.State == router.StateDone
	return f(job)
}
