package redis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/queue"
)

// Bounds of a call.
const (
	callTime  = 30 * time.Second // how long a call is repeated before it is given up
	replyTime = 15 * time.Second // for one reply; beyond it the connection is dropped
	waitTime  = 2 * time.Second  // for the replicas
	maxBatch  = 128              // calls in one pipeline
	maxFlight = 4 << 20          // octets in one pipeline, about
)

// Why a write that Redis executed does not count.
var (
	errReplicas  = errors.New("too few replicas have the write")
	errNotSynced = errors.New("waiting until the write is synced: WAITAOF says that it is not")
	// errTried is in the error of a call of which an earlier try may have been
	// executed, whatever the last one was answered.
	errTried = errors.New("an earlier try had no answer")
)

// call is one run of a script on its way.
type call struct {
	sc      *script
	args    []any
	size    int
	durable bool // a promise hangs on it
	done    chan struct{}
	val     any
	err     error
}

// link speaks to the server that holds the metadata. Calls that arrive while
// one pipeline is under way go out together in the next.
type link struct {
	server *Server
	prefix string
	log    *slog.Logger
	writes chan *call // a promise hangs on them: they may wait for replicas
	others chan *call
	quit   chan struct{}
	wg     sync.WaitGroup
	offset atomic.Int64 // of the server's clock to ours, in ms
	sick   sickness
}

// sickness remembers whether Redis answered last, and whether what it answers
// would hold; for Room and readiness.
type sickness struct {
	mu     sync.Mutex
	err    error // of the last exchange
	unsafe error // found by the last recheck; stays until the next
}

func (s *sickness) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// found notes what a recheck came to, and gives what the one before did.
func (s *sickness) found(err error) (before error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, s.unsafe = s.unsafe, err
	return before
}

func (s *sickness) get() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsafe != nil {
		return s.unsafe
	}
	return s.err
}

func newLink(server *Server, log *slog.Logger) *link {
	l := &link{
		server: server, prefix: server.prefix(), log: log, quit: make(chan struct{}),
		writes: make(chan *call, 1024), others: make(chan *call, 1024),
	}
	for range 2 {
		l.wg.Go(func() { l.flush(l.writes) })
		l.wg.Go(func() { l.flush(l.others) })
	}
	return l
}

func (l *link) close() {
	close(l.quit)
	l.wg.Wait()
}

// now is the server's time in ms, about.
func (l *link) now() int64 { return time.Now().UnixMilli() + l.offset.Load() }

// saw notes the server's time as a reply gave it.
func (l *link) saw(ms int64) { l.offset.Store(ms - time.Now().UnixMilli()) }

// write runs a script on which a promise hangs: nil means that what it wrote
// is safe. Without an answer it is repeated, so the script has to know a
// repeated call; when the last try has no answer either, the outcome is not
// known.
func (l *link) write(ctx context.Context, sc *script, args ...any) (any, error) {
	return l.run(ctx, l.writes, sc, true, args)
}

// read runs a script that promises nothing.
func (l *link) read(ctx context.Context, sc *script, args ...any) (any, error) {
	return l.run(ctx, l.others, sc, false, args)
}

func (l *link) run(ctx context.Context, ch chan *call, sc *script, durable bool, args []any) (any, error) {
	deadline := time.Now().Add(callTime)
	pause := 10 * time.Millisecond
	for tries := 1; ; tries++ {
		c := &call{sc: sc, args: args, durable: durable, done: make(chan struct{})}
		for _, a := range args {
			switch v := a.(type) {
			case string:
				c.size += len(v)
			case []byte:
				c.size += len(v)
			}
		}
		select {
		case ch <- c:
		case <-l.quit:
			return nil, queue.ErrClosed
		}
		select {
		case <-c.done: // it ends within replyTime, whatever ctx says: the answer counts
		case <-l.quit:
			select {
			case <-c.done:
			case <-time.After(replyTime):
				return nil, queue.ErrClosed
			}
		}
		if c.err == nil {
			return c.val, nil
		}
		again, err := l.judge(c.err)
		if tries > 1 {
			err = fmt.Errorf("%w (%w)", err, errTried)
		}
		if !again || ctx.Err() != nil || time.Now().Add(pause).After(deadline) {
			return nil, fmt.Errorf("redis: %s: %w", sc.name, err)
		}
		if !l.pause(ctx, pause) {
			return nil, fmt.Errorf("redis: %s: %w", sc.name, err)
		}
		pause = min(2*pause, time.Second)
	}
}

