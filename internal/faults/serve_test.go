package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/redistest"
)

// The whole product, as processes, between two recording backends.

var served struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// product compiles the relay as `make build` does.
func product(t testing.TB) string {
	t.Helper()
	served.once.Do(func() {
		if served.dir, served.err = os.MkdirTemp("", "faults"); served.err != nil {
			return
		}
		served.path = filepath.Join(served.dir, "crossfade")
		if out, err := exec.Command("go", "build", "-o", served.path, "crossfade/cmd/crossfade").CombinedOutput(); err != nil {
			served.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if served.err != nil {
		t.Fatal(served.err)
	}
	return served.path
}

// site is some relays on one store, and those around them.
type site struct {
	t        testing.TB
	dir      string
	old, new *mailtest.Sink
	relays   []*relay
	users    []string

	mu     sync.Mutex
	sent   map[string]sent // by token
	faults []fault
	tried  atomic.Int64
}

// sent is a message that somebody offered.
type sent struct {
	to       []string
	body     []byte
	accepted bool
}

// relay is one `crossfade serve`.
type relay struct {
	name, smtp, api string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newSite starts n relays; store is a URL, or a directory when it is "./data".
func newSite(t testing.TB, store string, n int) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), sent: map[string]sent{}}
	for _, side := range []**mailtest.Sink{&s.old, &s.new} {
		sink, err := mailtest.NewSink(mailtest.SinkConfig{Hook: func(ev mailtest.Event) mailtest.Action {
			if k := rand.IntN(1000); ev.Step == mailtest.StepDot && k < 300 {
				return mailtest.Action{Delay: time.Duration(rand.IntN(15_000)) * time.Microsecond}
			} else if ev.Step == mailtest.StepDot && k < 303 {
				return mailtest.Reply(451, "4.3.0 a bad moment")
			}
			return mailtest.Action{}
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sink.Close() })
		*side = sink
	}
	for i := range 12 {
		s.users = append(s.users, fmt.Sprintf("u%d@example.org", i))
	}
	t.Cleanup(func() {
		for _, r := range s.relays {
			s.end(r, syscall.SIGKILL)
			if b, err := os.ReadFile(filepath.Join(s.dir, r.name+".log")); err == nil && t.Failed() {
				t.Logf("the log of relay %s ends with:\n%s", r.name, b[max(0, len(b)-2500):])
			}
		}
	})
	for i := range n {
		r := &relay{name: string(rune('a' + i)), smtp: freeAddr(t), api: freeAddr(t)}
		conf := fmt.Sprintf(`hostname: %s.example.org
domains: [example.org]
store: %s
node: %s
smtp: {listen: [%q], resolvers: ["127.0.0.1:1"], max_connections_per_ip: 0}
admin: {listen: %q, token_file: ./admin.token}
log: {level: warn}
backends:
  old: {smtp: %q}
  new: {smtp: %q}
queue: {min_free: 0}
routing: {unknown: %s}
`, r.name, store, r.name, r.smtp, r.api, s.old.URL("smtp+insecure"), s.new.URL("smtp+insecure"), []string{"old", "new", "old"}[i])
		if err := os.WriteFile(filepath.Join(s.dir, r.name+".yaml"), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		s.relays = append(s.relays, r)
		s.start(r)
		s.ready(r)
	}
	return s
}

func (s *site) start(r *relay) {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, r.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd, done := exec.Command(product(s.t), "serve", "-c", filepath.Join(s.dir, r.name+".yaml")), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is bound to the thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		s.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cmd, r.done = cmd, done
}

func (s *site) ready(r *relay) {
	s.t.Helper()
	r.mu.Lock()
	done := r.done
	r.mu.Unlock()
	within(s.t, 40*time.Second, "relay "+r.name+" is ready", func() bool {
		select {
		case <-done:
			s.t.Fatalf("relay %s ended instead of starting", r.name)
		default:
		}
		resp, err := http.Get("http://" + r.api + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (s *site) end(r *relay, sig syscall.Signal) {
	r.mu.Lock()
	cmd, done := r.cmd, r.done
	r.mu.Unlock()
	_ = cmd.Process.Signal(syscall.SIGCONT)
	_ = cmd.Process.Signal(sig)
	<-done
}

// kill is kill -9 of a relay, which starts again at once.
func (s *site) kill(r *relay) {
	s.t.Helper()
	began := time.Now()
	s.end(r, syscall.SIGKILL)
	s.fault(r.name, "kill -9", began)
	s.start(r)
}

func (s *site) fault(who, what string, from time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fault{from, time.Now(), who, what})
}

// traffic sends to all users over all relays until ctx ends.
func (s *site) traffic(ctx context.Context, clients int) *sync.WaitGroup {
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				s.burst(ctx, s.relays[rand.IntN(len(s.relays))].smtp)
				rest(ctx, 5*time.Millisecond)
			}
		})
	}
	return &wg
}

// burst sends a few messages over one connection, until an error.
func (s *site) burst(ctx context.Context, addr string) {
	conn, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(45 * time.Second))
	text := textproto.NewConn(conn)
	say := func(want int, format string, args ...any) bool {
		if format != "" && text.PrintfLine(format, args...) != nil {
			return false
		}
		_, _, err := text.ReadResponse(want)
		return err == nil
	}
	if !say(220, "") || !say(250, "EHLO sender.test") {
		return
	}
	for range 1 + rand.IntN(8) {
		i := int(s.tried.Add(1))
		m := sent{to: []string{s.users[i%len(s.users)]}}
		if i%7 == 0 {
			m.to = append(m.to, s.users[(i+1+rand.IntN(len(s.users)-1))%len(s.users)])
		}
		size := 3
		if i%50 == 0 {
			size = 9000 // lines
		}
		token := fmt.Sprintf("tok-%07d", i)
		m.body = []byte(fmt.Sprintf("X-Token: %s\r\nSubject: t\r\n\r\n", token) + strings.Repeat(fmt.Sprintf("%060x\r\n", rand.Uint64()), size))
		s.note(token, m)
		if !say(250, "MAIL FROM:<sender@outside.example>") {
			return
		}
		for _, r := range m.to {
			if !say(250, "RCPT TO:<%s>", r) {
				return
			}
		}
		if !say(354, "DATA") {
			return
		}
		w := text.DotWriter()
		_, err := w.Write(m.body)
		if errors.Join(err, w.Close()) != nil || !say(250, "") {
			return
		}
		m.accepted = true
		s.note(token, m)
		if !rest(ctx, 8*time.Millisecond) {
			return
		}
	}
}

func (s *site) note(token string, m sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[token] = m
}

// call asks the API of the first relay.
func (s *site) call(method, path, body string) (string, bool) {
	token, err := os.ReadFile(filepath.Join(s.dir, "admin.token"))
	if err != nil {
		return "", false
	}
	req, _ := http.NewRequest(method, "http://"+s.relays[0].api+path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+strings.Fields(string(token))[0])
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return b.String(), err == nil && resp.StatusCode == http.StatusOK
}

// queued is how many messages all relays together have, up to a hundred; -1 when
// that cannot be told.
func (s *site) queued() int {
	page, ok := s.call("GET", "/v1/queue?limit=100", "")
	if !ok {
		return -1
	}
	return strings.Count(page, `"received"`)
}

// arrival is a message that a backend took for one recipient.
type arrival struct {
	relay   string
	at      time.Time
	replied bool
	side    string
}

var (
	tokenLine = regexp.MustCompile(`(?m)^X-Token: (\S+)\r$`)
	byLine    = regexp.MustCompile(`\sby (\w)\.example\.org`)
)

// arrivals reads what the backends recorded.
func (s *site) arrivals(v *verdict) map[string][]arrival {
	got := map[string][]arrival{}
	for side, sink := range map[string]*mailtest.Sink{"old": s.old, "new": s.new} {
		for _, m := range sink.Messages() {
			f := tokenLine.FindSubmatch(m.Body)
			if f == nil {
				v.Unexpected = append(v.Unexpected, fmt.Sprintf("on %s without a token: %.200q", side, m.Body))
				continue
			}
			token := string(f[1])
			want := s.sent[token]
			if !bytes.HasSuffix(m.Body, want.body) {
				v.altered = append(v.altered, "altered: "+token)
			}
			for _, r := range m.Rcpts {
				if !slices.Contains(want.to, r.Addr) {
					v.Unexpected = append(v.Unexpected, fmt.Sprintf("%s for %s was never offered", token, r.Addr))
					continue
				}
				v.Dots++
				who, _, _ := strings.Cut(m.Helo, ".")
				got[token+" "+r.Addr] = append(got[token+" "+r.Addr], arrival{who, m.Time, r.Replied, side})
			}
		}
	}
	return got
}

// judge compares what was accepted with what arrived. A second arrival is
// explained when the backend's reply to the first was never sent, or the relay
// that sent it was hit by a fault at that moment.
func (s *site) judge(left int) *verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &verdict{left: left, why: map[string]int{}}
	got := s.arrivals(v)
	for token, m := range s.sent {
		if !m.accepted {
			v.refused++
			continue
		}
		v.Acked++
		for _, to := range m.to {
			if len(got[token+" "+to]) == 0 {
				v.Lost = append(v.Lost, token+" "+to)
			}
		}
	}
	for key, list := range got {
		slices.SortFunc(list, func(a, b arrival) int { return a.at.Compare(b.at) })
		for i, a := range list[:len(list)-1] {
			if why := s.why(a); why != "" {
				v.why[why]++
				continue
			}
			v.Duplicates = append(v.Duplicates, fmt.Sprintf("%s by %s on %s at %s and by %s on %s at %s", key, a.relay, a.side, a.at.Format(time.StampMicro),
				list[i+1].relay, list[i+1].side, list[i+1].at.Format(time.StampMicro)))
		}
	}
	return v
}

