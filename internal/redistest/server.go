package redistest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crossfade/internal/freeport"
)

// startTime is how long a server, or a set of them, may take to get ready.
const startTime = 20 * time.Second

// Server is a redis-server that runs.
type Server struct {
	// Addr is its host and port.
	Addr string
	// Dir is its directory: its AOF lies there, and its log.
	Dir string

	t       testing.TB
	program string
	args    []string
	conf    string // its file, where it needs one
	bus     string // the port of a cluster's node for the others
	pass    string
	tls     *tls.Config

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// binary gives the path of redis-server: CROSSFADE_REDIS_SERVER where it is set,
// so that all tests can be run on another server that speaks the protocol.
func binary(t testing.TB) string {
	t.Helper()
	name := "redis-server"
	if other := os.Getenv("CROSSFADE_REDIS_SERVER"); other != "" {
		name = other
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed: the Redis store is NOT tested", name)
	}
	return path
}

// valkeyDir is where .ci/run unpacks Debian's backport of Valkey.
const valkeyDir = "/usr/local/lib/redis-servers/valkey/usr/bin"

// valkey gives the path of a valkey-server, which has what came with Redis 7.2.
func valkey(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"valkey-server", filepath.Join(valkeyDir, "valkey-server")} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CROSSFADE_VALKEY") == "required" {
		t.Fatal("valkey-server is not installed")
	}
	t.Skip("valkey-server is not installed: WAITAOF is tested against a stand-in only")
	return ""
}

// durable are the settings that the store demands, and what makes tests quick.
var durable = []string{
	"--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction",
	"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1",
}

// Start starts a server that is as durable as the store demands. args are
// added to its command line: what stands there twice counts as it stands last.
// Without a redis-server the test fails where CI is set, and is skipped
// elsewhere.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, binary(t), nil, args)
}

// StartValkey starts a valkey-server like Start; without one the test is skipped,
// and fails where CROSSFADE_VALKEY is "required".
func StartValkey(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, valkey(t), nil, args)
}

// StartTLS starts a server that speaks TLS only and demands a certificate of
// its clients. Add "--tls-auth-clients", "no" to let them go without.
func StartTLS(t testing.TB, c *Certs, args ...string) *Server {
	t.Helper()
	return start(t, binary(t), c, args)
}

func start(t testing.TB, program string, c *Certs, args []string) *Server {
	t.Helper()
	var err error
	for range 5 { // another process may have taken the port meanwhile
		s := &Server{t: t, program: program, Dir: t.TempDir(), args: slices.Concat(durable, args)}
		if i := slices.Index(args, "--requirepass"); i >= 0 {
			s.pass = args[i+1]
		}
		port := freePort(t)
		s.Addr = net.JoinHostPort("127.0.0.1", port)
		where := []string{"--port", port}
		if c != nil {
			where = []string{"--port", "0", "--tls-port", port, "--tls-cert-file", c.ServerCert, "--tls-key-file", c.ServerKey,
				"--tls-ca-cert-file", c.CA, "--tls-replication", "yes"}
			s.tls = c.Client
		}
		s.args = append(where, s.args...)
		if err = s.run(); err == nil {
			t.Cleanup(s.Kill)
			return s
		}
	}
	t.Fatal(err)
	return nil
}

func freePort(t testing.TB) string {
	t.Helper()
	return strconv.Itoa(freeport.Take(t))
}

// run starts the process and waits until it answers.
func (s *Server) run() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	args := append([]string{"--bind", "127.0.0.1", "--dir", s.Dir, "--logfile", filepath.Join(s.Dir, "log")}, s.args...)
	if s.conf != "" {
		args = append([]string{s.conf}, args...)
	}
	cmd := exec.Command(s.program, args...)
	cmd.SysProcAttr = endWithUs()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start redis-server: %w", err)
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		_ = cmd.Wait()
		close(done)
	}(s.done)
	return s.ready()
}

