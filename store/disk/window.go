package disk

import (
	"database/sql/driver"
	"fmt"
	"time"

	"crossfade/mail"
	"crossfade/queue"
)

// pageIn is how many messages are brought into memory between two groups.
const pageIn = 128

// windowRcpts is how many recipients a message of the window may have on
// average.
const windowRcpts = 8

// fill brings mail that is due from disk into memory, a slice at a time, while
// there is room. Only the writer does this, so nothing changes under it.
func (s *Store) fill(l lane) error {
	s.mu.Lock()
	q := &s.lanes[l]
	now, from, room := s.now(), q.cursor, min(s.window-q.paged.n, pageIn)
	need := q.nextDisk <= now && !q.paged.full(s.window)
	s.mu.Unlock()
	if !need || room < min(pageIn, s.window/2) {
		return nil
	}
	list, last, more, err := s.dueOnDisk(l, from, now, room)
	if sqliteCode(err) == codeCorrupt {
		return s.damagedIndex(l, now, err)
	}
	if err != nil {
		return err
	}
	for _, due := range list {
		s.mu.Lock()
		full := q.paged.full(s.window)
		s.mu.Unlock()
		if full {
			last, more = due.at, true
			break
		}
		id := due.id
		err := s.pageMessage(id, l, now)
		if sqliteCode(err) == codeCorrupt {
			s.log.Error("a queued message is on a damaged page of the database and waits: run PRAGMA integrity_check, and restore it", "id", id, "error", err, "alarm", true)
			continue
		}
		if err != nil {
			return err
		}
	}
	next := int64(never)
	if !more {
		v, _, err := s.db.ints("SELECT coalesce(min(due), ?) FROM recipient WHERE lane = ? AND due > ?", int64(never), l, now)
		if err != nil {
			return err
		}
		next = v[0]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if more {
		q.cursor, q.nextDisk = last, last
		s.kickWriter()
		return nil
	}
	q.cursor, q.nextDisk = now+1, next
	s.arm(next)
	return nil
}

// damagedIndex leaves what is on disk alone for a minute: the rest goes on.
func (s *Store) damagedIndex(l lane, now int64, err error) error {
	s.log.Error("the index of waiting mail is damaged: run PRAGMA integrity_check, then REINDEX", "route", l.route(), "error", err, "alarm", true)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes[l].nextDisk = now + time.Minute.Milliseconds()
	s.arm(s.lanes[l].nextDisk)
	return nil
}

// dueMessage is a message with a recipient that is due.
type dueMessage struct {
	id mail.ID
	at int64
}

// dueOnDisk lists messages with a recipient that is due on disk but not in
// memory; more tells that the list is cut at last.
func (s *Store) dueOnDisk(l lane, from, now int64, room int) (list []dueMessage, last int64, more bool, err error) {
	seen := map[mail.ID]bool{}
	err = s.db.each(func(cols []driver.Value) error {
		id, n := mail.ID(asString(cols[0])), int(asInt(cols[1]))
		if seen[id] {
			return nil
		}
		s.mu.Lock()
		m := s.msgs[id]
		in := m != nil && m.item(n) != nil
		s.mu.Unlock()
		if in {
			return nil
		}
		if len(list) == room {
			more = true
			return errStop
		}
		seen[id] = true
		last = asInt(cols[2])
		list = append(list, dueMessage{id, last})
		return nil
	}, "SELECT id, n, due FROM recipient INDEXED BY recipient_due WHERE lane = ? AND due >= ? AND due <= ? ORDER BY due", l, from, now)
	return list, last, more, err
}

// pageMessage brings those recipients of a message into memory that are due in
// a lane.
func (s *Store) pageMessage(id mail.ID, l lane, now int64) error {
	rows, err := s.rows(s.db, id)
	if err != nil {
		return err
	}
	env, where, err := loadMessage(s.db, id)
	if isDBError(err) {
		return err
	}
	if err != nil {
		s.parkDamaged(id, err)
		return nil
	}
	users := make([]*ustate, len(rows))
	for i := range rows {
		if users[i], err = s.user(rows[i].user); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.resident(id, env, where, len(rows))
	for i := range rows {
		r := &rows[i]
		if r.lane != l || r.due > now || m.item(r.n) != nil {
			continue
		}
		s.admit(s.enter(m, *r, users[i], true), true)
	}
	if len(m.items) == 0 {
		s.evict(m)
	}
	return nil
}

// rows reads the recipients of a message.
func (s *Store) rows(c *conn, id mail.ID) (rows []row, err error) {
	err = c.each(func(cols []driver.Value) error {
		rows = append(rows, scanRow(cols))
		return nil
	}, sqlRcpts, string(id))
	return rows, err
}

// loadMessage reads a message without its recipients' states.
func loadMessage(c *conn, id mail.ID) (env *mail.Envelope, l loc, err error) {
	err = c.each(func(cols []driver.Value) (err error) {
		l = loc{asInt(cols[0]), asInt(cols[1]), asInt(cols[2])}
		env, err = decodeEnvelope(id, l.size, asBytes(cols[3]))
		return err
	}, "SELECT file, pos, size, envelope FROM message WHERE id = ?", string(id))
	if err == nil && env == nil {
		err = fmt.Errorf("%w: %s", queue.ErrNotFound, id)
	}
	return env, l, err
}

// parkDamaged parks a message that cannot be read.
func (s *Store) parkDamaged(id mail.ID, cause error) {
	s.log.Error("a queued message is damaged and was parked", "id", id, "error", cause, "alarm", true)
	op := s.applyOp(s.matchAll([]mail.ID{id}), queue.Action{Verb: queue.DoPark, Reason: cause.Error(), By: ownName}, &queue.Applied{})
	s.mu.Lock()
	s.bg = append(s.bg, op)
	s.mu.Unlock()
	s.kickWriter()
}

// fileOp files recipients in memory whose user is held, and lets go of them.
func (s *Store) fileOp(items []*item) *op {
	o := &op{name: "file"}
	seen := map[mail.ID]bool{}
	for _, it := range items {
		if !seen[it.m.id] {
			seen[it.m.id] = true
			o.keys = append(o.keys, string(it.m.id))
		}
	}
	var changes []rowChange
	o.plan = func() error {
		changes = nil
		for _, it := range items {
			s.mu.Lock()
			ch := rowChange{it: it, row: it.row, from: it.row.lane}
			mine := it.where == limbo && it.lane == laneHeld && place(&it.row, it.u) == laneHeld
			s.mu.Unlock()
			if !mine {
				continue
			}
			ch.row.lane, ch.row.due = laneHeld, s.now()
			if err := s.writeRow(&ch.row); err != nil {
				return err
			}
			changes = append(changes, ch)
		}
		return nil
	}
	o.apply = func() {
		s.applyChanges(changes)
		for _, it := range items {
			if it.where == limbo && it.lease == nil {
				s.admit(it, true) // the user was released meanwhile
			}
		}
	}
	o.undo = func() { s.filing = append(s.filing, items...) }
	return o
}

// sqlHasten makes a slice of a lane due now. What waits in memory too is not
// touched there: its timer knows.
const sqlHasten = `UPDATE recipient SET due = ? WHERE (id, n) IN
(SELECT id, n FROM recipient INDEXED BY recipient_due WHERE lane = ? AND due > ? LIMIT ?)`

// hasten makes what waits on disk due now, slice after slice and lane after
// lane: the clock by which it was put off was wrong.
func (s *Store) hasten(l lane) *op {
	n := 0
	var now int64
	o := &op{name: "hasten"}
	o.plan = func() (err error) {
		now = s.now()
		n, err = s.db.run(sqlHasten, now, l, now, sliceRows)
		return err
	}
	o.apply = func() {
		if n > 0 {
			s.lanes[l].left(now)
		}
		switch {
		case n == sliceRows:
			s.bg = append(s.bg, s.hasten(l))
		case l < laneOut:
			s.bg = append(s.bg, s.hasten(l+1))
		}
	}
	o.undo = func() { s.bg = append(s.bg, s.hasten(l)) }
	return o
}

// refile is the work of filing a user's mail on disk again after his route
// changed: lane after lane, in the order of the index.
type refile struct {
	key   string
	lane  lane
	after mail.ID
	n     int
}

// addJob begins the work for a user, or begins it again.
func (s *Store) addJob(key string) {
	if j := s.jobs[key]; j != nil {
		*j = refile{key: key, lane: laneOld}
		return
	}
	s.jobs[key] = &refile{key: key, lane: laneOld}
	s.kickWriter()
}

// checkFiled begins the work for a user whose state was changed between the
// moment a row of his was written and now, in the same group.
func (s *Store) checkFiled(r *row) {
	if u := s.users[r.user]; u != nil && r.lane <= laneHeld && wayOf(r, u) != r.lane {
		s.addJob(r.user)
	}
}

const sqlUserRows = `SELECT ` + rcptColumns + ` FROM recipient INDEXED BY recipient_user
WHERE user = ? AND lane = ? AND due IS NOT NULL AND (id, n) > (?, ?) ORDER BY id, n LIMIT ?`

// refileOp does a slice of a job.
func (s *Store) refileOp(j *refile) *op {
	o := &op{name: "refile", keys: []string{"u:" + j.key}}
	o.giveUp = func() { delete(s.jobs, j.key) }
	var from refile
	var changes []rowChange
	var last row
	found := 0
	o.plan = func() error {
		s.mu.Lock()
		from = *j
		s.mu.Unlock()
		u, err := s.user(from.key)
		if err != nil {
			return err
		}
		changes, found = nil, 0
		err = s.db.each(func(cols []driver.Value) error {
			found++
			last = scanRow(cols)
			ch := rowChange{row: last, from: last.lane}
			s.mu.Lock()
			ch.row.fresh(u)
			ch.row.lane, ch.row.due = wayOf(&ch.row, u), s.now()
			s.mu.Unlock()
			if ch.row.lane != ch.from || last.gen != ch.row.gen {
				changes = append(changes, ch)
			}
			return nil
		}, sqlUserRows, from.key, from.lane, string(from.after), from.n, sliceRows)
		if err != nil {
			return err
		}
		for i := range changes {
			if err := s.writeRow(&changes[i].row); err != nil {
				return err
			}
		}
		return nil
	}
	o.apply = func() {
		for i := range changes {
			s.applyRefile(&changes[i])
		}
		if *j == from {
			s.advance(j, found, last)
		}
	}
	return o
}

// applyRefile notes in memory what a job did to a row.
func (s *Store) applyRefile(ch *rowChange) {
	if m := s.msgs[ch.row.id]; m != nil {
		if it := m.item(ch.row.n); it != nil {
			it.row.lane, it.row.due = ch.row.lane, ch.row.due
			return
		}
	}
	s.applyChange(ch)
}

// advance moves a job on, and ends it behind the last lane.
func (s *Store) advance(j *refile, found int, last row) {
	if found == sliceRows {
		j.after, j.n = last.id, last.n
		return
	}
	if j.lane < laneHeld {
		*j = refile{key: j.key, lane: j.lane + 1}
		return
	}
	delete(s.jobs, j.key)
}
