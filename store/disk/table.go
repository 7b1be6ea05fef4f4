package disk

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"

	"crossfade/router"
)

// Users implements [router.Table].
func (s *Store) Users(ctx context.Context, f router.Filter, cursor string, limit int) (users []router.User, next string, err error) {
	if limit <= 0 {
		limit = defaultPage
	}
	conds, args := []string{"address > ?"}, []any{cursor}
	add := func(cond string, arg any) {
		conds = append(conds, cond)
		args = append(args, arg)
	}
	if f.State != "" {
		add("state = ?", string(f.State))
	}
	if f.Wave != "" {
		add("wave = ?", f.Wave)
	}
	if f.Kind != "" {
		add("kind = ?", string(f.Kind))
	}
	if f.Query != "" {
		add(`address LIKE ? ESCAPE '\'`, likePattern(f.Query))
	}
	args = append(args, limit+1)
	err = s.read(ctx, func(c *conn) error {
		return c.each(func(cols []driver.Value) error {
			u, _, err := scanUser(cols)
			users = append(users, u)
			return err
		}, "SELECT "+userColumns+" FROM user WHERE "+strings.Join(conds, " AND ")+" ORDER BY address LIMIT ?", args...)
	})
	if err != nil {
		return nil, "", err
	}
	if len(users) > limit {
		users = users[:limit]
		next = users[limit-1].Address
	}
	return users, next, nil
}

// CountUsers implements [router.Table].
func (s *Store) CountUsers(ctx context.Context) (map[router.State]int, error) {
	out := map[router.State]int{}
	err := s.read(ctx, func(c *conn) error {
		return c.each(func(cols []driver.Value) error {
			out[router.State(asString(cols[0]))] = int(asInt(cols[1]))
			return nil
		}, "SELECT state, count(*) FROM user WHERE kind = ? GROUP BY state", string(router.KindMailbox))
	})
	return out, err
}

// History implements [router.Table].
func (s *Store) History(ctx context.Context, key string, limit int) (list []router.Change, err error) {
	if limit <= 0 {
		limit = defaultPage
	}
	err = s.read(ctx, func(c *conn) error {
		return c.each(func(cols []driver.Value) error {
			list = append(list, router.Change{
				User: asString(cols[0]), Epoch: uint64(asInt(cols[1])), From: router.State(asString(cols[2])),
				To: router.State(asString(cols[3])), By: asString(cols[4]), Reason: asString(cols[5]),
				Forced: asInt(cols[6]) != 0, At: fromMillis(asInt(cols[7])),
			})
			return nil
		}, "SELECT user, epoch, from_state, to_state, author, reason, forced, at FROM history WHERE user = ? ORDER BY id DESC LIMIT ?", key, limit)
	})
	return list, err
}

// ImportUsers implements [router.Table]. It is one transaction, during which
// nothing else is written: some seconds for 100,000 users.
func (s *Store) ImportUsers(ctx context.Context, users []router.User, c router.Change) (created, updated int, err error) {
	seen := make(map[string]bool, len(users))
	for _, u := range users {
		switch {
		case u.Address == "":
			return 0, 0, errKey
		case seen[u.Address]:
			return 0, 0, fmt.Errorf("import users: %s is there twice", u.Address)
		}
		seen[u.Address] = true
	}
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	var changes []*change
	o := &op{name: "import", alone: true, grows: true}
	o.plan = func() error {
		changes, created, updated = nil, 0, 0
		for i := range users {
			ch, err := s.planImport(users[i], c)
			if err != nil {
				return err
			}
			if changes = append(changes, ch); ch.created {
				created++
			} else {
				updated++
			}
		}
		return nil
	}
	o.apply = func() { s.applyUsers(changes) }
	if err := s.do(o); err != nil {
		return 0, 0, err
	}
	return created, updated, nil
}

// planImport writes one user of a bulk import.
func (s *Store) planImport(u router.User, c router.Change) (*change, error) {
	u.Targets = slices.Clone(u.Targets)
	us, err := loadUser(s.db, u.Address)
	if err != nil {
		return nil, err
	}
	ch := &change{u: u, c: c, known: true}
	now := fromMillis(s.now())
	ch.c.User, ch.c.At = u.Address, now
	if us.known {
		ch.u, ch.gen = given(us.user, u), us.gen
		ch.c.From, ch.c.To, ch.c.Epoch = us.user.State, ch.u.State, us.user.Epoch
		return ch, s.writeUser(ch.u, ch.gen, ch.c)
	}
	ch.created = true
	if ch.u.Kind == "" {
		ch.u.Kind = router.KindMailbox
	}
	if ch.u.Kind == router.KindMailbox && ch.u.State == "" {
		ch.u.State = router.StateOld
	}
	v, _, err := s.db.ints(sqlLastSeen, u.Address)
	if err != nil {
		return nil, err
	}
	ch.u.Epoch = 1
	if len(v) > 0 {
		ch.u.Epoch = uint64(v[0]) + 1
	}
	if ch.u.Since.IsZero() {
		ch.u.Since = now
	}
	ch.gen = ch.u.Epoch
	ch.c.From, ch.c.To, ch.c.Epoch = "", ch.u.State, ch.u.Epoch
	if err := s.findFiled(ch); err != nil {
		return nil, err
	}
	return ch, s.writeUser(ch.u, ch.gen, ch.c)
}

// given makes the fields of a bulk import those of a user who is in the table.
// What is empty was not given, and an import never changes a state.
func given(have, u router.User) router.User {
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	if u.Kind != "" {
		have.Kind = u.Kind
	}
	switch {
	case len(u.Targets) > 0:
		have.Targets = u.Targets
	case u.Kind == router.KindMailbox:
		have.Targets = nil // it was an alias
	}
	if have.State == "" {
		have.State = u.State
	}
	if u.Deliver != "" {
		have.Deliver = u.Deliver
	}
	if !u.NotBefore.IsZero() {
		have.NotBefore = u.NotBefore
	}
	set(&have.Wave, u.Wave)
	set(&have.OldLogin, u.OldLogin)
	set(&have.NewLogin, u.NewLogin)
	set(&have.Note, u.Note)
	return have
}
