package redis

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
)

// shown is a queued message as show.lua gives it.
type shown struct {
	env  *mail.Envelope
	rows []shownRow
}

type shownRow struct {
	rcpt queue.Rcpt
	user string
	way  mail.Route // where it would go now, held or not
	raw  string     // the row itself
}

// show reads messages; one that is not there is nil.
func (s *Store) show(ctx context.Context, ids []mail.ID) ([]*shown, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = string(id)
	}
	said, err := s.link.read(ctx, scShow, args...)
	if err != nil {
		return nil, err
	}
	out := make([]*shown, len(ids))
	for i, v := range asList(said) {
		if l := asList(v); len(l) > 1 {
			out[i] = s.shownOf(ids[i], l)
		}
	}
	return out, nil
}

func (s *Store) shownOf(id mail.ID, l []any) *shown {
	m := &shown{env: new(mail.Envelope)}
	damaged := json.Unmarshal([]byte(asString(l[0])), m.env) != nil
	if damaged {
		m.env = &mail.Envelope{ID: id} // an operator has to see it
	}
	for _, v := range l[1:] {
		f := asList(v)
		r := shownRow{user: asString(at(f, 3)), way: routeOf(asInt(at(f, 4))), raw: asString(at(f, 13))}
		r.rcpt = rcptOf(f)
		for damaged && len(m.env.Recipients) <= r.rcpt.N {
			m.env.Recipients = append(m.env.Recipients, mail.Recipient{})
		}
		if damaged {
			addr, _ := mail.ParseAddress(r.user)
			m.env.Recipients[r.rcpt.N] = mail.Recipient{Addr: addr, User: r.user}
		}
		if r.rcpt.N < len(m.env.Recipients) {
			r.rcpt.Recipient = m.env.Recipients[r.rcpt.N]
			m.rows = append(m.rows, r)
		}
	}
	slices.SortFunc(m.rows, func(a, b shownRow) int { return a.rcpt.N - b.rcpt.N })
	return m
}

// rcptOf reads a row as show.lua gives it.
func rcptOf(f []any) queue.Rcpt {
	lane, way := asInt(at(f, 1)), asInt(at(f, 4))
	r := queue.Rcpt{
		N: int(asInt(at(f, 0))), Route: routeOf(way), Copy: asInt(at(f, 6)) != 0, Since: fromMillis(asInt(at(f, 7))),
		Attempts: int(asInt(at(f, 8))), Crashes: int(asInt(at(f, 9))), Unknown: unknownRoutes(asInt(at(f, 10))),
		LastReply: asString(at(f, 11)), Doubt: queue.ParseDoubt(asString(at(f, 14))),
	}
	r.Forced = asInt(at(f, 5)) != 0 && !r.Copy
	switch {
	case lane == laneLeased && asInt(at(f, 12)) != 0:
		r.State = queue.Sending
	case lane == laneLeased:
		r.State = queue.Leased
	case lane == laneParked:
		r.State = queue.Parked
	case lane == laneOpHeld:
		r.State, r.HeldBy = queue.Held, "operator"
	case way == laneHeld:
		r.State, r.HeldBy = queue.Held, "user"
	default:
		r.State, r.Due = queue.Queued, fromMillis(asInt(at(f, 2)))
	}
	return r
}

func (m *shown) entry() queue.Entry {
	e := queue.Entry{Envelope: m.env}
	for _, r := range m.rows {
		e.Rcpts = append(e.Rcpts, r.rcpt)
	}
	return e
}

// matching gives the rows that a filter selects.
func (m *shown) matching(f queue.Filter) (rows []shownRow) {
	if len(f.IDs) > 0 && !slices.Contains(f.IDs, m.env.ID) {
		return nil
	}
	switch f.From {
	case "":
	case "<>":
		if !m.env.From.IsNull() {
			return nil
		}
	default:
		if !contains(m.env.From.String(), f.From) {
			return nil
		}
	}
	if !f.Before.IsZero() && !m.env.Received.Before(f.Before) {
		return nil
	}
	for _, r := range m.rows {
		if (f.State == "" || f.State == r.rcpt.State) && (f.Route == "" || f.Route == r.way) && (f.User == "" || f.User == r.user) &&
			contains(r.rcpt.Addr.String(), f.Rcpt) && contains(r.rcpt.LastReply, f.Reason) {
			rows = append(rows, r)
		}
	}
	return rows
}

