package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"crossfade/backfill"
	"crossfade/router"
)

// books are what nodes share beside the table, in memory: the contract of
// Owners and Board and nothing else.
type books struct {
	mu    sync.Mutex
	owner map[string]string
	until map[string]time.Time // of all on whom there is work
	asked map[string]int64
	board map[string][]byte
	tab   *table
}

func newBooks(tab *table) *books {
	return &books{owner: map[string]string{}, until: map[string]time.Time{}, asked: map[string]int64{}, board: map[string][]byte{}, tab: tab}
}

// view is the books as one node sees them.
type view struct {
	*books
	node  string
	away  error // the answer to every call
	drain bool
}

var errAway = errors.New("the store is away")

func (v *view) own(ttl time.Duration, keep bool, users []string) ([]int64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.away != nil {
		return nil, v.away
	}
	var out []int64
	for _, u := range users {
		have := v.owner[u]
		if keep && have != v.node || have != "" && have != v.node && time.Now().Before(v.until[u]) {
			out = append(out, -1)
			continue
		}
		v.owner[u], v.until[u] = v.node, time.Now().Add(ttl)
		out = append(out, v.asked[u])
	}
	return out, nil
}

func (v *view) Own(_ context.Context, ttl time.Duration, users ...string) ([]int64, error) {
	return v.own(ttl, false, users)
}

func (v *view) Keep(_ context.Context, ttl time.Duration, users ...string) ([]int64, error) {
	return v.own(ttl, true, users)
}

func (v *view) Disown(_ context.Context, user string, done bool, asked int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.away != nil || v.owner[user] != v.node {
		return v.away
	}
	delete(v.owner, user)
	v.until[user] = time.Now()
	if done && asked == v.asked[user] {
		delete(v.until, user)
		delete(v.asked, user)
	}
	return nil
}

func (v *view) Offer(_ context.Context, asked bool, users ...string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, u := range users {
		if _, ok := v.until[u]; !ok {
			v.until[u] = time.Now()
		}
		if asked {
			v.asked[u]++
		}
	}
	return v.away
}

func (v *view) Free(_ context.Context, n int) ([]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var held, rest []string
	count := map[router.State]int{}
	for u, until := range v.until {
		st := v.tab.state(u)
		if until.After(time.Now()) || count[st] >= n {
			continue
		}
		count[st]++
		if st == router.StateCutover {
			held = append(held, u)
		} else {
			rest = append(rest, u)
		}
	}
	return append(held, rest...), v.away
}

func (v *view) Draining() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.drain
}

func (v *view) Publish(_ context.Context, user string, data []byte, _ time.Duration) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.board[user] = data
	return v.away
}

func (v *view) Published(_ context.Context, user string, each func(user, node string, asked int64, data []byte)) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for u, data := range v.board {
		if user == "" || user == u {
			node := v.owner[u]
			if !v.until[u].After(time.Now()) {
				node = ""
			}
			each(u, node, v.asked[u], data)
		}
	}
	return v.away
}

func (v *view) set(f func(*view)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f(v)
}

// guarded is a copier that says who worked on whom, and whether two ever did at
// once.
type guarded struct {
	mu     sync.Mutex
	active map[string]int
	twice  []string
	by     map[string]int // passes by node
	after  []string       // appends behind the end of the ownership
	work   func(ctx context.Context, user string)
}

// node is the copier of one node.
func (g *guarded) node(name string) Copier { return &nodeCopier{g, name} }

type nodeCopier struct {
	*guarded
	name string
}

func (n *nodeCopier) Pass(ctx context.Context, job backfill.Job, _ backfill.Options) (backfill.Report, error) {
	g := n.guarded
	g.mu.Lock()
	if g.active[job.User]++; g.active[job.User] > 1 {
		g.twice = append(g.twice, job.User)
	}
	g.by[n.name]++
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.active[job.User]--
		g.mu.Unlock()
	}()
	if g.work != nil {
		g.work(ctx, job.User)
	}
	if ctx.Err() != nil {
		return backfill.Report{}, ctx.Err()
	}
	return backfill.Report{}, job.Dest.Guard()
}

func (n *nodeCopier) Verify(context.Context, backfill.Job) (backfill.Verification, error) {
	return backfill.Verification{}, nil
}

func newGuarded(work func(ctx context.Context, user string)) *guarded {
	return &guarded{active: map[string]int{}, by: map[string]int{}, work: work}
}

func (g *guarded) count(node string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.by[node]
}

