package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"crossfade/admin"
	"crossfade/backfill"
	"crossfade/backfill/certificate"
)

type backfillVerifyCmd struct {
	named  `embed:""`
	Out    string   `default:"certificates" type:"path" placeholder:"DIR" help:"Directory for the certificates, made when it is missing (${default})."`
	NoOut  bool     `help:"Write no certificates."`
	Check  []string `type:"path" placeholder:"FILE" help:"Compare the mailbox on new with a certificate instead; again for several."`
	AtOnce int      `default:"2" help:"Users compared at once (${default}). Each is read whole, on both servers."`
	jsonFlag
}

// Run compares mailboxes. It fails when anything is missing.
func (c *backfillVerifyCmd) Run(a *app) error {
	if len(c.Check) > 0 {
		if len(c.Addresses) > 0 || c.File != "" || c.Wave != "" {
			return usageError(errors.New("backfill verify: --check names the user already, in the certificate"), "leave the addresses out")
		}
		return c.check(a)
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	addresses, err := c.users(a, client, "backfill verify")
	if err != nil {
		return err
	}
	v := &verifying{cmd: c, app: a, client: client, results: results{app: a}, all: []backfill.Verification{}}
	if err := v.begin(); err != nil {
		return err
	}
	q := &asking[verified]{app: a, doing: "compared", atOnce: c.AtOnce, ask: v.ask, each: v.each}
	if err := q.run(addresses); err != nil {
		return err
	}
	return v.finish()
}

// verified is what is known of one user.
type verified struct {
	admin.Verified
	state string
}

// verifying compares users and writes down what comes out.
type verifying struct {
	cmd     *backfillVerifyCmd
	app     *app
	client  *admin.Client
	results results
	run     *certificate.Run // nil: nothing is written
	all     []backfill.Verification
}

func (v *verifying) begin() error {
	if v.cmd.NoOut {
		return nil
	}
	stats, err := v.client.Stats(v.app.ctx)
	if err != nil {
		return fmt.Errorf("asking the relay for its version: %w", err)
	}
	v.run = &certificate.Run{Dir: v.cmd.Out, By: certificate.Maker{Tool: readBuild().Version, Relay: stats.Version, Now: time.Now()}}
	return nil
}

func (v *verifying) ask(ctx context.Context, address string) (out verified, err error) {
	if out.Verified, err = v.client.Verify(ctx, address); err != nil {
		return out, err
	}
	// For the reader: a user in no table has none.
	if u, err := v.client.User(ctx, address); err == nil {
		out.state = string(u.State)
	}
	return out, nil
}

func (v *verifying) each(address string, x verified, err error) error {
	if fatal(v.app, err) {
		return fmt.Errorf("verifying %s: %w", address, err)
	}
	if err != nil {
		v.results.note(address, "", err)
		if v.run != nil {
			v.run.Fail(address, err)
		}
		return nil
	}
	page := ""
	if v.run != nil {
		v.run.By.Now, v.run.By.Signature = time.Now(), x.Signature
		if _, page, err = v.run.Add(x.Verification, x.state); err != nil {
			return err
		}
	}
	if !x.OK() {
		err = fmt.Errorf("%s missing on new", count(x.Missing, "message is", "messages are"))
	}
	v.results.note(address, "", err)
	if v.cmd.JSON {
		x.Holds = nil // keys of messages, for the certificate
		v.all = append(v.all, x.Verification)
		return nil
	}
	return v.app.printVerification(x.Verification, page)
}

func (v *verifying) finish() error {
	if v.run != nil {
		s, err := v.run.Finish()
		if err != nil {
			return err
		}
		fmt.Fprintf(v.app.stderr, "%s written to %s\n", count(s.Verified, "certificate", "certificates"), v.cmd.Out)
	}
	if v.cmd.JSON {
		if err := v.app.printJSON(v.all); err != nil {
			return err
		}
	}
	return v.results.err("found complete")
}

// problemsShown bounds the lines for one class of problems: certificates and --json
// have all.
const problemsShown = 10

func (a *app) printVerification(v backfill.Verification, page string) error {
	fmt.Fprintf(a.stdout, "%s, compared %s\n", clean(v.User), moment(v.At))
	t := newTable(a.stdout, "FOLDER", "ON NEW", "OLD", "NEW", "MATCHED", "MISSING", "OTHERWISE")
	for _, f := range v.Folders {
		t.row(f.Source, f.Dest, fmt.Sprint(f.OnSource), fmt.Sprint(f.OnDest), fmt.Sprint(f.Matched), fmt.Sprint(len(f.Missing)), otherwise(f))
	}
	if err := t.flush(); err != nil {
		return err
	}
	printProblems(a.stdout, v.Problems)
	if page != "" {
		fmt.Fprintf(a.stdout, "  certificate: %s\n", clean(page))
	}
	return nil
}

// printProblems prints problems, a few of each class.
func printProblems(w io.Writer, problems []backfill.Problem) {
	printed, left := map[string]int{}, map[string]int{}
	for _, p := range problems {
		if printed[p.Class]++; printed[p.Class] > problemsShown {
			left[p.Class] += max(p.Count, 1)
			continue
		}
		where := ""
		if p.Folder != "" {
			where = clean(p.Folder) + uidsOf(p) + ": "
		}
		fmt.Fprintf(w, "  %s%s: %s\n", where, clean(p.Class), clean(p.Text))
	}
	for _, class := range backfill.Classes() {
		if left[class] > 0 {
			fmt.Fprintf(w, "  %s: %d more\n", class, left[class])
		}
	}
}

// otherwise names what became of messages that are neither matched as they are
// nor missing.
func otherwise(f backfill.FolderCheck) string {
	text := ""
	add := func(n int, class string) {
		if n > 0 {
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("%d %s", n, class)
		}
	}
	for _, class := range []string{backfill.ClassAltered, backfill.ClassMoved, backfill.ClassDeleted} {
		add(f.Classes[class], class)
	}
	add(f.Wrapped, backfill.ClassWrapped)
	add(f.Filtered, backfill.ClassFiltered)
	add(f.Twice, "twice")
	return text
}

func uidsOf(p backfill.Problem) string {
	switch {
	case p.UIDs != "":
		return " " + clip(p.UIDs, 40)
	case p.UID != 0:
		return fmt.Sprintf(" %d", p.UID)
	}
	return ""
}

// check compares mailboxes with certificates.
func (c *backfillVerifyCmd) check(a *app) error {
	certs := make(map[string]certificate.Certificate, len(c.Check))
	for _, name := range c.Check { // before anything is asked: a wrong file is seen at once
		f, err := openFile(name)
		if err != nil {
			return err
		}
		cert, err := certificate.Read(f)
		_ = f.Close() // read only
		if err != nil {
			return &commandError{code: exitFailed, err: fmt.Errorf("%s: %w", name, err), hint: "take the file from where it was kept when it was made"}
		}
		certs[name] = cert
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	r, all := results{app: a}, []certificate.Comparison{}
	q := &asking[backfill.Inventory]{app: a, doing: "compared", atOnce: c.AtOnce,
		ask: func(ctx context.Context, name string) (backfill.Inventory, error) {
			return client.Inventory(ctx, certs[name].Verification.User)
		},
		each: func(name string, now backfill.Inventory, err error) error {
			user := certs[name].Verification.User
			if fatal(a, err) {
				return fmt.Errorf("comparing %s: %w", user, err)
			}
			if err != nil {
				r.note(user, "", err)
				return nil
			}
			out, err := certificate.Compare(certs[name], now)
			if err != nil {
				return err
			}
			if !out.OK() {
				err = fmt.Errorf("%s in the certificate and not in the mailbox now", count(out.Missing, "message is", "messages are"))
			}
			r.note(user, "", err)
			if c.JSON {
				all = append(all, out)
				return nil
			}
			return a.printComparison(out)
		}}
	if err := q.run(c.Check); err != nil {
		return err
	}
	if c.JSON {
		if err := a.printJSON(all); err != nil {
			return err
		}
	}
	return r.err("found complete")
}

func (a *app) printComparison(c certificate.Comparison) error {
	fmt.Fprintf(a.stdout, "%s, certificate of %s: %d messages then, %d now, %d new\n", clean(c.User), c.Issued, c.Then, c.Now, c.New)
	t := newTable(a.stdout, "FOLDER", "THEN", "THERE", "MOVED", "MISSING")
	for _, f := range c.Folders {
		t.row(f.Folder, fmt.Sprint(f.Then), fmt.Sprint(f.There), fmt.Sprint(f.Moved), fmt.Sprint(len(f.Missing)))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, f := range c.Folders {
		for i, uid := range f.Missing {
			if i == problemsShown {
				fmt.Fprintf(a.stdout, "  %s: %d more (--json has all)\n", clean(f.Folder), len(f.Missing)-i)
				break
			}
			fmt.Fprintf(a.stdout, "  %s: UID %d of UIDVALIDITY %d is gone\n", clean(f.Folder), uid, f.Validity)
		}
	}
	return nil
}
