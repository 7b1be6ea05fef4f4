package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"crossfade/admin"
	"crossfade/router"
)

type userCmd struct {
	Import  userImportCmd  `cmd:"" help:"Import users from a CSV file (- is standard input)."`
	List    userListCmd    `cmd:"" help:"List users."`
	Show    userShowCmd    `cmd:"" help:"Show a user, and what becomes of mail for the address."`
	Set     userSetCmd     `cmd:"" help:"Set a user's state by hand."`
	History userHistoryCmd `cmd:"" help:"Show the changes of a user, newest first."`
}

type userImportCmd struct {
	File      string `arg:"" help:"CSV with a header line: address, and any of state, wave, not_before, deliver, kind, target, old_login, new_login."`
	KeepGoing bool   `help:"Import what is right, although something is wrong."`
	DryRun    bool   `help:"Check the file and write nothing."`
	Reason    string `help:"Why, for the history."`
	jsonFlag
}

// Run sends the file. Lines that are wrong are listed with their numbers.
func (c *userImportCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	in := io.ReadCloser(os.Stdin)
	if c.File != "-" {
		if in, err = openFile(c.File); err != nil {
			return err
		}
	}
	defer in.Close()
	out, err := client.ImportUsers(a.ctx, in, admin.ImportOptions{KeepGoing: c.KeepGoing, DryRun: c.DryRun, Reason: c.Reason})
	if err != nil {
		return fmt.Errorf("importing %s: %w", c.File, err)
	}
	for _, e := range out.Errors {
		fmt.Fprintf(a.stderr, "%s: %s\n", c.File, clean(e.String()))
	}
	switch {
	case c.JSON:
		err = a.printJSON(out)
	case c.DryRun:
		fmt.Fprintf(a.stdout, "%s right, %d wrong; nothing was written\n", count(out.Checked, "user is", "users are"), out.Skipped)
	default:
		fmt.Fprintf(a.stdout, "%d created, %d updated, %d skipped\n", out.Created, out.Updated, out.Skipped)
	}
	if err == nil && out.Skipped > 0 {
		return partly("importing %s: %s", c.File, count(out.Skipped, "line was left out", "lines were left out"))
	}
	return err
}

type userListCmd struct {
	State string `enum:",old,syncing,ready,cutover,new,done,rollback" default:"" help:"Only users in this state."`
	Wave  string `help:"Only users of this wave."`
	Kind  string `enum:",mailbox,alias,group" default:"" help:"Only mailbox, alias or group."`
	Query string `short:"q" help:"Only addresses that contain this."`
	Limit int    `help:"At most so many users; 0 is all." default:"0"`
	jsonFlag
}

// Run lists users, page by page.
func (c *userListCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	f := router.Filter{State: router.State(c.State), Wave: c.Wave, Kind: router.Kind(c.Kind), Query: c.Query}
	all := []router.User{}
	t := newTable(a.stdout)
	if !c.JSON {
		t.row("ADDRESS", "STATE", "WAVE", "SINCE", "NOTE")
	}
	err = pages(c.Limit, func(cursor string, limit int) (string, int, error) {
		p, err := client.Users(a.ctx, f, cursor, limit)
		if c.JSON {
			all = append(all, p.Users...)
			return p.Next, len(p.Users), err
		}
		for _, u := range p.Users {
			t.row(u.Address, stateText(u), u.Wave, moment(u.Since), noteText(u))
		}
		return p.Next, len(p.Users), err
	})
	if err != nil {
		return fmt.Errorf("listing users: %w", err)
	}
	if c.JSON {
		return a.printJSON(all)
	}
	return t.flush()
}

// pageSize is how much is asked for at once.
const pageSize = 500

// pages asks for pages until there are no more, or limit was reached.
func pages(limit int, ask func(cursor string, limit int) (next string, got int, err error)) error {
	left := limit
	for cursor := ""; ; {
		n := pageSize
		if limit > 0 {
			n = min(n, left)
		}
		next, got, err := ask(cursor, n)
		if err != nil {
			return err
		}
		left -= got
		if cursor = next; cursor == "" || limit > 0 && left <= 0 {
			return nil
		}
	}
}

func stateText(u router.User) string {
	if u.Kind == router.KindAlias || u.Kind == router.KindGroup {
		return string(u.Kind)
	}
	if u.Deliver == router.DeliverBoth {
		return string(u.State) + " (both)"
	}
	return string(u.State)
}

func noteText(u router.User) string {
	if len(u.Targets) > 0 {
		return "-> " + clip(strings.Join(u.Targets, " "), 60)
	}
	return clip(u.Note, 80)
}

type userShowCmd struct {
	Address string `arg:"" help:"Address of the user."`
	jsonFlag
}

