package backfill

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/backfill/imapconn"
)

const (
	// srcSeats and dstSeats are the connections of one lane: the destination is
	// written to over one and looked into over another.
	srcSeats = 1
	dstSeats = 2
	// lowTime is how long a server that refused a connection is asked for fewer.
	lowTime  = 10 * time.Minute
	seatLook = 10 * time.Second
	// promptSeats of the connections to a server, and at most an eighth of them, are
	// kept for passes that somebody waits for: two of these have room at the
	// destination while all others are taken by copies that last for hours.
	promptSeats = 2 * dstSeats
)

// seats are the connections to one server that all passes share. A pass waits
// for those of its first lane, and takes those of more lanes only while nobody
// waits.
type seats struct {
	mu      sync.Mutex
	all     int // 0: no bound
	taken   int
	low     int // the bound until lowEnd, where the server refused more
	lowEnd  time.Time
	waiting []*seatWait
	paused  time.Time // until then nobody asks anything of the server
}

type seatWait struct {
	n      int
	prompt bool
	ready  chan struct{}
}

// hurry is how long a pass may wait for its connections.
type hurry int

const (
	patient hurry = iota
	prompt        // somebody waits for it, see Options.Prompt
	held          // a user is held meanwhile
)

// hurry is that of a pass.
func (p *pass) hurry() hurry {
	switch {
	case p.o.Final:
		return held
	case p.o.Prompt:
		return prompt
	}
	return patient
}

func (s *seats) setAll(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = n
	s.hand()
}

func (s *seats) fits(n int, prompt bool) bool {
	limit := s.all
	if time.Now().Before(s.lowEnd) && (limit == 0 || s.low < limit) {
		limit = s.low
	}
	if limit == 0 || s.taken == 0 {
		return true
	}
	if !prompt {
		limit -= min(promptSeats, limit/8)
	}
	return s.taken+n <= limit
}

// hand gives connections to those who wait, in their order, the prompt ones first.
func (s *seats) hand() {
	for len(s.waiting) > 0 && s.fits(s.waiting[0].n, s.waiting[0].prompt) {
		w := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.taken += w.n
		close(w.ready)
	}
}

// take waits for n connections. Who has a user held waits for nobody, and is above
// the bound when need be: those who have the connections may copy for hours.
func (s *seats) take(ctx context.Context, n int, h hurry) error {
	s.mu.Lock()
	if h == held {
		s.taken += n
		s.mu.Unlock()
		return nil
	}
	w := &seatWait{n: n, prompt: h == prompt, ready: make(chan struct{})}
	at := len(s.waiting)
	if w.prompt {
		if i := slices.IndexFunc(s.waiting, func(x *seatWait) bool { return !x.prompt }); i >= 0 {
			at = i
		}
	}
	s.waiting = slices.Insert(s.waiting, at, w)
	s.hand()
	s.mu.Unlock()
	look := time.NewTicker(seatLook) // a lower bound ends by itself
	defer look.Stop()
	for {
		select {
		case <-w.ready:
			return nil
		case <-look.C:
			s.mu.Lock()
			s.hand()
			s.mu.Unlock()
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			if i := slices.Index(s.waiting, w); i >= 0 {
				s.waiting = slices.Delete(s.waiting, i, i+1)
			} else {
				s.taken -= n // they were given just now
			}
			s.hand()
			return context.Cause(ctx)
		}
	}
}

// try takes n connections when they are free and nobody waits.
func (s *seats) try(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) > 0 || !s.fits(n, false) {
		return false
	}
	s.taken += n
	return true
}

func (s *seats) give(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken -= n
	s.hand()
}

// crowded tells whether somebody waits, or there are more connections than the
// server is asked for now.
func (s *seats) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) > 0 || !s.fits(0, true)
}

// refused lowers the bound for a while when err says that the server wants fewer
// connections; n of those that are taken could not be opened.
func (s *seats) refused(err error, n int) {
	if !tooMany(err) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.low, s.lowEnd = max(s.taken-n, 1), time.Now().Add(lowTime)
}

// tooMany tells whether a server refused a connection because it has enough of
// them.
func tooMany(err error) bool {
	if err == nil {
		return false
	}
	var login *imapconn.LoginError
	_, throttled := imapconn.Throttled(err)
	return throttled || errors.As(err, &login) && login.Busy() ||
		strings.Contains(strings.ToLower(err.Error()), "maximum number of connections")
}

// slow has everybody wait who is about to ask the server for something.
func (s *seats) slow(wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end := time.Now().Add(wait); end.After(s.paused) {
		s.paused = end
	}
}

// calm waits until the server may be asked again.
func (s *seats) calm(ctx context.Context) error {
	for {
		s.mu.Lock()
		left := time.Until(s.paused)
		s.mu.Unlock()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// srcServer and dstServer are what all passes have of the servers that this one
// reads from and appends to.
func (p *pass) srcServer() *seats {
	if p.o.Back {
		return &p.c.together().dstSeats
	}
	return &p.c.together().srcSeats
}

func (p *pass) dstServer() *seats {
	if p.o.Back {
		return &p.c.together().srcSeats
	}
	return &p.c.together().dstSeats
}

// sit takes the connections of the pass's first lane to both servers: those to
// the old one first, in both directions, so that nobody who holds those to the new
// one waits.
func (p *pass) sit() error {
	src := func() (err error) {
		if p.job.From == nil {
			err = p.srcServer().take(p.ctx, srcSeats, p.hurry())
			p.srcTaken = err == nil
		}
		return err
	}
	dst := func() error {
		err := p.dstServer().take(p.ctx, dstSeats, p.hurry())
		p.dstTaken = err == nil
		return err
	}
	first, second := src, dst
	if p.o.Back {
		first, second = dst, src
	}
	if err := first(); err != nil {
		return err
	}
	return second()
}

// stand gives them back.
func (p *pass) stand() {
	if p.srcTaken {
		p.srcServer().give(srcSeats)
	}
	if p.dstTaken {
		p.dstServer().give(dstSeats)
	}
	p.srcTaken, p.dstTaken = false, false
}

// sitMore takes the connections of one more lane, if they are to be had.
func (p *pass) sitMore() bool {
	if p.job.From == nil && !p.srcServer().try(srcSeats) {
		return false
	}
	if p.dstServer().try(dstSeats) {
		return true
	}
	if p.job.From == nil {
		p.srcServer().give(srcSeats)
	}
	return false
}

func (p *pass) standMore() {
	if p.job.From == nil {
		p.srcServer().give(srcSeats)
	}
	p.dstServer().give(dstSeats)
}

// crowded tells whether others wait for connections that this pass could do
// without.
func (p *pass) crowded() bool {
	return p.job.From == nil && p.srcServer().crowded() || p.dstServer().crowded()
}

// pauser waits for one pass when its server wants it slower, and has all others
// wait too when what the server says concerns more than this account.
type pauser struct {
	*throttle
	server *seats
	side   Side
}

// Pause implements [imapconn.Pauser].
func (t pauser) Pause(ctx context.Context, cause error) error {
	if limit := exhausted(t.side, cause); limit != nil {
		return limit // no matter of a pass's patience
	}
	wait, err := t.note(cause)
	if err != nil {
		return err
	}
	if imapconn.Everybody(cause) {
		t.server.slow(wait)
	}
	return t.wait(ctx, wait)
}
