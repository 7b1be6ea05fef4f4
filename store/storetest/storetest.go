// Package storetest is the one conformance suite that every store passes. It
// proves what the doc comments of queue.Store, router.Table and
// backfill.Ledger promise, and holds the [Checker] that counts lost,
// unexpected and duplicate mail after faults.
//
// Start reading at [Run].
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// Store is all that a store implements.
type Store interface {
	queue.Store
	router.Table
	backfill.Ledger
	journal.Outbox
	Close() error
}

// Config is how a test wants its store. Zero fields leave the store's default.
type Config struct {
	Lease  time.Duration // how long a lease lasts
	Window int           // messages per route in memory, where a store has such a window
}

// Factory opens a store. Each call gives a new one on the same data; the one
// before was closed.
type Factory func(t testing.TB, c Config) Store

// Run runs the suite. fresh gives a Factory with no data yet.
func Run(t *testing.T, fresh func(t *testing.T) Factory) {
	for _, part := range []struct {
		name  string
		tests []test
	}{
		{"put", putTests}, {"claim", claimTests}, {"settle", settleTests}, {"lease", leaseTests}, {"doubt", doubtTests},
		{"user", userTests}, {"follow", followTests}, {"inspect", inspectTests}, {"restart", restartTests},
		{"ledger", ledgerTests}, {"outbox", outboxTests},
	} {
		t.Run(part.name, func(t *testing.T) {
			for _, tt := range part.tests {
				t.Run(tt.name, func(t *testing.T) { tt.f(newBench(t, fresh(t))) })
			}
		})
	}
}

type test struct {
	name string
	f    func(b *bench)
}

// bench is a store under test with short words for what tests do.
type bench struct {
	*testing.T
	ctx  context.Context
	open Factory
	s    Store
}

func newBench(t *testing.T, f Factory) *bench {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return &bench{T: t, ctx: ctx, open: f}
}

// start opens the store, after closing the one before.
func (b *bench) start(c Config) *bench {
	b.Helper()
	if b.s != nil {
		b.ok(b.s.Close())
	} else {
		b.Cleanup(func() { b.s.Close() })
	}
	b.s = b.open(b.T, c)
	return b
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) is(err, want error) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Fatalf("error %v, want %v", err, want)
	}
}

func (b *bench) true(ok bool, format string, args ...any) {
	b.Helper()
	if !ok {
		b.Fatalf(format, args...)
	}
}

// address reads an address that is known to be good.
func address(a string) mail.Address {
	x, err := mail.ParseAddress(a)
	if err != nil {
		panic(err)
	}
	return x
}

// envelope makes one for users of ours.
func envelope(rcpts ...string) *mail.Envelope {
	e := &mail.Envelope{ID: mail.NewID(), From: address("sender@example.com"), Received: time.Now()}
	for _, r := range rcpts {
		a := address(r)
		e.Recipients = append(e.Recipients, mail.Recipient{Addr: a, User: a.Key()})
	}
	return e
}

// put queues a message and gives its envelope.
func (b *bench) put(rcpts ...string) *mail.Envelope {
	b.Helper()
	e := envelope(rcpts...)
	b.ok(b.s.Put(b.ctx, e, strings.NewReader("Subject: x\r\n\r\n"+string(e.ID)+"\r\n")))
	return e
}

// claim leases what is due; it fails when nothing is within seconds.
func (b *bench) claim(r mail.Route) *queue.Lease {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	l, err := b.s.Claim(ctx, r, 100)
	if err != nil {
		b.Fatalf("claim for %s: %v", r, err)
	}
	return l
}

// none fails when something is due now.
func (b *bench) none(r mail.Route) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 50*time.Millisecond)
	defer cancel()
	if l, err := b.s.Claim(ctx, r, 100); err == nil {
		b.Fatalf("claim for %s gave %s %+v, want nothing", r, l.Envelope.ID, l.Items)
	}
}

// settle gives every item of a lease the same outcome.
func (b *bench) settle(l *queue.Lease, o queue.Outcome, msgs ...queue.NewMessage) error {
	var all []queue.Outcome
	for _, it := range l.Items {
		o.N = it.N
		all = append(all, o)
	}
	return b.s.Settle(b.ctx, l, all, msgs...)
}

func (b *bench) done(l *queue.Lease) {
	b.Helper()
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Done, Reply: "250 2.0.0 ok"}))
}

// state sets a user's state, whatever the epoch.
func (b *bench) state(key string, st router.State) int {
	b.Helper()
	u, err := b.s.User(b.ctx, key)
	if errors.Is(err, router.ErrNoUser) {
		u, err = router.User{Address: key, Kind: router.KindMailbox}, nil
	}
	b.ok(err)
	u.State = st
	_, busy, err := b.s.SetUser(b.ctx, u, router.Change{By: "test", Reason: "test"})
	b.ok(err)
	return busy
}

// rcpt gives the state of one recipient.
func (b *bench) rcpt(id mail.ID, n int) queue.Rcpt {
	b.Helper()
	e, err := b.s.Get(b.ctx, id)
	b.ok(err)
	for _, r := range e.Rcpts {
		if r.N == n {
			return r
		}
	}
	b.Fatalf("message %s has no recipient %d any more", id, n)
	return queue.Rcpt{}
}

// gone fails when the message is still there.
func (b *bench) gone(id mail.ID) {
	b.Helper()
	_, err := b.s.Get(b.ctx, id)
	b.is(err, queue.ErrNotFound)
}

// body reads a message's body.
func (b *bench) body(id mail.ID) []byte {
	b.Helper()
	r, err := b.s.Open(b.ctx, id)
	b.ok(err)
	defer r.Close()
	data, err := io.ReadAll(r)
	b.ok(err)
	return data
}

// eventually asks again until ok, for at most twenty seconds.
func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			b.Fatalf("it does not happen: %s", what)
		}
	}
}

// bounce makes a message to the sender.
func bounce(text string) queue.NewMessage {
	e := &mail.Envelope{ID: mail.NewID(), Received: time.Now()}
	e.Recipients = []mail.Recipient{{Addr: address("sender@example.com")}}
	return queue.NewMessage{Envelope: e, Body: []byte(text)}
}

// bytesOf makes a body that is not all the same.
func bytesOf(n int) []byte {
	line := []byte("0123456789 the quick brown fox jumps over the lazy dog\r\n")
	return bytes.Repeat(line, n/len(line)+1)[:n]
}
