package storetest

import (
	"slices"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var settleTests = []test{
	{"retry", settleRetry},
	{"fail with its bounce", settleFail},
	{"park", settlePark},
	{"reroute", settleReroute},
	{"release", settleRelease},
	{"each recipient its own", settleMixed},
	{"repeated", settleRepeated},
	{"done after the lease is lost", settleLateDone},
	{"done while it is sent a second time", settleDoneTwice},
	{"a failure and a recipient that is done already", settleFailBesideDone},
	{"anything else after the lease is lost", settleLateRest},
	{"deliver both: the other side gets a copy", settleCopy},
	{"deliver both: late and repeated done makes one copy", settleCopyOnce},
	{"deliver both: a failed copy is gone", settleCopyFails},
	{"deliver both: copies wait while the user is held", settleCopyHeld},
	{"the same new message twice is one", settleSameNew},
}

func settleRetry(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	for i := range 3 {
		l := b.claim(mail.Old)
		it := l.Items[0]
		b.true(it.Attempts == i && it.Crashes == 0, "item is %+v before attempt %d", it, i+1)
		b.true(i == 0 || it.LastReply == "451 later" && it.Noticed, "item is %+v", it)
		b.true(time.Since(it.Since) < time.Minute && time.Since(it.Since) >= 0, "since is %v", it.Since)
		b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, Reply: "451 later", Noticed: true, At: time.Now()}))
	}
	l := b.claim(mail.Old)
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, Reply: "451 much later", At: time.Now().Add(time.Hour)}))
	b.none(mail.Old)
	r := b.rcpt(e.ID, 0)
	b.true(r.State == queue.Queued && r.Attempts == 4 && r.LastReply == "451 much later", "recipient is %+v", r)
	b.true(time.Until(r.Due) > 55*time.Minute && time.Until(r.Due) <= time.Hour, "due is %v", r.Due)
	b.start(Config{})
	b.none(mail.Old)
}

func settleFail(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	m := bounce("it failed")
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Fail, Reply: "550 no"}, m))
	b.gone(e.ID)
	l := b.claim(mail.Out)
	b.true(l.Envelope.ID == m.Envelope.ID && l.Envelope.From.IsNull(), "claim gave %+v", l.Envelope)
	b.true(string(b.body(m.Envelope.ID)) == "it failed", "another body")
	b.done(l)
}

func settlePark(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Park, Reply: "both sides refuse"}))
	b.none(mail.Old)
	r := b.rcpt(e.ID, 0)
	b.true(r.State == queue.Parked && r.LastReply == "both sides refuse", "recipient is %+v", r)
	b.start(Config{})
	b.none(mail.Old)
	b.true(b.rcpt(e.ID, 0).State == queue.Parked, "it is not parked after a restart")
}

func settleReroute(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	l := b.claim(mail.Old)
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Reroute, To: mail.New, Reply: "550 5.1.1 unknown"}))
	b.none(mail.Old)
	r := b.rcpt(e.ID, 0)
	b.true(r.Forced && r.Route == mail.New, "recipient is %+v", r)
	b.start(Config{})
	l = b.claim(mail.New)
	it := l.Items[0]
	b.true(slices.Equal(it.Unknown, []mail.Route{mail.Old}) && it.Attempts == 0, "item is %+v", it)
	b.done(l)
	b.gone(e.ID)
}

func settleRelease(b *bench) {
	b.start(Config{})
	b.put("a@example.org", "b@example.org")
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Retry, Reply: "451 first", At: time.Now()}))
	l := b.claim(mail.Old)
	b.ok(b.s.Settle(b.ctx, l, []queue.Outcome{{N: 0, Kind: queue.Release}})) // 1 has no outcome
	l = b.claim(mail.Old)
	b.true(len(l.Items) == 2, "claim gave %+v", l.Items)
	for _, it := range l.Items {
		b.true(it.Attempts == 1 && it.LastReply == "451 first", "item is %+v", it)
	}
}

