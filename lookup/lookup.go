// Package lookup answers other programs' question where a user is: a Postfix by
// its protocols socketmap and tcp_table, the mail proxy of nginx by auth_http,
// and a Dovecot proxy over HTTP from a passdb in Lua. What they are told comes
// from the state table at that moment, so an existing proxy for IMAP, POP3 or
// submission follows the same flip as the mail.
//
// It verifies no password: every answer sends the client, with the password
// that it gave, to a server that does. It keeps nothing but the addresses of
// those servers, and changes nothing.
//
// The rule for errors is the same in all protocols: who cannot be looked up now
// is a temporary failure, never an unknown user.
//
// Start reading at [Service] and at place, which is the one decision.
package lookup

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"crossfade/mail"
	"crossfade/router"

	"golang.org/x/time/rate"
)

// Protocol names a service that both sides offer to users.
type Protocol string

// The protocols. LMTP is a delivery: a user who is held has no place there.
const (
	IMAP       Protocol = "imap"
	POP3       Protocol = "pop3"
	Submission Protocol = "submission"
	Sieve      Protocol = "sieve"
	LMTP       Protocol = "lmtp"
)

// TLS says how a proxy is to speak to a server.
type TLS string

// The ways.
const (
	Clear    TLS = "none"
	StartTLS TLS = "starttls" // and not without it
	Implicit TLS = "implicit" // from the first byte
)

// Upstream is one server, as a proxy has to reach it.
type Upstream struct {
	Host string // a name or an IP address
	Port int
	TLS  TLS
}

// Sides are the servers of a protocol. Either both are there or neither is.
type Sides struct{ Old, New Upstream }

// of gives the server of a side.
func (s Sides) of(side mail.Route) Upstream {
	if side == mail.New {
		return s.New
	}
	return s.Old
}

// Transports are the answers of the Postfix table "transport", each in the
// notation of transport(5): "smtp:[old.internal]:25".
type Transports struct {
	Old, New string
	// Relay leads to Crossfade itself: for users who are held, and for groups
	// with members on both sides. Empty: Postfix is told to keep their mail.
	Relay string
}

// Settings are what can be exchanged while a Service runs.
type Settings struct {
	Upstreams  map[Protocol]Sides
	Transports Transports
	// LoginDomain completes logins without a domain; empty leaves them unknown.
	LoginDomain string
	// Networks may ask beside this machine itself.
	Networks []netip.Prefix
	// Key is what HTTP clients have to show. Empty refuses them all.
	Key string
	// NginxSMTP allows answers to nginx for SMTP. nginx has to log in at the
	// backend then (proxy_smtp_auth on): without that it takes our answer for a
	// verified password, and anybody could send.
	NginxSMTP bool
}

// Known is what the relay knows of an address that is in no table.
type Known struct {
	Exists bool
	Side   mail.Route // when it exists
	Guess  bool       // a side could not be asked: neither is certain
}

// The answers, as [Config.Answered] gets them.
const (
	AnswerFound     = "found"
	AnswerUnknown   = "unknown"   // no such user
	AnswerTemporary = "temporary" // could not be looked up now
	AnswerRefused   = "refused"   // the question was malformed or not allowed
)

// Config is what a Service is made of. Router is needed.
type Config struct {
	Router   *router.Router
	Settings Settings
	// Unknown says what is known of an address in no table when the policy is to
	// ask both sides; without one such an address counts as a user of old.
	Unknown func(ctx context.Context, addr mail.Address) Known
	// MaxConns bounds the connections of all listeners together (200).
	MaxConns int
	// IdleTime is how long a connection may be silent (2 min).
	IdleTime time.Duration
	// Timeout bounds the work for one question, and the time in which it has to
	// arrive once it began (10 s).
	Timeout time.Duration
	Logger  *slog.Logger
	// Answered is told of each answer: what was asked ("transport", "imap", ...)
	// and one of the Answer constants. It may be nil and must not block.
	Answered func(what, answer string)
}

// Service answers lookups. Its Serve methods may be called for many listeners.
type Service struct {
	cfg     Config
	log     *slog.Logger
	set     atomic.Pointer[Settings]
	slots   chan struct{}
	hosts   hosts
	loud    rate.Sometimes // failures
	refused rate.Sometimes // connections and keys
}

// New makes a Service; it starts nothing.
func New(cfg Config) (*Service, error) {
	if cfg.Router == nil {
		return nil, errors.New("lookup: there is no router")
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 200
	}
	if cfg.IdleTime <= 0 {
		cfg.IdleTime = 2 * time.Minute
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		cfg: cfg, log: cfg.Logger, slots: make(chan struct{}, cfg.MaxConns),
		loud: rate.Sometimes{Interval: time.Second}, refused: rate.Sometimes{Interval: time.Second},
	}
	s.hosts.lookup = net.DefaultResolver.LookupNetIP
	s.Update(cfg.Settings)
	return s, nil
}

// Update exchanges the settings, for questions that arrive from now on.
func (s *Service) Update(set Settings) { s.set.Store(&set) }

// answered tells what became of a question, to the log and to the metrics. err
// is nil for an answer that was found.
func (s *Service) answered(what, key string, err error) {
	answer := answerOf(err)
	if f := s.cfg.Answered; f != nil {
		f(what, answer)
	}
	if answer == AnswerTemporary {
		s.loud.Do(func() {
			s.log.Error("lookup: a question could not be answered, the program that asked will try again", "what", what, "key", key, "err", err)
		})
		return
	}
	s.log.Debug("lookup", "what", what, "key", key, "answer", answer)
}

// The errors that are definite answers. Everything else is temporary.
var (
	errNobody  = errors.New("no such user")
	errRefused = errors.New("the question is refused")
)

func answerOf(err error) string {
	switch {
	case err == nil:
		return AnswerFound
	case errors.Is(err, errNobody):
		return AnswerUnknown
	case errors.Is(err, errRefused):
		return AnswerRefused
	}
	return AnswerTemporary
}
