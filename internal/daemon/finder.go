package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"crossfade/backfill/find"
	"crossfade/backfill/imapconn"
	"crossfade/mail"
	"crossfade/relay"
	"crossfade/router"
)

// finder looks for deliveries in doubt in the mailboxes of both sides, logged in as
// the backfill is.
type finder struct {
	boxes  *mailboxes
	users  func(ctx context.Context, key string) (router.User, error)
	dialer *imapconn.Dialer
	rests  map[mail.Route]*imapRest
	memory find.Memory
}

// newFinder gives the Finder of the configuration in force: a reload may bring or
// take IMAP.
func (d *Daemon) newFinder() relay.Finder {
	return &finder{
		boxes: d.mailboxes, users: d.store.User, dialer: &imapconn.Dialer{Idle: time.Minute, NetDial: d.dialIMAP},
		rests: map[mail.Route]*imapRest{mail.Old: {}, mail.New: {}},
	}
}

// Find implements relay.Finder.
func (f *finder) Find(ctx context.Context, s relay.Search) (relay.Found, error) {
	acct, err := f.account(ctx, s)
	if err != nil {
		return relay.Found{}, err
	}
	rest := f.rests[s.Side]
	if err := rest.err(); err != nil {
		return relay.Found{}, err
	}
	places, err := find.Message(ctx, f.dialer, acct, find.Query{ID: string(s.ID), Since: s.Since, Copies: s.Copies, Memory: &f.memory})
	rest.note(err)
	out := relay.Found{Copies: len(places)}
	var where []string
	for _, p := range places {
		where = append(where, p.String())
	}
	out.Where = strings.Join(where, "; ")
	if err != nil {
		return out, fmt.Errorf("the mailbox on %s cannot be looked into: %w", s.Side, err)
	}
	return out, nil
}

// Searchable implements relay.Searchable.
func (f *finder) Searchable(side mail.Route) error {
	_, err := f.side(side)
	return err
}

// side gives the mailboxes of a side, when they can be looked into.
func (f *finder) side(r mail.Route) (imapSide, error) {
	sides := f.boxes.sides.Load()
	side := sides.new
	if r == mail.Old {
		side = sides.old
	}
	if side.server.Address == "" || !side.mailbox.IsZero() {
		return side, fmt.Errorf("%w: backends.%s has no imap", relay.ErrUnsearchable, r)
	}
	return side, nil
}

// account says how to log in to the mailbox of a recipient.
func (f *finder) account(ctx context.Context, s relay.Search) (imapconn.Account, error) {
	side, err := f.side(s.Side)
	if err != nil {
		return imapconn.Account{}, err
	}
	key := s.User
	if key == "" {
		key = s.Rcpt.Key()
	}
	u, err := f.users(ctx, key)
	if errors.Is(err, router.ErrNoUser) {
		u, err = router.User{Address: key}, nil
	}
	if err != nil {
		return imapconn.Account{}, fmt.Errorf("read the user %s: %w", key, err)
	}
	login := u.NewLogin
	if s.Side == mail.Old {
		login = u.OldLogin
	}
	acct, err := side.account(u.Address, login)
	if err != nil {
		return acct, fmt.Errorf("%w: %w", relay.ErrUnsearchable, err)
	}
	return acct, nil
}

// imapRest keeps looks from a server that cannot be reached: each would take its place
// for as long as the connection takes to fail.
type imapRest struct {
	mu    sync.Mutex
	until time.Time
	wait  time.Duration
	cause error
}

// The shortest and the longest rest.
const (
	shortRest = time.Second
	longRest  = 30 * time.Second
)

func (r *imapRest) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.until) {
		return r.cause
	}
	return nil
}

func (r *imapRest) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !errors.Is(err, find.ErrUnreachable) {
		r.wait = 0
		return
	}
	r.wait = min(max(2*r.wait, shortRest), longRest)
	r.until, r.cause = time.Now().Add(r.wait), err
}
