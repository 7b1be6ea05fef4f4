package storetest

import (
	"context"
	"fmt"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var inspectTests = []test{
	{"list in pages", inspectPages},
	{"filters", inspectFilters},
	{"get what is not there", inspectNone},
	{"retry, hold, release, park", inspectVerbs},
	{"an operator's hold and a user's", inspectHolds},
	{"reroute", inspectReroute},
	{"delete", inspectDelete},
	{"what is leased is taken back", inspectLeased},
	{"apply to many", inspectMany},
	{"stats", inspectStats},
	{"room", inspectRoom},
}

func (b *bench) list(f queue.Filter, limit int) (ids []mail.ID) {
	b.Helper()
	for cursor := ""; ; {
		page, next, err := b.s.List(b.ctx, f, cursor, limit)
		b.ok(err)
		b.true(len(page) <= limit, "a page of %d", len(page))
		for _, e := range page {
			b.true(len(ids) == 0 || ids[len(ids)-1] < e.Envelope.ID, "not in the order of ids")
			ids = append(ids, e.Envelope.ID)
		}
		if cursor = next; next == "" {
			return ids
		}
	}
}

func (b *bench) apply(f queue.Filter, a queue.Action, changed, busy int) {
	b.Helper()
	got, err := b.s.Apply(b.ctx, f, a)
	b.ok(err)
	b.true(got == queue.Applied{Changed: changed, Busy: busy}, "%s gave %+v, want %d changed, %d busy", a.Verb, got, changed, busy)
}

func inspectPages(b *bench) {
	b.start(Config{Window: 4})
	for range 23 {
		b.put("a@example.org", "b@example.org")
	}
	for _, limit := range []int{1, 4, 22, 23, 24, 100} {
		b.true(len(b.list(queue.Filter{}, limit)) == 23, "limit %d gave %d", limit, len(b.list(queue.Filter{}, limit)))
	}
}

func inspectFilters(b *bench) {
	b.start(Config{})
	b.state("new@example.org", router.StateNew)
	b.state("held@example.org", router.StateCutover)
	plain, isNew, held := b.put("plain@example.org"), b.put("new@example.org"), b.put("held@example.org", "plain@example.org")
	null := envelope("null_x@example.org")
	null.From = mail.Address{}
	null.Received = time.Now().Add(-time.Hour)
	b.ok(b.s.Put(b.ctx, null, bodyOf("x")))
	parked := b.put("parked@example.org")
	b.apply(queue.Filter{IDs: []mail.ID{parked.ID}}, queue.Action{Verb: queue.DoPark, Reason: "100% wrong"}, 1, 0)
	for name, tt := range map[string]struct {
		f    queue.Filter
		want []*mail.Envelope
	}{
		"ids":       {queue.Filter{IDs: []mail.ID{held.ID, plain.ID, "nothing"}}, []*mail.Envelope{plain, held}},
		"parked":    {queue.Filter{State: queue.Parked}, []*mail.Envelope{parked}},
		"held":      {queue.Filter{State: queue.Held}, []*mail.Envelope{held}},
		"queued":    {queue.Filter{State: queue.Queued}, []*mail.Envelope{plain, isNew, held, null}},
		"route":     {queue.Filter{Route: mail.New}, []*mail.Envelope{isNew}},
		"user":      {queue.Filter{User: "plain@example.org"}, []*mail.Envelope{plain, held}},
		"rcpt":      {queue.Filter{Rcpt: "L_X@"}, []*mail.Envelope{null}},
		"rcpt none": {queue.Filter{Rcpt: "l%@"}, nil},
		"from":      {queue.Filter{From: "sender@"}, []*mail.Envelope{plain, isNew, held, parked}},
		"from null": {queue.Filter{From: "<>"}, []*mail.Envelope{null}},
		"before":    {queue.Filter{Before: time.Now().Add(-time.Minute)}, []*mail.Envelope{null}},
		"reason":    {queue.Filter{Reason: "100%"}, []*mail.Envelope{parked}},
		"both":      {queue.Filter{User: "plain@example.org", State: queue.Held}, nil},
	} {
		want := map[mail.ID]bool{}
		for _, e := range tt.want {
			want[e.ID] = true
		}
		got := b.list(tt.f, 2)
		for _, id := range got {
			b.true(want[id], "%s: %s is too much", name, id)
		}
		b.true(len(got) == len(want), "%s gave %d messages, want %d", name, len(got), len(want))
	}
	e, _, err := b.s.List(b.ctx, queue.Filter{State: queue.Held}, "", 10)
	b.ok(err)
	b.true(len(e[0].Rcpts) == 2, "a message comes with all its recipients: %+v", e[0].Rcpts)
}

func inspectNone(b *bench) {
	b.start(Config{})
	b.gone(mail.NewID())
	b.gone("no id")
	_, err := b.s.Open(b.ctx, mail.NewID())
	b.is(err, queue.ErrNotFound)
	for _, a := range []queue.Action{{}, {Verb: "eat"}, {Verb: queue.DoReroute}, {Verb: queue.DoReroute, Route: "moon"}} {
		_, err := b.s.Apply(b.ctx, queue.Filter{}, a)
		b.true(err != nil, "%+v was done", a)
	}
}

func inspectVerbs(b *bench) {
	b.start(Config{})
	e := b.put(user)
	f := queue.Filter{IDs: []mail.ID{e.ID}}
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Retry, At: time.Now().Add(time.Hour)}))
	b.none(mail.Old)
	b.apply(f, queue.Action{Verb: queue.DoRetry}, 1, 0)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Release}))
	b.apply(f, queue.Action{Verb: queue.DoHold}, 1, 0)
	b.none(mail.Old)
	b.true(b.rcpt(e.ID, 0).HeldBy == "operator", "recipient is %+v", b.rcpt(e.ID, 0))
	b.apply(f, queue.Action{Verb: queue.DoHold}, 0, 0)
	b.start(Config{})
	b.none(mail.Old)
	b.apply(f, queue.Action{Verb: queue.DoRelease}, 1, 0)
	b.ok(b.settle(b.claim(mail.Old), queue.Outcome{Kind: queue.Release}))
	b.apply(f, queue.Action{Verb: queue.DoPark, Reason: "why not"}, 1, 0)
	b.none(mail.Old)
	b.true(b.rcpt(e.ID, 0).LastReply == "why not", "recipient is %+v", b.rcpt(e.ID, 0))
	b.apply(f, queue.Action{Verb: queue.DoRelease}, 0, 0)
	b.apply(f, queue.Action{Verb: queue.DoRetry}, 1, 0)
	b.done(b.claim(mail.Old))
}