func (l *link) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-l.quit:
	}
	return false
}

// judge tells whether a call that failed so may be repeated, and gives the
// error as callers know it.
func (l *link) judge(err error) (again bool, _ error) {
	if errors.Is(err, errUnsafe) {
		return false, err
	}
	text := err.Error()
	switch code, _, _ := strings.Cut(text, " "); code {
	case "OOM":
		return false, fmt.Errorf("%w: Redis is at its maxmemory", queue.ErrFull)
	case "NOREPLICAS", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "BUSY", "MISCONF", "UNBLOCKED":
		return true, err
	case "NOPERM":
		return false, fmt.Errorf("%w (the ACL user needs more rights: see docs/redis.md for the line)", err)
	case "WRONGPASS", "NOAUTH":
		return true, fmt.Errorf("%w (check user and password of the store)", err)
	case "ERR", "WRONGTYPE", "IMPORT":
		return false, err
	}
	return true, err // the connection: broken, refused, timed out; or too few replicas
}

// flush sends calls in pipelines, one after the other, over a connection of
// its own.
func (l *link) flush(ch chan *call) {
	var w *wire
	defer func() {
		if w != nil {
			w.close()
		}
		l.drop(ch)
	}()
	for {
		var batch []*call
		select {
		case c := <-ch:
			batch = append(batch, c)
		case <-l.quit:
			return
		}
		size := batch[0].size
	more:
		for len(batch) < maxBatch && size < maxFlight {
			select {
			case c := <-ch:
				batch = append(batch, c)
				size += c.size
			default:
				break more
			}
		}
		w = l.exchange(w, batch)
	}
}

// drop answers what nobody will send any more.
func (l *link) drop(ch chan *call) {
	for {
		select {
		case c := <-ch:
			c.err = queue.ErrClosed
			close(c.done)
		default:
			return
		}
	}
}

// exchange sends a batch and gives the connection to go on with, nil when it
// is no good any more.
func (l *link) exchange(w *wire, batch []*call) *wire {
	ctx, cancel := context.WithTimeout(context.Background(), replyTime)
	defer cancel()
	defer func() {
		for _, c := range batch {
			close(c.done)
		}
	}()
	if w == nil {
		var err error
		if w, err = l.server.hosts.connect(ctx, l.prefix+"w"); err != nil {
			l.sick.set(err)
			for _, c := range batch {
				c.err = err
			}
			return nil
		}
	}
	ask := l.admit(w, batch)
	good := l.send(ctx, w, ask, false)
	var again []*call
	for _, c := range ask {
		if c.err != nil && strings.HasPrefix(c.err.Error(), "NOSCRIPT") {
			again = append(again, c)
		}
	}
	if good {
		good = l.send(ctx, w, again, true)
	}
	if !good {
		w.close()
		l.server.moved(ctx) // it may be another's turn
		return nil
	}
	return w
}

// master gives the client of the server that holds the metadata.
func (l *link) master(ctx context.Context) (*goredis.Client, error) {
	return l.server.holder(ctx, l.prefix)
}

// admit gives the calls that may be sent over w: on a server that is found not
// to be durable no promise is made.
func (l *link) admit(w *wire, batch []*call) []*call {
	err := w.host.unsafe()
	if err == nil {
		return batch
	}
	ask := make([]*call, 0, len(batch))
	for _, c := range batch {
		if c.durable && !goesOn(c.sc) {
			c.err = err
			continue
		}
		ask = append(ask, c)
	}
	return ask
}

// goesOn tells whether a script is run also where nothing new is taken in:
// mail that is on its way out is not safer for being left where it is.
func goesOn(sc *script) bool {
	return sc == scSettle || sc == scRenew || sc == scRelease || sc == scAbort
}

