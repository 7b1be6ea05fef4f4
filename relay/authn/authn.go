package authn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"crossfade/mail"
	"crossfade/relay/resolver"
)

// Defaults of [Config], and bounds that nobody needs to change.
const (
	DefaultTimeout = 5 * time.Second
	DefaultMemory  = 64 << 20 // octets, for all checks together

	maxQuestions  = 100       // lookups for SPF of one message that leave the cache: 10 times 10 (RFC 7208, 4.6.4)
	maxHeader     = 128 << 10 // octets of a header that are kept for DKIM
	maxField      = 64 << 10  // of one field
	maxSignatures = 8         // that are verified
	maxParsed     = 64        // signatures among which those are chosen
	maxFroms      = 4         // From fields that are kept
	maxFrom       = 4 << 10   // octets of one that is parsed: addresses take a thousand times their size meanwhile; of a longer one, of its beginning and its end
	maxAuthors    = 8         // domains of a From that names several
	maxKeys       = 1000      // that are kept ready for use
	manyFields    = 64        // more than a header has that somebody wrote
)

// errBusy is why signatures are not verified when Config.Memory is used up.
const errBusy = "too many messages are looked at at once"

// Enforce is how far a DMARC policy is followed.
type Enforce string

// The ways. Each follows less strict policies too; None records only.
const (
	EnforceNone       Enforce = "none"
	EnforceQuarantine Enforce = "quarantine"
	EnforceReject     Enforce = "reject"
)

// Config is what a [Checker] works with. Hostname and Resolver are needed.
type Config struct {
	Hostname string // the authserv-id
	Resolver *resolver.Resolver
	Enforce  Enforce
	// Timeout is how long the lookups of one message may take, counted from the end of its header.
	Timeout time.Duration
	// Memory bounds what all checks together keep of headers while they arrive, but for some tens of KiB that each may
	// keep without asking. Beyond it signatures are not verified, for now.
	Memory int64

	Metrics Metrics
	Now     func() time.Time // nil: time.Now
}

// Metrics are told what was found. Each may be nil; they must not block.
type Metrics struct {
	// Result is called for each method of a message ("spf", "dkim", "dmarc"), for dkim with the best result.
	Result func(method string, r Result)
	// Enforced is called when a policy was applied: "reject", "quarantine", or "vouched" when somebody trusted prevented it.
	Enforced func(what string)
	// Took is told how long the end of a message waited for the check.
	Took func(time.Duration)
}

// Checker judges messages. Many goroutines may use it.
type Checker struct {
	cfg    Config
	memory atomic.Int64
	keys   keyCache
}

// New makes a Checker.
func New(cfg Config) (*Checker, error) {
	if cfg.Hostname == "" || cfg.Resolver == nil {
		return nil, errors.New("authn: a checker needs a host name and a resolver")
	}
	cfg.Enforce = cmp.Or(cfg.Enforce, EnforceNone)
	if !slices.Contains([]Enforce{EnforceNone, EnforceQuarantine, EnforceReject}, cfg.Enforce) {
		return nil, fmt.Errorf("authn: enforce is none, quarantine or reject, not %q", cfg.Enforce)
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	cfg.Memory = cmp.Or(cfg.Memory, DefaultMemory)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Checker{cfg: cfg}, nil
}

// Message is what is known of a message before its first octet.
type Message struct {
	ID     mail.ID // decides which messages a policy for a part of them (pct) counts for
	Client netip.Addr
	Helo   string
	From   mail.Address // reverse-path
	// Vouch, when it is not nil, is asked before the policy of a domain is applied: whether somebody whom the operator
	// trusts vouches that the message was the domain's when it reached them (ARC, RFC 8617, 7.2), and who that is.
	Vouch func(domain string) (by string, ok bool)
}

// Check looks at one message. Its methods are called one after the other, Close last and always.
type Check struct {
	c      *Checker
	m      Message
	parent context.Context
	ctx    context.Context // of lookups that leave the cache, once there is one; ends with Close
	cancel context.CancelFunc

	cached context.Context // of lookups in the cache
	missed func() bool     // whether one of them was in vain

	spf    pending[SPF]
	dmarc  pending[[]verdict]
	header header
	author author
	dkim   signatures

	verdicts []verdict // one for each of author.domains

	reserved int64
}

// Begin starts to check a message; the lookups for SPF begin at once. ctx bounds the check besides its own time.
//
// The bound on lookups is for SPF alone, of which the sender's domain decides how many there are. Those for keys and
// policies are bounded by their number (maxSignatures and three for each of maxAuthors), and must not be used up by what
// somebody else publishes: a forger could then keep the author's policy from being found.
func (c *Checker) Begin(ctx context.Context, m Message) *Check {
	k := &Check{c: c, m: m, parent: ctx}
	k.cached, k.missed = resolver.FromCache(ctx)
	k.header.limit = func(size int) bool { return k.reserve(int64(size)) }
	k.dkim.k = k
	k.spf = lookUp(k, func(ctx context.Context) (context.Context, context.CancelFunc) {
		return k.inTime(resolver.WithBudget(ctx, maxQuestions))
	}, func(ctx context.Context) SPF { return c.checkSPF(ctx, m) })
	return k
}

// inTime bounds lookups that begin now.
func (k *Check) inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, k.c.cfg.Timeout)
}

