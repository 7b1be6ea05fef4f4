package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest/realtest"
	"crossfade/internal/redistest"
	"crossfade/router"
)

// relayNode is one `crossfade serve` of several on one Redis.
type relayNode struct {
	name, cfg, log, smtp, api string
	client                    *admin.Client
	child                     *child // nil while it is down
}

// nodesRun is a migration over several nodes, of which some die.
type nodesRun struct {
	t       *testing.T
	w       *world
	program string
	nodes   []*relayNode
	stream  *stream
	every   int          // of so many flips, the last has a node die in it
	next    atomic.Int64 // whose turn it is at the door

	mu     sync.Mutex
	kills  []time.Time
	phases map[string]int // what the flip was doing, and whose node was killed
	holds  []time.Duration
	dead   sync.WaitGroup // nodes that are being started again
	over   chan struct{}  // closed when the user in whose flip a node was killed first is flipped
}

// TestFaultsFlipNodes: users are flipped under a stream of mail by three
// nodes on one Redis, and in the middle of each fourth flip (tenth in the long form)
// one of the nodes is killed. Nothing is lost, and what is twice was under way at a kill.
func TestFaultsFlipNodes(t *testing.T) {
	t.Parallel()
	users, past, every := 8, 8, 4
	if long() {
		users, past, every = 200, 100, 10
	}
	srv := redistest.Start(t)
	r := &nodesRun{t: t, w: newWorld(t, users, past), program: binary(t), every: every, phases: map[string]int{}, over: make(chan struct{})}
	for i := range 3 {
		r.add(string(rune('a'+i)), srv.URL())
	}
	var lines []string
	for _, u := range r.w.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, r.nodes[0].client, lines)
	r.stream = &stream{addr: r.door(), users: r.w.users, book: r.w.book, senders: 4, pause: 60 * time.Millisecond, retry: true}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wait := r.stream.start(ctx)
	began := time.Now()
	for i, u := range r.w.users {
		r.flip(i, u)
	}
	took := time.Since(began)
	stop()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused for good: %v", err)
	}
	r.dead.Wait()
	drain(t, r.nodes[0].client, 4*time.Minute)
	for _, n := range r.nodes {
		n.child.signal(t, syscall.SIGTERM)
		<-n.child.done
	}
	r.judge(took)
}

// add starts a node.
func (r *nodesRun) add(name, store string) {
	r.t.Helper()
	w := r.w
	n := &relayNode{name: name, cfg: filepath.Join(w.dir, name+".yaml"), log: filepath.Join(w.dir, "log-"+name),
		smtp: fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(r.t)), api: fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(r.t))}
	w.configure(n.smtp, n.api)
	text, err := os.ReadFile(w.cfgPath)
	if err != nil {
		r.t.Fatal(err)
	}
	w.write(name+".yaml", strings.Replace(string(text), "store: ./data", "store: "+store+"\nnode: "+name, 1))
	n.child = startChild(r.t, r.program, n.cfg, n.log)
	r.t.Cleanup(func() {
		n.child.kill(r.t)
		if b, err := os.ReadFile(n.log); err == nil && r.t.Failed() {
			r.t.Logf("the log of node %s ends with:\n%s", name, b[max(0, len(b)-3000):])
		}
	})
	awaitReady(r.t, n.child, n.api)
	n.client = w.dial("http://" + n.api)
	r.nodes = append(r.nodes, n)
}

// door is the one name behind which the nodes are: it leads to each in turn,
// and past those that are down.
func (r *nodesRun) door() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.lead(c)
		}
	}()
	return l.Addr().String()
}

func (r *nodesRun) lead(c net.Conn) {
	defer c.Close()
	for range r.nodes {
		n := r.nodes[int(r.next.Add(1))%len(r.nodes)]
		b, err := net.DialTimeout("tcp", n.smtp, 2*time.Second)
		if err != nil {
			continue
		}
		go func() {
			_, _ = io.Copy(b, c)
			b.Close()
		}()
		_, _ = io.Copy(c, b)
		b.Close()
		return
	}
}

