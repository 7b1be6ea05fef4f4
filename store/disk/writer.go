package disk

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"crossfade/queue"
)

// op is a change. The writer runs it in two steps: plan checks and writes to
// the database, inside the transaction of a group; apply changes memory under
// Store.mu after the commit. An error of plan that is not the database's is
// the answer to this change alone, and then it must have written nothing.
type op struct {
	name   string   // for crash points
	keys   []string // what it touches: no two ops with a key in common are in a group
	alone  bool     // in a group of its own
	bodies []*body  // to be written before
	rows   int      // how many new recipients
	grows  bool     // it makes the store larger: refused while there is no room
	plan   func() error
	apply  func()
	undo   func() // instead of apply, when the commit did not happen
	done   chan error
	err    error
	aside  bool   // it met a damaged page
	giveUp func() // of the store's own work then
}

// Bounds of a group.
const (
	groupOps   = 256
	groupBytes = 8 << 20
	groupRows  = 4096
)

// do hands an op to the writer and waits for its answer. There is no way to
// give up waiting: the answer comes within a sync, and it has to be known.
func (s *Store) do(o *op) error {
	if err := s.enterCall(); err != nil {
		for _, b := range o.bodies {
			s.discard(b)
		}
		return err
	}
	defer s.sent.Done()
	return s.doEntered(o)
}

func (s *Store) doEntered(o *op) error {
	done := make(chan error, 1)
	o.done = done
	s.ops <- o
	return <-done
}

// writer is the one goroutine that changes the database.
func (s *Store) writer() {
	defer close(s.syncReq)
	var next *op
	for {
		if next == nil {
			var end bool
			if next, end = s.awaitOp(); end {
				return
			}
		}
		// Whoever can run may first: when there is more work than processors, the
		// messages that are about to come share this commit, and its syncs. With
		// nothing else to run this costs nothing.
		runtime.Gosched()
		var group []*op
		group, next = s.gather(next)
		if len(group) > 0 {
			s.commitGroup(group)
		}
		if s.Err() == nil {
			s.afterGroup()
		}
	}
}

// awaitOp waits for an op, or for work of the store's own, which comes without
// one.
func (s *Store) awaitOp() (first *op, end bool) {
	if s.refused { // the store's own work is tried again with pauses
		s.refused = false
		pause := time.NewTimer(ownPause)
		defer pause.Stop()
		select {
		case first = <-s.ops:
		case <-pause.C:
		case <-s.quit:
			return nil, true
		}
		return first, false
	}
	if s.busyInside() {
		select {
		case first = <-s.ops:
		case <-s.quit:
			return nil, true // the next start goes on with it
		default:
		}
		return first, false
	}
	select {
	case first = <-s.ops:
	case <-s.kick:
	case <-s.quit:
		return nil, true
	}
	return first, false
}

// ownPause is how long the store's own work waits after a commit for which
// there was no room.
const ownPause = time.Second

// busyInside tells whether the store has work of its own to do.
func (s *Store) busyInside() bool {
	if s.Err() != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.bg) > 0 || len(s.filing) > 0 || len(s.jobs) > 0
}

// gather collects a group: the op that came first, one of the store's own, and
// what else has arrived, until two would touch the same thing. That one is
// first in the next group.
func (s *Store) gather(first *op) (group []*op, next *op) {
	keys := map[string]struct{}{}
	size, rows := 0, 0
	add := func(o *op) bool {
		if len(group) > 0 && (o.alone || group[0].alone) {
			return false
		}
		for _, k := range o.keys {
			if _, dup := keys[k]; dup {
				return false
			}
		}
		for _, k := range o.keys {
			keys[k] = struct{}{}
		}
		for _, b := range o.bodies {
			size += len(b.buf)
		}
		rows += o.rows
		group = append(group, o)
		return true
	}
	if first != nil {
		add(first)
	}
	if s.Err() == nil {
		for _, o := range s.ownWork() {
			if !add(o) {
				s.mu.Lock()
				s.bg = append(s.bg, o)
				s.mu.Unlock()
			}
		}
	}
	for len(group) < groupOps && size < groupBytes && rows < groupRows {
		select {
		case o := <-s.ops:
			if !add(o) {
				return group, o
			}
		default:
			return group, nil
		}
	}
	return group, nil
}

