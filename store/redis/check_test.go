package redis

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"crossfade/internal/redistest"
	"crossfade/mail"
	"crossfade/queue"
)

// inspect asks about a store, and then tries to open it: both have to agree.
func inspect(t *testing.T, url string, o DialOptions) (Report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	srv, err := Dial(url, o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := srv.Inspect(ctx)
	s, oerr := Open(ctx, srv, Options{Node: "a"})
	if oerr == nil {
		s.Close()
	}
	srv.Close()
	if (err == nil) != (oerr == nil) || errors.Is(err, errRefused) != errors.Is(oerr, errRefused) {
		t.Errorf("Inspect: %v\nOpen: %v", err, oerr)
	}
	return r, err
}

// TestRefused: what would lose mail, or is not ours, is refused with what to do.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string                                       // of redis-server
		prep func(t *testing.T, s *redistest.Server) string // gives another URL; empty: the server's
		o    DialOptions
		want []string
	}{
		{name: "everysec", args: []string{"--appendfsync", "everysec"}, want: []string{"appendfsync is everysec", "CONFIG SET appendfsync always"}},
		{name: "no AOF", args: []string{"--appendonly", "no"}, want: []string{"the AOF is off", "`appendonly yes`"}},
		{name: "no sync while rewriting", args: []string{"--no-appendfsync-on-rewrite", "yes"}, want: []string{"CONFIG SET no-appendfsync-on-rewrite no"}},
		{name: "eviction", args: []string{"--maxmemory-policy", "allkeys-lru"}, want: []string{"allkeys-lru", "CONFIG SET maxmemory-policy noeviction"}},
		{name: "all at once", args: []string{"--maxmemory-policy", "volatile-ttl", "--appendfsync", "no"}, want: []string{"volatile-ttl", "appendfsync is no"}},
		{name: "service, eviction", args: []string{"--maxmemory-policy", "allkeys-lru"}, o: DialOptions{Service: true}, want: []string{"noeviction"}},
		{name: "replica", prep: func(t *testing.T, s *redistest.Server) string {
			return s.StartReplicas(1)[0].URL()
		}, want: []string{"read-only replica of 127.0.0.1:", "redis+sentinel://"}},
		{name: "wrong password", args: []string{"--requirepass", "right"}, prep: func(t *testing.T, s *redistest.Server) string {
			return "redis://:wr0ng@" + s.Addr
		}, want: []string{"WRONGPASS", "redis.password_file"}},
		{name: "no password", args: []string{"--requirepass", "right"}, prep: func(t *testing.T, s *redistest.Server) string {
			return "redis://" + s.Addr
		}, want: []string{"NOAUTH", "redis.password_file"}},
		{name: "no rights", prep: func(t *testing.T, s *redistest.Server) string {
			s.User("u", "on >wr0ng ~* +hello +ping")
			return "redis://u:wr0ng@" + s.Addr
		}, want: []string{"NOPERM", "docs/redis.md"}},
		{name: "no settings before 7.2", prep: func(t *testing.T, s *redistest.Server) string {
			s.User("u", "on >wr0ng ~* &* +@all -config")
			return strings.Replace(withVersion(t, s, "7.0.15").URL(), "redis://", "redis://u:wr0ng@", 1)
		}, want: []string{"cannot be read", "no WAITAOF", "durability: service"}},
		{name: "strangers", prep: func(t *testing.T, s *redistest.Server) string {
			s.Must("SET", "session:1", "x")
			return ""
		}, want: []string{`"session:1"`, "database 0", "/1"}},
		{name: "newer schema", prep: func(t *testing.T, s *redistest.Server) string {
			s.Must("SET", "cx:{q}:v", schemaVersion+1)
			return ""
		}, want: []string{fmt.Sprintf("schema %d", schemaVersion+1), "newer Crossfade"}},
		{name: "no schema", prep: func(t *testing.T, s *redistest.Server) string {
			s.Must("SET", "cx:{q}:v", "x")
			return ""
		}, want: []string{"cx:{q}:v", "no version"}},
		{name: "no such database", prep: func(t *testing.T, s *redistest.Server) string {
			return "redis://" + s.Addr + "/99"
		}, want: []string{"no such database", "databases"}},
		{name: "part of a cluster", args: []string{"--cluster-enabled", "yes"}, want: []string{"redis+cluster://"}},
		{name: "no cluster", prep: func(t *testing.T, s *redistest.Server) string {
			return "redis+cluster://" + s.Addr
		}, want: []string{"not part of a Redis Cluster"}},
		{name: "a sentinel", prep: func(t *testing.T, s *redistest.Server) string {
			return "redis://" + s.StartSentinels("m", 1, 1).Nodes[0].Addr
		}, want: []string{"that is a sentinel", "redis+sentinel://"}},
		{name: "no such master", prep: func(t *testing.T, s *redistest.Server) string {
			return "redis+sentinel://" + s.StartSentinels("m", 1, 1).Nodes[0].Addr + "/other"
		}, want: []string{"no master named other"}},
		{name: "old", prep: func(t *testing.T, s *redistest.Server) string { return withVersion(t, s, "6.2.7").URL() }, want: []string{"7.0 or newer"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t, tt.args...)
			url := s.URL()
			if tt.prep != nil {
				if u := tt.prep(t, s); u != "" {
					url = u
				}
			}
			_, err := inspect(t, url, tt.o)
			if err == nil || !errors.Is(err, errRefused) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %v\nwant %s", err, w)
				}
			}
			if strings.Contains(err.Error(), "wr0ng") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

