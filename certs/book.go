package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Notice is how long before its end a certificate is warned about, at most. One that is made for less than eight weeks
// is warned about in its last quarter, or every one of those that last a week would be from the first day on.
const Notice = 14 * 24 * time.Hour

// noticeOf is how long before its end a certificate is warned about.
func noticeOf(began, ends time.Time) time.Duration { return min(Notice, ends.Sub(began)/4) }

// Seen is when a certificate ends that was shown, by us or by a server.
type Seen struct {
	Name  string    `json:"name"` // whose: "smtp.tls", "backends.old.smtp"
	Began time.Time `json:"began"`
	Ends  time.Time `json:"ends"`
	At    time.Time `json:"at"` // when it was shown last
}

// Due tells whether the certificate has ended or soon will.
func (s Seen) Due(now time.Time) bool { return !now.Before(s.Ends.Add(-noticeOf(s.Began, s.Ends))) }

// Left is the time until the end; negative when that is past.
func (s Seen) Left(now time.Time) time.Duration { return s.Ends.Sub(now) }

// Words says it for people.
func (s Seen) Words(now time.Time) string {
	day := s.Ends.UTC().Format("2006-01-02 15:04 UTC")
	if !now.Before(s.Ends) {
		return fmt.Sprintf("the certificate of %s ended on %s", s.Name, day)
	}
	left := s.Ends.Sub(now)
	if left < 48*time.Hour {
		return fmt.Sprintf("the certificate of %s ends in %s, on %s", s.Name, left.Round(time.Minute), day)
	}
	return fmt.Sprintf("the certificate of %s ends in %d days, on %s", s.Name, int(left.Hours()/24), day)
}

// Source is a certificate of ours.
type Source interface {
	Status() Status
}

// Book knows when certificates end. It is safe for use by many goroutines.
type Book struct {
	sources []Source
	log     *slog.Logger
	now     func() time.Time

	mu    sync.Mutex
	peers map[string]Seen
	told  map[string]time.Time // when the log last said that a certificate ends
}

// NewBook makes a book of our certificates, to which those of others are added as they are seen.
func NewBook(log *slog.Logger, sources ...Source) *Book {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Book{sources: sources, log: log, now: time.Now, peers: map[string]Seen{}, told: map[string]time.Time{}}
}

// Saw notes the certificate that a server showed.
func (b *Book) Saw(name string, leaf *x509.Certificate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.peers[name] = Seen{Name: name, Began: leaf.NotBefore, Ends: leaf.NotAfter, At: b.now()}
}

// All lists every certificate, by name.
func (b *Book) All() []Seen {
	var out []Seen
	now := b.now()
	for _, s := range b.sources {
		if st := s.Status(); !st.Ends.IsZero() {
			out = append(out, Seen{Name: st.Name, Began: st.Began, Ends: st.Ends, At: now})
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.peers {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Seen) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Warnings says which certificates end soon or have ended, which of ours could not be replaced, and which is not there yet.
func (b *Book) Warnings() []string {
	var out []string
	now := b.now()
	for _, s := range b.All() {
		if s.Due(now) {
			out = append(out, s.Words(now))
		}
	}
	for _, src := range b.sources {
		switch st := src.Status(); {
		case st.Problem != "":
			out = append(out, fmt.Sprintf("%s: %s", st.Name, st.Problem))
		case st.Ends.IsZero():
			out = append(out, st.Name+": there is no certificate yet: it was asked for, and until it is there mail arrives in clear")
		}
	}
	return out
}

// Run writes into the log what ends, at the start, and then once a day for each certificate, until ctx ends.
func (b *Book) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		b.alarm()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (b *Book) alarm() {
	now := b.now()
	for _, s := range b.All() {
		if !s.Due(now) {
			continue
		}
		b.mu.Lock()
		last, told := b.told[s.Name]
		due := !told || now.Sub(last) >= 24*time.Hour
		if due {
			b.told[s.Name] = now
		}
		b.mu.Unlock()
		if due {
			b.log.Warn(s.Words(now)+": renew it", "certificate", s.Name, "ends", s.Ends)
		}
	}
}
