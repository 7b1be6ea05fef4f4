package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"crossfade/mail"
	"crossfade/queue"
)

// segmentSize is the largest size of a segment that is still written to.
const segmentSize = 64 << 20

// keepOpen is how many idle files stay open for readers.
const keepOpen = 64

// loc is where a body lies. A negative pos is a file of its own.
type loc struct {
	file int64
	pos  int64
	size int64
}

// offset is the record's place in its file.
func (l loc) offset() int64 { return max(l.pos, 0) }

// bodyFile is a segment or a body's own file.
type bodyFile struct {
	num   int64
	own   bool
	size  int64 // octets written
	live  int   // bodies that messages refer to
	bytes int64 // of those, heads included
	bad   bool  // damaged: never carried forward
	// retiring: full, and its last bodies are not synced yet
	retiring bool
	f        *os.File
	refs     int // readers
	gone     bool
}

// files are the bodies' files. Its lock is never held while the store's is
// asked for.
type files struct {
	dir  string
	sync func(*os.File) error

	mu     sync.Mutex
	byNum  map[int64]*bodyFile
	active *bodyFile // the writer's; nil: the next body starts one
	next   int64
	open   int
	closed bool
	bytes  int64 // live octets in all
}

func openFiles(dir string, sync func(*os.File) error) (*files, error) {
	fsys := &files{dir: filepath.Join(dir, "bodies"), sync: sync, byNum: map[int64]*bodyFile{}, next: 1}
	if err := os.MkdirAll(fsys.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the bodies: %w", err)
	}
	ents, err := os.ReadDir(fsys.dir)
	if err != nil {
		return nil, fmt.Errorf("read the directory of the bodies: %w", err)
	}
	for _, e := range ents {
		name, ext, _ := strings.Cut(e.Name(), ".")
		num, err := strconv.ParseInt(name, 10, 64)
		if err != nil || ext != "seg" && ext != "body" {
			continue // not ours
		}
		info, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("read the directory of the bodies: %w", err)
		}
		fsys.byNum[num] = &bodyFile{num: num, own: ext == "body", size: info.Size()}
		fsys.next = max(fsys.next, num+1)
	}
	return fsys, syncDir(dir)
}

// makeDir makes the store's directory, and those above it that are missing,
// and makes their names durable: also that of one which is there, because the
// start that made it may have been cut short.
func makeDir(dir string, sync func(*os.File) error) error {
	above := filepath.Dir(dir)
	if _, err := os.Stat(above); errors.Is(err, fs.ErrNotExist) && above != dir {
		if err := makeDir(above, sync); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(above)
	if errors.Is(err, fs.ErrPermission) {
		return nil // the operator made it
	}
	if err != nil {
		return err
	}
	defer d.Close()
	return sync(d)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (s *files) path(f *bodyFile) string {
	ext := ".seg"
	if f.own {
		ext = ".body"
	}
	return filepath.Join(s.dir, fmt.Sprintf("%010d%s", f.num, ext))
}

// create makes a new file. The directory is not synced yet.
func (s *files) create(own bool) (*bodyFile, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, queue.ErrClosed
	}
	f := &bodyFile{num: s.next, own: own}
	s.next++
	s.mu.Unlock()
	fd, err := os.OpenFile(s.path(f), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	f.f = fd
	s.mu.Lock()
	s.byNum[f.num] = f
	s.open++
	f.refs++ // of who writes it
	s.mu.Unlock()
	return f, nil
}

// syncNew makes a new file's name durable.
func (s *files) syncNew() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return s.sync(d)
}

// acquire opens a file for reading.
func (s *files) acquire(num int64) (*bodyFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.byNum[num]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	if f.f == nil {
		fd, err := os.Open(s.path(f))
		if err != nil {
			return nil, err
		}
		f.f = fd
		s.open++
	}
	f.refs++
	return f, nil
}

// release is the counterpart of acquire and create.
func (s *files) release(f *bodyFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.refs--
	if f.refs == 0 && (f.gone || f.own || s.closed || s.open > keepOpen) {
		s.closeLocked(f)
	}
}

func (s *files) closeLocked(f *bodyFile) {
	if f.f != nil {
		f.f.Close()
		f.f = nil
		s.open--
	}
}

// use counts a body that a message now refers to.
func (s *files) use(l loc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.useLocked(l, 1)
}

func (s *files) useLocked(l loc, n int) {
	f := s.byNum[l.file]
	if f == nil { // lost by the medium: readers will say so
		f = &bodyFile{num: l.file, own: l.pos < 0, bad: true}
		s.byNum[l.file] = f
	}
	f.live += n
	f.bytes += int64(n) * (l.size + headerSize)
	s.bytes += int64(n) * (l.size + headerSize)
}

// drop counts a body down and removes the file of the last one.
func (s *files) drop(l loc) (removed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.useLocked(l, -1)
	f := s.byNum[l.file]
	if f.live > 0 || f == s.active || f.retiring {
		return false
	}
	s.removeLocked(f)
	return true
}

// removeLocked unlinks a file that nothing refers to. Readers keep what they
// have open. An unlink that fails leaves an orphan for the next start.
func (s *files) removeLocked(f *bodyFile) {
	delete(s.byNum, f.num)
	f.gone = true
	os.Remove(s.path(f))
	if f.refs == 0 {
		s.closeLocked(f)
	}
}

// discard removes a file that was never referred to.
func (s *files) discard(f *bodyFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.refs--
	s.removeLocked(f)
}

// setActive names the segment that is written to; nil: the next body starts
// one.
func (s *files) setActive(f *bodyFile) {
	s.mu.Lock()
	s.active = f
	s.mu.Unlock()
}

// full ends the active segment, which is retired once it is synced.
func (s *files) full() *bodyFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.active
	f.retiring = true
	s.active = nil
	return f
}

// retire lets go of a segment that was active and is synced.
func (s *files) retire(f *bodyFile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.retiring = false
	f.refs--
	switch {
	case f.live == 0:
		s.removeLocked(f)
	case f.refs == 0 && s.open > keepOpen:
		s.closeLocked(f)
	}
}

// orphans removes what no message refers to: torn writes of a process that
// was killed.
func (s *files) orphans() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.byNum {
		if f.live == 0 {
			s.removeLocked(f)
			n++
		}
	}
	return n
}

// sparse gives the segments of which less than one part in parts is live.
func (s *files) sparse(parts int64) (nums []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.byNum {
		if !f.own && !f.bad && f != s.active && f.live > 0 && f.bytes < f.size/parts {
			nums = append(nums, f.num)
		}
	}
	return nums
}

// hasLive tells whether messages refer to a file.
func (s *files) hasLive(num int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.byNum[num]
	return f != nil && f.live > 0
}

func (s *files) markBad(num int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.byNum[num]; f != nil {
		f.bad = true
	}
}

func (s *files) liveBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// reader opens the body of a message.
func (s *files) reader(id mail.ID, l loc) (*bodyReader, error) {
	f, err := s.acquire(l.file)
	if err != nil {
		return nil, err
	}
	b, err := openRecord(f.f, l.offset(), id, l.size)
	if err != nil {
		s.release(f)
		return nil, err
	}
	b.release = func() { s.release(f) }
	return b, nil
}

// close closes all files that nobody reads or writes; the others are closed
// when they are let go of.
func (s *files) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.active != nil {
		s.active.refs--
		s.active = nil
	}
	for _, f := range s.byNum {
		if f.refs == 0 {
			s.closeLocked(f)
		}
	}
}
