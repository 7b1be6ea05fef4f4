package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/limit"
	"crossfade/relay/wire"
	"crossfade/router"

	"github.com/emersion/go-smtp"
	"golang.org/x/time/rate"
)

// Defaults of [Limits].
const (
	DefaultMaxMessageSize = 50 << 20 // octets
	DefaultMaxRecipients  = 1000     // RFC 5321, 4.5.3.1.8, asks for 100 and more
	// DefaultMaxHeaderFields is ten times what the longest real headers have, and
	// few enough for whatever looks at each of them.
	DefaultMaxHeaderFields = 10000
)

// Limits bounds what one transaction may hold. A zero field has its default.
type Limits struct {
	// MaxMessageSize is the largest message in octets, as it is sent, our trace
	// header not counted. A message of exactly this size passes.
	MaxMessageSize int64
	// MaxRecipients is the number of accepted RCPT commands in one transaction.
	MaxRecipients int
	// MaxHeaderFields is the number of header fields of one message (10,000); a
	// negative one is no limit.
	MaxHeaderFields int
	// ResolveTimeout bounds the work for one RCPT, both sides asked included
	// (30 s).
	ResolveTimeout time.Duration
}

// ServerMetrics are told what happens. Each may be nil; they must not block.
type ServerMetrics struct {
	// Received is called when a message is on stable storage: its octets, its
	// recipients, and the time from the end of its data to the reply.
	Received func(size int64, rcpts int, wait time.Duration)
	// Refused is called for each refused MAIL, RCPT or message with the stage
	// ("mail", "rcpt", "data") and the code of the reply.
	Refused func(stage string, code int)
	// Limited is called when a limit for one client is reached, with its name: a
	// constant of package limit, "slowed" for a reply that was kept back, or
	// "header_fields".
	Limited func(name string)
	// Forged is called with the number of Authentication-Results fields in our name
	// that were taken out of an accepted message.
	Forged func(fields int)
	// Stripped is called with the number of fields named by ServerConfig.Verdicts
	// that were taken out of an accepted message.
	Stripped func(fields int)
}

// ServerConfig is what a Server is made of. Hostname, Router and Queue are
// needed.
type ServerConfig struct {
	Hostname string
	Router   *router.Router
	Queue    queue.Enqueuer
	// Verifier asks both sides about addresses in no table; without one such an
	// address is accepted for the old side.
	Verifier *Verifier
	Limits   Limits
	// Guard bounds connections, rates and unknown recipients of clients; nil: one
	// with 1,000 connections at once, 50 of each host, and no rates. It is not
	// asked about the messages of trusted clients when its settings say so.
	Guard *limit.Guard
	// Welcome is how strangers are received, until SetWelcome says otherwise.
	Welcome Welcome
	// Wire bounds commands and waiting times. The Server fills in
	// what follows from this configuration: host name, extensions, postmaster,
	// TLS, door, overload (unless given) and logger.
	Wire wire.Config
	// Side tells which of the two mail systems a client's address belongs to;
	// empty: none, or both. Nil knows nobody. A message that comes back to the
	// side that it comes from is recognised by it.
	Side func(netip.Addr) mail.Route
	// RelaysOut tells whether a client's mail for addresses outside is taken, for
	// the route out, when it is trusted (by Wire.Trusted, its certificate or a login) besides.
	// Nil never does.
	RelaysOut func(client wire.Info) bool
	// TLS gives the configuration of one handshake, so that certificates can
	// change; nil, or a nil result, offers no STARTTLS.
	TLS func() *tls.Config
	// AskTLS is TLS for listeners that ask clients for a certificate, and
	// ClientCert tells whether the one that came makes the client trusted.
	AskTLS     func() *tls.Config
	ClientCert func(*tls.ConnectionState) bool

	// RequireTLS offers REQUIRETLS (RFC 8689) to clients under TLS.
	RequireTLS bool

	// Verdicts are the names of header fields that are taken out of messages of
	// strangers and of those who have logged in, in small letters; with * at the end,
	// all that begin so.
	Verdicts []string
	// Inspectors look at every message, in this order.
	Inspectors []Inspector
	Logger     *slog.Logger
	Metrics    ServerMetrics
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// ErrServerClosed is what Serve returns after Shutdown was called before it.
var ErrServerClosed = errors.New("relay: the server was shut down")

// Server takes mail in. Serve may be called for several listeners.
type Server struct {
	cfg  ServerConfig
	wire wire.Config
	smtp *smtp.Server
	log  *slog.Logger
	loud *slog.Logger // for what strangers can make us write: it is bounded
	by   string       // of our Received header: "HOSTNAME (Crossfade)"
	sick rate.Sometimes

	welcome atomic.Pointer[Welcome]
	// loops are those that strangers hand over, and that are parked. Anybody can
	// write a header, so they are bounded.
	loops *rate.Limiter

	ownResults string // our name as forgedFilter compares it

	// ctx ends when Shutdown has run out of patience.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	open   []*wire.Listener
	closed bool
}

// strangeLoops is how many messages of strangers that were here before are taken in
// to be parked, in an hour. More are told to come later.
const strangeLoops = 100

// NewServer makes a Server; it starts nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Hostname == "" || cfg.Router == nil || cfg.Queue == nil {
		return nil, errors.New("relay: a server needs a hostname, a router and a queue")
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Guard == nil {
		cfg.Guard = limit.New(limit.Settings{PerHost: 50, Ours: cfg.Wire.Trusted})
	}
	s := &Server{cfg: cfg, log: cfg.Logger, by: cfg.Hostname + " " + traceMark, sick: rate.Sometimes{Interval: time.Second}, ownResults: skeleton(cfg.Hostname)}
	s.loops = rate.NewLimiter(rate.Every(time.Hour/strangeLoops), strangeLoops)
	s.loud = slog.New(limit.Quiet(s.log.Handler()))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.SetWelcome(cfg.Welcome)
	// It stands first: what it says is about the client, whatever the message is.
	s.cfg.Inspectors = append([]Inspector{listTagger{s}}, cfg.Inspectors...)
	s.wire = s.wireConfig()
	s.smtp = smtp.NewServer(smtp.BackendFunc(s.newSession))
	s.smtp.Domain = cfg.Hostname
	// One more than the limit, so that our checks of SIZE and of the body come
	// first: the library refuses a message of exactly its limit.
	s.smtp.MaxMessageBytes = cfg.Limits.MaxMessageSize + 1
	s.smtp.MaxLineLength = 0 // lines are bounded by wire
	s.smtp.EnableSMTPUTF8 = true
	s.smtp.EnableDSN = true
	s.smtp.EnableREQUIRETLS = cfg.RequireTLS
	s.smtp.ErrorLog = libraryLog{s.loud}
	return s, nil
}

