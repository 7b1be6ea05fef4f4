package main

import (
	"fmt"
	"strings"

	"crossfade/audit"
	"crossfade/backfill"
)

type whyCmd struct {
	ID     string `arg:"" name:"id" help:"Queue id, or Message-ID with or without its angle brackets."`
	NoLook bool   `help:"Do not look into the mailboxes."`
	jsonFlag
}

// Run tells a message's whole life.
func (c *whyCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	lives, err := client.Why(a.ctx, c.ID, !c.NoLook)
	if err != nil {
		return err
	}
	if c.JSON {
		return a.printJSON(lives)
	}
	for i := range lives {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		a.printLife(&lives[i])
	}
	return nil
}

func (a *app) printLife(l *audit.Life) {
	say := func(format string, args ...any) { fmt.Fprintln(a.stdout, clean(fmt.Sprintf(format, args...))) }
	say("message %s", l.ID)
	when := "before the journal begins"
	if !l.Accepted.IsZero() {
		when = moment(l.Accepted)
	}
	say("  accepted %s from <%s>, %s", when, l.From, size(l.Size))
	for _, x := range [][2]string{{"Message-ID", l.MessageID}, {"client", l.Client}, {"notice about", string(l.NoticeOf)}, {"withdrawn", l.Withdrawn}} {
		if x[1] != "" {
			say("  %s %s", x[0], x[1])
		}
	}
	for _, d := range l.Damaged {
		say("  more may have happened: %s", d)
	}
	for i := range l.Recipients {
		a.printLifeRcpt(&l.Recipients[i])
	}
}

func (a *app) printLifeRcpt(r *audit.LifeRcpt) {
	say := func(format string, args ...any) { fmt.Fprintln(a.stdout, clean(fmt.Sprintf(format, args...))) }
	name := r.To
	if r.Orig != "" {
		name += " (written to " + r.Orig + ")"
	}
	if r.State != "" {
		name += ", " + r.State
	}
	say("to %s: %s", name, r.Now)
	for i := range r.Steps {
		say("  %s", stepText(&r.Steps[i]))
	}
	switch {
	case r.LookError != "":
		say("  mailboxes: not looked at: %s", r.LookError)
	case r.Looked:
		say("  on old: %s", placesText(r.Old))
		say("  on new: %s", placesText(r.New))
	}
}

func stepText(s *audit.Step) string {
	text := moment(s.At) + " " + string(s.Kind)
	for _, x := range []struct {
		cond bool
		text string
	}{
		{s.Copy, " (second copy)"}, {s.Route != "", " " + string(s.Route)}, {s.Attempt > 0, fmt.Sprintf(", attempt %d", s.Attempt)},
		{s.State != "", fmt.Sprintf(", the user was %s (epoch %d)", s.State, s.Epoch)}, {s.By != "", ", by " + s.By}, {s.Reason != "", ": " + s.Reason},
		{s.Reply != "", ": " + s.Reply}, {s.RemoteID != "", " [there: " + s.RemoteID + "]"}, {s.Notice != "", ", notice " + string(s.Notice)},
		{!s.Next.IsZero(), ", again " + moment(s.Next)},
	} {
		if x.cond {
			text += x.text
		}
	}
	return text
}

func placesText(places []backfill.Place) string {
	if len(places) == 0 {
		return "not there"
	}
	var parts []string
	for _, p := range places {
		text := fmt.Sprintf("%s, UID %d of UIDVALIDITY %d", p.Folder, p.UID, p.Validity)
		if p.Paired {
			text += ", in a pair of the backfill's ledger"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}
