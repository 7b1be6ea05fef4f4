// Command crossfade carries a company from an old mail system to a new one
// without losing mail. It is the relay itself (serve), a demonstration that
// needs nothing but this program (demo), and the command line for operators,
// which speaks to a running relay over its HTTP API.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 partly done.
// Text for people goes to stderr where stdout is data.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(&app{ctx: ctx, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}, os.Args[1:])
	stop()
	os.Exit(code)
}

// commands is the grammar of the command line.
type commands struct {
	clientFlags

	Demo     demoCmd     `cmd:"" help:"A whole migration on this machine, nothing to install."`
	Serve    serveCmd    `cmd:"" help:"Run relay, backfill, cutover and admin API in one process."`
	Check    checkCmd    `cmd:"" help:"Validate the configuration, then probe store, backends, logins and DNS."`
	User     userCmd     `cmd:"" help:"The table of users: who is where."`
	Cutover  cutoverCmd  `cmd:"" help:"Move users to the new system."`
	Backfill backfillCmd `cmd:"" help:"Copy past mail from old to new."`
	Queue    queueCmd    `cmd:"" help:"Mail that was accepted and not yet delivered."`
	Node     nodeCmd     `cmd:"" help:"The nodes that share one Redis."`
	DNS      dnsCmd      `cmd:"" name:"dns" help:"The records of the domains: what is wrong for this phase, and who can still know the old ones."`
	Store    storeCmd    `cmd:"" help:"Move a store to Redis or back, and look whether it is whole."`
	Audit    auditCmd    `cmd:"" help:"What was accepted and where it is: an audit, signed, and its check."`
	Why      whyCmd      `cmd:"" help:"One message's whole life: accepted, routed, delivered, copied, where it is now."`
	Finish   finishCmd   `cmd:"" help:"What must be true before the old system may be switched off, and what to reset afterwards."`
	Token    tokenCmd    `cmd:"" help:"Who may use the admin API: make, list and revoke tokens."`
	Password passwordCmd `cmd:"" help:"Print the line of smtp.users_file for a name; the password is read from standard input."`
	Health   healthCmd   `cmd:"" help:"Ask a running relay whether it can take mail; for container health checks."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

// app is what a command may use of the world around it.
type app struct {
	ctx    context.Context // ends on SIGINT and SIGTERM
	stdout io.Writer       // data
	stderr io.Writer       // text for people
	getenv func(string) string
	flags  clientFlags
}

// run is main with its world passed in.
func run(a *app, args []string) int {
	var c commands
	parser, err := kong.New(&c,
		kong.Name("crossfade"),
		kong.Description("Mail relay, mailbox copy and cutover from an old mail system to a new one."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Writers(a.stdout, a.stderr),
	)
	if err != nil {
		fmt.Fprintf(a.stderr, "crossfade: the command line is built wrong: %v\n", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := parser.Parse(args)
	if err != nil {
		a.report(usageError(err, "see: "+helpFor(err)))
		return exitUsage
	}
	a.flags = c.clientFlags
	if err := kctx.Run(a); err != nil {
		a.report(err)
		return exitCode(err)
	}
	return exitDone
}

// helpFor names the help that belongs to a parse error.
func helpFor(err error) string {
	var perr *kong.ParseError
	if errors.As(err, &perr) && perr.Context != nil && perr.Context.Selected() != nil {
		return "crossfade " + perr.Context.Selected().Path() + " --help"
	}
	return "crossfade --help"
}