// userShown is what `user show --json` prints.
type userShown struct {
	User  *router.User        `json:"user"` // null: in no table
	Route *router.Explanation `json:"route,omitempty"`
}

// Run shows the line of the table, and explains the route.
func (c *userShowCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	var out userShown
	u, err := client.User(a.ctx, c.Address)
	var p *admin.Problem
	switch {
	case err == nil:
		out.User = &u
	case !errors.As(err, &p) || p.Type != admin.ProblemNoUser:
		return fmt.Errorf("showing %s: %w", c.Address, err)
	}
	if !strings.HasPrefix(c.Address, "@") {
		e, err := client.Explain(a.ctx, c.Address)
		if err != nil {
			return fmt.Errorf("explaining the route of %s: %w", c.Address, err)
		}
		out.Route = &e
	}
	if c.JSON {
		return a.printJSON(out)
	}
	return a.showUser(c.Address, out)
}

func (a *app) showUser(address string, s userShown) error {
	t := newTable(a.stdout)
	field := func(name, value string) {
		if value != "" {
			t.row(name+":", value)
		}
	}
	if s.User == nil {
		field("address", address)
		field("table", "not in it")
	} else {
		u := *s.User
		field("address", u.Address)
		field("kind", string(u.Kind))
		field("targets", strings.Join(u.Targets, " "))
		if len(u.Targets) == 0 {
			field("state", stateText(u))
		}
		field("since", moment(u.Since))
		field("epoch", fmt.Sprint(u.Epoch))
		field("wave", u.Wave)
		field("not before", moment(u.NotBefore))
		field("login on old", u.OldLogin)
		field("login on new", u.NewLogin)
		field("note", u.Note)
	}
	if s.Route != nil {
		showRoute(field, *s.Route)
	}
	return t.flush()
}

func showRoute(field func(name, value string), e router.Explanation) {
	field("mail", string(e.Status))
	for _, step := range e.Steps {
		text := step.Text
		if step.To != "" {
			text = step.From + " -> " + step.To + ": " + text
		}
		field("  "+string(step.Kind), text)
	}
	for _, d := range e.Destinations {
		route := string(d.Route)
		if d.Held {
			route = "held"
		}
		field("goes to", fmt.Sprintf("%s at %s: %s", d.Address, route, d.Why))
	}
	field("refused with", e.Reply)
	field("error", e.Error)
}

type userSetCmd struct {
	Address string `arg:"" help:"Address of the user."`
	State   string `arg:"" enum:"old,syncing,ready,cutover,new,done,rollback" help:"One of ${enum}."`
	Reason  string `help:"Why, for the history."`
	Epoch   uint64 `help:"Only when the user still has this epoch; 0 is any."`
	Force   bool   `help:"Allow what the conductor alone may do, and skip the copy."`
	jsonFlag
}

// Run sets the state. Nothing is copied.
func (c *userSetCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	change := admin.StateChange{State: router.State(c.State), Reason: c.Reason, Force: c.Force}
	if c.Epoch > 0 {
		change.Epoch = &c.Epoch
	}
	out, err := client.SetState(a.ctx, c.Address, change)
	if err != nil {
		err = fmt.Errorf("setting %s to %s: %w", c.Address, c.State, err)
		var p *admin.Problem
		if errors.As(err, &p) && (p.Type == admin.ProblemTransition || p.Type == admin.ProblemNeedsForce) {
			return &commandError{code: exitFailed, err: err, hint: fmt.Sprintf("crossfade cutover start %s moves the user with his mail; --force sets the state where that is possible and copies nothing", c.Address)}
		}
		return err
	}
	if c.JSON {
		return a.printJSON(out)
	}
	fmt.Fprintf(a.stdout, "%s is %s (epoch %d)\n", clean(out.User.Address), out.User.State, out.User.Epoch)
	if out.Busy > 0 {
		fmt.Fprintf(a.stderr, "%s still under way to the side before\n", count(out.Busy, "delivery is", "deliveries are"))
	}
	return nil
}

type userHistoryCmd struct {
	Address string `arg:"" help:"Address of the user."`
	Limit   int    `default:"100" help:"At most so many changes."`
	jsonFlag
}

// Run lists the changes of a user.
func (c *userHistoryCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	changes, err := client.History(a.ctx, c.Address, c.Limit)
	if err != nil {
		return fmt.Errorf("reading the history of %s: %w", c.Address, err)
	}
	if c.JSON {
		return a.printJSON(changes)
	}
	t := newTable(a.stdout, "TIME", "EPOCH", "FROM", "TO", "BY", "REASON")
	for _, ch := range changes {
		reason := ch.Reason
		if ch.Forced {
			reason = strings.TrimSpace("(forced) " + reason)
		}
		t.row(moment(ch.At), fmt.Sprint(ch.Epoch), string(ch.From), string(ch.To), ch.By, reason)
	}
	return t.flush()
}