// send makes one round trip. The result tells whether the connection is good
// for another.
func (l *link) send(ctx context.Context, w *wire, batch []*call, whole bool) bool {
	if len(batch) == 0 {
		return true
	}
	pipe := w.cn.Pipeline()
	cmds := make([]*goredis.Cmd, len(batch))
	durable := false
	for i, c := range batch {
		args := make([]any, 0, 4+len(c.args))
		if whole {
			args = append(args, "EVAL", c.sc.src, 1, l.prefix)
		} else {
			args = append(args, "EVALSHA", c.sc.sha, 1, l.prefix)
		}
		cmds[i] = pipe.Do(ctx, append(args, c.args...)...)
		durable = durable || c.durable
	}
	var wait *waits
	if durable {
		wait = w.host.need().add(ctx, pipe, l.prefix+"w")
	}
	_, err := pipe.Exec(ctx)
	good := err == nil || isAnswer(err) // whatever a single call says
	for i, c := range batch {
		c.val, c.err = cmds[i].Result()
		if errors.Is(c.err, goredis.Nil) {
			c.val, c.err = nil, nil
		}
		if c.err != nil && !staysGood(c.err) {
			good = false
			err = c.err
		}
	}
	if short := wait.check(); short != nil {
		l.sick.set(short)
		for _, c := range batch {
			if c.durable && c.err == nil {
				c.err = short
			}
		}
		return good && errors.Is(short, errReplicas)
	}
	if good {
		err = nil
	}
	l.sick.set(err)
	return good
}

// need is what a write waits for before it counts as safe.
type need struct {
	replicas int32 // that must have it
	aof      bool  // and that it is synced here: the server does not say when it syncs
}

func (h *host) need() need { return need{replicas: h.replicas.Load(), aof: h.aof.Load()} }

// waits are the answers to what was put behind a batch.
type waits struct {
	need                 need
	mark, synced, spread *goredis.Cmd
}

// markSrc writes something, also when memory is short. WAIT covers what its own
// connection wrote last: behind a write of that same round trip it covers
// whatever the calls before it found there, a repeated call's first try and
// the pieces of a body included.
const markSrc = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], 1, 'PX', 60000)"

// add puts the waits behind a batch; nil when there is nothing to wait for. key
// has to lie in the slot that was written.
func (n need) add(ctx context.Context, pipe goredis.Pipeliner, key string) *waits {
	if n == (need{}) {
		return nil
	}
	w := &waits{need: n, mark: pipe.Do(ctx, "EVAL", markSrc, 1, key)}
	if n.aof {
		w.synced = pipe.Do(ctx, "WAITAOF", 1, 0, waitTime.Milliseconds())
	}
	if n.replicas > 0 {
		w.spread = pipe.Do(ctx, "WAIT", n.replicas, waitTime.Milliseconds())
	}
	return w
}

// check reads the answers: nil means that the batch is safe.
func (w *waits) check() error {
	if w == nil {
		return nil
	}
	if err := w.mark.Err(); err != nil {
		return fmt.Errorf("waiting until the write is safe: %w", err)
	}
	if w.synced != nil {
		v, err := w.synced.Result()
		if err != nil {
			return fmt.Errorf("waiting until the write is synced (WAITAOF): %w", err)
		}
		if asInt(at(asList(v), 0)) < 1 {
			return errNotSynced
		}
	}
	if w.spread != nil {
		v, err := w.spread.Result()
		if err != nil {
			return fmt.Errorf("waiting for the replicas: %w", err)
		}
		if have := asInt(v); have < int64(w.need.replicas) {
			return fmt.Errorf("%w: %d of %d", errReplicas, have, w.need.replicas)
		}
	}
	return nil
}

// staysGood tells whether a connection may be used on after such an error.
func staysGood(err error) bool {
	code, _, _ := strings.Cut(err.Error(), " ")
	switch code {
	case "ERR", "NOSCRIPT", "OOM", "NOREPLICAS", "WRONGTYPE", "IMPORT", "NOPERM", "BUSY", "MISCONF":
		return true
	}
	return false
}
