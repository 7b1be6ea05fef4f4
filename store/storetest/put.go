package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing/iotest"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var putTests = []test{
	{"sizes", putSizes},
	{"same id twice is one message", putTwice},
	{"same id at once is one message", putTwiceAtOnce},
	{"a body that fails leaves nothing", putBodyError},
	{"no recipient is refused", putNoRecipient},
	{"the envelope comes back whole", putEnvelope},
	{"many at once", putMany},
	{"a held user's mail starts held", putHeld},
	{"users in no table go by hint", putHints},
	{"the caller may change his envelope", putClone},
}

func putSizes(b *bench) {
	b.start(Config{})
	for _, n := range []int{0, 1, 64 << 10, 1<<20 - 1, 1 << 20, 1<<20 + 1, 20 << 20} {
		data := bytesOf(n)
		for name, r := range map[string]io.Reader{"plain": bytes.NewReader(data), "data with EOF": iotest.DataErrReader(bytes.NewReader(data))} {
			e := envelope("a@example.org")
			b.ok(b.s.Put(b.ctx, e, r))
			b.true(e.Size == int64(n), "%d octets, %s: Size is %d", n, name, e.Size)
			b.true(bytes.Equal(b.body(e.ID), data), "%d octets, %s: another body came back", n, name)
			l := b.claim(mail.Old)
			b.true(l.Envelope.ID == e.ID && l.Envelope.Size == int64(n), "claim gave %+v", l.Envelope)
			b.done(l)
			b.gone(e.ID)
			_, err := b.s.Open(b.ctx, e.ID)
			b.is(err, queue.ErrNotFound)
		}
	}
}

func putTwice(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	again := *e
	b.ok(b.s.Put(b.ctx, &again, strings.NewReader("another body")))
	l := b.claim(mail.Old)
	b.none(mail.Old)
	b.true(strings.Contains(string(b.body(e.ID)), string(e.ID)), "the second body replaced the first")
	again = *e
	b.ok(b.s.Put(b.ctx, &again, strings.NewReader("while it is leased")))
	b.none(mail.Old)
	b.done(l)
	b.none(mail.Old)
	b.gone(e.ID)
}

func putTwiceAtOnce(b *bench) {
	b.start(Config{})
	e := envelope("a@example.org")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine := *e
			body := bytesOf(1000)
			if i%2 == 0 {
				body = bytesOf(1<<20 + 100)
			}
			if err := b.s.Put(b.ctx, &mine, bytes.NewReader(body)); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.done(b.claim(mail.Old))
	b.none(mail.Old)
	st, err := b.s.Stats(b.ctx)
	b.ok(err)
	b.true(st.Messages == 0 && st.Bytes == 0, "what is left: %+v", st)
}

func putBodyError(b *bench) {
	b.start(Config{})
	for _, boom := range []error{
		errors.New("the peer is gone"),
		fmt.Errorf("read from the peer: %w", io.EOF), // not the end of the body: that is io.EOF itself
	} {
		for _, n := range []int{0, 100, 1<<20 + 5} {
			e := envelope("a@example.org")
			err := b.s.Put(b.ctx, e, io.MultiReader(bytes.NewReader(bytesOf(n)), iotest.ErrReader(boom)))
			b.is(err, boom)
			b.gone(e.ID)
		}
	}
	b.none(mail.Old)
	st, err := b.s.Stats(b.ctx)
	b.ok(err)
	b.true(st.Messages == 0 && st.Bytes == 0, "what is left: %+v", st)
}

func putNoRecipient(b *bench) {
	b.start(Config{})
	b.true(b.s.Put(b.ctx, envelope(), strings.NewReader("x")) != nil, "a message without recipients was taken")
}