// few is how many candidates are fetched at once instead of walking the queue.
const few = 10_000

// candidates gives the ids that can match, in order, behind after; all is true
// when there are no better ones than all.
func (s *Store) candidates(ctx context.Context, f queue.Filter, after string) (ids []mail.ID, all bool, err error) {
	var rids []string
	switch {
	case len(f.IDs) > 0:
		ids = slices.Clone(f.IDs)
	case f.User != "":
		rids, err = s.server.client.ZRange(ctx, s.key("u:"+f.User), 0, -1).Result()
	case f.State == queue.Parked:
		if n, err := s.server.client.ZCard(ctx, s.key("q:6")).Result(); err != nil || n > few {
			return nil, true, err
		}
		rids, err = s.server.client.ZRange(ctx, s.key("q:6"), 0, -1).Result()
	default:
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, rid := range rids {
		id, _, _ := strings.Cut(rid, ":")
		ids = append(ids, mail.ID(id))
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	i, found := slices.BinarySearch(ids, mail.ID(after))
	if found {
		i++
	}
	return ids[i:], false, nil
}

// walk calls take for each message that can match, in the order of ids, until
// take says that it is enough.
func (s *Store) walk(ctx context.Context, f queue.Filter, after string, take func(*shown) (more bool)) error {
	const step = 100
	ids, all, err := s.candidates(ctx, f, after)
	if err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if all {
			from := "-"
			if after != "" {
				from = "(" + after
			}
			list, err := s.server.client.ZRangeByLex(ctx, s.key("a"), &goredis.ZRangeBy{Min: from, Max: "+", Count: step}).Result()
			if err != nil {
				return err
			}
			ids = ids[:0]
			for _, id := range list {
				ids = append(ids, mail.ID(id))
			}
		}
		if len(ids) == 0 {
			return nil
		}
		part := ids[:min(step, len(ids))]
		list, err := s.show(ctx, part)
		if err != nil {
			return err
		}
		for _, m := range list {
			if m != nil && !take(m) {
				return nil
			}
		}
		after = string(part[len(part)-1])
		ids = ids[len(part):]
	}
}

// List implements [queue.Inspector].
func (s *Store) List(ctx context.Context, f queue.Filter, cursor string, limit int) (entries []queue.Entry, next string, err error) {
	if limit <= 0 {
		limit = defaultPage
	}
	limit = min(limit, maxPage)
	if err := s.enter(); err != nil {
		return nil, "", err
	}
	defer s.leave()
	err = s.bodies.retry(ctx, func(ctx context.Context) error {
		entries, next = nil, ""
		return s.walk(ctx, f, cursor, func(m *shown) bool {
			if len(m.matching(f)) == 0 {
				return true
			}
			entries = append(entries, m.entry())
			if len(entries) == limit {
				next = string(m.env.ID)
			}
			return len(entries) < limit
		})
	})
	if err != nil {
		return nil, "", fmt.Errorf("redis: list the queue: %w", err)
	}
	return entries, next, nil
}

// Get implements [queue.Inspector].
func (s *Store) Get(ctx context.Context, id mail.ID) (queue.Entry, error) {
	if err := s.enter(); err != nil {
		return queue.Entry{}, err
	}
	defer s.leave()
	list, err := s.show(ctx, []mail.ID{id})
	if err != nil {
		return queue.Entry{}, err
	}
	if len(list) == 0 || list[0] == nil {
		return queue.Entry{}, fmt.Errorf("%w: %s", queue.ErrNotFound, id)
	}
	return list[0].entry(), nil
}

// applySlice is how many messages an operator's action changes in one step.
const applySlice = 64

// Apply implements [queue.Inspector].
func (s *Store) Apply(ctx context.Context, f queue.Filter, a queue.Action) (queue.Applied, error) {
	var sum queue.Applied
	if err := a.Check(); err != nil {
		return sum, err
	}
	if err := s.enter(); err != nil {
		return sum, err
	}
	defer s.leave()
	for after := ""; ; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		var list []*shown
		err := s.walk(ctx, f, after, func(m *shown) bool {
			after = string(m.env.ID)
			if len(m.matching(f)) > 0 {
				list = append(list, m)
			}
			return len(list) < applySlice
		})
		if err != nil {
			return sum, fmt.Errorf("redis: change queued mail: %w", err)
		}
		if len(list) == 0 {
			return sum, nil
		}
		if err := s.applyTo(ctx, f, a, list, &sum); err != nil {
			return sum, err
		}
	}
}

