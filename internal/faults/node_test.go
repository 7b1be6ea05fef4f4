package faults

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/disk"
	"crossfade/store/redis"
	"crossfade/store/storetest"
)

// nodeEnv, when set, makes the test binary a node: it holds a nodeConfig.
const nodeEnv = "CROSSFADE_FAULTS_NODE"

// place is where a store lies.
type place struct {
	URL   string        // Redis
	Dir   string        // or the directory of the embedded store
	Lease time.Duration // how long leases last
	// Service trusts Redis to be durable without asking it.
	Service bool
}

func (p place) kind() string {
	if p.URL != "" {
		return "redis"
	}
	return "disk"
}

// open opens the store as a node. log gets what it says; empty: nobody.
func (p place) open(ctx context.Context, node string, log io.Writer) (storetest.Store, error) {
	l := slog.New(slog.NewTextHandler(log, nil))
	if p.URL == "" {
		s, err := disk.Open(p.Dir, disk.Options{LeaseTime: p.Lease, MinFree: -1, Logger: l})
		if err != nil {
			return nil, err // not a *disk.Store that is nil
		}
		return s, nil
	}
	server, err := redis.Dial(p.URL, redis.DialOptions{Service: p.Service, Logger: l})
	if err != nil {
		return nil, err
	}
	s, err := redis.Open(ctx, server, redis.Options{Node: node, LeaseTime: p.Lease, Logger: l})
	if err != nil {
		return nil, err
	}
	return s, nil
}

type nodeConfig struct {
	Place   place
	Name    string
	Load    load
	Variant string
	Log     string
}

// runNode is a node: it works until its standard input ends. What it notes goes
// to its standard output, where it outlives the node.
func runNode(conf string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		return err
	}
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s, err := c.Place.open(context.Background(), c.Name, log)
	if err != nil {
		return err
	}
	if s, err = broken(s, c.Variant); err != nil {
		return err
	}
	c.Load.note = func(e event) { _, _ = os.Stdout.WriteString(e.line()) }
	c.Load.note(event{at: time.Now(), what: evUp})
	ctx, stop := context.WithCancel(context.Background())
	drained, end := context.WithCancel(context.Background())
	go func() {
		in := bufio.NewReader(os.Stdin)
		_, _ = in.ReadString('\n')
		stop()
		_, _ = io.Copy(io.Discard, in)
		end()
	}()
	c.Load.run(ctx, drained, s)
	return s.Close()
}

var built struct {
	once sync.Once
	path string
	dir  string
	err  error
}

// nodeBinary is this test binary. Under the race detector it is one without:
// with it a process takes seconds to start.
func nodeBinary(t testing.TB) string {
	t.Helper()
	if !underRace {
		return os.Args[0]
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "faults"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "faults.test")
		if out, err := exec.Command("go", "test", "-c", "-o", built.path, ".").CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build a node without the race detector: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

func cleanup() {
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	if served.dir != "" {
		os.RemoveAll(served.dir)
	}
}

// rig is a store, its nodes, and the account of it all.
type rig struct {
	t       testing.TB
	acc     *account
	place   place
	load    load
	variant string

	logs  string
	mu    sync.Mutex
	lives int
	slots []*node // nil while one is down
}

// node is a process that works on the store.
type node struct {
	slot  int
	life  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	up    chan struct{}
	done  chan struct{} // it ended and all that it noted was read
	err   error
	said  bytes.Buffer
}

func newRig(t testing.TB, p place, l load) *rig {
	r := &rig{t: t, acc: newAccount(), place: p, load: l, logs: t.TempDir()}
	t.Cleanup(func() {
		for _, n := range r.slots {
			if n != nil {
				r.kill(n.slot)
			}
		}
		if t.Failed() {
			r.tellLogs()
		}
	})
	return r
}

func (r *rig) tellLogs() {
	files, _ := filepath.Glob(filepath.Join(r.logs, "*"))
	for i, f := range files {
		if b, _ := os.ReadFile(f); len(b) > 0 && i < 6 {
			r.t.Logf("%s: %s", filepath.Base(f), b[max(0, len(b)-2500):])
		}
	}
}

// start starts the node of a slot again and waits until it has the store.
func (r *rig) start(slot int) *node {
	r.t.Helper()
	r.mu.Lock()
	r.lives++
	life := fmt.Sprintf("%c%d", 'a'+slot, r.lives)
	r.mu.Unlock()
	l := r.load
	if l.Flip[1] > 0 {
		l.Flip[0] = slot
	}
	name := string(rune('a' + slot))
	conf, err := json.Marshal(nodeConfig{Place: r.place, Name: name, Load: l, Variant: r.variant, Log: filepath.Join(r.logs, name)})
	if err != nil {
		r.t.Fatal(err)
	}
	n := &node{slot: slot, life: life, up: make(chan struct{}), done: make(chan struct{})}
	n.cmd = exec.Command(nodeBinary(r.t))
	n.cmd.Env = append(os.Environ(), nodeEnv+"="+string(conf))
	n.cmd.Stderr = &n.said
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if n.stdin, err = n.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is bound to the thread
		defer runtime.UnlockOSThread()
		err := n.cmd.Start()
		started <- err
		if err == nil {
			r.read(n, out)
			n.err = n.cmd.Wait()
		}
		close(n.done)
	}()
	if err := <-started; err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	for len(r.slots) <= slot {
		r.slots = append(r.slots, nil)
	}
	r.slots[slot] = n
	r.mu.Unlock()
	return n
}

