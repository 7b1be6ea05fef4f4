package token

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// renewAhead is how long before its end a token is renewed; of a short one, a
	// quarter of its life.
	renewAhead = 5 * time.Minute
	// justMade: a token as young as this is not replaced when a server refuses
	// it. Its age is not the reason, and thousands of users may share it.
	justMade = 30 * time.Second
	// fetchTime bounds one renewal with all its tries.
	fetchTime = 60 * time.Second
	// Pauses after a failed renewal: doubled from the first to the last.
	firstPause = 2 * time.Second
	lastPause  = 30 * time.Second
	// sweepAt is the number of kept tokens at which ended ones are looked for.
	sweepAt = 256
)

// Source keeps the tokens of one side, and renews each before it ends: one
// renewal at a time for an identity, and none while a failure is fresh.
type Source struct {
	provider Provider
	name     string
	now      func() time.Time

	mu      sync.Mutex
	kept    map[string]*kept
	sweepAt int
}

// kept is the token of one identity. Whoever has the turn may change it.
type kept struct {
	turn  chan struct{}
	users int // calls that hold it; guarded by Source.mu

	token Token
	since time.Time // when it was fetched
	renew time.Time

	err   error
	again time.Time // no renewal before
	pause time.Duration
}

// New makes a source. The name says in errors whose tokens they are, a key of
// the configuration for one.
func New(name string, p Provider) *Source {
	return &Source{provider: p, name: name, now: time.Now, kept: map[string]*kept{}, sweepAt: sweepAt}
}

// Token gives a token for a login name that is not the refused one, where there
// is another. It waits for a renewal that is under way.
func (s *Source) Token(ctx context.Context, user, refused string) (string, error) {
	if !s.provider.PerUser() {
		user = ""
	}
	k := s.enter(user)
	defer s.leave(k)
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("%s: wait for a token: %w", s.name, context.Cause(ctx))
	}
	value, err := s.get(ctx, k, user, refused)
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.name, err)
	}
	return value, nil
}

func (s *Source) get(ctx context.Context, k *kept, user, refused string) (string, error) {
	now := s.now()
	young := refused != "" && k.token.Value == refused && now.Sub(k.since) < justMade
	if k.token.Value != "" && now.Before(k.renew) && (k.token.Value != refused || young) {
		return k.token.Value, nil
	}
	if k.err != nil && now.Before(k.again) {
		return k.stopgap(now, refused, k.err)
	}
	fetchCtx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	t, err := s.provider.Fetch(fetchCtx, user)
	now = s.now()
	if err == nil && !t.Expires.IsZero() && !now.Before(t.Expires) {
		err = &Error{From: "the token", User: user, Lasting: true, Text: "it ended at " + t.Expires.UTC().Format(time.RFC3339), Hint: "renew it, or see whether the clock of this machine is right"}
	}
	if err != nil {
		if ctx.Err() == nil { // who gave up in the middle tells nothing of the other side
			k.failed(now, err)
		}
		return k.stopgap(now, refused, err)
	}
	k.took(now, t)
	return t.Value, nil
}

// took keeps a new token.
func (k *kept) took(now time.Time, t Token) {
	k.token, k.since, k.renew = t, now, time.Time{}
	k.err, k.pause = nil, 0
	if !t.Expires.IsZero() {
		k.renew = t.Expires.Add(-min(renewAhead, t.Expires.Sub(now)/4))
	}
}

// failed keeps a failure for a while, so that many logins do not ask again and
// again what was just denied.
func (k *kept) failed(now time.Time, err error) {
	k.pause = min(max(2*k.pause, firstPause), lastPause)
	pause := k.pause
	var e *Error
	if errors.As(err, &e) {
		pause = max(pause, min(e.RetryAfter, time.Hour))
		if e.Lasting {
			pause = max(pause, justMade)
		}
	}
	k.err, k.again = err, now.Add(pause)
}

// stopgap gives the old token while it lasts: a renewal begins early, so that
// its failure is not yet anybody's loss.
func (k *kept) stopgap(now time.Time, refused string, err error) (string, error) {
	if k.token.Value != "" && k.token.Value != refused && now.Before(k.token.Expires) {
		return k.token.Value, nil
	}
	return "", err
}

// enter gives what is kept of an identity.
func (s *Source) enter(user string) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept[user]
	if k == nil {
		s.sweep()
		k = &kept{turn: make(chan struct{}, 1)}
		s.kept[user] = k
	}
	k.users++
	return k
}

func (s *Source) leave(k *kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k.users--
}

// sweep forgets what has ended, so that a migration of many thousands does not
// keep a token of each.
func (s *Source) sweep() {
	if len(s.kept) < s.sweepAt {
		return
	}
	now := s.now()
	for user, k := range s.kept {
		if k.users == 0 && !now.Before(k.token.Expires) && !now.Before(k.again) {
			delete(s.kept, user)
		}
	}
	s.sweepAt = max(sweepAt, 2*len(s.kept))
}
