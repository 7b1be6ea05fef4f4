package disk

import (
	"bytes"
	"context"
	"database/sql/driver"
	"strings"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

const (
	rcptColumns   = `id, n, lane, user, due, gen, hint, fixed, copy, attempts, crashes, since, noticed, unknown, addr, reply, doubt`
	sqlUpdateRcpt = `UPDATE recipient SET lane=?, due=?, gen=?, fixed=?, copy=?, attempts=?, crashes=?, since=?, noticed=?, unknown=?, reply=?, doubt=? WHERE id=? AND n=?`
	sqlDeleteRcpt = `DELETE FROM recipient WHERE id = ? AND n = ?`
	sqlDeleteMsg  = `DELETE FROM message WHERE id = ?`
	sqlRcpt       = `SELECT ` + rcptColumns + ` FROM recipient WHERE id = ? AND n = ?`
	sqlRcpts      = `SELECT ` + rcptColumns + ` FROM recipient WHERE id = ? ORDER BY n`
)

func scanRow(cols []driver.Value) row {
	return row{
		id: mail.ID(asString(cols[0])), n: int(asInt(cols[1])), lane: lane(asInt(cols[2])), user: asString(cols[3]),
		due: asInt(cols[4]), gen: uint64(asInt(cols[5])), hint: lane(asInt(cols[6])), fixed: lane(asInt(cols[7])),
		copy: asInt(cols[8]) != 0, attempts: int(asInt(cols[9])), crashes: int(asInt(cols[10])), since: asInt(cols[11]),
		noticed: asInt(cols[12]) != 0, unknown: uint8(asInt(cols[13])), addr: asString(cols[14]), reply: asString(cols[15]),
		doubt: doubtOf(asString(cols[16])),
	}
}

// writeRow stores what may change of a row. It has a due time from now on.
func (s *Store) writeRow(r *row) error {
	if r.due == 0 {
		r.due = s.now()
	}
	_, err := s.db.run(sqlUpdateRcpt, r.lane, r.due, null(r.gen), null(int64(r.fixed)), null(r.copy), null(r.attempts), null(r.crashes),
		r.since, null(r.noticed), null(int64(r.unknown)), null(r.reply), null(r.inDoubt().String()), string(r.id), r.n)
	return err
}

// maxReply bounds what is kept of a backend's words, in octets.
const maxReply = 1000

func clip(reply string) string {
	if len(reply) > maxReply {
		return strings.ToValidUTF8(reply[:maxReply], "")
	}
	return reply
}

// settlement is the outcome of a lease on its way.
type settlement struct {
	ls       *lease // nil: of another life of the store
	l        *queue.Lease
	outcomes []queue.Outcome
	puts     []*put
	current  bool // the lease was good when it was planned
	repeat   bool
	queuePut bool // the new messages are queued
	changes  []rowChange
	result   error
	lines    [][]byte // of the journal, one for each outcome
}

// rowChange is what becomes of one recipient.
type rowChange struct {
	it     *item // nil: not in memory
	row    row
	remove bool
	from   lane   // where it was filed, for what is not in memory
	loc    loc    // of a message that is gone with it
	last   bool   // the message is gone with it
	line   []byte // of the journal; nil: none
}

// Settle implements [queue.Deliverer].
//
// When the lease is good but a user among the items was changed since the
// claim, or one of them was recorded as done by a lease before, the outcomes
// other than done are not recorded for any item and the new messages are
// dropped: whom a bounce tells of cannot be known here. The items are queued as
// they were, and the answer is ErrLost.
func (s *Store) Settle(ctx context.Context, l *queue.Lease, outcomes []queue.Outcome, msgs ...queue.NewMessage) error {
	if err := queue.CheckSettle(l, outcomes, msgs); err != nil {
		return err
	}
	if err := s.enterCall(); err != nil {
		return err
	}
	defer s.sent.Done()
	st := &settlement{l: l, outcomes: outcomes, lines: s.outcomeLines(l, outcomes)}
	if ls, ok := l.Opaque.(*lease); ok && ls.s == s {
		st.ls = ls
	}
	o := &op{name: "settle", keys: []string{string(l.Envelope.ID)}}
	for _, m := range msgs {
		b, err := s.receive(m.Envelope.ID, bytes.NewReader(m.Body))
		if isFull(err) && s.spendReserve(err.Error()) {
			b, err = s.receive(m.Envelope.ID, bytes.NewReader(m.Body))
		}
		if err != nil {
			for _, b := range o.bodies {
				s.discard(b)
			}
			return err
		}
		o.keys = append(o.keys, string(m.Envelope.ID))
		o.bodies = append(o.bodies, b)
		st.puts = append(st.puts, s.newPut(m.Envelope, b, l.Envelope.ID))
	}
	o.plan = func() error { return s.planSettle(st) }
	o.apply = func() { s.applySettle(st) }
	o.undo = func() {
		if st.ls != nil && st.current {
			st.ls.settling = false
			s.arm(s.now())
		}
	}
	if err := s.doEntered(o); err != nil {
		return err
	}
	return st.result
}

// outcomeLines are what the journal says of outcomes, made before the writer has
// them: which of them are accepted is decided there.
func (s *Store) outcomeLines(l *queue.Lease, outcomes []queue.Outcome) [][]byte {
	lines := make([][]byte, len(outcomes))
	for i := range outcomes {
		for k := range l.Items {
			if l.Items[k].N == outcomes[i].N {
				lines[i] = s.outcomeLine(l, &l.Items[k], &outcomes[i], s.opts.Now())
			}
		}
	}
	return lines
}

// planSettle decides what is accepted and writes it.
func (s *Store) planSettle(st *settlement) error {
	st.changes, st.result = nil, nil
	good := s.judge(st)
	if st.repeat {
		s.unwanted(st)
		return nil
	}
	done := 0
	var dones, others []rowChange
	for i, o := range st.outcomes {
		if o.Kind == queue.Done {
			done++
		} else if !good {
			continue
		}
		ch, ok, err := s.outcome(st, o)
		ch.line = st.lines[i]
		switch {
		case err != nil:
			return err
		case ok && o.Kind == queue.Done:
			dones = append(dones, ch)
		case ok:
			others = append(others, ch)
		case o.Kind != queue.Done && o.Kind != queue.Release:
			st.result = queue.ErrLost // a lease before recorded it as done
		}
	}
	onlyDone := done == len(st.l.Items)
	if !good && !onlyDone {
		st.result = queue.ErrLost
	}
	if st.result != nil {
		var err error
		if others, err = s.markDoubts(st); err != nil {
			return err
		}
	}
	st.changes = append(dones, others...) // others with the new messages, or not at all
	if err := s.writeChanges(st.changes); err != nil {
		return err
	}
	st.queuePut = good && st.result == nil || len(dones) > 0 && onlyDone
	if !st.queuePut {
		s.unwanted(st)
		return nil
	}
	for _, p := range st.puts {
		if err := s.planPut(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) unwanted(st *settlement) {
	for _, p := range st.puts {
		p.body.unwanted = true
	}
}

// judge tells whether outcomes other than done are accepted.
func (s *Store) judge(st *settlement) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ls := st.ls
	if ls == nil {
		return false
	}
	if ls.settled {
		st.repeat, st.result = true, ls.result
		return false
	}
	if ls.lost || time.Now().After(ls.until) && !ls.sending {
		return false
	}
	st.current, ls.settling = true, true
	for i, it := range ls.items {
		if it.u.epoch() != ls.epochs[i] {
			return false
		}
	}
	return true
}

// outcome makes the change of one outcome; ok is false when it is not accepted
// or changes nothing.
func (s *Store) outcome(st *settlement, o queue.Outcome) (ch rowChange, ok bool, err error) {
	var want queue.Item
	for _, it := range st.l.Items {
		if it.N == o.N {
			want = it
		}
	}
	ch, ok, err = s.find1(st.l.Envelope.ID, o.N)
	if err != nil || !ok || ch.row.copy != want.Copy {
		return ch, false, err // gone, or done before and now the copy
	}
	if o.Kind != queue.Done && (ch.it == nil || ch.it.lease != st.ls) {
		return ch, false, nil
	}
	r := &ch.row
	now := s.now()
	if o.Kind != queue.Defer {
		r.crashes = 0
	}
	r.reply = clip(o.Reply)
	r.noticed = r.noticed || o.Noticed
	switch {
	case !o.Doubt:
		r.doubt = nil
	case r.doubt == nil || st.ls.sending:
		r.suspect(st.ls.lane, st.ls.at, now)
	}
	switch o.Kind {
	case queue.Done:
		to := laneOf(want.CopyTo)
		if ch.remove = to == laneNone; !ch.remove {
			r.copy, r.fixed, r.attempts, r.unknown, r.since, r.due, r.reply = true, to, 0, 0, now, now, ""
			r.lane = laneNone
		}
	case queue.Fail:
		ch.remove = true
	case queue.Park:
		r.attempts++
		r.lane, r.due = laneParked, now
		return ch, true, nil
	case queue.Retry:
		r.attempts++
		r.lane, r.due = laneNone, max(millis(o.At), 1)
	case queue.Defer:
		r.lane, r.due = laneNone, max(millis(o.At), 1)
	case queue.Reroute:
		r.unknown |= 1 << laneOf(st.l.Route)
		r.attempts, r.since, r.due = 0, now, now
		r.fixed, r.lane = laneOf(o.To), laneNone
		if r.copy {
			ch.remove = true // the side that was to get the copy does not know the user
		}
	case queue.Release:
		return ch, false, nil
	}
	if !ch.remove {
		err = s.replace(&ch)
	}
	return ch, err == nil, err
}

// replace files a changed row where it belongs.
func (s *Store) replace(ch *rowChange) error {
	u, err := s.user(ch.row.user)
	if err != nil {
		return err
	}
	s.mu.Lock()
	ch.row.gen = u.generation()
	ch.row.lane = wayOf(&ch.row, u)
	s.mu.Unlock()
	return nil
}

// find1 finds a recipient: in memory, else on disk.
func (s *Store) find1(id mail.ID, n int) (ch rowChange, ok bool, err error) {
	s.mu.Lock()
	if m := s.msgs[id]; m != nil {
		if it := m.item(n); it != nil {
			ch = rowChange{it: it, row: it.row, from: it.row.lane}
			s.mu.Unlock()
			return ch, true, nil
		}
	}
	s.mu.Unlock()
	err = s.db.each(func(cols []driver.Value) error {
		ch.row, ok = scanRow(cols), true
		ch.from = ch.row.lane
		return nil
	}, sqlRcpt, string(id), n)
	return ch, ok, err
}

// writeChanges stores changes to recipients of one message, and removes the
// message with its last recipient.
func (s *Store) writeChanges(changes []rowChange) error {
	removed := 0
	for i := range changes {
		ch := &changes[i]
		s.note(ch.line)
		if ch.remove {
			removed++
			if _, err := s.db.run(sqlDeleteRcpt, string(ch.row.id), ch.row.n); err != nil {
				return err
			}
			continue
		}
		if err := s.writeRow(&ch.row); err != nil {
			return err
		}
	}
	if removed == 0 {
		return nil
	}
	return s.removeMessage(&changes[len(changes)-1], removed)
}

// removeMessage removes the message when none of its recipients is left.
func (s *Store) removeMessage(ch *rowChange, removed int) error {
	id := ch.row.id
	s.mu.Lock()
	m := s.msgs[id]
	left := -1
	if m != nil {
		left = m.live - removed
		ch.loc = m.loc
	}
	s.mu.Unlock()
	if left < 0 {
		v, _, err := s.db.ints("SELECT count(*) FROM recipient WHERE id = ?", string(id))
		if err != nil {
			return err
		}
		left = int(v[0])
	}
	if left > 0 {
		return nil
	}
	if m == nil {
		v, found, err := s.db.ints("SELECT file, pos, size FROM message WHERE id = ?", string(id))
		if err != nil || !found {
			return err
		}
		ch.loc = loc{v[0], v[1], v[2]}
	}
	ch.last = true
	_, err := s.db.run(sqlDeleteMsg, string(id))
	return err
}

// applySettle makes the outcomes the truth in memory.
func (s *Store) applySettle(st *settlement) {
	if st.repeat {
		return
	}
	if ls := st.ls; ls != nil {
		if st.current {
			ls.settled, ls.result = true, st.result
			s.end(ls)
		} else {
			s.bury(ls)
		}
		ls.settling = false
	}
	s.applyChanges(st.changes)
	if st.current {
		for _, it := range st.ls.items {
			if it.where == leased && it.lease == st.ls {
				s.admit(it, true) // without an outcome, or with one that is not accepted
			}
		}
	}
	if st.queuePut {
		for _, p := range st.puts {
			s.applyPut(p)
		}
	}
}

// applyChanges makes changes to rows the truth in memory.
func (s *Store) applyChanges(changes []rowChange) {
	for i := range changes {
		ch := &changes[i]
		s.applyChange(ch)
		if ch.last {
			s.messages--
			s.dead = append(s.dead, ch.loc)
		}
	}
}

func (s *Store) applyChange(ch *rowChange) {
	it := ch.it
	if m := s.msgs[ch.row.id]; m != nil && ch.remove {
		m.live--
	}
	if it == nil || it.where == gone {
		s.count[ch.from]--
		if ch.remove {
			return
		}
		s.count[ch.row.lane]++
		if ch.row.lane.isRoute() {
			s.lanes[ch.row.lane].left(ch.row.due)
			s.arm(ch.row.due)
		}
		s.checkFiled(&ch.row)
		return
	}
	if other := it.lease; it.where == leased && other != nil && !other.settled && !other.lost && !other.sending {
		s.takeBackBut(other, it) // a second delivery of what is done: not needed
	}
	if ch.remove {
		s.remove(it)
		return
	}
	it.row = ch.row
	s.admit(it, true)
}

// takeBackBut ends a lease that is not sending for the sake of one item.
func (s *Store) takeBackBut(ls *lease, but *item) {
	but.where = limbo
	s.takeBack(ls)
}
