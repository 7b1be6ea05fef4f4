package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
	"crossfade/router"
)

// site is a relay in this process, between two sinks.
type site struct {
	t        testing.TB
	dir      string
	old, new *mailtest.Sink
	cfg      *config.Config
	log      *lockedBuffer

	d      *Daemon
	client *admin.Client
	addr   string // SMTP
	cancel context.CancelFunc
	ended  chan error
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newSite writes the configuration; more is YAML added to it.
func newSite(t testing.TB, more string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), old: newSink(t), new: newSink(t), log: &lockedBuffer{}}
	s.configure(more)
	return s
}

func (s *site) configure(more string) {
	s.t.Helper()
	path := filepath.Join(s.dir, "crossfade.yaml")
	if err := os.WriteFile(path, []byte(faultsConfig(s.old, s.new, more)), 0o600); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if s.cfg, err = config.Load(path); err != nil {
		s.t.Fatal(err)
	}
}

// start runs a new daemon on the site's store until stop, or the test's end.
func (s *site) start() *site {
	s.t.Helper()
	if err := s.tryStart(nil); err != nil {
		s.t.Fatalf("start: %v\n%s", err, s.log.String())
	}
	return s
}

// tryStart gives the error of New, or of a Run that did not come up.
func (s *site) tryStart(change func(*Daemon)) error {
	d, err := New(s.cfg, slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelInfo})), Options{})
	if err != nil {
		return err
	}
	if change != nil {
		change(d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Started():
	case err := <-ended:
		cancel()
		return errors.Join(errors.New("run ended"), err)
	}
	s.d, s.cancel, s.ended, s.addr = d, cancel, ended, d.SMTPAddrs()[0].String()
	s.t.Cleanup(func() { s.stop() })
	tokens, err := admin.LoadTokens(s.cfg.Admin.TokenFile)
	if err != nil {
		return err
	}
	s.client, err = admin.NewClient(d.AdminURL(), tokens[0].Value())
	return err
}

// hangs is longer than any shutdown may take.
const hangs = 60 * time.Second

// stop ends the daemon and gives how long that took. Stopping twice is allowed.
func (s *site) stop() time.Duration {
	s.t.Helper()
	if s.d == nil {
		return 0
	}
	began := time.Now()
	s.cancel()
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("Run ended with: %v", err)
		}
	case <-time.After(hangs):
		b := make([]byte, 1<<20)
		s.t.Fatalf("the shutdown hangs:\n%s", b[:runtime.Stack(b, true)])
	}
	s.client.Close()
	s.d = nil
	return time.Since(began)
}

// limit is a context for one call.
func (s *site) limit() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

// send gives a message to the relay, which has to take it.
func (s *site) send(token, from string, to ...string) mail.ID {
	s.t.Helper()
	id, err := sendOne(s.limit(), s.addr, from, to, tokenMessage(token, 300))
	if err != nil {
		s.t.Fatalf("sending %s: %v", token, err)
	}
	return id
}

// set takes a user to a state by force.
func (s *site) set(user string, states ...router.State) {
	s.t.Helper()
	for _, st := range states {
		if _, err := s.client.SetState(s.limit(), user, admin.StateChange{State: st, Force: true, Reason: "test"}); err != nil {
			s.t.Fatalf("setting %s to %s: %v", user, st, err)
		}
	}
}

// rcpt waits until the first recipient of a message is as ok wants it.
func (s *site) rcpt(id mail.ID, what string, ok func(queue.Rcpt) bool) (r queue.Rcpt) {
	s.t.Helper()
	var last string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s is %s", id, last)
		}
	}()
	eventually(s.t, 15*time.Second, string(id)+" is "+what, func() bool {
		e, err := s.client.Message(s.limit(), id)
		if err != nil || len(e.Rcpts) == 0 {
			last = fmt.Sprint(err)
			return false
		}
		r = e.Rcpts[0]
		last = fmt.Sprintf("%+v", r)
		return ok(r)
	})
	return r
}

// retry makes a message due now.
func (s *site) retry(id mail.ID) {
	s.t.Helper()
	if _, err := s.client.Act(s.limit(), id, queue.DoRetry, admin.QueueAction{}); err != nil {
		s.t.Fatalf("retry %s: %v", id, err)
	}
}

// empty waits until nothing is queued.
func (s *site) empty() {
	s.t.Helper()
	var last string
	defer func() {
		if s.t.Failed() {
			text := s.log.String()
			s.t.Logf("the queue: %s\n%s", last, text[max(0, len(text)-5000):])
		}
	}()
	eventually(s.t, 30*time.Second, "the queue is empty", func() bool {
		st, err := s.client.Stats(s.limit())
		last = fmt.Sprintf("%+v %v", st.Queue, err)
		return err == nil && st.Queue.Messages == 0
	})
}

// count is how often a sink took a token.
func count(sink *mailtest.Sink, token string) (n int) {
	for _, m := range sink.Messages() {
		if f := tokenField.FindSubmatch(m.Body); f != nil && string(f[1]) == token {
			n++
		}
	}
	return n
}

// impatient makes a backend's timeouts short, which no configuration does.
func impatient(wait time.Duration) func(*Daemon) {
	return func(d *Daemon) {
		for _, r := range routes {
			t, err := target(d.cfg, r, d.log)
			if err == nil {
				t.Timeouts = smtpclient.Timeouts{
					Connect: wait, Greeting: wait, Hello: wait, Mail: wait, Rcpt: wait, Data: wait, Block: wait, Dot: wait,
				}
				err = d.backends[r].Update(t)
			}
			if err != nil {
				panic(err)
			}
		}
	}
}
