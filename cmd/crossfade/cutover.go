package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/mail"
)

type cutoverCmd struct {
	Start    cutoverStartCmd    `cmd:"" help:"Move users to the new system, with their mail."`
	Cancel   cutoverCancelCmd   `cmd:"" help:"Take users who have not flipped back to old."`
	Rollback cutoverRollbackCmd `cmd:"" help:"Take users who have flipped back to old, with what reached new since."`
	Status   moveStatusCmd      `cmd:"" help:"Show how moves go."`
	Wave     waveCmd            `cmd:"" help:"Groups of users who are moved together."`
	Pause    cutoverPauseCmd    `cmd:"" help:"Flip nobody for now, of all users or of a wave. Copies go on, and who is held goes on."`
	Resume   cutoverResumeCmd   `cmd:"" help:"End a pause of flips, also of a wave that stopped by itself."`
	Report   cutoverReportCmd   `cmd:"" help:"Say how moves went: when, how long mail was held, what was copied, problems."`
}

type cutoverStartCmd struct {
	named  `embed:""`
	Reason string `help:"Why, for the history."`
	Sync   bool   `help:"Stop at ready: copy, and do not flip."`
	Mirror bool   `help:"Keep old current after the flip, so that a rollback takes seconds."`
	NoWait bool   `help:"Return at once; see: cutover status."`
	DryRun bool   `help:"Say who would go, in which order and when, and who cannot and why; change nothing. Exit code 3 when some cannot go now."`
	NoLook bool   `help:"With --dry-run: look into no mailbox; sizes are those that are known."`
	AtOnce int    `default:"4" help:"With --dry-run: mailboxes looked at at once (${default})."`
	jsonFlag
}

// Run starts the moves, then waits for their end.
func (c *cutoverStartCmd) Run(a *app) error {
	addresses, err := c.list()
	if err != nil {
		return err
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.dryRun(a, client, addresses)
	}
	if c.File != "" {
		if err := c.check(a, client, addresses); err != nil {
			return err
		}
	}
	req := admin.MoveRequest{Reason: c.Reason, Sync: c.Sync, Mirror: c.Mirror}
	w, err := newWait(a, client, !c.Sync)
	if err != nil {
		return err
	}
	if c.Wave != "" {
		if err := w.startWave(c.Wave, req); err != nil {
			return err
		}
	}
	for _, address := range addresses {
		st, err := client.StartCutover(a.ctx, address, req)
		if fatal(a, err) {
			return fmt.Errorf("starting the move of %s: %w", address, err)
		}
		if err != nil {
			w.refused(address, err)
			continue
		}
		w.add(st.User)
	}
	return w.finish(c.NoWait, c.JSON)
}

// list gives the addresses that were named. A file that names somebody twice is
// an error: one of the two may be a mistake for somebody else.
func (c *cutoverStartCmd) list() ([]string, error) {
	if c.File != "" {
		inFile, err := addressesOf(c.File)
		if err != nil {
			return nil, err
		}
		if err := eachOnce(c.File, inFile); err != nil {
			return nil, err
		}
		return once(append(slices.Clone(c.Addresses), inFile...)), nil
	}
	if len(c.Addresses) == 0 && c.Wave == "" {
		return nil, usageError(errNobody, "give addresses, --wave or --file")
	}
	return once(c.Addresses), nil
}

// startWave starts the moves of a wave.
func (w *wait) startWave(wave string, req admin.MoveRequest) error {
	out, err := w.client.StartWave(w.app.ctx, wave, req)
	if err != nil {
		return fmt.Errorf("starting the wave %s: %w", wave, err)
	}
	w.take(out)
	return nil
}

// take takes what became of a request for several users.
func (w *wait) take(out admin.WaveStarted) {
	for _, f := range out.Failed {
		w.refused(f.Where, errors.New(f.Message))
	}
	for _, skipped := range out.Skipped {
		fmt.Fprintf(w.app.stderr, "%s: nothing to do (see: crossfade user show)\n", clean(skipped))
	}
	w.add(out.Started...)
}

