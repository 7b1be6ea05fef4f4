package storetest

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var restartTests = []test{
	{"everything survives", restartAll},
	{"leases end without a count", restartLeases},
	{"done of a lease from before", restartDone},
	{"after the end every call says so", restartClosed},
}

var ledgerTests = []test{
	{"save, load, remove", ledgerSave},
}

func contextUntil(parent context.Context, stop chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func restartAll(b *bench) {
	b.start(Config{Window: 8})
	sizes := []int{0, 10, 5000, 1<<20 + 7}
	ids := map[mail.ID]int{}
	for i := range 40 {
		e := envelope(fmt.Sprintf("u%d@example.org", i))
		n := sizes[i%len(sizes)]
		b.ok(b.s.Put(b.ctx, e, bytes.NewReader(bytesOf(n))))
		ids[e.ID] = n
	}
	b.state("u1@example.org", router.StateNew)
	b.state("u2@example.org", router.StateCutover)
	b.apply(queue.Filter{User: "u3@example.org"}, queue.Action{Verb: queue.DoHold}, 1, 0)
	b.apply(queue.Filter{User: "u4@example.org"}, queue.Action{Verb: queue.DoPark}, 1, 0)
	b.ok(b.s.SaveLedger(b.ctx, "u1@example.org", "INBOX", []byte("x")))
	for range 3 {
		b.start(Config{Window: 8})
		b.true(len(b.list(queue.Filter{}, 100)) == 40, "%d messages are left", len(b.list(queue.Filter{}, 100)))
		b.true(b.claim(mail.New).Items[0].User == "u1@example.org", "u1 is not on new")
	}
	for range 36 {
		l := b.claim(mail.Old)
		n, ok := ids[l.Envelope.ID]
		b.true(ok, "%s came twice", l.Envelope.ID)
		delete(ids, l.Envelope.ID)
		b.true(bytes.Equal(b.body(l.Envelope.ID), bytesOf(n)), "another body")
		b.done(l)
	}
	b.none(mail.Old)
	h, err := b.s.History(b.ctx, "u1@example.org", 9)
	b.ok(err)
	m, err := b.s.LoadLedger(b.ctx, "u1@example.org")
	b.ok(err)
	b.true(len(h) == 1 && string(m["INBOX"]) == "x", "history %+v, ledger %v", h, m)
}

func restartLeases(b *bench) {
	b.start(Config{})
	for range 3 {
		b.put(user)
	}
	for range 4 {
		for i := range 3 {
			l := b.claim(mail.Old)
			b.true(l.Items[0].Crashes == 0 && l.Items[0].Attempts == 0, "item is %+v", l.Items[0])
			if i == 0 {
				b.ok(b.s.Renew(b.ctx, l, true))
			}
		}
		b.start(Config{})
	}
}

func restartDone(b *bench) {
	b.start(Config{})
	e := b.put(user)
	l := b.claim(mail.Old)
	b.start(Config{})
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrLost)
	b.is(b.settle(l, queue.Outcome{Kind: queue.Fail}), queue.ErrLost)
	b.true(b.rcpt(e.ID, 0).State == queue.Queued, "it is gone")
	b.done(l)
	b.gone(e.ID)
	b.none(mail.Old)
}

func restartClosed(b *bench) {
	b.start(Config{})
	b.put(user)
	l := b.claim(mail.Old)
	ended := make(chan error)
	go func() {
		_, err := b.s.Claim(b.ctx, mail.New, 1)
		ended <- err
	}()
	tick := time.NewTimer(10 * time.Millisecond)
	<-tick.C
	b.ok(b.s.Close())
	b.ok(b.s.Close())
	b.is(<-ended, queue.ErrClosed)
	_, err := b.s.Claim(b.ctx, mail.Old, 1)
	b.is(err, queue.ErrClosed)
	b.is(b.s.Put(b.ctx, envelope(user), bodyOf("x")), queue.ErrClosed)
	b.is(b.s.Renew(b.ctx, l, true), queue.ErrClosed)
	b.is(b.settle(l, queue.Outcome{Kind: queue.Done}), queue.ErrClosed)
	_, err = b.s.Open(b.ctx, l.Envelope.ID)
	b.is(err, queue.ErrClosed)
	_, err = b.s.User(b.ctx, user)
	b.is(err, queue.ErrClosed)
	_, _, err = b.s.SetUser(b.ctx, mailbox(user, router.StateOld), router.Change{})
	b.is(err, queue.ErrClosed)
	_, err = b.s.Get(b.ctx, l.Envelope.ID)
	b.is(err, queue.ErrClosed)
	b.is(b.s.SaveLedger(b.ctx, "u", "n", nil), queue.ErrClosed)
}

func ledgerSave(b *bench) {
	b.start(Config{})
	m, err := b.s.LoadLedger(b.ctx, "nobody")
	b.ok(err)
	b.true(m != nil && len(m) == 0, "ledger is %v", m)
	want := map[string][]byte{"INBOX": bytesOf(10), "Ünï/\x01code": {}, "large": bytesOf(300_000), "INBOX/x": {0, 255}}
	for name, data := range want {
		b.ok(b.s.SaveLedger(b.ctx, "a", name, []byte("before")))
		b.ok(b.s.SaveLedger(b.ctx, "a", name, data))
	}
	b.ok(b.s.SaveLedger(b.ctx, "b", "INBOX", []byte("other")))
	for range 2 {
		got, err := b.s.LoadLedger(b.ctx, "a")
		b.ok(err)
		b.true(len(got) == len(want), "ledger has %d records", len(got))
		for name, data := range want {
			g, ok := got[name]
			b.true(ok && bytes.Equal(g, data), "record %q is %d octets, want %d", name, len(g), len(data))
		}
		b.start(Config{})
	}
	b.ok(b.s.SaveLedger(b.ctx, "a", "INBOX", nil))
	b.ok(b.s.SaveLedger(b.ctx, "a", "INBOX", nil))
	got, err := b.s.LoadLedger(b.ctx, "a")
	b.ok(err)
	_, still := got["INBOX"]
	b.true(!still && len(got) == len(want)-1, "it was not removed")
}
