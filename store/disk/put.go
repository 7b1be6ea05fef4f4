package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crossfade/journal"
	"crossfade/mail"
	"crossfade/queue"
)

// The statements of a put. A message that is there already changes nothing.
const (
	sqlInsertMessage = `INSERT OR IGNORE INTO message (id, received, size, sender, file, pos, envelope) VALUES (?, ?, ?, ?, ?, ?, ?)`
	sqlInsertRcpt    = `INSERT INTO recipient (id, n, lane, user, due, gen, hint, since, addr) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`
)

// Put implements [queue.Enqueuer]. It does not give up waiting for the commit
// when ctx ends: the answer comes within a sync, and it has to be known.
func (s *Store) Put(ctx context.Context, env *mail.Envelope, r io.Reader) error {
	if err := queue.CheckEnvelope(env); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.Room(env.Size); err != nil {
		return err
	}
	b, err := s.receive(env.ID, r) // Close does not wait for a slow peer
	if err != nil {
		return err
	}
	if err := s.Room(b.size); err != nil {
		s.discard(b)
		return err
	}
	p := s.newPut(env, b, "")
	o := &op{name: "put", keys: []string{string(env.ID)}, bodies: []*body{b}, rows: len(env.Recipients), grows: true}
	o.plan = func() error { return s.planPut(p) }
	o.apply = func() { s.applyPut(p) }
	if err := s.do(o); err != nil {
		return err
	}
	env.Size = p.env.Size
	return nil
}

// put is a message on its way into the queue.
type put struct {
	env   *mail.Envelope
	body  *body
	blob  []byte
	rows  []row
	users []*ustate
	line  []byte // of the journal
	dup   bool
}

// newPut makes ready what can be before the writer has it. noticeOf is the message
// that a notice of ours is about.
func (s *Store) newPut(env *mail.Envelope, b *body, noticeOf mail.ID) *put {
	e := *env
	e.Size = b.size
	e.Recipients = slices.Clone(env.Recipients)
	p := &put{env: &e, body: b, blob: encodeEnvelope(&e)}
	if !s.opts.noJournal {
		p.line = journal.AcceptedLine(&e, noticeOf, s.opts.Now())
	}
	return p
}

// planPut writes a new message. A recipient that goes straight into memory is
// in no index of the database.
func (s *Store) planPut(p *put) error {
	e := p.env
	users := make([]*ustate, len(e.Recipients))
	for i := range users {
		u, err := s.user(e.Recipients[i].User)
		if err != nil {
			return err // before anything is written
		}
		users[i] = u
	}
	n, err := s.db.run(sqlInsertMessage, string(e.ID), millis(e.Received), e.Size, e.From.String(), p.body.loc.file, p.body.loc.pos, p.blob)
	if err != nil {
		return err
	}
	if n == 0 {
		p.dup = true
		p.body.unwanted = true // the first one's is kept
		return nil
	}
	now := s.now()
	p.rows = make([]row, len(e.Recipients))
	p.users = users
	for i := range e.Recipients {
		rc := &e.Recipients[i]
		r := &p.rows[i]
		*r = row{id: e.ID, n: i, user: rc.User, hint: laneOf(rc.Hint), since: now}
		if a := rc.Addr.String(); a != rc.User {
			r.addr = a
		}
		s.planRow(r, users[i], now)
		_, err = s.db.run(sqlInsertRcpt, string(r.id), r.n, r.lane, null(r.user), null(r.due), null(r.gen), null(int64(r.hint)), r.since, null(r.addr))
		if err != nil {
			return err
		}
	}
	s.note(p.line)
	return nil
}

// planRow places a new row: in memory where there is room, else filed.
func (s *Store) planRow(r *row, u *ustate, now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.gen = u.generation()
	r.lane = wayOf(r, u)
	if !r.lane.isRoute() || s.lanes[r.lane].straight.full(s.window) {
		r.due = now
	}
}

// applyPut brings a new message into memory, or notes that it waits on disk.
func (s *Store) applyPut(p *put) {
	if p.dup {
		return
	}
	s.messages++
	for i := range p.rows {
		r := &p.rows[i]
		if r.due != 0 {
			s.count[r.lane]++
			if r.lane.isRoute() {
				s.lanes[r.lane].left(r.due)
				s.arm(r.due)
			}
			s.checkFiled(r)
			continue
		}
		m := s.resident(p.env.ID, p.env, p.body.loc, len(p.rows))
		s.admit(s.enter(m, *r, p.users[i], false), false)
	}
}

