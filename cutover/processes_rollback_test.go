package cutover_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/cutover"
	"crossfade/internal/mailtest"
	"crossfade/internal/redistest"
	"crossfade/router"
	"crossfade/store/redis"
)

// nodesOf starts three nodes in processes of their own.
func nodesOf(t *testing.T, url string, where accounts) (nodes []*process) {
	t.Helper()
	for _, name := range []string{"a", "b", "c"} {
		p := &process{t: t, env: strings.Join([]string{url, name, where.old, where.new}, "|")}
		p.start()
		t.Cleanup(func() {
			p.kill()
			if t.Failed() {
				t.Logf("node %s:\n%s", name, p.logs.String())
			}
		})
		nodes = append(nodes, p)
	}
	return nodes
}

// awaitState waits until all users are in a state and no node has work on one.
func awaitState(t *testing.T, s *redis.Store, server *redistest.Server, users []string, want router.State) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for {
		left, err := server.Do("ZCARD", "cx:{q}:O")
		arrived := err == nil && left == int64(0)
		for _, name := range users {
			u, err := s.User(t.Context(), name)
			arrived = arrived && err == nil && u.State == want
		}
		if arrived {
			return
		}
		if time.Now().After(deadline) {
			for _, name := range users {
				u, err := s.User(t.Context(), name)
				t.Logf("%s is %s, %v", name, u.State, err)
			}
			t.Fatalf("not all users are %s; work is left: %v, %v", want, left, err)
		}
		wait(50 * time.Millisecond)
	}
}

