package wire

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// message is what a session was given by a Data that ended in a clean EOF.
type message struct {
	from    string
	rcpts   []string
	body    string
	settled int
	chunked bool
	info    Info
}

// server is a real go-smtp server above a guard, on a loopback socket.
type server struct {
	t    testing.TB
	l    *Listener
	addr string

	mu       sync.Mutex
	queued   []message
	failed   []error  // errors that the Readers of Session.Data returned
	paths    []string // LastPath at each MAIL and RCPT
	lines    []string // LastCommand at each MAIL and RCPT
	sessions int
	reading  int // sessions inside Data
	resets   int
	log      bytes.Buffer // what the library logged

	dataErr    error                            // what Data returns instead of nil
	direct     func(*Conn, io.Reader) io.Reader // what Data reads instead of r
	sessionErr error                            // what NewSession returns
	onData     func()                           // called when Data begins
	rcptErr    func(to string) error            // what Rcpt returns
}

type session struct {
	s     *server
	c     *Conn
	m     message
	inner *smtp.Conn
}

func (s *server) Write(p []byte) (int, error) { // the library's error log
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *server) NewSession(c *smtp.Conn) (smtp.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessionErr != nil {
		return nil, s.sessionErr
	}
	s.sessions++
	return &session{s: s, c: c.Conn().(*Conn), inner: c}, nil
}

func (s *session) note(parsed string) {
	// The guard and the library must mean the same path.
	path := s.c.LastPath()
	if got := unquotePath(path); got != parsed && !strings.EqualFold(path, "postmaster") {
		s.s.t.Errorf("line %q: the guard sees %q, the library %q", s.c.LastCommand(), got, parsed)
	}
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	s.s.paths = append(s.s.paths, s.c.LastPath())
	s.s.lines = append(s.s.lines, s.c.LastCommand())
}

// unquotePath makes of a raw path what the library makes of it.
func unquotePath(p string) string {
	if strings.HasPrefix(p, "@") {
		_, p, _ = strings.Cut(p, ":")
	}
	if !strings.HasPrefix(p, `"`) {
		return p
	}
	var local strings.Builder
	for i := 1; i < len(p); i++ {
		switch p[i] {
		case '"':
			return local.String() + p[i+1:]
		case '\\':
			i++
		}
		local.WriteByte(p[i])
	}
	return p
}

func (s *session) Reset() {
	s.s.mu.Lock()
	s.s.resets++
	s.s.mu.Unlock()
	s.m = message{}
}
func (s *session) Logout() error { return nil }
func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.note(from)
	s.m.from = from // only Reset forgets recipients
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.note(to)
	if strings.HasPrefix(to, "nobody@") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	}
	if f := s.s.rcptErr; f != nil {
		if err := f(to); err != nil {
			return err
		}
	}
	s.m.rcpts = append(s.m.rcpts, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	s.s.mu.Lock()
	s.s.reading++
	direct := s.s.direct
	s.s.mu.Unlock()
	defer func() {
		s.s.mu.Lock()
		s.s.reading--
		s.s.mu.Unlock()
	}()
	if s.s.onData != nil {
		s.s.onData()
	}
	if len(s.m.rcpts) > 0 && strings.HasPrefix(s.m.rcpts[0], "panic@") {
		panic("asked for")
	}
	if direct != nil {
		r = direct(s.c, r)
	}
	b, err := io.ReadAll(r)
	return s.done(b, err)
}

func (s *session) done(b []byte, err error) error {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	if err != nil {
		s.s.failed = append(s.s.failed, err)
		return err
	}
	if s.s.dataErr != nil {
		return s.s.dataErr
	}
	s.m.body, s.m.settled, s.m.chunked, s.m.info = string(b), s.c.LineEndsSettled(), s.c.Chunked(), s.c.Info()
	s.s.queued = append(s.s.queued, s.m)
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "queued"}
}

// start runs a server; wrap may change what the guard listens on.
func start(t testing.TB, cfg Config, with ...func(*server, *smtp.Server)) *server {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, inner, cfg, with...)
}

func startOn(t testing.TB, inner net.Listener, cfg Config, with ...func(*server, *smtp.Server)) *server {
	t.Helper()
	if cfg.Hostname == "" {
		cfg.Hostname = "mx.test"
	}
	s := &server{t: t, addr: inner.Addr().String()}
	lib := smtp.NewServer(s)
	lib.Domain = "library.test"
	lib.MaxLineLength = 0
	lib.EnableSMTPUTF8 = true
	lib.ErrorLog = log.New(s, "", 0)
	for _, w := range with {
		w(s, lib)
	}
	s.l = NewListener(inner, cfg)
	served := make(chan error, 1)
	go func() { served <- lib.Serve(s.l) }()
	t.Cleanup(func() {
		_ = lib.Close()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// eventually waits for what another goroutine does, without sleeping.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(5 * time.Second)
	defer deadline.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never happened: %s", what)
		}
	}
}

func (s *server) messages() []message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]message(nil), s.queued...)
}

func (s *server) errors() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]error(nil), s.failed...)
}

// peer is a client that says exactly what it is told to.
type peer struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func (s *server) dial() *peer {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &peer{t: s.t, conn: conn, r: bufio.NewReader(conn)}
	s.t.Cleanup(func() { _ = p.conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(8 * time.Second))
	return p
}

// greeted is a peer past EHLO.
func (s *server) greeted() *peer {
	s.t.Helper()
	p := s.dial()
	p.want("220 ")
	p.send("EHLO client.test\r\n")
	p.want("250 ")
	return p
}

func (p *peer) send(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.conn, text); err != nil {
		p.t.Fatalf("send %.40q: %v", text, err)
	}
}

// reply reads one reply and returns its last line, or "<eof>".
func (p *peer) reply() string {
	p.t.Helper()
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				p.t.Fatalf("no reply in time, only %q", line)
			}
			return "<eof>"
		}
		if !strings.HasSuffix(line, "\r\n") || len(line) < 5 {
			p.t.Fatalf("odd reply %q", line)
		}
		if line[3] == ' ' {
			return strings.TrimSuffix(line, "\r\n")
		}
	}
}

func (p *peer) want(prefixes ...string) {
	p.t.Helper()
	for _, prefix := range prefixes {
		if got := p.reply(); !strings.HasPrefix(got, prefix) {
			p.t.Fatalf("reply %q, want %q", got, prefix)
		}
	}
}

// startTLS upgrades the peer.
func (p *peer) startTLS() {
	p.t.Helper()
	p.send("STARTTLS\r\n")
	p.want("220 2.0.0")
	p.upgrade()
}

func (p *peer) upgrade() {
	p.t.Helper()
	c := tls.Client(p.conn, &tls.Config{InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		p.t.Fatal(err)
	}
	p.conn, p.r = c, bufio.NewReader(c)
}

// selfSigned makes a certificate for this test run.
func selfSigned(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func withTLS(t testing.TB, cfg Config) Config {
	cert := selfSigned(t, "mx.test")
	cfg.TLS = func() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{cert}} }
	return cfg
}

const envelope = "MAIL FROM:<a@client.test>\r\nRCPT TO:<b@ours.test>\r\n"