// ownWork gives what the store has to do by itself, in slices.
func (s *Store) ownWork() []*op {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.bg
	s.bg = nil
	if len(s.filing) > 0 {
		n := min(len(s.filing), sliceRows)
		own = append(own, s.fileOp(s.filing[:n:n]))
		s.filing = s.filing[n:]
	}
	for _, j := range s.jobs { // any of them: they take turns by chance
		own = append(own, s.refileOp(j))
		break
	}
	return own
}

// sliceRows is how many recipients are re-filed in one group.
const sliceRows = 256

// commitGroup makes a group durable and answers its callers.
func (s *Store) commitGroup(group []*op) {
	if err := s.Err(); err != nil {
		s.answerAll(group, err)
		return
	}
	if err := s.shortage(); err != nil {
		group = s.withoutGrowth(group, err)
	}
	group, dirty := s.writeGroup(group)
	if len(group) == 0 {
		s.releaseRetired()
		return
	}
	err := s.transact(group, dirty)
	s.frames += 6 + 2*len(group)
	if errors.Is(err, queue.ErrFull) {
		rest, again := s.afterFull(group, err)
		if group = rest; again {
			err = s.transact(group, nil) // the segments are synced
		}
	}
	s.releaseRetired()
	if err != nil {
		s.refused = true
		s.answerAll(group, err)
		return
	}
	if s.opts.CrashPoint != nil {
		s.crashEach(group, ".after-commit")
	}
	s.mu.Lock()
	for _, o := range group {
		if o.err == nil && o.apply != nil {
			o.apply()
		}
	}
	dead := s.dead
	s.dead = nil
	s.mu.Unlock()
	for _, l := range dead {
		if s.files.drop(l) {
			s.crash("segment.remove")
		}
	}
	for _, o := range group {
		for _, b := range o.bodies {
			if o.err != nil || b.unwanted {
				s.discard(b)
			} else {
				s.keep(b)
			}
		}
	}
	s.retireDrained()
	for _, o := range group {
		if o.done != nil {
			o.done <- o.err
		}
	}
}

// answerAll gives up a group that was not committed.
func (s *Store) answerAll(group []*op, err error) {
	s.mu.Lock()
	for _, o := range group {
		if o.undo != nil {
			o.undo()
		}
	}
	s.mu.Unlock()
	for _, o := range group {
		for _, b := range o.bodies {
			s.discard(b)
		}
		if o.done != nil {
			o.done <- err
		}
	}
}

// writeGroup appends the group's bodies. When there is no room, what only
// makes the store larger is answered, and the rest is written in the room of
// the reserve; without one, the other ops with bodies are answered too.
func (s *Store) writeGroup(group []*op) ([]*op, []*bodyFile) {
	var bodies []*body
	for _, o := range group {
		bodies = append(bodies, o.bodies...)
	}
	if len(bodies) == 0 {
		return group, nil
	}
	s.crash("put.before-segment-write")
	dirty, created, err := s.placeBodies(bodies)
	if err == nil && created {
		if err = s.files.syncNew(); err != nil {
			err = s.fail(fmt.Errorf("sync the directory of the bodies: %w", err))
		}
	}
	s.crash("put.after-segment-write")
	if err == nil {
		return group, dirty
	}
	s.unplace(bodies)
	if errors.Is(err, queue.ErrFull) {
		rest, again := s.afterFull(group, err)
		if group = rest; again {
			return s.writeGroup(rest)
		}
	}
	var rest, lost []*op
	for _, o := range group {
		if len(o.bodies) > 0 || s.Err() != nil {
			lost = append(lost, o)
		} else {
			rest = append(rest, o)
		}
	}
	s.answerAll(lost, err)
	return rest, nil
}

// transact runs the plans in one transaction. The segments are synced
// meanwhile, and the commit waits for that. What runs into a damaged page is
// answered so, and the others begin again.
func (s *Store) transact(group []*op, dirty []*bodyFile) error {
	s.syncReq <- dirty
	err := s.plan(group)
	for sqliteCode(err) == codeCorrupt && s.setAside(group, err) {
		err = s.plan(group)
	}
	if serr := <-s.syncAns; serr != nil {
		s.db.run("ROLLBACK")
		return s.fail(fmt.Errorf("sync a segment: %w", serr))
	}
	if err != nil {
		return s.rollback(err)
	}
	if s.opts.CrashPoint != nil {
		if len(dirty) > 0 {
			s.crash("put.after-segment-sync")
		}
		s.crashEach(group, ".before-commit")
	}
	if s.opts.earlyAck {
		s.ackEarly(group)
	}
	if s.opts.beforeCommit != nil {
		if err := s.opts.beforeCommit(); err != nil {
			s.db.run("ROLLBACK")
			return s.fail(fmt.Errorf("commit: %w", err))
		}
	}
	if _, err := s.db.run("COMMIT"); err != nil {
		return s.rollback(err)
	}
	s.linesCommitted()
	return nil
}