func (s *site) why(a arrival) string {
	if !a.replied {
		return "the backend's reply was never read"
	}
	for _, f := range s.faults {
		if f.who == a.relay && a.at.After(f.from.Add(-2*time.Second)) && a.at.Before(f.to.Add(200*time.Millisecond)) {
			return f.what + " between dot and settle"
		}
	}
	return ""
}

// finish waits until all is delivered and judges.
func (s *site) finish(limit time.Duration) *verdict {
	s.t.Helper()
	for _, r := range s.relays {
		s.ready(r)
	}
	left := -1
	end := time.Now().Add(limit)
	for left != 0 && time.Now().Before(end) && rest(context.Background(), 100*time.Millisecond) {
		if _, ok := s.call("POST", "/v1/queue:apply", `{"filter": {}, "action": "retry", "all": true}`); !ok {
			continue
		}
		left = s.queued()
	}
	if left != 0 {
		s.t.Errorf("%d messages are still queued after %s", left, limit)
	}
	for _, r := range s.relays {
		s.end(r, syscall.SIGTERM)
	}
	return s.judge(left)
}

// TestFaultsServe: three relays on one Redis, and either dies at any moment.
func TestFaultsServe(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	s := newSite(t, srv.URL(), 3)
	ctx, stop := context.WithCancel(t.Context())
	wg := s.traffic(ctx, 4)
	kills := times(10, 200)
	for i := range kills {
		rest(ctx, time.Duration(100+rand.IntN(300))*time.Millisecond)
		if i%5 == 4 {
			began := time.Now()
			srv.Kill()
			rest(ctx, time.Duration(rand.IntN(300))*time.Millisecond)
			srv.Restart()
			s.fault("", "Redis away", began)
			continue
		}
		r := s.relays[rand.IntN(3)]
		s.kill(r)
		if i%2 == 0 {
			s.ready(r)
		}
	}
	rest(ctx, 500*time.Millisecond)
	stop()
	wg.Wait()
	result(t, "crossfade serve: kill -9 of any of three nodes, and of Redis", "redis", kills, s.finish(3*time.Minute))
}

