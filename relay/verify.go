package relay

import (
	"container/list"
	"context"
	"log/slog"
	"sync"
	"time"

	"crossfade/mail"
)

// Knows is what a mail system says about an address.
type Knows int

// The answers. The zero value is the safe one.
const (
	Unsure  Knows = iota // it could not be asked, or did not say
	KnowsIt              // RCPT was accepted
	KnowsNo              // RCPT was refused as an unknown user
)

// String gives "yes", "no" or "unsure".
func (k Knows) String() string {
	switch k {
	case KnowsIt:
		return "yes"
	case KnowsNo:
		return "no"
	}
	return "unsure"
}

// Prober asks one mail system whether it knows an address. It returns Unsure
// when ctx ends; why it is unsure is its own business to log.
type Prober interface {
	Probe(ctx context.Context, addr mail.Address) Knows
}

// Verdict says what becomes of an address that is in no table.
type Verdict struct {
	Exists bool       // false: 550 5.1.1
	Hint   mail.Route // the side to deliver to when Exists
	// Sure is false when a side could not be asked; the address is accepted then.
	Sure bool
}

// VerifierConfig is what a Verifier is made of. Old and New are needed, zero
// fields have the defaults named.
type VerifierConfig struct {
	Old, New Prober
	// RememberYes is how long a known address is not asked about again (10 min).
	RememberYes time.Duration
	// RememberNo is the same for an unknown one (15 s). It is short because a 550
	// is final, and users are made during a migration.
	RememberNo time.Duration
	Timeout    time.Duration // of one question to both sides (20 s)
	MaxProbes  int           // addresses asked about at once (20)
	MaxEntries int           // addresses remembered (10,000)
	Logger     *slog.Logger
	Now        func() time.Time
}

// Verifier asks both mail systems about addresses in no table and remembers the
// answers for a short time. Close it when it is no longer needed.
type Verifier struct {
	cfg    VerifierConfig
	slots  chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	entries map[string]*list.Element // of *verdictEntry, in order, newest use first
	order   *list.List
	flights map[string]*flight
	closed  bool
}

type verdictEntry struct {
	key     string
	verdict Verdict
	until   time.Time
}

// flight is one question that is being asked.
type flight struct {
	done    chan struct{} // closed when verdict is set
	verdict Verdict
}

// accepted is the verdict when somebody could not be asked: mail is never
// refused for our own ignorance (I8), and delivery asks again.
var accepted = Verdict{Exists: true, Hint: mail.Old}

// NewVerifier makes a Verifier; it starts nothing.
func NewVerifier(cfg VerifierConfig) *Verifier {
	for _, d := range []struct {
		field *time.Duration
		byDef time.Duration
	}{{&cfg.RememberYes, 10 * time.Minute}, {&cfg.RememberNo, 15 * time.Second}, {&cfg.Timeout, 20 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.byDef
		}
	}
	if cfg.MaxProbes <= 0 {
		cfg.MaxProbes = 20
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = 10_000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	v := &Verifier{
		cfg: cfg, slots: make(chan struct{}, cfg.MaxProbes),
		entries: make(map[string]*list.Element), order: list.New(), flights: make(map[string]*flight),
	}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	return v
}

// Verify says whether addr should be accepted, and for which side. It asks both
// sides at once unless it remembers; questions about the same address are asked
// once. When ctx ends first the address is accepted.
func (v *Verifier) Verify(ctx context.Context, addr mail.Address) Verdict {
	key := addr.Key()
	v.mu.Lock()
	if verdict, ok := v.remembered(key); ok {
		v.mu.Unlock()
		return verdict
	}
	f := v.flights[key]
	if f == nil {
		if v.closed {
			v.mu.Unlock()
			return accepted
		}
		f = &flight{done: make(chan struct{})}
		v.flights[key] = f
		v.wg.Go(func() { v.fly(f, key, addr) })
	}
	v.mu.Unlock()
	select {
	case <-f.done:
		return f.verdict
	case <-ctx.Done():
		return accepted
	}
}

// Close ends what is being asked and waits for it; the addresses are accepted.
func (v *Verifier) Close() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.cancel()
	v.wg.Wait()
}

// remembered is called with v.mu held.
func (v *Verifier) remembered(key string) (Verdict, bool) {
	e, ok := v.entries[key]
	if !ok {
		return Verdict{}, false
	}
	entry := e.Value.(*verdictEntry)
	if !v.cfg.Now().Before(entry.until) {
		v.order.Remove(e)
		delete(v.entries, key)
		return Verdict{}, false
	}
	v.order.MoveToFront(e)
	return entry.verdict, true
}

// remember is called with v.mu held.
func (v *Verifier) remember(key string, verdict Verdict) {
	if !verdict.Sure {
		return
	}
	wait := v.cfg.RememberYes
	if !verdict.Exists {
		wait = v.cfg.RememberNo
	}
	v.entries[key] = v.order.PushFront(&verdictEntry{key: key, verdict: verdict, until: v.cfg.Now().Add(wait)})
	if v.order.Len() > v.cfg.MaxEntries {
		last := v.order.Back()
		v.order.Remove(last)
		delete(v.entries, last.Value.(*verdictEntry).key)
	}
}

// fly asks, in a goroutine of its own, so that a client that hangs up does not
// spoil the answer for the others.
func (v *Verifier) fly(f *flight, key string, addr mail.Address) {
	ctx, cancel := context.WithTimeout(v.ctx, v.cfg.Timeout)
	defer cancel()
	verdict := accepted
	select {
	case v.slots <- struct{}{}:
		verdict = v.ask(ctx, addr)
		<-v.slots
	case <-ctx.Done():
		v.cfg.Logger.Warn("recipient accepted unverified: too many addresses are being verified", "rcpt", addr.String())
	}
	v.mu.Lock()
	v.remember(key, verdict)
	delete(v.flights, key)
	v.mu.Unlock()
	f.verdict = verdict
	close(f.done)
}

// ask asks both sides at once. A yes of the old side needs no second answer:
// who is in no table lives there.
func (v *Verifier) ask(ctx context.Context, addr mail.Address) Verdict {
	ctx, cancel := context.WithCancel(ctx)
	newSays := make(chan Knows, 1)
	var wg sync.WaitGroup
	wg.Go(func() { newSays <- v.cfg.New.Probe(ctx, addr) })
	defer wg.Wait()
	defer cancel()
	old := v.cfg.Old.Probe(ctx, addr)
	if old == KnowsIt {
		return Verdict{Exists: true, Hint: mail.Old, Sure: true}
	}
	now := <-newSays
	switch {
	case old == KnowsNo && now == KnowsIt:
		return Verdict{Exists: true, Hint: mail.New, Sure: true}
	case old == KnowsNo && now == KnowsNo:
		return Verdict{Sure: true}
	}
	v.cfg.Logger.Warn("recipient accepted unverified: a side could not be asked",
		"rcpt", addr.String(), "old", old.String(), "new", now.String())
	return accepted
}
