package main

import (
	"context"
	"fmt"
	"strings"

	"crossfade/admin"
	"crossfade/backfill"
)

// plans prints what copies would do.
type plans struct {
	app     *app
	asJSON  bool
	results results
	all     []backfill.Plan // with asJSON only
	users   int
	total   backfill.Plan // its folders are left out
	folders int
	make    int // folders
	classes map[string]int
}

// dryRun says for each user what a copy would do, and changes nothing.
func (c *backfillRunCmd) dryRun(a *app, client *admin.Client, addresses []string) error {
	p := &plans{app: a, asJSON: c.JSON, results: results{app: a}, all: []backfill.Plan{}, classes: map[string]int{}}
	q := &asking[backfill.Plan]{app: a, doing: "planned", atOnce: c.AtOnce,
		ask:  func(ctx context.Context, address string) (backfill.Plan, error) { return client.Plan(ctx, address) },
		each: p.each}
	if err := q.run(addresses); err != nil {
		return err
	}
	if c.JSON {
		if err := a.printJSON(p.all); err != nil {
			return err
		}
	} else if p.users > 1 {
		p.printTotal()
	}
	return p.results.err("planned")
}

func (p *plans) each(address string, plan backfill.Plan, err error) error {
	if fatal(p.app, err) {
		return fmt.Errorf("planning %s: %w", address, err)
	}
	p.results.note(address, "", err)
	if err != nil {
		return nil
	}
	t := &p.total
	t.Messages, t.Bytes = t.Messages+plan.Messages, t.Bytes+plan.Bytes
	t.Copy, t.CopyBytes = t.Copy+plan.Copy, t.CopyBytes+plan.CopyBytes
	t.Filtered, t.Refused = t.Filtered+plan.Filtered, t.Refused+plan.Refused
	p.folders += len(plan.Folders)
	for _, f := range plan.Folders {
		if f.Create {
			p.make++
		}
	}
	for _, x := range plan.Problems {
		p.classes[x.Class] += max(x.Count, 1)
	}
	p.users++
	if p.asJSON {
		p.all = append(p.all, plan)
		return nil
	}
	return p.app.printPlan(plan)
}

func (a *app) printPlan(plan backfill.Plan) error {
	fmt.Fprintf(a.stdout, "%s: %s (%s), %d to copy (%s)\n", clean(plan.User), count(plan.Messages, "message", "messages"), size(plan.Bytes), plan.Copy, size(plan.CopyBytes))
	t := newTable(a.stdout, "FOLDER", "ON NEW", "MESSAGES", "SIZE", "TO COPY", "SIZE", "OTHERWISE")
	for _, f := range plan.Folders {
		t.row(f.Source, f.Dest, fmt.Sprint(f.Messages), size(f.Bytes), fmt.Sprint(f.Copy), size(f.CopyBytes), plannedOtherwise(f))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if plan.QuotaLeft != nil {
		fmt.Fprintf(a.stdout, "  quota: new has room for %s\n", size(*plan.QuotaLeft))
	}
	printProblems(a.stdout, plan.Problems)
	return nil
}

func plannedOtherwise(f backfill.PlanFolder) string {
	var notes []string
	if f.Create {
		notes = append(notes, "made")
	}
	for _, n := range []struct {
		count int
		what  string
	}{{f.Paired, "copied already"}, {f.Filtered, "left out"}, {f.Refused, "refused"}} {
		if n.count > 0 {
			notes = append(notes, fmt.Sprintf("%d %s", n.count, n.what))
		}
	}
	return strings.Join(notes, ", ")
}

func (p *plans) printTotal() {
	t := p.total
	fmt.Fprintf(p.app.stdout, "all: %s, %s (%d made), %s (%s), %d to copy (%s), %d left out, %d refused\n", count(p.users, "user", "users"),
		count(p.folders, "folder", "folders"), p.make, count(t.Messages, "message", "messages"), size(t.Bytes), t.Copy, size(t.CopyBytes), t.Filtered, t.Refused)
	if text := classText(p.classes); text != "" {
		fmt.Fprintf(p.app.stdout, "all: %s\n", text)
	}
}
