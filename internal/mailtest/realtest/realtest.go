// Package realtest starts the real mail programs of a Debian system for a test: Dovecot (IMAP and LMTP), Cyrus and Courier
// (IMAP), Postfix, Exim, OpenSMTPD, Courier's SMTP server, the mail proxy of nginx, smtp-source, smtp-sink, swaks and NSD (DNS). Each gets a directory of its own, free ports on the loopback address,
// and is stopped by its own process id when the test ends, also when the test's process dies.
//
// Where a program is missing the test is skipped, loudly; with CI=true in the environment it fails instead. The IMAP
// servers run as root or as any user; Postfix insists on root. Start reading at [StartDovecot] and [StartPostfix].
package realtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"crossfade/internal/freeport"
)

const (
	startTime = 15 * time.Second // how long a program may take until it answers
	stopTime  = 10 * time.Second // from SIGTERM to SIGKILL
	pollEvery = 10 * time.Millisecond
)

// packages names the Debian package of each program.
var packages = map[string]string{
	"dkimsign": "python3-dkim",
	"dovecot":  "dovecot-core dovecot-imapd dovecot-lmtpd", "postfix": "postfix", "smtp-source": "postfix", "smtp-sink": "postfix", "posttls-finger": "postfix",
	"swaks": "swaks", "openssl": "openssl", "mbsync": "isync", "nsd": "nsd", "haproxy": "haproxy", "rspamd": "rspamd", "postmap": "postfix", "nginx": "nginx libnginx-mod-mail",
	"msmtp": "msmtp", "nmap": "nmap", "unbound": "unbound", "ldns-keygen": "ldnsutils", "ldns-signzone": "ldnsutils",
}

// unpacked is where .ci/run unpacks cyrus-imapd and courier-imap. Debian installs one IMAP server only; their programs do
// not mind one another, and what they need beside themselves can all be installed.
const unpacked = "/usr/local/lib/imap-servers"

// needServer returns the path of a program of an IMAP server: where its package has it, else below [unpacked]. Courier's
// has a common name, so "owner" says a file that only the right package has beside it.
func needServer(t testing.TB, pkg, program, owner string) string {
	t.Helper()
	for _, root := range []string{"", filepath.Join(unpacked, pkg)} {
		if _, err := os.Stat(root + owner); err != nil {
			continue
		}
		if p, err := exec.LookPath(root + program); err == nil {
			return p
		}
	}
	lack(t, fmt.Sprintf("%s of the Debian package %s is neither installed nor below %s (.ci/run puts it there)", program, pkg, filepath.Join(unpacked, pkg)))
	return ""
}

// sbin is searched behind PATH, which lacks it for ordinary users.
var sbin = []string{"/usr/sbin", "/usr/local/sbin"}

// Need returns the path of a program. When it is missing the test is skipped, or fails if the environment has CI=true.
func Need(t testing.TB, program string) string {
	t.Helper()
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	for _, dir := range sbin {
		if p, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return p
		}
	}
	lack(t, fmt.Sprintf("the program %s is not installed (Debian: apt-get install %s)", program, packages[program]))
	return ""
}

// lack skips the test, or fails it in CI.
func lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s; CI must run this test", what)
	}
	t.Skipf("SKIPPED, NOT PROVEN: %s", what)
}

// needRoot is for programs that insist on it.
func needRoot(t testing.TB, program string) {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, program+" can only be started by root")
	}
}

// publicDir makes a directory that other users may enter, which the parents of t.TempDir do not allow, with a path short
// enough for unix sockets. It is removed when the test ends.
func publicDir(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cf-"+name+"-")
	if err != nil {
		t.Fatalf("make a directory for %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the directory of %s: %v", name, err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatalf("open the directory of %s: %v", name, err)
	}
	return dir
}

// FreePort returns a TCP port of 127.0.0.1 that is free, and nobody else's until the test ends: see package freeport.
func FreePort(t testing.TB) int {
	t.Helper()
	return freeport.Take(t)
}

// daemon is a program that runs in the foreground as our child.
type daemon struct {
	name string
	cmd  *exec.Cmd
	out  string        // file with its stdout and stderr
	done chan struct{} // closed when it has exited
	err  error         // of Wait, valid after done
	hard bool          // SIGTERM is of no use
}

// newDaemon prepares a program. Its output goes to a file, since a pipe would be held open by grandchildren.
func newDaemon(name, outFile string, env []string, path string, args ...string) *daemon {
	d := &daemon{name: name, cmd: exec.Command(path, args...), out: outFile, done: make(chan struct{})}
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	return d
}

// startDaemon starts a program. It gets SIGTERM when this process dies.
func startDaemon(name, outFile string, env []string, path string, args ...string) (*daemon, error) {
	d := newDaemon(name, outFile, env, path, args...)
	return d, d.launch()
}

// launch starts the program. The signal that it gets when this process dies is bound to the thread that forked, so the
// thread is kept for as long as the child lives.
func (d *daemon) launch() error {
	out, err := os.Create(d.out)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	defer func() { _ = out.Close() }()
	d.cmd.Stdout, d.cmd.Stderr = out, out
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := d.cmd.Start()
		started <- err
		if err == nil {
			d.err = d.cmd.Wait()
		}
		close(d.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	return nil
}

// stop ends the program and waits for it.
func (d *daemon) stop(t testing.TB) {
	t.Helper()
	if d.hard {
		_ = d.cmd.Process.Kill()
		<-d.done
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-d.done:
	case <-timer.C:
		t.Errorf("%s did not stop within %v of SIGTERM and was killed", d.name, stopTime)
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

// ready waits until probe succeeds, or the program has exited, or the time is over.
func (d *daemon) ready(probe func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var err error
	for {
		select {
		case <-d.done:
			return fmt.Errorf("start %s: it exited (%v): %s", d.name, d.err, logTail(d.out))
		case <-ctx.Done():
			return fmt.Errorf("start %s: no answer after %v: %w", d.name, startTime, err)
		case <-tick.C:
			if err = probe(); err == nil {
				return nil
			}
		}
	}
}

// greets is a probe: the server says something that begins with want.
func greets(addr, want string) func() error {
	return func() error {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if want == "" {
			return nil
		}
		if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		buf := make([]byte, 512)
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(buf[:n], []byte(want)) {
			return fmt.Errorf("%s greets with %q, want %q", addr, buf[:n], want)
		}
		return nil
	}
}

// logTail returns the end of a log file, for messages about a failure.
func logTail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}
