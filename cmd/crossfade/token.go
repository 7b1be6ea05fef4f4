package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"crossfade/admin"
)

type tokenCmd struct {
	Add    tokenAddCmd    `cmd:"" help:"Make a token and print it, this once."`
	List   tokenListCmd   `cmd:"" help:"List the tokens; values are kept nowhere."`
	Revoke tokenRevokeCmd `cmd:"" help:"Take a token away."`
}

type tokenAddCmd struct {
	Name    string `arg:"" help:"Letters, digits and . _ @ -; it stands in histories and in the audit log."`
	Role    string `default:"read" enum:"read,operate,admin" help:"What it may do: read, operate or admin."`
	Expires string `placeholder:"WHEN" help:"A day (2026-12-31), a time (RFC 3339), or from now on (90d, 12h); never without it."`
	Reason  string `help:"For the audit log."`
	File    string `type:"path" placeholder:"FILE" help:"Add its hash to a token file instead of asking a relay; a running relay knows it after a reload."`
	jsonFlag
}

// Run makes a token. The token is all that stdout gets.
func (c *tokenAddCmd) Run(a *app) error {
	expires, err := expiry(c.Expires, time.Now())
	if err != nil {
		return usageError(err, "such as --expires 90d or --expires 2026-12-31")
	}
	made, err := c.make(a, expires)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(made)
	}
	fmt.Fprintln(a.stdout, made.Token)
	fmt.Fprintf(a.stderr, "the token %s (%s)%s: keep it now, it is not shown again\n", made.Name, made.Role, until(made.Expires))
	return nil
}

func (c *tokenAddCmd) make(a *app, expires time.Time) (admin.TokenMade, error) {
	if c.File == "" {
		client, err := a.client()
		if err != nil {
			return admin.TokenMade{}, err
		}
		defer client.Close()
		req := admin.TokenRequest{Name: c.Name, Role: admin.Role(c.Role), Reason: c.Reason}
		if !expires.IsZero() {
			req.Expires = expires.Format(time.RFC3339)
		}
		return client.AddToken(a.ctx, req)
	}
	t, err := admin.MakeToken(c.Name, admin.Role(c.Role))
	if err != nil {
		return admin.TokenMade{}, usageError(err, "")
	}
	t.Expires = expires
	if err := admin.AddTokenLine(c.File, t); err != nil {
		return admin.TokenMade{}, usageError(err, "each name stands once in a token file")
	}
	return admin.TokenMade{TokenInfo: admin.TokenInfo{Name: t.Name, Role: t.Role, From: "file", Expires: expires}, Token: t.Value()}, nil
}

func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " until " + moment(t)
}

// expiry reads a day, a time or a duration from now; the zero time when text is empty.
func expiry(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.DateOnly, text); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	var n, unit = 0, ""
	if _, err := fmt.Sscanf(text, "%d%s", &n, &unit); err == nil && n > 0 && n < 100_000 {
		switch unit {
		case "d":
			return now.Add(time.Duration(n) * 24 * time.Hour).UTC().Truncate(time.Second), nil
		case "h":
			return now.Add(time.Duration(n) * time.Hour).UTC().Truncate(time.Second), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no end of a token", text)
}

type tokenListCmd struct{ jsonFlag }

// Run lists the tokens.
func (c *tokenListCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.Tokens(a.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(list)
	}
	t := newTable(a.stdout, "NAME", "ROLE", "FROM", "CREATED", "BY", "EXPIRES")
	for _, k := range list {
		end := moment(k.Expires)
		if k.Expired {
			end += " (over)"
		}
		t.row(k.Name, string(k.Role), k.From, moment(k.Created), k.By, end)
	}
	return t.flush()
}

type tokenRevokeCmd struct {
	Names  []string `arg:"" name:"name" help:"Names of tokens."`
	Reason string   `help:"For the audit log."`
	jsonFlag
}

// Run revokes tokens.
func (c *tokenRevokeCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	defer client.Close()
	var done []string
	var last error
	for _, name := range c.Names {
		if err := client.RevokeToken(a.ctx, name, c.Reason); err != nil {
			last = fmt.Errorf("%s: %w", name, err)
			fmt.Fprintf(a.stderr, "%s\n", clean(last.Error()))
			continue
		}
		done = append(done, name)
		fmt.Fprintf(a.stderr, "%s is revoked\n", clean(name))
	}
	if c.JSON {
		if err := a.printJSON(map[string][]string{"revoked": append([]string{}, done...)}); err != nil {
			return err
		}
	}
	switch {
	case last == nil:
		return nil
	case len(done) == 0:
		return errors.New("nothing was revoked: " + strings.TrimSpace(last.Error()))
	}
	return partly("%d of %d tokens were revoked", len(done), len(c.Names))
}