// read notes what a node says until it is gone.
func (r *rig) read(n *node, out io.Reader) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return // half a line is what a killed node did not say
		}
		e, err := readEvent(line)
		if err != nil {
			r.t.Errorf("node %s: %v", n.life, err)
			return
		}
		e.who = n.life
		if e.what == evUp {
			close(n.up)
		}
		r.acc.note(e)
	}
}

// await waits until a node works.
func (r *rig) await(n *node) {
	r.t.Helper()
	select {
	case <-n.up:
	case <-n.done:
		r.t.Fatalf("node %s ended at once: %v\n%s", n.life, n.err, n.said.String())
	case <-time.After(30 * time.Second):
		r.t.Fatalf("node %s does not get ready", n.life)
	}
}

func (r *rig) take(slot int) *node {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.slots[slot]
	r.slots[slot] = nil
	return n
}

// kill is kill -9 of a slot's node.
func (r *rig) kill(slot int) {
	n := r.take(slot)
	if n == nil {
		return
	}
	began := time.Now()
	_ = n.cmd.Process.Kill()
	<-n.done
	r.acc.fault(n.life, "kill -9", began)
}

// freeze stops a node for a while as SIGSTOP does.
func (r *rig) freeze(ctx context.Context, slot int, d time.Duration) {
	r.mu.Lock()
	n := r.slots[slot]
	r.mu.Unlock()
	began := time.Now()
	_ = n.cmd.Process.Signal(syscall.SIGSTOP)
	rest(ctx, d)
	r.acc.fault(n.life, "frozen", began)
	_ = n.cmd.Process.Signal(syscall.SIGCONT)
}

// stop ends a node in good order.
func (r *rig) stop(slot int) {
	r.t.Helper()
	n := r.take(slot)
	if n == nil {
		return
	}
	_, _ = io.WriteString(n.stdin, "quiet\n")
	_ = n.stdin.Close()
	select {
	case <-n.done:
		if n.err != nil {
			r.t.Errorf("node %s ended with %v\n%s", n.life, n.err, n.said.String())
		}
	case <-time.After(60 * time.Second):
		_ = n.cmd.Process.Signal(syscall.SIGQUIT)
		<-n.done
		r.t.Errorf("node %s does not stop\n%.6000s", n.life, n.said.String())
	}
}

// startAll starts nodes and waits for them.
func (r *rig) startAll(n int) {
	r.t.Helper()
	var list []*node
	for slot := range n {
		list = append(list, r.start(slot))
	}
	for _, n := range list {
		r.await(n)
	}
}

func (r *rig) stopAll() {
	r.t.Helper()
	var wg sync.WaitGroup
	for slot := range r.slots {
		wg.Go(func() { r.stop(slot) })
	}
	wg.Wait()
}

