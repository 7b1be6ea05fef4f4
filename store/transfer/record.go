package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Account is what a store knows under one key of the state table.
type Account struct {
	Key string `json:"key"`
	// User is nil when the key is in no table: a user who was deleted, or a
	// ledger without one.
	User *router.User `json:"user,omitempty"`
	// Gen is the epoch at which the user's route, or being held, last changed.
	Gen     uint64            `json:"gen,omitempty"`
	History []router.Change   `json:"history,omitempty"` // oldest first
	Ledger  map[string][]byte `json:"ledger,omitempty"`
}

// Place says where a recipient waits, as far as that does not follow from the
// user's state.
type Place string

// The places.
const (
	Waiting Place = ""       // queued, or held by the user's state
	OpHeld  Place = "held"   // by an operator
	Parked  Place = "parked" // for an operator
)

// Row is the present state of one recipient of a message. Times are Unix
// milliseconds, as both stores keep them.
type Row struct {
	N        int        `json:"n"` // index in Envelope.Recipients
	User     string     `json:"user,omitempty"`
	Place    Place      `json:"place,omitempty"`
	Due      int64      `json:"due"`
	Gen      uint64     `json:"gen,omitempty"`   // of the user's route, under which the rest was written
	Hint     mail.Route `json:"hint,omitempty"`  // when the table has no such user
	Fixed    mail.Route `json:"fixed,omitempty"` // of a copy, or chosen by an operator or by I8
	Copy     bool       `json:"copy,omitempty"`
	Attempts int        `json:"attempts,omitempty"`
	Crashes  int        `json:"crashes,omitempty"`
	Since    int64      `json:"since"`
	Noticed  bool       `json:"noticed,omitempty"`
	Unknown  uint8      `json:"unknown,omitempty"` // sum of 2 (old), 4 (new), 8 (out)
	Reply    string     `json:"reply,omitempty"`
	// Doubt says that it may have arrived already, as queue.Doubt writes it.
	Doubt string `json:"doubt,omitempty"`

	// InFlight says that it was leased when its store was left: the delivery is
	// tried again. CountCrash has been done for it.
	InFlight bool `json:"-"`
}

// CountCrash notes that a delivery ended without a result, and parks what did
// so [queue.MaxCrashes] times in a row, as a store does.
func (r *Row) CountCrash() {
	r.InFlight = true
	if r.Crashes++; r.Crashes >= queue.MaxCrashes {
		r.Place = Parked
		r.Reply = "three deliveries ended in a crash: look at the message before it is released; the last reply before was: " + r.Reply
	}
}

// Message is one queued message with the rows of those of its recipients that
// are not gone, in the order of N.
type Message struct {
	Envelope *mail.Envelope
	Rows     []Row
	// Open streams the body, of Envelope.Size octets. It is good until the next
	// message is asked for.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Counts says how much there is.
type Counts struct {
	Accounts   int   `json:"accounts"`
	Users      int   `json:"users"`
	Changes    int   `json:"changes"` // lines of history
	Ledger     int   `json:"ledger"`  // records of the ledger
	Messages   int   `json:"messages"`
	Recipients int   `json:"recipients"`
	Bytes      int64 `json:"bytes"`     // of bodies
	InFlight   int   `json:"in_flight"` // recipients that were leased when their store was left; tried again
}

func (c *Counts) account(a *Account) {
	c.Accounts++
	if a.User != nil {
		c.Users++
	}
	c.Changes += len(a.History)
	c.Ledger += len(a.Ledger)
}

func (c *Counts) message(m *Message) {
	c.Messages++
	c.Recipients += len(m.Rows)
	c.Bytes += m.Envelope.Size
	for i := range m.Rows {
		if m.Rows[i].InFlight {
			c.InFlight++
		}
	}
}

// Source is a store that is read as a whole. Nobody else may be using it, and
// reading changes nothing of it.
type Source interface {
	// Name says where the store is, for people; it holds no secret.
	Name() string
	// Totals estimates how much there is, for the progress: Accounts, Messages.
	Totals(ctx context.Context) (Counts, error)
	// Accounts gives all accounts in the order of their keys.
	Accounts(ctx context.Context) iter.Seq2[*Account, error]
	// Messages gives all messages in the order of their ids.
	Messages(ctx context.Context) iter.Seq2[*Message, error]
	// Unused returns an error when somebody else uses the store now.
	Unused(ctx context.Context) error
	// Close lets go of the store.
	Close() error
}

// Sink is a new store that is being written. It is no store before Commit: who
// opens it until then is refused.
type Sink interface {
	// Name says where the store will be, for people; it holds no secret.
	Name() string
	// Account writes one account. What it writes need not be durable before
	// Flush.
	Account(ctx context.Context, a *Account) error
	// Message writes one message and reads its body to the end. All accounts
	// were written before.
	Message(ctx context.Context, m *Message) error
	// Flush makes durable what was written.
	Flush(ctx context.Context) error
	// Written gives what was written for reading, after Flush. It need not be
	// closed.
	Written() Source
	// Commit makes it a store; a nil error means that this is durable.
	Commit(ctx context.Context) error
	// Discard removes what was written, unless Commit worked, and lets go.
	Discard() error
}

// Errors of stores that are moved.
var (
	// ErrInUse means that somebody else has the store open.
	ErrInUse = errors.New("the store is in use")
	// ErrNotEmpty means that the target holds something already.
	ErrNotEmpty = errors.New("the target is not empty")
	// ErrPartial means that a copy into the target was cut short and what it
	// wrote is still there.
	ErrPartial = errors.New("a copy into the target was not finished")
)

// encode gives an account in the one form in which accounts are compared.
func (a *Account) encode() ([]byte, error) {
	x := *a
	if a.User != nil {
		u := *a.User
		u.Since, u.NotBefore = normal(u.Since), normal(u.NotBefore)
		x.User = &u
	}
	x.History = slices.Clone(a.History)
	for i := range x.History {
		x.History[i].At = normal(x.History[i].At)
	}
	return json.Marshal(&x)
}

// encode gives envelope and rows in the one form in which they are compared.
func (m *Message) encode() ([]byte, error) {
	e := *m.Envelope
	e.Received = normal(e.Received)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if err := enc.Encode(&e); err != nil {
		return nil, fmt.Errorf("message %s: %w", e.ID, err)
	}
	if err := enc.Encode(m.Rows); err != nil {
		return nil, fmt.Errorf("message %s: %w", e.ID, err)
	}
	return b.Bytes(), nil
}

// normal drops the zone and the monotonic clock.
func normal(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Round(0)
}
