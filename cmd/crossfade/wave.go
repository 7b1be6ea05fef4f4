package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/router"
)

type waveCmd struct {
	List    waveListCmd    `cmd:"" help:"List the waves that users have."`
	Show    waveShowCmd    `cmd:"" help:"Show a wave: members, time, approval, and why it stands still."`
	Set     waveSetCmd     `cmd:"" help:"Set the time before which nobody of a wave flips."`
	Approve waveApproveCmd `cmd:"" help:"Let the users of a wave flip as they are ready. Starts no copies."`
}

type waveListCmd struct{ jsonFlag }

// Run lists the waves.
func (c *waveListCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	waves, err := client.Waves(a.ctx)
	if err != nil {
		return fmt.Errorf("listing the waves: %w", err)
	}
	if c.JSON {
		return a.printJSON(append([]cutover.Wave{}, waves...))
	}
	t := newTable(a.stdout, "WAVE", "STATE", "USERS", "OLD", "SYNCING", "READY", "HELD", "NEW", "NOT BEFORE", "APPROVED", "PAUSED")
	for _, w := range waves {
		n := func(states ...router.State) string {
			sum := 0
			for _, s := range states {
				sum += w.States[s]
			}
			return fmt.Sprint(sum)
		}
		paused := ""
		if w.Paused != nil {
			paused = w.Paused.String()
		}
		t.row(w.Name, string(w.State), fmt.Sprint(w.Members), n(router.StateOld), n(router.StateSyncing), n(router.StateReady),
			n(router.StateCutover, router.StateRollback), n(router.StateNew, router.StateDone), moment(w.NotBefore), approvedText(w), clip(paused, 100))
	}
	return t.flush()
}

func approvedText(w cutover.Wave) string {
	switch {
	case w.ApprovedBy != "":
		return "by " + w.ApprovedBy + " " + moment(w.ApprovedAt)
	case w.Auto:
		return "auto"
	}
	return ""
}

type waveShowCmd struct {
	Name string `arg:"" help:"The wave."`
	jsonFlag
}

// Run shows one wave.
func (c *waveShowCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	w, err := client.Wave(a.ctx, c.Name)
	if err != nil {
		return fmt.Errorf("reading the wave %s: %w", c.Name, err)
	}
	if c.JSON {
		return a.printJSON(w)
	}
	return a.printWave(w)
}

