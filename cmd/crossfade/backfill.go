package main

import (
	"fmt"

	"crossfade/admin"
)

type backfillCmd struct {
	Status moveStatusCmd     `cmd:"" help:"Show how copies go."`
	Run    backfillRunCmd    `cmd:"" help:"Copy users' mail until it is in sync, and do not flip."`
	Pause  backfillPauseCmd  `cmd:"" help:"Copy no mail for now, for everybody or for a wave. Who is held goes on."`
	Resume backfillResumeCmd `cmd:"" help:"End a pause."`
	Verify backfillVerifyCmd `cmd:"" help:"Compare both mailboxes of users, message by message, and write certificates."`
}

type backfillRunCmd struct {
	named  `embed:""`
	NoWait bool `help:"Return at once; see: backfill status."`
	DryRun bool `help:"Say what would be copied, made, renamed, refused and left out, and change nothing."`
	Allow  bool `name:"allow-deletions" help:"Delete on new what was deleted on old, however much it is: in the next pass that ends well, within a day."`
	Retry  bool `name:"retry-refused" help:"Offer again, as they are, the messages that new refused."`
	AtOnce int  `default:"4" help:"With --dry-run: users looked at at once (${default})."`
	jsonFlag
}

// Run starts copies, then waits until the users are in sync.
func (c *backfillRunCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	addresses, err := c.users(a, client, "backfill run")
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.dryRun(a, client, addresses)
	}
	w, err := newWait(a, client, false)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		st, err := client.RunBackfillWith(a.ctx, address, admin.BackfillRun{AllowDeletions: c.Allow, RetryRefused: c.Retry})
		if fatal(a, err) {
			return fmt.Errorf("starting the copy for %s: %w", address, err)
		}
		if err != nil {
			w.refused(address, err)
			continue
		}
		w.add(st.User)
	}
	return w.finish(c.NoWait, c.JSON)
}
