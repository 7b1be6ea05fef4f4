package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/backfill"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Options tunes a Store. The zero value is good for production.
type Options struct {
	// MaxBytes bounds the octets of queued bodies; 0: only the disk does.
	MaxBytes int64
	// MinFree is the room in octets that mail leaves on the file system, so
	// that what is queued can still be settled. Default 64 MiB; negative: none,
	// and the store's reserve has to do.
	MinFree int64
	// MemoryBudget bounds the octets of bodies that are kept in memory while
	// they arrive; beyond it, small ones go to files of their own early.
	// Default 32 MiB.
	MemoryBudget int64
	// ClaimWindow is how many messages per route are kept in memory, ready to
	// be claimed, or fewer when they have more than eight recipients each. The
	// rest waits on disk. Default 4096.
	ClaimWindow int
	// LeaseTime is how long a lease lasts without Renew. Default
	// [queue.LeaseTime].
	LeaseTime time.Duration
	// Logger gets alarms and what the store does by itself; nil: nobody.
	Logger *slog.Logger
	// Now is the clock for due times and history; default [time.Now]. Leases
	// use the monotonic clock whatever it says.
	Now func() time.Time
	// CrashPoint, for tests, is called with a name of [CrashPoints] at each
	// step at which a process may be killed.
	CrashPoint func(name string)

	sync         func(*os.File) error // of body files
	syncDoubt    func(*os.File) error // of the note of deliveries under way
	beforeCommit func() error         // a commit that fails
	write        func(*os.File) error // before a write to a segment
	earlyAck     bool                 // broken on purpose: answers before the commit
	staleRoute   bool                 // broken on purpose: routes from a cache that is never updated
	lateLines    bool                 // broken on purpose: lines of the journal are written a transaction later
	noJournal    bool                 // to measure what the journal costs: nothing is noted
	reserve      int64                // octets; negative: none
	segmentSize  int64
	sparse       int64 // segments of which less than 1/sparse is live are carried forward
	horizon      time.Duration
	// checkpointPages is how long the write-ahead log may grow, about.
	checkpointPages int
}

// grace is how long after the end of its lease a delivery whose final dot may
// be on its way still counts as busy.
const grace = 60 * time.Second

func (o *Options) defaults() {
	if o.MinFree == 0 {
		o.MinFree = 64 << 20
	}
	if o.MemoryBudget == 0 {
		o.MemoryBudget = 32 << 20
	}
	if o.ClaimWindow <= 0 {
		o.ClaimWindow = 4096
	}
	if o.LeaseTime <= 0 {
		o.LeaseTime = queue.LeaseTime
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.sync == nil {
		o.sync = dataSync
	}
	if o.reserve == 0 {
		o.reserve = reserveSize
	}
	if o.segmentSize == 0 {
		o.segmentSize = segmentSize
	}
	if o.sparse == 0 {
		o.sparse = 4
	}
	if o.checkpointPages == 0 {
		o.checkpointPages = checkpointPages
	}
	if o.horizon == 0 {
		o.horizon = 2 * time.Minute
	}
}

// Store is the embedded store. It is safe for concurrent use.
type Store struct {
	opts        Options
	dir         string
	log         *slog.Logger
	lock        *os.File
	db          *conn // the writer's
	readers     chan *conn
	files       *files
	doubt       *doubtFile
	doubtful    []DoubtfulDelivery
	budget      atomic.Int64
	space       spaceCache
	reserve     *reserve
	segmentSize int64
	window      int
	horizon     time.Duration

	// the writer's own
	wbuf    []byte
	retired []*bodyFile
	syncReq chan []*bodyFile
	syncAns chan error
	refused bool   // the last commit was rolled back
	frames  int    // pages in the write-ahead log since the last checkpoint, about
	lines   []byte // of the journal, in the transaction that is open
	outbox  uint64 // number of the newest row of the outbox
	late    []byte // of Options.lateLines

	ops  chan *op
	kick chan struct{} // to the writer: there is work in memory
	poke chan struct{} // to the clock: something is due earlier
	quit chan struct{}
	wg   sync.WaitGroup
	sent sync.WaitGroup // operations handed to the writer

	failOnce  sync.Once
	failed    chan struct{}
	failure   atomic.Pointer[error]
	closeOnce sync.Once
	closeErr  error

	mu       sync.Mutex
	closed   bool
	users    map[string]*ustate
	userVer  uint64 // counts changes to users
	msgs     map[mail.ID]*msg
	rcpts    int // of the envelopes in msgs
	lanes    [laneOut + 1]laneq
	timers   timers
	armed    int64
	leases   map[*lease]struct{}
	ghosts   map[*lease]time.Time // lost while sending: busy until then
	tokens   uint64
	filing   []*item            // to be filed as held
	dead     []loc              // bodies that nothing refers to any more
	jobs     map[string]*refile // by user
	bg       []*op              // of the store itself
	count    [laneCount]int
	messages int
}

var (
	_ queue.Store     = (*Store)(nil)
	_ router.Table    = (*Store)(nil)
	_ backfill.Ledger = (*Store)(nil)
)

// Open opens the store in dir, which it makes when there is none, and starts
// its background work. One process at a time: a second one gets an error that
// names the directory. Close it in the end.
func Open(dir string, opts Options) (*Store, error) {
	opts.defaults()
	if err := makeDir(filepath.Clean(dir), opts.sync); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, dir: dir, log: opts.Logger, lock: lock, segmentSize: opts.segmentSize,
		window: opts.ClaimWindow, horizon: opts.horizon,
		readers: make(chan *conn, readerCount), syncReq: make(chan []*bodyFile), syncAns: make(chan error),
		ops: make(chan *op, 1024), kick: make(chan struct{}, 1), poke: make(chan struct{}, 1),
		quit: make(chan struct{}), failed: make(chan struct{}),
		users: map[string]*ustate{}, msgs: map[mail.ID]*msg{}, leases: map[*lease]struct{}{},
		ghosts: map[*lease]time.Time{}, armed: never, jobs: map[string]*refile{},
	}
	s.budget.Store(opts.MemoryBudget)
	if err := s.load(); err != nil {
		s.release()
		return nil, err
	}
	s.wg.Go(s.writer)
	s.wg.Go(s.syncer)
	s.wg.Go(s.clock)
	s.wg.Go(s.collector)
	s.wg.Go(s.keeper)
	s.wg.Go(s.syncDoubts)
	s.wg.Go(s.findMisfiled)
	return s, nil
}

