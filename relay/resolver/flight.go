package resolver

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// flight is a question that is being asked, for all who wait for its answer. It ends when nobody waits any more.
type flight struct {
	done    chan struct{}
	entry   *entry // once done is closed
	waiters int    // guarded by the Resolver's lock
	cancel  context.CancelFunc
}

// lookup gives the answer to a question, out of the cache or from a server. An error is that this caller did not get
// one; what the servers said is in the entry.
func (r *Resolver) lookup(ctx context.Context, q question) (*entry, error) {
	if e, err, ok := r.fromCache(ctx, q); ok {
		return e, err
	}
	if e, f := r.board(q, nil); e != nil || f != nil {
		return r.wait(ctx, q, e, f)
	}
	if !spend(ctx) {
		r.cfg.Looked(dns.TypeToString[q.typ], Temporary, 0)
		return nil, q.failed(ErrTemporary, "this message needs more lookups than one may have")
	}
	leave, ok := r.enter(ctx)
	if !ok {
		r.cfg.Looked(dns.TypeToString[q.typ], Temporary, 0)
		return nil, q.failed(ErrTemporary, "its sender's network has too many questions under way")
	}
	begun := false
	e, f := r.board(q, func() *flight { begun = true; return r.takeOff(ctx, q, leave) })
	if !begun { // somebody asked meanwhile
		leave()
	}
	return r.wait(ctx, q, e, f)
}

// board gives the answer in the cache, or else the flight that is on its way to one, with a place on it. Where there is
// neither, takeOff begins one, unless it is nil.
func (r *Resolver) board(q question, takeOff func() *flight) (*entry, *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.cache.get(q, r.cfg.Now()); e != nil {
		r.cfg.Looked(dns.TypeToString[q.typ], Hit, 0)
		return e, nil
	}
	f := r.flights[q]
	switch {
	case f != nil:
		r.cfg.Looked(dns.TypeToString[q.typ], Shared, 0)
	case takeOff == nil:
		return nil, nil
	default:
		f = takeOff()
	}
	f.waiters++
	return nil, f
}

// wait waits for what board gave.
func (r *Resolver) wait(ctx context.Context, q question, e *entry, f *flight) (*entry, error) {
	if e != nil {
		return e, nil
	}
	select {
	case <-f.done:
		return f.entry, nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		if r.flights[q] == f {
			delete(r.flights, q)
		}
	}
	return nil, q.failed(ErrTemporary, "no time is left to wait for it: %v", context.Cause(ctx))
}

// takeOff begins to ask, and calls ended when that is over. The time for it is the question's own, for whoever comes
// later. It is called with the lock held.
func (r *Resolver) takeOff(ctx context.Context, q question, ended func()) *flight {
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Timeout)
	f := &flight{done: make(chan struct{}), cancel: cancel}
	r.flights[q] = f
	go func() {
		defer cancel()
		began := r.cfg.Now()
		e := r.resolve(own, q)
		f.entry = e
		r.mu.Lock()
		if r.flights[q] == f { // otherwise nobody waits, and it was broken off
			delete(r.flights, q)
			r.cache.put(q, e)
		}
		r.mu.Unlock()
		ended()
		r.cfg.Looked(dns.TypeToString[q.typ], e.result(), r.cfg.Now().Sub(began))
		close(f.done)
	}()
	return f
}

// resolve asks within the bound on questions under way. It runs in a goroutine of its own: what servers send must not end
// the process, whatever the library makes of it.
func (r *Resolver) resolve(ctx context.Context, q question) (e *entry) {
	defer func() {
		if p := recover(); p != nil {
			e = r.failure(q.failed(ErrTemporary, "the answer cannot be read: %v", p))
		}
	}()
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		e := r.failure(q.failed(ErrTemporary, "%d questions are under way already", cap(r.slots)))
		e.until = r.cfg.Now() // nobody asked: the next who wants to know may find a place
		return e
	}
	defer func() { <-r.slots }()
	return r.ask(ctx, q)
}

// failure is an entry for what nobody could tell.
func (r *Resolver) failure(err *Error) *entry {
	return &entry{err: err, until: r.cfg.Now().Add(failureTTL)}
}

func (e *entry) result() Result {
	switch {
	case errors.Is(e.err, ErrNoName):
		return NoName
	case errors.Is(e.err, ErrTemporary):
		return Temporary
	case e.err != nil:
		return Permanent
	case len(e.records) == 0:
		return NoData
	}
	return Found
}

type budgetKey struct{}

// WithBudget bounds how many questions may go to the servers for the lookups that are made with the context it gives;
// further ones fail for now. What is in the cache, or asked already, costs nothing.
func WithBudget(ctx context.Context, questions int) context.Context {
	left := new(atomic.Int64)
	left.Store(int64(questions))
	return context.WithValue(ctx, budgetKey{}, left)
}

func spend(ctx context.Context) bool {
	left, ok := ctx.Value(budgetKey{}).(*atomic.Int64)
	return !ok || left.Add(-1) >= 0
}

// now is the clock of the configuration.
func (r *Resolver) now() time.Time { return r.cfg.Now() }
