package storetest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

var claimTests = []test{
	{"groups the recipients of a route", claimGroups},
	{"at most maxRcpts", claimMax},
	{"ends with its context", claimContext},
	{"wakes on put", claimWakesPut},
	{"wakes when a retry is due", claimWakesRetry},
	{"wakes when a user is released", claimWakesRelease},
	{"every waiting claim is served", claimWaiters},
	{"a backlog on disk comes back in order", claimBacklog},
	{"released mail does not block other mail", claimFair},
	{"many workers, each message once", claimWorkers},
}

func claimGroups(b *bench) {
	b.start(Config{})
	b.state("n1@example.org", router.StateNew)
	b.state("n2@example.org", router.StateNew)
	b.state("h@example.org", router.StateRollback)
	e := b.put("o1@example.org", "n1@example.org", "h@example.org", "o2@example.org", "n2@example.org")
	ns := func(l *queue.Lease) (out []int) {
		b.true(l.Envelope.ID == e.ID, "another message")
		for _, it := range l.Items {
			out = append(out, it.N)
		}
		return out
	}
	got := fmt.Sprint(ns(b.claim(mail.Old)), ns(b.claim(mail.New)))
	b.true(got == "[0 3] [1 4]", "claims gave %s", got)
	b.none(mail.Old)
	b.none(mail.New)
	b.none(mail.Out)
}

func claimMax(b *bench) {
	b.start(Config{})
	var rcpts []string
	for i := range 25 {
		rcpts = append(rcpts, fmt.Sprintf("u%d@example.org", i))
	}
	b.put(rcpts...)
	seen := map[int]bool{}
	for _, want := range []int{10, 10, 5} {
		l, err := b.s.Claim(b.ctx, mail.Old, 10)
		b.ok(err)
		b.true(len(l.Items) == want, "claim gave %d recipients, want %d", len(l.Items), want)
		for _, it := range l.Items {
			b.true(!seen[it.N], "recipient %d was claimed twice", it.N)
			seen[it.N] = true
		}
	}
	b.none(mail.Old)
}

func claimContext(b *bench) {
	b.start(Config{})
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error)
	go func() {
		_, err := b.s.Claim(ctx, mail.Old, 1)
		done <- err
	}()
	cancel()
	b.is(<-done, context.Canceled)
	b.put("a@example.org")
	b.claim(mail.Old)
}

// waiting starts a claim and tells when it had something.
func (b *bench) waiting(r mail.Route) chan time.Time {
	got := make(chan time.Time, 1)
	ready := make(chan struct{})
	go func() {
		close(ready)
		if _, err := b.s.Claim(b.ctx, r, 100); err != nil {
			b.Error(err)
		}
		got <- time.Now()
	}()
	<-ready
	return got
}

// soon is how late a waiting claim may be. The promise is a millisecond; the
// machine that tests run on is busy.
const soon = 2 * time.Second

func claimWakesPut(b *bench) {
	b.start(Config{})
	for range 5 {
		got := b.waiting(mail.Old)
		b.put("a@example.org")
		at := time.Now()
		late := (<-got).Sub(at)
		b.true(late < soon, "the claim came %v after the put", late)
	}
}

func claimWakesRetry(b *bench) {
	b.start(Config{})
	b.put("a@example.org")
	l := b.claim(mail.Old)
	at := time.Now().Add(150 * time.Millisecond)
	b.ok(b.settle(l, queue.Outcome{Kind: queue.Retry, At: at}))
	got := <-b.waiting(mail.Old)
	b.true(got.Sub(at) > -2*time.Millisecond, "the claim came %v early", at.Sub(got))
	b.true(got.Sub(at) < soon, "the claim came %v late", got.Sub(at))
}

func claimWakesRelease(b *bench) {
	b.start(Config{})
	b.state("a@example.org", router.StateCutover)
	b.put("a@example.org")
	got := b.waiting(mail.New)
	b.state("a@example.org", router.StateNew)
	at := time.Now()
	late := (<-got).Sub(at)
	b.true(late < soon, "the claim came %v after the release", late)
}

func claimWaiters(b *bench) {
	b.start(Config{})
	var wg sync.WaitGroup
	for range 10 {
		got := b.waiting(mail.Old)
		wg.Go(func() { <-got })
	}
	var rcpts []string
	for i := range 3 {
		rcpts = append(rcpts, fmt.Sprintf("u%d@example.org", i))
	}
	for range 10 {
		b.put(rcpts...)
	}
	wg.Wait()
}

func claimBacklog(b *bench) {
	b.start(Config{Window: 16})
	const n = 300
	ids := map[mail.ID]bool{}
	for range n {
		ids[b.put("a@example.org").ID] = true
	}
	for range n {
		l := b.claim(mail.Old)
		b.true(ids[l.Envelope.ID], "%s came twice", l.Envelope.ID)
		delete(ids, l.Envelope.ID)
		b.done(l)
	}
	b.none(mail.Old)
}

func claimFair(b *bench) {
	b.start(Config{Window: 200})
	b.state("big@example.org", router.StateCutover)
	n := 1500
	if slow {
		n = 600
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range n / 20 {
				b.put("big@example.org")
			}
		})
	}
	wg.Wait()
	b.state("big@example.org", router.StateOld)
	b.claim(mail.Old)
	fresh := b.put("small@example.org")
	for i := 0; ; i++ {
		b.true(i < 400, "fresh mail waits behind %d released messages", i)
		l := b.claim(mail.Old)
		if l.Envelope.ID == fresh.ID {
			break
		}
		b.done(l)
	}
	for left := n - 1; left > 0; {
		l := b.claim(mail.Old)
		b.done(l)
		if st, err := b.s.Stats(b.ctx); err != nil {
			b.Fatal(err)
		} else {
			left = st.States[queue.Queued]
		}
	}
}

func claimWorkers(b *bench) {
	b.start(Config{Window: 32})
	const n = 600
	var mu sync.Mutex
	seen := map[mail.ID]int{}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				l, err := b.s.Claim(ctx, mail.Old, 100)
				if err != nil {
					return
				}
				if err := b.s.Renew(ctx, l, true); err != nil {
					b.Error(err)
				}
				mu.Lock()
				seen[l.Envelope.ID]++
				if len(seen) == n {
					cancel()
				}
				mu.Unlock()
				if err := b.settle(l, queue.Outcome{Kind: queue.Done}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for range 6 {
		wg.Go(func() {
			for range n / 6 {
				b.put("a@example.org")
			}
		})
	}
	wg.Wait()
	for id, k := range seen {
		b.true(k == 1, "%s was sent %d times", id, k)
	}
	b.true(len(seen) == n, "%d messages were sent, want %d", len(seen), n)
}