// ready waits until the server has loaded what it had.
func (s *Server) ready() error {
	var last error
	err := poll(startTime, func() (bool, error) {
		select {
		case <-s.done:
			return false, fmt.Errorf("redis-server ended at once: %s", s.Log(15))
		default:
		}
		_, last = s.do(time.Second, "PING")
		var said Error
		if errors.As(last, &said) {
			return !strings.HasPrefix(string(said), "LOADING"), nil // NOAUTH and the like: it is there
		}
		return last == nil, nil
	})
	if err != nil {
		_ = s.cmd.Process.Kill()
		return fmt.Errorf("redis-server %s does not get ready: %w, %w", s.Addr, err, last)
	}
	return nil
}

// poll asks until the answer is yes, or an error.
func poll(limit time.Duration, ask func() (bool, error)) error {
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-end.C:
			return fmt.Errorf("not within %v", limit)
		}
	}
}

// URL is where a store reaches the server, its password included.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", Host: s.Addr, Path: "/0"}
	if s.tls != nil {
		u.Scheme = "rediss"
	}
	if s.pass != "" {
		u.User = url.UserPassword("", s.pass)
	}
	return u.String()
}

// Kill ends the server as kill -9 does. It may be called more than once.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	if s.t.Failed() {
		s.t.Logf("redis-server %s: %s", s.Addr, s.Log(4))
	}
}

// Stop freezes the server, as a machine that hangs. Its connections stay.
func (s *Server) Stop() { s.signal(syscall.SIGSTOP) }

// Cont lets a frozen server go on.
func (s *Server) Cont() { s.signal(syscall.SIGCONT) }

// Terminate asks the server to end by itself, and waits until it has.
func (s *Server) Terminate() {
	s.signal(syscall.SIGTERM)
	s.mu.Lock()
	defer s.mu.Unlock()
	<-s.done
}

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Errorf("signal %v to redis-server %s: %v", sig, s.Addr, err)
	}
}

// Restart starts the server again on its port and its data, after a kill when
// it runs. args are added to its command line for good.
func (s *Server) Restart(args ...string) {
	s.t.Helper()
	s.Kill()
	s.args = append(s.args, args...)
	if err := s.run(); err != nil {
		s.t.Fatal(err)
	}
}

// Pid is the server's process id.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}

// Log gives the last n lines of the server's log.
func (s *Server) Log(n int) string {
	b, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// Do runs a command as the administrator, on a connection of its own. What
// Redis answers as an error is an [Error].
func (s *Server) Do(args ...any) (any, error) { return s.do(10*time.Second, args...) }

// Must is Do that ends the test on an error.
func (s *Server) Must(args ...any) any {
	s.t.Helper()
	v, err := s.Do(args...)
	if err != nil {
		s.t.Fatalf("redis-server %s: %v: %v", s.Addr, args[0], err)
	}
	return v
}

// User makes an ACL user of the rules, which are separated by spaces.
func (s *Server) User(name, rules string) {
	s.t.Helper()
	args := []any{"ACL", "SETUSER", name}
	for _, r := range strings.Fields(rules) {
		args = append(args, r)
	}
	s.Must(args...)
}

// Info gives a field of INFO; empty when there is none.
func (s *Server) Info(field string) string {
	v, err := s.Do("INFO")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(v.(string), "\n"+field+":")
	val, _, _ := strings.Cut(rest, "\r")
	return val
}

func (s *Server) do(limit time.Duration, args ...any) (any, error) {
	c, err := net.DialTimeout("tcp", s.Addr, limit)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if s.tls != nil {
		c = tls.Client(c, s.tls)
	}
	_ = c.SetDeadline(time.Now().Add(limit))
	w := newWire(c)
	var out []byte
	if s.pass != "" {
		out = encode([]any{"AUTH", s.pass})
	}
	if _, err := c.Write(append(out, encode(args)...)); err != nil {
		return nil, err
	}
	if s.pass != "" {
		if v, _, err := w.next(); err != nil {
			return nil, err
		} else if e, ok := v.(Error); ok {
			return nil, e
		}
	}
	v, _, err := w.next()
	if e, ok := v.(Error); ok {
		return nil, e
	}
	return v, err
}
