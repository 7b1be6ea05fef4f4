package mailtest

import (
	"crypto/subtle"
	"errors"
	"strings"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-sasl"
)

// imapSession is one connection's state. The library allows each method only in the states in which it makes sense.
type imapSession struct {
	sys      *Mailsystem
	conn     *imapserver.Conn
	num      int
	user     *mailUser // nil before login
	folder   string
	box      *mailbox // nil unless a folder is open
	view     *imapserver.SessionTracker
	readOnly bool
}

var (
	_ imapserver.SessionIMAP4rev2 = (*imapSession)(nil)
	_ imapserver.SessionSASL      = (*imapSession)(nil)
)

func (m *Mailsystem) newSession(conn *imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, nil, &imap.Error{Type: imap.StatusResponseTypeBye, Text: "shutting down"}
	}
	m.conns++
	m.sessions.Add(1)
	return &imapSession{sys: m, conn: conn, num: m.conns}, nil, nil
}

// guard asks the hook about a command and then runs it, or not.
func (s *imapSession) guard(ev IMAPEvent, run func() error) error {
	s.sys.mu.Lock()
	hook := s.sys.hook
	s.sys.mu.Unlock()
	if hook == nil {
		return run()
	}
	ev.Conn = s.num
	if s.user != nil {
		ev.User = s.user.addr
	}
	err := hook(ev)
	var imapErr *imap.Error
	switch {
	case err == nil:
		return run()
	case errors.Is(err, ErrDropBefore):
		_ = s.conn.NetConn().Close()
		return err
	case errors.Is(err, ErrDropAfter):
		err = run()
		_ = s.conn.NetConn().Close()
		return err
	case errors.As(err, &imapErr):
		return imapErr
	default:
		return no(imap.ResponseCodeServerBug, err.Error())
	}
}

// Close ends the session.
func (s *imapSession) Close() error {
	defer s.sys.sessions.Done()
	return s.Unselect()
}

// Login takes a user's own password, or the master's under "user*master".
func (s *imapSession) Login(username, password string) error {
	if name, master, ok := strings.Cut(username, s.sys.cfg.MasterSeparator); ok && s.sys.cfg.MasterUser != "" {
		return s.loginAs(name, s.sys.masterOK(master, password))
	}
	u := s.sys.user(username)
	return s.loginAs(username, u != nil && same(u.password, password))
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (m *Mailsystem) masterOK(user, password string) bool {
	return m.cfg.MasterUser != "" && same(m.cfg.MasterUser, user) && same(m.cfg.MasterPassword, password)
}

func (s *imapSession) loginAs(username string, ok bool) error {
	return s.guard(IMAPEvent{Command: "LOGIN", User: username}, func() error {
		u := s.sys.user(username)
		if !ok || u == nil {
			return imapserver.ErrAuthFailed
		}
		s.user = u
		return nil
	})
}

// AuthenticateMechanisms names PLAIN, and XOAUTH2 when a token was configured.
func (s *imapSession) AuthenticateMechanisms() []string {
	if s.sys.cfg.OAuthToken != "" {
		return []string{sasl.Plain, "XOAUTH2"}
	}
	return []string{sasl.Plain}
}

// Authenticate starts a SASL exchange.
func (s *imapSession) Authenticate(mech string) (sasl.Server, error) {
	switch {
	case mech == sasl.Plain:
		return sasl.NewPlainServer(s.plain), nil
	case mech == "XOAUTH2" && s.sys.cfg.OAuthToken != "":
		return xoauth2{s}, nil
	default:
		return nil, no("", "SASL mechanism not supported")
	}
}

func (s *imapSession) plain(identity, username, password string) error {
	if identity == "" || identity == username {
		return s.Login(username, password)
	}
	return s.loginAs(identity, s.sys.masterOK(username, password))
}

// xoauth2 reads "user=NAME^Aauth=Bearer TOKEN^A^A".
type xoauth2 struct{ s *imapSession }

// Next implements sasl.Server.
func (x xoauth2) Next(resp []byte) (challenge []byte, done bool, err error) {
	if resp == nil {
		return []byte{}, false, nil
	}
	var user, token string
	for f := range strings.SplitSeq(string(resp), "\x01") {
		if v, ok := strings.CutPrefix(f, "user="); ok {
			user = v
		}
		if v, ok := strings.CutPrefix(f, "auth=Bearer "); ok {
			token = v
		}
	}
	if err := x.s.loginAs(user, same(token, x.s.sys.cfg.OAuthToken)); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// Namespace answers with the configured separator and prefix.
func (s *imapSession) Namespace() (*imap.NamespaceData, error) {
	return &imap.NamespaceData{Personal: []imap.NamespaceDescriptor{{Prefix: s.sys.cfg.Prefix, Delim: s.sys.cfg.Separator}}}, nil
}