// ask asks the nodes in turn, from the i-th on, until one answers.
func (r *nodesRun) ask(i int, f func(c *admin.Client) error) error {
	var errs []error
	for k := range r.nodes {
		err := f(r.nodes[(i+k)%len(r.nodes)].client)
		var p *admin.Problem
		if err == nil || errors.As(err, &p) && p.Status < http.StatusInternalServerError {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// flip moves a user; in the last of every so many, a node dies.
func (r *nodesRun) flip(i int, user string) {
	r.t.Helper()
	r.stream.hot.Store(&user)
	kill := i%r.every == r.every-1
	asked, first := false, false
	var holding time.Time
	poll(r.t, 4*time.Minute, "flipping "+user, func() (bool, error) {
		if !asked {
			err := r.ask(i, func(c *admin.Client) error {
				_, err := c.StartCutover(r.t.Context(), user, admin.MoveRequest{Reason: "e2e"})
				return err
			})
			if err != nil {
				return false, err
			}
			asked = true
		}
		var u router.User
		var node string
		var hold time.Duration
		err := r.ask(i, func(c *admin.Client) (err error) {
			if u, err = c.User(r.t.Context(), user); err != nil {
				return err
			}
			if st, serr := c.Move(r.t.Context(), user); serr == nil {
				node, hold = st.Node, st.HoldTime
			}
			return nil
		})
		if err != nil {
			return false, err
		}
		if u.State == router.StateCutover {
			if holding.IsZero() {
				holding = time.Now()
			}
			if kill {
				kill = false
				rest := time.Duration(rand.IntN(60)) * time.Millisecond
				<-time.After(rest)
				first = r.kill(i, node)
			}
		}
		if u.State != router.StateNew {
			return false, fmt.Errorf("%s is %s, %s works on him", user, u.State, node)
		}
		r.note(hold, holding)
		if first {
			close(r.over)
		}
		return true, nil
	})
	if kill {
		r.t.Logf("%s was flipped before he was seen in his hold: no node was killed", user)
	}
}

// note keeps how long a user was held.
func (r *nodesRun) note(hold time.Duration, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if hold > 0 {
		r.holds = append(r.holds, hold)
	} else if !since.IsZero() { // another node ended the flip than the one that is asked
		r.holds = append(r.holds, time.Since(since))
	}
}

// takeOver is more than another node needs to take over the user of one that died.
const takeOver = 40 * time.Second

// kill is kill -9 of the node that works on a user, or of another one, and has
// it started again soon; after the first kill only once another node has taken the
// user over and flipped him, or had the time to. It tells whether it was the first.
func (r *nodesRun) kill(i int, works string) (first bool) {
	r.dead.Wait()
	k := slices.IndexFunc(r.nodes, func(n *relayNode) bool { return n.name == works })
	who := "the node that moves the user"
	if k < 0 || i%(2*r.every) == 2*r.every-1 {
		k, who = rand.IntN(len(r.nodes)), "any node"
	}
	n := r.nodes[k]
	n.child.kill(r.t)
	down := time.Duration(200+rand.IntN(2500)) * time.Millisecond
	r.mu.Lock()
	r.kills = append(r.kills, time.Now())
	r.phases[who]++
	first = len(r.kills) == 1
	r.mu.Unlock()
	r.dead.Go(func() {
		switch {
		case first && n.name == works:
			select {
			case <-r.over:
			case <-time.After(3 * takeOver):
				r.t.Errorf("node %s is dead, and no other took over its user", n.name)
			}
		case first:
			<-time.After(takeOver)
		default:
			<-time.After(down)
		}
		n.child = startChild(r.t, r.program, n.cfg, n.log)
		awaitReady(r.t, n.child, n.api)
	})
	if !first {
		r.dead.Wait()
	}
	return first
}

// judge counts, and explains every duplicate.
func (r *nodesRun) judge(took time.Duration) {
	t := r.t
	t.Helper()
	var sum audit
	for _, u := range r.w.users {
		sum.add(r.w.countRead(u, true))
	}
	explained, inDoubt, again := 0, 0, map[string]int{}
	for _, n := range r.nodes {
		_, told := readDoubts(t, n.log)
		for id, k := range told {
			again[id] += k
			inDoubt += k
		}
	}
	for who, copies := range sum.doubles {
		if why := r.explain(copies, again); why != "" {
			t.Errorf("%s is there %d times and no kill explains it: %s\n%s", who, len(copies), why, strings.Join(paths(copies), "\n"))
			continue
		}
		explained++
	}
	past, sent := r.w.book.totals()
	figure(t, "three nodes on one Redis, %d kills -9 (%v), %d users flipped in %s; past messages %d; accepted %d for %d recipients in %d attempts, %d with a lost reply; found %d, missing %d, altered %d, stray %d; twice %d, of which explained by a kill %d; in doubt, not found in the mailbox and sent again %d; hold p50 %s p99 %s max %s",
		len(r.kills), r.phases, len(r.w.users), took.Round(time.Millisecond), past, r.stream.accepted.Load(), sent, r.stream.attempts.Load(), r.stream.doubtful.Load(),
		sum.found, sum.missing, sum.altered, sum.stray, len(sum.doubles), explained, inDoubt,
		percentile(r.holds, 50).Round(time.Millisecond), percentile(r.holds, 99).Round(time.Millisecond), percentile(r.holds, 100).Round(time.Millisecond))
}

// explain says why copies of one message are not the work of a kill; "" when
// they are: all have one queue id, one of them was delivered within moments of a
// kill, and a node told that it did not find it in the mailbox.
func (r *nodesRun) explain(copies []found, again map[string]int) string {
	for _, f := range copies {
		if f.queueID != copies[0].queueID {
			return fmt.Sprintf("two queue ids, %q and %q, for one 250", copies[0].queueID, f.queueID)
		}
	}
	if id := copies[0].queueID; again[id] < len(copies)-1 {
		return fmt.Sprintf("the nodes told %d times that %s is sent again", again[id], id)
	}
	for _, f := range copies {
		at := time.Unix(f.when, 0)
		if slices.ContainsFunc(r.kills, func(k time.Time) bool { return k.Sub(at).Abs() <= 3*time.Second }) {
			return ""
		}
	}
	return "no copy was delivered near a kill"
}
