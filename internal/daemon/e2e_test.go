package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/config"
	"crossfade/cutover"
	"crossfade/internal/daemon"
	"crossfade/internal/mailtest/realtest"
	"crossfade/router"
)

// The end-to-end tests run the whole product against real mail servers. They
// count what arrived with code of their own, which reads the servers' Maildirs
// and nothing else.

const (
	e2eDomain  = "company.test"
	e2eMaster  = "master"
	e2eSecret  = "master-secret"
	mailOwner  = 5999 // owns the mail when root starts Dovecot
	masterLine = "imap_login: {user: master, password_file: ./password, as: %q}"
)

// long tells whether the long form was asked for.
func long() bool { return os.Getenv("CROSSFADE_FAULTS") == "long" }

// beside lets a test run beside others. In the long form it is measured, and has the
// machine for itself.
func beside(t *testing.T) {
	t.Helper()
	if !long() {
		t.Parallel()
	}
}

// figure reports a result that people want to see: to the test's log, to
// stdout, and to the file that CROSSFADE_FIGURES names, because go test hides
// the output of tests that pass.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	fmt.Println(t.Name() + ": " + line)
	name := os.Getenv("CROSSFADE_FIGURES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
	_, err = fmt.Fprintln(f, t.Name()+": "+line)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
}

// world is two Dovecots with users, and a directory for the product.
type world struct {
	t        *testing.T
	dir      string
	old, new *realtest.Dovecot
	users    []string
	book     *book
	cfgPath  string
	logPath  string
}

// newWorld starts the servers and gives the users past mail on old.
func newWorld(t *testing.T, users, past int) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), book: newBook()}
	w.cfgPath, w.logPath = filepath.Join(w.dir, "crossfade.yaml"), filepath.Join(w.dir, "log")
	for i := range users {
		w.users = append(w.users, fmt.Sprintf("user%03d@%s", i+1, e2eDomain))
	}
	o := realtest.DovecotOptions{Layout: realtest.DotINBOX, LMTP: true, Users: w.users, MasterUser: e2eMaster, MasterPassword: e2eSecret}
	w.old = realtest.StartDovecot(t, o)
	o.Layout = realtest.Slash
	w.new = realtest.StartDovecot(t, o)
	for i, u := range w.users {
		fillMaildir(t, w.old.MailRoot, u, pastMail(u, i, past), w.book)
	}
	w.write("password", e2eSecret+"\n")
	t.Cleanup(func() {
		if b, err := os.ReadFile(w.logPath); err == nil && t.Failed() {
			t.Logf("the log of crossfade ends with:\n%s", b[max(0, len(b)-6000):])
		}
	})
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// configure writes the configuration as an operator would.
func (w *world) configure(smtp, api string) {
	w.t.Helper()
	w.write("crossfade.yaml", fmt.Sprintf(`hostname: mx.%s
domains: [%s]
store: ./data
smtp: {listen: [%q], resolvers: ["127.0.0.1:1"], max_connections_per_ip: 0}
admin: {listen: %q, token_file: ./admin.token}
backends:
  old:
    smtp: %s
    imap: %s
    `+masterLine+`
  new:
    smtp: %s
    imap: %s
    `+masterLine+`
queue: {min_free: 0, doubt_wait: 5s}
`, e2eDomain, e2eDomain, smtp, api, w.old.LMTPURL(), w.old.IMAPURL(), "suffix:*", w.new.LMTPURL(), w.new.IMAPURL(), "authzid"))
}

// importUsers puts users into the table; lines are those of the CSV file.
func importUsers(t *testing.T, c *admin.Client, lines []string) {
	t.Helper()
	csv := strings.Join(append([]string{"address,state,deliver,kind,target"}, lines...), "\n") + "\n"
	if _, err := c.ImportUsers(t.Context(), strings.NewReader(csv), admin.ImportOptions{Reason: "e2e"}); err != nil {
		t.Fatal(err)
	}
}

// running is a daemon inside this process.
type running struct {
	d      *daemon.Daemon
	smtp   string
	client *admin.Client
	stop   func()
}

// serve runs the daemon as `crossfade serve` would, until the test ends or
// stop is called.
func (w *world) serve() *running {
	w.t.Helper()
	cfg, err := config.Load(w.cfgPath)
	if err != nil {
		w.t.Fatal(err)
	}
	logFile, err := os.OpenFile(w.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(logFile, nil))
	d, err := daemon.New(cfg, log, daemon.Options{Version: "e2e", Reload: func() (*config.Config, error) { return config.Load(w.cfgPath) }})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Started():
	case err := <-ended:
		w.t.Fatalf("the daemon did not start: %v", err)
	}
	r := &running{d: d, smtp: d.SMTPAddrs()[0].String(), client: w.dial(d.AdminURL())}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("the daemon ended with: %v", err)
		}
		_ = logFile.Close()
	}
	w.t.Cleanup(r.stop)
	return r
}

// dial makes a client of the admin API with the token that the daemon made.
func (w *world) dial(url string) *admin.Client {
	w.t.Helper()
	tokens, err := admin.LoadTokens(filepath.Join(w.dir, "admin.token"))
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := admin.NewClient(url, tokens[0].Value())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

// poll asks until done says so, or fails the test when the time is over.
func poll(t *testing.T, limit time.Duration, what string, done func() (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		ok, err := done()
		if ok {
			return
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v (last error: %v)", what, limit, last)
		case <-tick.C:
		}
	}
}

// awaitFlip waits until a user is on new, and gives the status then.
func awaitFlip(t *testing.T, c *admin.Client, user string) (st cutover.Status) {
	t.Helper()
	poll(t, 2*time.Minute, "flipping "+user, func() (ok bool, err error) {
		if st, err = c.Move(t.Context(), user); err != nil {
			return false, err
		}
		if st.Err != "" {
			err = errors.New(st.Err)
		}
		return st.State == router.StateNew && st.Phase == cutover.PhaseDone, err
	})
	return st
}

// drain waits until the queue is empty.
func drain(t *testing.T, c *admin.Client, limit time.Duration) {
	t.Helper()
	poll(t, limit, "draining the queue", func() (bool, error) {
		page, err := c.Queue(t.Context(), admin.QueueFilter{}, "", 1)
		if err != nil {
			return false, err
		}
		if len(page.Messages) > 0 {
			return false, fmt.Errorf("left: %+v", page.Messages[0].Rcpts)
		}
		return page.Next == "", nil // a page may be empty in the middle: its message was delivered meanwhile
	})
}

// percentile gives the p-th (0 to 100) of durations, by nearest rank.
func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	all = slices.Clone(all)
	slices.Sort(all)
	return all[min(len(all)-1, (len(all)*p+99)/100-1)]
}