func (l Limits) withDefaults() Limits {
	if l.MaxMessageSize <= 0 {
		l.MaxMessageSize = DefaultMaxMessageSize
	}
	if l.MaxRecipients <= 0 {
		l.MaxRecipients = DefaultMaxRecipients
	}
	if l.MaxHeaderFields == 0 {
		l.MaxHeaderFields = DefaultMaxHeaderFields
	}
	if l.ResolveTimeout <= 0 {
		l.ResolveTimeout = 30 * time.Second
	}
	return l
}

func (s *Server) wireConfig() wire.Config {
	w := s.cfg.Wire
	w.Hostname = s.cfg.Hostname
	w.Extensions = []string{
		"PIPELINING", "SIZE " + strconv.FormatInt(s.cfg.Limits.MaxMessageSize, 10), "8BITMIME", "SMTPUTF8",
		"CHUNKING", "ENHANCEDSTATUSCODES", "DSN", "LIMITS RCPTMAX=" + strconv.Itoa(s.cfg.Limits.MaxRecipients),
	}
	if s.cfg.RequireTLS {
		w.SecureExtensions = []string{"REQUIRETLS"}
	}
	w.Postmaster = "postmaster@" + s.cfg.Hostname
	w.TLS = s.cfg.TLS
	if w.Counts == nil {
		w.Counts = &wire.Counts{}
	}
	w.GreetDelay = s.greetDelay
	w.Known = func(a netip.Addr) bool { return s.cfg.Guard.Ours(a) || s.cfg.Guard.Knows(a) }
	w.Door = s.cfg.Guard // the limits are of the server, not of one listener
	if w.MaxBody == 0 {
		// Somebody who sends on and on after the limit is not a mail server.
		w.MaxBody = 2*s.cfg.Limits.MaxMessageSize + 1<<20
	}
	if w.Overload == nil {
		w.Overload = s.overload
	}
	if w.Logger == nil {
		w.Logger = s.loud
	}
	return w
}

// overload keeps clients away from a store that is sick. One that is full says
// so at MAIL, where the size is known.
func (s *Server) overload() string {
	err := s.cfg.Queue.Room(0)
	if err == nil || errors.Is(err, queue.ErrFull) {
		return ""
	}
	s.sick.Do(func() { s.log.Error("connections are refused: the queue takes no mail", "error", err) })
	return "4.3.2 mail cannot be accepted just now, try again later"
}

// side tells which mail system a client is.
func (s *Server) side(ip netip.Addr) mail.Route {
	if s.cfg.Side == nil {
		return ""
	}
	return s.cfg.Side(ip.Unmap())
}

