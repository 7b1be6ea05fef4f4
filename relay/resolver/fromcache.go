package resolver

import (
	"context"
	"sync/atomic"

	"github.com/miekg/dns"
)

type fromCacheKey struct{}

// FromCache gives a context whose lookups are answered out of the cache, at once, or fail for now. missed tells whether
// one did since it was asked last: then what was found with the context is of no use.
func FromCache(ctx context.Context) (cached context.Context, missed func() bool) {
	m := new(atomic.Bool)
	return context.WithValue(ctx, fromCacheKey{}, m), func() bool { return m.Swap(false) }
}

// fromCache is lookup for such a context; ok is false for any other.
func (r *Resolver) fromCache(ctx context.Context, q question) (e *entry, err error, ok bool) {
	missed, ok := ctx.Value(fromCacheKey{}).(*atomic.Bool)
	if !ok {
		return nil, nil, false
	}
	r.mu.Lock()
	e = r.cache.get(q, r.cfg.Now())
	r.mu.Unlock()
	if e == nil {
		missed.Store(true)
		return nil, q.failed(ErrTemporary, "it is not in the cache"), true
	}
	r.cfg.Looked(dns.TypeToString[q.typ], Hit, 0)
	return e, nil, true
}
