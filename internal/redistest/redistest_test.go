package redistest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRestartKeepsData(t *testing.T) {
	s := Start(t, "--requirepass", "secret")
	s.Must("SET", "k", "v\r\nw")
	s.Kill()
	s.Kill()
	if _, err := s.Do("PING"); err == nil {
		t.Fatal("it answers after a kill")
	}
	s.Restart("--maxmemory", "50mb")
	if v := s.Must("GET", "k"); v != "v\r\nw" {
		t.Fatalf("after a restart: %q", v)
	}
	if got := s.Info("maxmemory"); got != fmt.Sprint(50<<20) {
		t.Fatalf("maxmemory %s", got)
	}
	s.Stop()
	if _, err := s.do(200*time.Millisecond, "PING"); err == nil {
		t.Fatal("it answers while it is stopped")
	}
	s.Cont()
	var e Error
	if _, err := s.Do("GARBAGE"); !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	s.User("u", "on >p ~* +get")
	opt, err := goredis.ParseURL(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	c := goredis.NewClient(opt)
	defer c.Close()
	if err := c.Ping(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestTLS(t *testing.T) {
	certs := NewCerts(t)
	s := StartTLS(t, certs)
	s.Must("SET", "k", "v")
	without := certs.Client.Clone()
	without.Certificates = nil
	c := goredis.NewClient(&goredis.Options{Addr: s.Addr, TLSConfig: without, MaxRetries: -1})
	defer c.Close()
	if err := c.Ping(context.Background()).Err(); err == nil {
		t.Fatal("a client without a certificate was let in")
	}
}

func TestSentinels(t *testing.T) {
	m := Start(t)
	reps := m.StartReplicas(2)
	s := m.StartSentinels("mymaster", 3, 2)
	if s.Master() != m.Addr {
		t.Fatalf("master %s", s.Master())
	}
	m.Kill()
	if err := poll(startTime, func() (bool, error) { return s.Master() != m.Addr, nil }); err != nil {
		t.Fatal(err)
	}
	if now := s.Master(); now != reps[0].Addr && now != reps[1].Addr {
		t.Fatalf("master %s", now)
	}
}

func TestCluster(t *testing.T) {
	c := StartCluster(t, 3, 1)
	o := c.Owner("a")
	o.Must("SET", "a", 1)
	if v := o.Must("GET", "a"); v != "1" {
		t.Fatalf("got %v", v)
	}
}

// TestProxyDrop: reply k is lost, what came before it arrives, and the command
// was executed.
func TestProxyDrop(t *testing.T) {
	s := Start(t)
	p := NewProxy(t, s.Addr)
	for k := 1; k <= 3; k++ {
		s.Must("DEL", "n")
		p.Count(func(cmd []string) bool { return cmd[0] == "INCR" })
		dropped := p.DropAt(k)
		c, err := net.Dial("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		one := string(encode([]any{"INCR", "n"}))
		if _, err := io.WriteString(c, string(encode([]any{"PING"}))+strings.Repeat(one, k)); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(bufio.NewReader(c))
		c.Close()
		want := "+PONG\r\n"
		for i := 1; i < k; i++ {
			want += fmt.Sprintf(":%d\r\n", i)
		}
		if string(got) != want {
			t.Fatalf("drop at %d: got %q, want %q", k, got, want)
		}
		<-dropped
		if v := s.Must("GET", "n"); v != fmt.Sprint(k) {
			t.Fatalf("drop at %d: %v commands were executed", k, v)
		}
	}
}

func TestProxyHoldRefuseHook(t *testing.T) {
	s := Start(t)
	p := NewProxy(t, s.Addr)
	c := goredis.NewClient(&goredis.Options{Addr: p.Addr, MaxRetries: -1, ReadTimeout: 300 * time.Millisecond})
	defer c.Close()
	ctx := context.Background()
	p.Count(nil)
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil || p.Replies() != 1 {
		t.Fatal(err, p.Replies())
	}
	p.Hold()
	if err := c.Get(ctx, "k").Err(); err == nil {
		t.Fatal("a reply came while traffic was held")
	}
	p.Release()
	if v := c.Get(ctx, "k").Val(); v != "v" {
		t.Fatalf("got %q", v)
	}
	p.Refuse(true)
	if err := c.Get(ctx, "k").Err(); err == nil {
		t.Fatal("it was let in")
	}
	p.Refuse(false)
	p.Hook(func(cmd []string, reply []byte) ([]byte, bool) {
		if cmd[0] == "get" {
			return []byte("$1\r\nx\r\n"), true
		}
		return reply, true
	})
	if v := c.Get(ctx, "k").Val(); v != "x" {
		t.Fatalf("got %q", v)
	}
	sub := c.Subscribe(ctx, "bell")
	defer sub.Close()
	if _, err := sub.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	s.Must("PUBLISH", "bell", "1")
	if m, err := sub.ReceiveMessage(ctx); err != nil || m.Payload != "1" {
		t.Fatal(m, err)
	}
}