// plan begins the transaction and runs the plans.
func (s *Store) plan(group []*op) error {
	if _, err := s.db.run("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	s.lines = s.lines[:0]
	for _, o := range group {
		if o.plan == nil || o.aside {
			continue
		}
		said := len(s.lines)
		if o.err = o.plan(); o.err == nil {
			continue
		}
		if isDBError(o.err) {
			return o.err
		}
		s.lines = s.lines[:said] // it changed nothing
	}
	return s.writeLines()
}

// setAside takes the op out that met a damaged page of the database; false
// when that does not help.
func (s *Store) setAside(group []*op, cause error) bool {
	s.db.run("ROLLBACK")
	s.forgetUsers()
	for _, o := range group {
		if o.aside || o.err == nil || !isDBError(o.err) {
			continue
		}
		s.log.Error("the queue database is damaged: run PRAGMA integrity_check, and restore it", "doing", o.name, "error", cause, "alarm", true)
		o.aside = true
		s.mu.Lock()
		switch {
		case o.done == nil: // the store's own work is not tried again
			if o.giveUp != nil {
				o.giveUp()
			}
		case o.undo != nil:
			o.undo()
		}
		s.mu.Unlock()
		return true
	}
	return false
}

// rollback ends a transaction that cannot be committed. A full disk passes,
// and so does a lock that somebody took with sqlite3; but only when the
// rollback is clean.
func (s *Store) rollback(cause error) error {
	code := sqliteCode(cause)
	_, err := s.db.run("ROLLBACK")
	if code != codeFull && code != codeBusy {
		return s.fail(cause)
	}
	if err != nil && s.inTransaction() {
		return s.fail(fmt.Errorf("%w; and the rollback failed: %w", cause, err))
	}
	s.forgetUsers()
	if code == codeBusy {
		return fmt.Errorf("another process keeps the queue database locked, end its transaction: %w", cause)
	}
	return fmt.Errorf("%w: %w", queue.ErrFull, cause)
}

// inTransaction tells whether a transaction is open: a second one cannot be
// begun then. SQLite rolls back by itself after some errors.
func (s *Store) inTransaction() bool {
	if _, err := s.db.run("BEGIN"); err != nil {
		return true
	}
	_, err := s.db.run("ROLLBACK")
	return err != nil
}

// releaseRetired lets go of segments that are full and synced.
func (s *Store) releaseRetired() {
	for _, f := range s.retired {
		s.files.retire(f)
	}
	s.retired = s.retired[:0]
}

// syncer syncs segments while the writer fills the transaction.
func (s *Store) syncer() {
	for dirty := range s.syncReq {
		var err error
		for _, f := range dirty {
			if err == nil {
				err = s.files.sync(f.f)
			}
		}
		s.syncAns <- err
	}
}

// afterGroup pages mail in and keeps the write-ahead log short.
func (s *Store) afterGroup() {
	for l := laneOld; l <= laneOut; l++ {
		if err := s.fill(l); err != nil {
			s.fail(err)
			return
		}
	}
	if err := s.tidyUp(); err != nil {
		s.fail(err)
		return
	}
	if err := s.checkpoint(); err != nil {
		s.fail(err)
	}
}

func (s *Store) crashEach(group []*op, step string) {
	seen := map[string]bool{}
	for _, o := range group {
		if o.err == nil && o.name != "" && !seen[o.name] {
			seen[o.name] = true
			s.crash(o.name + step)
		}
	}
}

// ackEarly is the broken variant that a test uses to see the checker fail.
func (s *Store) ackEarly(group []*op) {
	for _, o := range group {
		if o.done != nil {
			o.done <- o.err
			o.done = nil
		}
	}
	s.crash("broken.after-ack")
}
