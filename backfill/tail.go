package backfill

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"crossfade/backfill/imapconn"

	"golang.org/x/time/rate"
)

// TailConfig is what a Tail works with. The zero value gives the defaults named.
type TailConfig struct {
	// Standing is how many connections to one server stand by and are told of
	// changes at once (IDLE, NOTIFY): 50. A negative number means none.
	Standing int
	// Polls is how many further connections to one server are open at a time, to
	// ask for the folders that have no standing one: 4.
	Polls int
	// PollRate is how many logins in a second these make at most: 100.
	PollRate float64
	// Every is the time between two polls of a folder, when Polls and PollRate
	// allow: 1 minute.
	Every time.Duration
	// Stay is how long a standing connection is left to its folder before another
	// one that is more alive may have it: 2 minutes.
	Stay time.Duration
	// Regain is how often the bounds are raised again by a quarter after a server
	// refused connections: 10 minutes.
	Regain time.Duration
	// RetryFirst is the pause after a connection failed, which doubles up to
	// RetryMax: 1 second and 1 minute.
	RetryFirst, RetryMax time.Duration

	Watching imapconn.Watching
	Dialer   imapconn.Dialer
	Log      *slog.Logger // nil: silent
}

// Tail watches folders of many mailboxes over few connections, and says when
// something changes in one. The most alive ones have standing connections; the
// others are asked for in turn, each by a short login and a STATUS. It knows
// nothing of where changes go: it is told which folder of which account to watch.
//
// What it costs: about half a KiB for a folder that is watched; for one with a
// standing connection a goroutine, two buffers of 4 KiB, and what TLS needs, some
// 50 KiB in all. Make it with NewTail, start it with Run.
type Tail struct {
	cfg TailConfig

	mu      sync.Mutex
	ctx     context.Context // of Run; nil: it does not run
	wg      sync.WaitGroup
	servers map[string]*tailServer // by address
}

// tailBuffer is the size of the buffers of a connection, in octets.
const tailBuffer = 4 << 10

// NewTail makes a tail; nothing runs before Run.
func NewTail(cfg TailConfig) *Tail {
	cfg.Standing = max(cmp.Or(cfg.Standing, 50), 0)
	cfg.Polls = max(cmp.Or(cfg.Polls, 4), 1)
	if cfg.PollRate <= 0 {
		cfg.PollRate = 100
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.Every, time.Minute)
	def(&cfg.Stay, 2*time.Minute)
	def(&cfg.Regain, 10*time.Minute)
	def(&cfg.RetryFirst, time.Second)
	def(&cfg.RetryMax, time.Minute)
	def(&cfg.Dialer.Idle, 30*time.Second)
	cfg.Dialer.Buffer = cmp.Or(cfg.Dialer.Buffer, tailBuffer)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Tail{cfg: cfg, servers: map[string]*tailServer{}}
}

// Run connects and watches until ctx ends, and returns when all connections are
// closed. It may be called again after that.
func (t *Tail) Run(ctx context.Context) error {
	t.mu.Lock()
	t.ctx = ctx
	for _, s := range t.servers {
		t.wg.Go(func() { s.govern(ctx) })
	}
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.ctx = nil
	t.mu.Unlock()
	t.wg.Wait()
	return nil
}

// Watch calls changed whenever something may have changed in a folder of an
// account, the folder being its name on the wire, until stop is called. changed
// gets the name of the folder, the empty name for any folder of the account; it
// must not block, and may be called once more while stop is at work. That nothing
// is told does not prove that nothing happened: a look at all folders from time to
// time is the caller's.
//
// Any goroutine may call Watch and stop, before, during and after Run.
func (t *Tail) Watch(acct imapconn.Account, folder string, changed func(folder string)) (stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.servers[acct.Server.Address]
	if s == nil {
		s = newTailServer(t, acct.Server.Address)
		t.servers[acct.Server.Address] = s
		if t.ctx != nil {
			ctx := t.ctx
			t.wg.Go(func() { s.govern(ctx) })
		}
	}
	now := time.Now()
	w := &watching{acct: acct, folder: folder, changed: changed, active: now}
	s.all++
	s.push(w, now.Add(rand.N(t.cfg.Every)))
	s.poke()
	return func() { s.drop(w) }
}

