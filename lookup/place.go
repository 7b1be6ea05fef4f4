package lookup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"crossfade/mail"
	"crossfade/router"
)

// place says where one user is now.
type place struct {
	key  string // of the table
	addr mail.Address
	user router.User // the zero User when he is in no table
	side mail.Route  // that he reads
	held bool        // his mail is kept just now
}

// located is everything that an address stands for.
type located struct {
	given  mail.Address
	places []place // one, or the members of a group
}

// moved tells whether the address stands for other ones: it is an alias, a group
// or in a domain that is an alias.
func (l located) moved() bool {
	return len(l.places) != 1 || l.places[0].addr != l.given
}

// locate finds where an address is. Who must not be guessed about (a user in no
// table, with the policy to ask both sides) is asked about.
func (s *Service) locate(ctx context.Context, addr mail.Address) (located, error) {
	l, res, err := s.known(ctx, addr)
	if err != nil || res.Status == router.Known {
		return l, err
	}
	side, err := s.stray(ctx, res)
	if err != nil {
		return located{}, err
	}
	l.places[0].side = side
	return l, nil
}

// known is what the table alone says of an address: the side of a place is empty
// when it does not say.
func (s *Service) known(ctx context.Context, addr mail.Address) (located, router.Resolution, error) {
	res, users, err := s.cfg.Router.Locate(ctx, addr)
	if err != nil {
		return located{}, res, err
	}
	if res.Status == router.NotOurs {
		return located{}, res, errNobody
	}
	l := located{given: addr}
	for i, r := range res.Recipients {
		p := place{key: r.User, addr: r.Addr, user: users[i], side: r.Hint}
		if users[i].Address != "" {
			p.side = users[i].State.Side()
			_, p.held = users[i].Route()
		}
		l.places = append(l.places, p)
	}
	return l, res, nil
}

// stray is the policy for an address in no table, as the relay has it for RCPT.
func (s *Service) stray(ctx context.Context, res router.Resolution) (mail.Route, error) {
	if res.Policy == router.PolicyReject {
		return "", errNobody
	}
	if s.cfg.Unknown == nil {
		return mail.Old, nil
	}
	known := s.cfg.Unknown(ctx, res.Recipients[0].Addr)
	switch {
	case known.Guess:
		return "", fmt.Errorf("%s is in no table, and the two mail systems cannot be asked about it now", res.Recipients[0].Addr)
	case !known.Exists:
		return "", errNobody
	case known.Side == mail.New:
		return mail.New, nil
	}
	return mail.Old, nil
}

// login is where somebody who logs in belongs, and under which name.
type login struct {
	up   Upstream
	name string // to log in with there
}

// loginPlace finds the server for a login name.
func (s *Service) loginPlace(ctx context.Context, p Protocol, name string) (login, error) {
	set := s.set.Load()
	sides, ok := set.Upstreams[p]
	if !ok {
		return login{}, fmt.Errorf("%w: no servers are configured for %s: set lookup.%s", errRefused, p, p)
	}
	full := name
	if !strings.Contains(name, "@") && set.LoginDomain != "" {
		full = name + "@" + set.LoginDomain
	}
	addr, err := mail.FromUnquoted(full)
	if err != nil || addr.IsNull() {
		return login{}, errNobody
	}
	l, err := s.locate(ctx, addr)
	if err != nil {
		return login{}, err
	}
	at := l.places[0]
	switch {
	case len(l.places) == 1:
	case p != LMTP:
		return login{}, errNobody // nobody logs in as a group
	case slices.ContainsFunc(l.places, func(x place) bool { return x.side != at.side || x.held }):
		return login{}, fmt.Errorf("%s: the group has members on both sides, or some who are held: only Crossfade can deliver to it", addr)
	default:
		return login{up: sides.of(at.side), name: name}, nil // its side knows the group
	}
	if p == LMTP && at.held {
		return login{}, fmt.Errorf("%s is held while the mailbox is moved: deliver again in a moment", at.key)
	}
	return login{up: sides.of(at.side), name: at.loginName(addr, name)}, nil
}

// loginName is the name under which the user is known on his side: the one that
// the table has for it, or what was given, unless that is an alias or has a tag.
func (p place) loginName(addr mail.Address, given string) string {
	own := p.user.OldLogin
	if p.side == mail.New {
		own = p.user.NewLogin
	}
	switch {
	case own != "":
		return own
	case addr.Key() == p.key:
		return given
	}
	return p.key
}

// keepIt is what Postfix is told when mail for an address has no way just now.
const keepIt = "retry:4.2.1 the mailbox is being moved, this lasts for seconds"

// errNoRelay is a group that only Crossfade can deliver to.
var errNoRelay = errors.New("it has members on both sides, or some who are held: set lookup.transport.relay, so that Crossfade takes its mail")

// transport is the way of mail for an address.
func (s *Service) transport(ctx context.Context, addr mail.Address) (string, error) {
	t := s.set.Load().Transports
	if t.Old == "" || t.New == "" {
		return "", fmt.Errorf("%w: no transports are configured: set lookup.transport", errRefused)
	}
	l, err := s.locate(ctx, addr)
	if err != nil {
		return "", err
	}
	side, held, split := l.places[0].side, l.places[0].held, false
	for _, p := range l.places[1:] {
		split = split || p.side != side || p.held != held
	}
	switch {
	case (held || split) && t.Relay != "":
		return t.Relay, nil
	case split:
		return "", fmt.Errorf("%s: %w", addr, errNoRelay)
	case held:
		return keepIt, nil
	case side == mail.New:
		return t.New, nil
	}
	return t.Old, nil
}

// elsewhere is the way to this relay for who is not on the side home, or is held.
// Those who are there are not found, so that their own server keeps them; those who
// get mail on both sides are on each. So are those in no table, whatever the policy: the server that asks is one of the two that we would have
// to ask, and would ask us again.
func (s *Service) elsewhere(ctx context.Context, addr mail.Address, home mail.Route) (string, error) {
	relay := s.set.Load().Transports.Relay
	if relay == "" {
		return "", fmt.Errorf("%w: the way to this relay is not configured: set lookup.transport.relay", errRefused)
	}
	l, _, err := s.known(ctx, addr)
	if err != nil {
		return "", err
	}
	for _, p := range l.places {
		if p.user.Address == "" || p.user.Deliver == router.DeliverBoth && !p.held {
			continue
		}
		if p.held || p.side != home {
			return relay, nil
		}
	}
	return "", errNobody
}
