package main

import (
	"errors"
	"fmt"
	"time"

	"crossfade/config"
	"crossfade/internal/daemon"
)

type storeCmd struct {
	Copy  storeCopyCmd  `cmd:"" help:"Copy a store to a new one: to Redis, from Redis, or to another directory. Nothing may run on either."`
	Audit storeAuditCmd `cmd:"" help:"Look whether a store is whole, and repair it."`
}

type storeCopyCmd struct {
	jsonFlag
	From           string `required:"" placeholder:"DIR|URL" help:"The store to copy; it is not changed."`
	To             string `required:"" placeholder:"DIR|URL" help:"Where the new store will be: a directory that is not there yet, or an empty Redis database."`
	DiscardPartial bool   `help:"First remove what an earlier copy to the same place left that was killed."`
}

// Run copies a store. Users, passwords and certificates of a Redis come from
// the section redis of -c FILE.
func (c *storeCopyCmd) Run(a *app) error {
	cfg, err := a.redisConfig()
	if err != nil {
		return err
	}
	p := &copyProgress{progress: newProgress(a.stderr)}
	rep, err := daemon.CopyStore(a.ctx, daemon.StoreCopy{From: c.From, To: c.To, Config: cfg, Discard: c.DiscardPartial, Progress: p.show})
	p.end()
	switch {
	case err == nil:
	case a.ctx.Err() != nil:
		return fmt.Errorf("copying the store: interrupted: nothing was left at the target (%w)", err)
	case errors.Is(err, daemon.ErrStorePartial):
		return &commandError{code: exitFailed, err: fmt.Errorf("copying the store: %w", err), hint: "the source was not changed: add --discard-partial to begin again"}
	default:
		return fmt.Errorf("copying the store: %w", err)
	}
	if c.JSON {
		return a.printJSON(rep)
	}
	fmt.Fprintf(a.stdout, "copied %s to %s in %s, and compared\n", clean(rep.From), clean(rep.To), rep.Duration.Round(time.Millisecond))
	t := newTable(a.stdout)
	t.row("users", fmt.Sprint(rep.Users))
	t.row("lines of history", fmt.Sprint(rep.Changes))
	t.row("ledger records", fmt.Sprint(rep.Ledger))
	t.row("messages", fmt.Sprintf("%d, %s", rep.Messages, size(rep.Bytes)))
	t.row("recipients", fmt.Sprint(rep.Recipients))
	if rep.InFlight > 0 {
		t.row("tried again", fmt.Sprintf("%d recipients, whose delivery was under way when the process died: a duplicate is possible", rep.InFlight))
	}
	if rep.Journal != "" {
		moved := ""
		if rep.JournalMoved > 0 {
			moved = fmt.Sprintf(", with %d batches that were still in the database", rep.JournalMoved)
		}
		t.row("journal", fmt.Sprintf("it is in %s%s: copy that directory along", rep.Journal, moved))
	}
	t.row("digest", rep.Digest)
	return t.flush()
}

// redisConfig reads the file named by -c, where there is one.
func (a *app) redisConfig() (*config.Config, error) {
	if a.flags.Config == "" {
		return nil, nil
	}
	return a.config()
}

// copyProgress shows how far a copy is: a bar on a terminal, a line for each
// step and each ten seconds anywhere else.
type copyProgress struct {
	progress
	step daemon.CopyStep
	at   time.Time
}

func (p *copyProgress) show(step daemon.CopyStep, done, total int) {
	now := time.Now()
	pause := 100 * time.Millisecond
	if p.width == 0 {
		pause = 10 * time.Second
	}
	if step == p.step && now.Sub(p.at) < pause {
		return
	}
	if step != p.step {
		p.line(fmt.Sprintf("%s (about %d)", step, total))
	} else {
		p.line(fmt.Sprintf("%s: %d of about %d", step, done, total))
	}
	p.step, p.at = step, now
	p.bar(fmt.Sprintf("%s %s %d/%d", barText(min(done, total), total, 0, 0), step, done, total))
}

type storeAuditCmd struct {
	jsonFlag
	Store  string `placeholder:"DIR|URL" help:"The store; without it the one of -c FILE."`
	Repair bool   `help:"Make indexes and counters again from the recipients, and park what cannot be made whole. Without it nothing is changed."`
}

// Run looks at a store. Exit 0: it is whole, or was made so; 1: it is not; 3:
// some of it was repaired, and some could not be.
func (c *storeAuditCmd) Run(a *app) error {
	cfg, err := a.redisConfig()
	if err != nil {
		return err
	}
	store := c.Store
	if store == "" && cfg != nil {
		store = cfg.Store
	}
	if store == "" {
		return usageError(errors.New("no store was named"), "use --store DIR, --store redis://..., or -c crossfade.yaml")
	}
	rep, err := daemon.AuditStore(a.ctx, cfg, store, c.Repair)
	if err != nil {
		return err
	}
	if c.JSON {
		if rep.Problems == nil {
			rep.Problems = map[string]int{}
		}
		err = a.printJSON(rep)
	} else {
		err = printAudit(a, &rep)
	}
	switch {
	case err != nil:
		return err
	case rep.Left > 0 && rep.Repaired > 0:
		return partly("%s repaired, %s left: see above", count(rep.Repaired, "problem", "problems"), count(rep.Left, "problem is", "problems are"))
	case rep.Left > 0 && c.Repair:
		return fmt.Errorf("%s that cannot be repaired: see above", count(rep.Left, "problem", "problems"))
	case rep.Left > 0:
		return &commandError{code: exitFailed, err: fmt.Errorf("%s found: see above", count(rep.Left, "problem", "problems")), hint: "--repair makes whole what can be"}
	}
	return nil
}

// shownFindings is how many findings are printed; JSON has more.
const shownFindings = 200

func printAudit(a *app, rep *daemon.StoreAudit) error {
	fmt.Fprintf(a.stdout, "looked at %s: %s, %s, %s of bodies, %s\n", clean(rep.Store), count(rep.Messages, "message", "messages"),
		count(rep.Recipients, "recipient", "recipients"), size(rep.Bytes), count(rep.Users, "user", "users"))
	if len(rep.Findings) > 0 {
		t := newTable(a.stdout, "PROBLEM", "WHERE", "WHAT", "DONE")
		for i, f := range rep.Findings {
			if i == shownFindings {
				break
			}
			problem := f.Problem
			if f.Note {
				problem = "(note) " + problem
			}
			t.row(problem, f.Where, clip(f.Detail, 160), f.Repair)
		}
		if err := t.flush(); err != nil {
			return err
		}
		if n := len(rep.Findings) - shownFindings; n > 0 {
			fmt.Fprintf(a.stdout, "and %d more: --json prints them\n", n)
		}
	}
	for _, k := range rep.Kinds() {
		fmt.Fprintf(a.stdout, "%6d  %s\n", rep.Problems[k], k)
	}
	if rep.Left+rep.Repaired == 0 {
		fmt.Fprintln(a.stdout, "nothing is wrong")
	}
	return nil
}