// trusts tells whether a client is one of ours: by where it is, by the
// certificate that it showed, or by its login.
func (s *Server) trusts(client wire.Info) bool {
	return client.Certified || client.User != "" || s.cfg.Wire.Trusted != nil && s.cfg.Wire.Trusted(client.Remote.Addr())
}

// mayRelay tells whether mail of a client to an address that is not ours may
// go out. What only looks like an address outside (a route through us, our own
// name) may not.
func (s *Server) mayRelay(client wire.Info, addr mail.Address) bool {
	return s.cfg.RelaysOut != nil && s.cfg.RelaysOut(client) && s.trusts(client) && !addr.IsNull() &&
		!s.cfg.Router.Ours(addr.Domain) && !strings.EqualFold(addr.Domain, s.cfg.Hostname)
}

// ListenerOptions are what one listener does otherwise than the others. The zero
// value offers STARTTLS and takes mail in clear too.
type ListenerOptions struct {
	TLS wire.TLSUse
	// AskCert asks clients for a certificate, as ServerConfig.AskTLS says, and
	// NeedCert takes nothing from those without one that counts.
	AskCert, NeedCert bool
	// Auth says whether clients log in, where [ServerConfig.Wire] has Auth.
	Auth wire.AuthUse
}

// Serve is [Server.ServeWith] without options.
func (s *Server) Serve(l net.Listener) error { return s.ServeWith(l, ListenerOptions{}) }

// ServeWith takes mail from the connections of l until Shutdown, and returns nil
// then. It closes l.
func (s *Server) ServeWith(l net.Listener, opts ListenerOptions) error {
	cfg := s.wire
	cfg.TLSUse, cfg.NeedCert, cfg.AuthUse = opts.TLS, opts.NeedCert, opts.Auth
	if opts.Auth == wire.AuthRequired {
		cfg.GreetDelay = nil // people are not on any list of mail servers
		cfg.Door = limit.Logins{Guard: s.cfg.Guard}
	}
	if opts.AskCert || opts.NeedCert {
		cfg.TLS, cfg.ClientCert = s.cfg.AskTLS, s.cfg.ClientCert
	}
	guard := wire.NewListener(l, cfg)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = l.Close()
		return ErrServerClosed
	}
	s.open = append(s.open, guard)
	s.mu.Unlock()
	err := s.smtp.Serve(guard)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return fmt.Errorf("relay: accept connections on %s: %w", l.Addr(), err)
}

// Connections is the number of open connections.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, l := range s.open {
		n += l.Len()
	}
	return n
}

// Shutdown stops accepting, ends idle connections with 421, and lets messages
// whose data has begun be stored and answered. When ctx ends first, the rest is
// cut: its clients have no reply and send again. It may be called at any time
// and more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	open := s.open
	s.mu.Unlock()
	errs := make([]error, len(open))
	var wg sync.WaitGroup
	for i, l := range open {
		wg.Go(func() { errs[i] = l.Shutdown(ctx) })
	}
	wg.Wait()
	s.cancel()
	// The connections are closed; what is left of their goroutines ends now.
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer stop()
	if err := s.smtp.Shutdown(last); err != nil && !errors.Is(err, smtp.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		errs = append(errs, fmt.Errorf("relay: wait for sessions: %w", err))
	}
	return errors.Join(errs...)
}

// libraryLog takes what go-smtp has to say: panics, and failures to accept.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) Printf(format string, v ...any) {
	l.log.Error("smtp library", "message", fmt.Sprintf(format, v...))
}

func (l libraryLog) Println(v ...any) {
	l.log.Error("smtp library", "message", strings.TrimSpace(fmt.Sprintln(v...)))
}

// smtpError is the one place that turns an error into what go-smtp sends. The
// result is bare: the library makes a permanent 554 with the error's text of
// everything else.
func smtpError(err error) error {
	if err == nil {
		return nil
	}
	var lib *smtp.SMTPError
	if errors.As(err, &lib) && lib.Code >= 400 && lib.Code < 600 {
		return lib // the library's own, as for a message that is too large
	}
	return replyError(mail.AsReply(err))
}

// replyError is r in the library's form.
func replyError(r *mail.Reply) error {
	return &smtp.SMTPError{Code: r.Code, EnhancedCode: smtp.EnhancedCode(r.Enhanced), Message: plainText(r.Text)}
}

// maxReplyText keeps a reply line below the 512 octets of RFC 5321, 4.5.3.1.5.
const maxReplyText = 480

// plainText makes one line of printable ASCII of text.
func plainText(text string) string {
	if len(text) > maxReplyText {
		text = text[:maxReplyText]
	}
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] > '~' {
			return strings.Map(func(r rune) rune {
				switch {
				case r == '\n' || r == '\t':
					return ' '
				case r < ' ' || r > '~':
					return '?'
				}
				return r
			}, text)
		}
	}
	return text
}
