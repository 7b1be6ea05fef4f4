package disk

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// inMemory counts the recipients of the envelopes that memory holds.
func inMemory(s *Store) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.msgs {
		n += len(m.env.Recipients)
	}
	return n
}

// TestManyRecipients: messages with very many recipients fill the window by
// their recipients, whether they are new, were retried or come from disk, and
// all of them are delivered in the end.
func TestManyRecipients(t *testing.T) {
	const window, messages, rcpts = 16, 24, 120 // 2880 recipients
	dir := t.TempDir()
	s := open(t, dir, Options{ClaimWindow: window})
	const most = 2*(windowRcpts*window+rcpts) + rcpts // of both queues, and the leased one
	see := func(when string) {
		t.Helper()
		if n := inMemory(s); n > most {
			t.Fatalf("%s: %d recipients are in memory, at most %d should be", when, n, most)
		}
	}
	for range messages {
		var to []string
		for i := range rcpts {
			to = append(to, fmt.Sprintf("u%d@example.org", i))
		}
		e := envelope(t, to...)
		if err := s.Put(ctx, e, bytes.NewReader(pattern(e.ID, 10))); err != nil {
			t.Fatal(err)
		}
		see("put")
	}
	deliver := func(kind queue.Kind, n int) {
		t.Helper()
		for n > 0 {
			l, err := s.Claim(ctx, mail.Old, 50)
			if err != nil {
				t.Fatal(err)
			}
			var outs []queue.Outcome
			for _, it := range l.Items {
				outs = append(outs, queue.Outcome{N: it.N, Kind: kind, At: time.Now().Add(30 * time.Second)})
			}
			if err := s.Settle(ctx, l, outs); err != nil {
				t.Fatal(err)
			}
			n -= len(outs)
			see(string(kind))
		}
	}
	deliver(queue.Retry, messages*rcpts)
	if _, err := s.Apply(ctx, queue.Filter{}, queue.Action{Verb: queue.DoRetry}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir, Options{ClaimWindow: window})
	deliver(queue.Done, messages*rcpts)
	if st, err := s.Stats(ctx); err != nil || st.Messages != 0 {
		t.Fatal(st, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rcpts != 0 || s.lanes[laneOld].straight.rcpts != 0 || s.lanes[laneOld].paged.rcpts != 0 {
		t.Fatalf("the account of recipients is wrong: %d, %d, %d", s.rcpts, s.lanes[laneOld].straight.rcpts, s.lanes[laneOld].paged.rcpts)
	}
}

// TestClockSetBack: mail that was queued or put off while the clock was wrong
// does not wait until it is that late: not in memory, not on disk, and not when
// the store was closed in between.
func TestClockSetBack(t *testing.T) {
	const n = 3*sliceRows + 10
	for name, restart := range map[string]bool{"running": false, "restarted": true} {
		t.Run(name, func(t *testing.T) {
			var ahead atomic.Int64
			ahead.Store(int64(1000 * time.Hour))
			o := Options{ClaimWindow: 16, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}
			dir := t.TempDir()
			s := open(t, dir, o)
			put := func(n int) {
				for range n {
					mustPut(t, s, 10, "a@example.org")
				}
			}
			put(10)
			for i := range 10 {
				l, err := s.Claim(ctx, mail.Old, 1)
				if err == nil {
					at := o.Now().Add([]time.Duration{30 * time.Second, time.Hour}[i%2])
					err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Retry, At: at}})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			put(n)
			if restart {
				s.Close()
			}
			ahead.Store(0)
			if restart {
				s = open(t, dir, o)
			} else {
				s.poke <- struct{}{} // else it is seen within 15 s
			}
			short, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			for i := range n + 10 {
				l, err := s.Claim(short, mail.Old, 1)
				if err == nil {
					err = s.Settle(ctx, l, []queue.Outcome{{Kind: queue.Done}})
				}
				if err != nil {
					t.Fatalf("after %d messages: %v", i, err)
				}
			}
		})
	}
}
