package redis

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var quick = pace{beat: 50 * time.Millisecond, stale: 600 * time.Millisecond}

func nodeOn(t testing.TB, url, name string, change ...func(*Options)) *Store {
	t.Helper()
	s, err := openNode(url, name, change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openNode(url, name string, change ...func(*Options)) (*Store, error) {
	srv, err := Dial(url)
	if err != nil {
		return nil, err
	}
	o := Options{Node: name, pace: quick}
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return Open(ctx, srv, o)
}

// kill ends a node as kill -9 would: nothing is said to Redis.
func (s *Store) kill() {
	s.once.Do(func() {
		s.closed.Store(true)
		s.cancel()
		s.wg.Wait()
		s.link.close()
		s.server.Close()
	})
}

func put(t testing.TB, s *Store, n int) {
	t.Helper()
	for range n {
		env := &mail.Envelope{ID: mail.NewID(), Received: time.Now(), Recipients: []mail.Recipient{{
			Addr: mail.Address{Local: "a", Domain: "example.org"}, User: "a@example.org",
		}}}
		if err := s.Put(t.Context(), env, strings.NewReader("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
	}
}

// within asks until ok says yes.
func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("after %s still not: %s", limit, what)
		}
	}
}

func nodeCalled(t testing.TB, s *Store, name string) Node {
	t.Helper()
	all, err := s.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("no node %s among %+v", name, all)
	return Node{}
}

func claim(t testing.TB, s *Store, limit time.Duration) *queue.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	l, err := s.Claim(ctx, mail.Old, 10)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return l
}

func done(t testing.TB, s *Store, l *queue.Lease) {
	t.Helper()
	var out []queue.Outcome
	for _, it := range l.Items {
		out = append(out, queue.Outcome{N: it.N, Kind: queue.Done})
	}
	if err := s.Settle(t.Context(), l, out); err != nil {
		t.Fatal(err)
	}
}

func TestNodesShareTheWork(t *testing.T) {
	url := redistest.Start(t).URL()
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a, b, c := nodeOn(t, url, "a"), nodeOn(t, url, "b"), nodeOn(t, url, "c")
	const n = 60
	put(t, a, n)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var total atomic.Int64
	counts := map[string]*atomic.Int64{}
	ended := make(chan error, 3)
	for _, s := range []*Store{a, b, c} {
		count := new(atomic.Int64)
		counts[s.opts.Node] = count
		go func() {
			for total.Load() < n {
				l, err := s.Claim(ctx, mail.Old, 10)
				if err != nil {
					break
				}
				count.Add(1)
				err = s.Settle(ctx, l, []queue.Outcome{{N: 0, Kind: queue.Done}})
				if err != nil {
					ended <- err
					return
				}
				if total.Add(1) == n {
					cancel()
				}
			}
			ended <- nil
		}()
	}
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if total.Load() != n {
		t.Errorf("%d deliveries of %d messages", total.Load(), n)
	}
	for name, k := range counts {
		if k.Load() == 0 {
			t.Errorf("node %s did nothing", name)
		}
	}
	a.Close()
	b.Close()
	c.Close()
}

func TestLeasesOfADeadNodeComeBack(t *testing.T) {
	url := redistest.Start(t).URL()
	short := func(o *Options) { o.LeaseTime = 500 * time.Millisecond }
	a, b := nodeOn(t, url, "a", short), nodeOn(t, url, "b", short)
	put(t, a, 1)
	if claim(t, a, 5*time.Second) == nil {
		t.Fatal("nothing to claim")
	}
	if n := nodeCalled(t, b, "a"); n.Leases != 1 || n.State != NodeAlive || n.PID == 0 || n.Host == "" {
		t.Errorf("node a: %+v", n)
	}
	a.kill()
	l := claim(t, b, 5*time.Second)
	if l == nil {
		t.Fatal("the mail of the dead node did not come back")
	}
	done(t, b, l)
	within(t, 3*time.Second, "a is gone", func() bool { return nodeCalled(t, b, "a").State == NodeGone })
}

func TestCleanLeaveGivesLeasesBackAtOnce(t *testing.T) {
	url := redistest.Start(t).URL()
	a, b := nodeOn(t, url, "a"), nodeOn(t, url, "b") // leases of a minute
	put(t, a, 1)
	if claim(t, a, 5*time.Second) == nil {
		t.Fatal("nothing to claim")
	}
	a.Close()
	if claim(t, b, 5*time.Second) == nil {
		t.Error("the lease was not given back")
	}
	if n := nodeCalled(t, b, "a"); n.State != NodeLeft {
		t.Errorf("node a: %+v", n)
	}
	if again := nodeOn(t, url, "a"); nodeCalled(t, again, "a").State != NodeAlive {
		t.Error("the node cannot come again")
	}
}

