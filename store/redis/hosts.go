package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// verdictTime is how long a server's settings count as known.
const verdictTime = time.Minute

// errUnsafe is in the error of a write that was not sent because the server
// would not keep it.
var errUnsafe = errors.New("Redis is not durable now")

// host is a redis-server in one life of it, and what is known of how safe a
// write to it is.
type host struct {
	runID    string
	replicas atomic.Int32 // that must have a write
	online   atomic.Int32 // that follow it now
	aof      atomic.Bool  // its settings are not known: a write waits for WAITAOF
	refused  atomic.Pointer[error]
	judged   atomic.Int64 // when its settings were looked at, in ns; 0: never
}

// unsafe says why no promise may hang on a write to the server.
func (h *host) unsafe() error {
	if p := h.refused.Load(); p != nil {
		return *p
	}
	return nil
}

// short says that fewer replicas follow than must have each write.
func (h *host) short() error {
	if have, want := h.online.Load(), h.replicas.Load(); have < want {
		return fmt.Errorf("%w: %d of %d follow the master (a replica that is gone for good has to be taken out of the books: "+
			"SENTINEL RESET on each sentinel, or CLUSTER FORGET on each node)", errReplicas, have, want)
	}
	return nil
}

// wire is a connection to one server that was a master with a known run id when
// it was made. It never leads to another server: what waits on it waits for
// what was written over it.
type wire struct {
	client *goredis.Client
	cn     *goredis.Conn
	host   *host
	key    string // a key that the server has, for marks
	since  time.Time
}

func (w *wire) close() { w.cn.Close() }

// hosts keeps what is known about the servers, and connections to them.
type hosts struct {
	server   *Server
	waitless bool // for tests, broken on purpose: no replica is waited for

	mu    sync.Mutex
	known map[string]*host // by run id
	idle  map[*goredis.Client][]*wire
	named map[string]bool // replicas that the sentinels named last; nil: never asked
	// masters are the nodes of the Cluster that took writes when it was last asked.
	masters map[string]bool
	adopted time.Time // when the schema was last looked at
	warned  map[string]bool
	closed  bool
}

// Bounds of the connections kept.
const (
	maxIdle  = 8
	idleTime = 30 * time.Second
)

func (h *hosts) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, list := range h.idle {
		for _, w := range list {
			w.close()
		}
	}
	h.idle = nil
}

// connect makes a connection to the server that has a key, and looks whether it
// is a master and what a write to it has to wait for.
func (h *hosts) connect(ctx context.Context, key string) (*wire, error) {
	client, err := h.server.holder(ctx, key)
	if err != nil {
		return nil, err
	}
	return h.connectTo(ctx, client, key)
}

func (h *hosts) connectTo(ctx context.Context, client *goredis.Client, key string) (*wire, error) {
	w := &wire{client: client, cn: client.WithTimeout(replyTime).EphemeralConn(), key: key, since: time.Now()}
	if err := h.look(ctx, w); err != nil {
		w.close()
		h.server.moved(ctx)
		return nil, err
	}
	return w, nil
}

// take gives a connection for one use, to be given back.
func (h *hosts) take(ctx context.Context, key string) (*wire, error) {
	client, err := h.server.holder(ctx, key)
	if err != nil {
		return nil, err
	}
	if w := h.spare(client); w != nil {
		w.key = key
		return w, nil
	}
	return h.connectTo(ctx, client, key)
}

func (h *hosts) spare(client *goredis.Client) *wire {
	h.mu.Lock()
	defer h.mu.Unlock()
	for list := h.idle[client]; len(list) > 0; list = h.idle[client] {
		w := list[len(list)-1]
		h.idle[client] = list[:len(list)-1]
		if time.Since(w.since) < idleTime {
			return w
		}
		w.close()
	}
	return nil
}

