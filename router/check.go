package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"crossfade/mail"
)

// CheckAliases tells whether the table would still resolve once users were
// written into it: every key and target is an address of ours, an alias has
// one target, and no chain that starts at one of users is a loop or longer than
// [MaxHops]. Its
// error joins one error per user that is wrong, at most 100 of them. Whoever
// writes aliases or groups asks here first.
func (r *Router) CheckAliases(ctx context.Context, users []User) error {
	s := r.site.Load()
	pending := make(map[string]User, len(users))
	for _, u := range users {
		pending[u.Address] = u
	}
	merged := func(ctx context.Context, key string) (User, error) {
		if u, ok := pending[key]; ok {
			return u, nil
		}
		return r.table.User(ctx, key)
	}
	var wrong []error
	for _, u := range users {
		err := s.checkUser(u)
		if err == nil && u.Kind != KindMailbox && u.Kind != "" {
			err = s.checkChain(ctx, merged, u)
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", u.Address, err))
		}
		if len(wrong) == 100 {
			break
		}
	}
	return errors.Join(wrong...)
}

// checkUser looks at one line alone.
func (s *site) checkUser(u User) error {
	if name, ok := strings.CutPrefix(u.Address, "@"); ok {
		return s.checkDomainAlias(u, name)
	}
	a, err := mail.ParseAddress(u.Address)
	if err != nil {
		return err
	}
	if a.Key() != u.Address {
		return fmt.Errorf("the key is not in normal form: write %s", a.Key())
	}
	if !s.domains[a.Domain] {
		return fmt.Errorf("%s is none of our domains (domains in the configuration: %s)", a.Domain, s.names())
	}
	switch {
	case (u.Kind == KindMailbox || u.Kind == "") && len(u.Targets) > 0:
		return errors.New("a mailbox has no target: use kind alias or group")
	case u.Kind == KindAlias && len(u.Targets) != 1:
		return fmt.Errorf("an alias has one target, not %d: use kind group for more", len(u.Targets))
	case u.Kind == KindGroup && len(u.Targets) == 0:
		return errors.New("a group needs at least one target")
	}
	for _, target := range u.Targets {
		if err := s.checkTarget(target); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) checkDomainAlias(u User, name string) error {
	d, err := mail.NormalDomain(name)
	if err != nil {
		return err
	}
	if "@"+d != u.Address {
		return fmt.Errorf("the key is not in normal form: write @%s", d)
	}
	if !s.domains[d] {
		return fmt.Errorf("%s is none of our domains: add it to domains in the configuration first", d)
	}
	to, ok := domainTarget(u)
	switch {
	case !ok:
		return errors.New("a domain alias has the kind alias and one target of the form @example.org")
	case !s.domains[to]:
		return fmt.Errorf("the target @%s is outside of our domains: this relay does not forward", to)
	}
	return nil
}

func (s *site) checkTarget(target string) error {
	a, err := mail.ParseAddress(target)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if a.IsNull() {
		return errors.New("a target is empty")
	}
	if !s.domains[a.Domain] {
		return fmt.Errorf("the target %s is outside of our domains: this relay does not forward; let the mailbox do it", a)
	}
	return nil
}

// checkChain follows u to its end, as a message would.
func (s *site) checkChain(ctx context.Context, user lookup, u User) error {
	start := u.Address
	if strings.HasPrefix(start, "@") {
		start = "any" + start
		inner := user
		user = func(ctx context.Context, key string) (User, error) {
			if strings.HasPrefix(key, "any@") {
				return User{}, ErrNoUser
			}
			return inner(ctx, key)
		}
	}
	a, err := mail.ParseAddress(start)
	if err != nil {
		return err
	}
	w := walk{site: s, user: user, given: a}
	_, err = w.resolve(ctx)
	return err
}

func (s *site) names() string {
	names := make([]string, 0, len(s.domains))
	for d := range s.domains {
		names = append(names, d)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func isNoUser(err error) bool { return errors.Is(err, ErrNoUser) }
