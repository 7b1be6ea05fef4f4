package redis_test

import (
	"context"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/store/redis"
)

// The clock of Redis cannot be set in a test. What the store remembers of it
// can: a jump looks the same from the other side.

func clockStore(t *testing.T, lease time.Duration) (*redis.Store, *goredis.Client) {
	t.Helper()
	url := server(t)
	srv, err := redis.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := redis.Open(t.Context(), srv, redis.Options{Node: "a", LeaseTime: lease})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	opt, err := goredis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	raw := goredis.NewClient(opt)
	t.Cleanup(func() { raw.Close() })
	return s, raw
}

func putOne(t *testing.T, s *redis.Store) *mail.Envelope {
	t.Helper()
	a, err := mail.ParseAddress("a@example.org")
	if err != nil {
		t.Fatal(err)
	}
	e := &mail.Envelope{ID: mail.NewID(), Received: time.Now(), Recipients: []mail.Recipient{{Addr: a, User: a.Key()}}}
	if err := s.Put(t.Context(), e, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestClockSetBack: what was to be tried again before the old time is tried
// again now.
func TestClockSetBack(t *testing.T) {
	s, raw := clockStore(t, 0)
	putOne(t, s)
	l, err := s.Claim(t.Context(), mail.Old, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(t.Context(), l, []queue.Outcome{{Kind: queue.Retry, At: time.Now().Add(30 * time.Minute)}}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Claim(short, mail.Old, 10); err == nil {
		t.Fatal("it was claimed before it was due")
	}
	if err := raw.HSet(t.Context(), "cx:{q}:s", "now", time.Now().Add(time.Hour).UnixMilli()).Err(); err != nil {
		t.Fatal(err)
	}
	long, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.Claim(long, mail.Old, 10); err != nil {
		t.Fatalf("it waits for a clock that was set back: %v", err)
	}
}

// TestClockGap: after a time in which nobody looked, a lease begins anew, so
// that its holder can settle before somebody else sends the message too.
func TestClockGap(t *testing.T) {
	s, raw := clockStore(t, 1200*time.Millisecond)
	putOne(t, s)
	l, err := s.Claim(t.Context(), mail.Old, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Renew(t.Context(), l, true); err != nil {
		t.Fatal(err)
	}
	if err := raw.HSet(t.Context(), "cx:{q}:s", "now", time.Now().Add(-time.Minute).UnixMilli()).Err(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	if _, err := s.Claim(ctx, mail.Old, 10); err == nil {
		t.Fatal("the message was given to somebody else although nobody could have renewed the lease")
	}
	if err := s.Settle(t.Context(), l, []queue.Outcome{{Kind: queue.Done}}); err != nil {
		t.Fatal(err)
	}
}
