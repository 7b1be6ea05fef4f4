package disk

import (
	"context"
	"errors"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
)

// applySlice is how many messages an operator's action changes in one group.
const applySlice = 64

// selection is what an action is for: recipients of messages.
type selection struct {
	ids  []mail.ID // all recipients of these
	list []found   // or these recipients
	f    queue.Filter
}

// Apply implements [queue.Inspector].
func (s *Store) Apply(ctx context.Context, f queue.Filter, a queue.Action) (queue.Applied, error) {
	var sum queue.Applied
	if err := a.Check(); err != nil {
		return sum, err
	}
	for after := ""; ; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		var list []found
		err := s.read(ctx, func(c *conn) (err error) {
			list, err = s.match(ctx, c, f, after, applySlice)
			return err
		})
		if err != nil {
			return sum, err
		}
		if len(list) == 0 {
			return sum, nil
		}
		var part queue.Applied
		if err := s.do(s.applyOp(&selection{list: list, f: f}, a, &part)); err != nil {
			return sum, err
		}
		sum.Changed += part.Changed
		sum.Busy += part.Busy
		after = string(list[len(list)-1].id)
		if len(list) < applySlice {
			return sum, nil
		}
	}
}

// applyOp changes the recipients that are selected.
func (s *Store) applyOp(sel *selection, a queue.Action, out *queue.Applied) *op {
	o := &op{name: "apply"}
	for _, id := range sel.ids {
		o.keys = append(o.keys, string(id))
	}
	for _, m := range sel.list {
		o.keys = append(o.keys, string(m.id))
	}
	var changes []rowChange
	o.plan = func() (err error) {
		changes, err = s.planApply(sel, a, out)
		return err
	}
	o.apply = func() { s.applyChanges(changes) }
	o.undo = func() {
		for _, ch := range changes {
			if ch.it != nil && ch.it.where == limbo {
				s.admit(ch.it, true)
			}
		}
	}
	return o
}

func (s *Store) planApply(sel *selection, a queue.Action, out *queue.Applied) (all []rowChange, err error) {
	*out = queue.Applied{}
	list := sel.list
	for _, id := range sel.ids {
		rows, err := s.rows(s.db, id)
		if err != nil {
			return all, err
		}
		m := found{id: id}
		for i := range rows {
			m.ns = append(m.ns, rows[i].n)
		}
		list = append(list, m)
	}
	for _, m := range list {
		changes, err := s.planMessage(m, sel.f, a, out)
		all = append(all, changes...)
		if err == nil {
			err = s.writeChanges(changes)
		}
		if err != nil {
			return all, err
		}
		copy(all[len(all)-len(changes):], changes) // writeChanges fills in what is gone
	}
	return all, nil
}

// planMessage decides what becomes of the recipients of one message.
func (s *Store) planMessage(m found, f queue.Filter, a queue.Action, out *queue.Applied) (changes []rowChange, err error) {
	for _, n := range m.ns {
		ch, ok, err := s.find1(m.id, n)
		if err != nil {
			return changes, err
		}
		if !ok {
			continue
		}
		u, err := s.user(ch.row.user)
		if err != nil {
			return changes, err
		}
		r := ch.row
		if !s.matches(f, &r, u) {
			continue // it changed since it was found
		}
		err = s.planVerb(&ch, u, a)
		switch {
		case errors.Is(err, errBusy):
			out.Busy++
		case errors.Is(err, errSame):
		default:
			out.Changed++
			ch.line = journal.ActionLine(a, m.id, entryOf(&ch.row), s.opts.Now())
			changes = append(changes, ch)
		}
	}
	return changes, nil
}

var (
	errBusy = errors.New("it is being sent")
	errSame = errors.New("nothing to change")
)

// planVerb changes a row as an operator wishes. A recipient in memory is set
// aside until the commit.
func (s *Store) planVerb(ch *rowChange, u *ustate, a queue.Action) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	it := ch.it
	if it != nil && it.where == leased && it.lease != nil && it.lease.sending {
		return errBusy
	}
	r := &ch.row
	r.fresh(u)
	if err := s.verb(ch, u, a); err != nil {
		return err
	}
	if r.due == 0 {
		r.due = s.now()
	}
	if it == nil {
		return nil
	}
	if ls := it.lease; it.where == leased && ls != nil && !ls.lost {
		s.takeBackBut(ls, it)
	}
	it.where = limbo
	return nil
}

func (s *Store) verb(ch *rowChange, u *ustate, a queue.Action) error {
	r, now := &ch.row, s.now()
	switch a.Verb {
	case queue.DoDelete:
		ch.remove = true
		return nil
	case queue.DoPark:
		if r.lane == laneParked {
			return errSame
		}
		r.lane, r.due = laneParked, now
		if a.Reason != "" {
			r.reply = clip(a.Reason)
		}
		return nil
	case queue.DoHold:
		if r.lane == laneOpHeld || r.lane == laneParked {
			return errSame
		}
		r.lane = laneOpHeld
		return nil
	case queue.DoRelease:
		if r.lane != laneOpHeld {
			return errSame
		}
	case queue.DoRetry:
		if r.lane == laneOpHeld || place(r, u) == laneHeld {
			return errSame
		}
		r.crashes = 0
	case queue.DoReroute:
		r.fixed, r.attempts, r.unknown, r.crashes, r.since = laneOf(a.Route), 0, 0, 0, now
		if r.lane == laneOpHeld {
			return nil // and stays held
		}
	}
	r.due = now
	r.lane = wayOf(r, u)
	return nil
}
