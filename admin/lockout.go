package admin

import (
	"net/netip"
	"sync"
	"time"
)

// The lock-out after wrong tokens.
const (
	lockoutFree      = 5           // wrong tokens that cost nothing
	lockoutFirst     = time.Second // after the next one; doubled with each more
	lockoutMost      = 15 * time.Minute
	lockoutForget    = time.Hour // without a wrong token: the address begins anew
	lockoutAddresses = 4096      // remembered at most; one has about 150 octets
	lockoutLook      = 32        // of them are compared when one has to go
)

// lockouts remembers which addresses sent wrong tokens. A right token does not
// clear an address: whoever has one with few rights could else try for more
// without end.
type lockouts struct {
	mu   sync.Mutex
	seen map[netip.Prefix]*attempts
}

type attempts struct {
	wrong int
	last  time.Time
	until time.Time
}

// lockoutKey is what is locked out together: an IPv4 address, or the network (/64)
// that one IPv6 customer has.
func lockoutKey(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // fails for the zero Addr alone, which then is a key of its own
	return p
}

// locked tells how long an address stays locked out; 0: it is not.
func (l *lockouts) locked(addr netip.Addr, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.seen[lockoutKey(addr)]
	if a == nil {
		return 0
	}
	return max(a.until.Sub(now), 0)
}

// wrong counts a wrong token, and gives for how long the address is locked out
// now.
func (l *lockouts) wrong(addr netip.Addr, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := lockoutKey(addr)
	a := l.seen[key]
	if a == nil {
		a = l.add(key, now)
	}
	if now.Sub(a.last) > lockoutForget {
		a.wrong = 0
	}
	a.wrong++
	a.last = now
	if a.wrong <= lockoutFree {
		return 0
	}
	pause := lockoutMost
	if n := a.wrong - lockoutFree - 1; n < 16 {
		pause = min(lockoutFirst<<n, lockoutMost)
	}
	a.until = now.Add(pause)
	return pause
}

// add makes room for an address where there is none: of some that are remembered,
// the one that was quiet for the longest time goes. To look at all of them would
// let strangers keep the relay busy.
func (l *lockouts) add(key netip.Prefix, now time.Time) *attempts {
	if l.seen == nil {
		l.seen = map[netip.Prefix]*attempts{}
	}
	if len(l.seen) >= lockoutAddresses {
		var oldest netip.Prefix
		looked := 0
		for k, a := range l.seen { // in no order
			if o := l.seen[oldest]; o == nil || a.last.Before(o.last) {
				oldest = k
			}
			if looked++; looked == lockoutLook {
				break
			}
		}
		delete(l.seen, oldest)
	}
	a := &attempts{last: now}
	l.seen[key] = a
	return a
}
