package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest/realtest"
)

// TestCommandsOfReadme runs every command of README's "A migration in ten
// minutes" against `crossfade serve`, and reloads it with a good file and with
// a broken one.
func TestCommandsOfReadme(t *testing.T) {
	beside(t)
	w := newWorld(t, 3, 9)
	anna, bert := w.users[0], w.users[1]
	smtp, api := fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t)), fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t))
	w.configure(smtp, api)
	c := &cli{t: t, program: binary(t), cfg: w.cfgPath}
	c.ok("check", "--user", anna).want(t, "ok", "logged in")
	c.ok("check").want(t, "there is no table yet: name somebody with --user")
	serve := startChild(t, c.program, w.cfgPath, w.logPath)
	t.Cleanup(func() { serve.kill(t) })
	awaitReady(t, serve, api)
	c.ok("health").want(t, "ready")

	w.write("users.csv", fmt.Sprintf("address,state\n%s,old\n%s,old\n", anna, bert))
	c.ok("user", "import", w.dir+"/users.csv").want(t, "2")
	c.ok("user", "list").want(t, anna, bert, "old")
	c.ok("check").want(t, "logged in as "+anna+"*master", "logged in as "+anna+" (by master)")
	w.write("bad.csv", fmt.Sprintf("address,state\n%s,old\nno address,old\n", w.users[2]))
	c.run(1, "user", "import", w.dir+"/bad.csv").wantErr(t, "3")
	c.ok("user", "list").lacks(t, w.users[2])

	past := len(w.old.MaildirFiles(t, anna))
	c.ok("backfill", "run", "--dry-run", anna).want(t, fmt.Sprintf("%d to copy", past), "INBOX.Lists", "made")
	c.ok("backfill", "run", anna)
	c.ok("backfill", "run", "--dry-run", anna).want(t, " 0 to copy")
	w.counted(t, "http://"+api, anna, past)
	c.ok("backfill", "status").want(t, anna, "ready")
	c.ok("backfill", "verify", anna, "--out", w.dir+"/certificates")
	c.ok("backfill", "verify", "--check", w.dir+"/certificates/"+anna+".json").want(t, "INBOX")
	c.ok("cutover", "start", anna, "--reason", "first wave")
	c.ok("cutover", "status").want(t, anna, "new", "done")
	c.ok("user", "show", anna).want(t, "new", anna)
	c.ok("queue", "list").want(t, "ID")
	if got := len(w.new.MaildirFiles(t, anna)); got != len(w.old.MaildirFiles(t, anna)) {
		t.Errorf("%d messages of %s on new, %d on old", got, anna, len(w.old.MaildirFiles(t, anna)))
	}

	c.run(1, "user", "set", bert, "new", "--reason", "no mailbox to copy").wantErr(t, "force")
	c.ok("user", "set", bert, "new", "--force", "--reason", "no mailbox to copy").want(t, bert, "new")
	c.ok("user", "history", bert).want(t, "(forced)", "no mailbox to copy")
	var history []map[string]any
	if err := json.Unmarshal([]byte(c.ok("user", "history", bert, "--json").stdout), &history); err != nil || len(history) == 0 {
		t.Errorf("user history --json: %v, %d changes", err, len(history))
	}
	c.ok("user", "show", "stranger@"+e2eDomain).want(t, "not in it")

	w.waiting(t, c, smtp, bert)
	w.reloads(t, c, serve, smtp)
	serve.signal(t, syscall.SIGTERM)
	select {
	case <-serve.done:
	case <-time.After(20 * time.Second):
		t.Error("SIGTERM does not end the relay")
	}
	if code := serve.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the relay ended with %d after SIGTERM", code)
	}
	c.run(1, "queue", "list").wantErr(t, "cannot reach")
	c.ok("check").want(t, "logged in as "+anna) // from the store, now that nobody has it open
}

