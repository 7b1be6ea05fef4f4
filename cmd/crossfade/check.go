package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/config"
	"crossfade/internal/daemon"
	"crossfade/router"
)

type checkCmd struct {
	jsonFlag
	User      string `placeholder:"ADDRESS" help:"Log in as this user on both sides, too; without it as somebody in the table, when there is one."`
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
	findings := daemon.CheckUser(a.ctx, cfg, c.whom(a))
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

// askTime bounds the question to a relay that may not run.
const askTime = 3 * time.Second

// whom gives the user to log in as, as a relay that runs on this configuration
// has him: his logins may differ from his address. Where none runs the check
// looks into the store itself.
func (c *checkCmd) whom(a *app) router.User {
	named := router.User{Address: c.User}
	client, err := a.client()
	if err != nil {
		return named
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(a.ctx, askTime)
	defer cancel()
	if c.User != "" {
		if u, err := client.User(ctx, c.User); err == nil {
			return u
		}
		return named
	}
	if page, err := client.Users(ctx, router.Filter{Kind: router.KindMailbox}, "", 1); err == nil && len(page.Users) > 0 {
		return page.Users[0]
	}
	return named
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
