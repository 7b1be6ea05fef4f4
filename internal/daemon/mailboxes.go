package daemon

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/backfill/imapconn/token"
	"crossfade/config"
	"crossfade/router"
)

// mailboxes says how each user's mailbox is reached on both sides. It is
// exchanged as a whole at a reload.
type mailboxes struct {
	sides *atomic.Pointer[imapSides]
}

func atomicSides(s *imapSides) *atomic.Pointer[imapSides] {
	p := &atomic.Pointer[imapSides]{}
	p.Store(s)
	return p
}

// imapSides is what the configuration says of IMAP.
type imapSides struct {
	host     string
	old, new imapSide
}

// imapSide is one side: a server, and a way to log in.
type imapSide struct {
	name     string
	server   imapconn.Server
	as       config.LoginAs
	mech     imapconn.Mechanism
	master   string
	password config.Secret
	users    config.UserLogins
	tokens   *token.Source
	mailbox  config.Mailbox // what is read instead of IMAP; old only
	gmail    backfill.GmailLabels
}

// Job implements cutover.Mailboxes.
func (m *mailboxes) Job(u router.User) (backfill.Job, error) {
	s := m.sides.Load()
	if !s.old.mailbox.IsZero() {
		return s.jobFrom(u)
	}
	src, err := s.old.account(u.Address, u.OldLogin)
	if err != nil {
		return backfill.Job{}, err
	}
	dst, err := s.new.account(u.Address, u.NewLogin)
	if err != nil {
		return backfill.Job{}, err
	}
	return backfill.Job{User: u.Address, Source: src, Dest: dst, Host: s.host, Gmail: s.old.gmail}, nil
}

// readable tells whether the configuration says how mailboxes of this side are
// reached, over IMAP or otherwise.
func (s imapSide) readable() bool { return s.server.Address != "" || !s.mailbox.IsZero() }

// account makes the login for one user; login is the name he has on this side
// where it is not his address.
func (s imapSide) account(address, login string) (imapconn.Account, error) {
	if s.server.Address == "" && s.mailbox.Kind != config.MailboxPOP3 {
		return imapconn.Account{}, fmt.Errorf("backends.%s has no imap: without it nothing can be copied; set users by `user set STATE --force`", s.name)
	}
	if login == "" {
		login = address
	}
	a := imapconn.Account{Server: s.server}
	switch s.as.Mode {
	case config.LoginXOAuth2, config.LoginOAuthBearer:
		a.Login = imapconn.Login{User: login, Tokens: s.tokens}
	case config.LoginSuffix:
		a.Login = imapconn.Login{User: login + s.as.Separator + s.master, Password: s.password.Reveal()}
	case config.LoginUser:
		own, ok := s.users.Lookup(address)
		if !ok {
			return a, fmt.Errorf("backends.%s.imap_login.passwords_file has no line for %s", s.name, address)
		}
		if own.Login != "" {
			login = own.Login
		}
		a.Login = imapconn.Login{User: login, Password: own.Password.Reveal()}
	default:
		a.Login = imapconn.Login{User: s.master, Password: s.password.Reveal(), Authz: login}
	}
	a.Login.Mechanism = s.mech
	return a, nil
}

// loadIMAP reads what the configuration and its password files say.
func loadIMAP(cfg *config.Config) (*imapSides, error) {
	old, errOld := loadSide("old", cfg.Backends.Old)
	neu, errNew := loadSide("new", cfg.Backends.New)
	if err := errors.Join(errOld, errNew); err != nil {
		return nil, err
	}
	return &imapSides{host: cfg.Hostname, old: old, new: neu}, nil
}

// loadIMAP is [loadIMAP] with the servers' certificates noted.
func (d *Daemon) loadIMAP(cfg *config.Config) (*imapSides, error) {
	sides, err := loadIMAP(cfg)
	if err != nil {
		return nil, err
	}
	for name, side := range map[string]*imapSide{"old": &sides.old, "new": &sides.new} {
		if side.server.TLS != nil {
			d.tls.noting("backends."+name+".imap", side.server.TLS)
		}
	}
	return sides, nil
}