// inProcess works on the store from here, as one more life of a node, until
// the given function returns, and closes the store.
func (r *rig) inProcess(name string, l load, f func(ctx context.Context, s storetest.Store)) {
	r.t.Helper()
	log, err := os.OpenFile(filepath.Join(r.logs, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	wait, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := r.place.open(wait, name, log)
	if err != nil {
		r.t.Fatalf("open the store: %v", err)
	}
	if s, err = broken(s, r.variant); err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.lives++
	life := fmt.Sprintf("%s%d", name, r.lives)
	r.mu.Unlock()
	l.note = func(e event) {
		e.who = life
		r.acc.note(e)
	}
	ctx, stop := context.WithCancel(context.Background())
	drained, end := context.WithCancel(context.Background())
	defer end()
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx, drained, s) })
	f(drained, s)
	stop()
	end()
	wg.Wait()
	if err := s.Close(); err != nil {
		r.t.Errorf("close the store: %v", err)
	}
}

// audit looks whether the store is whole, as `crossfade store audit` does.
func (r *rig) audit(when string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	var found map[string]int
	var detail any
	if r.place.URL == "" {
		a, aerr := disk.Audit(ctx, r.place.Dir, false)
		err, found, detail = aerr, a.Problems, a.Findings
	} else {
		server, derr := redis.Dial(r.place.URL, redis.DialOptions{Service: r.place.Service})
		if derr != nil {
			r.t.Fatal(derr)
		}
		a, aerr := redis.Audit(ctx, server, false)
		err, found, detail = aerr, a.Problems, a.Findings
	}
	if err != nil {
		r.t.Errorf("audit %s: %v", when, err)
	}
	delete(found, "body without message") // a node that was killed leaves it, and it expires or is listed
	if len(found) > 0 {
		r.t.Errorf("audit %s: %v: %.3000s", when, found, fmt.Sprintf("%+v", detail))
	}
}

// finish delivers all there is and judges the run.
func (r *rig) finish(limit time.Duration) *verdict {
	r.t.Helper()
	if r.place.URL != "" || exists(r.place.Dir) {
		r.audit("before the drain")
		defer r.audit("after the drain")
	}
	l := r.load
	l.Putters, l.Flip = 0, [2]int{}
	var left []queue.Entry
	r.inProcess("drain", l, func(ctx context.Context, s storetest.Store) {
		left = r.drain(ctx, s, limit)
	})
	if len(left) > 0 { // some may have been delivered since
		l.Workers = 0
		r.inProcess("left", l, func(ctx context.Context, s storetest.Store) {
			var err error
			if left, err = storetest.Left(ctx, s); err != nil {
				r.t.Errorf("listing what is left: %v", err)
			}
		})
	}
	v, err := r.acc.judge(left, r.place.Lease)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// drain waits until the queue is empty, and gives what stays.
func (r *rig) drain(ctx context.Context, s storetest.Store, limit time.Duration) (left []queue.Entry) {
	began := time.Now()
	end, told := began.Add(limit), began
	var err error
	defer func() { r.t.Logf("the drain took %s", time.Since(began).Round(time.Millisecond)) }()
	for {
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			r.t.Logf("draining: %d messages are left, %v, the first: %v", len(left), err, first(left))
		}
		r.release(ctx, s)
		_, err = s.Apply(ctx, queue.Filter{}, queue.Action{Verb: queue.DoRetry})
		if err == nil {
			left, err = storetest.Left(ctx, s)
		}
		if err == nil && len(left) == 0 {
			return nil
		}
		if time.Now().After(end) || !rest(ctx, 50*time.Millisecond) {
			break
		}
	}
	if err != nil {
		r.t.Errorf("draining the queue: %v", err)
	}
	r.t.Errorf("%d messages are still queued after %s; the first: %+v", len(left), limit, first(left))
	return left
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func first(left []queue.Entry) any {
	if len(left) == 0 {
		return nil
	}
	return fmt.Sprintf("%s %+v", left[0].Envelope.ID, left[0].Rcpts)
}

// release takes users who are held to new.
func (r *rig) release(ctx context.Context, s storetest.Store) {
	for i := range r.load.Users {
		u, err := s.User(ctx, userKey(i))
		switch {
		case errors.Is(err, router.ErrNoUser) || err == nil && !u.State.Held():
			continue
		case err != nil:
			return // the next turn of the drain tries again
		}
		r.acc.note(event{at: time.Now(), what: evLeaving, user: u.Address, rest: string(u.State)})
		u.State = router.StateNew
		if _, _, err := s.SetUser(ctx, u, router.Change{By: "faults"}); err != nil && !errors.Is(err, router.ErrEpoch) {
			r.t.Logf("releasing %s: %v", u.Address, err)
		}
	}
}

// The variants that are broken on purpose and have to be caught.
const (
	ackEarly     = "250 before the message is stored"
	routeCached  = "route from a cache"
	noPermission = "final dot without asking"
	settleEarly  = "recorded before the backend answered"
)

func broken(s storetest.Store, variant string) (storetest.Store, error) {
	switch variant {
	case "":
		return s, nil
	case ackEarly:
		return &earlyAck{s}, nil
	case routeCached:
		return &cachedRoute{Store: s}, nil
	case noPermission:
		return &unasked{s}, nil
	case settleEarly:
		return &earlySettle{s}, nil
	}
	return nil, fmt.Errorf("no variant %q", variant)
}

type earlyAck struct{ storetest.Store }

func (b *earlyAck) Put(_ context.Context, env *mail.Envelope, body io.Reader) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	mine := *env
	time.AfterFunc(50*time.Millisecond, func() { _ = b.Store.Put(context.Background(), &mine, bytes.NewReader(data)) })
	return nil
}

