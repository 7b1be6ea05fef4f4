package storetest

import (
	"fmt"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var followTests = []test{
	{"waiting mail follows", followWaiting},
	{"mail that waits for a retry follows at once", followRetry},
	{"mail on disk follows", followDisk},
	{"a lease is cut before the dot", followLeased},
	{"any change of the epoch cuts", followEpoch},
	{"what is being sent is busy until settled", followBusy},
	{"busy beyond the lease", followBusyLost},
	{"a 550 from the side he left bounces nothing", followFail},
	{"a new route forgets the old one", followForgets},
	{"a forced route ends with the state", followForced},
	{"the same route keeps what is known", followSame},
	{"other recipients of the message stay", followOthers},
	{"a user who appears, and who is deleted", followTable},
	{"an import moves his mail", followImport},
	{"a flip under a stream of mail", followStream},
	{"a user with much mail does not block others", followMuch},
	{"copies that wait are busy", followBusyCopies},
}

const user = "a@example.org"

func followWaiting(b *bench) {
	b.start(Config{})
	e := b.put(user)
	b.state(user, router.StateCutover)
	b.none(mail.Old)
	b.true(b.rcpt(e.ID, 0).HeldBy == "user", "recipient is %+v", b.rcpt(e.ID, 0))
	b.state(user, router.StateNew)
	l := b.claim(mail.New)
	b.true(l.Items[0].Epoch == 2, "item is %+v", l.Items[0])
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Release}))
	b.state(user, router.StateRollback)
	b.none(mail.New)
	b.none(mail.Old)
	b.state(user, router.StateOld)
	b.done(b.claim(mail.Old))
}

func followRetry(b *bench) {
	b.start(Config{})
	e := b.put(user)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Retry, At: time.Now().Add(time.Hour)}))
	e2 := b.put(user)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Retry, At: time.Now().Add(time.Minute)}))
	b.state(user, router.StateNew)
	got := map[mail.ID]bool{b.claim(mail.New).Envelope.ID: true}
	got[b.claim(mail.New).Envelope.ID] = true
	b.true(got[e.ID] && got[e2.ID], "claims gave %v", got)
}

func followDisk(b *bench) {
	b.start(Config{Window: 16})
	n := 700
	if slow {
		n = 300
	}
	for range n {
		b.put(user)
	}
	b.state(user, router.StateCutover)
	b.none(mail.Old)
	b.state(user, router.StateReady)
	b.state(user, router.StateCutover)
	b.none(mail.Old)
	b.start(Config{Window: 16})
	b.none(mail.Old)
	b.state(user, router.StateNew)
	b.none(mail.Old)
	seen := map[mail.ID]bool{}
	for range n {
		l := b.claim(mail.New)
		b.true(!seen[l.Envelope.ID], "%s came twice", l.Envelope.ID)
		seen[l.Envelope.ID] = true
		b.done(l)
	}
	b.none(mail.New)
	b.none(mail.Old)
	st, err := b.s.Stats(b.ctx)
	b.ok(err)
	b.true(st.Messages == 0 && st.Bytes == 0 && st.States[queue.Held] == 0, "left: %+v", st)
}

func followLeased(b *bench) {
	b.start(Config{})
	b.put(user)
	l := b.claim(mail.Old)
	busy := b.state(user, router.StateCutover)
	b.true(busy == 0, "busy is %d", busy)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	b.is(b.settle(l, queue.Outcome{Kind: queue.Retry, At: time.Now()}), queue.ErrLost)
	b.none(mail.Old)
	b.state(user, router.StateNew)
	b.true(b.claim(mail.New).Items[0].Crashes == 0, "a lease that was taken back counts as a crash")
}

func followEpoch(b *bench) {
	b.start(Config{})
	b.put(user)
	l := b.claim(mail.Old)
	b.state(user, router.StateOld)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	l = b.claim(mail.Old)
	b.state(user, router.StateSyncing)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	l = b.claim(mail.Old)
	b.true(l.Items[0].Epoch == 2 && l.Items[0].Crashes == 0 && l.Items[0].Attempts == 0, "item is %+v", l.Items[0])
	b.ok(b.s.Renew(b.ctx, l, true))
	b.done(l)
}

func (b *bench) busy(want int) {
	b.Helper()
	n, err := b.s.Busy(b.ctx, user)
	b.ok(err)
	b.true(n == want, "busy is %d, want %d", n, want)
}

