package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// nodeOf is the name in an owner as own.lua writes it; empty: nobody's.
func nodeOf(owner string) string {
	_, rest, _ := strings.Cut(owner, " ")
	_, name, _ := strings.Cut(rest, " ")
	return name
}

// ownPage is how many users go into one call.
const ownPage = 500

// Own takes users for this node for ttl from the call on. Of each user it says
// how often an operator asked something new of him ([Store.Offer]); -1 means that
// another node works on him.
func (s *Store) Own(ctx context.Context, ttl time.Duration, users ...string) ([]int64, error) {
	return s.own(ctx, ttl, false, users)
}

// Keep owns users longer whom this node owns, for ttl from the call on. It
// answers as Own does; -1 means that another node took the user meanwhile, even
// when that one is done with him.
func (s *Store) Keep(ctx context.Context, ttl time.Duration, users ...string) ([]int64, error) {
	return s.own(ctx, ttl, true, users)
}

func (s *Store) own(ctx context.Context, ttl time.Duration, keep bool, users []string) ([]int64, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	out := make([]int64, 0, len(users))
	for len(out) < len(users) {
		page := users[len(out):min(len(out)+ownPage, len(users))]
		args := []any{s.boot, s.opts.Node, s.node.owning.Add(1), ttl.Milliseconds(), flag(keep)}
		for _, u := range page {
			args = append(args, u)
		}
		said, err := s.link.write(ctx, scOwn, args...)
		if err != nil {
			return nil, fmt.Errorf("take users for this node: %w", err)
		}
		list := asList(said)
		if len(list) != len(page) {
			return nil, errors.New("take users for this node: the answer has another length")
		}
		for _, v := range list {
			out = append(out, asInt(v))
		}
	}
	return out, nil
}

// Disown gives a user up. done: nothing is left to do for him, unless he was
// asked about more often than asked says.
func (s *Store) Disown(ctx context.Context, user string, done bool, asked int64) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if _, err := s.link.write(ctx, scDisown, s.boot, s.node.owning.Add(1), user, flag(done), asked); err != nil {
		return fmt.Errorf("give up %s: %w", user, err)
	}
	return nil
}

// Offer says that there is work on users, for whichever node is free. asked:
// an operator wants something new, so who works on them already has to look.
func (s *Store) Offer(ctx context.Context, asked bool, users ...string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	for len(users) > 0 {
		n := min(len(users), ownPage)
		args := []any{flag(asked)}
		for _, u := range users[:n] {
			args = append(args, u)
		}
		if _, err := s.link.write(ctx, scOffer, args...); err != nil {
			return fmt.Errorf("offer users to the nodes: %w", err)
		}
		users = users[n:]
	}
	return nil
}

// Free lists users on whom there is work and whom nobody owns: those who are
// held first, up to n of each state.
func (s *Store) Free(ctx context.Context, n int) ([]string, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	said, err := s.link.read(ctx, scFree, n)
	if err != nil {
		return nil, fmt.Errorf("look for users without a node: %w", err)
	}
	var out []string
	for _, v := range asList(said) {
		out = append(out, asString(v))
	}
	return out, nil
}

// Publish lets the other nodes see what this one does for a user. It is
// forgotten after keep.
func (s *Store) Publish(ctx context.Context, user string, data []byte, keep time.Duration) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if _, err := s.link.read(ctx, scPublish, user, data, keep.Milliseconds()); err != nil {
		return fmt.Errorf("publish how %s does: %w", user, err)
	}
	return nil
}

// Published calls each for what was published of a user, or of all when user is
// empty: the node that owns him now (empty: none does), how often he was asked
// about, and what was published last (nil: nothing).
func (s *Store) Published(ctx context.Context, user string, each func(user, node string, asked int64, data []byte)) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	said, err := s.link.read(ctx, scPublished, user)
	if err != nil {
		return fmt.Errorf("read how users do on other nodes: %w", err)
	}
	for _, v := range asList(said) {
		f := asList(v)
		var data []byte
		if text := asString(at(f, 3)); text != "" {
			data = []byte(text)
		}
		each(asString(at(f, 0)), nodeOf(asString(at(f, 1))), asInt(at(f, 2)), data)
	}
	return nil
}
