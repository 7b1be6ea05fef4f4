package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"crossfade/mail"
)

// strayTime is how long after his flip mail is put into a user's old mailbox: well
// within his window.
const strayTime = window / 2

// sides is who reads what, and since when.
type sides struct {
	mu    sync.Mutex
	reads map[string]mail.Route
	since map[string]time.Time
}

func newSides(users []string) *sides {
	s := &sides{reads: map[string]mail.Route{}, since: map[string]time.Time{}}
	for _, u := range users {
		s.reads[u] = mail.Old
	}
	return s
}

func (s *sides) set(user string, side mail.Route) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads[user], s.since[user] = side, time.Now()
}

func (s *sides) of(user string) (side mail.Route, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[user], s.since[user]
}

// stray puts mail past the relay into mailboxes until ctx ends: into the old ones of
// users who have moved, as senders do whose resolvers still know the old MX, and into
// the new ones of users who have not, as colleagues do whom the new system finds
// there. Each has to come to where its user reads.
func (s *show) stray(ctx context.Context) error {
	for n := 0; ctx.Err() == nil; n++ {
		user := s.users[n%len(s.users)]
		reads, since := s.sides.of(user)
		to := s.old
		if reads == mail.Old {
			to = s.new
		}
		if reads == mail.Old || time.Since(since) < strayTime {
			token := fmt.Sprintf("stray-%06d", n)
			body := render(s.templates[n%len(s.templates)], user, token)
			if _, err := to.Append(user, "INBOX", nil, time.Now(), body); err != nil {
				return fmt.Errorf("putting %s into a mailbox of %s: %w", token, user, err)
			}
			s.book.expect(user, token, body, s.book.stray)
		}
		select {
		case <-ctx.Done():
		case <-time.After(15 * time.Millisecond):
		}
	}
	return nil
}
