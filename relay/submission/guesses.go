package submission

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// freeGuesses are those that cost nothing: people mistype.
	freeGuesses = 5
	// firstWait is the wait after the next one; it doubles up to maxWait.
	firstWait, maxWait = 2 * time.Second, 15 * time.Minute
	// forgetAfter is how long a network that guessed is remembered behind its wait.
	forgetAfter = time.Hour
	// maxNetworks bounds the memory. When it is full, the one that waits the
	// shortest is forgotten: whoever wants to be forgotten has to keep that many
	// others waiting.
	maxNetworks = 20_000
)

// guesses counts the failed logins of networks.
type guesses struct {
	mu sync.Mutex
	of map[netip.Prefix]*guessing
}

type guessing struct {
	failed int
	until  time.Time // no login is looked at before
}

func (g *guesses) init() { g.of = map[netip.Prefix]*guessing{} }

// network is what one customer of a provider holds.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // fails only for what is no address, and then p is that
	return p
}

func (g *guesses) may(client netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.of[network(client)]
	return x == nil || !now.Before(x.until)
}

func (g *guesses) failed(client netip.Addr, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := network(client)
	x := g.of[key]
	if x == nil {
		g.makeRoom(now)
		x = &guessing{}
		g.of[key] = x
	}
	if x.failed++; x.failed <= freeGuesses {
		x.until = now
		return
	}
	wait := maxWait
	if n := x.failed - freeGuesses - 1; n < 10 {
		wait = min(firstWait<<n, maxWait)
	}
	x.until = now.Add(wait)
}

// makeRoom forgets networks that have been quiet, and when there is none, the one
// that may try again first.
func (g *guesses) makeRoom(now time.Time) {
	if len(g.of) < maxNetworks {
		return
	}
	var first netip.Prefix
	var at time.Time
	for key, x := range g.of {
		if now.Sub(x.until) > forgetAfter {
			delete(g.of, key)
			continue
		}
		if at.IsZero() || x.until.Before(at) {
			first, at = key, x.until
		}
	}
	if len(g.of) >= maxNetworks {
		delete(g.of, first)
	}
}

// heal forgets the guesses of a network from which somebody logged in.
func (g *guesses) heal(client netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.of, network(client))
}