// TestFaultsServeFreeze: a whole relay stands still, past the end of its leases
// in the long form, and goes on.
func TestFaultsServeFreeze(t *testing.T) {
	t.Parallel()
	srv := redistest.Start(t)
	s := newSite(t, srv.URL(), 2)
	ctx, stop := context.WithCancel(t.Context())
	wg := s.traffic(ctx, 3)
	rest(ctx, time.Second)
	began := time.Now()
	r := s.relays[0]
	r.mu.Lock()
	frozen := r.cmd.Process
	r.mu.Unlock()
	_ = frozen.Signal(syscall.SIGSTOP)
	rest(ctx, time.Duration(times(3, 80))*time.Second)
	_ = frozen.Signal(syscall.SIGCONT)
	s.fault(r.name, "frozen", began)
	rest(ctx, time.Second)
	stop()
	wg.Wait()
	result(t, "crossfade serve: SIGSTOP of one of two nodes, then SIGCONT", "redis", 1, s.finish(3*time.Minute))
}

// TestFaultsServeDisk is the same for one relay on the embedded store.
func TestFaultsServeDisk(t *testing.T) {
	t.Parallel()
	s := newSite(t, "./data", 1)
	ctx, stop := context.WithCancel(t.Context())
	wg := s.traffic(ctx, 3)
	kills := times(8, 200)
	for range kills {
		rest(ctx, time.Duration(100+rand.IntN(300))*time.Millisecond)
		s.kill(s.relays[0])
		s.ready(s.relays[0])
	}
	rest(ctx, 500*time.Millisecond)
	stop()
	wg.Wait()
	result(t, "crossfade serve: kill -9", "disk", kills, s.finish(2*time.Minute))
}
