package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"crossfade/admin"
	"crossfade/audit"
	"crossfade/backfill/certificate"
)

type auditCmd struct {
	Addresses []string `arg:"" optional:"" name:"address" help:"Users; none: all."`
	Out       string   `type:"path" placeholder:"DIR" help:"Write the signed result into a directory: audit.json, audit.html, and both for each user."`
	NoLook    bool     `help:"Do not look into the mailboxes: the journal and the queue alone."`
	Check     []string `type:"path" placeholder:"FILE" help:"Check signed files instead, of audits or of backfill verify; needs no relay. Again for several."`
	Settle    bool     `help:"Say of users whose mailbox was made anew that it is well as it is: what was lost in it is not asked for any more. Needs --reason."`
	Reason    string   `placeholder:"TEXT" help:"With --settle: why. It is in every audit from then on."`
	Log       []string `type:"path" placeholder:"FILE" help:"Check the log of what operators did (audit.jsonl) instead, and say the first line that is not what was written; needs no relay. Again for files that were put aside, the oldest first."`
	Head      string   `placeholder:"NUMBER:SHA256" help:"With --log: a line that was noted elsewhere and has to be there."`
	Key       string   `placeholder:"PUB" help:"With --check and --log: the public key that has to have signed."`
	PublicKey bool     `help:"Print the public key of the installation."`
	jsonFlag
}

// Run makes an audit, or checks one.
func (c *auditCmd) Run(a *app) error {
	switch {
	case len(c.Log) > 0 && (len(c.Check) > 0 || len(c.Addresses) > 0 || c.PublicKey):
		return usageError(errors.New("audit: --log needs files only"), "leave addresses, --check and --public-key out")
	case len(c.Log) > 0:
		return c.checkLog(a)
	case c.Head != "":
		return usageError(errors.New("audit: --head is for --log"), "")
	case len(c.Check) > 0 && (len(c.Addresses) > 0 || c.PublicKey):
		return usageError(errors.New("audit: --check needs files only"), "leave addresses and --public-key out")
	case len(c.Check) > 0:
		return c.check(a)
	case c.Key != "":
		return usageError(errors.New("audit: --key is for --check and --log"), "--public-key prints the key of this installation")
	case c.Settle != (c.Reason != "") || c.Settle && len(c.Addresses) == 0:
		return usageError(errors.New("audit: --settle needs users and --reason"), "as in: crossfade audit --settle --reason 'restored from the backup of Monday' ann@example.org")
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	if c.PublicKey {
		key, err := client.AuditKey(a.ctx)
		if err != nil {
			return fmt.Errorf("asking for the public key: %w", err)
		}
		fmt.Fprintln(a.stdout, key)
		return nil
	}
	if c.Settle {
		return c.settle(a, client)
	}
	run, err := client.StartAudit(a.ctx, audit.Request{Users: c.Addresses, Mailboxes: !c.NoLook})
	if err != nil {
		return fmt.Errorf("beginning an audit: %w", err)
	}
	if err := c.wait(a, client, run.ID); err != nil {
		return err
	}
	doc, err := client.LastAudit(a.ctx, "")
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	if doc.Run != run.ID {
		return &commandError{code: exitFailed, err: errors.New("somebody else made another audit meanwhile, and this one's result is replaced"), hint: "ask again"}
	}
	if c.Out != "" {
		if err := c.write(a, client, doc); err != nil {
			return err
		}
	}
	if c.JSON {
		err = a.printJSON(doc)
	} else {
		err = a.printAudit(doc)
	}
	if err != nil || doc.Clean {
		return err
	}
	return &commandError{code: exitFailed, err: errors.New("the audit is not clean: see above"), hint: "crossfade why QUEUE-ID tells a message's whole life"}
}

// settle takes the operator's word for each of the users.
func (c *auditCmd) settle(a *app, client *admin.Client) error {
	r, all := results{app: a}, []audit.Settled{}
	for _, user := range c.Addresses {
		said, err := client.SettleMailbox(a.ctx, user, c.Reason)
		if err == nil {
			all = append(all, said)
		}
		r.note(user, "settled: the next audit does not ask for what was lost there", err)
	}
	if c.JSON {
		if err := a.printJSON(all); err != nil {
			return err
		}
	}
	return r.err("settled")
}

// wait shows how far the audit is until it ends.
func (c *auditCmd) wait(a *app, client *admin.Client, run string) error {
	p := newProgress(a.stderr)
	defer p.end()
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	step := ""
	for {
		st, err := client.AuditStatus(a.ctx)
		if err != nil {
			return fmt.Errorf("asking how far the audit is: %w", err)
		}
		if st.ID != run {
			return nil // it has ended, and another one was begun: the document says whose it is
		}
		if !st.Running {
			if st.Error != "" {
				return fmt.Errorf("the audit did not come to its end: %s", st.Error)
			}
			return nil
		}
		text := fmt.Sprintf("%s: %d", st.Progress.Step, st.Progress.Done)
		if st.Progress.Total > 0 {
			text = fmt.Sprintf("%s of %d", text, st.Progress.Total)
		}
		p.bar(text)
		if st.Progress.Step != step {
			step = st.Progress.Step
			p.line("reading: " + step)
		}
		select {
		case <-a.ctx.Done():
			return a.ctx.Err()
		case <-tick.C:
		}
	}
}

// write puts the documents into a directory.
func (c *auditCmd) write(a *app, client *admin.Client, doc *audit.Document) error {
	if err := os.MkdirAll(c.Out, 0o700); err != nil {
		return fmt.Errorf("writing the audit: %w", err)
	}
	if err := writeAudit(doc, c.Out, "audit"); err != nil {
		return err
	}
	written := 0
	err := client.EachAudit(a.ctx, doc.Run, func(one *audit.Document) error {
		user := one.Users[0].User
		if user == "" {
			return nil
		}
		written++
		return writeAudit(one, c.Out, certificate.FileName(user))
	})
	if err != nil {
		return fmt.Errorf("writing what the audit says of each user, %d of which are written: %w", written, err)
	}
	fmt.Fprintf(a.stderr, "the audit and %s written to %s\n", count(written, "file of a user", "files of users"), c.Out)
	return nil
}

func writeAudit(doc *audit.Document, dir, base string) error {
	for name, write := range map[string]func(io.Writer) error{
		base + ".json": doc.Write,
		base + ".html": func(w io.Writer) error { return doc.WritePage(w, base+".json") },
	} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err == nil {
			err = errors.Join(write(f), f.Close())
		}
		if err != nil {
			return fmt.Errorf("writing the audit: %w", err)
		}
	}
	return nil
}

