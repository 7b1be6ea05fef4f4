package lookup

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"crossfade/mail"
	"crossfade/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// table is a state table in memory; its other methods are not called.
type table struct {
	router.Table
	mu    sync.Mutex
	users map[string]router.User
	fail  error
}

func (t *table) User(_ context.Context, key string) (router.User, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return router.User{}, t.fail
	}
	u, ok := t.users[key]
	if !ok {
		return router.User{}, router.ErrNoUser
	}
	return u, nil
}

func (t *table) set(u router.User) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[u.Address] = u
}

func (t *table) break_(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = err
}

var errStore = errors.New("the disk is on fire")

// world is a Service over a table, and what it logged.
type world struct {
	*Service
	table *table
	log   *safeBuffer
	said  map[string]int // what/answer
	mu    sync.Mutex
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func user(address string, state router.State) router.User {
	return router.User{Address: address, Kind: router.KindMailbox, State: state}
}

// people are the users of most tests: one in each state, and what stands for
// others.
func people() []router.User {
	users := []router.User{
		{Address: "info@example.org", Kind: router.KindAlias, Targets: []string{"new@example.org"}},
		{Address: "both@example.org", Kind: router.KindGroup, Targets: []string{"old@example.org", "new@example.org"}},
		{Address: "olds@example.org", Kind: router.KindGroup, Targets: []string{"old@example.org", "ready@example.org"}},
		{Address: "loop@example.org", Kind: router.KindAlias, Targets: []string{"loop@example.org"}},
		{Address: "@alias.example", Kind: router.KindAlias, Targets: []string{"@example.org"}},
		{Address: "named@example.org", Kind: router.KindMailbox, State: router.StateNew, OldLogin: "DOM\\named", NewLogin: "named1"},
	}
	for _, s := range router.States() {
		users = append(users, user(string(s)+"@example.org", s))
	}
	return users
}

var serversOfTest = Sides{Old: Upstream{Host: "10.0.0.1", Port: 143, TLS: Clear}, New: Upstream{Host: "10.0.0.2", Port: 1143, TLS: Clear}}

func settings() Settings {
	return Settings{
		Upstreams: map[Protocol]Sides{
			IMAP: serversOfTest, Submission: {Old: Upstream{"10.0.0.1", 587, Clear}, New: Upstream{"10.0.0.2", 587, Clear}},
			POP3: {Old: Upstream{"old.internal", 995, Implicit}, New: Upstream{"new.internal", 110, StartTLS}},
			LMTP: {Old: Upstream{"10.0.0.1", 24, Clear}, New: Upstream{"10.0.0.2", 24, Clear}},
		},
		Transports:  Transports{Old: "smtp:[10.0.0.1]:25", New: "lmtp:inet:10.0.0.2:24", Relay: "smtp:[10.0.0.9]:25"},
		LoginDomain: "example.org", Key: "0123456789abcdef",
	}
}

func newWorld(t *testing.T, policy router.Policy, set Settings, change ...func(*Config)) *world {
	t.Helper()
	w := &world{table: &table{users: map[string]router.User{}}, log: &safeBuffer{}, said: map[string]int{}}
	for _, u := range people() {
		w.table.set(u)
	}
	r, err := router.New(router.Config{Hostname: "mx.example.org", Domains: []string{"example.org", "alias.example"}, Subaddress: "+", Unknown: policy}, w.table)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Router: r, Settings: set, Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Unknown: func(_ context.Context, a mail.Address) Known {
			switch {
			case strings.HasPrefix(a.Local, "onlynew"):
				return Known{Exists: true, Side: mail.New}
			case strings.HasPrefix(a.Local, "onlyold"):
				return Known{Exists: true, Side: mail.Old}
			}
			return Known{}
		},
		Answered: func(what, answer string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.said[what+"/"+answer]++
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	if w.Service, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

// listen runs one of the Serve methods until the test ends.
func listen(t *testing.T, serve func(context.Context, net.Listener) error) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving ended with: %v", err)
		}
	})
	return l.Addr().String()
}