func (g *guarded) check(t *testing.T) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.twice) > 0 {
		t.Errorf("two passes at once for %v", g.twice)
	}
}

// sleepFor takes time and heeds its context.
func sleepFor(d time.Duration) func(context.Context, string) {
	return func(ctx context.Context, _ string) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}

// node is one conductor of several.
type node struct {
	*Conductor
	view *view
	stop func()
}

func runNode(t *testing.T, b *books, g *guarded, name string, cfg Config) *node {
	t.Helper()
	v := &view{books: b, node: name}
	if cfg.Copier == nil {
		cfg.Copier = g.node(name)
	}
	cfg.Table, cfg.Mailboxes, cfg.Requests = b.tab, mailboxes{}, b.tab
	cfg.Owners, cfg.Board, cfg.Node = v, v, name
	c := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	n := &node{Conductor: c, view: v, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run of %s: %v", name, err)
		}
	})}
	t.Cleanup(n.stop)
	return n
}

// die ends a node as a crash would: what it says in the end nobody hears.
func (n *node) die() {
	n.view.set(func(v *view) { v.away = errAway })
	n.stop()
}

func TestNodesShareUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(sleepFor(2*time.Second))
		a, c := runNode(t, b, g, "a", Config{Concurrency: 3, Window: -1}), runNode(t, b, g, "c", Config{Concurrency: 3, Window: -1})
		for i := range 30 {
			start(t, []*node{a, c}[i%2].Conductor, fmt.Sprintf("u%d@example.org", i), false)
		}
		time.Sleep(10 * time.Minute)
		for i := range 30 {
			if u := fmt.Sprintf("u%d@example.org", i); tab.way(u) != "syncing ready cutover new done" {
				t.Errorf("%s went %q", u, tab.way(u))
			}
		}
		g.check(t)
		if na, nc := g.count("a"), g.count("c"); na < 30 || nc < 30 {
			t.Errorf("passes: a made %d, c %d", na, nc)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.until) != 0 || len(b.owner) != 0 {
			t.Errorf("after the end the books have %v, %v", b.until, b.owner)
		}
	})
}

func TestHeldUserOfADeadNodeIsTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(nil)
		tab.setBusy(alice, 1)
		a := runNode(t, b, g, "a", Config{})
		start(t, a.Conductor, alice, false)
		time.Sleep(10 * time.Second)
		if tab.state(alice) != router.StateCutover {
			t.Fatalf("the user is %s", tab.state(alice))
		}
		held, _ := tab.User(t.Context(), alice)
		c := runNode(t, b, g, "c", Config{})
		a.die()
		tab.setBusy(alice, 0)
		time.Sleep(36 * time.Second)
		if got := tab.way(alice); got != "syncing ready cutover new" {
			t.Errorf("the user went %q", got)
		}
		if st, ok := c.StatusOf(alice); !ok || st.Node != "c" || st.HoldTime < 10*time.Second || st.HoldTime > time.Since(held.Since) {
			t.Errorf("status: %+v", st)
		}
		g.check(t)
	})
}

func TestMaxHoldCountsOverTheDeathOfANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(nil)
		tab.setBusy(alice, 1)
		cfg := Config{MaxHold: 2 * time.Minute, RetryFirst: time.Hour}
		a := runNode(t, b, g, "a", cfg)
		start(t, a.Conductor, alice, false)
		time.Sleep(time.Minute)
		held, _ := tab.User(t.Context(), alice)
		a.die()
		runNode(t, b, g, "c", cfg)
		time.Sleep(time.Until(held.Since.Add(2*time.Minute + time.Second)))
		if got := tab.way(alice); got != "syncing ready cutover ready" {
			t.Errorf("the user went %q", got)
		}
	})
}

func TestCleanStopHandsUsersOverAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(sleepFor(20*time.Second))
		a := runNode(t, b, g, "a", Config{})
		start(t, a.Conductor, alice, true)
		time.Sleep(10 * time.Second)
		runNode(t, b, g, "c", Config{})
		a.stop()
		time.Sleep(6 * time.Second)
		if g.count("c") == 0 {
			t.Error("nobody took the user up")
		}
		g.check(t)
	})
}

func TestRequestReachesTheNodeThatOwnsTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(nil)
		a := runNode(t, b, g, "a", Config{})
		start(t, a.Conductor, alice, true)
		time.Sleep(90 * time.Second)
		c := runNode(t, b, g, "c", Config{})
		time.Sleep(30 * time.Second)
		if st, _ := c.StatusOf(alice); st.Node != "a" || st.Phase != PhaseReady || st.State != router.StateReady {
			t.Errorf("on the other node: %+v", st)
		}
		start(t, c.Conductor, alice, false)
		if st, _ := c.StatusOf(alice); !st.Active() {
			t.Errorf("right after the request the status is that of before: %+v", st)
		}
		time.Sleep(7 * time.Second)
		if got := tab.state(alice); got != router.StateNew {
			t.Errorf("7 seconds after the request the user is %s", got)
		}
		if n := g.count("c"); n != 0 {
			t.Errorf("the other node made %d passes", n)
		}
		if all := c.Status(); len(all) != 1 || all[0].State != router.StateNew || all[0].Phase != PhaseDone {
			t.Errorf("on the other node: %+v", all)
		}
	})
}

func TestCancelReachesTheNodeThatOwnsTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(sleepFor(time.Hour))
		a, c := runNode(t, b, g, "a", Config{}), runNode(t, b, g, "c", Config{})
		start(t, a.Conductor, alice, false)
		time.Sleep(20 * time.Second)
		for _, n := range []*node{a, c} {
			if err := n.Cancel(t.Context(), alice, "test"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		g.mu.Lock()
		still := g.active[alice]
		g.mu.Unlock()
		if still != 0 || tab.state(alice) != router.StateOld {
			t.Errorf("%d passes go on, the user is %s", still, tab.state(alice))
		}
		start(t, c.Conductor, alice, true)
		time.Sleep(10 * time.Second)
		if n := g.count("a") + g.count("c"); n != 2 || tab.state(alice) != router.StateSyncing {
			t.Errorf("%d passes after a new start, the user is %s", n, tab.state(alice))
		}
		g.check(t)
	})
}

// A node that cannot keep a user ends its pass before another may begin one.
func TestNodeThatIsCutOffEndsItsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(sleepFor(10*time.Minute))
		a := runNode(t, b, g, "a", Config{})
		start(t, a.Conductor, alice, true)
		time.Sleep(10 * time.Second)
		c := runNode(t, b, g, "c", Config{})
		a.view.set(func(v *view) { v.away = errAway })
		time.Sleep(40 * time.Second)
		if g.count("c") != 1 {
			t.Errorf("the other node made %d passes", g.count("c"))
		}
		a.view.set(func(v *view) { v.away = nil })
		time.Sleep(5 * time.Minute)
		if st, _ := a.StatusOf(alice); st.Node != "c" {
			t.Errorf("on the node that was cut off: %+v", st)
		}
		if n := g.count("a"); n != 1 {
			t.Errorf("the node that was cut off made %d passes", n)
		}
		g.check(t)
		c.stop()
	})
}

// A process that was stopped sees at the first look at the clock that its time
// is over, whatever its timers and contexts say, and does not begin again when
// the other node is done.
func TestStoppedProcessMayNotGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		c := New(Config{Table: tab, Owners: &view{books: newBooks(tab), node: "a"}})
		m := newMove(c, router.User{Address: alice}, Request{})
		m.hold(time.Now(), 0)
		m.stake.timer.Stop() // it did not get to run
		time.Sleep(24 * time.Second)
		if err := m.check(); err != nil {
			t.Errorf("within its time: %v", err)
		}
		time.Sleep(2 * time.Second)
		if err := m.check(); !errors.Is(err, errLost) {
			t.Errorf("after its time: %v", err)
		}
		if _, err := m.set(t.Context(), router.User{Address: alice, State: router.StateOld}, router.StateSyncing, "", ""); !errors.Is(err, errLost) {
			t.Errorf("a change of the user after its time: %v", err)
		}
		m.extend(time.Now())
		if err := m.check(); !errors.Is(err, errLost) {
			t.Error("what was lost is owned again")
		}
	})
}

// The pass of a node that was taken over heeds nothing, not even its context:
// the guard has the last word, and the node begins nothing new beside it.
func TestPassThatIsLateIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b := newBooks(tab)
		g := newGuarded(nil)
		refused := make(chan error, 2)
		a := runNode(t, b, g, "a", Config{Copier: stubborn(func(job backfill.Job) error {
			time.Sleep(2 * time.Minute)
			err := job.Dest.Guard()
			refused <- err
			return err
		})})
		start(t, a.Conductor, alice, true)
		time.Sleep(10 * time.Second)
		a.view.set(func(v *view) { v.away = errAway })
		c := runNode(t, b, g, "c", Config{})
		time.Sleep(time.Minute)
		if g.count("c") == 0 {
			t.Error("nobody took the user up")
		}
		a.view.set(func(v *view) { v.away = nil })
		time.Sleep(2 * time.Minute)
		if err := <-refused; len(refused) != 0 || !errors.Is(err, errLost) {
			t.Errorf("the late pass: %v; %d passes after it", err, len(refused))
		}
		c.stop()
		a.stop()
	})
}

