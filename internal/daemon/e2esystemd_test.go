package daemon_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crossfade/internal/mailtest/realtest"
)

// nobody is a user without rights.
const nobody = 65534

// unitWorld is a directory with a configuration, for a relay that the tests start as
// systemd would.
type unitWorld struct {
	t       *testing.T
	program string
	dir     string
	smtp    string
	api     string
}

// TestAsService starts the program as systemd does.
func TestAsService(t *testing.T) {
	program := binary(t)
	t.Run("SocketActivation", func(t *testing.T) { socketActivation(t, newUnitWorld(t, program, "127.0.0.1:3")) }) // which nobody here may bind
	t.Run("WrongSockets", func(t *testing.T) { wrongSockets(t, newUnitWorld(t, program, "127.0.0.1:0")) })
	t.Run("LowPort", func(t *testing.T) { lowPort(t, program) })
}

func newUnitWorld(t *testing.T, program, smtp string) *unitWorld {
	t.Helper()
	dir, err := os.MkdirTemp("", "crossfade-unit-") // t.TempDir is below a directory that others cannot enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &unitWorld{t: t, dir: dir, smtp: smtp, api: fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t))}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	w.program = filepath.Join(dir, "crossfade")
	if err := os.WriteFile(w.program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	w.configure()
	if os.Getuid() == 0 {
		for _, name := range []string{dir, filepath.Join(dir, "crossfade.yaml")} {
			if err := os.Chown(name, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

func (w *unitWorld) configure() {
	w.t.Helper()
	text := fmt.Sprintf("hostname: mx.example.org\ndomains: [example.org]\nstore: ./data\nsmtp: {listen: [%q]}\nadmin: {listen: %q, token_file: ./admin.token}\n"+
		"backends: {old: {smtp: \"smtp+insecure://127.0.0.1:1\"}, new: {smtp: \"smtp+insecure://127.0.0.1:2\"}}\nqueue: {min_free: 0}\n", w.smtp, w.api)
	if err := os.WriteFile(filepath.Join(w.dir, "crossfade.yaml"), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// command is the relay, as nobody when the test is root. Prefix is what starts it.
func (w *unitWorld) command(caps []uintptr, prefix ...string) (*exec.Cmd, *bytes.Buffer) {
	args := append(prefix, w.program, "serve", "-c", filepath.Join(w.dir, "crossfade.yaml"))
	cmd := exec.CommandContext(w.t.Context(), args[0], args[1:]...)
	cmd.Dir = w.dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: caps}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	cmd.WaitDelay = 10 * time.Second
	return cmd, &out
}

// notices is the socket of a service manager.
func (w *unitWorld) notices() (path string, next func(want string)) {
	w.t.Helper()
	path = filepath.Join(w.dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		w.t.Fatal(err)
	}
	return path, func(want string) {
		w.t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		buf := make([]byte, 1000)
		for {
			n, err := c.Read(buf)
			if err != nil {
				w.t.Fatalf("no notice %s: %v", want, err)
			}
			if strings.Contains(string(buf[:n]), want) {
				return
			}
		}
	}
}

// greets looks whether SMTP is spoken at an address.
func greets(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "220 mx.example.org") {
		t.Errorf("greeting %q, %v", line, err)
	}
}

// socketActivation starts it with sockets that it did not
// bind, as a user without rights, and a manager that wants to know how it is.
func socketActivation(t *testing.T, w *unitWorld) {
	var files []*os.File
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addrs = append(files, f), append(addrs, l.Addr().String())
	}
	path, next := w.notices()
	// The shell becomes the program, so that LISTEN_PID is right.
	cmd, out := w.command(nil, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh")
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=smtp:admin", "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=300000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Logf("it said: %s", out)
		}
	})
	next("EXTEND_TIMEOUT_USEC=")
	next("READY=1")
	greets(t, addrs[0])
	c, err := net.Dial("tcp", addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		t.Errorf("the API: %q %v", line, err)
	}
	c.Close()
	next("WATCHDOG=1")
	next("WATCHDOG=1")
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
	if err != nil || !bytes.HasPrefix(env, []byte(w.program)) {
		t.Errorf("the process is %q, %v", env, err)
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	next("RELOADING=1\nMONOTONIC_USEC=")
	next("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	next("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("the end: %v\n%s", err, out)
	}
}

// wrongSockets: sockets that nothing would serve are refused, and so is an API in
// clear text on an address that others reach, whoever bound it.
func wrongSockets(t *testing.T, w *unitWorld) {
	for names, want := range map[string]string{"smpt": "one of smtp, admin", "smtp:smtp": "1 addresses", "admin": "would cross the network readable"} {
		var files []*os.File
		for range strings.Split(names, ":") {
			l, err := net.Listen("tcp", "0.0.0.0:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.(*net.TCPListener).File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files = append(files, f)
		}
		cmd, out := w.command(nil, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh")
		cmd.ExtraFiles = files
		cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
		if err := cmd.Run(); err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v\n%s", names, err, out)
		}
	}
}

// lowPort: a user without rights serves port 25 with CAP_NET_BIND_SERVICE alone, which
// the unit gives, with memory that is never both writable and executable; without the
// capability he is told what is missing.
func lowPort(t *testing.T, program string) {
	if os.Getuid() != 0 {
		t.Skip("only root can give and take rights")
	}
	if start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil && strings.TrimSpace(string(start)) != "1024" {
		t.Skipf("ports from %s on are free for everybody here", bytes.TrimSpace(start))
	}
	w := newUnitWorld(t, program, "127.77.12.25:25")
	cmd, out := w.command(nil)
	if err := cmd.Run(); err == nil || !strings.Contains(out.String(), "need a capability") {
		t.Errorf("without the capability: %v\n%s", err, out)
	}
	path, next := w.notices()
	caps := []uintptr{unix.CAP_NET_BIND_SERVICE}
	cmd, out = w.command(caps, mdwe(t)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	next("READY=1")
	greets(t, w.smtp)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(status), "CapEff:\t0000000000000400\n") {
		t.Errorf("it has other rights: %v\n%s", err, status)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the end: %v\n%s", err, out)
	}
}

// mdwe starts a program whose memory can never be both writable and executable, where the
// kernel (6.3) can do that by itself and there is a Perl; SQLite is the one that
// might want such memory.
func mdwe(t *testing.T) []string {
	t.Helper()
	const prctl, setMDWE = 157, 65 // amd64
	script := fmt.Sprintf(`syscall(%d, %d, 1, 0, 0, 0) == 0 or exit 77; exec @ARGV`, prctl, setMDWE)
	if err := exec.Command("perl", "-e", script, "true").Run(); err != nil {
		t.Logf("MemoryDenyWriteExecute is not tried here: %v", err)
		return nil
	}
	return []string{"perl", "-e", script}
}

// TestUnit: systemd itself finds nothing wrong with the units, and how exposed the
// service is stays below what is stated in docs/admin.md.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("systemd-analyze is missing: .ci/run installs the package systemd")
		}
		t.Skip("systemd-analyze is not here: apt-get install systemd")
	}
	dir := t.TempDir()
	for _, name := range []string{"crossfade.service", "crossfade.socket"} {
		text, err := os.ReadFile(filepath.Join("../../deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/bin/crossfade"), []byte(os.Args[0]))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	verify := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", filepath.Join(dir, "crossfade.service"), filepath.Join(dir, "crossfade.socket"))
	verify.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=warning")
	if out, err := verify.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err := exec.Command(analyze, "security", "--offline=yes", "--no-pager", filepath.Join(dir, "crossfade.service")).CombinedOutput()
	score := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
	if err != nil || score == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	t.Logf("exposure %s", score[1])
	page, err := os.ReadFile("../../docs/admin.md")
	if err != nil {
		t.Fatal(err)
	}
	stated := regexp.MustCompile(`exposure level of ([0-9.]+)`).FindSubmatch(page)
	if stated == nil {
		t.Fatal("docs/admin.md states no exposure level")
	}
	have, _ := strconv.ParseFloat(string(score[1]), 64)
	if most, _ := strconv.ParseFloat(string(stated[1]), 64); have > most {
		t.Errorf("the exposure level is %s, docs/admin.md states %s\n%s", score[1], stated[1], out)
	}
}
