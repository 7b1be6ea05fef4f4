package main

import (
	"log/slog"

	"crossfade/internal/demo"
)

type demoCmd struct {
	Users   int  `default:"12" help:"Users in the company; the last two stay on old."`
	Past    int  `default:"40" help:"Messages in each user's old mailbox."`
	Keep    bool `help:"Leave everything running to look around, until Ctrl-C."`
	Verbose bool `short:"v" help:"Show the relay's own log on stderr."`
}

// Run shows a migration; it fails when a message is missing, twice or altered.
func (c *demoCmd) Run(a *app) error {
	log := slog.New(slog.DiscardHandler)
	if c.Verbose {
		log = slog.New(slog.NewTextHandler(a.stderr, nil))
	}
	return demo.Run(a.ctx, demo.Options{Users: c.Users, PastMail: c.Past, Keep: c.Keep, Out: a.stdout, Log: log})
}
