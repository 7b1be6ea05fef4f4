package storetest

import (
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var doubtTests = []test{
	{"a lease that runs out while it is sent", doubtExpires},
	{"a lease that runs out before is none", doubtUnsent},
	{"an outcome says so, and says when it is over", doubtOutcome},
	{"the end of the store while it is sent", doubtClosed},
	{"kept over restarts, routes, parking and an operator", doubtKept},
	{"not accepted is noted all the same", doubtNotAccepted},
	{"leases of their own", doubtApart},
	{"defer is no attempt and keeps the row of crashes", doubtDefer},
	{"done ends it, also for the copy", doubtCopy},
	{"what is done cannot be in doubt", doubtRefused},
}

// doubtIs fails when a doubt is not about a route and of the last seconds.
func (b *bench) doubtIs(d queue.Doubt, r mail.Route) {
	b.Helper()
	b.true(d.Route == r && time.Since(d.At) < time.Minute && !d.Since.Before(d.At) && time.Since(d.Since) >= -time.Second, "doubt is %+v", d)
}

// outcome gives every item of a lease one outcome, which has to be accepted.
func (b *bench) outcome(l *queue.Lease, o queue.Outcome) {
	b.Helper()
	b.ok(b.settle(l, o))
}

func doubtExpires(b *bench) {
	b.start(Config{Lease: shortLease})
	e := b.put(user)
	l := b.claim(mail.Old)
	b.true(l.Items[0].Doubt.IsZero() && !l.InDoubt(), "new mail is in doubt: %+v", l.Items[0])
	b.ok(b.s.Renew(b.ctx, l, true))
	l2 := b.lose(l)
	b.doubtIs(l2.Items[0].Doubt, mail.Old)
	b.true(l2.InDoubt() && l2.Items[0].Crashes == 1, "lease is %+v", l2)
	b.doubtIs(b.rcpt(e.ID, 0).Doubt, mail.Old)
	b.done(l2)
	b.gone(e.ID)
}

func doubtUnsent(b *bench) {
	b.start(Config{Lease: shortLease})
	b.put(user)
	l := b.lose(b.claim(mail.Old))
	b.true(!l.InDoubt() && l.Items[0].Crashes == 1, "item is %+v", l.Items[0])
	b.outcome(l, queue.Outcome{Kind: queue.Release})
	b.start(Config{})
	b.claim(mail.Old)
	b.start(Config{})
	b.true(!b.claim(mail.Old).InDoubt(), "a claim alone is a doubt")
}

func doubtOutcome(b *bench) {
	b.start(Config{})
	e := b.put(user)
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.outcome(l, queue.Outcome{Kind: queue.Retry, At: time.Now(), Reply: "no reply came", Doubt: true})
	l = b.claim(mail.Old)
	first := l.Items[0].Doubt
	b.doubtIs(first, mail.Old)
	b.true(l.Items[0].Attempts == 1, "item is %+v", l.Items[0])
	b.outcome(l, queue.Outcome{Kind: queue.Release})
	l = b.claim(mail.Old)
	b.true(l.Items[0].Doubt == first, "a release made %+v of %+v", l.Items[0].Doubt, first)
	b.outcome(l, queue.Outcome{Kind: queue.Defer, At: time.Now(), Doubt: true})
	l = b.claim(mail.Old)
	b.true(l.Items[0].Doubt == first, "a look that settled nothing made %+v of %+v", l.Items[0].Doubt, first)
	b.outcome(l, queue.Outcome{Kind: queue.Defer, At: time.Now()})
	l = b.claim(mail.Old)
	b.true(!l.InDoubt() && b.rcpt(e.ID, 0).Doubt.IsZero(), "it is still in doubt: %+v", l.Items[0])
	b.ok(b.s.Renew(b.ctx, l, true))
	b.outcome(l, queue.Outcome{Kind: queue.Retry, At: time.Now()})
	b.true(!b.claim(mail.Old).InDoubt(), "a retry with a reply is a doubt")
}

func doubtClosed(b *bench) {
	b.start(Config{})
	b.put(user)
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.start(Config{})
	l = b.claim(mail.Old)
	b.doubtIs(l.Items[0].Doubt, mail.Old)
	b.true(l.Items[0].Crashes == 0, "item is %+v", l.Items[0])
	b.start(Config{})
	b.doubtIs(b.claim(mail.Old).Items[0].Doubt, mail.Old)
}

func doubtKept(b *bench) {
	b.start(Config{Window: 1})
	b.state(user, router.StateOld)
	e := b.put(user)
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.outcome(l, queue.Outcome{Kind: queue.Retry, At: time.Now().Add(time.Hour), Doubt: true})
	first := b.rcpt(e.ID, 0).Doubt
	b.doubtIs(first, mail.Old)
	for i, change := range []func(){
		func() { b.start(Config{}) },
		func() { b.state(user, router.StateCutover) },
		func() { b.start(Config{}) },
		func() { b.state(user, router.StateNew) },
		func() { b.apply(queue.Filter{User: user}, queue.Action{Verb: queue.DoPark}, 1, 0) },
		func() { b.apply(queue.Filter{User: user}, queue.Action{Verb: queue.DoRetry}, 1, 0) },
		func() { b.apply(queue.Filter{User: user}, queue.Action{Verb: queue.DoHold}, 1, 0) },
		func() { b.apply(queue.Filter{User: user}, queue.Action{Verb: queue.DoRelease}, 1, 0) },
		func() {
			b.apply(queue.Filter{User: user}, queue.Action{Verb: queue.DoReroute, Route: mail.New}, 1, 0)
		},
	} {
		change()
		d := b.rcpt(e.ID, 0).Doubt
		b.true(d == first, "after change %d the doubt is %+v, want %+v", i, d, first)
	}
	l = b.claim(mail.New)
	b.true(l.Items[0].Doubt == first, "the claim says %+v, want %+v", l.Items[0].Doubt, first)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.outcome(l, queue.Outcome{Kind: queue.Retry, At: time.Now(), Doubt: true})
	d := b.claim(mail.New).Items[0].Doubt
	b.true(d.Route == mail.New && d.At.Equal(first.At) && !d.Since.Before(first.Since), "a second doubt made %+v of %+v", d, first)
}

func doubtNotAccepted(b *bench) {
	b.start(Config{})
	b.state(user, router.StateOld)
	b.put(user)
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.true(b.state(user, router.StateNew) == 1, "it does not count as busy")
	b.is(b.settle(l, queue.Outcome{Kind: queue.Retry, At: time.Now().Add(time.Hour), Doubt: true}), queue.ErrLost)
	l = b.claim(mail.New)
	b.doubtIs(l.Items[0].Doubt, mail.Old)
	b.true(l.Items[0].Attempts == 0, "item is %+v", l.Items[0])
}

func doubtApart(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org", "b@example.org", "c@example.org")
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	now := time.Now()
	b.ok(b.s.Settle(b.ctx, l, []queue.Outcome{
		{N: 0, Kind: queue.Retry, At: now, Doubt: true}, {N: 1, Kind: queue.Retry, At: now}, {N: 2, Kind: queue.Retry, At: now, Doubt: true},
	}))
	seen := 0
	for range 2 {
		l := b.claim(mail.Old)
		if l.InDoubt() {
			b.true(len(l.Items) == 2 && l.Items[0].N == 0 && l.Items[1].N == 2, "claim gave %+v", l.Items)
			b.doubtIs(l.Items[1].Doubt, mail.Old)
		} else {
			b.true(len(l.Items) == 1 && l.Items[0].N == 1, "claim gave %+v", l.Items)
		}
		seen += len(l.Items)
		b.done(l)
	}
	b.true(seen == 3, "%d of 3 recipients were claimed", seen)
	b.gone(e.ID)
}

func doubtDefer(b *bench) {
	b.start(Config{Lease: shortLease})
	e := b.put(user)
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	l = b.lose(l)
	b.outcome(l, queue.Outcome{Kind: queue.Defer, At: time.Now().Add(time.Hour), Reply: "looked", Doubt: true})
	b.none(mail.Old)
	r := b.rcpt(e.ID, 0)
	b.true(r.Attempts == 0 && r.Crashes == 1 && r.LastReply == "looked" && time.Until(r.Due) > 55*time.Minute, "recipient is %+v", r)
	b.apply(queue.Filter{}, queue.Action{Verb: queue.DoRetry}, 1, 0)
	b.doubtIs(b.claim(mail.Old).Items[0].Doubt, mail.Old)
}

func doubtCopy(b *bench) {
	b.start(Config{})
	b.both(user, router.StateOld)
	e := b.put(user)
	l := b.claim(mail.Old)
	b.ok(b.s.Renew(b.ctx, l, true))
	b.outcome(l, queue.Outcome{Kind: queue.Retry, At: time.Now(), Doubt: true})
	b.done(b.claim(mail.Old))
	l = b.claim(mail.New)
	b.true(l.Items[0].Copy && !l.InDoubt(), "the copy is %+v", l.Items[0])
	b.ok(b.s.Renew(b.ctx, l, true))
	b.outcome(l, queue.Outcome{Kind: queue.Retry, At: time.Now(), Doubt: true})
	l = b.claim(mail.New)
	b.doubtIs(l.Items[0].Doubt, mail.New)
	b.done(l)
	b.gone(e.ID)
}

func doubtRefused(b *bench) {
	b.start(Config{})
	b.put(user)
	l := b.claim(mail.Old)
	for _, k := range []queue.Kind{queue.Done, queue.Fail, queue.Park, queue.Release} {
		b.true(b.settle(l, queue.Outcome{Kind: k, Doubt: true}) != nil, "%s in doubt was taken", k)
	}
	b.done(l)
}
