package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crossfade/admin"
	"crossfade/mail"
	"crossfade/queue"
)

type queueCmd struct {
	List    queueListCmd    `cmd:"" help:"List queued messages."`
	Show    queueShowCmd    `cmd:"" help:"Show queued messages with their recipients and last replies."`
	Retry   queueRetryCmd   `cmd:"" help:"Try again now."`
	Hold    queueHoldCmd    `cmd:"" help:"Keep until released."`
	Release queueReleaseCmd `cmd:"" help:"Let mail held by an operator go on; for parked mail use retry."`
	Park    queueParkCmd    `cmd:"" help:"Put aside."`
	Reroute queueRerouteCmd `cmd:"" help:"Send to the side given, until the user's state changes."`
	Delete  queueDeleteCmd  `cmd:"" help:"Remove for good, without a bounce."`
	Export  queueExportCmd  `cmd:"" help:"Write messages to files, or one to standard output."`
}

// queueFilter are the flags that select queued mail.
type queueFilter struct {
	State  string    `enum:",queued,held,leased,sending,parked" default:"" help:"Only recipients in this state."`
	Route  string    `enum:",old,new,out" default:"" help:"Only what would go this way now."`
	User   string    `help:"Only mail for this user."`
	Rcpt   string    `help:"Only recipients that contain this."`
	From   string    `help:"Only senders that contain this; <> is the null sender."`
	Before time.Time `help:"Only what was received before (RFC 3339)." format:"2006-01-02T15:04:05Z07:00"`
	Reply  string    `help:"Only recipients whose last reply contains this."`
}

func (f queueFilter) filter(ids []string) admin.QueueFilter {
	q := admin.QueueFilter{State: queue.State(f.State), Route: mail.Route(f.Route), User: f.User, Rcpt: f.Rcpt, From: f.From, Before: f.Before, Reason: f.Reply}
	for _, id := range ids {
		q.IDs = append(q.IDs, mail.ID(id))
	}
	return q
}

type queueListCmd struct {
	queueFilter
	Limit int `help:"At most so many messages; 0 is all." default:"0"`
	jsonFlag
}

// Run lists messages, one line for each recipient.
func (c *queueListCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	all := []queue.Entry{}
	t := newTable(a.stdout)
	if !c.JSON {
		t.row("ID", "AGE", "SIZE", "FROM", "TO", "STATE", "ROUTE", "DUE", "TRIES", "LAST REPLY")
	}
	err = pages(c.Limit, func(cursor string, limit int) (string, int, error) {
		p, err := client.Queue(a.ctx, c.filter(nil), cursor, limit)
		if c.JSON {
			all = append(all, p.Messages...)
			return p.Next, len(p.Messages), err
		}
		for _, e := range p.Messages {
			for _, r := range e.Rcpts {
				t.row(string(e.Envelope.ID), age(e.Envelope.Received), size(e.Envelope.Size), clip(sender(e), 40), clip(r.Addr.String(), 40),
					rcptState(r), string(r.Route), moment(r.Due), fmt.Sprint(r.Attempts), clip(r.LastReply, 60))
			}
		}
		return p.Next, len(p.Messages), err
	})
	if err != nil {
		return fmt.Errorf("listing the queue: %w", err)
	}
	if c.JSON {
		return a.printJSON(all)
	}
	return t.flush()
}

func sender(e queue.Entry) string {
	if e.Envelope.From.IsNull() {
		return "<>"
	}
	return e.Envelope.From.String()
}

func rcptState(r queue.Rcpt) string {
	if r.State == queue.Held && r.HeldBy != "" {
		return "held by " + r.HeldBy
	}
	return string(r.State)
}

