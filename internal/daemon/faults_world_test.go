package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest"
	"crossfade/mail"
)

const faultsDomain = "example.org"

// world is everything around a relay that is killed again and again: the store
// directory and what survives the relay in this process.
type world struct {
	t        testing.TB
	dir      string
	variant  string
	binary   string // that is started as the relay
	old, new *mailtest.Sink
	users    []string
	book     *book
	lives    []life

	mu    sync.Mutex
	child *child // nil while it is down
	up    chan struct{}
}

// life is one process on the store.
type life struct {
	start, end time.Time
	point      string // the crash point it was to die at; empty: killed from outside
	hit        bool   // it died there
	log        string // file
}

// child is a running relay.
type child struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr bytes.Buffer
	smtp   string
	client *admin.Client
	exited chan struct{}
	err    error // of the process, after exited
}

// faultsConfig is a configuration between two sinks, as an operator writes it.
func faultsConfig(old, neu *mailtest.Sink, more string) string {
	return fmt.Sprintf(`hostname: mx.%s
domains: [%[1]s]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: ["127.0.0.1:1"], max_connections_per_ip: 0}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
log: {level: warn}
backends:
  old: {smtp: "%[2]s"}
  new: {smtp: "%[3]s"}
%[4]s
`, faultsDomain, old.URL("smtp+insecure"), neu.URL("smtp+insecure"), more)
}

// plainQueue is for configurations of machines whose disks are nearly full.
const plainQueue = "queue: {min_free: 0}\nrouting: {unknown: old}"

