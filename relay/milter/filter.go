package milter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"crossfade/mail"
	"crossfade/relay"

	"golang.org/x/time/rate"
)

// Defaults and bounds.
const (
	DefaultTimeout     = 30 * time.Second
	DefaultMaxSize     = 20 << 20
	DefaultConnections = 50
	// early is how much of a message is kept before the scanner hears of it: a
	// client that sends slowly must not hold one of its connections.
	early = 128 << 10
	// firstRest and maxRest are how long a scanner that failed is left alone.
	firstRest, maxRest = time.Second, 30 * time.Second
	// maxStrikes is how many messages in a row, without one that was judged, may
	// fail before a scanner that takes sessions counts as failed. What one message
	// does to a scanner is its sender's choice.
	maxStrikes = 10
)

// Result is what became of one message, for counters.
type Result string

// The results.
const (
	Passed   Result = "passed"
	Refused  Result = "refused"   // 5xx
	PutOff   Result = "put_off"   // 4xx, by the scanner
	TooLarge Result = "too_large" // not looked at
	Failed   Result = "failed"    // the scanner could not be asked, or did not answer in time
)

// Config is what a Filter works with. Network and Address are needed.
type Config struct {
	Network, Address string // "tcp" and host:port, or "unix" and a path
	Hostname         string // ours, as the macro j
	// Timeout bounds the time that one message may wait for the scanner, in all
	// (30 s). The time that its client takes to send it does not count.
	Timeout time.Duration
	// Accept takes a message that could not be looked at; otherwise it is put off.
	Accept bool
	// MaxSize is the size in octets up to which messages are looked at (20 MiB);
	// larger ones pass.
	MaxSize int64
	// Ours has mail of our own systems looked at too.
	Ours bool
	// Connections bounds those to the scanner at once (50).
	Connections int
	// Done is told of each message and of the time that it waited. It may be nil and
	// must not block.
	Done   func(r Result, waited time.Duration)
	Logger *slog.Logger // nil discards
}

// Filter asks one scanner about messages. It implements [relay.Inspector].
//
// Of what a scanner may want, only header fields are done that can go on top of the
// message, so that its bytes stay as they were (I9). Changes of the body, of the
// sender's own fields, of sender and recipients are ignored and logged. To discard is to refuse with 550: mail that
// was answered with 250 is delivered.
type Filter struct {
	cfg    Config
	places chan struct{}
	told   rate.Sometimes
	old    atomic.Bool // the scanner is from before version 6 of the protocol

	// streams are the places of messages whose clients are still sending: the
	// others are there for what the scanner can judge at once.
	streams chan struct{}

	mu      sync.Mutex
	strikes int
	sick    error
	since   time.Time
	rested  time.Time // when it was last left alone
	until   time.Time // it is not asked before
	rest    time.Duration
}

// New makes a Filter; it connects to nothing.
func New(cfg Config) (*Filter, error) {
	if cfg.Network == "" || cfg.Address == "" {
		return nil, errors.New("milter: the scanner has no address")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = DefaultMaxSize
	}
	if cfg.Connections <= 0 {
		cfg.Connections = DefaultConnections
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Done == nil {
		cfg.Done = func(Result, time.Duration) {}
	}
	return &Filter{
		cfg: cfg, places: make(chan struct{}, cfg.Connections), streams: make(chan struct{}, max(cfg.Connections/2, 1)),
		told: rate.Sometimes{Interval: 10 * time.Second},
	}, nil
}

// Sick says why the scanner is not asked, and since when; nil when it is well.
func (f *Filter) Sick() (err error, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sick, f.since
}

// Probe asks whether the scanner is there and speaks the protocol.
func (f *Filter) Probe(ctx context.Context) error {
	x := &scan{f: f, ctx: ctx, until: time.Now().Add(f.cfg.Timeout)}
	if err := x.open(); err != nil {
		return fmt.Errorf("ask the content filter %s: %w", f.cfg.Address, err)
	}
	x.hangUp()
	return nil
}

// Inspect implements [relay.Inspector].
func (f *Filter) Inspect(ctx context.Context, m relay.Incoming) relay.Inspection {
	if m.Ours && !f.cfg.Ours {
		return nil
	}
	buf := bufPool.Get().(*buffers)
	return &scan{f: f, ctx: ctx, m: m, buf: buf, left: f.cfg.Timeout}
}

// errResting is the failure of a message that came while the scanner is left
// alone.
var errResting = errors.New("it failed a moment ago")

// ready tells whether the scanner may be asked now. Of those who come when its
// rest is over, one tries.
func (f *Filter) ready(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sick == nil {
		return nil
	}
	if now.Before(f.until) {
		return fmt.Errorf("%w: %w", errResting, f.sick)
	}
	f.until = now.Add(f.rest)
	return nil
}

// failed notes that a message could not be judged, which began to be at the time
// given. spoken says that the scanner takes sessions, or that it was not even asked:
// then it may be the message, and the others need not suffer for it.
func (f *Filter) failed(err error, began time.Time, spoken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.strikes++; spoken && f.sick == nil && f.strikes < maxStrikes {
		return
	}
	if f.sick != nil && began.Before(f.rested) {
		return // it says nothing new
	}
	if f.sick == nil {
		f.since, f.rest = now, firstRest
	} else {
		f.rest = min(2*f.rest, maxRest)
	}
	f.sick, f.rested, f.until = err, now, now.Add(f.rest)
}

func (f *Filter) well() {
	f.mu.Lock()
	was, since := f.sick, f.since
	f.sick, f.strikes = nil, 0
	f.mu.Unlock()
	if was != nil {
		f.cfg.Logger.Info("the content filter answers again", "filter", f.cfg.Address, "after", time.Since(since).Round(time.Second))
	}
}

// unavailable is what clients are told when the scanner cannot be asked.
var unavailable = mail.Replyf(451, mail.Enhanced{4, 7, 1}, "the message cannot be scanned just now, try again later")

// bounded is a connection whose deadlines are those of the message, and which
// gives no more than a scanner may have to say.
type bounded struct {
	net.Conn
	until time.Time
	left  int
}

// maxSays is how many octets a scanner may say about one message.
const maxSays = 4 << 20

func (b *bounded) SetReadDeadline(t time.Time) error  { return b.Conn.SetReadDeadline(b.sooner(t)) }
func (b *bounded) SetWriteDeadline(t time.Time) error { return b.Conn.SetWriteDeadline(b.sooner(t)) }

func (b *bounded) sooner(t time.Time) time.Time {
	if t.IsZero() || b.until.Before(t) {
		return b.until
	}
	return t
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("it says more than %d octets about one message", maxSays)
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
