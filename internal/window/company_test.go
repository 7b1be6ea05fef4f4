package window

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest/realtest"
	"crossfade/router"
)

const (
	domain = "company.test"
	master = "master"
	secret = "master-secret"
)

// long tells whether the long form was asked for.
func long() bool { return os.Getenv("CROSSFADE_FAULTS") == "long" }

// company is an organisation in the middle of its move: a mail system on each side, each with a Postfix that takes itself for
// the one that the domain's mail ends at, and the relay between them.
type company struct {
	t            *testing.T
	dir          string
	old, new     *system
	oldMX, newMX *realtest.Postfix
	people       []*person
	relay        *relay
	book         *book
}

// system is the mailboxes of one side.
type system struct {
	*realtest.IMAP
	lmtp  string // socket
	root  string // of the mail of a Dovecot
	login string // `+"`imap_login`"+` of the configuration
}

// servers are what a company moves between.
type servers struct{ cyrus bool }

func (s servers) start(t *testing.T, names []string) (old, neu *system) {
	t.Helper()
	dovecot := func(layout realtest.Layout) *system {
		d := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: layout, LMTP: true, Users: names, MasterUser: master, MasterPassword: secret})
		return &system{IMAP: &d.IMAP, lmtp: d.LMTPSocket, root: d.MailRoot, login: "suffix:*"}
	}
	if s.cyrus {
		// Its own suppression of duplicates would hide ours.
		c := realtest.StartCyrus(t, realtest.CyrusOptions{Classic: true, Admin: master, AdminPassword: secret, LMTP: true, Extra: "duplicatesuppression: no"})
		return &system{IMAP: &c.IMAP, lmtp: c.LMTPSocket, login: "authzid"}, dovecot(realtest.Slash)
	}
	return dovecot(realtest.DotINBOX), dovecot(realtest.Slash)
}

// person is a user and what is known of him.
type person struct {
	addr string
	wave string

	mu     sync.Mutex // held while he uses his mailbox, and while he is moved
	onNew  bool       // he reads new
	moving bool
}

// relay is the product as a process that can be killed.
type relay struct {
	t            *testing.T
	program, cfg string
	log          string
	smtp, api    string
	client       *admin.Client
	mu           sync.Mutex
	cmd          *exec.Cmd
	done         chan struct{}
	kills        int
	ended        bool
}

// found starts the servers and gives people a past.
func found(t *testing.T, s servers, people, past, waves int) *company {
	t.Helper()
	c := &company{t: t, dir: t.TempDir(), book: newBook()}
	var names []string
	for i := range people {
		p := &person{addr: fmt.Sprintf("user%03d@%s", i+1, domain), wave: fmt.Sprintf("w%d", i%waves+1)}
		c.people, names = append(c.people, p), append(names, p.addr)
	}
	c.old, c.new = s.start(t, names)
	mx := func(d *system) *realtest.Postfix {
		return realtest.StartPostfix(t, realtest.PostfixOptions{Domains: []string{domain}, Recipients: names, NextHop: "lmtp:unix:" + d.lmtp})
	}
	c.oldMX, c.newMX = mx(c.old), mx(c.new)
	for _, p := range c.people {
		c.givePast(p, past)
	}
	c.start()
	return c
}

