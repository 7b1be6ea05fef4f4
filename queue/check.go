package queue

import (
	"fmt"
	"slices"

	"crossfade/mail"
)

// What every store refuses before it looks at anything: such a call is a
// mistake of the caller, and repeating it does not help.

// CheckEnvelope tells what is wrong with an envelope that is to be queued.
func CheckEnvelope(env *mail.Envelope) error {
	switch {
	case !env.ID.Valid():
		return fmt.Errorf("queue a message: %q is not an id: make one with mail.NewID", env.ID)
	case len(env.Recipients) == 0:
		return fmt.Errorf("queue message %s: it has no recipient", env.ID)
	}
	return nil
}

// CheckSettle tells what is wrong with the outcomes and the new messages for a
// lease.
func CheckSettle(l *Lease, outcomes []Outcome, msgs []NewMessage) error {
	seen := make(map[int]bool, len(outcomes))
	for _, o := range outcomes {
		switch {
		case !slices.ContainsFunc(l.Items, func(it Item) bool { return it.N == o.N }):
			return fmt.Errorf("settle %s: recipient %d is not in the lease", l.Envelope.ID, o.N)
		case seen[o.N]:
			return fmt.Errorf("settle %s: recipient %d has two outcomes", l.Envelope.ID, o.N)
		case o.Kind == Reroute && !isRoute(o.To):
			return fmt.Errorf("settle %s: recipient %d is rerouted to %q, which is no route", l.Envelope.ID, o.N, o.To)
		}
		seen[o.N] = true
		switch o.Kind {
		case Done, Retry, Fail, Park, Reroute, Release, Defer:
		default:
			return fmt.Errorf("settle %s: unknown outcome %q", l.Envelope.ID, o.Kind)
		}
		if o.Doubt && o.Kind != Retry && o.Kind != Defer {
			return fmt.Errorf("settle %s: recipient %d is %s and in doubt: only what is tried again can be", l.Envelope.ID, o.N, o.Kind)
		}
	}
	for _, m := range msgs {
		if err := CheckEnvelope(m.Envelope); err != nil {
			return err
		}
	}
	return nil
}

// Check tells what is wrong with an operator's action.
func (a Action) Check() error {
	switch a.Verb {
	case DoRetry, DoHold, DoRelease, DoPark, DoDelete:
		return nil
	case DoReroute:
		if !isRoute(a.Route) {
			return fmt.Errorf("reroute queued mail: %q is no route: use old, new or out", a.Route)
		}
		return nil
	}
	return fmt.Errorf("change queued mail: unknown action %q", a.Verb)
}

func isRoute(r mail.Route) bool { return r == mail.Old || r == mail.New || r == mail.Out }
