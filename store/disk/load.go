package disk

import (
	"context"
	"crossfade/store/transfer"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// partialSuffix ends the name of the directory beside the target in which a
// copy is written.
const partialSuffix = ".partial"

// load is a store that is being written beside the place where it will be.
type load struct {
	dir     string // where it will be
	tmp     string
	lock    *os.File
	s       *Store // only its database and files: nothing of it runs
	written *dump
	users   map[string]*ustate

	open   bool // a transaction is
	steps  int  // in it
	batch  []*body
	msgs   []*transfer.Message
	size   int64
	synced map[*bodyFile]bool // false: to be synced
	moved  bool
	gone   bool
}

var _ transfer.Sink = (*load)(nil)

// Bounds of one transaction of a load.
const (
	loadSteps = 1000
	loadBytes = 8 << 20
)

// OpenSink begins a store that will be in dir, which must not exist or be
// empty. It is written in a directory beside and moved there at the end; when
// that directory is there already, the error is a [transfer.ErrPartial].
func OpenSink(dir string) (transfer.Sink, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("make a store: %w", err)
	}
	if err := emptyDir(dir); err != nil {
		return nil, err
	}
	l := &load{dir: dir, tmp: dir + partialSuffix, users: map[string]*ustate{}, synced: map[*bodyFile]bool{}}
	if err := partial(l.tmp); err != nil {
		return nil, err
	}
	if err := makeDir(filepath.Dir(dir), dataSync); err != nil {
		return nil, fmt.Errorf("make a store: %w", err)
	}
	if err := os.Mkdir(l.tmp, 0o700); err != nil {
		return nil, fmt.Errorf("make a store: %w", err)
	}
	if err := l.start(); err != nil {
		return nil, errors.Join(err, l.Discard())
	}
	return l, nil
}

// emptyDir refuses a directory that holds something.
func emptyDir(dir string) error {
	ents, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("make a store in %s: %w", dir, err)
	case len(ents) > 0:
		return fmt.Errorf("%w: %s has %d files, %s for one: name a new directory", transfer.ErrNotEmpty, dir, len(ents), ents[0].Name())
	}
	return nil
}

// partial looks for what an earlier copy left.
func partial(tmp string) error {
	_, err := os.Lstat(tmp)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("make a store: %w", err)
	}
	lock, err := lockDir(tmp)
	if err != nil {
		return fmt.Errorf("%w: another copy is writing %s just now", transfer.ErrInUse, tmp)
	}
	unlock(lock)
	return fmt.Errorf("%w: %s is what it left: use --discard-partial to remove it and begin again", transfer.ErrPartial, tmp)
}

// DiscardPartial removes what a copy into dir left that was cut short. It tells
// whether there was anything.
func DiscardPartial(dir string) (bool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	err = partial(dir + partialSuffix)
	if err == nil {
		return false, nil
	}
	if !errors.Is(err, transfer.ErrPartial) {
		return false, err
	}
	if err := os.RemoveAll(dir + partialSuffix); err != nil {
		return false, fmt.Errorf("remove what an earlier copy left: %w", err)
	}
	return true, syncDir(filepath.Dir(dir))
}

// start opens database and files. The parts of a Store that place bodies are
// used as they are.
func (l *load) start() (err error) {
	if l.lock, err = lockDir(l.tmp); err != nil {
		return err
	}
	opts := quiet()
	opts.MemoryBudget = 4 * loadSteps * firstBuffer // of a batch: small bodies get no files of their own
	l.s = &Store{
		opts: opts, dir: l.tmp, log: opts.Logger, segmentSize: opts.segmentSize, failed: make(chan struct{}),
		reserve: &reserve{},
	}
	l.s.budget.Store(opts.MemoryBudget)
	if l.s.files, err = openFiles(l.tmp, opts.sync); err != nil {
		return err
	}
	l.s.db, err = openDB(l.tmp, 0)
	return err
}

// Name implements [transfer.Sink].
func (l *load) Name() string { return l.dir }

