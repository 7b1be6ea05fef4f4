package lookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"crossfade/mail"
)

// Tables lists the names of the tables that Postfix can ask for: with
// socketmap in each question, with tcp_table one for each listener.
//
//	transport   for transport_maps: the way of mail to the address
//	alias       for virtual_alias_maps: what an alias or a group stands for
//	recipient   for relay_recipient_maps: OK when the address is known
//	elsewhere-old, elsewhere-new
//	            for transport_maps of a Postfix that is that side's own: nothing
//	            for users who are there, the way to this relay for all others
//	side        old or new: the side that the user reads
//	imap, pop3, submission, sieve, lmtp   host:port of the server that has the user
func Tables() []string {
	return []string{"transport", "alias", "recipient", "elsewhere-old", "elsewhere-new", "side", string(IMAP), string(POP3), string(Submission), string(Sieve), string(LMTP)}
}

// table answers a question of Postfix. errNobody means that the table has no
// such key.
func (s *Service) table(ctx context.Context, name, key string) (value string, err error) {
	if !slices.Contains(Tables(), name) {
		s.answered("other", key, errRefused)
		return "", fmt.Errorf("%w: there is no table %q; there are %s", errRefused, name, strings.Join(Tables(), ", "))
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	defer func() { s.answered(name, key, err) }()
	if p := Protocol(name); slices.Contains([]Protocol{IMAP, POP3, Submission, Sieve, LMTP}, p) {
		l, err := s.loginPlace(ctx, p, key)
		if err != nil {
			return "", err
		}
		return net.JoinHostPort(l.up.Host, strconv.Itoa(l.up.Port)), nil
	}
	// Postfix asks with domains and parts of addresses too: those are not ours
	// to answer. It gives addresses without their quotes.
	if !strings.Contains(key, "@") || strings.HasPrefix(key, "@") {
		return "", errNobody
	}
	addr, err := mail.FromUnquoted(key)
	if err != nil {
		return "", errNobody
	}
	switch name {
	case "transport":
		return s.transport(ctx, addr)
	case "alias":
		return s.alias(ctx, addr)
	case "elsewhere-old":
		return s.elsewhere(ctx, addr, mail.Old)
	case "elsewhere-new":
		return s.elsewhere(ctx, addr, mail.New)
	}
	l, err := s.locate(ctx, addr)
	switch {
	case err != nil:
		return "", err
	case name == "recipient":
		return "OK", nil
	case len(l.places) != 1:
		return "", errNobody
	}
	return string(l.places[0].side), nil
}

// alias gives the addresses that an alias or a group stands for.
func (s *Service) alias(ctx context.Context, addr mail.Address) (string, error) {
	res, _, err := s.cfg.Router.Locate(ctx, addr)
	if err != nil {
		return "", err
	}
	var to []string
	for _, r := range res.Recipients {
		to = append(to, r.Addr.String())
	}
	if len(to) == 0 || len(to) == 1 && res.Recipients[0].Addr == addr {
		return "", errNobody
	}
	return strings.Join(to, ", "), nil
}

// reason is what the asking program may read in its log: an error's text in one
// line of a bounded length.
func reason(err error) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, err.Error())
	return text[:min(len(text), 300)]
}

// errBad is a question that is not of the protocol: the connection ends.
var errBad = errors.New("malformed request")
