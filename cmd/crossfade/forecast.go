package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"crossfade/admin"
	"crossfade/backfill"
	"crossfade/cutover"
)

// check has the relay look whom a start is about, so that nothing has begun when
// the list is wrong: somebody is in it twice, or is in another wave that is under
// way.
func (c *cutoverStartCmd) check(a *app, client *admin.Client, addresses []string) error {
	plan, err := client.PlanCutover(a.ctx, addresses, c.Wave)
	if err != nil {
		return fmt.Errorf("%s: nothing was started: %w", c.File, err)
	}
	var other []string
	for _, m := range plan.Users {
		if m.OtherWave != "" {
			other = append(other, fmt.Sprintf("%s is in the wave %s", m.User, m.OtherWave))
		}
	}
	if len(other) == 0 {
		return nil
	}
	return &commandError{code: exitFailed, err: fmt.Errorf("%s: nothing was started: users are in another wave, which is under way: %s", c.File, clip(strings.Join(other, "; "), 1000)),
		hint: "take them out of the file, or out of the wave (PATCH /v1/users/{address}, or an import); `cutover start ADDRESS` moves one of them at once"}
}

// dryRun prints what a start would do. Exit code 3: some cannot go.
func (c *cutoverStartCmd) dryRun(a *app, client *admin.Client, addresses []string) error {
	plan, err := client.PlanCutover(a.ctx, addresses, c.Wave)
	if err != nil {
		return fmt.Errorf("planning the start: %w", err)
	}
	if !c.NoLook {
		if err := c.look(a, client, &plan); err != nil {
			return err
		}
		plan.Forecast(time.Now())
	}
	if c.JSON {
		err = a.printJSON(plan)
	} else {
		err = a.printForecast(plan)
	}
	if err != nil {
		return err
	}
	not := 0
	for _, m := range plan.Users {
		if len(m.WhyNot) > 0 {
			not++
		}
	}
	if not == 0 {
		return nil
	}
	return partly("%d can go now, %d not", len(plan.Users)-not, not)
}

// look asks for the mailboxes of those whose size nobody knows.
func (c *cutoverStartCmd) look(a *app, client *admin.Client, plan *cutover.MovePlan) error {
	var unknown []string
	for _, m := range plan.Users {
		if !m.Cannot && !m.Known {
			unknown = append(unknown, m.User)
		}
	}
	q := &asking[backfill.Plan]{app: a, doing: "looked at", atOnce: c.AtOnce,
		ask: func(ctx context.Context, address string) (backfill.Plan, error) { return client.Plan(ctx, address) },
		each: func(address string, looked backfill.Plan, err error) error {
			if fatal(a, err) {
				return fmt.Errorf("looking at %s: %w", address, err)
			}
			plan.Looked(address, looked, err)
			return nil
		}}
	return q.run(unknown)
}

func (a *app) printForecast(p cutover.MovePlan) error {
	t := newTable(a.stdout, "N", "USER", "WAVE", "STATE", "TO COPY", "SIZE", "COPY TAKES", "NEW AT", "NOT NOW")
	n := 0
	for _, m := range p.Users {
		order, messages, octets, takes := "", "", "", ""
		if !m.Flip.IsZero() {
			n++
			order = fmt.Sprint(n)
		}
		if m.Known {
			messages, octets = fmt.Sprint(m.Messages), size(m.Bytes)
		}
		if m.Copy > 0 {
			takes = lengthOf(m.Copy)
		}
		t.row(order, m.User, m.Wave, string(m.State), messages, octets, takes, moment(m.Flip), strings.Join(m.WhyNot, "; "))
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "%s to go, %d not; %s (%s) to copy", count(p.Going, "user", "users"), len(p.Users)-p.Going, count(p.Messages, "message", "messages"), size(p.Bytes))
	if p.Unknown > 0 {
		fmt.Fprintf(a.stdout, ", and those of %s whose size is not known", count(p.Unknown, "user", "users"))
	}
	if !p.Ends.IsZero() {
		fmt.Fprintf(a.stdout, "; all new at %s", moment(p.Ends))
	}
	fmt.Fprintln(a.stdout)
	fmt.Fprintf(a.stdout, "pace: %s; %s copied at once\n", paceOf(p.MaxHeld, p.FlipsPerMinute), count(p.Concurrency, "user", "users"))
	fmt.Fprintf(a.stdout, "times: %s/s for each user (%s), mail held for %s (%s)\n", size(int64(p.Rate)), known(p.RateMeasured), p.Hold.Round(10*time.Millisecond), known(p.HoldMeasured))
	if !p.NotBefore.IsZero() {
		fmt.Fprintf(a.stdout, "wave %s: not before %s\n", clean(p.Wave), moment(p.NotBefore))
	}
	if p.Paused != nil {
		fmt.Fprintf(a.stdout, "paused: %s\n", clean(p.Paused.String()))
	}
	return nil
}

