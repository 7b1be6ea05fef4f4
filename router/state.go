package router

import (
	"fmt"
	"slices"
	"strings"

	"crossfade/mail"
)

// State says where a user stands on the way from the old system to the new.
type State string

// The states, in the order in which a user passes them.
const (
	StateOld      State = "old"      // not started
	StateSyncing  State = "syncing"  // backfill passes run
	StateReady    State = "ready"    // in sync, kept so, waiting for the flip
	StateCutover  State = "cutover"  // held while the last difference is copied
	StateNew      State = "new"      // flipped; stragglers are swept
	StateDone     State = "done"     // the window is closed and verified
	StateRollback State = "rollback" // held while what arrived on new goes back
)

// States lists all states in the order in which a user passes them.
func States() []State {
	return []State{StateOld, StateSyncing, StateReady, StateCutover, StateNew, StateDone, StateRollback}
}

// ParseState reads a state's name; its error lists the names there are.
func ParseState(s string) (State, error) {
	if slices.Contains(States(), State(s)) {
		return State(s), nil
	}
	var names []string
	for _, st := range States() {
		names = append(names, string(st))
	}
	return "", fmt.Errorf("unknown state %q: use one of %s", s, strings.Join(names, ", "))
}

// Held tells whether mail for a user in this state is kept and not delivered.
func (s State) Held() bool { return s == StateCutover || s == StateRollback }

// Route is where mail goes in this state. A held state has no route.
func (s State) Route() (route mail.Route, held bool) {
	switch s {
	case StateNew, StateDone:
		return mail.New, false
	case StateCutover, StateRollback:
		return "", true
	}
	return mail.Old, false
}

// Side is the side whose mailbox the user reads in this state. A hold changes
// nothing about that: in cutover it is old until the flip, in rollback new.
func (s State) Side() mail.Route {
	switch s {
	case StateNew, StateDone, StateRollback:
		return mail.New
	}
	return mail.Old
}

// transitions is the one table of what may follow what. docs/states.md has
// the same table as a diagram, and a test compares every pair.
var transitions = map[State][]State{
	StateOld:      {StateSyncing},
	StateSyncing:  {StateReady, StateOld},
	StateReady:    {StateCutover, StateSyncing, StateOld},
	StateCutover:  {StateNew, StateReady},
	StateNew:      {StateDone, StateRollback},
	StateDone:     {StateRollback},
	StateRollback: {StateOld, StateNew},
}

// forced lists what an operator may do beyond the table when he says "force":
// set a user who does not use the backfill to either side.
var forced = map[State][]State{
	StateOld:      {StateNew},
	StateSyncing:  {StateNew},
	StateReady:    {StateNew},
	StateCutover:  {StateOld},
	StateNew:      {StateOld},
	StateDone:     {StateOld, StateNew},
	StateRollback: {},
}

// Transition tells whether a user may go from one state to another. force
// allows, beside the table, what an operator may say on his own
// responsibility; the history keeps that it was forced. Its error is a
// [TransitionError].
func Transition(from, to State, force bool) error {
	if slices.Contains(transitions[from], to) || force && slices.Contains(forced[from], to) {
		return nil
	}
	e := &TransitionError{From: from, To: to, Allowed: slices.Clone(transitions[from])}
	e.ForceHelps = !force && slices.Contains(forced[from], to)
	return e
}

// TransitionError says that the table has no way from one state to another.
type TransitionError struct {
	From, To   State
	Allowed    []State
	ForceHelps bool
}

func (e *TransitionError) Error() string {
	var names []string
	for _, s := range e.Allowed {
		names = append(names, string(s))
	}
	msg := fmt.Sprintf("a user cannot go from %s to %s; from %s a user goes to %s", e.From, e.To, e.From, strings.Join(names, " or "))
	if e.ForceHelps {
		msg += " (force allows it, and skips the copy)"
	}
	return msg
}