func settleMixed(b *bench) {
	b.start(Config{})
	e := b.put("done@example.org", "retry@example.org", "fail@example.org", "park@example.org", "none@example.org")
	m := bounce("x")
	b.ok(b.s.Settle(b.ctx, b.claim(mail.Old), []queue.Outcome{
		{N: 0, Kind: queue.Done}, {N: 1, Kind: queue.Retry, At: time.Now().Add(time.Hour)}, {N: 2, Kind: queue.Fail}, {N: 3, Kind: queue.Park},
	}, m))
	got, err := b.s.Get(b.ctx, e.ID)
	b.ok(err)
	b.true(len(got.Rcpts) == 3 && got.Rcpts[0].N == 1 && got.Rcpts[1].State == queue.Parked && got.Rcpts[2].N == 4, "left: %+v", got.Rcpts)
	l := b.claim(mail.Old)
	b.true(len(l.Items) == 1 && l.Items[0].N == 4 && l.Items[0].Attempts == 0, "claim gave %+v", l.Items)
	b.true(b.claim(mail.Out).Envelope.ID == m.Envelope.ID, "no bounce")
	b.true(b.s.Settle(b.ctx, l, []queue.Outcome{{N: 1, Kind: queue.Done}}) != nil, "an outcome for what is not in the lease was taken")
}

func settleRepeated(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	l := b.claim(mail.Old)
	at := time.Now().Add(time.Hour)
	for range 3 {
		b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, At: at}))
	}
	b.true(b.rcpt(e.ID, 0).Attempts == 1, "a repeated retry counted")
	_, err := b.s.Apply(b.ctx, queue.Filter{}, queue.Action{Verb: queue.DoRetry})
	b.ok(err)
	l = b.claim(mail.Old)
	m := bounce("x")
	for range 3 {
		b.ok(b.settle(l, queue.Outcome{Kind: queue.Fail}, m))
	}
	b.claim(mail.Out)
	b.none(mail.Out)
	b.put("a@example.org")
	l = b.claim(mail.Old)
	for range 3 {
		b.done(l)
	}
}

// lose lets a lease run out and gives the message to somebody else.
func (b *bench) lose(l *queue.Lease) *queue.Lease {
	b.Helper()
	again := b.claim(l.Route)
	b.true(again.Envelope.ID == l.Envelope.ID, "another message came")
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	return again
}

func settleLateDone(b *bench) {
	b.start(Config{Lease: shortLease})
	e := b.put("a@example.org")
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.eventually("the lease ends", func() bool { return b.rcpt(e.ID, 0).State == queue.Queued })
	b.done(l)
	b.gone(e.ID)
	b.none(mail.Old)
	b.done(l)
}

func settleDoneTwice(b *bench) {
	b.start(Config{Lease: 3 * shortLease})
	e := b.put("a@example.org", "b@example.org")
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	l2 := b.lose(l)
	b.ok(b.s.Renew(b.ctx, l2, true))
	b.ok(b.s.Settle(b.ctx, l, []queue.Outcome{{N: 0, Kind: queue.Done}, {N: 1, Kind: queue.Done}}))
	b.gone(e.ID)
	b.done(l2)
	b.none(mail.Old)

	e = b.put("a@example.org")
	l = b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	l2 = b.lose(l)
	b.done(l)
	b.gone(e.ID)
	b.is(b.s.Renew(b.ctx, l2, true), queue.ErrLost) // no second dot
	b.is(b.settle(l2, queue.Outcome{Kind: queue.Retry, At: time.Now()}), queue.ErrLost)
	b.gone(e.ID)
}

// settleFailBesideDone: one recipient of a lease was recorded as done by the
// lease before. What is decided about the other one is recorded together with
// its bounce, or neither is (I2).
func settleFailBesideDone(b *bench) {
	b.start(Config{Lease: 3 * shortLease})
	e := b.put("a@example.org", "b@example.org")
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	l2 := b.lose(l)
	b.ok(b.s.Renew(b.ctx, l2, true))
	b.is(b.s.Settle(b.ctx, l, []queue.Outcome{{N: 1, Kind: queue.Done}}), queue.ErrLost)
	m := bounce("it failed")
	err := b.s.Settle(b.ctx, l2, []queue.Outcome{{N: 0, Kind: queue.Fail}, {N: 1, Kind: queue.Retry, At: time.Now()}}, m)
	_, gone := b.s.Get(b.ctx, e.ID)
	_, none := b.s.Get(b.ctx, m.Envelope.ID)
	b.true((gone == nil) == (none != nil), "settle gave %v; the message: %v; its bounce: %v", err, gone, none)
	if gone == nil {
		b.is(err, queue.ErrLost)
		b.done(b.claim(mail.Old))
		b.gone(e.ID)
	}
}

