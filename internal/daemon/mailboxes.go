package daemon

import (
	"errors"
	"fmt"
	"sync/atomic"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
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
	master   string
	password config.Secret
	users    config.UserLogins
}

// Job implements cutover.Mailboxes.
func (m *mailboxes) Job(u router.User) (backfill.Job, error) {
	s := m.sides.Load()
	src, err := s.old.account(u.Address, u.OldLogin)
	if err != nil {
		return backfill.Job{}, err
	}
	dst, err := s.new.account(u.Address, u.NewLogin)
	if err != nil {
		return backfill.Job{}, err
	}
	return backfill.Job{User: u.Address, Source: src, Dest: dst, Host: s.host}, nil
}

// account makes the login for one user; login is the name he has on this side
// where it is not his address.
func (s imapSide) account(address, login string) (imapconn.Account, error) {
	if s.server.Address == "" {
		return imapconn.Account{}, fmt.Errorf("backends.%s has no imap: without it nothing can be copied; set users by `user set STATE --force`", s.name)
	}
	if login == "" {
		login = address
	}
	a := imapconn.Account{Server: s.server}
	switch s.as.Mode {
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

func loadSide(name string, b config.Backend) (imapSide, error) {
	s := imapSide{name: name}
	if b.IMAP.IsZero() {
		return s, nil
	}
	tlsConf, err := backendTLS(b.TLS, b.IMAP.Host)
	if err != nil {
		return s, fmt.Errorf("backends.%s.tls: %w", name, err)
	}
	s.server = imapconn.Server{Address: b.IMAP.Address, Mode: imapMode(b.IMAP.TLS), TLS: tlsConf}
	if b.IMAPLogin == nil {
		return s, fmt.Errorf("backends.%s.imap_login is missing", name)
	}
	s.as, s.master = b.IMAPLogin.As, b.IMAPLogin.User
	if s.as.Mode == config.LoginUser {
		s.users, err = b.IMAPLogin.Passwords()
	} else {
		s.password, err = b.IMAPLogin.Password()
	}
	if err != nil {
		return s, fmt.Errorf("backends.%s.imap_login: %w", name, err)
	}
	return s, nil
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