// counted looks at what metrics and events say of a copy.
func (w *world) counted(t *testing.T, url, user string, copied int) {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{fmt.Sprintf("crossfade_backfill_messages_total %d", copied), `crossfade_backfill_passes_total{result="failed"} 0`,
		`crossfade_backfill_connections_open{side="old"}`, `crossfade_backfill_connections_open{side="new"}`} {
		if !strings.Contains(string(text), line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
	found := errors.New("found")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = w.dial(url).Listen(ctx, 1, nil, func(e admin.Event) error {
		var p admin.PassEvent
		if e.Kind == admin.EventPass && json.Unmarshal(e.Data, &p) == nil && p.User == user && p.Copied == copied {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		t.Errorf("no event tells of the pass: %v", err)
	}
}

// waiting looks at mail that cannot be delivered with the commands of the
// queue, and at its way afterwards.
func (w *world) waiting(t *testing.T, c *cli, smtp, user string) {
	t.Helper()
	w.new.Stop(t)
	if out, status := realtest.Swaks(t, t.Context(), smtp, "--from", "a@outside.test", "--to", user); status != 0 {
		t.Fatalf("swaks: %d\n%s", status, out)
	}
	var id string
	poll(t, 20*time.Second, "a reason in queue show", func() (bool, error) {
		var entries []struct {
			Envelope struct{ ID string }
		}
		if err := json.Unmarshal([]byte(c.ok("queue", "list", "--json").stdout), &entries); err != nil || len(entries) != 1 {
			return false, fmt.Errorf("%d messages: %w", len(entries), err)
		}
		id = entries[0].Envelope.ID
		out := c.ok("queue", "show", id).stdout
		return strings.Contains(out, "last reply:") && strings.Contains(out, user), fmt.Errorf("queue show: %s", out)
	})
	c.ok("queue", "hold", id).want(t, "1 recipient changed")
	c.ok("queue", "list", "--state", "held").want(t, id, "operator")
	c.ok("queue", "export", id).want(t, "This is a test mailing")
	w.new.Start(t)
	c.ok("queue", "release", id)
	poll(t, 40*time.Second, "released mail", func() (bool, error) {
		n := len(w.new.MaildirFiles(t, user))
		return n == 1, fmt.Errorf("%d messages", n)
	})
	poll(t, 10*time.Second, "an empty queue", func() (bool, error) {
		out := c.ok("queue", "list", "--json").stdout
		return strings.TrimSpace(out) == "[]", fmt.Errorf("queue list: %s", out)
	})
	c.ok("queue", "retry", "--all").want(t, "0 recipients changed")
}

// reloads changes the file, and breaks it.
func (w *world) reloads(t *testing.T, c *cli, serve *child, smtp string) {
	t.Helper()
	accepts := func(domain string) bool {
		out, status := realtest.Swaks(t, t.Context(), smtp, "--from", "a@outside.test", "--to", "x@"+domain, "--quit-after", "RCPT")
		if status != 0 && !strings.Contains(out, "550 ") {
			t.Fatalf("swaks: %d\n%s", status, out)
		}
		return status == 0
	}
	logged := func(text string) {
		t.Helper()
		poll(t, 10*time.Second, "the log's "+text, func() (bool, error) {
			b, err := os.ReadFile(w.logPath)
			return bytes.Contains(b, []byte(text)), err
		})
	}
	good, err := os.ReadFile(w.cfgPath)
	if err != nil {
		t.Fatal(err)
	}
	if accepts("second.test") {
		t.Error("a domain that is not configured is accepted")
	}
	changed := strings.Replace(string(good), "domains: ["+e2eDomain+"]", "domains: ["+e2eDomain+", second.test]\nrouting: {unknown: old}", 1)
	w.write("crossfade.yaml", changed)
	serve.signal(t, syscall.SIGHUP)
	logged("reload: the configuration is in force")
	if !accepts("second.test") {
		t.Error("after a reload, the new domain is refused")
	}
	w.write("crossfade.yaml", strings.Replace(changed, "domains:", "domain:", 1))
	c.run(2, "check").wantErr(t, "crossfade.yaml", "domain")
	serve.signal(t, syscall.SIGHUP)
	logged("reload: the running configuration stays")
	if !accepts("second.test") {
		t.Error("a broken file changed the running configuration")
	}
	w.write("crossfade.yaml", string(good))
	serve.signal(t, syscall.SIGHUP)
	poll(t, 10*time.Second, "the first configuration", func() (bool, error) { return !accepts("second.test"), nil })
}

// cli runs the program.
type cli struct {
	t            *testing.T
	program, cfg string
}

// said is what a command printed.
type said struct{ command, stdout, stderr string }

func (c *cli) ok(args ...string) said {
	c.t.Helper()
	return c.run(0, args...)
}

// run runs a command with -c, and wants its exit code.
func (c *cli) run(code int, args ...string) said {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.program, append(args, "-c", c.cfg)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the exit code tells
	s := said{command: strings.Join(args, " "), stdout: out.String(), stderr: errs.String()}
	if got := cmd.ProcessState.ExitCode(); got != code {
		c.t.Fatalf("crossfade %s: exit code %d, want %d\n%s%s", s.command, got, code, s.stdout, s.stderr)
	}
	return s
}

func (s said) want(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(s.stdout, text) {
			t.Errorf("crossfade %s does not print %q:\n%s%s", s.command, text, s.stdout, s.stderr)
		}
	}
}

func (s said) wantErr(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(s.stderr, text) {
			t.Errorf("crossfade %s does not say %q:\n%s", s.command, text, s.stderr)
		}
	}
}

func (s said) lacks(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(s.stdout, text) {
		t.Errorf("crossfade %s prints %q:\n%s", s.command, text, s.stdout)
	}
}
