package disk

import "errors"

// checkpointPages is how long the write-ahead log may grow, about.
const checkpointPages = 4000

// shortPages is the same while there is no room: the log is used again from
// its beginning, instead of growing into the reserve.
const shortPages = 400

// checkpoint moves the log into the database now and then. SQLite's own
// checkpoints would repeat a failed sync; ours end the store instead. A
// database that has no room to grow is not a failed sync: the log keeps what
// it has, and it is tried again later.
func (s *Store) checkpoint() error {
	limit := s.opts.checkpointPages
	if s.reserve.short.Load() {
		limit = min(limit, shortPages)
	}
	if s.frames < limit {
		return nil
	}
	s.frames = 0
	s.crash("checkpoint")
	_, _, err := s.db.ints("PRAGMA wal_checkpoint(PASSIVE)")
	if sqliteCode(err) == codeFull {
		s.log.Warn("the disk is full: the write-ahead log of the queue database grows until there is room", "error", err)
		s.frames = limit / 2
		return nil
	}
	return err
}

// tidyUp gives back what nobody needs: the active segment when nothing in it
// is live, and, while there is no room, the write-ahead log.
func (s *Store) tidyUp() error {
	s.retireDrained()
	if !s.reserve.tidy.Swap(false) || s.frames == 0 || !s.reserve.short.Load() {
		return nil
	}
	// Readers are not waited for.
	if _, _, err := s.db.ints("PRAGMA busy_timeout=0"); err != nil {
		return err
	}
	v, _, err := s.db.ints("PRAGMA wal_checkpoint(TRUNCATE)")
	if _, _, terr := s.db.ints("PRAGMA busy_timeout=10000"); terr != nil {
		return errors.Join(err, terr)
	}
	switch code := sqliteCode(err); {
	case code == codeFull || code == codeBusy:
		return nil
	case err != nil:
		return err
	case len(v) > 0 && v[0] == 0:
		s.frames = 0
	}
	return nil
}

// drainedSize is the octets from which on an active segment of which nothing
// is live is given back at once.
const drainedSize = 1 << 20

// retireDrained gives the active segment back when nothing in it is live and
// it has some size, or when room is short.
func (s *Store) retireDrained() {
	at := min(drainedSize, s.segmentSize/4)
	if s.Err() != nil || !s.files.drained(1) {
		return
	}
	if s.Room(0) == nil && !s.files.drained(at) {
		return
	}
	s.crash("segment.roll")
	s.files.retire(s.files.full())
	s.crash("segment.remove")
}

// drained tells whether the active segment has so many octets, and nothing of
// them is live.
func (s *files) drained(octets int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active != nil && s.active.live == 0 && s.active.size >= octets
}
