package resolver

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// A server that is silent to some questions may be well: those who own the names decide how long the answers take. One
// that does not answer to the name servers of the root either is down, and is not asked until it answers that.
const (
	suspect   = 3 // questions in a row without an answer before it is asked whether it lives
	probeTime = time.Second
	minRest   = 2 * time.Second // between two looks at a server that is down; twice as long after each
	maxRest   = 30 * time.Second
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
}

// answered notes that the server lives.
func (s *server) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent, s.down, s.rest = 0, false, 0
}

// awake tells whether a server may be asked. The first lookup after its rest looks whether it lives again; the others go
// on without it.
func (r *Resolver) awake(ctx context.Context, s *server) bool {
	s.mu.Lock()
	if !s.down {
		s.mu.Unlock()
		return true
	}
	if s.probing || r.now().Before(s.next) {
		s.mu.Unlock()
		return false
	}
	s.probing = true
	s.mu.Unlock()
	return r.probe(ctx, s)
}

// fellSilent counts a question without an answer, and looks whether the server lives when there were several.
func (r *Resolver) fellSilent(ctx context.Context, s *server) {
	s.mu.Lock()
	s.silent++
	look := s.silent >= suspect && !s.probing && !s.down
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
