package disk

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// Bounds of a page of List.
const (
	defaultPage = 100
	maxPage     = 1000
)

// found is a message with those of its recipients that match.
type found struct {
	id mail.ID
	ns []int
}

// query gives what of a filter the database can decide.
func query(f queue.Filter, after string) (sql string, args []any) {
	conds := []string{"r.id > ?"}
	args = append(args, after)
	add := func(cond string, arg any) {
		conds = append(conds, cond)
		args = append(args, arg)
	}
	if f.User != "" {
		add("r.user = ?", f.User)
	}
	if f.Rcpt != "" {
		add(`coalesce(r.addr, r.user) LIKE ? ESCAPE '\'`, likePattern(f.Rcpt))
	}
	if f.Reason != "" {
		add(`r.reply LIKE ? ESCAPE '\'`, likePattern(f.Reason))
	}
	if f.State == queue.Parked {
		add("r.lane = ?", laneParked)
	}
	switch f.From {
	case "":
	case "<>":
		add("m.sender = ?", "")
	default:
		add(`m.sender LIKE ? ESCAPE '\'`, likePattern(f.From))
	}
	if !f.Before.IsZero() {
		add("m.received < ?", f.Before.UnixMilli())
	}
	from := " FROM recipient r"
	if f.From != "" || !f.Before.IsZero() {
		from += " CROSS JOIN message m ON m.id = r.id"
	}
	return "SELECT r." + strings.ReplaceAll(rcptColumns, ", ", ", r.") + from +
		" WHERE " + strings.Join(conds, " AND ") + " ORDER BY r.id, r.n", args
}

// match lists messages behind after that have a recipient that matches.
func (s *Store) match(ctx context.Context, c *conn, f queue.Filter, after string, limit int) (list []found, err error) {
	take := func(cols []driver.Value) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := scanRow(cols)
		u, err := s.userFor(c, r.user)
		if err != nil {
			return err
		}
		if !s.matches(f, &r, u) {
			return nil
		}
		if len(list) > 0 && list[len(list)-1].id == r.id {
			list[len(list)-1].ns = append(list[len(list)-1].ns, r.n)
			return nil
		}
		if len(list) == limit {
			return errStop
		}
		list = append(list, found{r.id, []int{r.n}})
		return nil
	}
	if len(f.IDs) == 0 {
		sql, args := query(f, after)
		return list, c.each(take, sql, args...)
	}
	ids := slices.Clone(f.IDs)
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if string(id) <= after {
			continue
		}
		sql, args := query(f, "")
		sql = strings.Replace(sql, "r.id > ?", "r.id = ?", 1)
		args[0] = string(id)
		if err := c.each(take, sql, args...); err != nil {
			return list, err
		}
		if len(list) == limit {
			break
		}
	}
	return list, nil
}

// userFor gives a copy of a user's state to a reader.
func (s *Store) userFor(c *conn, key string) (*ustate, error) {
	if key == "" {
		return nil, nil
	}
	s.mu.Lock()
	if us := s.users[key]; us != nil {
		out := *us
		s.mu.Unlock()
		return &out, nil
	}
	s.mu.Unlock()
	return loadUser(c, key)
}

// present gives a recipient's present row, state and who holds it: what memory
// knows is newer than what was read.
func (s *Store) present(r *row, u *ustate) (queue.State, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.msgs[r.id]
	if m == nil {
		return place(r, u).state()
	}
	it := m.item(r.n)
	if it == nil {
		return place(r, u).state()
	}
	*r = it.row
	switch {
	case it.where != leased || it.lease == nil:
		return place(r, u).state()
	case it.lease.sending:
		return queue.Sending, ""
	}
	return queue.Leased, ""
}

// matches decides what the database could not.
func (s *Store) matches(f queue.Filter, r *row, u *ustate) bool {
	state, _ := s.present(r, u)
	if f.State != "" && f.State != state {
		return false
	}
	return f.Route == "" || laneOf(f.Route) == wayOf(r, u)
}

// List implements [queue.Inspector].
func (s *Store) List(ctx context.Context, f queue.Filter, cursor string, limit int) (entries []queue.Entry, next string, err error) {
	if limit <= 0 {
		limit = defaultPage
	}
	limit = min(limit, maxPage)
	err = s.read(ctx, func(c *conn) error {
		list, err := s.match(ctx, c, f, cursor, limit)
		if err != nil {
			return err
		}
		for _, m := range list {
			e, err := s.entry(c, m.id)
			if errors.Is(err, queue.ErrNotFound) {
				continue // gone meanwhile
			}
			if err != nil {
				return err
			}
			entries = append(entries, e)
		}
		if len(list) == limit {
			next = string(list[len(list)-1].id)
		}
		return nil
	})
	return entries, next, err
}