// The clock of the store may jump, and a user be another's before his time.
func TestUserWhoWasTakenAwayIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(sleepFor(time.Hour))
		a := runNode(t, b, g, "a", Config{})
		start(t, a.Conductor, alice, true)
		time.Sleep(10 * time.Second)
		b.mu.Lock()
		b.owner[alice] = "c"
		b.mu.Unlock()
		time.Sleep(6 * time.Second)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.active[alice] != 0 {
			t.Error("the pass goes on")
		}
	})
}

// Users who are ready stay with their node, which may have all of them after
// the others were started anew. When they are to be flipped, all nodes help.
func TestFlipsGoWhereThereAreFreePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		for i := range 24 {
			u := router.User{Address: fmt.Sprintf("u%d@example.org", i), State: router.StateReady, Kind: router.KindMailbox, Epoch: 1, Since: time.Now()}
			tab.users[u.Address] = u
		}
		b, g := newBooks(tab), newGuarded(sleepFor(3*time.Second))
		a := runNode(t, b, g, "a", Config{Concurrency: 2, Tail: time.Hour})
		time.Sleep(2 * time.Minute)
		c := runNode(t, b, g, "c", Config{Concurrency: 2, Tail: time.Hour})
		time.Sleep(time.Minute)
		if n := g.count("c"); n != 0 {
			t.Fatalf("c made %d passes", n)
		}
		for i := range 24 {
			start(t, c.Conductor, fmt.Sprintf("u%d@example.org", i), false)
		}
		// 24 users with 9 s each in 4 places.
		time.Sleep(90 * time.Second)
		for i := range 24 {
			if u := fmt.Sprintf("u%d@example.org", i); tab.state(u) != router.StateNew {
				t.Errorf("%s is %s", u, tab.state(u))
			}
		}
		g.check(t)
		a.stop()
	})
}

func TestStatusGoesOnCounting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(sleepFor(time.Second))
		a := runNode(t, b, g, "a", Config{})
		start(t, a.Conductor, alice, true)
		time.Sleep(3 * time.Minute)
		before, _ := a.StatusOf(alice)
		a.stop()
		c := runNode(t, b, g, "c", Config{})
		time.Sleep(10 * time.Second)
		if st, ok := c.StatusOf(alice); !ok || st.Passes <= before.Passes || !st.Started.Equal(before.Started) {
			t.Errorf("before: %+v\nafter: %+v", before, st)
		}
	})
}

type stubborn func(backfill.Job) error

func (f stubborn) Pass(_ context.Context, job backfill.Job, _ backfill.Options) (backfill.Report, error) {
	return backfill.Report{}, f(job)
}

func (stubborn) Verify(context.Context, backfill.Job) (backfill.Verification, error) {
	return backfill.Verification{}, nil
}

func TestDrainedNodeGivesItsUsersUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := newTable()
		b, g := newBooks(tab), newGuarded(sleepFor(time.Minute))
		const bob = "bob@example.org"
		tab.setBusy(bob, 1)
		a := runNode(t, b, g, "a", Config{})
		start(t, a.Conductor, bob, false)
		time.Sleep(3 * time.Minute)
		start(t, a.Conductor, alice, true)
		time.Sleep(10 * time.Second)
		if tab.state(bob) != router.StateCutover {
			t.Fatalf("bob is %s", tab.state(bob))
		}
		c := runNode(t, b, g, "c", Config{})
		a.view.set(func(v *view) { v.drain = true })
		time.Sleep(15 * time.Second)
		b.mu.Lock()
		of := []string{b.owner[alice], b.owner[bob]}
		b.mu.Unlock()
		// Who is held is carried to the end where he is.
		if !slices.Equal(of, []string{"c", "a"}) {
			t.Errorf("alice and bob belong to %v", of)
		}
		tab.setBusy(bob, 0)
		time.Sleep(10 * time.Minute)
		if tab.state(bob) != router.StateNew {
			t.Errorf("bob is %s", tab.state(bob))
		}
		b.mu.Lock()
		for u, o := range b.owner {
			if o == "a" {
				t.Errorf("the drained node still has %s", u)
			}
		}
		b.mu.Unlock()
		g.check(t)
		c.stop()
	})
}