func followBusy(b *bench) {
	b.start(Config{})
	e := b.put(user)
	e2 := b.put(user)
	l, l2 := b.claim(mail.Old), b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.ok(b.s.Renew(b.ctx, l2, true))
	b.busy(0)
	n := b.state(user, router.StateCutover)
	b.true(n == 2, "busy is %d", n)
	b.busy(2)
	b.ok(b.s.Renew(b.ctx, l, false)) // the backend is slow
	n = b.state(user, router.StateCutover)
	b.true(n == 2, "busy is %d", n)
	b.done(l)
	b.busy(1)
	b.is(b.settle(l2, queue.Outcome{Kind: queue.Retry, At: time.Now()}), queue.ErrLost)
	b.busy(0)
	first, second := e.ID, e2.ID
	if l.Envelope.ID == second {
		first, second = second, first
	}
	b.gone(first)
	b.none(mail.Old)
	b.state(user, router.StateNew)
	b.true(b.claim(mail.New).Envelope.ID == second, "the other one did not follow")
	b.none(mail.New)
}

func followBusyLost(b *bench) {
	b.start(Config{Lease: shortLease})
	e := b.put(user)
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.state(user, router.StateCutover)
	b.eventually("the lease ends", func() bool { return b.rcpt(e.ID, 0).State == queue.Held })
	b.busy(1) // the dot may still be on its way
	b.done(l)
	b.busy(0)
	b.gone(e.ID)
}

func followFail(b *bench) {
	b.start(Config{})
	e := b.put(user, "b@example.org")
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.state(user, router.StateNew)
	b.is(b.settle(l, queue.Outcome{Kind: queue.Fail, Reply: "550 5.1.1"}, bounce("no such user")), queue.ErrLost)
	b.none(mail.Out)
	got, err := b.s.Get(b.ctx, e.ID)
	b.ok(err)
	b.true(len(got.Rcpts) == 2, "left: %+v", got.Rcpts)
	b.true(b.claim(mail.New).Items[0].N == 0, "it did not follow")
	b.true(b.claim(mail.Old).Items[0].N == 1, "the other one is gone")
}

func followForgets(b *bench) {
	b.start(Config{})
	b.put(user)
	old := time.Now()
	for range 2 {
		b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Retry, At: time.Now()}))
	}
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Reroute, To: mail.New}))
	b.ok(b.settle(b.claim(mail.New), queue.Outcome{Kind: queue.Retry, At: time.Now().Add(time.Hour)}))
	b.state(user, router.StateNew)
	it := b.claim(mail.New).Items[0]
	b.true(it.Attempts == 0 && len(it.Unknown) == 0 && !it.Since.Before(old.Truncate(time.Millisecond)), "item is %+v", it)
}

func followForced(b *bench) {
	b.start(Config{})
	b.state(user, router.StateOld)
	e := b.put(user)
	_, err := b.s.Apply(b.ctx, queue.Filter{}, queue.Action{Verb: queue.DoReroute, Route: mail.New})
	b.ok(err)
	b.true(b.rcpt(e.ID, 0).Forced, "not forced")
	b.ok(b.settle(b.claim(mail.New), queue.Outcome{Kind: queue.Release}))
	b.state(user, router.StateCutover)
	b.none(mail.New)
	b.state(user, router.StateReady)
	b.true(!b.rcpt(e.ID, 0).Forced, "still forced")
	b.done(b.claim(mail.Old))
}

func followSame(b *bench) {
	b.start(Config{})
	b.state(user, router.StateOld)
	b.put(user)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Retry, At: time.Now()}))
	b.state(user, router.StateSyncing)
	b.state(user, router.StateReady)
	it := b.claim(mail.Old).Items[0]
	b.true(it.Attempts == 1 && it.Epoch == 3, "item is %+v", it)
}

func followOthers(b *bench) {
	b.start(Config{})
	b.put(user, "b@example.org")
	l := b.claim(mail.Old)
	b.state(user, router.StateCutover)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	l = b.claim(mail.Old)
	b.true(len(l.Items) == 1 && l.Items[0].N == 1 && l.Items[0].Crashes == 0, "claim gave %+v", l.Items)
}

func followTable(b *bench) {
	b.start(Config{})
	e := envelope(user)
	e.Recipients[0].Hint = mail.New
	b.ok(b.s.Put(b.ctx, e, bodyOf("x")))
	l := b.claim(mail.New)
	b.state(user, router.StateOld)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	b.none(mail.New)
	l = b.claim(mail.Old)
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Release}))
	b.ok(b.s.DeleteUser(b.ctx, user, 1, router.Change{}))
	b.none(mail.Old)
	b.true(b.claim(mail.New).Items[0].Epoch == 0, "an epoch without a user")
}

func followImport(b *bench) {
	b.start(Config{})
	b.put(user)
	_, _, err := b.s.ImportUsers(b.ctx, []router.User{mailbox(user, router.StateNew)}, router.Change{})
	b.ok(err)
	b.none(mail.Old)
	b.done(b.claim(mail.New))
}