// addressList joins the addresses of arguments and file, each once.
func addressList(args []string, file string) ([]string, error) {
	all := slices.Clone(args)
	if file != "" {
		more, err := addressesOf(file)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return once(all), nil
}

// addressesOf reads a file of addresses.
func addressesOf(file string) ([]string, error) {
	in := io.ReadCloser(os.Stdin)
	if file != "-" {
		var err error
		if in, err = openFile(file); err != nil {
			return nil, err
		}
	}
	defer in.Close()
	out, err := readAddresses(in)
	if err != nil {
		return nil, usageError(fmt.Errorf("%s: %w", file, err), "the file has an address per line; # begins a comment")
	}
	return out, nil
}

// once leaves out what was there before.
func once(all []string) (out []string) {
	seen := map[string]bool{}
	for _, address := range all {
		if key := addressKey(address); !seen[key] {
			seen[key] = true
			out = append(out, address)
		}
	}
	return out
}

// addressKey is what two spellings of an address have in common.
func addressKey(address string) string {
	if a, err := mail.ParseAddress(address); err == nil {
		return a.Key()
	}
	return address
}

func readAddresses(r io.Reader) ([]string, error) {
	var out []string
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "\ufeff"))
		if line == "" || line[0] == '#' {
			continue
		}
		if !strings.Contains(line, "@") || strings.ContainsAny(line, ",;") && !strings.Contains(line, `"`) {
			return nil, fmt.Errorf("line %d: %q is no address", n, line)
		}
		out = append(out, line)
	}
	return out, lines.Err()
}

// fatal tells whether an error would be the same for the next user: there is
// no use in going on.
func fatal(a *app, err error) bool {
	if err == nil {
		return false
	}
	if a.ctx.Err() != nil {
		return true
	}
	var p *admin.Problem
	if !errors.As(err, &p) {
		return true
	}
	switch p.Type {
	case admin.ProblemUnauthorized, admin.ProblemForbidden, admin.ProblemNoBackfill, admin.ProblemSlowDown, admin.ProblemAudit, admin.ProblemClosed:
		return true
	}
	return false
}

type cutoverCancelCmd struct {
	Addresses []string `arg:"" name:"address" help:"Addresses of users."`
}

// Run cancels moves. What was copied stays on new.
func (c *cutoverCancelCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	r := results{app: a}
	for _, address := range c.Addresses {
		err := client.CancelCutover(a.ctx, address)
		if fatal(a, err) {
			return fmt.Errorf("cancelling the move of %s: %w", address, err)
		}
		r.note(address, "back to old", err)
	}
	return r.err("cancelled")
}

// results counts what was done for several users or messages.
type results struct {
	app      *app
	ok, bad  int
	lastFail error
}

// note reports one of them.
func (r *results) note(what, done string, err error) {
	if err != nil {
		r.bad++
		r.lastFail = err
		fmt.Fprintf(r.app.stderr, "%s: %s\n", clean(what), clean(err.Error()))
		return
	}
	r.ok++
	if done != "" {
		fmt.Fprintf(r.app.stdout, "%s: %s\n", clean(what), clean(done))
	}
}

// err is nil when all was done, exit code 3 when some, and 1 when nothing was.
func (r *results) err(verb string) error {
	switch {
	case r.bad == 0:
		return nil
	case r.ok == 0:
		return &commandError{code: exitFailed, err: fmt.Errorf("nothing was %s (%s)", verb, count(r.bad, "error", "errors")), hint: hintOf(r.lastFail)}
	}
	return partly("%d %s, %d failed", r.ok, verb, r.bad)
}

// moveStatusCmd is both `cutover status` and `backfill status`.
type moveStatusCmd struct {
	Addresses []string `arg:"" optional:"" name:"address" help:"Only these users, with all that is known of their problems."`
	Wave      string   `help:"Only users of this wave."`
	jsonFlag
}

// Run lists the moves that the relay knows of.
func (c *moveStatusCmd) Run(a *app) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	known, err := client.Backfill(a.ctx)
	if err != nil {
		return fmt.Errorf("reading the state of moves: %w", err)
	}
	if len(c.Addresses) > 0 || c.Wave != "" {
		known.Moves = slices.DeleteFunc(known.Moves, func(s cutover.Status) bool { return !c.wants(s) })
		known.Total, known.Waves = cutover.Totals(known.Moves, time.Now())
	}
	if c.JSON {
		known.Moves = append([]cutover.Status{}, known.Moves...)
		return a.printJSON(known)
	}
	if err := a.printMoves(known.Moves); err != nil {
		return err
	}
	for _, line := range totalLines(known.Total, known.Waves, time.Now()) {
		fmt.Fprintln(a.stderr, clean(line))
	}
	for _, p := range known.Paused {
		fmt.Fprintf(a.stderr, "paused: %s\n", clean(p.String()))
	}
	if len(c.Addresses) > 0 {
		a.printReasons(known.Moves)
	}
	return nil
}

// wants tells whether a status was asked for.
func (c *moveStatusCmd) wants(s cutover.Status) bool {
	if c.Wave != "" && s.Wave == c.Wave {
		return true
	}
	return slices.ContainsFunc(c.Addresses, func(address string) bool { return strings.EqualFold(address, s.User) })
}
