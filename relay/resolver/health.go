package resolver

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"crossfade/internal/dnsask"

	"github.com/miekg/dns"
)

// A server that is silent to some questions may be well: those who own the names decide how long the answers take. One
// that does not answer to the name servers of the root either, or answers other things, is down, and is not asked until it
// answers that. One that lives and yet has no answer to anything, because it reaches nobody itself, is asked on, but told of.
const (
	suspect = 3 // questions in a row without an answer before it is asked whether it lives
	// uselessFor and uselessTo are how long, and to how many questions in a row, a server has no answer before it is told of.
	uselessFor = time.Minute
	uselessTo  = 10
	probeTime  = time.Second
	minRest    = 2 * time.Second // between two looks at a server that is down; twice as long after each
	maxRest    = 30 * time.Second
)

// server is a recursive resolver and how it did.
type server struct {
	addr     netip.AddrPort
	believed bool // what it says about DNSSEC

	mu      sync.Mutex
	silent  int // questions in a row
	down    bool
	probing bool
	rest    time.Duration
	next    time.Time // when it may be asked again whether it lives

	useless int       // questions in a row without an answer of any use
	since   time.Time // the first of them
	says    string    // what it did instead, the last time
}

// answered notes that the server lives.
func (s *server) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent, s.down, s.rest = 0, false, 0
}

// helped notes that the server told what was asked.
func (s *server) helped() {
	s.answered()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.useless, s.says = 0, ""
}

// wasUseless notes that the server did not.
func (s *server) wasUseless(now time.Time, says string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.useless == 0 {
		s.since = now
	}
	s.useless++
	s.says = says
}

// gaveNone notes that a question had no answer. The asker may have had less patience than the server needs: that is for the
// look at it to tell.
func (r *Resolver) gaveNone(ctx context.Context, s *server, err error) {
	s.wasUseless(r.now(), err.Error())
	if errors.Is(err, dnsask.ErrSilent) || errors.Is(err, dnsask.ErrMismatch) || errors.Is(err, dnsask.ErrMalformed) {
		r.fellSilent(ctx, s)
	}
}

// awake tells whether a server may be asked. The first lookup after its rest looks whether it lives again; the others go
// on without it. So does the first after some that had no time left to look.
func (r *Resolver) awake(ctx context.Context, s *server) bool {
	s.mu.Lock()
	if !s.down && (s.silent < suspect || s.probing) {
		s.mu.Unlock()
		return true
	}
	if s.down && (s.probing || r.now().Before(s.next)) {
		s.mu.Unlock()
		return false
	}
	s.probing = true
	s.mu.Unlock()
	return r.probe(ctx, s)
}

// fellSilent counts a question without an answer, and looks whether the server lives when there were several. Without
// time left it leaves that to the next question.
func (r *Resolver) fellSilent(ctx context.Context, s *server) {
	s.mu.Lock()
	s.silent++
	look := ctx.Err() == nil && s.silent >= suspect && !s.probing && !s.down
	if look {
		s.probing = true
	}
	s.mu.Unlock()
	if look {
		r.probe(ctx, s)
	}
}

// probe asks a server for the name servers of the root: every resolver that lives answers that at once, be it with a
// refusal. The caller has set probing.
func (r *Resolver) probe(ctx context.Context, s *server) bool {
	// Whoever pays for the look may be about to run out of time: that says nothing of the server.
	m := new(dns.Msg)
	m.SetQuestion(".", dns.TypeNS)
	_, err := r.asker(probeTime).Once(context.WithoutCancel(ctx), "udp", s.addr.String(), m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing = false
	if err == nil {
		s.silent, s.down, s.rest = 0, false, 0
		return true
	}
	s.down = true
	s.rest = min(max(2*s.rest, minRest), maxRest)
	s.next = r.now().Add(s.rest)
	return false
}

// Trouble is a server that is of no use at present.
type Trouble struct {
	Server string    // its address
	Since  time.Time // the first question of many that it had no answer to
	Says   string    // what it did instead, the last time
}

// Troubles lists the servers that are down (they answer nothing, or other things than were asked), and those that have had
// no answer of use to at least ten questions in a row, over a minute or longer: SERVFAIL to everything, say.
func (r *Resolver) Troubles() []Trouble {
	var out []Trouble
	now := r.now()
	for _, s := range r.servers {
		s.mu.Lock()
		if s.down || s.useless >= uselessTo && now.Sub(s.since) >= uselessFor {
			out = append(out, Trouble{Server: s.addr.String(), Since: s.since, Says: s.says})
		}
		s.mu.Unlock()
	}
	return out
}

// Down tells how many of the servers do not answer anything at present, and how many there are.
func (r *Resolver) Down() (down, all int) {
	for _, s := range r.servers {
		s.mu.Lock()
		if s.down {
			down++
		}
		s.mu.Unlock()
	}
	return down, len(r.servers)
}