// give takes a connection back; err is what its use ended with: after any
// error nobody uses it again.
func (h *hosts) give(ctx context.Context, w *wire, err error) {
	if err != nil {
		w.close()
		h.server.moved(ctx)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	w.since = time.Now()
	if h.closed || len(h.idle[w.client]) >= maxIdle {
		w.close()
		return
	}
	if h.idle == nil {
		h.idle = map[*goredis.Client][]*wire{}
	}
	h.idle[w.client] = append(h.idle[w.client], w)
}

// of gives the host with a run id.
func (h *hosts) of(runID string) *host {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.known[runID]
	if x == nil {
		if h.known == nil || len(h.known) > 1000 {
			h.known = map[string]*host{}
		}
		x = &host{runID: runID}
		h.known[runID] = x
	}
	return x
}

// look asks the server at the end of a connection who it is and how many
// replicas must have what is written there, and what its settings are when that
// is not known any more.
func (h *hosts) look(ctx context.Context, w *wire) error {
	f, err := askInfo(ctx, w.cn)
	if err != nil {
		return h.server.explain(err)
	}
	if err := h.server.rightKind(f); err != nil {
		return err
	}
	x := h.of(f["run_id"])
	if err := h.countReplicas(ctx, w, f, x); err != nil {
		return err
	}
	if w.host != nil && w.host != x {
		return errors.New("another redis-server answers at the other end of a connection")
	}
	if at := x.judged.Load(); at == 0 || time.Since(time.Unix(0, at)) > verdictTime {
		v, err := h.server.judge(ctx, w, f)
		if err != nil {
			return err
		}
		v.tell(x)
		h.warn(v.warnings)
	}
	w.host = x
	return nil
}

// warn logs each warning once.
func (h *hosts) warn(list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, text := range list {
		if h.warned[text] {
			continue
		}
		if h.warned == nil {
			h.warned = map[string]bool{}
		}
		h.warned[text] = true
		h.server.log.Warn(text, "store", h.server.String())
	}
}

// countReplicas finds out how many replicas must have a write: all that could
// be promoted, whether they are there or not. WAIT does not tell which replicas
// answered, so those that follow now and cannot be promoted count too.
func (h *hosts) countReplicas(ctx context.Context, w *wire, f facts, x *host) error {
	follow := f.replicas()
	n := len(follow)
	switch h.server.target.kind {
	case kindSentinel:
		named, err := h.askSentinels(ctx)
		if err != nil {
			return err
		}
		all, exact := map[string]bool{}, true
		for addr := range named {
			all[addr] = true
			if host, _, _ := net.SplitHostPort(addr); net.ParseIP(host) == nil {
				exact = false // a name: the same replica may be an address in INFO
			}
		}
		if exact {
			for _, addr := range follow {
				all[addr] = true
			}
		}
		n = max(n, len(all))
	case kindCluster:
		nodes, err := w.cn.ClusterNodes(ctx).Result()
		if err != nil {
			return h.server.explain(err)
		}
		n = max(n, replicasOfMyself(nodes))
	}
	n = max(n, h.server.opts.Replicas)
	if h.waitless {
		n = 0
	}
	x.online.Store(int32(len(follow)))
	x.replicas.Store(int32(n))
	return nil
}

// askSentinels gives the addresses of the replicas that one sentinel at least
// may promote, those included that are down. When none of them answers, what
// they said last holds.
func (h *hosts) askSentinels(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	type answer struct {
		list []map[string]string
		err  error
	}
	ch := make(chan answer, len(h.server.watchers))
	for _, s := range h.server.watchers {
		go func() {
			list, err := s.Replicas(ctx, h.server.target.master).Result()
			ch <- answer{list, err}
		}()
	}
	var named map[string]bool
	var last error
	for range h.server.watchers {
		a := <-ch
		if a.err != nil {
			last = a.err
			continue
		}
		if named == nil {
			named = map[string]bool{}
		}
		for _, r := range a.list {
			if r["slave-priority"] != "0" {
				named[net.JoinHostPort(r["ip"], r["port"])] = true
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if named == nil {
		if h.named == nil {
			return nil, fmt.Errorf("ask the sentinels for the replicas of %s: %w", h.server.target.master, h.server.explain(last))
		}
		return h.named, nil
	}
	h.named = named
	return named, nil
}

// replicasOfMyself counts, in the text of CLUSTER NODES, the replicas of the
// node that gave it.
func replicasOfMyself(nodes string) int {
	var me string
	for line := range strings.Lines(nodes) {
		if f := strings.Fields(line); len(f) > 3 && strings.Contains(f[2], "myself") {
			me = f[0]
		}
	}
	n := 0
	for line := range strings.Lines(nodes) {
		f := strings.Fields(line)
		if len(f) < 8 || f[3] != me || me == "" {
			continue
		}
		if strings.Contains(f[2], "nofailover") && f[7] != "connected" {
			continue // it cannot be promoted, and does not answer WAIT
		}
		n++
	}
	return n
}

// refresh looks at all masters again. The error says what keeps writes from
// being safe now.
func (h *hosts) refresh(ctx context.Context) error {
	var wg sync.WaitGroup
	if h.server.target.kind == kindSentinel {
		h.cutOld(ctx)
	}
	clients, err := h.server.masters(ctx)
	if err != nil {
		return h.server.explain(err)
	}
	h.follow(clients)
	errs := make([]error, len(clients))
	for i, c := range clients {
		wg.Go(func() { errs[i] = h.refreshOne(ctx, c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// follow cuts connections to nodes of the Cluster that were masters and are not
// any more.
func (h *hosts) follow(clients []*goredis.Client) {
	if h.server.target.kind != kindCluster {
		return
	}
	are := map[string]bool{}
	for _, c := range clients {
		are[c.Options().Addr] = true
	}
	h.mu.Lock()
	was := h.masters
	h.masters = are
	h.mu.Unlock()
	h.server.dialer.cut(func(addr string) bool { return was[addr] && !are[addr] })
}

func (h *hosts) refreshOne(ctx context.Context, c *goredis.Client) error {
	w := h.spare(c)
	if w == nil {
		var err error
		if w, err = h.connectTo(ctx, c, h.server.keyOn(ctx, c)); err != nil {
			return err
		}
	} else if err := h.look(ctx, w); err != nil {
		h.give(ctx, w, err)
		return err
	}
	x := w.host
	h.give(ctx, w, nil)
	if err := x.unsafe(); err != nil {
		return err
	}
	return x.short()
}

// cutOld cuts connections to servers that are no masters any more in the eyes of
// the sentinels, and may hang: without it each of them would be waited for until
// its time is up.
func (h *hosts) cutOld(ctx context.Context) {
	master, err := h.askMaster(ctx)
	if err != nil {
		return
	}
	h.server.dialer.cut(func(addr string) bool {
		return addr != master && !slices.Contains(h.server.target.addrs, addr)
	})
}

// askMaster gives the address on which most of the sentinels that answer agree.
func (h *hosts) askMaster(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	type answer struct {
		addr string
		err  error
	}
	all := len(h.server.watchers)
	ch := make(chan answer, all)
	for _, s := range h.server.watchers {
		go func() {
			a, err := s.GetMasterAddrByName(ctx, h.server.target.master).Result()
			if err == nil && len(a) != 2 {
				err = fmt.Errorf("a sentinel answered %q", a)
			}
			if err != nil {
				ch <- answer{err: err}
				return
			}
			ch <- answer{addr: net.JoinHostPort(a[0], a[1])}
		}()
	}
	votes := map[string]int{}
	var last error
	for range all {
		a := <-ch
		if a.err != nil {
			last = a.err
			continue
		}
		if votes[a.addr]++; votes[a.addr] > all/2 {
			return a.addr, nil
		}
	}
	best, n, tie := "", 0, false
	for addr, k := range votes {
		if tie = tie && k <= n || k == n; k > n {
			best, n = addr, k
		}
	}
	switch {
	case n == 0:
		return "", fmt.Errorf("ask the sentinels for the master %s: %w", h.server.target.master, h.server.explain(last))
	case tie:
		return "", fmt.Errorf("the sentinels do not agree which server is the master %s", h.server.target.master)
	}
	return best, nil
}
