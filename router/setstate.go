package router

import (
	"context"
	"errors"
	"fmt"

	"crossfade/mail"
)

// SetRequest says who changes a state, and on what condition.
type SetRequest struct {
	By     string
	Reason string
	// Epoch is the one that the author saw; nil: whatever it is.
	Epoch *uint64
	// Force allows what [Transition] calls forced.
	Force bool
}

// setTries bounds how often SetState starts over when others change the same
// user at the same time.
const setTries = 20

// ErrNoState means that an alias or a group was to be moved: only mailboxes
// have a state.
var ErrNoState = errors.New("only a mailbox has a state")

// ErrNotOurs means that an address is in none of our domains.
var ErrNotOurs = errors.New("the address is in none of our domains")

// SetState moves a user to another state; one who is in no table is made, as
// coming from old. busy is what [Table] says of SetUser: while it is not 0,
// the change is not complete. Its errors are a [TransitionError], an
// [EpochError] (ErrEpoch), ErrNoState, ErrNotOurs, or the table's.
func (r *Router) SetState(ctx context.Context, addr mail.Address, to State, req SetRequest) (saved User, busy int, err error) {
	key := addr.Key()
	for range setTries {
		saved, busy, err = r.trySetState(ctx, addr, to, req)
		if err == nil || req.Epoch != nil || !errors.Is(err, ErrEpoch) {
			break
		}
	}
	if err != nil {
		return User{}, 0, fmt.Errorf("set the state of %s to %s: %w", key, to, err)
	}
	return saved, busy, nil
}

func (r *Router) trySetState(ctx context.Context, addr mail.Address, to State, req SetRequest) (User, int, error) {
	s := r.site.Load()
	key := addr.Key()
	u, err := r.table.User(ctx, key)
	switch {
	case isNoUser(err) && !s.domains[addr.Domain]:
		return User{}, 0, ErrNotOurs
	case isNoUser(err):
		u = User{Address: key, Kind: KindMailbox, State: StateOld}
	case err != nil:
		return User{}, 0, fmt.Errorf("read the user: %w", err)
	case u.Kind == KindAlias || u.Kind == KindGroup:
		return User{}, 0, fmt.Errorf("%w: %s is %s", ErrNoState, key, describe(u))
	case u.State == "":
		u.State = StateOld
	}
	if req.Epoch != nil && *req.Epoch != u.Epoch {
		return User{}, 0, &EpochError{User: key, Have: u.Epoch, Want: *req.Epoch}
	}
	from := u.State
	if _, err := ParseState(string(to)); err != nil {
		return User{}, 0, err
	}
	if err := Transition(from, to, req.Force); err != nil {
		return User{}, 0, err
	}
	// A hold by hand is forced too: the conductor tells it by that from its own. So
	// is the end of a window that nobody has looked at.
	forced := Transition(from, to, false) != nil || req.Force && (to.Held() || to == StateDone)
	u.State, u.Since, u.Note = to, s.now(), ""
	return r.table.SetUser(ctx, u, Change{From: from, To: to, By: req.By, Reason: req.Reason, Forced: forced})
}
