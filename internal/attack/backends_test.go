package attack

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/config"
	"crossfade/internal/daemon"
	"crossfade/internal/mailtest/realtest"
)

// backend is a real mail server behind the relay. Whatever it is given for
// anybody at example.org it keeps.
type backend struct {
	name string
	url  string // as in the configuration
	// dial connects to it without the relay, lmtp tells what it speaks then.
	network, addr string
	lmtp          bool
	// root is the directory of its mail, of which mailFile knows a message.
	root     string
	mailFile func(path string) bool
}

// starters are the backends in the order of the tables.
var starters = []struct {
	name  string
	start func(t *testing.T) *backend
}{
	{"Postfix", func(t *testing.T) *backend {
		// It takes a client at its own address for a user of its own, whose headers it completes; the relay is none.
		p := realtest.StartPostfix(t, realtest.PostfixOptions{Maildir: true, Extra: "local_header_rewrite_clients =\n"})
		return &backend{name: "Postfix", url: p.SMTPURL(), network: "tcp", addr: p.Addr, root: p.Maildir, mailFile: inMaildir}
	}},
	{"Exim", func(t *testing.T) *backend { return mta("Exim", realtest.StartExim(t, realtest.EximOptions{})) }},
	{"OpenSMTPD", func(t *testing.T) *backend { return mta("OpenSMTPD", realtest.StartOpenSMTPD(t, "example.org")) }},
	{"Courier", func(t *testing.T) *backend { return mta("Courier", realtest.StartCourierMTA(t, "example.org")) }},
	{"Cyrus LMTP", func(t *testing.T) *backend {
		c := realtest.StartCyrus(t, realtest.CyrusOptions{LMTP: true, Extra: "duplicatesuppression: no"})
		return &backend{name: "Cyrus LMTP", url: "lmtp+unix://" + c.LMTPSocket, network: "unix", addr: c.LMTPSocket, lmtp: true,
			root: c.Spool(), mailFile: inSpool}
	}},
	{"Dovecot LMTP", func(t *testing.T) *backend {
		d := realtest.StartDovecot(t, realtest.DovecotOptions{LMTP: true, MailFsync: "never"})
		return &backend{name: "Dovecot LMTP", url: d.LMTPURL(), network: "unix", addr: d.LMTPSocket, lmtp: true, root: d.MailRoot, mailFile: inMaildir}
	}},
}

func mta(name string, m *realtest.MTA) *backend {
	return &backend{name: name, url: m.SMTPURL(), network: "tcp", addr: m.Addr, root: m.Maildir, mailFile: inMaildir}
}

func inMaildir(path string) bool {
	dir := filepath.Base(filepath.Dir(path))
	return dir == "new" || dir == "cur"
}

// inSpool knows the files of Cyrus: a number and a dot.
func inSpool(path string) bool {
	name := filepath.Base(path)
	return len(name) > 1 && strings.Trim(name[:len(name)-1], "0123456789") == "" && name[len(name)-1] == '.' && !strings.Contains(path, "stage.")
}

// files are the messages that a backend has.
func (b *backend) files() (out []string, err error) {
	err = filepath.WalkDir(b.root, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // a file that moved from new to cur meanwhile
		}
		if err == nil && !e.IsDir() && b.mailFile(path) {
			out = append(out, path)
		}
		return err
	})
	return out, err
}

// kept is a message in a mailbox, with CRLF line ends however the server writes
// them.
type kept struct {
	raw  []byte
	file string
}

// mail reads all messages, by subject; bounces by the subject of what bounced.
func (b *backend) mail() (map[string][]kept, error) {
	files, err := b.files()
	out := map[string][]kept{}
	for _, f := range files {
		raw, rerr := os.ReadFile(f)
		if rerr != nil {
			return nil, rerr
		}
		if first := bytes.IndexByte(raw, '\n'); first > 0 && raw[first-1] != '\r' {
			raw = bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
		}
		s := subject(raw)
		if s == "Undelivered mail returned to sender" {
			_, inner, _ := bytes.Cut(raw, []byte("rfc822-headers\r\n"))
			s = "bounce of " + subject(append(inner, "\r\n\r\n"...))
		}
		out[s] = append(out[s], kept{raw, f})
	}
	return out, err
}

// front is a relay in front of a backend, run as `crossfade serve` would.
type front struct {
	t    *testing.T
	smtp string
	d    *daemon.Daemon
}

// startFront starts a relay that sends all mail of example.org to a URL. more
// are further lines of the configuration, smtp further keys of that section.
func startFront(t *testing.T, url, smtp, more string) *front {
	t.Helper()
	return startFrontOf(t, fmt.Sprintf("smtp: %q", url), smtp, more)
}

// startFrontOf is startFront with more keys for the backend old than its URL.
func startFrontOf(t *testing.T, old, smtp, more string) *front {
	t.Helper()
	dir := t.TempDir()
	if !strings.Contains(smtp, "authentication:") {
		smtp = ", authentication: {verify: false}" + smtp
	}
	text := fmt.Sprintf(`hostname: mx.example.org
domains: [example.org]
store: ./data
smtp: {listen: ["127.0.0.1:0"], max_connections: 5000, max_connections_per_ip: 0%s}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old: {%s}
  new: {smtp: "smtp://127.0.0.1:9"}
routing: {unknown: old}
queue: {min_free: 0}
%s`, smtp, old, more)
	path := filepath.Join(dir, "crossfade.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedLog{}
	d, err := daemon.New(cfg, slog.New(slog.NewTextHandler(log, nil)), daemon.Options{Version: "attack"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Started():
	case err := <-ended:
		cancel()
		t.Fatalf("the relay did not start: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the relay ended with: %v", err)
		}
		if t.Failed() {
			t.Logf("the log of the relay ends with:\n%s", log.tail())
		}
	})
	return &front{t: t, d: d, smtp: d.SMTPAddrs()[0].String()}
}

// lockedLog is a log that can be read while it is written.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b.Bytes()
	return string(b[max(0, len(b)-3000):])
}

// until polls until f gives no error.
func until(t *testing.T, most time.Duration, what string, f func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(most)
	defer late.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("waited %s for %s: %v", most, what, err)
		}
	}
}

// each runs f for all of a list, some at once, and gives what went wrong.
func each[T any](list []T, atOnce int, f func(T) error) []error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	next := make(chan T)
	for range atOnce {
		wg.Go(func() {
			for x := range next {
				if err := f(x); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, x := range list {
		next <- x
	}
	close(next)
	wg.Wait()
	return errs
}