// letters puts messages into both folders of a user, and counts them.
func letters(t *testing.T, m *mailtest.Mailsystem, user string, from, to int, want map[string]int) {
	t.Helper()
	for n := from; n < to; n++ {
		// Some are the same as others, and have to be there as often.
		body := fmt.Sprintf("From: a@example.net\r\nSubject: %d\r\n\r\nfor %s\r\n", n-n%7/6, user)
		want[user+" "+body]++
		if _, err := m.Append(user, []string{"INBOX", "Archive"}[n%2], nil, time.Now(), []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRollbackOnNodesThatAreKilledAndStopped takes users back to old over a real Redis while the nodes that do it are
// killed, and stopped for longer than they own a user. Every message of either side is on old exactly once.
func TestRollbackOnNodesThatAreKilledAndStopped(t *testing.T) {
	t.Parallel()
	const users = 6
	server := redistest.Start(t)
	old, fresh := mailsystem(t, "old.test"), mailsystem(t, "new.test")
	slow := func(e mailtest.IMAPEvent) error {
		if e.Command == "APPEND" {
			wait(10 * time.Millisecond)
		}
		return nil
	}
	want := map[string]int{}
	names := make([]string, users)
	for i := range names {
		names[i] = fmt.Sprintf("u%d@example.org", i)
		for _, m := range []*mailtest.Mailsystem{old, fresh} {
			if err := m.AddUser(names[i], "secret"); err != nil {
				t.Fatal(err)
			}
		}
		letters(t, old, names[i], 0, 20, want)
	}
	s, err := openNode(t.Context(), server.URL(), "operator")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	where := accounts{old.IMAPAddr(), fresh.IMAPAddr()}
	nodes := nodesOf(t, server.URL(), where)
	c := conductor(s, "operator", where) // it is not run: requests are for the others
	for _, u := range names {
		if err := c.Start(t.Context(), cutover.Request{User: u, By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	awaitState(t, s, server, names, router.StateDone)
	for _, u := range names {
		letters(t, fresh, u, 100, 220, want)
	}
	old.SetIMAPHook(slow)
	for _, u := range names {
		if err := c.Rollback(t.Context(), cutover.Request{User: u, By: "test", Reason: "back"}); err != nil {
			t.Fatal(err)
		}
	}
	// One is stopped at once, for so long that the others take up what it was at; of those one dies each time.
	for round := range 3 {
		wait(100*time.Millisecond + rand.N(200*time.Millisecond))
		stopped, dies := nodes[round], nodes[(round+1)%len(nodes)]
		stopped.signal(syscall.SIGSTOP)
		wait(owning / 3)
		dies.kill()
		dies.start()
		wait(owning)
		stopped.signal(syscall.SIGCONT)
	}
	awaitState(t, s, server, names, router.StateOld)
	for _, u := range names {
		for _, folder := range []string{"INBOX", "Archive"} {
			list, err := old.Messages(u, folder)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				want[u+" "+string(m.Body)]--
			}
		}
	}
	missing, twice := 0, 0
	for _, n := range want {
		missing, twice = missing+max(n, 0), twice+max(-n, 0)
	}
	if missing+twice > 0 {
		t.Errorf("%d messages are missing from old and %d too many of %d", missing, twice, users*140)
	}
}

// holding is a Copier that takes its time over final passes.
type holding struct{ took time.Duration }

func (h holding) Pass(ctx context.Context, _ backfill.Job, o backfill.Options) (backfill.Report, error) {
	if !o.Final {
		return backfill.Report{}, nil
	}
	select {
	case <-time.After(h.took):
		return backfill.Report{}, nil
	case <-ctx.Done():
		return backfill.Report{}, ctx.Err()
	}
}

func (holding) Verify(_ context.Context, job backfill.Job) (backfill.Verification, error) {
	return backfill.Verification{User: job.User}, nil
}

// slowly is a store that is far away when it reads the books.
type slowly struct{ *redis.Store }

func (s slowly) LoadLedger(ctx context.Context, user string) (map[string][]byte, error) {
	out, err := s.Store.LoadLedger(ctx, user)
	wait(20 * time.Millisecond)
	return out, err
}

// TestPaceOnRedis: three nodes on a real Redis hold no more users at once than max_held, and begin no more holds in a
// minute than flips_per_minute, all together. Who is held when is read from the history, in the time of the store.
func TestPaceOnRedis(t *testing.T) {
	t.Parallel()
	const users, most, perMinute = 12, 2, 240
	server := redistest.Start(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var first *redis.Store
	var c *cutover.Conductor
	for i := range 3 {
		name := string(rune('a' + i))
		s, err := openNode(t.Context(), server.URL(), name)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		node := cutover.New(cutover.Config{
			Table: s, Copier: holding{200 * time.Millisecond}, Mailboxes: accounts{"127.0.0.1:1", "127.0.0.1:2"}, Requests: slowly{s}, Owners: s, Board: s, Node: name,
			OwnTime: owning, Concurrency: 4, MaxHeld: most, FlipsPerMinute: perMinute, Window: -1, Tail: 300 * time.Millisecond,
		})
		if first == nil {
			first, c = s, node
		}
		wg.Go(func() {
			if err := node.Run(ctx); err != nil {
				t.Errorf("node %s: %v", name, err)
			}
		})
	}
	defer wg.Wait()
	defer stop()
	names := make([]string, users)
	for i := range names {
		names[i] = fmt.Sprintf("p%d@example.org", i)
		if err := c.Start(t.Context(), cutover.Request{User: names[i], By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	awaitState(t, first, server, names, router.StateDone)
	type span struct{ from, to time.Time }
	var holds []span
	for _, u := range names {
		changes, err := first.History(t.Context(), u, 100)
		if err != nil {
			t.Fatal(err)
		}
		var h span
		for _, x := range slices.Backward(changes) {
			switch {
			case x.To == router.StateCutover && !h.from.IsZero():
				t.Errorf("%s was held twice", u)
			case x.To == router.StateCutover:
				h.from = x.At
			case x.From == router.StateCutover:
				h.to = x.At
			}
		}
		holds = append(holds, h)
	}
	slices.SortFunc(holds, func(a, b span) int { return a.from.Compare(b.from) })
	for i, h := range holds {
		at := 0
		for _, other := range holds[:i+1] {
			if other.to.After(h.from) {
				at++
			}
		}
		if at > most {
			t.Errorf("%d users are held at %s, the bound is %d", at, h.from, most)
		}
		// The clock of a change is that of the store, in milliseconds.
		if every := time.Minute / perMinute; i > 0 && h.from.Sub(holds[i-1].from) < every-5*time.Millisecond {
			t.Errorf("hold %d begins %s after the one before, want %s", i, h.from.Sub(holds[i-1].from), every)
		}
	}
	t.Logf("%d holds in %s", len(holds), holds[len(holds)-1].to.Sub(holds[0].from))
}