func settleLateRest(b *bench) {
	b.start(Config{Lease: shortLease})
	e := b.put("a@example.org")
	for _, k := range []queue.Kind{queue.Retry, queue.Fail, queue.Park, queue.Reroute} {
		l := b.claim(mail.Old)
		b.eventually("the lease ends", func() bool { return b.rcpt(e.ID, 0).State == queue.Queued })
		b.is(b.settle(l, queue.Outcome{Kind: k, To: mail.New, At: time.Now().Add(time.Hour)}, bounce("never")), queue.ErrLost)
		r := b.rcpt(e.ID, 0)
		b.true(r.State == queue.Queued && r.Route == mail.Old && r.Attempts == 0, "after a late %s it is %+v", k, r)
		b.none(mail.Out)
		l = b.claim(mail.Old)
		b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, At: time.Now()})) // the crashes start again
		_, err := b.s.Apply(b.ctx, queue.Filter{}, queue.Action{Verb: queue.DoReroute, Route: mail.Old})
		b.ok(err)
	}
}

// both makes a user who gets a copy on the side that he does not read.
func (b *bench) both(key string, st router.State) {
	b.Helper()
	_, _, err := b.s.SetUser(b.ctx, router.User{Address: key, Kind: router.KindMailbox, State: st, Deliver: router.DeliverBoth}, router.Change{By: "test"})
	b.ok(err)
}

func settleCopy(b *bench) {
	b.start(Config{})
	b.both("a@example.org", router.StateOld)
	e := b.put("a@example.org", "b@example.org")
	l := b.claim(mail.Old)
	b.true(l.Items[0].CopyTo == mail.New && l.Items[1].CopyTo == "" && !l.Items[0].Copy, "items are %+v", l.Items)
	b.none(mail.New)
	b.done(l)
	r := b.rcpt(e.ID, 0)
	b.true(r.Copy && r.Route == mail.New && !r.Forced, "recipient is %+v", r)
	b.start(Config{})
	l = b.claim(mail.New)
	b.true(len(l.Items) == 1 && l.Items[0].Copy && l.Items[0].CopyTo == "" && l.Items[0].Attempts == 0, "items are %+v", l.Items)
	b.state("a@example.org", router.StateNew) // he now reads the copy's side
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	l = b.claim(mail.New)
	b.true(l.Items[0].Copy, "items are %+v", l.Items)
	b.done(l)
	b.gone(e.ID)
	b.none(mail.Old)
}

func settleCopyOnce(b *bench) {
	b.start(Config{Lease: shortLease})
	b.both("a@example.org", router.StateOld)
	e := b.put("a@example.org")
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.eventually("the lease ends", func() bool { return b.rcpt(e.ID, 0).State == queue.Queued })
	b.done(l)
	b.done(l) // must not take the copy away
	l2 := b.claim(mail.New)
	b.true(l2.Items[0].Copy, "items are %+v", l2.Items)
	b.done(l)
	b.ok(b.s.Renew(b.ctx, l2, true))
	b.done(l2)
	b.gone(e.ID)
	b.none(mail.Old)
}

func settleCopyFails(b *bench) {
	b.start(Config{})
	b.both("a@example.org", router.StateNew)
	e := b.put("a@example.org")
	b.done(b.claim(mail.New))
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Fail, Reply: "550 full"}))
	b.gone(e.ID)
}

func settleCopyHeld(b *bench) {
	b.start(Config{})
	b.both("a@example.org", router.StateOld)
	e := b.put("a@example.org")
	b.done(b.claim(mail.Old))
	b.state("a@example.org", router.StateCutover)
	b.none(mail.New)
	b.true(b.rcpt(e.ID, 0).State == queue.Held, "recipient is %+v", b.rcpt(e.ID, 0))
	b.start(Config{})
	b.none(mail.New)
	b.state("a@example.org", router.StateReady)
	l := b.claim(mail.New)
	b.true(l.Items[0].Copy, "items are %+v", l.Items)
	b.done(l)
	b.gone(e.ID)
}

func settleSameNew(b *bench) {
	b.start(Config{})
	m := bounce("x")
	b.ok(b.s.Put(b.ctx, m.Envelope, bodyOf("x")))
	b.put("a@example.org")
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Fail}, m))
	b.done(b.claim(mail.Out))
	b.none(mail.Out)
}
