package limit

import (
	"net/netip"
	"sync"
)

// class is who a client is to us.
type class int

const (
	strangers class = iota
	friends         // networks that sent good mail
	ours
)

// places are the limits of connections at once for one class.
type places struct {
	total               int // in all, whoever has them
	perHost, perNetwork int
	// share is how many times the places that are still free one network may have,
	// once half of them are taken; 0: no bound.
	share int
}

func (r *rules) limits(c class) places {
	reserve := r.Connections * min(max(r.Reserve, 0), 100) / 100
	p := places{total: r.Connections, perHost: r.PerHost, perNetwork: r.PerNetwork}
	switch c {
	case strangers:
		p.total, p.share = max(p.total-reserve, 1), 1
	case friends:
		p.total, p.share = max(p.total-reserve/4, 1), 4
	default:
		return places{total: p.total}
	}
	return p
}

// minShare is what a network gets of the last places.
const minShare = 4

// doors counts connections that are open, of all, of hosts and of networks. It
// has as many entries as there are connections, at most.
type doors struct {
	mu    sync.Mutex
	total int
	count map[netip.Prefix]int // of hosts and of networks: their lengths differ
}

// open counts a connection that only the number of all binds.
func (d *doors) open(a netip.Addr, p places) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.total >= p.total {
		return false
	}
	d.add(a, 1)
	return true
}

// enter counts a connection, or says what is in its way. When half of the places
// are taken, a network may have no more than a share of those that are free: the
// fewer are left, the less one network may have of them, so that those who have
// most are turned away first and one who has none still finds a place.
func (d *doors) enter(a netip.Addr, p places) (reason string) {
	host, net := Host(a), Network(a)
	d.mu.Lock()
	defer d.mu.Unlock()
	free := p.total - d.total
	switch {
	case free <= 0:
		return Full
	case p.perHost > 0 && d.count[host] >= p.perHost:
		return HostConnections
	case p.perNetwork > 0 && d.count[net] >= p.perNetwork:
		return NetworkConnections
	case p.share > 0 && d.total >= p.total/2 && d.count[net] >= max(free*p.share, minShare):
		return NetworkShare
	}
	d.add(a, 1)
	return ""
}

func (d *doors) leave(a netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.add(a, -1)
}

func (d *doors) add(a netip.Addr, n int) {
	d.total += n
	if !a.IsValid() {
		return
	}
	if d.count == nil {
		d.count = make(map[netip.Prefix]int)
	}
	for _, p := range [...]netip.Prefix{Host(a), Network(a)} {
		if d.count[p] += n; d.count[p] <= 0 {
			delete(d.count, p)
		}
	}
}