func loadSide(name string, b config.Backend) (imapSide, error) {
	s := imapSide{name: name, mailbox: b.Mailbox, gmail: backfill.GmailLabels(b.Gmail.Labels)}
	host := b.IMAP.Host
	if b.Mailbox.Kind == config.MailboxPOP3 {
		host = b.Mailbox.Host
	} else if b.IMAP.IsZero() {
		return s, nil
	}
	tlsConf, err := backendTLS(b.TLS, host)
	if err != nil {
		return s, fmt.Errorf("backends.%s.tls: %w", name, err)
	}
	s.server = imapconn.Server{Address: b.IMAP.Address, Mode: imapMode(b.IMAP.TLS), TLS: tlsConf}
	if b.IMAPLogin == nil {
		return s, fmt.Errorf("backends.%s.imap_login is missing", name)
	}
	s.as, s.master, s.mech = b.IMAPLogin.As, b.IMAPLogin.User, mechanism(b.IMAPLogin)
	switch {
	case s.as.Bearer():
		s.tokens, err = tokenSource("backends."+name+".imap_login.token", b.IMAPLogin.Token)
	case s.as.Mode == config.LoginUser:
		s.users, err = b.IMAPLogin.Passwords()
	default:
		s.password, err = b.IMAPLogin.Password()
	}
	if err != nil {
		return s, fmt.Errorf("backends.%s.imap_login: %w", name, err)
	}
	return s, nil
}

// mechanism is what the configuration's words mean on the wire.
func mechanism(l *config.Login) imapconn.Mechanism {
	switch {
	case l.As.Mode == config.LoginXOAuth2:
		return imapconn.MechanismXOAuth2
	case l.As.Mode == config.LoginOAuthBearer:
		return imapconn.MechanismOAuthBearer
	case l.Mechanism == config.MechanismPlain:
		return imapconn.MechanismPlain
	case l.Mechanism == config.MechanismLogin:
		return imapconn.MechanismLogin
	case l.Mechanism == config.MechanismSCRAM:
		return imapconn.MechanismSCRAM
	}
	return imapconn.MechanismAuto
}

// tokenSource makes the source of one side's tokens. Key files are read here,
// so that what is wrong with them is known at once.
func tokenSource(key string, t *config.TokenLogin) (*token.Source, error) {
	if t == nil {
		return nil, fmt.Errorf("%s is missing", key)
	}
	roots, err := t.Roots()
	if err != nil {
		return nil, err
	}
	var p token.Provider
	switch {
	case t.Google != nil:
		p, err = token.NewGoogle(t.Google.KeyFile, t.Google.Scope, roots)
	case t.Microsoft != nil:
		p, err = microsoft(t.Microsoft, roots)
	case t.File != "":
		p = token.File{Path: t.File}
	default:
		p = token.Command{Args: t.Command}
	}
	if err != nil {
		return nil, err
	}
	return token.New(key, p), nil
}

func microsoft(m *config.MicrosoftToken, roots *x509.CertPool) (*token.Microsoft, error) {
	o := token.MicrosoftOptions{
		Tenant: m.Tenant, ClientID: m.ClientID, CertFile: m.Cert, KeyFile: m.Key,
		Authority: m.Authority, Scope: m.Scope, Roots: roots,
	}
	if m.Cert == "" {
		o.Secret = func() (string, error) {
			secret, err := m.Secret()
			return secret.Reveal(), err
		}
	}
	return token.NewMicrosoft(o)
}

func imapMode(m config.TLSMode) imapconn.TLSMode {
	switch m {
	case config.TLSImplicit:
		return imapconn.TLSImplicit
	case config.TLSNone:
		return imapconn.TLSNone
	}
	return imapconn.TLSStart
}