// spaceCache is the room on the file system as of a moment ago.
type spaceCache struct {
	mu   sync.Mutex
	free int64
	at   time.Time
}

// free asks the file system at most once a second.
func (s *Store) free() int64 {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	if !s.space.at.IsZero() && time.Since(s.space.at) < time.Second {
		return s.space.free
	}
	return s.freeLocked()
}

// freeNow asks the file system.
func (s *Store) freeNow() int64 {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	return s.freeLocked()
}

func (s *Store) freeLocked() int64 {
	var st unix.Statfs_t
	s.space.at = time.Now()
	if err := unix.Statfs(s.dir, &st); err != nil {
		s.space.free = -1
		return -1
	}
	s.space.free = int64(st.Bavail) * int64(st.Bsize)
	return s.space.free
}

// Room implements [queue.Enqueuer]. The room that is left on the file system
// is asked for once a second; after a write that found none there is no room
// until some was seen to be free again.
func (s *Store) Room(size int64) error {
	if err := s.Err(); err != nil {
		return err
	}
	if err := s.shortage(); err != nil {
		return err
	}
	if limit := s.opts.MaxBytes; limit > 0 && s.files.liveBytes()+size > limit {
		return fmt.Errorf("%w: the bodies in the queue may take %d octets in all", queue.ErrFull, limit)
	}
	if keep := s.opts.MinFree; keep > 0 {
		if free := s.free(); free >= 0 && free-size < keep {
			return fmt.Errorf("%w: %d octets are free in %s, and %d have to stay free", queue.ErrFull, free, s.dir, keep)
		}
	}
	return nil
}

// Open implements [queue.Deliverer].
func (s *Store) Open(ctx context.Context, id mail.ID) (io.ReadCloser, error) {
	if err := s.enterCall(); err != nil {
		return nil, err
	}
	defer s.sent.Done()
	for {
		l, err := s.locate(ctx, id)
		if err != nil {
			return nil, err
		}
		b, err := s.files.reader(id, l)
		if err == nil {
			return &checkedBody{bodyReader: b, s: s, id: id}, nil
		}
		if again, aerr := s.locate(ctx, id); aerr != nil || again != l {
			if aerr != nil {
				return nil, aerr
			}
			continue // it was carried forward meanwhile
		}
		if !errors.Is(err, errHeader) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open the body of %s: %w", id, err) // too many open files, say: it passes
		}
		return nil, s.corrupt(id, err)
	}
}

// checkedBody reports a damaged body when it is found.
type checkedBody struct {
	*bodyReader
	s  *Store
	id mail.ID
}

// Read implements io.Reader.
func (c *checkedBody) Read(p []byte) (int, error) {
	n, err := c.bodyReader.Read(p)
	if errors.Is(err, errBadSum) {
		err = c.s.corrupt(c.id, err)
		c.bodyReader.err = err
	}
	return n, err
}

// corrupt raises the alarm for a damaged body.
func (s *Store) corrupt(id mail.ID, err error) error {
	s.log.Error("a stored message is damaged", "id", id, "error", err, "alarm", true)
	return fmt.Errorf("%w: %s: %w", queue.ErrCorrupt, id, err)
}

// locate tells where a message's body lies.
func (s *Store) locate(ctx context.Context, id mail.ID) (l loc, err error) {
	s.mu.Lock()
	if m := s.msgs[id]; m != nil {
		l = m.loc
		s.mu.Unlock()
		return l, nil
	}
	s.mu.Unlock()
	found := false
	select {
	case c := <-s.readers:
		defer func() { s.readers <- c }()
		var v []int64
		v, found, err = c.ints("SELECT file, pos, size FROM message WHERE id = ?", string(id))
		if found {
			l = loc{v[0], v[1], v[2]}
		}
	case <-ctx.Done():
		return l, ctx.Err()
	}
	if err == nil && !found {
		err = fmt.Errorf("%w: %s", queue.ErrNotFound, id)
	}
	return l, err
}
