package disk

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/router"
)

// recover brings counts, doubts and what is filed up to date after a start.
func (s *Store) recover() error {
	f, err := openDoubt(s.dir)
	if err != nil {
		return err
	}
	begin := time.Now()
	boot, err := s.countDoubts(f)
	took := []time.Duration{time.Since(begin).Round(time.Millisecond)}
	if err != nil {
		f.Close()
		return err
	}
	if s.doubt, err = newDoubt(f, boot); err != nil {
		f.Close()
		return err
	}
	for _, step := range []func() error{s.countBodies, s.countRecipients} {
		start := time.Now()
		if err := step(); err != nil {
			return err
		}
		took = append(took, time.Since(start).Round(time.Millisecond))
	}
	s.log.Debug("the store is open", "messages", s.messages, "bodies", took[1], "recipients", took[2], "doubts", took[0])
	s.kickWriter()
	if n := s.files.orphans(); n > 0 {
		s.log.Info("removed files of bodies that no message refers to", "files", n)
	}
	return nil
}

// countDoubts counts a crash for what was leased when the process was killed,
// and files what had only been in memory. The number of the boot makes sure
// that a crash is not counted twice.
func (s *Store) countDoubts(f *os.File) (boot int64, err error) {
	if err := s.loadOutbox(); err != nil {
		return 0, err
	}
	v, _, err := s.db.ints("SELECT n FROM boot")
	if err != nil {
		return 0, err
	}
	if len(v) == 0 {
		return 0, fmt.Errorf("open the queue database: the table boot is empty: restore %s from a backup", dbName)
	}
	doubts, err := readDoubts(f, v[0])
	if err != nil {
		return 0, err
	}
	if _, err := s.db.run("BEGIN IMMEDIATE"); err != nil {
		return 0, err
	}
	if err := s.writeDoubts(doubts, v[0]+1); err != nil {
		s.db.run("ROLLBACK")
		return 0, err
	}
	if _, err = s.db.run("COMMIT"); err == nil {
		s.linesCommitted()
	}
	return v[0] + 1, err
}

func (s *Store) writeDoubts(doubts []DoubtfulDelivery, boot int64) error {
	if _, err := s.db.run("UPDATE boot SET n = ?", boot); err != nil {
		return err
	}
	if _, err := s.db.run("UPDATE recipient SET due = ? WHERE due IS NULL", max(s.now(), 1)); err != nil {
		return err
	}
	// No delivery is put off for so long: the clock was wrong then.
	if _, err := s.db.run("UPDATE recipient SET due = ? WHERE lane IN (1, 2, 3) AND due > ?", s.now(), s.now()+(24*time.Hour).Milliseconds()); err != nil {
		return err
	}
	for _, d := range doubts {
		ch, ok, err := s.find1(d.ID, d.N)
		if err != nil {
			return err
		}
		if !ok || ch.row.lane == laneParked || ch.row.lane == laneOpHeld {
			continue // it was settled: the kill came before its slot was free
		}
		s.doubtful = append(s.doubtful, d)
		if d.Sending {
			ch.row.suspect(laneOf(d.Route), millis(d.At), s.now())
		}
		if !d.closed {
			s.countCrash(&ch.row)
		}
		if err := s.writeRow(&ch.row); err != nil {
			return err
		}
		if ch.row.lane == laneParked {
			s.noteParked(&ch.row)
		}
		s.log.Warn("a delivery was under way when the process was killed", "id", d.ID, "recipient", d.N, "route", d.Route, "sending", d.Sending)
	}
	return s.writeLines()
}

// countBodies counts what is live in each file.
func (s *Store) countBodies() error {
	return s.db.each(func(cols []driver.Value) error {
		n := int(asInt(cols[2]))
		s.files.count(asInt(cols[0]), asInt(cols[1]) != 0, n, asInt(cols[3]))
		s.messages += n
		return nil
	}, "SELECT file, pos < 0, count(*), sum(size) FROM message GROUP BY file, pos < 0")
}

// countRecipients counts the lanes and notes when each is due.
func (s *Store) countRecipients() error {
	for l := range s.lanes {
		s.lanes[l].nextDisk, s.lanes[l].cursor = never, never
	}
	return s.db.each(func(cols []driver.Value) error {
		l := lane(asInt(cols[0]))
		if l <= laneNone || l >= laneCount {
			return fmt.Errorf("open the queue database: a recipient is in lane %d, which there is not", l)
		}
		s.count[l] = int(asInt(cols[1]))
		if l.isRoute() {
			s.lanes[l].left(asInt(cols[2]))
		}
		return nil
	}, "SELECT lane, count(*), min(due) FROM recipient INDEXED BY recipient_due WHERE due IS NOT NULL GROUP BY lane")
}

// findMisfiled begins again the filing that a kill cut short: users with mail
// in a lane that is not theirs. It runs beside the work, because a long queue
// takes seconds to look through.
func (s *Store) findMisfiled() {
	err := s.read(context.Background(), func(c *conn) error {
		return c.each(s.checkMisfiled, `SELECT f.user, f.lane, u.state FROM (SELECT DISTINCT user, lane FROM recipient INDEXED BY recipient_user
WHERE due IS NOT NULL AND user IS NOT NULL AND lane <= 4) f LEFT JOIN user u ON u.address = f.user`)
	})
	if err != nil && !errors.Is(err, queue.ErrClosed) {
		s.log.Error("looking for mail that is filed under an old route did not work: the next start looks again", "error", err, "alarm", true)
	}
}

func (s *Store) checkMisfiled(cols []driver.Value) error {
	key, l := asString(cols[0]), lane(asInt(cols[1]))
	u := &ustate{known: cols[2] != nil, user: router.User{State: router.State(asString(cols[2]))}}
	want, held := u.way()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errStop
	case held:
		want = laneHeld
	case want == laneNone && l != laneHeld:
		return nil // by its hint
	}
	if l != want {
		s.addJob(key)
	}
	return nil
}

// count notes what the database refers to in a file.
func (s *files) count(num int64, own bool, n int, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pos := int64(0)
	if own {
		pos = -1
	}
	s.useLocked(loc{file: num, pos: pos, size: size - headerSize}, 1)
	s.next = max(s.next, num+1)
	f := s.byNum[num]
	f.live += n - 1
	f.bytes += int64(n) * headerSize
	s.bytes += int64(n) * headerSize
}

// matchAll selects every recipient of some messages.
func (s *Store) matchAll(ids []mail.ID) *selection { return &selection{ids: ids} }
