package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/backfill"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Options tunes a Store.
type Options struct {
	// Node is this node's name; no two that run may have the same. Default: the
	// host's name.
	Node string
	// Info is what the other nodes and operators see of this one.
	Info Info
	// MaxBytes bounds the octets of queued bodies, of all nodes together; 0:
	// only Redis does.
	MaxBytes int64
	// LeaseTime is how long a lease lasts without Renew. Default
	// [queue.LeaseTime].
	LeaseTime time.Duration
	// Logger gets alarms and what the store does by itself; nil: nobody.
	Logger *slog.Logger
	// Waiting, when not nil, is told why Open waits.
	Waiting func(err error)
	// CrashPoint, for tests, is called at each step at which a process may be
	// killed.
	CrashPoint func(name string)

	pace   pace        // for tests; zero: usualPace
	frozen func() bool // for tests: the node does not get to its beat
}

// Store is one node's view of the shared store. It is safe for concurrent use.
type Store struct {
	opts   Options
	log    *slog.Logger
	server *Server
	link   *link
	bodies *bodies
	lanes  [laneOut + 1]*lane
	health health

	boot    string // of this life of the node
	tokens  atomic.Uint64
	putting atomic.Int32 // puts under way
	resolve resolver
	node    presence

	ctx    context.Context // of the store's own work
	cancel context.CancelFunc
	wg     sync.WaitGroup
	calls  sync.RWMutex // held for reading by calls; for writing by Close
	closed atomic.Bool
	once   sync.Once

	failOnce sync.Once
	failed   chan struct{}
	failure  atomic.Pointer[error]

	mu     sync.Mutex
	leases map[string]*lease // granted to this process, by token
	inUse  map[mail.ID]inUse // their messages
}

var (
	_ queue.Store     = (*Store)(nil)
	_ router.Table    = (*Store)(nil)
	_ backfill.Ledger = (*Store)(nil)
)

func (o *Options) defaults() error {
	if o.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("open the store: this node has no name: %w (give it one)", err)
		}
		o.Node = name
	}
	if o.LeaseTime <= 0 {
		o.LeaseTime = queue.LeaseTime
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Open joins the store that server leads to, as a node. It waits for Redis
// until ctx ends, and refuses a server that would lose what it acknowledged. The
// store owns server from now on. Close it in the end.
func Open(ctx context.Context, server *Server, opts Options) (*Store, error) {
	if err := opts.defaults(); err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, log: opts.Logger.With("node", opts.Node), server: server, boot: rand.Text()[:13],
		failed: make(chan struct{}), leases: map[string]*lease{}, inUse: map[mail.ID]inUse{},
	}
	s.node.poke = make(chan struct{}, 1)
	s.link = newLink(server, s.log)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.bodies = newBodies(server)
	for l := laneOld; l <= laneOut; l++ {
		s.lanes[l] = newLane(s, l)
	}
	if err := s.join(ctx); err != nil {
		s.cancel()
		s.link.close()
		server.Close()
		return nil, err
	}
	for l := laneOld; l <= laneOut; l++ {
		s.wg.Go(s.lanes[l].run)
	}
	s.wg.Go(s.listen)
	s.wg.Go(s.keep)
	s.wg.Go(s.watch)
	s.wg.Go(s.beats)
	s.wg.Go(s.sweepBodies)
	return s, nil
}

// enter begins a call; it fails when the store is closed.
func (s *Store) enter() error {
	s.calls.RLock()
	if s.closed.Load() {
		s.calls.RUnlock()
		return queue.ErrClosed
	}
	if err := s.Err(); err != nil {
		s.calls.RUnlock()
		return err
	}
	return nil
}

func (s *Store) leave() { s.calls.RUnlock() }

// Close leaves the store: what this node has leased is given back, as if it
// had not been claimed. It may be called more than once.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		s.closed.Store(true)
		s.cancel() // claims that wait end
		s.calls.Lock()
		defer s.calls.Unlock()
		s.wg.Wait()
		s.resolveAll() // one try
		if n := len(s.resolve.take()); n > 0 {
			s.log.Warn("messages that were answered 451 without an answer of Redis may be queued all the same: duplicates are possible", "messages", n)
		}
		s.part()
		s.link.close()
		err = s.server.Close()
	})
	return err
}

// Failed is closed when the store stopped itself; see [Store.Err].
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err says why the store stopped itself; nil while it works. That Redis does
// not answer is no reason: the store waits for it.
func (s *Store) Err() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail stops the store for good.
func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		err = errors.Join(queue.ErrClosed, err)
		s.failure.Store(&err)
		s.log.Error("the store stopped itself", "err", err, "alarm", true)
		close(s.failed)
		s.cancel()
	})
}

func (s *Store) crash(point string) {
	if s.opts.CrashPoint != nil {
		s.opts.CrashPoint(point)
	}
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