func putEnvelope(b *bench) {
	b.start(Config{})
	e := envelope("a@example.org", "Upper.Case@example.org")
	e.From = mail.Address{}
	e.Body, e.UTF8, e.Ret, e.EnvID, e.MessageID = mail.Body8BitMIME, true, mail.RetHdrs, "env id", "<1@example.com>"
	e.Client = mail.Client{Addr: netip.MustParseAddrPort("192.0.2.1:25"), Helo: "there", ESMTP: true, TLS: "TLS 1.3"}
	e.Trace, e.RequireTLS, e.TLSOptional = "Authentication-Results: mx.example.net; none\r\n", true, true
	e.Passage = mail.Passage{From: mail.Old, Hops: 7, Ours: 2, IDs: []string{"one", "two"}, For: []string{"a@example.org"}}
	e.Recipients[1].Orig = address("alias@example.org")
	e.Recipients[1].ORcpt, e.Recipients[1].Notify, e.Recipients[1].Hint = "rfc822;x@example.org", mail.NotifySuccess, mail.New
	b.ok(b.s.Put(b.ctx, e, strings.NewReader("x")))
	check := func(got *mail.Envelope) {
		b.Helper()
		g, w := *got, *e
		b.true(g.Received.Sub(w.Received).Abs() < time.Millisecond, "received %v, want %v", g.Received, w.Received)
		g.Received, w.Received = time.Time{}, time.Time{}
		b.true(fmt.Sprintf("%+v", g) == fmt.Sprintf("%+v", w), "envelope\n%+v, want\n%+v", g, w)
	}
	got, err := b.s.Get(b.ctx, e.ID)
	b.ok(err)
	check(got.Envelope)
	b.start(Config{})
	check(b.claim(mail.Old).Envelope)
}

func putMany(b *bench) {
	b.start(Config{Window: 64})
	const sessions, each = 20, 40
	var wg sync.WaitGroup
	for i := range sessions {
		wg.Go(func() {
			for range each {
				e := envelope(fmt.Sprintf("u%d@example.org", i))
				if err := b.s.Put(b.ctx, e, bytes.NewReader(bytesOf(500))); err != nil {
					b.Error(err)
				}
			}
		})
	}
	seen := map[mail.ID]bool{}
	for range sessions * each {
		l := b.claim(mail.Old)
		b.true(!seen[l.Envelope.ID], "%s was claimed twice", l.Envelope.ID)
		seen[l.Envelope.ID] = true
		b.done(l)
	}
	wg.Wait()
	b.none(mail.Old)
}

func putHeld(b *bench) {
	b.start(Config{})
	b.state("held@example.org", router.StateCutover)
	e := b.put("held@example.org", "free@example.org")
	l := b.claim(mail.Old)
	b.true(len(l.Items) == 1 && l.Items[0].User == "free@example.org", "claim gave %+v", l.Items)
	r := b.rcpt(e.ID, 0)
	b.true(r.State == queue.Held && r.HeldBy == "user" && r.Route == "", "recipient is %+v", r)
	b.none(mail.New)
	b.state("held@example.org", router.StateNew)
	l2 := b.claim(mail.New)
	b.true(l2.Envelope.ID == e.ID && l2.Items[0].N == 0, "claim gave %+v", l2.Items)
}

func putHints(b *bench) {
	b.start(Config{})
	for _, tt := range []struct {
		rcpt mail.Recipient
		want mail.Route
	}{
		{mail.Recipient{Addr: address("x@example.com")}, mail.Out},
		{mail.Recipient{Addr: address("x@example.com"), Hint: mail.New}, mail.New},
		{mail.Recipient{Addr: address("x@example.org"), User: "x@example.org"}, mail.Old},
		{mail.Recipient{Addr: address("x@example.org"), User: "x@example.org", Hint: mail.New}, mail.New},
		{mail.Recipient{Addr: address("x@example.org"), User: "x@example.org", Hint: mail.Old}, mail.Old},
	} {
		e := envelope()
		e.Recipients = []mail.Recipient{tt.rcpt}
		b.ok(b.s.Put(b.ctx, e, strings.NewReader("x")))
		b.true(b.rcpt(e.ID, 0).Route == tt.want, "%+v is shown for %s", tt.rcpt, b.rcpt(e.ID, 0).Route)
		l := b.claim(tt.want)
		b.true(l.Envelope.ID == e.ID && l.Items[0].Epoch == 0, "%+v gave %+v", tt.rcpt, l)
		b.done(l)
	}
}

func putClone(b *bench) {
	b.start(Config{})
	e := b.put("a@example.org")
	e.Recipients[0].Addr = address("evil@example.com")
	e.From = address("evil@example.com")
	l := b.claim(mail.Old)
	b.true(l.Envelope.Recipients[0].Addr == address("a@example.org"), "the store kept the caller's envelope")
}
