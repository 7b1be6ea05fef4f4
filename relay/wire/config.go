package wire

import (
	"crypto/tls"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Config says how the guard behaves. The zero value of a limit or a timeout
// means its default, a negative limit means none. It is read once, by
// NewListener; the functions in it are called from many goroutines at once.
type Config struct {
	// Hostname is the name in the greeting and in every reply that names us.
	Hostname string
	// Greeting follows the host name in the 220 line (default "ESMTP").
	Greeting string
	// Extensions are the keyword lines of the EHLO reply, such as "SIZE 1000".
	// STARTTLS is added by the guard. The default is what the guard can promise
	// alone: PIPELINING, 8BITMIME, ENHANCEDSTATUSCODES and CHUNKING.
	Extensions []string
	// SecureExtensions are offered under TLS besides.
	SecureExtensions []string
	// Postmaster is the mailbox that takes mail to <postmaster> without a domain
	// (RFC 5321, 4.5.1). Empty means that such a recipient is refused.
	Postmaster string

	// TLS gives the configuration for one handshake, so that certificates can
	// be replaced at any time. A nil function or a nil result means that STARTTLS
	// is neither offered nor taken.
	TLS func() *tls.Config
	// TLSUse says whether clients have to encrypt (default TLSOffered).
	TLSUse TLSUse
	// ClientCert is asked after each handshake whether the client's certificate is
	// one that counts, for Info.Certified; it is not asked where none came. TLS has
	// to ask clients for one.
	ClientCert func(*tls.ConnectionState) bool
	// NeedCert takes nothing from clients without a certificate that counts.
	NeedCert bool
	// MaxHandshakes bounds the TLS handshakes under way at once, over all listeners
	// that share Counts (default 256). Who finds no place waits for one, and is told
	// 454 at last. Trusted peers are not bound.
	MaxHandshakes int
	// Auth tells whether a login is right; AuthUse whether clients log in (default
	// AuthNever). AUTH is offered under TLS only.
	Auth    Auth
	AuthUse AuthUse
	// Overload is asked before the greeting. A text that is not empty, such as
	// "4.3.1 no space left", is sent with 421 and the connection is closed.
	Overload func() string
	// Trusted names the peers that are ours, such as the backends' own outbound
	// hosts. The guard does not use it; it is here for what stands above.
	Trusted func(netip.Addr) bool

	// Counts are shared by listeners that share MaxHandshakes; nil: each listener
	// has its own.
	Counts *Counts
	// Known names the peers that need no place among the handshakes, as those of
	// Trusted do not: who fills the places must not keep out those who sent good mail
	// before. Nil knows nobody.
	Known func(netip.Addr) bool
	// Door says which connections may come in; nil lets everybody in. Listeners
	// that share a Door share its limits.
	Door Door
	// GreetDelay is how long the guard waits before it greets a client; a client
	// that speaks first is sent away. It is asked once for each connection, in its
	// own goroutine and when its address is known; nil, or 0, greets at once.
	GreetDelay func(netip.Addr) time.Duration
	// MaxCommand bounds a command line, CRLF included, in bytes (default 2,048,
	// at most 8,192; RFC 5321, 4.5.3.1.4, asks for 512 and more with parameters).
	MaxCommand int
	// MaxLine bounds a line of a message, CRLF included, in bytes (default
	// 65,536; RFC 5321, 4.5.3.1.6, asks for 1,000).
	MaxLine int
	// MaxBody is the number of bytes of one message after which the connection is
	// cut, so that a refused message is not read for ever. It should be well above
	// the message limit; the default is none.
	MaxBody int64
	// MaxMessages bounds the messages on one connection (default none).
	MaxMessages int
	// MaxErrors bounds the failed commands other than RCPT since the last message
	// that was taken (default 20).
	MaxErrors int
	// MaxRcptErrors bounds the refused recipients since the last message that was
	// taken (default 100). 452, "too many recipients", does not count: a client
	// with a long list may rightly run into it again and again.
	MaxRcptErrors int
	// MaxNoise bounds NOOP, RSET, VRFY, HELP and repeated EHLO since the last
	// message that was taken (default 100).
	MaxNoise int

	// IdleTimeout is how long one whole command line may take (default 5 min;
	// RFC 5321, 4.5.3.2.7).
	IdleTimeout time.Duration
	// DataTimeout is how long the next bytes of a message may take (default 5 min).
	DataTimeout time.Duration
	// BodyTimeout is how long a whole message body may take, from the reply to DATA
	// or the first BDAT to its end, however steadily it comes (default none).
	BodyTimeout time.Duration
	// BodyRate is the least number of bytes of a message that have to come in a
	// minute, on average since its beginning and not counting the first BodyGrace
	// (default none).
	BodyRate int64
	// BodyGrace is how long a message may come slower than BodyRate (default:
	// DataTimeout). A shorter one costs two system calls for each message.
	BodyGrace time.Duration
	// FruitlessTimeout is how long a connection may go on without a message that is
	// taken, since its begin or the last one. It is looked at between two commands
	// and so does not cut a message (default none).
	FruitlessTimeout time.Duration
	// WriteTimeout is how long the client may take to accept replies (default 1 min).
	WriteTimeout time.Duration

	// Metrics are told what happens. Each function may be nil.
	Metrics Metrics
	// Logger may be nil.
	Logger *slog.Logger
}

// Door decides about connections. Its methods are called from many goroutines
// and must not block.
type Door interface {
	// Enter is asked whether a connection may come in. A reason, a short fixed word
	// for the metrics, turns it away with 421 and text, which begins with an
	// enhanced status code. The zero address is that of a client who is not known
	// yet, below a PROXY listener; Enter is asked again when he is, after Leave.
	Enter(client netip.Addr) (reason, text string)
	// Leave takes off what one Enter without a reason has counted.
	Leave(client netip.Addr)
}

// Metrics are hooks for counters. They are called from many goroutines and must
// not block; any of them may be nil.
type Metrics struct {
	// Opened and Closed are called for each connection that was not refused at
	// once by a connection limit.
	Opened func()
	Closed func()
	// Refused is called when a connection is ended by the guard, with a short
	// fixed word: "overload", "errors", "noise", "idle", "fruitless",
	// "body_timeout", "body_rate", "body_size", "messages", "tls_injection",
	// "other_protocol", "early_talker", "shutdown", "bdat_syntax", "line_length",
	// "write_timeout", "proxy_header", "handshakes",
	// "logins", "login_later", "no_certificate", or a word of the Door.
	Refused func(reason string)
	// Message is called when the guard refuses a message because of its bytes,
	// with "bare_newline" or "line_length".
	Message func(reason string)
	// Login is called after each login.
	Login func(AuthVerdict)
	// Handshake is called after each TLS handshake.
	Handshake func(ok bool)
}

// Reasons lists the words with which Metrics.Refused tells of clients that were
// slow, loud or early, so that their counts can begin at 0.
func Reasons() []string {
	return []string{"overload", "errors", "noise", "idle", "fruitless", "body_timeout", "body_rate", "body_size", "write_timeout",
		"early_talker", "handshakes", "line_length", "proxy_header", "tls_injection", "other_protocol"}
}

func call(f func()) {
	if f != nil {
		f()
	}
}

func callWith(f func(string), word string) {
	if f != nil {
		f(word)
	}
}

const (
	maxCommandLimit = 8 << 10
	noLimit         = int(^uint(0) >> 1)
)

// withDefaults fills in the defaults and turns "none" into a number that is
// never reached.
func (c Config) withDefaults() Config {
	if c.Hostname == "" {
		c.Hostname = "localhost"
	}
	if c.Greeting == "" {
		c.Greeting = "ESMTP"
	}
	if c.Extensions == nil {
		c.Extensions = []string{"PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "CHUNKING"}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, l := range []struct {
		field *int
		byDef int
	}{
		{&c.MaxHandshakes, 256}, {&c.MaxCommand, 2048}, {&c.MaxLine, 64 << 10},
		{&c.MaxMessages, noLimit}, {&c.MaxErrors, 20}, {&c.MaxRcptErrors, 100}, {&c.MaxNoise, 100},
	} {
		switch {
		case *l.field == 0:
			*l.field = l.byDef
		case *l.field < 0:
			*l.field = noLimit
		}
	}
	c.MaxCommand = min(c.MaxCommand, maxCommandLimit)
	for _, t := range []struct {
		field *time.Duration
		byDef time.Duration
	}{
		{&c.IdleTimeout, 5 * time.Minute}, {&c.DataTimeout, 5 * time.Minute}, {&c.WriteTimeout, time.Minute},
	} {
		if *t.field <= 0 {
			*t.field = t.byDef
		}
	}
	if c.BodyGrace <= 0 {
		c.BodyGrace = c.DataTimeout
	}
	return c
}

// ehloReply is the whole EHLO reply, made once: it is the same for every client.
func (c Config) ehloReply(more ...string) string {
	lines := slices.Concat([]string{c.Hostname}, c.Extensions, more)
	var b strings.Builder
	for i, line := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		b.WriteString("250" + sep + oneLine(line) + "\r\n")
	}
	return b.String()
}

// oneLine keeps text from outside this package from becoming a second reply.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
