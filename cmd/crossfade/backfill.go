package main

import (
	"fmt"

	"crossfade/backfill"
)

type backfillCmd struct {
	Status moveStatusCmd     `cmd:"" help:"Show how copies go."`
	Run    backfillRunCmd    `cmd:"" help:"Copy users' mail until it is in sync, and do not flip."`
	Verify backfillVerifyCmd `cmd:"" help:"Compare both mailboxes of users, message by message."`
}

type backfillRunCmd struct {
	Addresses []string `arg:"" optional:"" name:"address" help:"Addresses of users."`
	File      string   `help:"File with an address per line (- is standard input)."`
	NoWait    bool     `help:"Return at once; see: backfill status."`
	jsonFlag
}

// Run starts copies, then waits until the users are in sync.
func (c *backfillRunCmd) Run(a *app) error {
	addresses, err := namedUsers("backfill run", c.Addresses, c.File)
	if err != nil {
		return err
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	w, err := newWait(a, client, false)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		st, err := client.RunBackfill(a.ctx, address)
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

// namedUsers is addressList for a command that needs one at least.
func namedUsers(command string, args []string, file string) ([]string, error) {
	addresses, err := addressList(args, file)
	if err == nil && len(addresses) == 0 {
		err = usageError(fmt.Errorf("%s: no users were named", command), "give addresses, or --file")
	}
	return addresses, err
}

type backfillVerifyCmd struct {
	Addresses []string `arg:"" optional:"" name:"address" help:"Addresses of users."`
	File      string   `help:"File with an address per line (- is standard input)."`
	jsonFlag
}

// Run compares mailboxes. It fails when anything is missing.
func (c *backfillVerifyCmd) Run(a *app) error {
	addresses, err := namedUsers("backfill verify", c.Addresses, c.File)
	if err != nil {
		return err
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	r := results{app: a}
	all := []backfill.Verification{}
	for _, address := range addresses {
		v, err := client.Verify(a.ctx, address)
		if fatal(a, err) {
			return fmt.Errorf("verifying %s: %w", address, err)
		}
		if err != nil {
			r.note(address, "", err)
			continue
		}
		all = append(all, v)
		if !v.OK() {
			err = fmt.Errorf("%s missing on new", count(v.Missing, "message is", "messages are"))
		}
		r.note(address, "", err)
		if c.JSON {
			continue
		}
		if err := a.printVerification(v); err != nil {
			return err
		}
	}
	if c.JSON {
		if err := a.printJSON(all); err != nil {
			return err
		}
	}
	return r.err("verified")
}

func (a *app) printVerification(v backfill.Verification) error {
	fmt.Fprintf(a.stdout, "%s, compared %s\n", clean(v.User), moment(v.At))
	t := newTable(a.stdout, "FOLDER", "ON NEW", "OLD", "NEW", "MATCHED", "MISSING")
	for _, f := range v.Folders {
		t.row(f.Source, f.Dest, fmt.Sprint(f.OnSource), fmt.Sprint(f.OnDest), fmt.Sprint(f.Matched), fmt.Sprint(len(f.Missing)))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, p := range v.Problems {
		fmt.Fprintf(a.stdout, "  %s %d: %s: %s\n", clean(p.Folder), p.UID, clean(p.Class), clean(p.Text))
	}
	return nil
}
