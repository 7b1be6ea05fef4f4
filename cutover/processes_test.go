package cutover_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/cutover"
	"crossfade/internal/mailtest"
	"crossfade/internal/redistest"
	"crossfade/router"
	"crossfade/store/redis"
)

// childEnv makes this program a node: URL of Redis, name, addresses of both
// IMAP servers.
const childEnv = "CUTOVER_TEST_NODE"

func TestMain(m *testing.M) {
	if v := os.Getenv(childEnv); v != "" {
		if err := child(strings.Split(v, "|")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// owning is short, so that a test sees users change their node.
const owning = 1500 * time.Millisecond

type accounts struct{ old, new string }

func (a accounts) Job(u router.User) (backfill.Job, error) {
	account := func(addr string) imapconn.Account {
		return imapconn.Account{
			Server: imapconn.Server{Address: addr, Mode: imapconn.TLSNone}, Login: imapconn.Login{User: u.Address, Password: "secret"},
		}
	}
	return backfill.Job{User: u.Address, Host: "mx.example.org", Source: account(a.old), Dest: account(a.new)}, nil
}

func openNode(ctx context.Context, url, name string) (*redis.Store, error) {
	srv, err := redis.Dial(url)
	if err != nil {
		return nil, err
	}
	return redis.Open(ctx, srv, redis.Options{Node: name})
}

func conductor(s *redis.Store, name string, a accounts) *cutover.Conductor {
	return cutover.New(cutover.Config{
		Table: s, Copier: &backfill.Copier{Ledger: s, BatchMessages: 10, Settle: 300 * time.Millisecond}, Mailboxes: a, Requests: s,
		Owners: s, Board: s, Node: name, OwnTime: owning, Concurrency: 2, LatePass: time.Second, RetryFirst: 200 * time.Millisecond,
		Window: -1, Tail: 300 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// child is a node until it is killed.
func child(args []string) error {
	s, err := openNode(context.Background(), args[0], args[1])
	if err != nil {
		return err
	}
	fmt.Println("up")
	return conductor(s, args[1], accounts{args[2], args[3]}).Run(context.Background())
}

// process is a node in a process of its own.
type process struct {
	t    *testing.T
	env  string
	cmd  *exec.Cmd
	logs strings.Builder
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), childEnv+"="+p.env)
	p.cmd.Stderr = &p.logs
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	if n, err := out.Read(make([]byte, 10)); n == 0 {
		p.kill()
		p.t.Fatalf("the node did not come up: %v\n%s", err, p.logs.String())
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%v\n%s", err, p.logs.String())
	}
}

func wait(d time.Duration) { <-time.After(d) }

// TestNodesThatAreKilledAndStopped moves users while their nodes are killed,
// and stopped for longer than they own a user and continued. Every message is
// on new exactly once.
func TestNodesThatAreKilledAndStopped(t *testing.T) {
	t.Parallel()
	const users, messages = 6, 120
	server := redistest.Start(t)
	old, fresh := mailsystem(t, "old.test"), mailsystem(t, "new.test")
	slow := func(e mailtest.IMAPEvent) error {
		if e.Command == "APPEND" {
			wait(5 * time.Millisecond)
		}
		return nil
	}
	fresh.SetIMAPHook(slow)
	want := map[string]int{}
	names := make([]string, users)
	for i := range names {
		names[i] = fmt.Sprintf("u%d@example.org", i)
		for _, m := range []*mailtest.Mailsystem{old, fresh} {
			if err := m.AddUser(names[i], "secret"); err != nil {
				t.Fatal(err)
			}
		}
		for n := range messages {
			// Some are the same as others, and have to be there as often.
			body := fmt.Sprintf("From: a@example.net\r\nSubject: %d\r\n\r\nfor %s\r\n", n-n%7/6, names[i])
			want[names[i]+" "+body]++
			if _, err := old.Append(names[i], []string{"INBOX", "Archive"}[n%2], nil, time.Now(), []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, err := openNode(t.Context(), server.URL(), "operator")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	where := accounts{old.IMAPAddr(), fresh.IMAPAddr()}
	var nodes []*process
	for _, name := range []string{"a", "b", "c"} {
		p := &process{t: t, env: strings.Join([]string{server.URL(), name, where.old, where.new}, "|")}
		p.start()
		t.Cleanup(func() {
			p.kill()
			if t.Failed() {
				t.Logf("node %s:\n%s", name, p.logs.String())
			}
		})
		nodes = append(nodes, p)
	}
	c := conductor(s, "operator", where) // it is not run: requests are for the others
	for _, u := range names {
		if err := c.Start(t.Context(), cutover.Request{User: u, By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 6 {
		wait(200*time.Millisecond + rand.N(300*time.Millisecond))
		p := nodes[rand.N(len(nodes))]
		if round%2 == 0 {
			p.kill()
			p.start()
			continue
		}
		p.signal(syscall.SIGSTOP)
		wait(owning + owning/3)
		p.signal(syscall.SIGCONT)
	}
	deadline := time.Now().Add(40 * time.Second)
	for {
		left, err := server.Do("ZCARD", "cx:{q}:O")
		if err == nil && left == int64(0) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("users are left: %v, %v; %+v", left, err, c.Status())
		}
		wait(50 * time.Millisecond)
	}
	for _, u := range names {
		if user, err := s.User(t.Context(), u); err != nil || user.State != router.StateDone {
			t.Errorf("%s is %s, %v", u, user.State, err)
		}
		for _, folder := range []string{"INBOX", "Archive"} {
			list, err := fresh.Messages(u, folder)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				want[u+" "+string(m.Body)]--
			}
		}
	}
	missing, twice := 0, 0
	for _, n := range want {
		missing, twice = missing+max(n, 0), twice+max(-n, 0)
	}
	if missing+twice > 0 {
		t.Errorf("%d messages are missing and %d too many of %d", missing, twice, users*messages)
	}
}

func mailsystem(t *testing.T, name string) *mailtest.Mailsystem {
	t.Helper()
	m, err := mailtest.NewMailsystem(mailtest.MailsystemConfig{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}