func TestNameThatLivesElsewhereIsRefused(t *testing.T) {
	url := redistest.Start(t).URL()
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a := nodeOn(t, url, "a")
	_, err := openNode(url, "a")
	if err == nil || !strings.Contains(err.Error(), "give each node its own name with node: NAME") || !strings.Contains(err.Error(), "pid") {
		t.Errorf("a second node a: %v", err)
	}
	if a.Err() != nil {
		t.Errorf("the first one: %v", a.Err())
	}
	a.Close()
}

// A node that was silent too long loses its name, and then stops: what it
// leased and was not sending is another's.
func TestSilentNodeIsTakenOver(t *testing.T) {
	url := redistest.Start(t).URL()
	var frozen atomic.Bool
	a := nodeOn(t, url, "a", func(o *Options) { o.frozen = frozen.Load })
	put(t, a, 2)
	quiet, sending := claim(t, a, 5*time.Second), claim(t, a, 5*time.Second)
	if err := a.Renew(t.Context(), sending, true); err != nil {
		t.Fatal(err)
	}
	frozen.Store(true)
	again := nodeOn(t, url, "a")
	l := claim(t, again, 5*time.Second)
	if l == nil || l.Envelope.ID != quiet.Envelope.ID {
		t.Fatal("what was not being sent did not come back at once")
	}
	if l := claim(t, again, 300*time.Millisecond); l != nil {
		t.Error("what may be on its way to the final dot came back at once")
	}
	if err := a.Renew(t.Context(), quiet, true); !errors.Is(err, queue.ErrLost) {
		t.Errorf("the first life may still send: %v", err)
	}
	frozen.Store(false)
	select {
	case <-a.Failed():
	case <-time.After(5 * time.Second):
		t.Fatal("the first life goes on under a name that is not its own")
	}
	if err := a.Err(); !strings.Contains(err.Error(), "another node took the name a") {
		t.Error(err)
	}
	if again.Err() != nil {
		t.Error(again.Err())
	}
}

// A node that was silent and was not taken over goes on.
func TestSilentNodeGoesOn(t *testing.T) {
	url := redistest.Start(t).URL()
	var frozen atomic.Bool
	a, b := nodeOn(t, url, "a", func(o *Options) { o.frozen = frozen.Load }), nodeOn(t, url, "b")
	frozen.Store(true)
	within(t, 5*time.Second, "a is gone", func() bool { return nodeCalled(t, b, "a").State == NodeGone })
	frozen.Store(false)
	within(t, 5*time.Second, "a is back", func() bool { return nodeCalled(t, b, "a").State == NodeAlive })
	if a.Err() != nil {
		t.Error(a.Err())
	}
}

// On the same machine nobody has to wait until a dead process counts as gone.
func TestDeadProcessIsReplacedAtOnce(t *testing.T) {
	if thisProcess(Info{}).Space == "" {
		t.Skip("this system does not tell what a process id means")
	}
	url := redistest.Start(t).URL()
	slow := func(o *Options) { o.pace = pace{beat: 50 * time.Millisecond, stale: time.Minute} }
	first := nodeOn(t, url, "a", slow)
	if got, err := first.Own(t.Context(), time.Minute, "u@example.org"); err != nil || got[0] != 0 {
		t.Fatal(got, err)
	}
	first.kill()
	dead := exec.Command("true")
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	p := thisProcess(Info{})
	p.PID, p.Start = dead.Process.Pid, "1"
	_ = dead.Wait()
	if !p.dead() {
		t.Fatal("a process that has ended counts as alive")
	}
	other := nodeOn(t, url, "b", slow)
	first.node.info = p
	args := []any{"a", first.boot, "0", p.encode(), "", 60000, "0"}
	if _, err := other.link.read(t.Context(), scBeat, args...); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	again := nodeOn(t, url, "a", slow)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it waited %s for a dead process", took)
	}
	if got, err := again.Own(t.Context(), time.Minute, "u@example.org"); err != nil || got[0] != 0 {
		t.Errorf("the users of the dead process are not free: %v, %v", got, err)
	}
}

func TestProcessThatLivesIsNotDead(t *testing.T) {
	if p := thisProcess(Info{}); p.dead() {
		t.Error("we are dead")
	}
	p := thisProcess(Info{})
	p.Host += "x"
	p.PID = 1 << 30
	if p.dead() {
		t.Error("a process of another host counts as dead")
	}
	p = thisProcess(Info{})
	if p.Space != "" {
		if p.Start = "1"; !p.dead() {
			t.Error("a process whose id was given to another counts as alive")
		}
	}
	for _, text := range []string{"", "{", `{"pid":"x"}`, `{"pid":-1}`, "[]"} {
		if processOf(text).dead() {
			t.Errorf("%q counts as dead", text)
		}
	}
}

