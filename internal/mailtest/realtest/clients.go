package realtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Source says what smtp-source sends.
type Source struct {
	Messages int    // default 1
	Sessions int    // default 1
	Size     int    // bytes of a message; 0 means smtp-source's own
	From     string // default sender@load.test
	To       string // default u@example.org
	// Numbered puts a running number in front of each recipient's local part ("1u@example.org", -N).
	Numbered bool
	// Keep sends all messages of a session over one connection (-d).
	Keep bool
	LMTP bool
	Args []string // further arguments, in front of the address
}

// SMTPSource runs Postfix's load generator against host:port and returns what it printed. It fails the test when
// smtp-source fails, as it does at the first reply that is not what it wants.
func SMTPSource(t testing.TB, ctx context.Context, addr string, s Source) string {
	t.Helper()
	path := Need(t, "smtp-source")
	args := []string{
		"-m", strconv.Itoa(max(1, s.Messages)), "-s", strconv.Itoa(max(1, s.Sessions)),
		"-f", defaultTo(s.From, "sender@load.test"), "-t", defaultTo(s.To, "u@example.org"),
	}
	if s.Size > 0 {
		args = append(args, "-l", strconv.Itoa(s.Size))
	}
	if s.Numbered {
		args = append(args, "-N")
	}
	if s.Keep {
		args = append(args, "-d")
	}
	if s.LMTP {
		args = append(args, "-L")
	}
	args = append(append(args, s.Args...), addr)
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("smtp-source %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func defaultTo(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

// StartSMTPSink starts Postfix's smtp-sink, which accepts and forgets everything, on a free port, and returns its address.
// Arguments such as "-f", "rcpt" script its faults. It is stopped when the test ends.
func StartSMTPSink(t testing.TB, args ...string) (addr string) {
	t.Helper()
	path := Need(t, "smtp-sink")
	dir := publicDir(t, "smtpsink")
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...) // it refuses to stay root
	}
	var err error
	for range 3 {
		addr = fmt.Sprintf("127.0.0.1:%d", FreePort(t))
		var d *daemon
		d, err = startDaemon("smtp-sink", filepath.Join(dir, "out"), nil, path, append(slices.Clone(args), addr, "1024")...)
		if err != nil {
			continue
		}
		t.Cleanup(func() { d.stop(t) })
		if err = d.ready(greets(addr, "")); err == nil {
			return addr
		}
	}
	t.Fatal(err)
	return ""
}

// Swaks runs swaks against host:port with further arguments ("--from", "a@x.test", "--to", "b@y.test", "--tls") and
// returns its transcript and exit status. It never fails the test because of what the server answered.
func Swaks(t testing.TB, ctx context.Context, addr string, args ...string) (transcript string, status int) {
	t.Helper()
	path := Need(t, "swaks")
	cmd := exec.CommandContext(ctx, path, append([]string{"--server", addr, "--timeout", "20s"}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run swaks: %v\n%s", err, out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
