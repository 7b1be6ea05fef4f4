package queue

import (
	"context"
	"errors"
	"io"
	"time"

	"crossfade/mail"
)

// State says where a recipient of a queued message stands.
type State string

// The states. A recipient that is gone has none.
const (
	Queued  State = "queued"  // due now or later
	Held    State = "held"    // by its user's state, or by an operator
	Leased  State = "leased"  // a worker has it; may be taken back
	Sending State = "sending" // the final dot may be on its way; cannot be taken back
	Parked  State = "parked"  // waits for an operator, with a reason
)

// The errors of a Store.
var (
	// ErrFull means that there is no room: 452 4.3.1, and try again later.
	ErrFull = errors.New("the queue is full")
	// ErrLost means that the lease is over or its work was taken back: send
	// nothing more, settle nothing but what is done.
	ErrLost = errors.New("the lease is lost")
	// ErrNotFound means that the queue has no such message.
	ErrNotFound = errors.New("no such message in the queue")
	// ErrCorrupt means that a stored body does not match its checksum.
	ErrCorrupt = errors.New("the stored message is damaged")
	// ErrClosed means that the store was closed, or stopped itself after a
	// failed write.
	ErrClosed = errors.New("the store is closed")
)

// Limits of a lease and of the trust in a message.
const (
	LeaseTime  = 60 * time.Second // without Renew
	MaxCrashes = 3                // leases in a row that ended in a crash: then the message is parked
)

// Item is one recipient of a lease.
type Item struct {
	N         int          // index in Envelope.Recipients
	User      string       // as in the envelope
	Epoch     uint64       // of the user when it was claimed; 0 when he is in no table
	Attempts  int          // deliveries tried before this one, since the route last changed
	Crashes   int          // leases before this one that ended in a crash, in a row
	Since     time.Time    // when it was queued, or its route last changed: expiry counts from here
	Noticed   bool         // a delay notice was sent
	Unknown   []mail.Route // sides that said "user unknown" under this epoch (I8)
	Copy      bool         // the second delivery of `deliver: both`; the user reads the other side
	CopyTo    mail.Route   // the side that wants a copy when this delivery is done; empty: none
	LastReply string       // of the attempt before
	Doubt     Doubt        // it may have arrived already: to be looked up before it is sent again (I7)
}

// Lease is the right to deliver one message to some of its recipients over one
// route. It is good until Until, on the local monotonic clock.
type Lease struct {
	Token    string
	Route    mail.Route
	Envelope *mail.Envelope // shared: never change it
	Items    []Item
	Until    time.Time
	Opaque   any // the store's own
}

// Kind says what became of a recipient.
type Kind string

// The kinds of outcome.
const (
	Done    Kind = "done"    // the backend answered 2xx
	Retry   Kind = "retry"   // again at Outcome.At
	Fail    Kind = "fail"    // never: gone, together with the bounce in the same step
	Park    Kind = "park"    // an operator has to look
	Reroute Kind = "reroute" // the side does not know the user: ask Outcome.To, at once
	Release Kind = "release" // nothing was tried: as before the claim, not an attempt
	Defer   Kind = "defer"   // nothing was tried: again at Outcome.At, not an attempt and not the end of a row of crashes
)

// Outcome is the result for one Item of a lease.
type Outcome struct {
	N     int    // Item.N
	Kind  Kind   //
	Reply string // what the backend said or what went wrong, for operators
	At    time.Time
	// To is the side to ask next (Reroute).
	To mail.Route
	// Noticed says that a delay notice is among the new messages.
	Noticed bool
	// Doubt says that the recipient may have the message nevertheless (Retry: the
	// final dot went out and no reply came) or still (Defer: a look did not settle
	// it). Without it a doubt is over. Where nothing but "done" is accepted any
	// more, because the user was changed, the doubt is recorded all the same.
	Doubt bool
	// Notice is the new message that tells the sender of this outcome; empty: none
	// does.
	Notice mail.ID
}

// NewMessage is a message that Settle queues in the same step: a bounce, a
// delay notice or a success notice.
type NewMessage struct {
	Envelope *mail.Envelope
	Body     []byte
}

// Enqueuer takes messages in.
type Enqueuer interface {
	// Put reads body to its end and stores it with the envelope; nil means that
	// all of it is on stable storage (I1). An error of body is returned as it
	// is, and then nothing was queued. Each recipient starts as queued, or as
	// held when his user is. A repeated Put of the same id is one message.
	// Put sets Envelope.Size and does not keep env. ErrFull when there is no room.
	Put(ctx context.Context, env *mail.Envelope, body io.Reader) error
	// Room tells whether a message of size octets (0: unknown) would be taken
	// now: nil, or ErrFull, or what else is wrong. It is cheap.
	Room(size int64) error
}

