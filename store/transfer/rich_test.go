package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
	"crossfade/store/disk"
	"crossfade/store/redis"
	"crossfade/store/storetest"
	"crossfade/store/transfer"
)

// world is a store with short words for what tests do.
type world struct {
	testing.TB
	ctx context.Context
	s   storetest.Store
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func address(a string) mail.Address {
	x, err := mail.ParseAddress(a)
	if err != nil {
		panic(err)
	}
	return x
}

// noise is a body that does not compress.
func noise(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (w *world) put(body []byte, rcpts ...string) *mail.Envelope {
	w.Helper()
	e := &mail.Envelope{ID: mail.NewID(), From: address("sender@example.com"), Received: time.Now(), Body: mail.Body8BitMIME, EnvID: "x=1 y"}
	for _, r := range rcpts {
		a := address(r)
		rc := mail.Recipient{Addr: a, User: a.Key(), Hint: mail.New}
		if strings.HasPrefix(r, "out") {
			rc.User, rc.Hint = "", ""
		}
		if strings.HasPrefix(r, "nohint") {
			rc.Hint = ""
		}
		e.Recipients = append(e.Recipients, rc)
	}
	w.ok(w.s.Put(w.ctx, e, bytes.NewReader(body)))
	return e
}

func (w *world) set(key string, change func(u *router.User)) router.User {
	w.Helper()
	u, err := w.s.User(w.ctx, key)
	if errors.Is(err, router.ErrNoUser) {
		u, err = router.User{Address: key, Kind: router.KindMailbox}, nil
	}
	w.ok(err)
	change(&u)
	u, _, err = w.s.SetUser(w.ctx, u, router.Change{By: "admin", Reason: "test of " + string(u.State), Forced: true})
	w.ok(err)
	return u
}

func (w *world) state(key string, s router.State) {
	w.Helper()
	w.set(key, func(u *router.User) { u.State = s })
}

func (w *world) apply(id mail.ID, a queue.Action) {
	w.Helper()
	n, err := w.s.Apply(w.ctx, queue.Filter{IDs: []mail.ID{id}}, a)
	w.ok(err)
	if n.Changed == 0 {
		w.Fatalf("%s of %s changed nothing", a.Verb, id)
	}
}

func (w *world) claim(r mail.Route) *queue.Lease {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	l, err := w.s.Claim(ctx, r, 100)
	w.ok(err)
	return l
}

// settle claims over a route until it has the message, settles it so and gives
// the others back.
func (w *world) settle(id mail.ID, r mail.Route, o queue.Outcome) {
	w.Helper()
	var others []*queue.Lease
	for {
		l := w.claim(r)
		if l.Envelope.ID != id {
			others = append(others, l)
			continue
		}
		var all []queue.Outcome
		for _, it := range l.Items {
			o.N = it.N
			all = append(all, o)
		}
		w.ok(w.s.Settle(w.ctx, l, all))
		break
	}
	for _, l := range others {
		w.ok(w.s.Settle(w.ctx, l, nil))
	}
}

// rich fills a store with everything that a store can hold.
func (w *world) rich() {
	w.Helper()
	w.users()
	w.ledgers()
	for _, n := range []int{0, 10, 64 << 10, 300 << 10, 5 << 20} {
		w.put(noise(n), "size@example.org")
	}
	w.put(bytes.Repeat([]byte("compressible "), 100_000), "size@example.org", "nohint@example.org", "out@example.com")
	w.put([]byte("in the table\r\n"), "user007@example.org", "user400@example.org", "on-new@example.org", "held@example.org")
	null := &mail.Envelope{ID: mail.NewID(), Received: time.Now(), UTF8: true, Ret: mail.RetHdrs, MessageID: "<a@b>", Recipients: []mail.Recipient{
		{Addr: address(`"a b"@example.org`), Orig: address("alias+x@example.org"), User: "a b@example.org", ORcpt: "rfc822;x@y", Notify: mail.NotifyNever},
	}}
	w.ok(w.s.Put(w.ctx, null, strings.NewReader("bounce")))

	w.apply(w.put([]byte("op held"), "user001@example.org", "held@example.org").ID, queue.Action{Verb: queue.DoHold})
	w.apply(w.put([]byte("parked"), "user002@example.org").ID, queue.Action{Verb: queue.DoPark, Reason: "look, ünïcode"})
	w.apply(w.put([]byte("forced"), "user003@example.org").ID, queue.Action{Verb: queue.DoReroute, Route: mail.New})

	soon := time.Now().Add(3 * time.Hour)
	retried := w.put([]byte("retried"), "user004@example.org", "user005@example.org")
	w.settle(retried.ID, mail.Old, queue.Outcome{Kind: queue.Retry, At: time.Now(), Reply: "451 later", Noticed: true})
	w.settle(retried.ID, mail.Old, queue.Outcome{Kind: queue.Retry, At: soon, Reply: "no reply came", Doubt: true})
	w.settle(w.put([]byte("unknown on old"), "user006@example.org").ID, mail.Old, queue.Outcome{Kind: queue.Reroute, To: mail.New, Reply: "550 unknown"})
	w.settle(w.put([]byte("a copy"), "both@example.org").ID, mail.Old, queue.Outcome{Kind: queue.Done})
	held := w.put([]byte("a copy that is held"), "both@example.org")
	w.settle(held.ID, mail.Old, queue.Outcome{Kind: queue.Done})
	w.apply(held.ID, queue.Action{Verb: queue.DoHold})

	moved := w.put([]byte("retried, then its user moved while it was held"), "moved@example.org")
	w.settle(moved.ID, mail.Old, queue.Outcome{Kind: queue.Retry, At: soon, Reply: "451 busy"})
	w.apply(moved.ID, queue.Action{Verb: queue.DoHold})
	w.state("moved@example.org", router.StateNew)
}

func (w *world) users() {
	w.Helper()
	var list []router.User
	for i := range 450 {
		u := router.User{Address: fmt.Sprintf("user%03d@example.org", i), Kind: router.KindMailbox}
		if i%50 == 0 {
			u.Wave, u.OldLogin, u.NewLogin, u.Note = "wave one", fmt.Sprintf("EX\\login%d", i), "other", strings.Repeat("note ", 30)
			u.NotBefore = time.Now().Add(time.Hour).Truncate(time.Millisecond)
		}
		list = append(list, u)
	}
	list = append(list, router.User{Address: "alias@example.org", Kind: router.KindAlias, Targets: []string{"user001@example.org"}},
		router.User{Address: "group@example.org", Kind: router.KindGroup, Targets: []string{"user001@example.org", "user002@example.org"}},
		router.User{Address: "@example.net", Kind: router.KindAlias, Targets: []string{"@example.org"}})
	_, _, err := w.s.ImportUsers(w.ctx, list, router.Change{By: "import", Reason: "users.csv"})
	w.ok(err)
	_, _, err = w.s.ImportUsers(w.ctx, []router.User{{Address: "user009@example.org", Wave: "later"}}, router.Change{By: "import", Reason: "again"})
	w.ok(err)
	w.state("user007@example.org", router.StateSyncing)
	w.state("on-new@example.org", router.StateOld)
	w.state("on-new@example.org", router.StateNew)
	w.state("moved@example.org", router.StateOld)
	w.state("held@example.org", router.StateOld)
	w.state("held@example.org", router.StateCutover)
	w.set("both@example.org", func(u *router.User) { u.State, u.Deliver = router.StateOld, router.DeliverBoth })
	for _, gone := range []string{"user011@example.org", "gone@example.org", "back@example.org"} {
		w.state(gone, router.StateOld)
		u := w.set(gone, func(u *router.User) { u.State = router.StateNew })
		w.ok(w.s.DeleteUser(w.ctx, gone, u.Epoch, router.Change{By: "admin", Reason: "left"}))
	}
	w.state("back@example.org", router.StateOld)
}

func (w *world) ledgers() {
	w.Helper()
	for _, l := range []struct {
		user, name string
		data       []byte
	}{
		{"user001@example.org", "INBOX", []byte("small")}, {"user001@example.org", "Sent/ä", bytes.Repeat([]byte("x"), 9000)},
		{"user002@example.org", "noise", noise(4000)}, {"nobody@example.org", "INBOX", []byte{0, 1, 2}},
	} {
		w.ok(w.s.SaveLedger(w.ctx, l.user, l.name, l.data))
	}
}

// place is where a store lies, of either kind.
type place struct {
	name    string
	open    func(t testing.TB) storetest.Store
	source  func(ctx context.Context) (transfer.Source, error)
	sink    func(ctx context.Context) (transfer.Sink, error)
	discard func(ctx context.Context) (bool, error)
	audit   func(ctx context.Context, repair bool) (transfer.Audit, error)
}

func diskAt(dir string) place {
	return place{
		name: "disk",
		open: func(t testing.TB) storetest.Store {
			s, err := disk.Open(dir, disk.Options{MinFree: -1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		},
		source:  func(context.Context) (transfer.Source, error) { return disk.OpenSource(dir) },
		sink:    func(context.Context) (transfer.Sink, error) { return disk.OpenSink(dir) },
		discard: func(context.Context) (bool, error) { return disk.DiscardPartial(dir) },
		audit: func(ctx context.Context, repair bool) (transfer.Audit, error) {
			return disk.Audit(ctx, dir, repair)
		},
	}
}

func redisAt(url string) place {
	dial := func() *redis.Server {
		s, err := redis.Dial(url)
		if err != nil {
			panic(err)
		}
		return s
	}
	return place{
		name: "redis",
		open: func(t testing.TB) storetest.Store {
			s, err := redis.Open(context.Background(), dial(), redis.Options{Node: "a"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		},
		source: func(ctx context.Context) (transfer.Source, error) { return redis.OpenSource(ctx, dial()) },
		sink: func(ctx context.Context) (transfer.Sink, error) {
			return redis.OpenSink(ctx, dial(), "a test")
		},
		discard: func(ctx context.Context) (bool, error) { return redis.DiscardPartial(ctx, dial()) },
		audit: func(ctx context.Context, repair bool) (transfer.Audit, error) {
			return redis.Audit(ctx, dial(), repair)
		},
	}
}
