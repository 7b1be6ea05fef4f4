package resolver

import (
	"context"
	"net/netip"
)

// shareOf is the part of the questions under way that may be for one asker.
const shareOf = 8

type askerKey struct{}

// WithAsker says for whom the lookups with the context it gives are made. Those for one network (/24, /48) get an eighth
// of the questions that may be under way: the names that a stranger has looked up, he chooses, and servers of his own that
// never answer would keep everybody's lookups waiting otherwise. An invalid address shares with nobody.
func WithAsker(ctx context.Context, client netip.Addr) context.Context {
	client = client.Unmap()
	bits := 48
	if client.Is4() {
		bits = 24
	}
	network, err := client.Prefix(bits)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, askerKey{}, network)
}

// share is what one asker has under way.
type share struct {
	places chan struct{}
	users  int // lookups that have a place or wait for one; guarded by the Resolver's lock
}

// enter waits for a place in the asker's share, and gives what gives it back; false when the time is over first.
func (r *Resolver) enter(ctx context.Context) (leave func(), ok bool) {
	network, bound := ctx.Value(askerKey{}).(netip.Prefix)
	if !bound {
		return func() {}, true
	}
	r.mu.Lock()
	s := r.shares[network]
	if s == nil {
		s = &share{places: make(chan struct{}, max(1, cap(r.slots)/shareOf))}
		r.shares[network] = s
	}
	s.users++
	r.mu.Unlock()
	forget := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(r.shares, network)
		}
	}
	select {
	case s.places <- struct{}{}:
		return func() { <-s.places; forget() }, true
	case <-ctx.Done():
		forget()
		return nil, false
	}
}