// Deliverer hands out work.
type Deliverer interface {
	// Claim waits until a delivery over the route is due and leases it: one
	// message, those of its recipients that go this way now, at most maxRcpts.
	// The route is decided here, by the users' states (I3). Recipients in doubt
	// come in leases of their own. It returns ctx's error when ctx ends first.
	Claim(ctx context.Context, route mail.Route, maxRcpts int) (*Lease, error)
	// Renew prolongs the lease and moves l.Until. sending must be true right before
	// the final dot; from then on the lease is not taken back. ErrLost: stop, no dot.
	Renew(ctx context.Context, l *Lease, sending bool) error
	// Settle records the outcomes and queues the new messages, in one step.
	// Items without an outcome count as Release. Done is accepted even when the
	// lease was lost; anything else then is ignored and ErrLost is returned.
	// When an item with CopyTo is done, its copy is queued in the same step.
	Settle(ctx context.Context, l *Lease, outcomes []Outcome, msgs ...NewMessage) error
	// Open streams a message's body. Its Read returns ErrCorrupt instead of
	// io.EOF when the checksum is wrong.
	Open(ctx context.Context, id mail.ID) (io.ReadCloser, error)
}

// Filter selects recipients of queued messages. Zero fields select all.
type Filter struct {
	IDs    []mail.ID  `json:"ids,omitempty"`
	State  State      `json:"state,omitempty"`
	Route  mail.Route `json:"route,omitempty"`
	User   string     `json:"user,omitempty"`   // key of the state table
	Rcpt   string     `json:"rcpt,omitempty"`   // part of the recipient's address
	From   string     `json:"from,omitempty"`   // part of the reverse-path; "<>" is the null reverse-path
	Before time.Time  `json:"before,omitzero"`  // received before
	Reason string     `json:"reason,omitempty"` // part of the last reply
}

// Rcpt is the present state of one recipient, for people.
type Rcpt struct {
	mail.Recipient
	N         int          `json:"n"`
	State     State        `json:"state"`
	HeldBy    string       `json:"held_by,omitempty"` // "user" or "operator"
	Route     mail.Route   `json:"route,omitempty"`   // where it would go now; empty while held by its user
	Forced    bool         `json:"forced,omitempty"`  // an operator or I8 chose the route
	Copy      bool         `json:"copy,omitempty"`
	Due       time.Time    `json:"due,omitzero"`
	Since     time.Time    `json:"since"`
	Attempts  int          `json:"attempts"`
	Crashes   int          `json:"crashes,omitempty"`
	Unknown   []mail.Route `json:"unknown,omitempty"`
	LastReply string       `json:"last_reply,omitempty"`
	Doubt     Doubt        `json:"doubt,omitzero"` // it may have arrived already
}

// Entry is one queued message with those of its recipients that are not gone.
type Entry struct {
	Envelope *mail.Envelope `json:"envelope"`
	Rcpts    []Rcpt         `json:"recipients"`
}

// Verb is what an operator does to queued mail.
type Verb string

// The verbs.
const (
	DoRetry   Verb = "retry"   // due now; parked mail too
	DoHold    Verb = "hold"    // until released
	DoRelease Verb = "release" // from an operator's hold; a user's state still holds
	DoPark    Verb = "park"
	DoReroute Verb = "reroute" // to Action.Route, until the user's state changes
	DoDelete  Verb = "delete"  // for good; audited by the caller
)

// Action is what an operator does, and why.
type Action struct {
	Verb   Verb       `json:"action"`
	Route  mail.Route `json:"route,omitempty"`
	Reason string     `json:"reason,omitempty"`
	By     string     `json:"by,omitempty"` // who; for the journal
}

// Applied counts recipients.
type Applied struct {
	Changed int `json:"changed"`
	Busy    int `json:"busy"` // being sent just now: not changed
}

// Stats describes the queue at one moment. Counts are recipients.
type Stats struct {
	Messages int                `json:"messages"`
	Bytes    int64              `json:"bytes"` // of bodies
	States   map[State]int      `json:"states"`
	Routes   map[mail.Route]int `json:"routes"` // queued, by where it would go
	Oldest   time.Time          `json:"oldest,omitzero"`
	Free     int64              `json:"free_bytes"` // room left on the store's medium; -1 unknown
}

// Inspector is the operators' view.
type Inspector interface {
	// List gives messages that have a recipient that matches, in the order of
	// ids, with all their recipients, from behind cursor. limit is of messages.
	List(ctx context.Context, f Filter, cursor string, limit int) (entries []Entry, next string, err error)
	// Get gives one message; ErrNotFound.
	Get(ctx context.Context, id mail.ID) (Entry, error)
	// Apply does a to every recipient that matches, in slices; it can be
	// repeated after an error.
	Apply(ctx context.Context, f Filter, a Action) (Applied, error)
	// Stats counts. It is cheap enough to be asked every few seconds.
	Stats(ctx context.Context) (Stats, error)
}

// Store is all of it. Each method changes atomically, a nil error means that
// the change is durable, and every call may be repeated after an error.
type Store interface {
	Enqueuer
	Deliverer
	Inspector
}
