package main

import (
	"errors"
	"fmt"

	"crossfade/admin"
)

type cutoverRollbackCmd struct {
	Addresses []string `arg:"" optional:"" name:"address" help:"Addresses of users."`
	Wave      string   `help:"All users of this wave who are new or done."`
	All       bool     `help:"Everybody who is new or done."`
	File      string   `help:"File with an address per line (- is standard input)."`
	Reason    string   `help:"Why, for the history."`
	NoWait    bool     `help:"Return at once; see: cutover status."`
	jsonFlag
}

// Run asks for the rollbacks, then waits for their end.
func (c *cutoverRollbackCmd) Run(a *app) error {
	addresses, err := addressList(c.Addresses, c.File)
	if err != nil {
		return err
	}
	named := len(addresses) > 0 || c.Wave != ""
	switch {
	case !named && !c.All:
		return usageError(errors.New("cutover rollback: no users were named"), "give addresses, --wave, --file or --all")
	case named && c.All:
		return usageError(errors.New("cutover rollback: --all is everybody, and others were named too"), "give either")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	w, err := newWait(a, client, false)
	if err != nil {
		return err
	}
	w.verb = "rolled back"
	if c.All {
		out, err := client.RollbackAll(a.ctx, c.Reason)
		if err != nil {
			return fmt.Errorf("rolling everybody back: %w", err)
		}
		w.take(admin.WaveStarted{Started: out.Started, Failed: out.Failed}) // who reads old has nothing to do with it
	}
	if c.Wave != "" {
		out, err := client.RollbackWave(a.ctx, c.Wave, c.Reason)
		if err != nil {
			return fmt.Errorf("rolling the wave %s back: %w", c.Wave, err)
		}
		w.take(out)
	}
	for _, address := range addresses {
		st, err := client.StartRollback(a.ctx, address, c.Reason)
		if fatal(a, err) {
			return fmt.Errorf("rolling %s back: %w", address, err)
		}
		if err != nil {
			w.refused(address, err)
			continue
		}
		w.add(st.User)
	}
	return w.finish(c.NoWait, c.JSON)
}
