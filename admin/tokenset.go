package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// StoredToken is a token that was made over the API, as a [TokenStore] keeps it:
// its hash, never its value.
type StoredToken struct {
	Name    string    `json:"name"`
	Role    Role      `json:"role"`
	Hash    string    `json:"hash"` // sha256: and 64 hexadecimal digits
	Created time.Time `json:"created"`
	By      string    `json:"by"` // name of the token that made it
	Expires time.Time `json:"expires,omitzero"`
}

// TokenStore keeps tokens that are made over the API. All nodes that share a store
// have the same.
type TokenStore interface {
	LoadTokens(ctx context.Context) ([]StoredToken, error)
	SaveToken(ctx context.Context, t StoredToken) error
	DeleteToken(ctx context.Context, name string) error
}

// tokenRefresh is how often the tokens are read from the store: as long as a token
// that was revoked on another node may still be used here.
const tokenRefresh = 5 * time.Second

// tokenSet are the tokens of the file and those of the store.
type tokenSet struct {
	mu     sync.Mutex
	file   Tokens
	stored []StoredToken
	both   atomic.Pointer[Tokens]
}

func (s *tokenSet) all() Tokens { return *s.both.Load() }

func (s *tokenSet) setFile(file Tokens) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file = file
	s.join()
}

func (s *tokenSet) setStored(stored []StoredToken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored = stored
	s.join()
}

// join puts both together. A record that cannot be read is no token.
func (s *tokenSet) join() {
	both := slices.Clone(s.file)
	for _, st := range s.stored {
		t, err := newHashedToken(st.Name, st.Role, st.Hash)
		if err != nil {
			continue
		}
		t.Expires, t.stored = st.Expires, true
		both = append(both, t)
	}
	s.both.Store(&both)
}

func (s *tokenSet) storedTokens() []StoredToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.stored)
}

// valid tells whether the token with a hash may be used; it does not look at what
// a stranger sent, and takes the time that it takes.
func (ts Tokens) valid(hash [sha256.Size]byte, now time.Time) bool {
	for i := range ts {
		if subtle.ConstantTimeCompare(hash[:], ts[i].hash[:]) == 1 {
			return !ts[i].expired(now)
		}
	}
	return false
}

func (t Token) expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// RefreshTokens reads the tokens of the store. On an error those that were read
// before stay.
func (s *Server) RefreshTokens(ctx context.Context) error {
	if s.cfg.TokenStore == nil {
		return nil
	}
	stored, err := s.cfg.TokenStore.LoadTokens(ctx)
	if err != nil {
		return fmt.Errorf("reading the tokens of the admin API: %w", err)
	}
	s.tokens.setStored(stored)
	return nil
}

// keepTokens reads the tokens again and again until ctx ends, so that what another
// node made or revoked counts here too.
func (s *Server) keepTokens(ctx context.Context) {
	if s.cfg.TokenStore == nil {
		return
	}
	tick, stop := s.every(tokenRefresh)
	defer stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		err := s.RefreshTokens(ctx)
		if err != nil && !failing && !errors.Is(err, context.Canceled) {
			s.log.Error("tokens of the admin API stay as they were", "error", err)
		}
		failing = err != nil
	}
}