// start configures the relay as an operator would, and starts it.
func (c *company) start() {
	t := c.t
	t.Helper()
	smtp, api := fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t))
	write(t, c.dir, "password", secret+"\n")
	write(t, c.dir, "crossfade.yaml", fmt.Sprintf(`hostname: mx.%[1]s
domains: [%[1]s]
store: ./data
smtp: {listen: [%[2]q], resolvers: ["127.0.0.1:1"], max_connections_per_ip: 0}
admin: {listen: %[3]q, token_file: ./admin.token}
backends:
  old:
    smtp: %[4]s
    imap: %[5]s
    imap_login: {user: %[8]s, password_file: ./password, as: %[9]q}
  new:
    smtp: %[6]s
    imap: %[7]s
    imap_login: {user: %[8]s, password_file: ./password, as: %[10]q}
backfill: {tail_interval: 2s}
queue: {min_free: 0, doubt_wait: 10s}
`, domain, smtp, api, c.oldMX.SMTPURL(), c.old.IMAPURL(), c.newMX.SMTPURL(), c.new.IMAPURL(), master, c.old.login, c.new.login))
	r := &relay{t: t, cfg: filepath.Join(c.dir, "crossfade.yaml"), log: filepath.Join(c.dir, "log"), smtp: smtp, api: api, program: filepath.Join(c.dir, "crossfade")}
	if out, err := exec.Command("go", "build", "-o", r.program, "crossfade/cmd/crossfade").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	c.relay = r
	t.Cleanup(func() {
		r.end()
		if b, err := os.ReadFile(r.log); err == nil && t.Failed() {
			t.Logf("the log of crossfade ends with:\n%s", b[max(0, len(b)-8000):])
		}
	})
	if err := r.start(); err != nil {
		t.Fatal(err)
	}
	tokens, err := admin.LoadTokens(filepath.Join(c.dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	if r.client, err = admin.NewClient("http://"+api, tokens[0].Value()); err != nil {
		t.Fatal(err)
	}
	lines := []string{"address,state,wave"}
	for _, p := range c.people {
		lines = append(lines, p.addr+",old,"+p.wave)
	}
	if _, err := r.client.ImportUsers(t.Context(), strings.NewReader(strings.Join(lines, "\n")+"\n"), admin.ImportOptions{Reason: "the company moves"}); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start starts the process and waits until it takes mail. It dies with this one.
func (r *relay) start() error {
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd, r.done = exec.Command(r.program, "serve", "-c", r.cfg), make(chan struct{})
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func(cmd *exec.Cmd, done chan struct{}) { // Pdeathsig is bound to the thread
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(done)
	}(r.cmd, r.done)
	if err := <-started; err != nil {
		return err
	}
	return until(r.t.Context(), time.Minute, func() error {
		select {
		case <-r.done:
			return errors.New("the relay ended instead of starting: see its log")
		default:
			return ready(r.api)
		}
	})
}

// kill ends the process as a power cut would, and starts it again.
func (r *relay) kill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil
	}
	_ = r.cmd.Process.Kill()
	<-r.done
	r.kills++
	return r.start()
}

func (r *relay) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	if r.cmd != nil && r.cmd.Process != nil {
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}

// ask runs a command of the product, again while the relay is down, and gives what it printed.
func (r *relay) ask(args ...string) (string, error) {
	args = append(args, "-c", r.cfg)
	var out []byte
	var err error
	for range 60 {
		out, err = exec.Command(r.program, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "connect") && !strings.Contains(string(out), "EOF") && !strings.Contains(string(out), "reset by peer") {
			break
		}
		sleep(r.t.Context(), 500*time.Millisecond) // it is being started again
	}
	if err != nil {
		return "", fmt.Errorf("crossfade %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// await waits until people are in a state.
func (c *company) await(people []*person, want router.State, most time.Duration) {
	c.t.Helper()
	left := append([]*person(nil), people...)
	waitFor(c.t, most, fmt.Sprintf("%d people to be %s", len(people), want), func() error {
		for len(left) > 0 {
			u, err := c.relay.client.User(c.t.Context(), left[0].addr)
			if err != nil {
				return err
			}
			if u.State != want {
				st, _ := c.relay.client.Move(c.t.Context(), left[0].addr)
				return fmt.Errorf("%d left: %s is %s: %s %s", len(left), u.Address, u.State, st.Phase, st.Err)
			}
			left = left[1:]
		}
		return nil
	})
}

// waitFor polls until f gives no error.
func waitFor(t *testing.T, most time.Duration, what string, f func() error) {
	t.Helper()
	if err := until(t.Context(), most, f); err != nil {
		t.Fatalf("waited %s for %s: %v", most, what, err)
	}
}

// until polls until f gives no error, and gives its last one when that takes too long.
func until(ctx context.Context, most time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return err
		}
		sleep(ctx, 200*time.Millisecond)
	}
}