func (a *app) printAudit(d *audit.Document) error {
	t := newTable(a.stdout, "USER", "STATE", "ACCEPTED", "FOUND", "DELIVERED", "SWEPT", "LEFT", "BOUNCED", "QUEUED", "PARKED", "REMOVED", "MISSING", "MAILBOX")
	row := func(name string, x *audit.Account) {
		look := ""
		if x.Look != nil {
			look = x.Look.String()
		}
		t.row(name, x.State, fmt.Sprint(x.Accepted), fmt.Sprint(x.Found), fmt.Sprint(x.Delivered), fmt.Sprint(x.Swept), fmt.Sprint(x.Left), fmt.Sprint(x.Bounced),
			fmt.Sprint(x.Queued), fmt.Sprint(x.Parked), fmt.Sprint(x.Removed), fmt.Sprint(x.Missing), look)
	}
	for i := range d.Users {
		name := d.Users[i].User
		if name == "" {
			name = "(outside)"
		}
		row(name, &d.Users[i])
	}
	row("TOTAL", &d.Total)
	if err := t.flush(); err != nil {
		return err
	}
	for i := range d.Users {
		for n, x := range d.Users[i].All() {
			if n == problemsShown {
				fmt.Fprintf(a.stdout, "  %s: more (--json and --out have all)\n", clean(d.Users[i].User))
				break
			}
			fmt.Fprintf(a.stdout, "  %s %s: %s: %s\n", clean(d.Users[i].User), x.ID, x.Kind, clean(x.Text))
		}
	}
	if d.Clean {
		fmt.Fprintln(a.stdout, "clean: all that was accepted is accounted for")
	} else {
		fmt.Fprintln(a.stdout, "NOT CLEAN: see above and below, and docs/audit.md for what each word means")
	}
	for _, g := range d.Journal.Gaps {
		fmt.Fprintf(a.stdout, "the journal is not whole: %s\n", clean(g.Text))
	}
	for _, note := range append(d.Journal.Damaged, d.Notes...) {
		fmt.Fprintln(a.stderr, "note: "+clean(note))
	}
	fmt.Fprintf(a.stderr, "journal of %s to %s, signed with %s\n", moment(d.Journal.From), moment(d.Journal.To), d.Signature.Key)
	return nil
}

// checkedFile is what --check says of one file.
type checkedFile struct {
	File  string   `json:"file"`
	OK    bool     `json:"ok"`
	Key   string   `json:"key,omitempty"`
	Wrong []string `json:"wrong,omitempty"`
}

// check says of files whether they are what was signed.
func (c *auditCmd) check(a *app) error {
	r, all := results{app: a}, []checkedFile{}
	for _, name := range c.Check {
		data, err := os.ReadFile(name)
		if err != nil {
			return usageError(fmt.Errorf("cannot read the file: %w", err), "")
		}
		out := checkedFile{File: name}
		result, err := audit.CheckFile(data, c.Key)
		switch {
		case err != nil:
			out.Wrong = []string{err.Error()}
		default:
			out.OK, out.Key, out.Wrong = result.OK(), result.Key, result.Wrong
		}
		all = append(all, out)
		if !c.JSON && out.OK {
			fmt.Fprintf(a.stdout, "%s: %s parts are what was signed with %s\n", clean(name), fmt.Sprint(result.Parts), clean(out.Key))
			if c.Key == "" {
				fmt.Fprintln(a.stderr, "whether that key is the installation's has to be known from elsewhere: --key PUB compares it")
			}
		}
		err = nil
		if !out.OK {
			for _, w := range out.Wrong {
				fmt.Fprintf(a.stderr, "%s: %s\n", clean(name), clean(w))
			}
			err = errors.New("it is not what was signed")
		}
		r.note(name, "", err)
	}
	if c.JSON {
		if err := a.printJSON(all); err != nil {
			return err
		}
	}
	return r.err("what was signed")
}