// readerCount is how many connections read the database beside the writer.
const readerCount = 4

// load opens the files and brings counts and doubts up to date.
func (s *Store) load() (err error) {
	s.openReserve()
	if s.files, err = openFiles(s.dir, s.opts.sync); err != nil {
		return err
	}
	if s.db, err = openDB(s.dir, len(s.files.byNum)); err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil {
		return fmt.Errorf("sync the store's directory: %w", err)
	}
	for range readerCount {
		c, err := openConn(dsn(s.dir, true))
		if err != nil {
			return explain(filepath.Join(s.dir, dbName), err)
		}
		s.readers <- c
	}
	if err := s.recover(); err != nil {
		return explain(filepath.Join(s.dir, dbName), err)
	}
	s.firstReserve()
	return nil
}

// release closes whatever is open.
func (s *Store) release() error {
	var errs []error
	if s.doubt != nil {
		errs = append(errs, s.doubt.close())
	}
	close(s.readers)
	for c := range s.readers {
		errs = append(errs, c.close())
	}
	if s.db != nil {
		errs = append(errs, s.db.close())
	}
	if s.files != nil {
		s.files.close()
	}
	errs = append(errs, unlock(s.lock))
	return errors.Join(errs...)
}

// Close ends the store: calls that wait return queue.ErrClosed, what was
// handed in before is finished, and leases end without a count. It may be
// called again.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.sent.Wait()
		close(s.quit)
		s.wg.Wait()
		var err error
		if s.Err() == nil && s.doubt != nil {
			s.mu.Lock()
			left := slices.AppendSeq(slices.Collect(maps.Keys(s.leases)), maps.Keys(s.ghosts))
			s.mu.Unlock()
			err = s.doubt.clean(left)
		}
		s.closeErr = errors.Join(err, s.release())
	})
	return s.closeErr
}

// Failed is closed when the store has stopped itself after a failed write,
// sync or commit. Nothing is repeated then: the process has to exit and start
// again, and the medium has to be looked at.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err is the reason why the store has stopped itself; nil while it works.
func (s *Store) Err() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail stops the store for good and gives the error that every call gets from
// now on.
func (s *Store) fail(cause error) error {
	s.failOnce.Do(func() {
		err := fmt.Errorf("%w: it stopped itself, start it again after a look at the disk: %w", queue.ErrClosed, cause)
		s.failure.Store(&err)
		s.log.Error("the store stopped itself: a write failed", "error", cause, "alarm", true)
		close(s.failed)
	})
	return s.Err()
}

// usable gives the error of a store that is closed or has failed.
func (s *Store) usable() error {
	if err := s.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return queue.ErrClosed
	}
	return nil
}

// read runs f on a reading connection.
func (s *Store) read(ctx context.Context, f func(*conn) error) error {
	if err := s.enterCall(); err != nil {
		return err
	}
	defer s.sent.Done()
	select {
	case c := <-s.readers:
		defer func() { s.readers <- c }()
		return f(c)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enterCall counts a call that Close has to wait for.
func (s *Store) enterCall() error {
	if err := s.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return queue.ErrClosed
	}
	s.sent.Add(1)
	return nil
}

// now is the wall clock in milliseconds.
func (s *Store) now() int64 { return s.opts.Now().UnixMilli() }

func (s *Store) crash(name string) {
	if s.opts.CrashPoint != nil {
		s.opts.CrashPoint(name)
	}
}

func (s *Store) kickWriter() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}
