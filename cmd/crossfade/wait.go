package main

import (
	"errors"
	"fmt"
	"time"

	"crossfade/admin"
	"crossfade/cutover"
	"crossfade/router"
)

// pollTime is how often a wait looks.
const pollTime = 500 * time.Millisecond

// maxLost is how many looks in a row may fail before a wait gives up: the
// relay may be restarted meanwhile.
const maxLost = 120

// wait follows moves to their end.
type wait struct {
	app    *app
	client *admin.Client
	flip   bool   // to new; otherwise to ready, or where verb says
	verb   string // what is done to users, when it is neither of these

	users   []string
	waiting map[string]bool
	last    map[string]cutover.Status
	before  map[string]time.Time // Updated, of an end that was known before
	results results
	shown   progress
	logged  time.Time // when plain lines last said how far it is
	lost    int       // looks in a row that failed
}

// newWait is made before the moves are asked for: an end that is known by then
// belongs to an earlier request.
func newWait(a *app, client *admin.Client, flip bool) (*wait, error) {
	w := &wait{app: a, client: client, flip: flip, waiting: map[string]bool{}, last: map[string]cutover.Status{}, before: map[string]time.Time{}}
	w.results.app = a
	w.shown = newProgress(a.stderr)
	known, err := client.Moves(a.ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the state of moves: %w", err)
	}
	for _, s := range known {
		if !s.Active() && !s.Updated.IsZero() {
			w.before[s.User] = s.Updated
		}
	}
	return w, nil
}

// add takes users whose move was started.
func (w *wait) add(users ...string) {
	for _, u := range users {
		if !w.waiting[u] {
			w.waiting[u] = true
			w.users = append(w.users, u)
		}
	}
}

// refused notes a user whose move could not be started.
func (w *wait) refused(user string, err error) { w.results.note(user, "", err) }

// finish waits unless noWait is set, prints the result and gives the error of
// the command.
func (w *wait) finish(noWait, asJSON bool) error {
	if !noWait {
		if err := w.follow(); err != nil {
			return err
		}
	}
	out := make([]cutover.Status, 0, len(w.users))
	for _, u := range w.users {
		s := w.last[u]
		s.User = u
		out = append(out, s)
	}
	switch {
	case asJSON && noWait:
		if err := w.app.printJSON(w.users); err != nil {
			return err
		}
	case asJSON:
		if err := w.app.printJSON(out); err != nil {
			return err
		}
	case noWait:
		for _, u := range w.users {
			w.results.note(u, "started", nil)
		}
		return w.results.err("started")
	}
	if noWait {
		w.results.ok = len(w.users)
		return w.results.err("started")
	}
	if w.verb != "" {
		return w.results.err(w.verb)
	}
	if w.flip {
		return w.results.err("moved")
	}
	return w.results.err("copied")
}

// follow looks until every user has come to an end.
func (w *wait) follow() error {
	defer w.shown.end()
	tick := time.NewTicker(pollTime)
	defer tick.Stop()
	for {
		if err := w.look(); err != nil {
			return err
		}
		if len(w.waiting) == 0 {
			return nil
		}
		select {
		case <-w.app.ctx.Done():
			w.shown.end()
			fmt.Fprintf(w.app.stderr, "no longer waiting; %s in the relay: crossfade cutover status\n", count(len(w.waiting), "move goes on", "moves go on"))
			return w.app.ctx.Err()
		case <-tick.C:
		}
	}
}

// look asks the relay once.
func (w *wait) look() error {
	moves, err := w.client.Moves(w.app.ctx)
	if err != nil {
		var p *admin.Problem
		if w.lost++; errors.As(err, &p) || w.lost > maxLost || w.app.ctx.Err() != nil {
			return fmt.Errorf("waiting for moves: %w", err)
		}
		if w.lost == 1 {
			w.shown.line("the relay does not answer; still trying")
		}
		return nil
	}
	w.lost = 0
	byUser := map[string]cutover.Status{}
	for _, s := range moves {
		byUser[s.User] = s
	}
	for _, u := range w.users {
		if !w.waiting[u] {
			continue
		}
		s, ok := byUser[u]
		if !ok {
			if s, ok, err = w.fromTable(u); err != nil || !ok {
				continue
			}
		}
		w.judge(u, s)
	}
	w.show(time.Now())
	return nil
}

// fromTable answers for a user whom the conductor no longer knows, after a
// restart for one.
func (w *wait) fromTable(user string) (cutover.Status, bool, error) {
	u, err := w.client.User(w.app.ctx, user)
	if err != nil {
		return cutover.Status{}, false, err
	}
	s := cutover.Status{User: user, State: u.State, Flip: w.flip, Phase: cutover.PhaseWaiting}
	arrived := u.State == router.StateNew || u.State == router.StateDone
	if w.verb != "" {
		arrived = u.State == router.StateOld
	}
	if arrived {
		s.Phase = cutover.PhaseDone
	}
	return s, true, nil
}

// judge takes the present status of a user.
func (w *wait) judge(user string, s cutover.Status) {
	if was, ok := w.before[user]; ok && s.Updated.Equal(was) {
		return
	}
	if s.Phase != w.last[user].Phase {
		w.shown.line(fmt.Sprintf("%s: %s", user, phaseText(s)))
	}
	w.last[user] = s
	switch {
	case s.Phase == cutover.PhaseFailed:
		err := errors.New(s.Err)
		if !s.Next.IsZero() {
			err = fmt.Errorf("%s (the relay tries again at %s)", s.Err, moment(s.Next))
		}
		w.end(user, "", err)
	case s.Phase == cutover.PhaseDone:
		w.end(user, doneText(s), nil)
		printProblems(w.app.stderr, s.Problems)
	case s.Phase == cutover.PhaseReady && !w.flip && w.verb == "":
		w.end(user, doneText(s), nil)
		printProblems(w.app.stderr, s.Problems)
	}
}

func (w *wait) end(user, done string, err error) {
	delete(w.waiting, user)
	w.shown.clear()
	if err != nil {
		w.results.note(user, "", err)
		return
	}
	w.results.note(user, "", nil)
	fmt.Fprintf(w.app.stderr, "%s: %s\n", clean(user), clean(done))
}

func phaseText(s cutover.Status) string {
	switch s.Phase {
	case cutover.PhaseWaiting:
		return "waits for its turn"
	case cutover.PhaseCopy:
		if s.Rollback {
			return "copying back to old"
		}
		return "copying"
	case cutover.PhaseLimit:
		return s.Limit
	case cutover.PhaseReady:
		return "in sync"
	case cutover.PhaseDrain:
		if s.State == router.StateRollback {
			return "held, deliveries to new end"
		}
		return "held, deliveries to old end"
	case cutover.PhaseFinal:
		return "held, the last difference is copied"
	case cutover.PhaseFlip:
		if s.State == router.StateRollback {
			return "held, being set to old"
		}
		return "held, being set to new"
	}
	return string(s.Phase)
}

func doneText(s cutover.Status) string {
	text := fmt.Sprintf("%s, %s copied (%s)", s.State, count(s.Copied, "message", "messages"), size(s.Bytes))
	if s.HoldTime > 0 {
		text += ", mail held for " + s.HoldTime.Round(10*time.Millisecond).String()
	}
	if problems := problemText(s); problems != "" {
		text += ", " + problems
	}
	return text
}