// cachedRoute asks once where a user's mail goes, and never again.
type cachedRoute struct {
	storetest.Store
	mu    sync.Mutex
	known map[string]mail.Route
}

func (b *cachedRoute) route(ctx context.Context, key string) mail.Route {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r, ok := b.known[key]; ok {
		return r
	}
	if b.known == nil {
		b.known = map[string]mail.Route{}
	}
	b.known[key] = mail.Old
	if u, err := b.User(ctx, key); err == nil {
		if r, held := u.State.Route(); !held {
			b.known[key] = r
		}
	}
	return b.known[key]
}

func (b *cachedRoute) Put(ctx context.Context, env *mail.Envelope, body io.Reader) error {
	for i := range env.Recipients {
		r := &env.Recipients[i]
		r.Hint, r.User = b.route(ctx, r.User), "" // nobody's: it does not follow its user
	}
	return b.Store.Put(ctx, env, body)
}

func (b *cachedRoute) Claim(ctx context.Context, route mail.Route, n int) (*queue.Lease, error) {
	l, err := b.Store.Claim(ctx, route, n)
	if err == nil {
		for i := range l.Items {
			l.Items[i].User = strings.ToLower(l.Envelope.Recipients[l.Items[i].N].Addr.String()) // for the account
		}
	}
	return l, err
}

type unasked struct{ storetest.Store }

func (b *unasked) Renew(ctx context.Context, l *queue.Lease, _ bool) error {
	_ = b.Store.Renew(ctx, l, false)
	rest(ctx, 5*time.Millisecond) // as long as a backend takes to read the message
	return nil
}

type earlySettle struct{ storetest.Store }

func (b *earlySettle) Renew(ctx context.Context, l *queue.Lease, sending bool) error {
	if err := b.Store.Renew(ctx, l, sending); err != nil || !sending {
		return err
	}
	var out []queue.Outcome
	for _, it := range l.Items {
		out = append(out, queue.Outcome{N: it.N, Kind: queue.Done})
	}
	if err := b.Store.Settle(ctx, l, out); err != nil {
		return err
	}
	rest(ctx, 10*time.Millisecond) // the backend thinks
	return nil
}

func (b *earlySettle) Settle(ctx context.Context, l *queue.Lease, out []queue.Outcome, msgs ...queue.NewMessage) error {
	err := b.Store.Settle(ctx, l, out, msgs...)
	if errors.Is(err, queue.ErrLost) {
		return nil
	}
	return err
}
