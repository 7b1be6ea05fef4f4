package backfill

import (
	"context"
	"fmt"
	"sync"
	"time"

	"crossfade/backfill/imapconn"

	"golang.org/x/time/rate"
)

const (
	firstPause = time.Second
	// longestPause is where doubling ends, and defaultPatience what a pass waits in
	// all before it ends: whoever makes the passes has a schedule of his own.
	longestPause    = time.Minute
	defaultPatience = 5 * time.Minute
)

// throttle is one side, as it slows the lanes of a pass down: one server that
// is asked by several connections throttles them all.
type throttle struct {
	patience time.Duration
	waited   func(time.Duration, error) // told of each pause, before it

	mu    sync.Mutex
	until time.Time
	next  time.Duration // the pause when the server names none
	total time.Duration
	n     int
}

// Pause implements [imapconn.Pauser].
func (t *throttle) Pause(ctx context.Context, cause error) error {
	wait, err := t.note(cause)
	if err != nil {
		return err
	}
	return t.wait(ctx, wait)
}

// wait waits for as long as note said.
func (t *throttle) wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// note gives how long to wait. Lanes that are throttled at once wait at once,
// and count as one.
func (t *throttle) note(cause error) (time.Duration, error) {
	wait, _ := imapconn.Throttled(cause)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if left := t.until.Sub(now); left > 0 && left >= wait {
		return left, nil
	}
	t.n++
	if wait <= 0 {
		t.next = min(max(2*t.next, firstPause), longestPause)
		wait = t.next
	}
	patience := t.patience
	if patience <= 0 {
		patience = defaultPatience
	}
	if t.total+wait > patience {
		return 0, fmt.Errorf("throttled for %v, and the server wants %v more: %v (nothing is lost: the next pass goes on from here)", t.total.Round(time.Second), wait, cause)
	}
	t.total += wait
	t.until = now.Add(wait)
	if t.waited != nil {
		t.waited(wait, cause)
	}
	return wait, nil
}

// eased says that a command went through: the next pause begins small again.
func (t *throttle) eased() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = 0
}

// times gives how often the server had lanes wait.
func (t *throttle) times() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// Rate is the most that is asked of a server, as a token bucket of one second;
// zero means no bound.
type Rate struct {
	Bytes    int64   // of messages, in a second
	Messages float64 // in a second
}

// Rates bound one side, of all users of the process together and of each.
type Rates struct {
	All  Rate
	User Rate
}

// bucket is a Rate at work; nil bounds nothing.
type bucket struct {
	bytes    *rate.Limiter
	messages *rate.Limiter
}

// noBurst is the burst of a bucket that bounds nothing.
const noBurst = 1 << 30

func newBucket(r Rate) *bucket {
	b := &bucket{bytes: rate.NewLimiter(rate.Inf, noBurst), messages: rate.NewLimiter(rate.Inf, noBurst)}
	b.set(r)
	return b
}

// set changes the rate, also for whoever takes from the bucket just now.
func (b *bucket) set(r Rate) {
	setLimit(b.bytes, float64(r.Bytes))
	setLimit(b.messages, r.Messages)
}

func setLimit(l *rate.Limiter, perSecond float64) {
	if perSecond <= 0 {
		l.SetLimit(rate.Inf)
		l.SetBurst(noBurst)
		return
	}
	l.SetLimit(rate.Limit(perSecond))
	l.SetBurst(max(int(min(perSecond, noBurst)), 1))
}

// take waits until n messages with so many octets may pass.
func (b *bucket) take(ctx context.Context, n int, octets int64) error {
	if b == nil {
		return nil
	}
	if err := takeTokens(ctx, b.messages, int64(n)); err != nil {
		return err
	}
	return takeTokens(ctx, b.bytes, octets)
}

// takeTokens takes more than the bucket holds in several draughts.
func takeTokens(ctx context.Context, l *rate.Limiter, n int64) error {
	for n > 0 {
		part := int(min(n, int64(l.Burst())))
		// WaitN gives up at once when the deadline is nearer than the tokens.
		if err := l.WaitN(ctx, part); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if part > l.Burst() {
				continue // the rate was lowered meanwhile
			}
			return fmt.Errorf("the rate that the configuration allows is too low for the time that is left: %w", err)
		}
		n -= int64(part)
	}
	return nil
}
