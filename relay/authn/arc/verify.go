package arc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"crossfade/relay/authn/dkim"
)

// Defaults of [Config].
const (
	DefaultTimeout = 10 * time.Second

	lookupsAtOnce = 8
)

// Config is what a Verifier works with. LookupTXT is needed.
type Config struct {
	// LookupTXT gives the TXT records of a name, each in one string. A name without
	// any is no error, or one whose Temporary method says false, as that of
	// [net.DNSError] does; any other error is temporary. It is called from several
	// goroutines.
	LookupTXT func(ctx context.Context, name string) ([]string, error)
	// Timeout bounds the lookups of one message together; zero is [DefaultTimeout].
	Timeout time.Duration
	// MaxHeader is how much of a header is looked at, in octets; zero is
	// [dkim.DefaultMaxHeader]. A chain in a larger one fails.
	MaxHeader int
	// Budget bounds what is held of the headers of all messages; nil does not. Chains
	// for which there is no room are TempError.
	Budget *dkim.Budget
	// Panicked, when it is set, is told what went wrong in us while a key was read; such a key could not be looked up.
	Panicked func(name string, what any)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Verifier judges chains. It has no state and may be used by many at once.
type Verifier struct{ cfg Config }

// NewVerifier makes a Verifier.
func NewVerifier(cfg Config) (*Verifier, error) {
	if cfg.LookupTXT == nil {
		return nil, errors.New("arc: a verifier needs a way to look up keys")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Panicked == nil {
		cfg.Panicked = func(string, any) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Verifier{cfg: cfg}, nil
}

// Verification is the work on one message.
type Verification struct {
	v      *Verifier
	header dkim.Header
	looked bool // at the header
	chain  *chain
	err    error // why the chain does not pass, as far as the header goes
	bodies [2]*dkim.BodyHash
}

// Begin begins with a message.
func (v *Verifier) Begin() *Verification {
	return &Verification{v: v, header: dkim.Header{Max: v.cfg.MaxHeader, Budget: v.cfg.Budget}}
}

// Close lets go of what is held. It is called last, and always.
func (x *Verification) Close() { x.header.Release() }

// Write takes the next octets of the message, which has CRLF line ends.
func (x *Verification) Write(p []byte) {
	if !x.header.Over() {
		p = x.header.Write(p)
		if !x.header.Over() {
			return
		}
		x.look()
	}
	for _, b := range x.bodies {
		if b != nil {
			b.Write(p)
		}
	}
}

// look reads the header when it is over.
func (x *Verification) look() {
	x.looked = true
	defer x.header.Release() // digests are all that is kept
	if x.header.Err() == nil && !x.header.Any("arc-") {
		x.chain = &chain{}
		return // as most messages
	}
	fields, err := x.header.Fields()
	if errors.Is(err, dkim.ErrHeaderBusy) {
		x.chain, x.err = &chain{}, err
		return
	}
	if x.chain, x.err = collect(fields); x.err != nil || x.chain.count == 0 {
		return
	}
	if x.err = err; err != nil {
		return
	}
	x.chain.digest(fields)
	x.startBodies()
}

// startBodies makes the hashes of the body that the signatures ask for: one for
// each canonical form.
func (x *Verification) startBodies() {
	for _, s := range x.chain.sets {
		if s.amsErr == nil && x.bodies[s.ams.Body] == nil {
			x.bodies[s.ams.Body] = dkim.NewBodyHash(s.ams.Body)
		}
	}
}

// Finish judges the chain of the message that was written. It is called once.
func (x *Verification) Finish(ctx context.Context) Result {
	if !x.looked {
		x.header.Close()
		x.look()
	}
	r := Result{Status: None, Sets: x.chain.count, Ended: x.chain.ended, OldestPass: -1}
	switch {
	case errors.Is(x.err, dkim.ErrHeaderBusy):
		r.Status, r.Reason = TempError, x.err.Error()
		return r
	case x.err != nil:
		r.Status, r.Reason = Fail, x.err.Error()
		return r
	case x.chain.count == 0:
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, x.v.cfg.Timeout)
	defer cancel()
	x.judge(ctx, &r)
	return r
}

// judge verifies signatures (RFC 8617, 5.2, steps 4 to 7). What costs nothing
// comes first: a body that was changed asks for no lookup.
func (x *Verification) judge(ctx context.Context, r *Result) {
	sets := x.chain.sets
	newest := sets[len(sets)-1]
	fail := func(status Status, format string, args ...any) {
		r.Status, r.Reason = status, fmt.Sprintf(format, args...)
	}
	if err := x.covers(newest); err != nil {
		fail(Fail, "message signature of instance %d: %v", len(sets), err)
		return
	}
	keys := keyring{lookup: x.v.cfg.LookupTXT, panicked: x.v.cfg.Panicked, found: map[string]foundKey{}}
	names := []string{newest.ams.KeyName()}
	for _, s := range sets {
		names = append(names, s.as.KeyName())
	}
	keys.fetch(ctx, names)
	if status, err := keys.verify(newest.ams, newest.amsDigest); err != nil {
		fail(status, "message signature of instance %d: %v", len(sets), err)
		return
	}
	for n := len(sets); n > 0; n-- {
		if status, err := keys.verify(sets[n-1].as, sets[n-1].sealDigest); err != nil {
			fail(status, "seal of instance %d: %v", n, err)
			return
		}
	}
	r.Status = Pass
	r.OldestPass = x.oldestPass(ctx, &keys)
	for n, s := range sets {
		r.Seals = append(r.Seals, Seal{Instance: n + 1, Domain: s.as.Domain, Selector: s.as.Selector, Results: s.results})
	}
}

// oldestPass looks for the oldest message signature that verifies (RFC 8617, 5.2,
// step 5).
func (x *Verification) oldestPass(ctx context.Context, keys *keyring) int {
	sets := x.chain.sets
	oldest := len(sets)
	var names []string
	for oldest > 1 && x.covers(sets[oldest-2]) == nil {
		oldest--
		names = append(names, sets[oldest-1].ams.KeyName())
	}
	keys.fetch(ctx, names)
	for n := len(sets) - 1; n >= oldest; n-- {
		status, err := keys.verify(sets[n-1].ams, sets[n-1].amsDigest)
		switch {
		case status == TempError:
			return -1
		case err != nil:
			return n + 1
		}
	}
	if oldest == 1 {
		return 0
	}
	return oldest
}

// covers tells what is wrong with a message signature before its key is looked
// at.
func (x *Verification) covers(s *set) error {
	if s.amsErr != nil {
		return s.amsErr
	}
	if s.ams.Expired(x.v.cfg.Now()) {
		return errors.New("it has expired")
	}
	return s.ams.CheckBody(x.bodies[s.ams.Body])
}

// keyring has the keys of one message.
type keyring struct {
	lookup   func(context.Context, string) ([]string, error)
	panicked func(name string, what any)
	found    map[string]foundKey
}

type foundKey struct {
	key  *dkim.Key
	err  error
	temp bool
}

// fetch looks up the keys that are not known yet, some at a time.
func (k *keyring) fetch(ctx context.Context, names []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	turn := make(chan struct{}, lookupsAtOnce)
	asked := map[string]bool{}
	for _, name := range names {
		mu.Lock()
		_, known := k.found[name]
		mu.Unlock()
		if known || asked[name] {
			continue
		}
		asked[name] = true
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			found := k.one(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			k.found[name] = found
		})
	}
	wg.Wait()
}

// one looks up a key, in a goroutine of its own: what strangers publish must not
// end the process, whatever reads it.
func (k *keyring) one(ctx context.Context, name string) (found foundKey) {
	defer func() {
		if p := recover(); p != nil {
			k.panicked(name, p)
			found = foundKey{err: errLookup, temp: true}
		}
	}()
	if ctx.Err() != nil {
		return foundKey{err: errLookup, temp: true}
	}
	records, err := k.lookup(ctx, name)
	var lasting interface{ Temporary() bool }
	switch {
	case err != nil && errors.As(err, &lasting) && !lasting.Temporary():
		return foundKey{err: dkim.ErrNoKey}
	case err != nil:
		return foundKey{err: errLookup, temp: true}
	}
	key, err := dkim.FindKey(records)
	return foundKey{key: key, err: err}
}

// errLookup says to strangers all that they are told; what happened is for the
// resolver to log.
var errLookup = errors.New("the key could not be looked up")

// verify checks one signature with a key that was fetched.
func (k *keyring) verify(s *dkim.Signature, digest []byte) (Status, error) {
	found := k.found[s.KeyName()]
	switch {
	case found.temp:
		return TempError, found.err
	case found.err != nil:
		return Fail, found.err
	}
	if err := found.key.Verify(s.Algorithm, digest, s.Value); err != nil {
		return Fail, err
	}
	return Pass, nil
}
