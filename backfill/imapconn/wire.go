package imapconn

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultIdle        = 5 * time.Minute
	defaultDialTimeout = 30 * time.Second
	defaultBuffer      = 64 << 10
	tailSize           = 2048
)

// Dialer opens connections. The zero value is ready for use.
type Dialer struct {
	// Idle is the longest silence of a server, and the longest wait for it to
	// take what is written; zero means 5 minutes.
	Idle time.Duration
	// Buffer is the size of the two buffers of a Session, in octets; zero means
	// 64 KiB. A connection that only waits needs less.
	Buffer int
	// NetDial connects; nil means a net.Dialer with 30 s.
	NetDial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (d *Dialer) idle() time.Duration {
	if d == nil || d.Idle <= 0 {
		return defaultIdle
	}
	return d.Idle
}

func (d *Dialer) buffer() int {
	if d == nil || d.Buffer <= 0 {
		return defaultBuffer
	}
	return d.Buffer
}

func (d *Dialer) connect(ctx context.Context, address string) (net.Conn, error) {
	if d != nil && d.NetDial != nil {
		return d.NetDial(ctx, "tcp", address)
	}
	nd := net.Dialer{Timeout: defaultDialTimeout}
	return nd.DialContext(ctx, "tcp", address)
}

// tlsConfig gives the configuration for a handshake with s.
func (s Server) tlsConfig() *tls.Config {
	cfg := s.TLS.Clone() // nil stays nil
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		if host, _, err := net.SplitHostPort(s.Address); err == nil {
			cfg.ServerName = host
		}
	}
	return cfg
}

// wire is the net.Conn under both engines. It sets a deadline of its own for
// each read and write and ignores those of others (go-imap knows 30 s and
// 5 min only), and it keeps the last bytes that were read, because the words
// of a BYE are lost above it.
type wire struct {
	net.Conn
	idle  atomic.Int64 // nanoseconds
	guard func() error // of the account; may be nil

	// Of reads that may end by their deadline, or by interrupt, without the
	// connection being lost; see Session.await.
	wait                 sync.Mutex
	patient, interrupted bool

	mu      sync.Mutex
	tail    []byte
	readErr error
}

func newWire(c net.Conn, idle time.Duration) *wire {
	w := &wire{Conn: c}
	w.idle.Store(int64(idle))
	return w
}

func (w *wire) deadline() time.Time { return time.Now().Add(time.Duration(w.idle.Load())) }

func (w *wire) Read(p []byte) (int, error) {
	patient, err := w.begin()
	if err != nil {
		return 0, err
	}
	n, err := w.Conn.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keep(p[:n])
	if err != nil && w.readErr == nil && !patient {
		w.readErr = err
	}
	return n, err
}

// errInterrupted is what a patient read ends with after interrupt.
var errInterrupted = errors.New("the wait was ended on this side")

// begin sets the deadline of a read, unless an interrupted wait has none.
func (w *wire) begin() (patient bool, err error) {
	w.wait.Lock()
	defer w.wait.Unlock()
	if w.patient && w.interrupted {
		return true, errInterrupted
	}
	return w.patient, w.Conn.SetReadDeadline(w.deadline())
}

func (w *wire) setPatient(yes bool) {
	w.wait.Lock()
	defer w.wait.Unlock()
	w.patient = yes
}

// interrupt ends a patient read, now or when it begins; other reads go on to
// their end. Any goroutine may call it.
func (w *wire) interrupt() {
	w.wait.Lock()
	defer w.wait.Unlock()
	w.interrupted = true
	if w.patient {
		_ = w.Conn.SetReadDeadline(time.Unix(1, 0)) // a closed connection ends the read, too
	}
}

// resume lets patient reads be again.
func (w *wire) resume() {
	w.wait.Lock()
	defer w.wait.Unlock()
	w.interrupted = false
}

func (w *wire) keep(p []byte) {
	if len(p) >= tailSize {
		w.tail = append(w.tail[:0], p[len(p)-tailSize:]...)
		return
	}
	if over := len(w.tail) + len(p) - tailSize; over > 0 {
		w.tail = append(w.tail[:0], w.tail[over:]...)
	}
	w.tail = append(w.tail, p...)
}

func (w *wire) Write(p []byte) (int, error) {
	if w.guard != nil {
		if err := w.guard(); err != nil {
			w.Conn.Close() // nobody is to wait for an answer
			return 0, err
		}
	}
	if err := w.Conn.SetWriteDeadline(w.deadline()); err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

// The deadlines of others are ignored.

func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// dropped gives the error with which reading ended, nil while it goes on. An
// error above a wire that was not dropped is one of parsing.
func (w *wire) dropped() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.readErr
}

// lastBye gives the words of the BYE among the last lines, or "".
func (w *wire) lastBye() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := bytes.Split(w.tail, []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		line := bytes.TrimRight(lines[i], "\r")
		if len(line) > 6 && strings.EqualFold(string(line[:6]), "* BYE ") {
			return printable(string(line[6:]))
		}
	}
	return ""
}

// explain adds to err what the server said last, when it said goodbye.
func (w *wire) explain(err error) error {
	if bye := w.lastBye(); bye != "" {
		return fmt.Errorf("%w: the server said goodbye: %s", err, bye)
	}
	return err
}

// printable makes a server's words fit for a log line and an error.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(s), "?"))
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "..."
	}
	return s
}

// errClosed is the error of a connection that was given up on this side.
var errClosed = errors.New("the connection is closed")
