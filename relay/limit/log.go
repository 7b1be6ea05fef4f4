package limit

import (
	"context"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"
)

// The lines of one kind that are written: a few at once, and so many in a second.
const (
	logBurst  = 100
	logRate   = 5
	logKinds  = 64 // messages are constants of the code: there are far fewer
	otherKind = "" // what is beyond them
)

// Quiet wraps a log handler so that a flood of one kind of line, the same
// message, does not fill the disk. The next line of that kind that is written has
// the number of those that were not as "unlogged".
func Quiet(h slog.Handler) slog.Handler {
	return &quiet{Handler: h, book: &logBook{kinds: make(map[string]*logKind)}}
}

type quiet struct {
	slog.Handler
	book *logBook
}

type logBook struct {
	mu    sync.Mutex
	kinds map[string]*logKind
}

type logKind struct {
	pace     *rate.Limiter
	unlogged int
}

// may tells whether a line may be written, and how many before it were not.
func (b *logBook) may(message string) (ok bool, unlogged int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.kinds[message]
	if k == nil {
		if len(b.kinds) >= logKinds {
			message = otherKind
		}
		if k = b.kinds[message]; k == nil {
			k = &logKind{pace: rate.NewLimiter(logRate, logBurst)}
			b.kinds[message] = k
		}
	}
	if !k.pace.Allow() {
		k.unlogged++
		return false, 0
	}
	unlogged, k.unlogged = k.unlogged, 0
	return true, unlogged
}

// Handle implements slog.Handler.
func (q *quiet) Handle(ctx context.Context, r slog.Record) error {
	ok, unlogged := q.book.may(r.Message)
	if !ok {
		return nil
	}
	if unlogged > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("unlogged", unlogged))
	}
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q *quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &quiet{Handler: q.Handler.WithAttrs(attrs), book: q.book}
}

// WithGroup implements slog.Handler.
func (q *quiet) WithGroup(name string) slog.Handler {
	return &quiet{Handler: q.Handler.WithGroup(name), book: q.book}
}