// applyTo changes what matches of some messages. A row that changed since it
// was read is read again: whether it matches still is another question.
func (s *Store) applyTo(ctx context.Context, f queue.Filter, a queue.Action, list []*shown, sum *queue.Applied) error {
	type rid struct {
		id mail.ID
		n  int
	}
	answered := map[rid]bool{}
	for range 20 {
		args := []any{string(a.Verb), laneOf(a.Route), clip(a.Reason)}
		var of []rid
		for _, m := range list {
			for _, r := range m.matching(f) {
				if k := (rid{m.env.ID, r.rcpt.N}); !answered[k] {
					line := journal.ActionLine(a, k.id, journal.Entry{N: k.n, To: r.rcpt.Addr.String(), User: r.rcpt.User, Copy: r.rcpt.Copy}, time.Now())
					args = append(args, string(k.id), k.n, r.raw, line)
					of = append(of, k)
				}
			}
		}
		if len(of) == 0 {
			return nil
		}
		said, err := s.link.write(ctx, scApply, args...)
		if err != nil {
			return err
		}
		var again []mail.ID
		for i, v := range asList(said) {
			switch asString(v) {
			case "stale":
				again = append(again, of[i].id)
				continue
			case "changed":
				sum.Changed++
			case "busy":
				sum.Busy++
			}
			answered[of[i]] = true
		}
		if list, err = s.show(ctx, slices.Compact(again)); err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(m *shown) bool { return m == nil })
	}
	return nil
}

// Stats implements [queue.Inspector].
func (s *Store) Stats(ctx context.Context) (queue.Stats, error) {
	st := queue.Stats{Free: s.health.free(), States: map[queue.State]int{}, Routes: map[mail.Route]int{}}
	if err := s.enter(); err != nil {
		return st, err
	}
	defer s.leave()
	said, err := s.link.read(ctx, scStats)
	if err != nil {
		return st, err
	}
	v := asList(said)
	st.Messages, st.Bytes = int(asInt(at(v, 0))), asInt(at(v, 1))
	for i, lane := range []int64{laneOld, laneNew, laneOut} {
		if n := int(asInt(at(v, 2+i))); n > 0 {
			st.States[queue.Queued] += n
			st.Routes[routeOf(lane)] += n
		}
	}
	for i, state := range []queue.State{queue.Held, queue.Parked, queue.Leased, queue.Sending} {
		if n := int(asInt(at(v, 5+i))); n > 0 {
			st.States[state] += n
		}
	}
	if id := asString(at(v, 9)); id != "" {
		st.Oldest = timeOf(mail.ID(id))
	}
	return st, nil
}

// timeOf is when an id was made.
func timeOf(id mail.ID) time.Time {
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var ms int64
	if len(id) < 10 {
		return time.Time{}
	}
	for _, c := range []byte(id[:10]) {
		ms = ms<<5 | int64(max(strings.IndexByte(digits, c), 0))
	}
	return time.UnixMilli(ms)
}