// pending is what will be known.
type pending[T any] struct {
	value T
	later chan T // nil: value is it
}

func (p *pending[T]) get() T {
	if p.later != nil {
		p.value, p.later = <-p.later, nil
	}
	return p.value
}

// lookUp has work done, which looks names up. Where the cache has all, that is done at once: it has it for most mail, and
// contexts, and a goroutine with a stack that grows, cost more than the work. Otherwise it is done from the beginning, within bounds.
func lookUp[T any](k *Check, bounds func(context.Context) (context.Context, context.CancelFunc), work func(context.Context) T) pending[T] {
	if v := work(k.cached); !k.missed() {
		return pending[T]{value: v}
	}
	if k.ctx == nil {
		k.ctx, k.cancel = context.WithCancel(resolver.WithAsker(k.parent, k.m.Client))
	}
	ctx, stop := bounds(k.ctx)
	later := make(chan T, 1)
	go func() {
		defer stop()
		later <- work(ctx)
	}()
	return pending[T]{later: later}
}

// Write is given the next octets of the message as the client sent it, with CRLF line ends.
func (k *Check) Write(p []byte) {
	if !k.header.over {
		if p = k.header.write(p); !k.header.over {
			return
		}
		k.headerEnded()
	}
	k.dkim.body(p)
}

// headerEnded starts all that the header asks for.
func (k *Check) headerEnded() {
	k.author = readFrom(k.header.froms, k.header.fromOver)
	k.dmarc = lookUp(k, k.inTime, func(ctx context.Context) []verdict { return k.c.discoverAll(ctx, k.author.domains) })
	k.dkim.begin(&k.header)
	k.header.letGo() // digests of it are all that is wanted from here on
	k.release()
}

// End gives what was found. It waits for lookups no longer than Config.Timeout after the end of the header.
func (k *Check) End(ctx context.Context) *Report {
	began := k.c.cfg.Now()
	if !k.header.over {
		k.header.close()
		k.headerEnded()
	}
	r := &Report{DKIM: k.dkim.end(), Unverified: k.dkim.more}
	r.SPF = k.spf.get()
	k.verdicts = k.dmarc.get()
	k.judge(r)
	k.enforce(r)
	r.Took = k.c.cfg.Now().Sub(began)
	k.count(r)
	return r
}

func (k *Check) count(r *Report) {
	m := k.c.cfg.Metrics
	if m.Result != nil {
		m.Result("spf", r.SPF.Result)
		m.Result("dkim", r.BestDKIM())
		m.Result("dmarc", r.DMARC.Result)
	}
	if m.Took != nil {
		m.Took(r.Took)
	}
	if m.Enforced == nil {
		return
	}
	switch {
	case r.VouchedBy != "":
		m.Enforced("vouched")
	case r.Disposition != EnforceNone:
		m.Enforced(string(r.Disposition))
	}
}

// Close ends the check, wherever it is.
func (k *Check) Close() {
	if k.cancel != nil {
		k.cancel()
	}
	k.header.letGo()
	k.release()
}

// release gives back what was reserved.
func (k *Check) release() {
	k.c.memory.Add(-k.reserved)
	k.reserved = 0
}

// reserve asks for memory, in all, for this check.
func (k *Check) reserve(size int64) bool {
	more := size - k.reserved
	if more <= 0 {
		return true
	}
	if k.c.memory.Add(more) > k.c.cfg.Memory {
		k.c.memory.Add(-more)
		return false
	}
	k.reserved = size
	return true
}

// domainName is the normal form of a domain that may be looked up.
func domainName(s string) (string, bool) {
	if strings.HasPrefix(s, "[") {
		return "", false
	}
	d, err := mail.NormalDomain(s)
	return d, err == nil && len(d) <= 253
}