// begin opens a transaction where none is.
func (l *load) begin() error {
	if l.open {
		return nil
	}
	if _, err := l.s.db.run("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	l.open, l.steps = true, 0
	return nil
}

// step ends a transaction that is long enough.
func (l *load) step(n int) error {
	if l.steps += n; l.steps < loadSteps {
		return nil
	}
	return l.commit()
}

// commit ends the transaction; nothing relies on it yet, and Flush syncs.
func (l *load) commit() error {
	if !l.open {
		return nil
	}
	l.open = false
	if _, err := l.s.db.run("COMMIT"); err != nil {
		return err
	}
	_, _, err := l.s.db.ints("PRAGMA wal_checkpoint(PASSIVE)")
	return err
}

// Account implements [transfer.Sink].
func (l *load) Account(_ context.Context, a *transfer.Account) error {
	if err := l.begin(); err != nil {
		return err
	}
	for i := range a.History {
		if err := l.s.writeHistory(a.History[i]); err != nil {
			return err
		}
	}
	for name, data := range a.Ledger {
		if _, err := l.s.db.run("INSERT INTO ledger (user, name, data) VALUES (?, ?, ?)", a.Key, name, data); err != nil {
			return err
		}
	}
	if a.User != nil {
		if err := l.s.putUser(*a.User, a.Gen); err != nil {
			return err
		}
	}
	return l.step(1 + len(a.History) + len(a.Ledger))
}

// Message implements [transfer.Sink].
func (l *load) Message(ctx context.Context, m *transfer.Message) error {
	r, err := m.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := l.s.receive(m.Envelope.ID, r)
	if err != nil {
		return err
	}
	l.batch = append(l.batch, b)
	l.msgs = append(l.msgs, m)
	if l.size += b.size; l.size < loadBytes && len(l.batch) < loadSteps {
		return nil
	}
	return l.writeBatch()
}

// writeBatch writes the messages that were collected.
func (l *load) writeBatch() error {
	batch, msgs := l.batch, l.msgs
	l.batch, l.msgs, l.size = nil, nil, 0
	defer func() {
		for _, b := range batch {
			l.s.keep(b)
		}
	}()
	if len(batch) == 0 {
		return nil
	}
	dirty, _, err := l.s.placeBodies(batch)
	if err != nil {
		return err
	}
	for _, f := range dirty {
		l.synced[f] = false
	}
	if err := l.begin(); err != nil {
		return err
	}
	for i, m := range msgs {
		if err := l.writeMessage(m, batch[i].loc); err != nil {
			return err
		}
	}
	if err := l.syncRetired(); err != nil {
		return err
	}
	return l.step(len(batch))
}

const sqlLoadRcpt = `INSERT INTO recipient (id, n, lane, user, due, gen, hint, fixed, copy, attempts, crashes, since, noticed, unknown, addr, reply, doubt)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

func (l *load) writeMessage(m *transfer.Message, at loc) error {
	e := *m.Envelope
	e.Size = at.size
	n, err := l.s.db.run(sqlInsertMessage, string(e.ID), millis(e.Received), e.Size, e.From.String(), at.file, at.pos, encodeEnvelope(&e))
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("message %s came twice", e.ID)
	}
	for i := range m.Rows {
		r := rowOf(e.ID, &m.Rows[i])
		if a := e.Recipients[r.n].Addr.String(); a != r.user {
			r.addr = a
		}
		u, err := l.user(r.user)
		if err != nil {
			return err
		}
		if r.lane == laneNone {
			r.lane = wayOf(&r, u)
		}
		if err := insertRow(l.s.db, &r); err != nil {
			return err
		}
	}
	return nil
}

func insertRow(c *conn, r *row) error {
	_, err := c.run(sqlLoadRcpt, string(r.id), r.n, r.lane, null(r.user), r.due, null(r.gen), null(int64(r.hint)), null(int64(r.fixed)),
		null(r.copy), null(r.attempts), null(r.crashes), r.since, null(r.noticed), null(int64(r.unknown)), null(r.addr), null(r.reply), null(r.inDoubt().String()))
	return err
}

// user gives a user that was loaded.
func (l *load) user(key string) (*ustate, error) {
	if key == "" {
		return nil, nil
	}
	if us := l.users[key]; us != nil {
		return us, nil
	}
	us, err := loadUser(l.s.db, key)
	if err != nil {
		return nil, err
	}
	if len(l.users) >= cachedUsers {
		clear(l.users)
	}
	l.users[key] = us
	return us, nil
}

// syncRetired lets go of segments that are full.
func (l *load) syncRetired() error {
	for _, f := range l.s.retired {
		if err := l.s.files.sync(f.f); err != nil {
			return fmt.Errorf("sync a segment: %w", err)
		}
		delete(l.synced, f)
	}
	l.s.releaseRetired()
	return nil
}

// Flush implements [transfer.Sink].
func (l *load) Flush(context.Context) error {
	if err := l.writeBatch(); err != nil {
		return err
	}
	for f := range l.synced {
		if err := l.s.files.sync(f.f); err != nil {
			return fmt.Errorf("sync a segment: %w", err)
		}
	}
	clear(l.synced)
	if err := l.commit(); err != nil {
		return err
	}
	if err := l.s.files.syncNew(); err != nil {
		return fmt.Errorf("sync the directory of the bodies: %w", err)
	}
	if _, _, err := l.s.db.ints("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return err
	}
	if err := syncDir(l.tmp); err != nil {
		return fmt.Errorf("sync the store's directory: %w", err)
	}
	var err error
	l.written, err = newDump(l.tmp, l.dir)
	return err
}

// Written implements [transfer.Sink].
func (l *load) Written() transfer.Source { return l.written }

// Commit implements [transfer.Sink].
func (l *load) Commit(context.Context) error {
	if err := l.close(); err != nil {
		return err
	}
	if err := syncDir(l.tmp); err != nil {
		return fmt.Errorf("sync the store's directory: %w", err)
	}
	l.s.crash("load.before-rename")
	if err := emptyDir(l.dir); err != nil {
		return err
	}
	if err := os.Rename(l.tmp, l.dir); err != nil { // takes the place of an empty one
		return err
	}
	l.moved = true
	if err := syncDir(filepath.Dir(l.dir)); err != nil {
		return fmt.Errorf("sync the directory above the store: %w (the store is there, and complete)", err)
	}
	return nil
}

// close closes database and files, and keeps the lock.
func (l *load) close() error {
	if l.gone || l.s == nil {
		return nil
	}
	l.gone = true
	var errs []error
	if l.written != nil {
		errs = append(errs, l.written.release())
	}
	for _, b := range l.batch {
		l.s.keep(b)
	}
	if l.s.db != nil {
		if l.open {
			_, _ = l.s.db.run("ROLLBACK")
		}
		errs = append(errs, l.s.db.close())
	}
	if l.s.files != nil {
		l.s.files.close()
	}
	return errors.Join(errs...)
}

// Discard implements [transfer.Sink].
func (l *load) Discard() error {
	err := l.close()
	if !l.moved {
		if rerr := os.RemoveAll(l.tmp); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}
	if l.lock != nil {
		err = errors.Join(err, unlock(l.lock))
		l.lock = nil
	}
	return err
}
