package imapconn

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Session is a connection that is logged in. It is driven by an engine of our
// own, because go-imap ends its connection on data that it does not know and
// on a refused APPEND. It is not safe for use by several goroutines.
type Session struct {
	w      *wire
	br     *bufio.Reader
	bw     *bufio.Writer
	acct   Account
	caps   map[string]bool
	tags   int
	buffer int // octets of br and of bw
	broken error
	rtt    time.Duration // the shortest so far
	first  time.Duration // see FirstWait
	// forgetful: a UIDVALIDITY that EXAMINE tells may be made up, see Reader.keep.
	forgetful bool
	ctx       context.Context
	stop      func() bool
}

// Error is a command that the server answered with NO or BAD.
type Error struct {
	Command string // its name only: arguments may be secrets
	Status  string // NO or BAD
	Code    string // the response code, upper case, without its argument; may be empty
	Text    string // the server's words
}

func (e *Error) Error() string {
	code := ""
	if e.Code != "" {
		code = "[" + e.Code + "] "
	}
	return fmt.Sprintf("%s: the server answered %s %s%s", e.Command, e.Status, code, e.Text)
}

// Open connects, protects the connection as the account's server says, and
// logs in. The session ends when ctx does. A login that was refused comes back
// as *LoginError.
func (d *Dialer) Open(ctx context.Context, acct Account) (*Session, error) {
	s, err := d.open(ctx, acct)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("imap %s as %s: %w", acct.Server.Address, acct.Login.name(), err)
	}
	return s, nil
}

func (d *Dialer) open(ctx context.Context, acct Account) (*Session, error) {
	switch acct.Server.Mode {
	case TLSImplicit, TLSStart, TLSNone:
	default:
		return nil, fmt.Errorf("protection %q is unknown: say %q, %q or %q", acct.Server.Mode, TLSImplicit, TLSStart, TLSNone)
	}
	if !acct.Login.Mechanism.bearer() {
		return d.try(ctx, acct, credential{secret: acct.Login.Password})
	}
	return d.openBearer(ctx, acct)
}

// try makes one connection and one login on it.
func (d *Dialer) try(ctx context.Context, acct Account, cred credential) (*Session, error) {
	raw, err := d.connect(ctx, acct.Server.Address)
	if err != nil {
		return nil, err
	}
	s := &Session{acct: acct, buffer: d.buffer(), ctx: ctx, stop: context.AfterFunc(ctx, func() { raw.Close() })}
	if err := s.start(ctx, raw, cred, d.idle()); err != nil {
		s.stop()
		raw.Close()
		return nil, err
	}
	return s, nil
}

func (s *Session) start(ctx context.Context, raw net.Conn, cred credential, idle time.Duration) error {
	conn := raw
	if s.acct.Server.Mode == TLSImplicit {
		var err error
		if conn, err = handshake(ctx, raw, s.acct.Server); err != nil {
			return err
		}
	}
	s.attach(newWire(conn, idle))
	began := time.Now()
	greeting, err := s.next()
	s.first = time.Since(began)
	if err != nil {
		return s.w.explain(fmt.Errorf("read the greeting: %w", err))
	}
	if greeting.name == "BYE" {
		return fmt.Errorf("read the greeting: the server said goodbye: %s", greeting.words())
	}
	if greeting.name != "OK" && greeting.name != "PREAUTH" {
		return fmt.Errorf("the greeting is %s %s", printable(greeting.name), greeting.text)
	}
	s.takeCaps(greeting)
	s.forgetful = strings.Contains(greeting.text, "Courier-IMAP")
	if s.acct.Server.Mode == TLSStart {
		if err := s.startTLS(ctx, raw, greeting, idle); err != nil {
			return err
		}
	}
	if s.caps == nil {
		if err := s.capability(); err != nil {
			return err
		}
	}
	if greeting.name == "PREAUTH" {
		return errors.New("the server says that we are logged in already (PREAUTH): nobody knows as whom")
	}
	began = time.Now()
	err = s.login(cred)
	s.first = min(s.first, time.Since(began))
	return err
}

func (s *Session) attach(w *wire) {
	w.guard = s.acct.Guard
	s.w = w
	s.br = bufio.NewReaderSize(w, s.buffer)
	s.bw = bufio.NewWriterSize(w, s.buffer)
}

func handshake(ctx context.Context, raw net.Conn, srv Server) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, defaultDialTimeout)
	defer cancel()
	conn := tls.Client(raw, srv.tlsConfig())
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return conn, nil
}

func (s *Session) startTLS(ctx context.Context, raw net.Conn, greeting *response, idle time.Duration) error {
	if greeting.name == "PREAUTH" {
		return errors.New("the server says PREAUTH before STARTTLS: the connection cannot be protected")
	}
	if err := s.run(newCommand("STARTTLS"), nil); err != nil {
		return err
	}
	if s.br.Buffered() > 0 {
		return errors.New("the server sent octets behind its answer to STARTTLS: somebody may be in between")
	}
	conn, err := handshake(ctx, raw, s.acct.Server)
	if err != nil {
		return err
	}
	s.attach(newWire(conn, idle))
	s.caps = nil
	return nil
}

// Has tells whether the server offers a capability (upper case, RFC 3501, 7.2.1).
func (s *Session) Has(capability string) bool { return s.caps[capability] }

// Limit gives the largest message that APPEND takes (RFC 7889), 0 when the
// server does not say.
func (s *Session) Limit() int64 {
	for c := range s.caps {
		if v, ok := strings.CutPrefix(c, "APPENDLIMIT="); ok {
			return parseInt(v)
		}
	}
	return 0
}

func (s *Session) capability() error {
	s.caps = map[string]bool{}
	return s.run(newCommand("CAPABILITY"), nil)
}

// takeCaps takes capabilities from data and from response codes.
func (s *Session) takeCaps(r *response) {
	list := ""
	switch {
	case r.name == "CAPABILITY":
		list = string(r.rest)
	case r.code == "CAPABILITY":
		list = r.arg
	default:
		return
	}
	s.caps = map[string]bool{}
	for _, c := range strings.Fields(list) {
		s.caps[strings.ToUpper(c)] = true
	}
	if s.caps["IMAP4REV2"] && !s.caps["IMAP4REV1"] {
		// RFC 9051, appendix E: these are part of it and need not be told.
		for _, c := range []string{"NAMESPACE", "UIDPLUS", "LIST-EXTENDED", "SPECIAL-USE", "LITERAL-", "SASL-IR", "STATUS=SIZE"} {
			s.caps[c] = true
		}
	}
}

// next reads one response.
func (s *Session) next() (*response, error) {
	r, err := readResponse(s.br)
	if err != nil {
		return nil, err
	}
	if r.tag != "+" && r.name != "" {
		s.takeCaps(r)
	}
	return r, nil
}

// fail marks the session as unusable and closes its connection.
func (s *Session) fail(err error) error {
	if s.broken == nil {
		if s.ctx.Err() != nil {
			err = context.Cause(s.ctx)
		} else {
			err = s.w.explain(err)
		}
		s.broken = err
		s.w.Conn.Close()
	}
	return s.broken
}

// Close logs out and closes the connection. It does not wait for the answer,
// which changes nothing and would cost a round trip.
func (s *Session) Close() error {
	defer s.stop()
	if s.broken == nil {
		s.w.idle.Store(int64(2 * time.Second))
		_, _, _ = s.send(newCommand("LOGOUT"), nil)
	}
	s.broken = errClosed
	s.w.Conn.Close()
	return nil
}
