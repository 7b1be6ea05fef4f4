package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"crossfade/dnswatch"
	"crossfade/internal/daemon"
)

type dnsCmd struct {
	Check dnsCheckCmd `cmd:"" help:"Look at every record that decides whether mail arrives in a phase, and say what to change."`
	Watch dnsWatchCmd `cmd:"" help:"Show what the relay's watch has seen: who can still know the old records, and when the window may close."`
}

type dnsCheckCmd struct {
	jsonFlag
	Phase string `enum:"before-relay,relay,before-new,after," default:"" placeholder:"PHASE" help:"before-relay (the MX is about to move to the relay), relay, before-new (it is about to move to new) or after; empty: where the MX leads says it."`
	Quiet bool   `help:"Leave out what is as it should be."`
}

// pastTime is how long the running relay may take to say what it has seen.
const pastTime = 5 * time.Second

// Run asks the servers itself, with the configuration file. Exit 0: nothing to
// do; 3: there are warnings; 1: something stops mail.
func (c *dnsCheckCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	past, why := a.pastDNS()
	report, err := daemon.CheckDNS(a.ctx, cfg, dnswatch.Phase(c.Phase), past)
	if err != nil {
		return fmt.Errorf("looking at the DNS: %w", err)
	}
	if c.JSON {
		err = a.printJSON(report)
	} else {
		c.print(a, report, why)
	}
	if err != nil {
		return err
	}
	stop, warn := report.Count(dnswatch.Stop), report.Count(dnswatch.Warn)
	switch {
	case stop > 0:
		return fmt.Errorf("mail is lost or refused in the phase %s as the records are: %s, %s: see above", report.Phase, count(stop, "finding", "findings"), count(warn, "warning", "warnings"))
	case warn > 0:
		return partly("%s in the phase %s: see above", count(warn, "warning", "warnings"), report.Phase)
	}
	return nil
}

// pastDNS is what the watch of the running relay has seen; nil, and why, when
// nobody tells.
func (a *app) pastDNS() (*dnswatch.State, string) {
	client, err := a.client()
	if err != nil {
		return nil, err.Error()
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(a.ctx, pastTime)
	defer cancel()
	st, err := client.DNS(ctx)
	switch {
	case err != nil:
		return nil, err.Error()
	case !st.Watching:
		return nil, "the relay does not watch the DNS (dns.watch)"
	}
	return st.State, ""
}

func (c *dnsCheckCmd) print(a *app, r dnswatch.Report, why string) {
	guessed := ""
	if r.Guessed {
		guessed = " (by where the MX leads; --phase names another)"
	}
	fmt.Fprintf(a.stderr, "phase %s%s, asked for %s\n", r.Phase, guessed, r.Took.Round(time.Millisecond))
	if why != "" {
		fmt.Fprintf(a.stderr, "which TTLs there were before is not known: %s\n", clean(why))
	}
	for _, f := range r.Findings {
		if c.Quiet && f.Severity == dnswatch.OK {
			continue
		}
		head := strings.TrimSpace(f.Domain + " " + f.Check)
		if f.Server != "" {
			head += " (" + f.Server + ")"
		}
		fmt.Fprintf(a.stdout, "%-4s  %s: %s\n", f.Severity, clean(head), clean(f.Seen))
		if f.Why != "" {
			fmt.Fprintf(a.stdout, "      why: %s\n", clean(f.Why))
		}
		for i, line := range strings.Split(f.Change, "\n") {
			switch {
			case line == "":
			case i == 0:
				fmt.Fprintf(a.stdout, "      do:  %s\n", clean(line))
			default:
				fmt.Fprintf(a.stdout, "           %s\n", clean(line))
			}
		}
	}
}

type dnsWatchCmd struct {
	jsonFlag
	Follow bool          `help:"Go on until the window may close, showing each change."`
	Every  time.Duration `help:"With --follow: time between two looks." default:"30s"`
}

// Run shows what the relay has seen. Exit 0: the window may close; 3: not yet.
func (c *dnsWatchCmd) Run(a *app) error {
	if c.Every <= 0 {
		return usageError(errors.New("--every has to be longer than nothing"), "")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	said := ""
	for {
		st, err := client.DNS(a.ctx)
		if err != nil {
			return fmt.Errorf("asking the relay for the DNS: %w", err)
		}
		if !st.Watching {
			return &commandError{code: exitFailed, err: errors.New(st.Text), hint: "set dns.watch: true and start the relay anew; `crossfade dns check` looks at this moment"}
		}
		if now := fmt.Sprint(st.Text, st.Lines, st.Stragglers); now != said {
			said = now
			if err := c.show(a, st); err != nil {
				return err
			}
		}
		switch {
		case st.MayClose:
			return nil
		case !c.Follow:
			return partly("the window may not close yet: %s", st.Text)
		}
		select {
		case <-a.ctx.Done():
			return a.ctx.Err()
		case <-time.After(c.Every):
		}
	}
}

func (c *dnsWatchCmd) show(a *app, st dnswatch.Status) error {
	if c.JSON {
		return a.printJSON(st)
	}
	fmt.Fprintf(a.stdout, "%s\n", clean(st.Text))
	if !st.Closes.IsZero() && !st.MayClose {
		fmt.Fprintf(a.stdout, "the window may close at %s\n", moment(st.Closes))
	}
	if st.Error != "" {
		fmt.Fprintf(a.stdout, "the last look failed: %s\n", clean(st.Error))
	}
	t := newTable(a.stdout, "DOMAIN", "WHAT", "UNTIL", "")
	for _, l := range st.Lines {
		t.row(l.Domain, l.What, moment(l.Until), l.Text)
	}
	if err := t.flush(); err != nil {
		return err
	}
	if err := showServers(a, st.Servers); err != nil {
		return err
	}
	if len(st.Stragglers) == 0 {
		return nil
	}
	t = newTable(a.stdout, "DAY", "STRAGGLERS", "SOURCE")
	for _, s := range st.Stragglers {
		t.row(s.Day, fmt.Sprint(s.Messages), s.Source)
	}
	return t.flush()
}

func showServers(a *app, servers []dnswatch.ServerStatus) error {
	t := newTable(a.stdout, "SERVER", "KIND", "ANSWERED", "FAILED", "PROBLEM")
	for _, s := range servers {
		kind := "resolver"
		if s.Authoritative {
			kind = "authoritative"
		}
		t.row(s.Name, kind, fmt.Sprint(s.Answered), fmt.Sprint(s.Failed), s.Problem)
	}
	return t.flush()
}
