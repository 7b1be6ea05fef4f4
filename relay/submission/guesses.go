package submission

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	// freeGuesses are the failures of one name from one network that cost nothing:
	// people mistype. freeNames are the names that may fail from one network: an
	// office has more than one phone with an old password.
	freeGuesses, freeNames = 5, 10
	// firstWait is the wait after the next one; it doubles up to maxWait.
	firstWait, maxWait = 2 * time.Second, 15 * time.Minute
	// forgetAfter is how long a failure is remembered behind its wait.
	forgetAfter = time.Hour
	// maxGuessed bounds the memory, of names and of networks. When it is full, what
	// may be tried again first is forgotten: whoever wants to be forgotten has to
	// keep that many others waiting.
	maxGuessed = 20_000
)

// guesses counts failed logins: of a name from a network, so that one old
// password does not lock out a whole office; and of the names that fail from a
// network, so that nobody tries one password on many. A try counts as failed from
// its beginning: many at once are no way round.
type guesses struct {
	seed maphash.Seed

	mu    sync.Mutex
	names map[guessed]*guessing
	nets  map[netip.Prefix]*guessing // failed is the number of names
}

type guessed struct {
	net  netip.Prefix
	name uint64
}

type guessing struct {
	failed int
	until  time.Time // nothing is looked at before
}

func (g *guesses) init() {
	g.seed = maphash.MakeSeed()
	g.names, g.nets = map[guessed]*guessing{}, map[netip.Prefix]*guessing{}
}

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

func (g *guesses) key(client netip.Addr, name string) guessed {
	return guessed{network(client), maphash.String(g.seed, name)}
}

// try begins a login, which counts as failed until heal or forgive is called.
// False: it is not to be looked at.
func (g *guesses) try(client netip.Addr, name string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := g.key(client, name)
	of, net := g.names[key], g.nets[key.net]
	if of != nil && now.Before(of.until) || of == nil && net != nil && now.Before(net.until) {
		return false
	}
	if of == nil {
		if net == nil {
			makeRoom(g.nets, now)
			net = &guessing{}
			g.nets[key.net] = net
		}
		net.more(freeNames, now)
		makeRoom(g.names, now)
		of = &guessing{}
		g.names[key] = of
	}
	of.more(freeGuesses, now)
	return true
}

// more counts one more, and sets the wait behind it.
func (x *guessing) more(free int, now time.Time) {
	x.failed++
	x.until = now
	if over := x.failed - free - 1; over >= 0 {
		x.until = now.Add(waitFor(over))
	}
}

func waitFor(over int) time.Duration {
	if over >= 10 {
		return maxWait
	}
	return min(firstWait<<over, maxWait)
}

// makeRoom forgets what has been quiet, and when there is nothing, what may be
// tried again first.
func makeRoom[K comparable](of map[K]*guessing, now time.Time) {
	if len(of) < maxGuessed {
		return
	}
	var first K
	var at time.Time
	for key, x := range of {
		if now.Sub(x.until) > forgetAfter {
			delete(of, key)
			continue
		}
		if at.IsZero() || x.until.Before(at) {
			first, at = key, x.until
		}
	}
	if len(of) >= maxGuessed {
		delete(of, first)
	}
}

// heal forgets the guesses of a name whose owner logged in from that network, and
// nobody else's.
func (g *guesses) heal(client netip.Addr, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(g.key(client, name))
}

// forget takes a name out, of the names that fail from its network too.
func (g *guesses) forget(key guessed) {
	if g.names[key] == nil {
		return
	}
	delete(g.names, key)
	if net := g.nets[key.net]; net != nil {
		if net.failed--; net.failed <= 0 {
			delete(g.nets, key.net)
		}
	}
}

// forgive takes back a try that was not looked at.
func (g *guesses) forgive(client netip.Addr, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := g.key(client, name)
	of := g.names[key]
	if of == nil {
		return
	}
	if of.failed--; of.failed <= 0 {
		g.forget(key)
	}
}