func inspectHolds(b *bench) {
	b.start(Config{})
	e := b.put(user)
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoHold}, 1, 0)
	b.state(user, router.StateCutover)
	b.true(b.rcpt(e.ID, 0).HeldBy == "operator", "recipient is %+v", b.rcpt(e.ID, 0))
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoRelease}, 1, 0)
	b.true(b.rcpt(e.ID, 0).HeldBy == "user", "recipient is %+v", b.rcpt(e.ID, 0))
	b.none(mail.Old)
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoRetry}, 0, 0)
	b.none(mail.Old)
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoHold}, 1, 0)
	b.state(user, router.StateNew)
	b.none(mail.New)
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoRelease}, 1, 0)
	b.done(b.claim(mail.New))
}

func inspectReroute(b *bench) {
	b.start(Config{})
	b.state(user, router.StateOld)
	e := b.put(user, "b@example.org")
	b.apply(queue.Filter{User: user}, queue.Action{Verb: queue.DoReroute, Route: mail.New}, 1, 0)
	l := b.claim(mail.New)
	b.true(len(l.Items) == 1 && l.Items[0].N == 0, "claim gave %+v", l.Items)
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, At: time.Now()}))
	b.true(b.claim(mail.New).Items[0].Attempts == 1, "the route did not last")
	b.true(b.claim(mail.Old).Items[0].N == 1, "the other one moved too")
	_ = e
}

func inspectDelete(b *bench) {
	b.start(Config{})
	e, e2 := b.put("a@example.org", "b@example.org"), b.put("c@example.org")
	b.apply(queue.Filter{User: "a@example.org"}, queue.Action{Verb: queue.DoDelete}, 1, 0)
	l := b.claim(mail.Old)
	b.true(len(l.Items) == 1 && l.Items[0].N == 1, "claim gave %+v", l.Items)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoDelete}, 1, 1)
	b.gone(e2.ID)
	b.done(l)
	b.gone(e.ID)
	st, err := b.s.Stats(b.ctx)
	b.ok(err)
	b.true(st.Messages == 0 && st.Bytes == 0, "left: %+v", st)
}

func inspectLeased(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org", "b@example.org")
	l := b.claim(mail.Old)
	b.apply(queue.Filter{User: "a@example.org"}, queue.Action{Verb: queue.DoHold}, 1, 0)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	l = b.claim(mail.Old)
	b.true(len(l.Items) == 1 && l.Items[0].N == 1 && l.Items[0].Crashes == 0, "claim gave %+v", l.Items)
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoDelete}, 2, 0)
	b.gone(e.ID)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	b.done(l)
}

func inspectMany(b *bench) {
	b.start(Config{Window: 16})
	for i := range 300 {
		b.put(fmt.Sprintf("u%d@example.org", i%3))
	}
	b.apply(queue.Filter{User: "u1@example.org"}, queue.Action{Verb: queue.DoHold}, 100, 0)
	b.apply(queue.Filter{State: queue.Held}, queue.Action{Verb: queue.DoDelete}, 100, 0)
	for range 200 {
		l := b.claim(mail.Old)
		b.true(l.Items[0].User != "u1@example.org", "claim gave %+v", l.Items)
		b.done(l)
	}
	b.none(mail.Old)
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	_, err := b.s.Apply(ctx, queue.Filter{}, queue.Action{Verb: queue.DoRetry})
	b.is(err, context.Canceled)
}

func inspectStats(b *bench) {
	b.start(Config{})
	b.state("new@example.org", router.StateNew)
	b.state("held@example.org", router.StateCutover)
	at := time.Now()
	e := b.put("a@example.org", "new@example.org", "held@example.org")
	b.put("b@example.org")
	b.claim(mail.New)
	check := func() {
		b.Helper()
		st, err := b.s.Stats(b.ctx)
		b.ok(err)
		b.true(st.Messages == 2 && st.Bytes == 2*e.Size && st.States[queue.Held] == 1 && st.Routes[mail.Old] == 2, "stats are %+v", st)
		b.true(st.Oldest.Sub(at).Abs() < time.Second && st.Free != 0, "stats are %+v", st)
	}
	check()
	st, err := b.s.Stats(b.ctx)
	b.ok(err)
	b.true(st.States[queue.Leased] == 1 && st.States[queue.Queued] == 2 && st.Routes[mail.New] == 0, "stats are %+v", st)
	b.start(Config{})
	check()
}

func inspectRoom(b *bench) {
	b.start(Config{})
	b.ok(b.s.Room(0))
	b.ok(b.s.Room(1 << 20))
	b.is(b.s.Room(1<<60), queue.ErrFull)
}