func known(measured bool) string {
	if measured {
		return "as measured here"
	}
	return "assumed"
}

type cutoverReportCmd struct {
	Wave string `help:"Only the users of this wave."`
	jsonFlag
}

// Run says how moves went.
func (c *cutoverReportCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	r, err := client.CutoverReport(a.ctx, c.Wave)
	if err != nil {
		return fmt.Errorf("reading how moves went: %w", err)
	}
	if c.JSON {
		return a.printJSON(r)
	}
	return a.printReport(r)
}

func (a *app) printReport(r cutover.MoveReport) error {
	t := newTable(a.stdout, "USER", "WAVE", "STATE", "STARTED", "NEW AT", "HELD", "COPIED", "HOLDS", "FAILED", "BACK", "PROBLEMS")
	for _, x := range r.Users {
		flipped, back := moment(x.Flipped), ""
		if x.Forced {
			flipped += " (forced)"
		}
		if x.RolledBack > 0 {
			back = fmt.Sprint(x.RolledBack)
		}
		problems := classText(x.Classes)
		if x.Err != "" {
			problems = clip(strings.TrimPrefix(problems+"; "+x.Err, "; "), 100)
		}
		t.row(x.User, x.Wave, string(x.State), moment(x.Started), flipped, brief(x.Hold), fmt.Sprintf("%d (%s)", x.Copied, size(x.Bytes)),
			fmt.Sprint(x.Holds), fmt.Sprint(x.Failures), back, problems)
	}
	if err := t.flush(); err != nil {
		return err
	}
	s := r.Total
	fmt.Fprintf(a.stdout, "%s: %d new (%d by force), %d under way (%d failing), %d rolled back; %s copied (%s); %s\n", count(s.Users, "user", "users"),
		s.Flipped, s.Forced, s.Underway, s.Failing, s.RolledBack, count(s.Copied, "message", "messages"), size(s.Bytes), count(s.Failures, "attempt failed", "attempts failed"))
	if s.HoldMax > 0 {
		fmt.Fprintf(a.stdout, "mail held: p50 %s, p99 %s, longest %s\n", holdText(s.HoldP50), holdText(s.HoldP99), holdText(s.HoldMax))
	}
	if text := classText(s.Classes); text != "" {
		fmt.Fprintf(a.stdout, "problems: %s\n", text)
	}
	if !s.First.IsZero() {
		fmt.Fprintf(a.stdout, "first new at %s, last at %s\n", moment(s.First), moment(s.Last))
	}
	return nil
}

func holdText(d time.Duration) string { return d.Round(10 * time.Millisecond).String() }

// eachOnce finds an address that a list names twice. Addresses that cannot be read
// are compared as they stand.
func eachOnce(file string, addresses []string) error {
	seen := map[string]int{}
	for i, address := range addresses {
		key := addressKey(address)
		if first, twice := seen[key]; twice {
			return usageError(fmt.Errorf("%s: %s is named twice, as number %d and %d; nothing was started", file, address, first, i+1), "take one of them out")
		}
		seen[key] = i + 1
	}
	return nil
}

var errNobody = errors.New("cutover start: no users were named")
