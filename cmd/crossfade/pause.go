package main

import (
	"fmt"

	"crossfade/admin"
	"crossfade/cutover"
)

type backfillPauseCmd struct {
	Wave   string `help:"Only the users of this wave; without it everybody."`
	Reason string `help:"Why, for the status and the audit log."`
	jsonFlag
}

// Run stops copies until they are resumed.
func (c *backfillPauseCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	paused, err := client.PauseBackfill(a.ctx, admin.BackfillPause{Wave: c.Wave, Reason: c.Reason})
	if err != nil {
		return fmt.Errorf("pausing the backfill: %w", err)
	}
	return a.printPauses(paused, c.JSON)
}

type backfillResumeCmd struct {
	Wave string `help:"End the pause of this wave; without it that of everybody."`
	jsonFlag
}

// Run lets copies go on.
func (c *backfillResumeCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	paused, err := client.ResumeBackfill(a.ctx, c.Wave)
	if err != nil {
		return fmt.Errorf("resuming the backfill: %w", err)
	}
	return a.printPauses(paused, c.JSON)
}

func (a *app) printPauses(paused []cutover.Pause, asJSON bool) error {
	if asJSON {
		return a.printJSON(append([]cutover.Pause{}, paused...))
	}
	if len(paused) == 0 {
		fmt.Fprintln(a.stdout, "nothing is paused")
	}
	for _, p := range paused {
		fmt.Fprintf(a.stdout, "paused: %s\n", clean(p.String()))
	}
	return nil
}