func TestDrain(t *testing.T) {
	url := redistest.Start(t).URL()
	a, b := nodeOn(t, url, "a"), nodeOn(t, url, "b")
	put(t, a, 2)
	l := claim(t, a, 5*time.Second)
	if err := b.Drain(t.Context(), "a", "ops"); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "a drains", a.Draining)
	if err := a.Room(0); !errors.Is(err, ErrDraining) || errors.Is(err, queue.ErrFull) || !strings.Contains(err.Error(), "ops") {
		t.Errorf("Room: %v", err)
	}
	if b.Room(0) != nil || b.Draining() {
		t.Error("b drains too")
	}
	if claim(t, a, 300*time.Millisecond) != nil {
		t.Error("a node that is drained claims")
	}
	if n := nodeCalled(t, b, "a"); n.State != NodeDraining || n.Drained != "ops" {
		t.Errorf("node a: %+v", n)
	}
	done(t, a, l)
	within(t, 5*time.Second, "a is drained", func() bool { return nodeCalled(t, b, "a").State == NodeDrained })
	if claim(t, b, 5*time.Second) == nil {
		t.Error("the other node gets no mail")
	}
	put(t, b, 1)
	if err := b.Drain(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "a works", func() bool { return a.Room(0) == nil })
	if claim(t, a, 5*time.Second) == nil {
		t.Error("a node that is no longer drained gets no mail")
	}
	if err := b.Drain(t.Context(), "nobody", "ops"); !errors.Is(err, ErrNoNode) {
		t.Errorf("draining nobody: %v", err)
	}
	a.Close()
	if err := b.Drain(t.Context(), "a", "ops"); !errors.Is(err, ErrNoNode) {
		t.Errorf("draining a node that left: %v", err)
	}
}

// A node that has not seen yet that it is drained may claim at any moment.
func TestNodeThatDoesNotKnowIsNotDrained(t *testing.T) {
	url := redistest.Start(t).URL()
	var frozen atomic.Bool
	slow := func(o *Options) {
		o.frozen, o.pace = frozen.Load, pace{beat: 20 * time.Millisecond, stale: time.Minute}
	}
	nodeOn(t, url, "a", slow)
	b := nodeOn(t, url, "b", slow)
	frozen.Store(true)
	if err := b.Drain(t.Context(), "a", "ops"); err != nil {
		t.Fatal(err)
	}
	if n := nodeCalled(t, b, "a"); n.State != NodeDraining {
		t.Errorf("node a: %+v", n)
	}
	frozen.Store(false)
	within(t, 5*time.Second, "a is drained", func() bool { return nodeCalled(t, b, "a").State == NodeDrained })
}

func TestOneNodeOwnsAUser(t *testing.T) {
	url := redistest.Start(t).URL()
	a, b := nodeOn(t, url, "a"), nodeOn(t, url, "b")
	ctx := t.Context()
	own := func(s *Store, ttl time.Duration, want int64) {
		t.Helper()
		got, err := s.Own(ctx, ttl, "u@x")
		if err != nil || len(got) != 1 || got[0] != want {
			t.Fatalf("Own says %v, %v; want %d", got, err, want)
		}
	}
	free := func(want string) {
		t.Helper()
		got, err := b.Free(ctx, 10)
		if err != nil || strings.Join(got, " ") != want {
			t.Fatalf("free: %q, %v; want %q", got, err, want)
		}
	}
	if err := a.Offer(ctx, true, "u@x"); err != nil {
		t.Fatal(err)
	}
	free("u@x")
	own(a, 300*time.Millisecond, 1)
	own(b, time.Minute, -1)
	free("")
	own(a, 300*time.Millisecond, 1)
	if err := b.Disown(ctx, "u@x", true, 1); err != nil {
		t.Fatal(err)
	}
	own(b, time.Minute, -1)
	if err := b.SaveLedger(ctx, "u@x", "r", []byte("b")); err == nil || !strings.Contains(err.Error(), "another node") {
		t.Errorf("a node that does not own the user writes his ledger: %v", err)
	}
	if err := a.SaveLedger(ctx, "u@x", "r", []byte("a")); err != nil {
		t.Error(err)
	}
	within(t, 3*time.Second, "the ownership ran out", func() bool {
		got, err := b.Free(ctx, 10)
		return err == nil && len(got) == 1
	})
	own(b, time.Minute, 1)
	own(a, time.Minute, -1)
	if err := a.Offer(ctx, true, "u@x"); err != nil {
		t.Fatal(err)
	}
	own(b, time.Minute, 2)
	// Done by what was known before the last request: it is not lost.
	if err := b.Disown(ctx, "u@x", true, 1); err != nil {
		t.Fatal(err)
	}
	free("u@x")
	own(b, time.Minute, 2)
	if err := b.Disown(ctx, "u@x", true, 2); err != nil {
		t.Fatal(err)
	}
	free("")
	own(a, time.Minute, 0)
}

