package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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

// errReplicas means that a write is on fewer replicas than can be promoted.
var errReplicas = errors.New("too few replicas have the write")

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
	client  goredis.UniversalClient
	prefix  string
	log     *slog.Logger
	barrier barrier
	writes  chan *call // a promise hangs on them: they may wait for replicas
	others  chan *call
	quit    chan struct{}
	wg      sync.WaitGroup
	offset  atomic.Int64 // of the server's clock to ours, in ms
	sick    sickness
	lost    func(sc *script) // for tests: broken on purpose
}

// barrier says what a write waits for before it counts as safe.
type barrier struct {
	replicas atomic.Int32 // that must have it; 0: none
	aof      atomic.Bool  // and that it is synced here, by WAITAOF: the server does not say how it syncs
	off      bool         // broken on purpose: waits for nobody
}

func (b *barrier) needed() bool { return !b.off && (b.replicas.Load() > 0 || b.aof.Load()) }

// sickness remembers whether Redis answered last, for Room and readiness.
type sickness struct {
	mu    sync.Mutex
	err   error
	since time.Time
}

func (s *sickness) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.err = nil
		return
	}
	if s.err == nil {
		s.since = time.Now()
	}
	s.err = err
}

func (s *sickness) get() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func newLink(client goredis.UniversalClient, prefix string, log *slog.Logger) *link {
	l := &link{
		client: client, prefix: prefix, log: log, quit: make(chan struct{}),
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
	for {
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
	var cn *goredis.Conn
	defer func() {
		if cn != nil {
			cn.Close()
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
		cn = l.exchange(cn, batch)
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
func (l *link) exchange(cn *goredis.Conn, batch []*call) *goredis.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), replyTime)
	defer cancel()
	defer func() {
		for _, c := range batch {
			close(c.done)
		}
	}()
	if cn == nil {
		client, err := l.master(ctx)
		if err != nil {
			l.fail(batch, err)
			return nil
		}
		cn = client.Conn()
	}
	good := l.send(ctx, cn, batch, false)
	var again []*call
	for _, c := range batch {
		if c.err != nil && strings.HasPrefix(c.err.Error(), "NOSCRIPT") {
			again = append(again, c)
		}
	}
	if good && len(again) > 0 {
		good = l.send(ctx, cn, again, true)
	}
	if !good {
		cn.Close()
		return nil
	}
	return cn
}

// master gives the client of the server that holds the metadata.
func (l *link) master(ctx context.Context) (*goredis.Client, error) {
	switch c := l.client.(type) {
	case *goredis.Client:
		return c, nil
	case *goredis.ClusterClient:
		m, err := c.MasterForKey(ctx, l.prefix)
		if err != nil {
			c.ReloadState(ctx)
		}
		return m, err
	}
	return nil, fmt.Errorf("a client of type %T is not supported", l.client)
}

func (l *link) fail(batch []*call, err error) {
	l.sick.set(err)
	for _, c := range batch {
		if c.err == nil {
			c.err = err
		}
	}
}

// send makes one round trip. The result tells whether the connection is good
// for another.
func (l *link) send(ctx context.Context, cn *goredis.Conn, batch []*call, whole bool) bool {
	pipe := cn.Pipeline()
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
	var wait *goredis.Cmd
	if durable && l.barrier.needed() {
		wait = l.barrier.add(ctx, pipe, l.prefix+"w")
	}
	_, err := pipe.Exec(ctx)
	good := true
	for i, c := range batch {
		c.val, c.err = cmds[i].Result()
		if errors.Is(c.err, goredis.Nil) {
			c.val, c.err = nil, nil
		}
		if c.err != nil && !staysGood(c.err) {
			good = false
		}
	}
	if wait != nil {
		if short := l.barrier.check(wait); short != nil {
			l.sick.set(short)
			for _, c := range batch {
				if c.durable && c.err == nil {
					c.err = short
				}
			}
			return good && !isNet(short)
		}
	}
	if err == nil || good {
		l.sick.set(nil)
	} else {
		l.sick.set(err)
	}
	return good
}

// add puts the wait behind a batch. WAIT counts the last write of its own
// connection: a write right before it makes it cover what a repeated call found
// done already.
func (b *barrier) add(ctx context.Context, pipe goredis.Pipeliner, key string) *goredis.Cmd {
	pipe.Do(ctx, "SET", key, 1)
	if b.aof.Load() {
		return pipe.Do(ctx, "WAITAOF", 1, b.replicas.Load(), waitTime.Milliseconds())
	}
	return pipe.Do(ctx, "WAIT", b.replicas.Load(), waitTime.Milliseconds())
}

// check reads the answer of the wait.
func (b *barrier) check(cmd *goredis.Cmd) error {
	v, err := cmd.Result()
	if err != nil {
		return fmt.Errorf("waiting until the write is safe: %w", err)
	}
	want := int64(b.replicas.Load())
	if list, ok := v.([]any); ok {
		if len(list) != 2 || asInt(list[0]) < 1 {
			return errors.New("waiting until the write is synced: WAITAOF says that it is not")
		}
		v = list[1]
	}
	if have := asInt(v); have < want {
		return fmt.Errorf("%w: %d of %d", errReplicas, have, want)
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

func isNet(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}