// TestAccepted: what is durable is taken, and what is said about it.
func TestAccepted(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	r, err := inspect(t, s.URL(), DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if text := r.String(); !strings.Contains(text, "Redis 7") && !strings.Contains(text, "Valkey") || !strings.Contains(text, "appendfsync always") ||
		!strings.Contains(text, "warning: Redis has no bound on its memory") || r.Schema != 0 {
		t.Errorf("got %q, schema %d", text, r.Schema)
	}
	if v := s.Must("GET", "cx:{q}:v"); v != fmt.Sprint(schemaVersion) {
		t.Errorf("schema version %v", v)
	}
	s.Must("SET", "session:1", "x") // who came later is not our affair
	if r, err = inspect(t, s.URL(), DialOptions{}); err != nil || r.Schema != schemaVersion {
		t.Errorf("again: %v, schema %d", err, r.Schema)
	}
	if _, err = inspect(t, s.URL(), DialOptions{Queue: "other"}); !errors.Is(err, errRefused) {
		t.Errorf("another queue beside strangers: %v", err)
	}
	s.Must("DEL", "session:1")
	if _, err = inspect(t, s.URL(), DialOptions{Queue: "other"}); err != nil {
		t.Errorf("two queues in one database: %v", err)
	}
	s.Must("CONFIG", "SET", "appendfsync", "everysec")
	var log bytes.Buffer
	r, err = inspect(t, s.URL(), DialOptions{Service: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil || r.Masters[0].Sync != "service" || !strings.Contains(strings.Join(r.Warnings, " "), "not checked") {
		t.Errorf("service: %v, %+v", err, r)
	}
	if n := strings.Count(log.String(), "not checked"); n != 1 {
		t.Errorf("the exception was logged %d times:\n%s", n, log.String())
	}
}

// letter is a message to put.
func letter(rcpts ...string) (*mail.Envelope, *strings.Reader) {
	env := &mail.Envelope{ID: mail.NewID()}
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, mail.Recipient{User: r, Hint: mail.Old})
	}
	return env, strings.NewReader("Subject: x\r\n\r\nbody\r\n")
}

// lookAgain has the settings read again now.
func (s *Store) lookAgain(ctx context.Context) error {
	s.server.hosts.mu.Lock()
	for _, x := range s.server.hosts.known {
		x.judged.Store(0)
	}
	s.server.hosts.adopted = time.Time{}
	s.server.hosts.mu.Unlock()
	return s.recheck(ctx)
}

// TestNoLongerDurable: nothing is taken in while the server is not durable, what
// was taken in is delivered, and it goes on by itself.
func TestNoLongerDurable(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := redistest.Start(t)
	s := nodeOn(t, srv.URL(), "a")
	env, body := letter("a@x")
	if err := s.Put(ctx, env, body); err != nil {
		t.Fatal(err)
	}
	srv.Must("CONFIG", "SET", "appendfsync", "everysec")
	if err := s.lookAgain(ctx); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "appendfsync") {
		t.Fatalf("recheck: %v", err)
	}
	other, body := letter("b@x")
	if err := s.Put(ctx, other, body); err == nil || errors.Is(err, queue.ErrFull) || !strings.Contains(err.Error(), "CONFIG SET appendfsync always") {
		t.Fatalf("Put: %v", err)
	}
	if err := s.Room(1); err == nil {
		t.Fatal("there is room")
	}
	if _, err := s.link.write(ctx, scSetUser); !errors.Is(err, errUnsafe) { // past Room: the connection refuses it too
		t.Fatalf("write: %v", err)
	}
	l, err := s.Claim(ctx, mail.Old, 10)
	if err != nil {
		t.Fatal(err)
	}
	done(t, s, l)
	srv.Must("CONFIG", "SET", "appendfsync", "always")
	if err := s.lookAgain(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, other, body); err != nil {
		t.Fatal(err)
	}
	srv.Must("SET", "cx:{q}:v", schemaVersion+1)
	if err := s.lookAgain(ctx); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "newer") {
		t.Fatalf("a newer node migrated the store: %v", err)
	}
}

