package storetest

import (
	"io"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

func bodyOf(s string) io.Reader { return strings.NewReader(s) }

var leaseTests = []test{
	{"runs out and comes back", leaseExpires},
	{"renewed it stays", leaseRenewed},
	{"three in a row park the message", leaseThree},
	{"an outcome starts the count again", leaseCountReset},
	{"states are shown", leaseStates},
}

func leaseExpires(b *bench) {
	b.start(Config{Lease: shortLease})
	b.put("a@example.org")
	l := b.claim(mail.Old)
	start := time.Now()
	l2 := b.lose(l)
	b.true(time.Since(start) < 5*time.Second, "it took %v", time.Since(start))
	b.true(l2.Items[0].Crashes == 1 && l2.Items[0].Attempts == 0 && l2.Token != l.Token, "item is %+v", l2.Items[0])
}

func leaseRenewed(b *bench) {
	b.start(Config{Lease: shortLease})
	b.put("a@example.org")
	l := b.claim(mail.Old)
	tick := time.NewTicker(shortLease / 6)
	defer tick.Stop()
	for i := range 12 {
		<-tick.C
		before := l.Until
		b.ok(b.s.Renew(b.ctx, l, i > 5))
		b.true(l.Until.After(before), "Until did not move")
	}
	b.none(mail.Old)
	b.done(l)
}

func leaseThree(b *bench) {
	b.start(Config{Lease: shortLease})
	e := b.put("a@example.org")
	for i := range queue.MaxCrashes {
		l := b.claim(mail.Old)
		b.true(l.Items[0].Crashes == i, "item is %+v", l.Items[0])
	}
	b.eventually("it is parked", func() bool { return b.rcpt(e.ID, 0).State == queue.Parked })
	b.true(strings.Contains(b.rcpt(e.ID, 0).LastReply, "three deliveries ended in a crash"), "reason is %q", b.rcpt(e.ID, 0).LastReply)
	b.none(mail.Old)
	_, err := b.s.Apply(b.ctx, queue.Filter{State: queue.Parked}, queue.Action{Verb: queue.DoRetry})
	b.ok(err)
	b.true(b.claim(mail.Old).Items[0].Crashes == 0, "the count goes on after an operator's retry")
}

func leaseCountReset(b *bench) {
	b.start(Config{Lease: shortLease})
	b.put("a@example.org")
	b.claim(mail.Old)
	l := b.claim(mail.Old)
	b.true(l.Items[0].Crashes == 1, "item is %+v", l.Items[0])
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, At: time.Now()}))
	l = b.claim(mail.Old)
	b.true(l.Items[0].Crashes == 0 && l.Items[0].Attempts == 1, "item is %+v", l.Items[0])
}

func leaseStates(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	b.true(b.rcpt(e.ID, 0).State == queue.Queued, "not queued")
	l := b.claim(mail.Old)
	b.true(b.rcpt(e.ID, 0).State == queue.Leased, "not leased")
	b.ok(b.s.Renew(b.ctx, l, true))
	b.true(b.rcpt(e.ID, 0).State == queue.Sending, "not sending")
	b.ok(b.s.Renew(b.ctx, l, false))
	b.true(b.rcpt(e.ID, 0).State == queue.Sending, "sending was taken back")
	st, err := b.s.Stats(b.ctx)
	b.ok(err)
	b.true(st.States[queue.Sending] == 1 && st.States[queue.Queued] == 0, "stats are %+v", st)
}