// TailStats is how a Tail stands with one server.
type TailStats struct {
	Server   string `json:"server"` // host:port
	Watched  int    `json:"watched"`
	Standing int    `json:"standing"` // watched by a connection of their own now
	Bound    int    `json:"bound"`    // the most of these; less than asked for when the server refused some
	Changes  int64  `json:"changes"`  // told since the start
	Polls    int64  `json:"polls"`    // made since the start
}

// Stats gives figures for each server, by address.
func (t *Tail) Stats() []TailStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []TailStats
	for _, s := range t.servers {
		out = append(out, TailStats{Server: s.address, Watched: s.all, Standing: s.up, Bound: s.bound, Changes: s.changes, Polls: s.polled})
	}
	slices.SortFunc(out, func(a, b TailStats) int { return cmp.Compare(a.Server, b.Server) })
	return out
}

// watching is one folder that is watched. Fields below the first are guarded by
// Tail.mu.
type watching struct {
	acct    imapconn.Account
	folder  string
	changed func(folder string)

	place  place
	at     int       // in the queue
	due    time.Time // of the next poll, or of the next try to connect
	active time.Time // the last change that was seen, or the beginning
	since  time.Time // standing since
	// known is what the folder held last, nil when that is not known; seen tells
	// that it was ever.
	known    *imapconn.Status
	seen     bool
	failures int // in a row
	benched  time.Time
	gone     bool
	cancel   context.CancelFunc // of a standing connection
}

// place says who works on a folder.
type place int

const (
	queued   place = iota // for its next poll
	polling               // is being polled
	reserved              // waits to connect again
	standing              // has a connection, or is about to
)

// same tells whether a folder is as it was, as far as a server tells.
func same(a, b imapconn.Status) bool {
	return a.Messages == b.Messages && a.UIDNext == b.UIDNext && a.UIDValidity == b.UIDValidity &&
		(a.ModSeq == b.ModSeq || a.ModSeq == 0 || b.ModSeq == 0)
}

// tailServer is a server and what is watched on it. Its fields are guarded by
// Tail.mu.
type tailServer struct {
	t       *Tail
	address string
	wake    chan struct{} // one token: look again
	logins  *rate.Limiter // of polls

	all       int
	queue     pollQueue
	reserves  map[*watching]bool
	stands    map[*watching]bool
	up        int // of stands: connected
	polls     int // at work
	bound     int // on stands and reserves
	pollBound int // on polls
	raise     time.Time
	warned    bool // of a bound that was lowered
	// lastRefused is whom the server had no connection for when he was polled.
	lastRefused *watching
	pollNext    time.Time // no poll before

	// After failures to connect nobody tries before until, and then one at a time
	// until it works again.
	failures int
	until    time.Time
	probing  bool

	changes, polled int64
}

func newTailServer(t *Tail, address string) *tailServer {
	return &tailServer{
		t: t, address: address, wake: make(chan struct{}, 1), bound: t.cfg.Standing, pollBound: t.cfg.Polls,
		logins:   rate.NewLimiter(rate.Limit(t.cfg.PollRate), max(int(t.cfg.PollRate/10), 1)),
		reserves: map[*watching]bool{}, stands: map[*watching]bool{},
	}
}

func (s *tailServer) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drop ends the watch of a folder.
func (s *tailServer) drop(w *watching) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if w.gone {
		return
	}
	w.gone = true
	s.all--
	switch w.place {
	case queued:
		s.queue.remove(w)
	case reserved:
		delete(s.reserves, w)
	case standing:
		w.cancel()
	case polling: // its end sees that it is gone
	}
	s.poke()
}