// Who was taken meanwhile is not kept, even when the other is done with him:
// what the first remembers of him is old.
func TestWhoWasTakenMeanwhileIsNotKept(t *testing.T) {
	url := redistest.Start(t).URL()
	a, b := nodeOn(t, url, "a"), nodeOn(t, url, "b")
	ctx := t.Context()
	keep := func(want int64) {
		t.Helper()
		if got, err := a.Keep(ctx, time.Millisecond, "u@x"); err != nil || got[0] != want {
			t.Fatalf("Keep says %v, %v; want %d", got, err, want)
		}
	}
	keep(-1)
	if _, err := a.Own(ctx, time.Millisecond, "u@x"); err != nil {
		t.Fatal(err)
	}
	keep(0)
	within(t, 3*time.Second, "b has him", func() bool {
		got, err := b.Own(ctx, time.Minute, "u@x")
		return err == nil && got[0] == 0
	})
	keep(-1)
	if err := b.Disown(ctx, "u@x", false, 0); err != nil {
		t.Fatal(err)
	}
	keep(-1)
}

// A disown that was on its way for long must not free a user who was taken
// again since.
func TestDelayedDisownFreesNobody(t *testing.T) {
	url := redistest.Start(t).URL()
	a, b := nodeOn(t, url, "a"), nodeOn(t, url, "b")
	ctx := t.Context()
	if _, err := a.Own(ctx, time.Minute, "u@x"); err != nil {
		t.Fatal(err)
	}
	late := a.node.owning.Add(1)
	if _, err := a.Own(ctx, time.Minute, "u@x"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.link.write(ctx, scDisown, a.boot, late, "u@x", "0", 0); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Own(ctx, time.Minute, "u@x"); err != nil || got[0] != -1 {
		t.Errorf("two nodes own a user: %v, %v", got, err)
	}
}

func TestHeldUsersAreFoundFirst(t *testing.T) {
	url := redistest.Start(t).URL()
	a := nodeOn(t, url, "a")
	ctx := t.Context()
	var users []router.User
	var names []string
	for i := range 2500 {
		u := router.User{Address: fmt.Sprintf("u%d@example.org", i), Kind: router.KindMailbox, State: router.StateSyncing}
		users, names = append(users, u), append(names, u.Address)
	}
	held := router.User{Address: "held@example.org", Kind: router.KindMailbox, State: router.StateCutover}
	if _, _, err := a.ImportUsers(ctx, append(users, held), router.Change{By: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := a.Offer(ctx, false, names...); err != nil {
		t.Fatal(err)
	}
	if err := a.Offer(ctx, false, held.Address); err != nil {
		t.Fatal(err)
	}
	got, err := a.Free(ctx, 5)
	if err != nil || len(got) != 6 || got[0] != held.Address {
		t.Errorf("free: %v, %v", got, err)
	}
}

func TestPublished(t *testing.T) {
	url := redistest.Start(t).URL()
	a, b := nodeOn(t, url, "a b"), nodeOn(t, url, "c")
	ctx := t.Context()
	if _, err := a.Own(ctx, time.Minute, "u@x"); err != nil {
		t.Fatal(err)
	}
	if err := a.Publish(ctx, "u@x", []byte(`{"x":1}`), time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := a.Offer(ctx, true, "v@x"); err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]string{"u@x": `u@x "a b" 0 {"x":1};`, "v@x": `v@x "" 1 ;`, "w@x": "", "": `u@x "a b" 0 {"x":1};v@x "" 1 ;`} {
		var got string
		err := b.Published(ctx, user, func(user, node string, asked int64, data []byte) {
			got += fmt.Sprintf("%s %q %d %s;", user, node, asked, data)
		})
		if err != nil || got != want {
			t.Errorf("of %q: %q, %v; want %q", user, got, err, want)
		}
	}
	if err := a.Publish(ctx, "u@x", []byte("2"), -time.Second); err != nil {
		t.Fatal(err)
	}
	_ = b.Published(ctx, "u@x", func(_, _ string, _ int64, data []byte) {
		if data != nil {
			t.Errorf("what ran out is still there: %s", data)
		}
	})
}
