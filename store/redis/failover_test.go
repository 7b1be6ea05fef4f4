package redis

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
)

// traffic puts and settles without pause, and keeps what was acknowledged.
type traffic struct {
	s      *Store
	wg     sync.WaitGroup
	cancel context.CancelFunc

	mu    sync.Mutex
	acked map[mail.ID]bool
	given map[mail.ID]int  // a delivery of it was claimed and its dot allowed
	gone  map[mail.ID]bool // settled, acknowledged
	last  error
}

func (f *traffic) start(t *testing.T, s *Store) {
	f.s = s
	f.acked, f.given, f.gone = map[mail.ID]bool{}, map[mail.ID]int{}, map[mail.ID]bool{}
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(context.Background())
	large := make([]byte, 300<<10)
	_, _ = rand.Read(large)
	for i := range 3 {
		f.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				body := []byte("Subject: x\r\n\r\nsmall\r\n")
				if i == 0 && n%4 == 0 {
					body = large
				}
				f.put(ctx, body)
			}
		})
	}
	f.wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			f.deliver(ctx, n)
		}
	})
	t.Cleanup(f.stop)
}

func (f *traffic) stop() {
	f.cancel()
	f.wg.Wait()
}

func (f *traffic) put(ctx context.Context, body []byte) {
	env := &mail.Envelope{ID: mail.NewID(), Received: time.Now(), Recipients: []mail.Recipient{{User: "a@x", Hint: mail.Old}}}
	tctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	err := f.s.Put(tctx, env, bytes.NewReader(body))
	cancel()
	f.mu.Lock()
	if err == nil {
		f.acked[env.ID] = true
	} else {
		f.last = err
	}
	f.mu.Unlock()
	if err != nil {
		f.s.link.pause(ctx, 20*time.Millisecond) // a sender that got 451
	}
}

// deliver settles two of three deliveries, and gives up the third.
func (f *traffic) deliver(ctx context.Context, n int) {
	l, err := f.s.Claim(ctx, mail.Old, 10)
	if err != nil {
		return
	}
	if n%3 == 2 {
		_ = f.s.Settle(ctx, l, []queue.Outcome{{N: 0, Kind: queue.Retry, At: time.Now().Add(time.Hour), Reply: "451 later"}})
		return
	}
	if f.s.Renew(ctx, l, true) != nil {
		return
	}
	f.mu.Lock()
	f.given[l.Envelope.ID]++
	f.mu.Unlock()
	if f.s.Settle(ctx, l, []queue.Outcome{{N: 0, Kind: queue.Done}}) == nil {
		f.mu.Lock()
		f.gone[l.Envelope.ID] = true
		f.mu.Unlock()
	}
}

func (f *traffic) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.acked)
}

func (f *traffic) settled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.gone)
}

// goesOn waits until mail is acknowledged and settled again.
func (f *traffic) goesOn(t *testing.T, limit time.Duration) {
	t.Helper()
	start, n, k := time.Now(), f.count(), f.settled()
	defer func() {
		if t.Failed() {
			f.mu.Lock()
			t.Logf("the last error was: %v", f.last)
			f.mu.Unlock()
		}
	}()
	within(t, limit, "mail is accepted again", func() bool { return f.count() >= n+20 })
	t.Logf("mail is accepted again after %v", time.Since(start).Round(10*time.Millisecond))
	within(t, limit, "mail is settled again", func() bool { return f.settled() >= k+5 })
}

// check looks for each acknowledged message: it was given to a backend or is
// there to be, with its body; and what was settled is not there again.
func (f *traffic) check(t *testing.T, url string) (lost int) {
	t.Helper()
	f.stop()
	s := nodeOn(t, url, "check") // the other has bodies in its memory
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for id := range f.acked {
		r, err := s.Open(ctx, id)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		switch there := err == nil; {
		case err != nil && !errors.Is(err, queue.ErrNotFound):
			t.Errorf("message %s: %v", id, err)
		case !there && f.given[id] == 0:
			lost++
		case there && f.gone[id]:
			t.Errorf("message %s was settled and is there again", id)
		case f.given[id] > 1 && f.gone[id]:
			t.Logf("message %s was given %d times", id, f.given[id])
		}
	}
	t.Logf("acknowledged %d, given %d, settled %d, lost %d", len(f.acked), len(f.given), len(f.gone), lost)
	return lost
}

// TestReplicaIsWaitedFor: a message that one replica lacks is not acknowledged;
// with the wait left out it is, and is lost when that replica takes over.
func TestReplicaIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, broken := range []bool{false, true} {
		m := redistest.Start(t)
		rep := m.StartReplicas(1)[0]
		srv, err := Dial(m.URL(), DialOptions{Replicas: 1})
		if err != nil {
			t.Fatal(err)
		}
		srv.hosts.waitless = broken
		s, err := Open(t.Context(), srv, Options{Node: "a"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		put(t, s, 1)
		rep.Must("REPLICAOF", "NO", "ONE") // from now on it gets nothing
		f := traffic{s: s, acked: map[mail.ID]bool{}, cancel: func() {}}
		f.put(t.Context(), []byte("x"))
		if got := len(f.acked) > 0; got != broken {
			t.Fatalf("broken %v: acknowledged %v (%v)", broken, got, f.last)
		}
		m.Kill() // and the other takes over
		if got := f.check(t, rep.URL()) > 0; got != broken {
			t.Errorf("broken %v: lost %v", broken, got)
		}
	}
}