// TestMigrate: each step runs once, an interrupted one again.
func TestMigrate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := redistest.Start(t)
	srv, err := Dial(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if err := srv.adopt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	runs := 0
	steps := []func(context.Context, *Server) error{func(context.Context, *Server) error {
		if runs++; runs == 1 {
			return errors.New("interrupted")
		}
		return nil
	}}
	if err := srv.adopt(ctx, steps); err == nil || r.Must("GET", "cx:{q}:v") != "1" {
		t.Fatalf("interrupted: %v", err)
	}
	if err := srv.adopt(ctx, steps); err != nil || r.Must("GET", "cx:{q}:v") != "2" || runs != 2 {
		t.Fatalf("again: %v, %d runs", err, runs)
	}
	if schemaVersion != len(migrations)+1 {
		t.Errorf("schema %d has %d migrations", schemaVersion, len(migrations))
	}
}

// withVersion has a server say that it is of another version of Redis.
func withVersion(t *testing.T, s *redistest.Server, version string) *redistest.Proxy {
	t.Helper()
	p := redistest.NewProxy(t, s.Addr)
	said := regexp.MustCompile(`redis_version:\d+\.\d+\.\d+`)
	p.Hook(func(cmd []string, reply []byte) ([]byte, bool) {
		if !strings.EqualFold(cmd[0], "INFO") {
			return reply, true
		}
		head, info, _ := bytes.Cut(reply, []byte("\r\n"))
		info = bytes.TrimSuffix(said.ReplaceAll(info, []byte("redis_version:"+version)), []byte("\r\n"))
		return fmt.Appendf(nil, "%c%d\r\n%s\r\n", head[0], len(info), info), true
	})
	return p
}

// TestWaitAOFValkey: a Valkey whose settings may not be read, which has the
// WAITAOF of Redis 7.2.
func TestWaitAOFValkey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := redistest.StartValkey(t)
	p := redistest.NewProxy(t, r.Addr)
	r.User("u", "on >pw ~* &* +@all -config")
	as := func(p *redistest.Proxy) string { return strings.Replace(p.URL(), "redis://", "redis://u:pw@", 1) }
	rep, err := inspect(t, as(p), DialOptions{})
	if err != nil || rep.Masters[0].Sync != "WAITAOF" || !strings.HasPrefix(rep.Masters[0].Version, "Valkey ") {
		t.Fatalf("%v, %+v", err, rep)
	}
	s := nodeOn(t, as(p), "a")
	p.Count(func(cmd []string) bool { return strings.EqualFold(cmd[0], "WAITAOF") })
	put(t, s, 5)
	large := make([]byte, 400<<10)
	_, _ = rand.Read(large)
	env, _ := letter("a@x")
	if err := s.Put(ctx, env, bytes.NewReader(large)); err != nil {
		t.Fatal(err)
	}
	if n := p.Replies(); n < 6 {
		t.Errorf("6 messages were stored with %d waits", n)
	}
	// The AOF is taken away: what is written is on no disk.
	r.Must("CONFIG", "SET", "appendonly", "no")
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	env, body := letter("b@x")
	if err := s.Put(short, env, body); err == nil {
		t.Fatal("a message was taken without an AOF")
	}
	none := redistest.StartValkey(t, "--appendonly", "no")
	none.User("u", "on >pw ~* &* +@all -config")
	if _, err := inspect(t, as(redistest.NewProxy(t, none.Addr)), DialOptions{}); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "appendonly") {
		t.Errorf("without an AOF: %v", err)
	}
	// Synced once a second, each promise waits for it.
	lazy := redistest.StartValkey(t, "--appendfsync", "everysec")
	lazy.User("u", "on >pw ~* &* +@all -config")
	put(t, nodeOn(t, as(redistest.NewProxy(t, lazy.Addr)), "a"), 2)
}

