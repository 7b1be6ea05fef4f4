package main

import (
	"errors"
	"fmt"

	"crossfade/config"
	"crossfade/internal/daemon"
)

type checkCmd struct {
	jsonFlag
	User      string `placeholder:"ADDRESS" help:"Log in as this user on both sides, too."`
	Reference bool   `help:"Print the reference page of all keys, and check nothing."`
	Example   bool   `help:"Print a file to begin with, and check nothing."`
}

// Run checks the file, then what it points to. Exit 2: the file is wrong; 1:
// something that it points to does not work.
func (c *checkCmd) Run(a *app) error {
	switch {
	case c.Reference:
		fmt.Fprint(a.stdout, config.Reference())
		return nil
	case c.Example:
		fmt.Fprint(a.stdout, config.Example())
		return nil
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	findings := daemon.Check(a.ctx, cfg, c.User)
	bad := 0
	for _, f := range findings {
		if !f.OK {
			bad++
		}
	}
	if c.JSON {
		if err := a.printJSON(findings); err != nil {
			return err
		}
	} else {
		c.print(a, findings)
	}
	if bad > 0 {
		return errors.New("the relay would not work as it is configured: see above")
	}
	return nil
}

func (c *checkCmd) print(a *app, findings []daemon.Finding) {
	for _, f := range findings {
		mark := "ok  "
		if !f.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(a.stdout, "%s  %s: %s\n", mark, clean(f.What), clean(f.Text))
		if f.Hint != "" {
			fmt.Fprintf(a.stdout, "      hint: %s\n", f.Hint)
		}
	}
}