func newWorld(t testing.TB, binary, variant string, users int) *world {
	w := &world{t: t, dir: t.TempDir(), binary: binary, variant: variant, book: newBook(), up: make(chan struct{})}
	for i := range users {
		w.users = append(w.users, fmt.Sprintf("u%d@%s", i, faultsDomain))
	}
	w.old, w.new = newSink(t), newSink(t)
	w.old.SetHook(unsteady())
	w.new.SetHook(unsteady())
	if err := os.WriteFile(filepath.Join(w.dir, "crossfade.yaml"), []byte(faultsConfig(w.old, w.new, plainQueue)), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// childBinary is this test binary. Under the race detector it is one without:
// with it a process takes seconds to start, and hundreds are started.
func childBinary(t testing.TB) string {
	t.Helper()
	if !underRace {
		return os.Args[0]
	}
	return Built(t, "daemon.test", ".", "test", "-c")
}

func newSink(t testing.TB) *mailtest.Sink {
	t.Helper()
	s, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// unsteady is a backend that is mostly well: it thinks before some dots, drops
// a reply now and then, and has bad moments.
func unsteady() mailtest.Hook {
	return func(ev mailtest.Event) mailtest.Action {
		n := rand.IntN(1000)
		switch {
		case ev.Step == mailtest.StepDot && n < 3:
			return mailtest.DropReply()
		case ev.Step == mailtest.StepDot && n < 10:
			return mailtest.Reply(451, "4.3.0 a bad moment")
		case ev.Step == mailtest.StepDot && n < 400:
			return mailtest.Action{Delay: time.Duration(rand.IntN(15_000)) * time.Microsecond}
		case ev.Step == mailtest.StepRcpt && n < 5:
			return mailtest.Reply(450, "4.2.1 a bad moment")
		}
		return mailtest.Action{}
	}
}

// start begins a life, killed at the crash point when one is given as
// NAME:COUNT. An empty result with hit set means that it died before it was up.
func (w *world) start(crash string) *child {
	w.t.Helper()
	c, err := w.launch(crash)
	if err != nil {
		w.t.Fatalf("life %d does not start: %v\n%s", len(w.lives), err, c.stderr.String())
	}
	return c
}

var errDied = errors.New("it died before it was up")

func (w *world) launch(crash string) (*child, error) {
	point, _, _ := strings.Cut(crash, ":")
	l := life{start: time.Now(), point: point, log: filepath.Join(w.dir, fmt.Sprintf("life-%04d.log", len(w.lives)))}
	w.lives = append(w.lives, l)
	c := &child{cmd: exec.Command(w.binary, "-test.run=^TestFaultsChild$"), exited: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childConfig+"="+filepath.Join(w.dir, "crossfade.yaml"), childLog+"="+l.log,
		childCrash+"="+crash, childVariant+"="+w.variant)
	c.cmd.Stderr = &c.stderr
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return c, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return c, err
	}
	if err := c.cmd.Start(); err != nil {
		return c, err
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	go func() {
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	var url string
	if _, err := fmt.Sscanf(line, "ready %s %s", &c.smtp, &url); err != nil {
		<-c.exited
		return c, fmt.Errorf("%w: %q, %v, %v", errDied, line, readErr, c.err)
	}
	tokens, err := admin.LoadTokens(filepath.Join(w.dir, "admin.token"))
	if err != nil {
		return c, err
	}
	if c.client, err = admin.NewClient(url, tokens[0].Value()); err != nil {
		return c, err
	}
	w.mu.Lock()
	w.child = c
	close(w.up)
	w.mu.Unlock()
	return c, nil
}

// ended notes the end of the present life.
func (w *world) ended(c *child, hit bool) {
	w.mu.Lock()
	if w.child == c {
		w.child = nil
		w.up = make(chan struct{})
	}
	w.mu.Unlock()
	l := &w.lives[len(w.lives)-1]
	l.end, l.hit = time.Now(), hit
	if c.client != nil {
		c.client.Close()
	}
}

// kill is SIGKILL, now.
func (w *world) kill(c *child) {
	_ = c.cmd.Process.Kill()
	<-c.exited
	w.ended(c, false)
}

// stop ends a life in good order.
func (w *world) stop(c *child) {
	w.t.Helper()
	_ = c.stdin.Close()
	select {
	case <-c.exited:
	case <-time.After(40 * time.Second):
		w.kill(c)
		w.t.Fatal("the relay does not stop")
	}
	if c.err != nil {
		w.t.Errorf("the relay stopped with %v\n%s", c.err, c.stderr.String())
	}
	w.ended(c, false)
}

// alive waits for a relay that is up; nil when ctx ends first.
func (w *world) alive(ctx context.Context) *child {
	for {
		w.mu.Lock()
		c, up := w.child, w.up
		w.mu.Unlock()
		if c != nil {
			return c
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil
		}
	}
}

// rest waits; false when ctx ended.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// eventually polls until ok tells that it is so.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for !ok() {
		if !rest(ctx, 5*time.Millisecond) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// smtpSession is a sender's connection that keeps the words of each reply.
type smtpSession struct {
	conn net.Conn
	text *textproto.Conn
}

func dialSMTP(ctx context.Context, addr string) (*smtpSession, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	s := &smtpSession{conn: conn, text: textproto.NewConn(conn)}
	if _, _, err := s.text.ReadResponse(220); err != nil {
		s.close()
		return nil, err
	}
	if _, err := s.say(250, "EHLO sender.test"); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *smtpSession) close() { _ = s.conn.Close() }

func (s *smtpSession) say(want int, format string, args ...any) (string, error) {
	if err := s.text.PrintfLine(format, args...); err != nil {
		return "", err
	}
	_, msg, err := s.text.ReadResponse(want)
	return msg, err
}

// send gives a message and returns the queue id of the 250.
func (s *smtpSession) send(from string, to []string, body []byte) (mail.ID, error) {
	if _, err := s.say(250, "MAIL FROM:<%s>", from); err != nil {
		return "", err
	}
	for _, r := range to {
		if _, err := s.say(250, "RCPT TO:<%s>", r); err != nil {
			return "", err
		}
	}
	if _, err := s.say(354, "DATA"); err != nil {
		return "", err
	}
	dw := s.text.DotWriter()
	if _, err := dw.Write(body); err != nil {
		return "", err
	}
	if err := dw.Close(); err != nil {
		return "", err
	}
	_, msg, err := s.text.ReadResponse(250)
	if err != nil {
		return "", err
	}
	_, id, _ := strings.Cut(msg, "queued as ")
	return mail.ID(strings.TrimSpace(id)), nil
}

// sendOne sends one message over a connection of its own.
func sendOne(ctx context.Context, addr, from string, to []string, body []byte) (mail.ID, error) {
	s, err := dialSMTP(ctx, addr)
	if err != nil {
		return "", err
	}
	defer s.close()
	id, err := s.send(from, to, body)
	if err == nil {
		_, _ = s.say(221, "QUIT")
	}
	return id, err
}

// traffic sends to all users from several clients until ctx ends, whatever
// becomes of the relay.
func (w *world) traffic(ctx context.Context, clients int, pause time.Duration) *sync.WaitGroup {
	var wg sync.WaitGroup
	var n atomic.Int64
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				c := w.alive(ctx)
				if c == nil {
					return
				}
				w.burst(ctx, c.smtp, &n, pause)
				rest(ctx, 2*time.Millisecond)
			}
		})
	}
	return &wg
}

// burst sends a few messages over one connection, until an error.
func (w *world) burst(ctx context.Context, addr string, n *atomic.Int64, pause time.Duration) {
	s, err := dialSMTP(ctx, addr)
	if err != nil {
		return
	}
	defer s.close()
	for range 1 + rand.IntN(10) {
		i := int(n.Add(1))
		to := []string{w.users[i%len(w.users)]}
		if i%7 == 0 {
			to = append(to, w.users[(i+1+rand.IntN(len(w.users)-1))%len(w.users)])
		}
		size := 200
		if i%60 == 0 {
			size = 1<<20 + 1000 // a file of its own in the store
		}
		token := fmt.Sprintf("tok-%07d", i)
		body := tokenMessage(token, size)
		w.book.offer(token, to, body)
		id, err := s.send("sender@outside.example", to, body)
		if err != nil {
			return
		}
		w.book.accept(token, id)
		if !rest(ctx, pause) {
			return
		}
	}
}

func tokenMessage(token string, size int) []byte {
	b := fmt.Appendf(nil, "Message-ID: <%s@sender.test>\r\nX-Token: %s\r\nSubject: t\r\n\r\n", token, token)
	line := strings.Repeat("x", 76) + "\r\n"
	return append(b, strings.Repeat(line, size/len(line)+1)...)
}