func (a *app) printWave(w cutover.Wave) error {
	t := newTable(a.stdout)
	t.row("wave", w.Name)
	t.row("state", string(w.State))
	var states []string
	for _, s := range router.States() {
		if n := w.States[s]; n > 0 {
			states = append(states, fmt.Sprintf("%d %s", n, s))
		}
	}
	t.row("users", fmt.Sprintf("%d: %s", w.Members, strings.Join(states, ", ")))
	t.row("not before", moment(w.NotBefore))
	t.row("approved", approvedText(w))
	t.row("pace", paceOf(w.MaxHeld, w.FlipsPerMinute))
	if w.Paused != nil {
		t.row("paused", w.Paused.String())
	}
	if w.FailedInRow > 0 {
		t.row("failed in a row", fmt.Sprint(w.FailedInRow))
	}
	if len(w.Failing) > 0 {
		t.row("failed last", clip(strings.Join(w.Failing, ", "), 400))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if w.Paused != nil {
		command := "backfill"
		if w.Paused.Flips {
			command = "cutover"
		}
		which := ""
		if w.Paused.Wave != "" {
			which = " --wave " + w.Paused.Wave
		}
		fmt.Fprintf(a.stderr, "it goes on with: crossfade %s resume%s\n", command, clean(which))
	}
	return nil
}

// paceOf says how many may be held, and how fast they come.
func paceOf(held, perMinute int) string {
	var parts []string
	if held > 0 {
		parts = append(parts, fmt.Sprintf("%d held at once", held))
	}
	if perMinute > 0 {
		parts = append(parts, fmt.Sprintf("%d a minute", perMinute))
	}
	if len(parts) == 0 {
		return "no bound beside cutover.concurrency"
	}
	return "at most " + strings.Join(parts, ", ")
}

type waveSetCmd struct {
	Name      string `arg:"" help:"The wave."`
	NotBefore string `required:"" placeholder:"TIME" help:"Time such as 2026-03-31T20:00:00+02:00 or \"2026-03-31 20:00\" (here); never takes it away."`
	Reason    string `help:"Why, for the audit log."`
	jsonFlag
}

// Run sets the time of a wave.
func (c *waveSetCmd) Run(a *app) error {
	at, err := timeOf(c.NotBefore)
	if err != nil {
		return usageError(fmt.Errorf("cutover wave set: --not-before: %w", err), `write 2026-03-31T20:00:00+02:00, "2026-03-31 20:00" or never`)
	}
	text := ""
	if !at.IsZero() {
		text = at.Format(time.RFC3339)
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	w, err := client.ChangeWave(a.ctx, c.Name, admin.WaveChange{NotBefore: &text, Reason: c.Reason})
	if err != nil {
		return fmt.Errorf("changing the wave %s: %w", c.Name, err)
	}
	if w.Note != "" {
		fmt.Fprintf(a.stderr, "%s: %s\n", clean(c.Name), clean(w.Note))
	}
	if c.JSON {
		return a.printJSON(w)
	}
	return a.printWave(w.Wave)
}

// timeOf reads a time as people and programs write it; the zero time for never.
func timeOf(text string) (time.Time, error) {
	if text == "never" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time", text)
}

type waveApproveCmd struct {
	Name   string `arg:"" help:"The wave."`
	Reason string `help:"Why, for the audit log."`
	jsonFlag
}

// Run approves a wave.
func (c *waveApproveCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	w, err := client.ApproveWave(a.ctx, c.Name, c.Reason)
	if err != nil {
		return fmt.Errorf("approving the wave %s: %w", c.Name, err)
	}
	if c.JSON {
		return a.printJSON(w)
	}
	return a.printWave(w)
}

type cutoverPauseCmd struct {
	Wave   string `help:"Only the users of this wave; without it everybody."`
	Reason string `help:"Why, for the status and the audit log."`
	jsonFlag
}

// Run has nobody held until it is resumed.
func (c *cutoverPauseCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	paused, err := client.PauseCutover(a.ctx, admin.BackfillPause{Wave: c.Wave, Reason: c.Reason})
	if err != nil {
		return fmt.Errorf("pausing flips: %w", err)
	}
	return a.printPauses(paused, c.JSON)
}

type cutoverResumeCmd struct {
	Wave string `help:"End the pause of this wave, also one that it made by itself; without it that of everybody."`
	jsonFlag
}

// Run lets flips go on.
func (c *cutoverResumeCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	paused, err := client.ResumeCutover(a.ctx, c.Wave)
	if err != nil {
		return fmt.Errorf("resuming flips: %w", err)
	}
	return a.printPauses(paused, c.JSON)
}

// usersOfWave lists the mailboxes of a wave.
func usersOfWave(a *app, client *admin.Client, wave string) ([]string, error) {
	var out []string
	f := router.Filter{Wave: wave, Kind: router.KindMailbox}
	err := pages(0, func(cursor string, limit int) (string, int, error) {
		p, err := client.Users(a.ctx, f, cursor, limit)
		for _, u := range p.Users {
			out = append(out, u.Address)
		}
		return p.Next, len(p.Users), err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the wave %s: %w", wave, err)
	}
	if len(out) == 0 {
		return nil, &commandError{code: exitFailed, err: fmt.Errorf("no user has the wave %q", wave), hint: "crossfade cutover wave list"}
	}
	return out, nil
}

// named are the users that a command was given, in one way or another.
type named struct {
	Addresses []string `arg:"" optional:"" name:"address" help:"Addresses of users."`
	File      string   `help:"File with an address per line (- is standard input)."`
	Wave      string   `help:"All users of this wave."`
}

// users lists them, each once; it is an error when there are none.
func (n *named) users(a *app, client *admin.Client, command string) ([]string, error) {
	out, err := addressList(n.Addresses, n.File)
	if err != nil {
		return nil, err
	}
	if n.Wave != "" {
		of, err := usersOfWave(a, client, n.Wave)
		if err != nil {
			return nil, err
		}
		seen := map[string]bool{}
		for _, u := range out {
			seen[strings.ToLower(u)] = true
		}
		for _, u := range of {
			if !seen[u] {
				out = append(out, u)
			}
		}
	}
	if len(out) == 0 {
		return nil, usageError(errors.New(command+": no users were named"), "give addresses, --wave or --file")
	}
	return out, nil
}
