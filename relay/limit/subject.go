package limit

import "net/netip"

// Host is what one customer of a provider holds: an IPv4 address, or the /64 of
// an IPv6 address. The zero value comes back for the zero value.
func Host(a netip.Addr) netip.Prefix { return prefix(a, 32, 64) }

// Network is what one operator holds at least: the /24 of an IPv4 address, the
// /48 of an IPv6 address.
func Network(a netip.Addr) netip.Prefix { return prefix(a, 24, 48) }

func prefix(a netip.Addr, bits4, bits6 int) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := bits4
	if a.Is6() {
		bits = bits6
	}
	p, _ := a.Prefix(bits) // the bits are right for the address
	return p
}

// subject is a network as a table knows it.
func subject(p netip.Prefix) []byte {
	b, _ := p.MarshalBinary() // never fails
	return b
}
