package router

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/mail"
)

// Kind says what an address in the table is.
type Kind string

// The kinds. An alias or a group has no state of its own: its targets have.
const (
	KindMailbox Kind = "mailbox"
	KindAlias   Kind = "alias" // one target
	KindGroup   Kind = "group" // one or more targets
)

// Deliver says whether the side that is not read gets a copy.
type Deliver string

// The ways to deliver. The empty string is DeliverOne.
const (
	DeliverOne  Deliver = ""
	DeliverBoth Deliver = "both"
)

// User is one line of the state table.
type User struct {
	// Address is the key: the normal form that [mail.Address.Key] gives, or
	// "@domain" for a domain alias (kind alias, one target "@other.domain").
	Address string   `json:"address"`
	Kind    Kind     `json:"kind"`
	Targets []string `json:"targets,omitempty"` // keys, for alias and group
	State   State    `json:"state"`             // mailboxes only
	// Epoch counts the changes to this user, from 1. Who changes a user names
	// the epoch that he saw; a delivery claimed under another epoch is cut
	// before its final dot.
	Epoch     uint64    `json:"epoch"`
	Deliver   Deliver   `json:"deliver,omitempty"`
	Wave      string    `json:"wave,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	OldLogin  string    `json:"old_login,omitempty"` // login name on old where it is not the address
	NewLogin  string    `json:"new_login,omitempty"`
	Since     time.Time `json:"since"`          // when the state was entered
	Note      string    `json:"note,omitempty"` // why the last attempt did not work, for operators
}

// Route is where mail for u goes now.
func (u User) Route() (route mail.Route, held bool) { return u.State.Route() }

// Change says who changed a user, why, and what became of it. A user's changes
// are his history.
type Change struct {
	User   string    `json:"user"`
	Epoch  uint64    `json:"epoch"` // after the change
	From   State     `json:"from,omitempty"`
	To     State     `json:"to,omitempty"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Forced bool      `json:"forced,omitempty"`
	At     time.Time `json:"at"`
}

// Filter selects users. Zero fields select all.
type Filter struct {
	State State
	Wave  string
	Kind  Kind
	Query string // part of the address
}

// The errors of a Table.
var (
	ErrNoUser = errors.New("no such user in the table")
	// ErrEpoch means that somebody else changed the user in between: read the
	// user again and decide again.
	ErrEpoch = errors.New("the user was changed in between")
)

// EpochError is an ErrEpoch with the figures.
type EpochError struct {
	User       string
	Have, Want uint64 // in the table; in the request
}

func (e *EpochError) Error() string {
	return fmt.Sprintf("user %s was changed in between: epoch %d was expected, the table has %d", e.User, e.Want, e.Have)
}

// Is makes the error an ErrEpoch.
func (e *EpochError) Is(target error) bool { return target == ErrEpoch }

// Table keeps users and their history. Both stores implement it. Each method
// is atomic, and a nil error means that the change is durable.
type Table interface {
	// User reads one user; ErrNoUser when there is none.
	User(ctx context.Context, key string) (User, error)
	// Users lists in the order of addresses, limit at a time, from behind
	// cursor; next is empty at the end.
	Users(ctx context.Context, f Filter, cursor string, limit int) (users []User, next string, err error)
	// CountUsers counts mailboxes by state.
	CountUsers(ctx context.Context) (map[State]int, error)
	// SetUser writes u when u.Epoch is the epoch in the table (0: the user must
	// not exist), counts the epoch up, adds c to the history (User, Epoch and
	// At are filled in) and lets the user's queued mail follow: held, released
	// or re-routed. busy is how many deliveries under an older epoch may still
	// reach a mailbox; see Busy.
	SetUser(ctx context.Context, u User, c Change) (saved User, busy int, err error)
	// Busy is how many deliveries for the user are between the permission to
	// send the final dot and their record, under an epoch older than the
	// present one, and how many copies of `deliver: both` are still to be
	// delivered. Users in syncing, ready and cutover get no new copies:
	// the backfill fills their new side.
	Busy(ctx context.Context, key string) (int, error)
	// DeleteUser removes a user at the given epoch. The history stays.
	DeleteUser(ctx context.Context, key string, epoch uint64, c Change) error
	// ImportUsers writes all of the users or none: a new one is created, and an
	// existing one gets the given fields except State and Epoch, which a bulk
	// import never changes. An empty field was not given; a new user without a
	// kind is a mailbox, and a new mailbox without a state is old.
	ImportUsers(ctx context.Context, users []User, c Change) (created, updated int, err error)
	// History lists the changes of a user, newest first.
	History(ctx context.Context, key string, limit int) ([]Change, error)
}
