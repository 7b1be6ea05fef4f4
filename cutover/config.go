package cutover

import (
	"context"
	"log/slog"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// Copier is what the conductor asks of the backfill.
type Copier interface {
	Pass(ctx context.Context, job backfill.Job, o backfill.Options) (backfill.Report, error)
	Verify(ctx context.Context, job backfill.Job) (backfill.Verification, error)
}

// Mailboxes says where a user's mailbox lies on both sides and how to log in.
// An error means that the conductor cannot work for this user.
type Mailboxes interface {
	Job(u router.User) (backfill.Job, error)
}

// Config is what a Conductor works with. Table, Copier, Mailboxes and Requests
// are required; the zero values of the rest get the defaults named.
type Config struct {
	Table     router.Table
	Copier    Copier
	Mailboxes Mailboxes
	// Looker is needed by Plan and Inventory alone.
	Looker Looker
	// Requests keeps what operators asked for over a restart, in records of its
	// own beside the backfill's.
	Requests backfill.Ledger

	// Owners shares the users out over nodes that work on one table; nil: all of
	// them are this process's own. Board, which goes with it, lets them see each
	// other's statuses. Node is the name of this one.
	Owners  Owners
	Board   Board
	Node    string
	OwnTime time.Duration // 30 seconds: so long after a node died its users are another's

	AutoApprove bool          // a user who is ready flips without being told
	MaxHold     time.Duration // 10 minutes: longer, and the user is ready again
	Concurrency int           // 4 users at once
	Tail        time.Duration // 1 minute between the passes over all folders of a ready user
	// Watcher tells of changes between those; nil: nobody does. TailPlaces is how
	// many passes that follow it run at once, beside Concurrency: 2.
	Watcher    Watcher
	TailPlaces int
	// MaxHeld and FlipsPerMinute bound how many users are held at once and how many
	// holds begin in a minute, on all nodes together; 0: no bound of their own.
	MaxHeld, FlipsPerMinute int
	// StopAfter is how many attempts at a flip may fail in a row before a wave
	// stops by itself, StopShare which part of its users (three at least) may have
	// failed last, from 0 to 1; 0: it never stops for that.
	StopAfter int
	StopShare float64

	// LatePass is how long after the flip one pass is made for a delivery frozen
	// before its dot: 2 minutes, or Window when that is shorter.
	LatePass time.Duration

	// Window is how long after the flip mail is looked for on old at least: 7 days;
	// below zero none. MayClose, when there is one, is asked before a window is
	// closed; its error says what is missing.
	Window   time.Duration
	MayClose func(ctx context.Context) error
	// SweepNew looks for mail on new before the flip too, also for users in the
	// table who are old.
	SweepNew bool
	// Mirror keeps old current after the flip, so that a rollback takes seconds.
	Mirror bool
	// SweepPlaces is how many looks into all folders of mailboxes that are not read
	// run at once, beside the other places: 2.
	SweepPlaces int

	RetryFirst time.Duration // 30 seconds after the first failure, doubled up to RetryMax
	RetryMax   time.Duration // 1 hour

	Hooks Hooks
	Log   *slog.Logger
}

// Hooks are told what happens. Each may be nil; none may block.
type Hooks struct {
	Status  func(Status)        // at every change of a status
	Changed func(router.Change) // a user was set to another state
	Passed  func(Passed)        // a pass ended, by an error too
	Flipped func(hold time.Duration)
	// RolledBack: a user reads old again, after his mail was held for hold.
	RolledBack func(hold time.Duration)
	Failed     func() // an attempt failed; it is made again
	// Found: mail was found in a mailbox that its user does not read, and carried to
	// the one that he reads.
	Found func(Stray)
	// Lagged: what a Watcher told of was carried; after is the time from the first
	// signal to the end of the pass.
	Lagged func(after time.Duration)
	// Copying tells of messages that were appended, and their octets, while passes
	// run.
	Copying func(messages int, octets int64)
	// Stopped: a wave stopped by itself.
	Stopped func(Pause)
}

// Passed is the end of a pass. With an error Report says what was done before it.
type Passed struct {
	User   string
	Report backfill.Report
	Err    error
	// New are problems that the pass before it, as far as it is known, had not.
	New []backfill.Problem
	// Back: the pass was one from new to old.
	Back bool
}
