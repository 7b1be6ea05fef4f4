package disk

import (
	"time"

	"crossfade/queue"
)

// What is left behind by a lease that ended without a record: a crash that is
// counted, and a doubt when its final dot had been permitted.

// suspect notes that the row may have been sent over a lane, at a time or after it
// (Unix milliseconds), and that this is known since now.
func (r *row) suspect(l lane, at, now int64) {
	var before queue.Doubt
	if r.doubt != nil {
		before = *r.doubt
	}
	d := before.Again(l.route(), time.UnixMilli(at), time.UnixMilli(now))
	r.doubt = &d
}

// inDoubt gives the row's doubt.
func (r *row) inDoubt() queue.Doubt {
	if r.doubt == nil {
		return queue.Doubt{}
	}
	return *r.doubt
}

// doubtOf reads the column of a doubt, nil for none.
func doubtOf(s string) *queue.Doubt {
	if s == "" {
		return nil
	}
	d := queue.ParseDoubt(s)
	return &d
}

// markDoubts gives the changes that note the doubts among outcomes which are not
// accepted, because a user was changed since the claim or a lease before recorded
// something: that the final dot went out is a fact all the same.
func (s *Store) markDoubts(st *settlement) (changes []rowChange, err error) {
	for _, o := range st.outcomes {
		if !o.Doubt || !st.current || !st.ls.sending {
			continue // a lease that is over was noted when it ended
		}
		ch, ok, err := s.find1(st.l.Envelope.ID, o.N)
		if err != nil {
			return nil, err
		}
		if !ok || ch.it == nil || ch.it.lease != st.ls {
			continue
		}
		ch.row.suspect(st.ls.lane, st.ls.at, s.now())
		changes = append(changes, ch)
	}
	return changes, nil
}

// crashOp counts a lease that ended without a result, and parks what ended so
// three times in a row.
func (s *Store) crashOp(ls *lease) *op {
	var changes []rowChange
	o := &op{name: "crash", keys: []string{string(ls.m.id)}}
	o.plan = func() error {
		changes = nil
		for _, it := range ls.items {
			s.mu.Lock()
			mine := it.where == leased && it.lease == ls
			ch := rowChange{it: it, row: it.row, from: it.row.lane}
			s.mu.Unlock()
			if !mine {
				continue
			}
			if ls.sending {
				ch.row.suspect(ls.lane, ls.at, s.now())
			}
			s.countCrash(&ch.row)
			if err := s.writeRow(&ch.row); err != nil {
				return err
			}
			if ch.row.lane == laneParked {
				s.noteParked(&ch.row)
			}
			changes = append(changes, ch)
		}
		return nil
	}
	o.apply = func() {
		s.applyChanges(changes)
		s.doubt.free(ls.slots)
		ls.slots = nil
	}
	o.undo = func() { s.bg = append(s.bg, s.crashOp(ls)) }
	return o
}

// countCrash notes a crash in a row, and parks it when it was one too many.
func (s *Store) countCrash(r *row) {
	r.crashes++
	if r.crashes < queue.MaxCrashes {
		return
	}
	r.lane = laneParked
	r.reply = clip("three deliveries ended in a crash: look at the message before it is released; the last reply before was: " + r.reply)
	s.log.Error("a message was parked: three deliveries ended in a crash", "id", r.id, "recipient", r.n, "alarm", true)
}