// Get implements [queue.Inspector].
func (s *Store) Get(ctx context.Context, id mail.ID) (e queue.Entry, err error) {
	err = s.read(ctx, func(c *conn) error {
		e, err = s.entry(c, id)
		return err
	})
	return e, err
}

// entry reads a message for people.
func (s *Store) entry(c *conn, id mail.ID) (queue.Entry, error) {
	env, _, err := loadMessage(c, id)
	damaged := err != nil && !isDBError(err) && !errors.Is(err, queue.ErrNotFound)
	if err != nil && !damaged {
		return queue.Entry{}, err
	}
	rows, err := s.rows(c, id)
	if err != nil {
		return queue.Entry{}, err
	}
	if len(rows) == 0 {
		return queue.Entry{}, fmt.Errorf("%w: %s", queue.ErrNotFound, id)
	}
	if damaged {
		env = salvage(id, rows)
	}
	e := queue.Entry{Envelope: env}
	for i := range rows {
		u, err := s.userFor(c, rows[i].user)
		if err != nil {
			return queue.Entry{}, err
		}
		if rows[i].n < len(env.Recipients) {
			e.Rcpts = append(e.Rcpts, s.describeRcpt(&rows[i], u, env))
		}
	}
	return e, nil
}

// salvage makes an envelope of what the recipients' rows know, for a message
// whose own is damaged: an operator has to see it.
func salvage(id mail.ID, rows []row) *mail.Envelope {
	env := &mail.Envelope{ID: id}
	for i := range rows {
		r := &rows[i]
		for len(env.Recipients) <= r.n {
			env.Recipients = append(env.Recipients, mail.Recipient{})
		}
		text := r.addr
		if text == "" {
			text = r.user
		}
		a, err := mail.ParseAddress(text)
		if err != nil {
			a = mail.Address{}
		}
		env.Recipients[r.n] = mail.Recipient{Addr: a, User: r.user, Hint: r.hint.route()}
	}
	return env
}

func (s *Store) describeRcpt(r *row, u *ustate, env *mail.Envelope) queue.Rcpt {
	state, by := s.present(r, u)
	r.fresh(u)
	way := wayOf(r, u)
	out := queue.Rcpt{
		Recipient: env.Recipients[r.n], N: r.n, State: state, HeldBy: by, Route: way.route(), Copy: r.copy,
		Forced: r.fixed != laneNone && !r.copy, Since: fromMillis(r.since), Attempts: r.attempts, Crashes: r.crashes,
		Unknown: r.unknownRoutes(), LastReply: r.reply, Doubt: r.inDoubt(),
	}
	if state == queue.Queued {
		out.Due = fromMillis(max(r.due, r.since))
		if r.due != 0 {
			out.Due = fromMillis(r.due)
		}
	}
	return out
}

// Stats implements [queue.Inspector]. It counts nothing but leases: the rest
// is kept.
func (s *Store) Stats(ctx context.Context) (queue.Stats, error) {
	st := queue.Stats{Free: s.free(), Bytes: s.files.liveBytes(), States: map[queue.State]int{}, Routes: map[mail.Route]int{}}
	var oldest time.Time
	err := s.read(ctx, func(c *conn) error {
		v, found, err := c.ints("SELECT received FROM message ORDER BY id LIMIT 1")
		if found {
			oldest = fromMillis(v[0])
		}
		return err
	})
	if err != nil {
		return st, err
	}
	st.Oldest = oldest
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Messages = s.messages
	st.Bytes -= int64(s.messages) * headerSize
	for l := laneOld; l < laneCount; l++ {
		state, _ := l.state()
		if s.count[l] == 0 {
			continue
		}
		st.States[state] += s.count[l]
		if l.isRoute() {
			st.Routes[l.route()] += s.count[l]
		}
	}
	for ls := range s.leases {
		state := queue.Leased
		if ls.sending {
			state = queue.Sending
		}
		for _, it := range ls.items {
			if it.where == leased && it.lease == ls && it.lane.isRoute() {
				st.States[state]++
				st.States[queue.Queued]--
				st.Routes[it.lane.route()]--
			}
		}
	}
	return st, nil
}