// TestWaitAOF: where settings may not be read, each write waits for WAITAOF. The
// server is a stand-in: a proxy that answers WAITAOF before a Redis 7.0 and
// gives it the version that has it.
func TestWaitAOF(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := redistest.Start(t)
	p := redistest.NewProxy(t, r.Addr)
	answer := make(chan string, 1)
	say := func(s string) { answer <- s }
	say("*2\r\n:1\r\n:0\r\n")
	p.Hook(func(cmd []string, reply []byte) ([]byte, bool) {
		switch strings.ToUpper(cmd[0]) {
		case "WAITAOF":
			a := <-answer
			answer <- a
			return []byte(a), true
		case "CONFIG":
			return []byte("-NOPERM this user has no permissions to run the 'config|get' command\r\n"), true
		case "INFO":
			return bytes.ReplaceAll(reply, []byte("redis_version:7.0"), []byte("redis_version:7.2")), true
		}
		return reply, true
	})
	waits := func(cmd []string) bool { return strings.EqualFold(cmd[0], "WAITAOF") }
	rep, err := inspect(t, p.URL(), DialOptions{})
	if err != nil || rep.Masters[0].Sync != "WAITAOF" {
		t.Fatalf("%v, %+v", err, rep)
	}
	s := nodeOn(t, p.URL(), "a")
	p.Count(waits)
	env, body := letter("a@x")
	if err := s.Put(ctx, env, body); err != nil || p.Replies() == 0 {
		t.Fatalf("Put: %v, %d waits", err, p.Replies())
	}
	<-answer
	say("*2\r\n:0\r\n:0\r\n")
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	env, body = letter("b@x")
	if err := s.Put(short, env, body); !errors.Is(err, errNotSynced) {
		t.Fatalf("Put without a sync: %v", err)
	}
	<-answer
	say("-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.\r\n")
	if err := s.lookAgain(ctx); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "appendonly is disabled") {
		t.Fatalf("AOF off: %v", err)
	}
}

// TestMarkAtMaxmemory: what a write waits for is written also when memory is
// short, or WAIT would count nothing.
func TestMarkAtMaxmemory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := redistest.Start(t)
	s := nodeOn(t, r.URL(), "a")
	w, err := s.server.hosts.take(ctx, "cx:{q}:w")
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	r.Must("CONFIG", "SET", "maxmemory", "1mb")
	if err := w.cn.Set(ctx, "cx:{q}:x", 1, 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "OOM") {
		t.Fatalf("it has memory: %v", err)
	}
	pipe := w.cn.Pipeline()
	wait := need{replicas: 1}.add(ctx, pipe, "cx:{q}:w")
	_, _ = pipe.Exec(ctx)
	if err := wait.mark.Err(); err != nil {
		t.Fatal(err)
	}
	if err := wait.check(); !errors.Is(err, errReplicas) {
		t.Fatalf("got %v", err)
	}
}

// TestDialTLS: a server with TLS, by its authority and a certificate of ours.
func TestDialTLS(t *testing.T) {
	t.Parallel()
	certs := redistest.NewCerts(t)
	r := redistest.StartTLS(t, certs)
	if _, err := inspect(t, r.URL(), DialOptions{TLS: certs.Client}); err != nil {
		t.Error(err)
	}
	_, err := inspect(t, r.URL(), DialOptions{TLS: &tls.Config{MinVersion: tls.VersionTLS12}})
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "redis.ca") {
		t.Errorf("unknown authority: %v", err)
	}
	other := certs.Client.Clone()
	other.ServerName = "redis.example.org"
	if _, err := inspect(t, r.URL(), DialOptions{TLS: other}); !errors.Is(err, errRefused) {
		t.Errorf("another name: %v", err)
	}
	srv, err := Dial(strings.Replace(r.URL(), "rediss", "redis", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	if _, err := srv.Inspect(context.Background()); err == nil {
		t.Error("it speaks without TLS")
	}
}
