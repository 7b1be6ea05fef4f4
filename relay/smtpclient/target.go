package smtpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Mode says when a connection is encrypted.
type Mode int

// The modes.
const (
	// Opportunistic uses STARTTLS when it is offered, without verifying the
	// certificate, and clear text when it is not or when it fails: it defends
	// against who only listens (RFC 7435).
	Opportunistic Mode = iota
	// Required uses STARTTLS, verifies the certificate and sends nothing else.
	Required
	// Implicit is TLS from the first byte, verified (RFC 8314, 3.3).
	Implicit
	// Insecure never encrypts.
	Insecure
)

// String names the mode for logs.
func (m Mode) String() string {
	if m < Opportunistic || m > Insecure {
		return fmt.Sprintf("mode %d", int(m))
	}
	return [...]string{"opportunistic", "starttls", "implicit", "insecure"}[m]
}

// Timeouts bound each step of a session. A zero field is the value that
// [DefaultTimeouts] has there.
type Timeouts struct {
	Connect  time.Duration // TCP or unix connection
	Greeting time.Duration // the first 220
	Hello    time.Duration // EHLO, HELO, LHLO and the TLS handshake
	Mail     time.Duration
	Rcpt     time.Duration // also RSET
	Data     time.Duration // the 354
	Block    time.Duration // one write
	Dot      time.Duration // the reply to the final dot; per recipient in LMTP
	Quit     time.Duration
}

// DefaultTimeouts are those of RFC 5321, 4.5.3.2.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		Connect: 30 * time.Second, Greeting: 5 * time.Minute, Hello: 5 * time.Minute, Mail: 5 * time.Minute,
		Rcpt: 5 * time.Minute, Data: 2 * time.Minute, Block: 3 * time.Minute, Dot: 10 * time.Minute, Quit: 2 * time.Second,
	}
}

func (t Timeouts) filled() Timeouts {
	d := DefaultTimeouts()
	for _, f := range []struct{ have, def *time.Duration }{
		{&t.Connect, &d.Connect}, {&t.Greeting, &d.Greeting}, {&t.Hello, &d.Hello}, {&t.Mail, &d.Mail}, {&t.Rcpt, &d.Rcpt},
		{&t.Data, &d.Data}, {&t.Block, &d.Block}, {&t.Dot, &d.Dot}, {&t.Quit, &d.Quit},
	} {
		if *f.have <= 0 {
			*f.have = *f.def
		}
	}
	return t
}

// Target is a server and the way to speak to it.
type Target struct {
	Network string // "tcp" (also when empty) or "unix"
	Address string // host:port, or the path of a socket
	LMTP    bool   // LHLO, and a reply per recipient after the dot
	Mode    Mode
	// TLS is cloned, never changed. Nil means the system's roots. An empty
	// ServerName becomes the host of Address.
	TLS *tls.Config
	// Pinned says that TLS checks the server although it skips the usual ways.
	Pinned bool
	// Policy is asked before each connection for what its owner demands of TLS; nil:
	// nothing. It is not asked with mode Insecure, nor for a socket.
	Policy func(ctx context.Context) (Rule, error)
	// TLSResult is told how TLS fared on each connection that got as far, with the
	// name of the rule: nil, or why there was no (valid) TLS, or would be none if the
	// rule was not only tested. It must not block.
	TLSResult func(rule string, err error)
	rule      Rule // of this connection

	Hello string // our name in EHLO; empty means localhost
	// Login gives the name and the password of AUTH for each new connection; nil
	// does not log in. Without TLS it is not used, unless ClearLogin allows that.
	Login      func() (user, password string, err error)
	ClearLogin bool
	Timeouts   Timeouts
	// Origin says how the server is told which client a message came from.
	Origin OriginMode
	// DialContext opens the connection; nil means a net.Dialer.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	Logger      *slog.Logger // nil discards
}

// String gives the target in the form of the configuration's URLs.
func (t Target) String() string {
	scheme := "smtp"
	if t.LMTP {
		scheme = "lmtp"
	}
	switch {
	case t.Network == "unix":
		scheme += "+unix"
	case t.Mode == Required:
		scheme += "+starttls"
	case t.Mode == Implicit:
		scheme += "s"
	case t.Mode == Insecure && !t.LMTP:
		scheme += "+insecure"
	}
	return scheme + "://" + t.Address
}

// filled puts the defaults into empty fields and refuses what cannot work.
func (t Target) filled() (Target, error) {
	if t.Address == "" {
		return t, errors.New("the target has no address")
	}
	if t.Network == "" {
		t.Network = "tcp"
	}
	if t.Hello == "" {
		t.Hello = "localhost"
	}
	for i := 0; i < len(t.Hello); i++ {
		if c := t.Hello[i]; c <= ' ' || c >= 0x7f {
			return t, fmt.Errorf("the name %q for EHLO is not a host name in ASCII", t.Hello)
		}
	}
	if t.DialContext == nil {
		t.DialContext = (&net.Dialer{}).DialContext
	}
	if t.Logger == nil {
		t.Logger = slog.New(slog.DiscardHandler)
	}
	t.Timeouts = t.Timeouts.filled()
	return t, nil
}

func (t Target) tlsConfig() *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.TLS != nil {
		cfg = t.TLS.Clone()
	}
	if cfg.ServerName == "" {
		cfg.ServerName = t.Address
		if host, _, err := net.SplitHostPort(t.Address); err == nil {
			cfg.ServerName = host
		}
	}
	if t.Mode == Opportunistic {
		// A certificate that does not verify is still better than the clear
		// text that would be sent instead.
		cfg.InsecureSkipVerify = true
	}
	return cfg
}
