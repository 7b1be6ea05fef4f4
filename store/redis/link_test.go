package redis

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
)

// withReplica is a store on a master with a replica, which seems to lack what
// was written when has says so.
func withReplica(t *testing.T) (s *Store, r *redistest.Server, p *redistest.Proxy, has *atomic.Bool) {
	t.Helper()
	r = redistest.Start(t)
	r.StartReplicas(1)
	p = redistest.NewProxy(t, r.Addr)
	has = new(atomic.Bool)
	has.Store(true)
	p.Hook(func(cmd []string, reply []byte) ([]byte, bool) {
		if strings.EqualFold(cmd[0], "WAIT") && !has.Load() {
			return []byte(":0\r\n"), true
		}
		return reply, true
	})
	return nodeOn(t, p.URL(), "a"), r, p, has
}

// TestTooFewReplicas: no call on which a promise hangs succeeds without the
// replica: not the first one, not one that finds its work done, not one whose
// script Redis did not know, and no body in pieces.
func TestTooFewReplicas(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, r, _, has := withReplica(t)
	try := func(what string, f func(ctx context.Context) error) {
		t.Helper()
		has.Store(false)
		defer has.Store(true)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := f(short); !errors.Is(err, errReplicas) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	large := make([]byte, 400<<10)
	_, _ = rand.Read(large)
	small := []byte("Subject: x\r\n\r\nx\r\n")
	env, _ := letter("a@x")
	again := *env
	for what, body := range map[string][]byte{"small": small, "large": large} {
		e, _ := letter("a@x")
		try("put "+what, func(ctx context.Context) error { return s.Put(ctx, e, bytes.NewReader(body)) })
	}
	try("put", func(ctx context.Context) error { return s.Put(ctx, env, bytes.NewReader(small)) })
	try("put again", func(ctx context.Context) error { return s.Put(ctx, &again, bytes.NewReader(small)) })
	r.Must("SCRIPT", "FLUSH")
	try("put of an unknown script", func(ctx context.Context) error {
		e, _ := letter("a@x")
		return s.Put(ctx, e, bytes.NewReader(small))
	})
	within(t, 10*time.Second, "what was answered with an error is taken back", func() bool {
		return r.Must("ZCARD", "cx:{q}:a") == int64(0)
	})
	if err := s.Put(ctx, env, bytes.NewReader(small)); err == nil && r.Must("ZCARD", "cx:{q}:a") == int64(0) {
		t.Error("a message that was taken back counts as one that was delivered")
	}
	env, _ = letter("a@x")
	if err := s.Put(ctx, env, bytes.NewReader(large)); err != nil {
		t.Fatal(err)
	}
	l := claim(t, s, 5*time.Second)
	try("renew before the dot", func(ctx context.Context) error { return s.Renew(ctx, l, true) })
	out := []queue.Outcome{{N: l.Items[0].N, Kind: queue.Done}}
	try("settle", func(ctx context.Context) error { return s.Settle(ctx, l, out) })
	if err := s.Settle(ctx, l, out); err != nil {
		t.Fatal(err)
	}
	try("user", func(ctx context.Context) error {
		_, err := s.link.write(ctx, scDelUser, "a@x", 0, "x", "{}")
		return err
	})
}

// TestLargeBodyWaitsTwice: the pieces of a body are on the replica before the
// message that refers to them is.
func TestLargeBodyWaitsTwice(t *testing.T) {
	t.Parallel()
	s, _, p, _ := withReplica(t)
	p.Count(func(cmd []string) bool { return strings.EqualFold(cmd[0], "WAIT") })
	large := make([]byte, 400<<10)
	_, _ = rand.Read(large)
	env, _ := letter("a@x")
	if err := s.Put(t.Context(), env, bytes.NewReader(large)); err != nil {
		t.Fatal(err)
	}
	if n := p.Replies(); n < 2 {
		t.Errorf("%d waits", n)
	}
}

// TestLostReply: each reply of Redis to a put is lost in turn. The message is
// there once, whichever it was.
func TestLostReply(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	p := redistest.NewProxy(t, r.Addr)
	s := nodeOn(t, p.URL(), "a")
	large := make([]byte, 400<<10)
	_, _ = rand.Read(large)
	ours := func(cmd []string) bool { // of the put, not of what the store does by itself
		switch strings.ToUpper(cmd[0]) {
		case "EVALSHA":
			return cmd[1] == scPut.sha
		case "EVAL":
			return cmd[1] == sealSrc || cmd[1] == scPut.src
		case "SET":
			return strings.Contains(cmd[1], ":b:")
		}
		return false
	}
	for k := 1; ; k++ {
		p.Count(ours)
		lost := p.DropAt(k)
		env, _ := letter("a@x")
		if err := s.Put(t.Context(), env, bytes.NewReader(large)); err != nil {
			t.Fatalf("reply %d lost: %v", k, err)
		}
		if n := r.Must("ZCARD", "cx:{q}:a"); n != int64(k) {
			t.Fatalf("reply %d lost: %v messages", k, n)
		}
		select {
		case <-lost:
			continue
		default:
		}
		if k < 4 {
			t.Errorf("a put has only %d replies", k-1)
		}
		return
	}
}

// TestFullAfterALostReply: a put whose first try was executed and whose second
// finds Redis full is refused, and what the first one queued is taken back with
// its body: until then it is whole.
func TestFullAfterALostReply(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	p := redistest.NewProxy(t, r.Addr)
	s := nodeOn(t, p.URL(), "a")
	large := make([]byte, 700<<10)
	_, _ = rand.Read(large)
	var puts atomic.Int32
	p.Hook(func(cmd []string, reply []byte) ([]byte, bool) {
		if len(cmd) < 2 || cmd[1] != scPut.sha && cmd[1] != scPut.src || strings.HasPrefix(string(reply), "-NOSCRIPT") || puts.Add(1) > 1 {
			return reply, true
		}
		r.Must("CONFIG", "SET", "maxmemory", "1mb")
		return nil, false
	})
	env, _ := letter("a@x")
	err := s.Put(t.Context(), env, bytes.NewReader(large))
	if !errors.Is(err, queue.ErrFull) {
		t.Fatalf("got %v", err)
	}
	if n := puts.Load(); n < 2 {
		t.Fatalf("%d tries", n)
	}
	// It may be taken back at any moment, and then all of it.
	whole := func() bool {
		body, err := s.Open(t.Context(), env.ID)
		if err != nil {
			return false
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		return err == nil && bytes.Equal(got, large)
	}
	if !whole() && r.Must("ZCARD", "cx:{q}:a") != int64(0) {
		t.Error("the message is queued and has lost its body")
	}
	within(t, 10*time.Second, "it is taken back", func() bool { return r.Must("ZCARD", "cx:{q}:a") == int64(0) })
	r.Must("CONFIG", "SET", "maxmemory", 0)
	within(t, 10*time.Second, "mail is taken again", func() bool { return s.Room(1) == nil })
	put(t, s, 1)
}

// TestRedisIsAway: nothing is taken while Redis refuses connections or hangs,
// and the store goes on by itself.
func TestRedisIsAway(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	p := redistest.NewProxy(t, r.Addr)
	s := nodeOn(t, p.URL(), "a")
	put(t, s, 1)
	for name, fault := range map[string]struct{ begin, end func() }{
		"refused": {func() { p.Refuse(true) }, func() { p.Refuse(false) }},
		"killed":  {func() { r.Kill() }, func() { r.Restart() }},
	} {
		fault.begin()
		within(t, 10*time.Second, name+": Room says so", func() bool { return s.Room(1) != nil })
		env, body := letter("a@x")
		if err := s.Put(t.Context(), env, body); err == nil || errors.Is(err, queue.ErrFull) {
			t.Fatalf("%s: %v", name, err)
		}
		fault.end()
		within(t, 10*time.Second, name+": it goes on", func() bool { return s.Room(1) == nil })
		put(t, s, 1)
	}
	if n := r.Must("ZCARD", "cx:{q}:a"); n != int64(3) {
		t.Errorf("%v messages", n)
	}
}

// TestTakenByAnotherServer: a server with other settings behind the same address
// is looked at before anything is written there.
func TestTakenByAnotherServer(t *testing.T) {
	t.Parallel()
	r := redistest.Start(t)
	p := redistest.NewProxy(t, r.Addr)
	s := nodeOn(t, p.URL(), "a")
	put(t, s, 1)
	other := redistest.Start(t, "--appendfsync", "everysec")
	p.Backend(other.Addr)
	p.Cut()
	_, err := s.link.write(t.Context(), scPut, s.boot, string(mail.NewID()), 0, 0, "{}", 1, "0 x", "x", 1, "a@x", 1)
	if !errors.Is(err, errUnsafe) || !strings.Contains(err.Error(), "appendfsync") {
		t.Fatalf("got %v", err)
	}
	if n := other.Must("EXISTS", "cx:{q}:a"); n != int64(0) {
		t.Error("it was written there")
	}
}
