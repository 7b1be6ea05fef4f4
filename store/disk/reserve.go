package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"crossfade/queue"
)

// reserveName is the file that takes up room until the disk is full. Then it
// makes way for what has to be written so that mail can leave: settling needs
// some room before it gives any back.
const reserveName = "reserve"

// reserveSize is the octets of the reserve, on a disk that is not small. The
// checkpoint of a write-ahead log of the usual length fits.
const reserveSize = 8 << 20

// regainEvery is how often a store without room looks whether there is some.
const regainEvery = time.Second

// reserve is the state of the reserve, and of the room as the last writes saw
// it.
type reserve struct {
	path   string
	size   int64 // 0: none is kept
	margin int64 // what has to be free beside it before mail is accepted
	wake   chan struct{}
	tidy   atomic.Bool // to the writer: give back what can be

	short atomic.Bool // a write found no room, and nothing was free since

	mu    sync.Mutex
	there bool
}

// openReserve finds the reserve. On a full disk it makes way at once, because
// the database cannot be opened without any room.
func (s *Store) openReserve() {
	r := &reserve{path: filepath.Join(s.dir, reserveName), size: s.opts.reserve, wake: make(chan struct{}, 1)}
	s.reserve = r
	r.margin = 1 << 20
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err == nil {
		total := int64(st.Blocks) * int64(st.Bsize)
		r.margin = min(r.margin, total/64)
		r.size = min(r.size, total/8)
	}
	r.size = max(r.size, 0)
	os.Remove(r.path + ".new") // of a start that was cut short
	fi, err := os.Stat(r.path)
	switch {
	case err != nil:
	case fi.Size() != r.size:
		os.Remove(r.path) // the disk has another size now
	default:
		r.there = true
	}
	if free := s.freeNow(); r.there && free >= 0 && free < r.margin {
		s.spendReserve("the store is opened on a full disk")
	}
}

// firstReserve makes the reserve of a store that has none yet.
func (s *Store) firstReserve() {
	if s.reserve.there && s.shortage() == nil {
		return
	}
	if err := s.regain(); err != nil {
		s.ranOut()
		s.log.Warn("there is no room for the store's reserve: no mail is accepted until there is", "error", err, "alarm", true)
	}
}

// ranOut notes that a write found no room: no mail is accepted until there is
// some.
func (s *Store) ranOut() {
	s.reserve.short.Store(true)
	select {
	case s.reserve.wake <- struct{}{}:
	default:
	}
}

// shortage gives the error of a store whose last write found no room.
func (s *Store) shortage() error {
	if !s.reserve.short.Load() {
		return nil
	}
	return fmt.Errorf("%w: a write to %s found no room, make some", queue.ErrFull, s.dir)
}

// spendReserve gives the reserve to what has to be written; false when there
// is none.
func (s *Store) spendReserve(why string) bool {
	r := s.reserve
	r.mu.Lock()
	there := r.there
	if there {
		if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("the store's reserve cannot be removed: mail waits until there is room", "error", err, "alarm", true)
			there = false
		} else {
			r.there = false
		}
	}
	s.ranOut() // under the lock: regain comes before or after
	r.mu.Unlock()
	if there {
		s.log.Error("the disk is full: no mail is accepted, what is queued is delivered with the store's reserve; make room", "why", why, "alarm", true)
	}
	return there
}

// keeper waits for room after there was none: mail is accepted again when
// the reserve is there, and something beside it.
func (s *Store) keeper() {
	t := time.NewTicker(regainEvery)
	defer t.Stop()
	t.Stop()
	for {
		select {
		case <-s.reserve.wake:
		case <-s.quit:
			return
		case <-s.failed:
			return
		}
		for t.Reset(regainEvery); s.reserve.short.Load(); {
			select {
			case <-t.C:
			case <-s.quit:
				return
			case <-s.failed:
				return
			}
			if s.regain() == nil {
				s.log.Info("there is room on the disk again: mail is accepted")
				break
			}
			s.reserve.tidy.Store(true)
			s.kickWriter()
		}
		t.Stop()
	}
}

// regain makes the reserve where there is none, if something stays free
// beside it. That is found out by taking the room, because what the file
// system says is not all that counts: a quota, say.
func (s *Store) regain() error {
	r := s.reserve
	r.mu.Lock()
	defer r.mu.Unlock()
	need := r.margin
	if !r.there {
		need += r.size
	}
	if free := s.freeNow(); free >= 0 && free < need {
		return fmt.Errorf("%w: %d octets are free in %s, and %d are needed", queue.ErrFull, free, s.dir, need)
	}
	if err := r.take(need); err != nil {
		return err
	}
	r.short.Store(false)
	return nil
}

// take allocates some octets, and leaves those of the reserve allocated.
func (r *reserve) take(octets int64) (err error) {
	name := r.path + ".new"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make the store's reserve: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil || r.size == 0 || r.there {
			os.Remove(name)
		}
	}()
	if err := allocate(f, octets); err != nil {
		return fmt.Errorf("make the store's reserve: %w", err)
	}
	if r.there || r.size == 0 {
		return nil
	}
	if err := f.Truncate(r.size); err != nil {
		return fmt.Errorf("make the store's reserve: %w", err)
	}
	if err := os.Rename(name, r.path); err != nil {
		return fmt.Errorf("make the store's reserve: %w", err)
	}
	r.there = true
	return nil
}

// allocateByWriting takes room where the file system cannot be asked for it.
// The octets are random: some file systems store a row of zeros as nothing.
func allocateByWriting(f *os.File, octets int64) error {
	src := rand.NewChaCha8([32]byte{})
	buf := make([]byte, 1<<20)
	for octets > 0 {
		n := min(octets, int64(len(buf)))
		src.Read(buf[:n])
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		octets -= n
	}
	return f.Sync()
}

// withoutGrowth answers those of a group that only make the store larger, and
// gives the others.
func (s *Store) withoutGrowth(group []*op, err error) (rest []*op) {
	var lost []*op
	for _, o := range group {
		if o.grows {
			lost = append(lost, o)
		} else {
			rest = append(rest, o)
		}
	}
	s.answerAll(lost, err)
	return rest
}

// afterFull is what becomes of a group for which there was no room: what only
// makes the store larger gets the error; the rest is given the reserve, and
// true tells that it may be tried once more.
func (s *Store) afterFull(group []*op, cause error) (rest []*op, again bool) {
	s.ranOut()
	rest = s.withoutGrowth(group, cause)
	if len(rest) == 0 {
		return nil, false
	}
	return rest, s.spendReserve(cause.Error())
}
