package disk

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

func addr(t testing.TB, a string) mail.Address {
	t.Helper()
	x, err := mail.ParseAddress(a)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func envelope(t testing.TB, rcpts ...string) *mail.Envelope {
	e := &mail.Envelope{ID: mail.NewID(), From: addr(t, "sender@example.com"), Received: time.Now()}
	for _, r := range rcpts {
		a := addr(t, r)
		e.Recipients = append(e.Recipients, mail.Recipient{Addr: a, User: a.Key(), Hint: mail.Old})
	}
	return e
}

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// awaitRoom waits until mail is accepted again, without any traffic.
func awaitRoom(t *testing.T, s *Store) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(8 * time.Second); ; <-tick.C {
		err := s.Room(0)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestSlice(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s := open(t, dir, Options{})
	env := envelope(t, "a@example.org", "b@example.org")
	if err := s.Put(ctx, env, strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	if env.Size != 5 {
		t.Fatal(env.Size)
	}
	if _, busy, err := s.SetUser(ctx, router.User{Address: "b@example.org", Kind: router.KindMailbox, State: router.StateNew}, router.Change{By: "t"}); err != nil || busy != 0 {
		t.Fatal(err, busy)
	}
	l, err := s.Claim(ctx, mail.Old, 10)
	if err != nil || len(l.Items) != 1 || l.Items[0].N != 0 {
		t.Fatal(err, l)
	}
	l2, err := s.Claim(ctx, mail.New, 10)
	if err != nil || len(l2.Items) != 1 || l2.Items[0].N != 1 {
		t.Fatal(err, l)
	}
	r, err := s.Open(ctx, env.ID)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil || string(b) != "hello" {
		t.Fatal(err, b)
	}
	r.Close()
	if err := s.Renew(ctx, l, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(ctx, l, []queue.Outcome{{N: 0, Kind: queue.Done}}); err != nil {
		t.Fatal(err)
	}
	e, err := s.Get(ctx, env.ID)
	if err != nil || len(e.Rcpts) != 1 || e.Rcpts[0].State != queue.Leased {
		t.Fatal(err, e)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	if len(s.InDoubt()) != 0 {
		t.Fatal(s.InDoubt())
	}
	l2, err = s.Claim(ctx, mail.New, 10)
	if err != nil || len(l2.Items) != 1 || l2.Items[0].N != 1 || l2.Items[0].Crashes != 0 {
		t.Fatal(err, l2)
	}
	if err := s.Settle(ctx, l2, []queue.Outcome{{N: 1, Kind: queue.Done}}); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats(ctx)
	if err != nil || st.Messages != 0 || st.Bytes != 0 {
		t.Fatal(err, st)
	}
}