// followStream flips a user while mail for him arrives and is delivered: no
// dot goes to the side that he has left once the flip is complete.
func followStream(b *bench) {
	b.start(Config{Window: 32})
	b.state(user, router.StateOld)
	const n = 400
	var mu sync.Mutex
	dots := map[mail.ID][]mail.Route{}
	var wg, putters sync.WaitGroup
	stop := make(chan struct{})
	for _, r := range []mail.Route{mail.Old, mail.New, mail.Old, mail.New} {
		wg.Go(func() { b.deliver(r, stop, &mu, dots) })
	}
	for range 4 {
		putters.Go(func() {
			for range n / 4 {
				b.put(user)
			}
		})
	}
	for range 6 {
		for _, st := range []router.State{router.StateCutover, router.StateNew, router.StateRollback, router.StateOld} {
			b.state(user, st)
			if st.Held() {
				b.eventually("nothing is busy", func() bool { k, _ := b.s.Busy(b.ctx, user); return k == 0 })
				mu.Lock()
				before := fmt.Sprint(len(dots))
				mu.Unlock()
				tick := time.NewTimer(5 * time.Millisecond)
				<-tick.C
				mu.Lock()
				after := fmt.Sprint(len(dots))
				mu.Unlock()
				b.true(before == after, "mail was sent while he was held: %s, then %s", before, after)
			}
		}
	}
	putters.Wait()
	b.eventually("all is delivered", func() bool { mu.Lock(); defer mu.Unlock(); return len(dots) == n })
	close(stop)
	wg.Wait()
	for id, d := range dots {
		b.true(len(d) == 1, "%s was sent to %v", id, d)
	}
}

// deliver is a worker that notes each final dot.
func (b *bench) deliver(r mail.Route, stop chan struct{}, mu *sync.Mutex, dots map[mail.ID][]mail.Route) {
	ctx, cancel := contextUntil(b.ctx, stop)
	defer cancel()
	for {
		l, err := b.s.Claim(ctx, r, 10)
		if err != nil {
			return
		}
		mu.Lock() // so that a dot and its note are one step
		if err := b.s.Renew(ctx, l, true); err != nil {
			mu.Unlock()
			continue
		}
		dots[l.Envelope.ID] = append(dots[l.Envelope.ID], r)
		mu.Unlock()
		if err := b.settle(l, queue.Outcome{Kind: queue.Done}); err != nil {
			b.Errorf("settle: %v", err)
			return
		}
	}
}

func followMuch(b *bench) {
	b.start(Config{Window: 128})
	n, limit := 4000, time.Second
	if slow {
		n, limit = 1000, 10*time.Second
	}
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			for range n / 40 {
				b.put(user)
			}
		})
	}
	wg.Wait()
	b.state(user, router.StateCutover)
	start := time.Now()
	b.state("b@example.org", router.StateOld)
	b.put("b@example.org")
	l := b.claim(mail.Old)
	b.true(l.Items[0].User == "b@example.org", "claim gave %+v", l.Items)
	b.true(time.Since(start) < limit, "others waited %v", time.Since(start))
	b.done(l)
	b.none(mail.Old)
	st, err := b.s.Stats(b.ctx)
	b.ok(err)
	b.true(st.Messages == n, "stats are %+v", st)
	b.eventually("all is shown as held", func() bool {
		st, err := b.s.Stats(b.ctx)
		return err == nil && st.States[queue.Held] == n && st.Routes[mail.Old] == 0
	})
}

// followBusyCopies: a copy that is still to be delivered can meet the backfill
// on the other side, so it counts; one that an operator has to look at does
// not, or nobody could be moved before he did.
func followBusyCopies(b *bench) {
	b.start(Config{})
	b.both(user, router.StateOld)
	e := b.put(user)
	b.busy(0)
	b.done(b.claim(mail.Old))
	b.busy(1)
	l := b.claim(mail.New)
	b.busy(1)
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, At: time.Now().Add(time.Hour)}))
	b.busy(1)
	b.start(Config{})
	b.busy(1)
	f := queue.Filter{IDs: []mail.ID{e.ID}}
	b.apply(f, queue.Action{Verb: queue.DoPark}, 1, 0)
	b.busy(0)
	b.apply(f, queue.Action{Verb: queue.DoRetry}, 1, 0)
	b.busy(1)
	b.state(user, router.StateCutover)
	b.busy(1)
	b.state(user, router.StateReady)
	b.done(b.claim(mail.New))
	b.busy(0)
	b.gone(e.ID)
}
