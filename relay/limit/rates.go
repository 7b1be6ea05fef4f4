package limit

import (
	"time"

	"golang.org/x/time/rate"
)

// Rate is so many in such a time; the zero value is no limit. That many may come
// at once, and then as many as the time gives back.
type Rate struct {
	Count int
	Per   time.Duration
}

// None reports that there is no limit.
func (r Rate) None() bool { return r.Count <= 0 || r.Per <= 0 }

// Rates are the limits of one kind of subject.
type Rates struct {
	Connections, Messages, Recipients Rate
}

// what is counted.
type what int

const (
	connections what = iota
	messages
	recipients
	kinds
)

// words are the reasons that a limiter gives.
type words [kinds]string

// limiter holds the rates of one kind of subject.
type limiter struct {
	rates [kinds]Rate
	words words
	// buckets are those of the subjects; a subject that did nothing of a kind has
	// no bucket for it.
	buckets *table[*[kinds]*rate.Limiter]
}

func newLimiter(r Rates, w words) *limiter {
	return &limiter{
		rates: [kinds]Rate{r.Connections, r.Messages, r.Recipients}, words: w,
		buckets: newTable(tableSize, spent),
	}
}

// spent is the part of what a subject may have that it has had.
func spent(b *[kinds]*rate.Limiter) float64 {
	most := 0.0
	for _, l := range b {
		if l != nil {
			most = max(most, 1-l.Tokens()/float64(l.Burst()))
		}
	}
	return most
}

// take counts one for a subject; a word says that the subject had enough.
func (l *limiter) take(of what, subject []byte) (reason string) {
	r := l.rates[of]
	if r.None() {
		return ""
	}
	l.buckets.with(subject, func(b *[kinds]*rate.Limiter) *[kinds]*rate.Limiter {
		if b == nil {
			b = new([kinds]*rate.Limiter)
		}
		if b[of] == nil {
			b[of] = rate.NewLimiter(rate.Every(r.Per/time.Duration(r.Count)), r.Count)
		}
		if !b[of].Allow() {
			reason = l.words[of]
		}
		return b
	})
	return reason
}

// over is take without counting: a word says that the subject had enough.
func (l *limiter) over(of what, subject []byte) (reason string) {
	if l.rates[of].None() {
		return ""
	}
	l.buckets.peek(subject, func(b *[kinds]*rate.Limiter) {
		if b[of] != nil && b[of].Tokens() < 1 {
			reason = l.words[of]
		}
	})
	return reason
}
