package cutover

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// errPaused ends a pass that an operator wants no more of for now. It is no
// failure: the user waits for his next place until the pause is over.
var errPaused = errors.New("the backfill is paused")

// work is what a user needs a place for, in the order in which places are given.
type work int

const (
	workFlip  work = iota // to be held, copied and flipped, or just flipped
	workTail              // ready, and kept so
	workFirst             // not in sync yet
)

// turn says whose turn it is among those who wait for a place.
type turn struct {
	work work
	wave string
	size *atomic.Int64 // octets, which may become known meanwhile; nil or 0: they are not
	// exempt is who no pause concerns.
	exempt bool
}

func (t turn) octets() int64 {
	if t.size == nil {
		return 0
	}
	return t.size.Load()
}

// waiter waits for a place.
type waiter struct {
	turn
	seq   uint64
	ready chan struct{}
}

// places are given to users at work. Nobody waits for ever: of four places one
// goes to a first copy when there is any, whoever else waits, and within a wave
// every second one goes to who has waited longest instead of to the largest
// mailbox. A paused wave gets none.
type places struct {
	paused func(wave string) bool

	mu      sync.Mutex
	all     int
	taken   int
	waiting []*waiter
	seq     uint64 // of waiters
	given   uint64 // places that somebody waited for
	first   uint64 // of these, to first copies
}

// take waits for a place. waits is called when there is none at once.
func (p *places) take(ctx context.Context, t turn, waits func()) error {
	p.mu.Lock()
	w := &waiter{turn: t, seq: p.seq, ready: make(chan struct{})}
	p.seq++
	p.waiting = append(p.waiting, w)
	p.hand()
	p.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	default:
	}
	waits()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiting, w); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
		return ctx.Err()
	}
	p.taken-- // it was given just now
	p.hand()
	return ctx.Err()
}

func (p *places) giveBack() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	p.hand()
}

// look gives places to those who may have them since something changed.
func (p *places) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hand()
}

// free counts the places that nobody has.
func (p *places) free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all - p.taken
}

func (p *places) hand() {
	for p.taken < p.all {
		w := p.next()
		if w == nil {
			return
		}
		p.waiting = slices.DeleteFunc(p.waiting, func(x *waiter) bool { return x == w })
		p.taken++
		close(w.ready)
	}
}

// next chooses among those who wait.
func (p *places) next() *waiter {
	able := slices.DeleteFunc(slices.Clone(p.waiting), func(w *waiter) bool { return p.paused != nil && !w.exempt && p.paused(w.wave) })
	if len(able) == 0 {
		return nil
	}
	p.given++
	lowest := slices.MinFunc(able, func(a, b *waiter) int { return cmp.Compare(a.work, b.work) }).work
	if p.given%4 == 0 && slices.ContainsFunc(able, func(w *waiter) bool { return w.work == workFirst }) {
		lowest = workFirst
	}
	able = slices.DeleteFunc(able, func(w *waiter) bool { return w.work != lowest })
	if lowest != workFirst {
		return slices.MinFunc(able, bySeq)
	}
	p.first++
	wave := slices.MinFunc(able, func(a, b *waiter) int { return compareWaves(a.wave, b.wave) }).wave
	able = slices.DeleteFunc(able, func(w *waiter) bool { return w.wave != wave })
	if p.first%2 == 0 {
		return slices.MinFunc(able, bySeq)
	}
	return slices.MinFunc(able, func(a, b *waiter) int { return cmp.Or(cmp.Compare(b.octets(), a.octets()), bySeq(a, b)) })
}

func bySeq(a, b *waiter) int { return cmp.Compare(a.seq, b.seq) }

// compareWaves orders waves by name, with the numbers in them as numbers: w2 is
// before w10. Users without a wave, who were named one by one, are before all.
func compareWaves(a, b string) int {
	for a != "" && b != "" {
		x, restA := number(a)
		y, restB := number(b)
		if x != "" && y != "" {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
				return c
			}
			a, b = restA, restB
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// number cuts the digits off the beginning.
func number(s string) (digits, rest string) {
	rest = strings.TrimLeft(s, "0123456789")
	return s[:len(s)-len(rest)], rest
}