// age prints how long ago t is.
func age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := max(0, time.Since(t))
	switch {
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

type queueShowCmd struct {
	IDs []string `arg:"" name:"id" help:"Ids of messages."`
	jsonFlag
}

// Run shows all that is known of messages.
func (c *queueShowCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	r := results{app: a}
	all := []queue.Entry{}
	for i, id := range c.IDs {
		e, err := client.Message(a.ctx, mail.ID(id))
		if fatal(a, err) {
			return fmt.Errorf("showing the message %s: %w", id, err)
		}
		r.note(id, "", err)
		if err != nil {
			continue
		}
		all = append(all, e)
		if c.JSON {
			continue
		}
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		if err := a.showEntry(e); err != nil {
			return err
		}
	}
	if c.JSON {
		if err := a.printJSON(all); err != nil {
			return err
		}
	}
	return r.err("shown")
}

func (a *app) showEntry(e queue.Entry) error {
	t := newTable(a.stdout)
	field := func(name, value string) {
		if value != "" {
			t.row(name+":", value)
		}
	}
	env := e.Envelope
	field("id", string(env.ID))
	field("from", sender(e))
	field("received", moment(env.Received))
	field("size", size(env.Size))
	field("message-id", env.MessageID)
	client := env.Client.Helo
	if env.Client.Addr.IsValid() {
		client += " [" + env.Client.Addr.String() + "]"
	}
	field("client", strings.TrimSpace(client))
	field("tls", env.Client.TLS)
	field("envelope id", env.EnvID)
	for _, r := range e.Rcpts {
		field("to", r.Addr.String())
		if !r.Orig.IsNull() {
			field("  as", r.Orig.String())
		}
		field("  state", rcptState(r))
		field("  user", r.User)
		route := string(r.Route)
		if r.Forced {
			route += " (forced)"
		}
		field("  route", route)
		field("  due", moment(r.Due))
		field("  since", moment(r.Since))
		field("  attempts", fmt.Sprint(r.Attempts))
		if r.Crashes > 0 {
			field("  crashes", fmt.Sprint(r.Crashes))
		}
		if !r.Doubt.IsZero() {
			field("  in doubt", fmt.Sprintf("since %s: sent over %s without a recorded reply, it may be there", moment(r.Doubt.Since), r.Doubt.Route))
		}
		if len(r.Unknown) > 0 {
			field("  unknown on", fmt.Sprint(r.Unknown))
		}
		field("  last reply", r.LastReply)
	}
	return t.flush()
}

// queueSelect names mail by id or by filter, and says why.
type queueSelect struct {
	IDs []string `arg:"" optional:"" name:"id" help:"Ids of messages."`
	queueFilter
	All    bool   `help:"All that is queued; needed when neither ids nor a filter are given."`
	Reason string `help:"Why, for the audit log."`
	jsonFlag
}

type (
	queueRetryCmd   struct{ queueSelect }
	queueHoldCmd    struct{ queueSelect }
	queueReleaseCmd struct{ queueSelect }
	queueParkCmd    struct{ queueSelect }
	queueDeleteCmd  struct{ queueSelect }
	queueRerouteCmd struct {
		To string `enum:"old,new" required:"" help:"Where to: old or new."`
		queueSelect
	}
)

// Run tries again now.
func (c *queueRetryCmd) Run(a *app) error { return c.apply(a, queue.DoRetry, "") }

// Run holds.
func (c *queueHoldCmd) Run(a *app) error { return c.apply(a, queue.DoHold, "") }

// Run releases.
func (c *queueReleaseCmd) Run(a *app) error { return c.apply(a, queue.DoRelease, "") }

// Run parks.
func (c *queueParkCmd) Run(a *app) error { return c.apply(a, queue.DoPark, "") }

// Run deletes.
func (c *queueDeleteCmd) Run(a *app) error { return c.apply(a, queue.DoDelete, "") }

// Run re-routes.
func (c *queueRerouteCmd) Run(a *app) error { return c.apply(a, queue.DoReroute, mail.Route(c.To)) }

// apply does the verb to what was selected. Deliveries that are under way
// cannot be changed: then the work is partly done.
func (s *queueSelect) apply(a *app, verb queue.Verb, route mail.Route) error {
	f := s.filter(s.IDs)
	if f.Empty() && !s.All {
		return usageError(fmt.Errorf("queue %s: nothing was selected", verb), "give ids, a filter such as --user ADDRESS, or --all")
	}
	if !f.Empty() && s.All {
		return usageError(fmt.Errorf("queue %s: --all stands alone", verb), "leave --all out, or the ids and the filter")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	out, err := s.send(a, client, f, verb, route)
	if err != nil {
		return err
	}
	if s.JSON {
		err = a.printJSON(out)
	} else {
		fmt.Fprintf(a.stdout, "%s: %s changed\n", verb, count(out.Changed, "recipient", "recipients"))
	}
	if err == nil && out.Busy > 0 {
		return partly("queue %s: %s being sent just now and not changed: try again", verb, count(out.Busy, "recipient is", "recipients are"))
	}
	return err
}

// send asks for the change: one message by its own endpoint, so that an id
// that is unknown is an error.
func (s *queueSelect) send(a *app, client *admin.Client, f admin.QueueFilter, verb queue.Verb, route mail.Route) (queue.Applied, error) {
	action := admin.QueueAction{Route: route, Reason: s.Reason}
	if alone := s.filter(nil); len(f.IDs) == 1 && alone.Empty() {
		out, err := client.Act(a.ctx, f.IDs[0], verb, action)
		if err != nil {
			err = fmt.Errorf("queue %s %s: %w", verb, f.IDs[0], err)
		}
		return out, err
	}
	out, err := client.Apply(a.ctx, admin.QueueApply{Filter: f, Action: verb, QueueAction: action, All: s.All})
	if err != nil {
		err = fmt.Errorf("queue %s: %w", verb, err)
	}
	return out, err
}

type queueExportCmd struct {
	IDs []string `arg:"" optional:"" name:"id" help:"Ids of messages."`
	queueFilter
	All bool   `help:"All that is queued; needed when neither ids nor a filter are given."`
	Dir string `short:"d" placeholder:"DIR" help:"Write ID.eml files into this directory; without it, one message goes to standard output."`
}

// Run exports messages. A file appears whole or not at all.
func (c *queueExportCmd) Run(a *app) error {
	f := c.filter(c.IDs)
	if f.Empty() && !c.All {
		return usageError(errors.New("queue export: nothing was selected"), "give ids, a filter such as --user ADDRESS, or --all")
	}
	if c.Dir == "" && len(c.IDs) != 1 {
		return usageError(errors.New("queue export: only one message can go to standard output"), "give --dir DIR")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	if c.Dir == "" {
		return export(a, client, mail.ID(c.IDs[0]), a.stdout)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("queue export: %w", err)
	}
	r := results{app: a}
	one := func(id mail.ID) error {
		err := exportFile(a, client, id, c.Dir)
		if fatal(a, err) {
			return err
		}
		r.note(string(id), "exported", err)
		return nil
	}
	if alone := c.filter(nil); len(c.IDs) > 0 && alone.Empty() {
		for _, id := range f.IDs {
			if err := one(id); err != nil {
				return err
			}
		}
		return r.err("exported")
	}
	err = pages(0, func(cursor string, limit int) (string, int, error) {
		p, err := client.Queue(a.ctx, f, cursor, limit)
		for _, e := range p.Messages {
			if err := one(e.Envelope.ID); err != nil {
				return "", 0, err
			}
		}
		return p.Next, len(p.Messages), err
	})
	if err != nil {
		return fmt.Errorf("queue export: %w", err)
	}
	return r.err("exported")
}

func export(a *app, client *admin.Client, id mail.ID, to io.Writer) error {
	from, err := client.Export(a.ctx, id)
	if err != nil {
		return fmt.Errorf("queue export %s: %w", id, err)
	}
	defer from.Close()
	if _, err := io.Copy(to, from); err != nil {
		return fmt.Errorf("queue export %s: the message is damaged or was cut off: %w", id, err)
	}
	return nil
}

func exportFile(a *app, client *admin.Client, id mail.ID, dir string) error {
	if !id.Valid() { // it becomes a file name
		return &admin.Problem{Type: admin.ProblemNoMessage, Title: "no such message", Detail: fmt.Sprintf("%q is no id of a message", id)}
	}
	f, err := os.CreateTemp(dir, ".export-*")
	if err != nil {
		return fmt.Errorf("queue export: %w", err)
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	err = export(a, client, id, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, string(id)+".eml")); err != nil {
		return fmt.Errorf("queue export: %w", err)
	}
	return nil
}
