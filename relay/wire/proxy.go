package wire

import (
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

// proxyHeaderTime is how long a load balancer may take to send its header: it
// does so at once.
const proxyHeaderTime = 10 * time.Second

// Proxied is l for load balancers that name their client in a PROXY header,
// version 1 or 2, at the beginning of each connection. from tells which peers do;
// they must, and nobody else may: anybody could be anybody otherwise. A
// connection of the load balancer's own (LOCAL, UNKNOWN) keeps its address. The
// header is read in the connection's goroutine, and not by Accept.
func Proxied(l net.Listener, from func(netip.Addr) bool) net.Listener {
	return &proxyproto.Listener{
		Listener:          l,
		ReadHeaderTimeout: proxyHeaderTime,
		ConnPolicy: func(o proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
			if from(addrPort(o.Upstream).Addr()) {
				return proxyproto.REQUIRE, nil
			}
			return proxyproto.SKIP, nil
		},
	}
}

// proxied tells whether the connection has the PROXY header that it needs, and a
// client with an address: one of a Unix socket would be bound by no limit.
func (c *Conn) proxied() bool {
	p, wants := c.raw.(*proxyproto.Conn)
	return !wants || p.ProxyHeader() != nil && addrPort(p.RemoteAddr()).IsValid()
}
