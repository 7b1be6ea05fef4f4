package disk

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"syscall"

	"crossfade/mail"
	"crossfade/queue"
)

// Sizes of what is kept of a body while it arrives.
const (
	ownFileSize = 1 << 20  // a larger body has a file of its own
	firstBuffer = 16 << 10 // most messages fit
	copyBuffer  = 128 << 10
)

// body is a message's content on its way in: in memory with room for the head
// in front, or already in a file of its own.
type body struct {
	id     mail.ID
	size   int64
	sum    uint32
	buf    []byte // head and body; nil when own is set
	budget int64  // taken of the budget for buf
	own    *bodyFile
	loc    loc // once it has a place
	placed bool
	from   loc // where it was, when it is carried forward
	// unwanted: the message was queued before with a body of its own
	unwanted bool
}

var smallBuffers = sync.Pool{New: func() any {
	b := make([]byte, firstBuffer)
	return &b
}}

// receive reads a body to its end. What it gives has to be passed to discard
// unless a message refers to it.
func (s *Store) receive(id mail.ID, r io.Reader) (*body, error) {
	b := &body{id: id}
	if err := s.fillBuffer(b, r); err != nil {
		s.discard(b)
		return nil, err
	}
	if b.own != nil {
		if err := s.finishOwn(b, r); err != nil {
			s.discard(b)
			return nil, err
		}
		return b, nil
	}
	b.sum = crc32.Checksum(b.buf[headerSize:], castagnoli)
	return b, nil
}

// fillBuffer reads into memory until the body ends, or until it has to go to
// a file of its own.
func (s *Store) fillBuffer(b *body, r io.Reader) error {
	if !s.takeBudget(b, firstBuffer) {
		return s.startOwn(b)
	}
	b.buf = (*smallBuffers.Get().(*[]byte))[:headerSize]
	for {
		if len(b.buf) == cap(b.buf) {
			if int64(len(b.buf)-headerSize) > ownFileSize || !s.takeBudget(b, int64(cap(b.buf))) {
				return s.startOwn(b)
			}
			grown := make([]byte, len(b.buf), min(2*cap(b.buf), headerSize+ownFileSize+1))
			copy(grown, b.buf)
			putBuffer(b.buf)
			b.buf = grown
		}
		n, err := r.Read(b.buf[len(b.buf):cap(b.buf)])
		b.buf = b.buf[:len(b.buf)+n]
		b.size = int64(len(b.buf) - headerSize)
		if err == io.EOF { // itself: one that is wrapped is a body cut short
			return nil
		}
		if err != nil {
			return err
		}
		if b.size > ownFileSize {
			return s.startOwn(b)
		}
	}
}

func putBuffer(buf []byte) {
	if cap(buf) == firstBuffer {
		buf = buf[:firstBuffer]
		smallBuffers.Put(&buf)
	}
}

// takeBudget asks for n more octets of memory.
func (s *Store) takeBudget(b *body, n int64) bool {
	if s.budget.Add(-n) < 0 {
		s.budget.Add(n)
		return false
	}
	b.budget += n
	return true
}

// startOwn moves a body that has begun into a file of its own.
func (s *Store) startOwn(b *body) error {
	f, err := s.files.create(true)
	if errors.Is(err, queue.ErrClosed) {
		return err
	}
	if err != nil {
		return s.writeError("make a file for a large body", err)
	}
	b.own = f
	head := b.buf
	if head == nil {
		head = make([]byte, headerSize)
	}
	clear(head[:headerSize]) // no head: a torn file is no record
	err = s.mayWrite(f.f)
	if err == nil {
		_, err = f.f.Write(head)
	}
	if err != nil {
		return s.writeError("write a large body", err)
	}
	b.sum = crc32.Checksum(head[headerSize:], castagnoli)
	s.freeBuffer(b)
	return nil
}

// finishOwn reads the rest and makes the file durable.
func (s *Store) finishOwn(b *body, r io.Reader) error {
	buf := make([]byte, copyBuffer)
	for unchecked := int64(0); ; {
		n, err := r.Read(buf)
		b.sum = crc32.Update(b.sum, castagnoli, buf[:n])
		b.size += int64(n)
		if _, werr := b.own.f.Write(buf[:n]); werr != nil {
			return s.writeError("write a large body", werr)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if unchecked += int64(n); unchecked > ownFileSize {
			unchecked = 0
			if err := s.Room(b.size); err != nil {
				return err
			}
		}
	}
	head := header{b.size, b.sum, b.id}.append(nil)
	if _, err := b.own.f.WriteAt(head, 0); err != nil {
		return s.writeError("write a large body", err)
	}
	s.crash("put.before-body-sync")
	if err := s.files.sync(b.own.f); err != nil {
		return s.fail(fmt.Errorf("sync a large body: %w", err))
	}
	if err := s.files.syncNew(); err != nil {
		return s.fail(fmt.Errorf("sync the directory of the bodies: %w", err))
	}
	b.own.size = headerSize + b.size
	b.loc = loc{file: b.own.num, pos: -1, size: b.size}
	return nil
}

// unplace takes bodies in memory out of the segments: they are written again.
func (s *Store) unplace(bodies []*body) {
	for _, b := range bodies {
		if b.placed && b.own == nil {
			s.files.drop(b.loc)
			b.placed = false
		}
	}
}

// freeBuffer gives memory and budget back.
func (s *Store) freeBuffer(b *body) {
	if b.buf != nil {
		putBuffer(b.buf)
		b.buf = nil
	}
	if b.budget != 0 {
		s.budget.Add(b.budget)
		b.budget = 0
	}
}

// discard forgets a body that nothing refers to.
func (s *Store) discard(b *body) {
	s.freeBuffer(b)
	switch {
	case b.placed:
		s.files.drop(b.loc)
		if b.own != nil {
			s.files.release(b.own)
		}
	case b.own != nil:
		s.files.discard(b.own)
	}
	b.own, b.placed = nil, false
}

// keep ends the writing of a body that a message now refers to.
func (s *Store) keep(b *body) {
	s.freeBuffer(b)
	if b.own != nil {
		s.files.release(b.own)
		b.own = nil
	}
}

// mayWrite is where tests let a write fail.
func (s *Store) mayWrite(f *os.File) error {
	if s.opts.write == nil {
		return nil
	}
	return s.opts.write(f)
}

// isFull tells whether err means that there is no room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// writeError sorts a failed write that nothing relies on yet: no room is
// passed on and passes; anything else ends the store.
func (s *Store) writeError(what string, err error) error {
	if isFull(err) {
		s.ranOut()
		return fmt.Errorf("%w: %s: %w", queue.ErrFull, what, err)
	}
	return s.fail(fmt.Errorf("%s: %w", what, err))
}

// placeBodies appends bodies to the active segment, as one write where they
// fit, and tells which segments have to be synced. Only the writer calls it.
func (s *Store) placeBodies(bodies []*body) (dirty []*bodyFile, created bool, err error) {
	buf := s.wbuf[:0]
	var start int64
	flush := func() error {
		if len(buf) == 0 {
			return nil
		}
		f := s.files.active
		err := s.mayWrite(f.f)
		if err == nil {
			_, err = f.f.WriteAt(buf, start)
		}
		if err == nil {
			f.size = start + int64(len(buf))
			buf = buf[:0]
			return nil
		}
		if terr := f.f.Truncate(start); terr != nil {
			s.retired = append(s.retired, s.files.full()) // its tail is referred to by nothing
		}
		return s.writeError("write to a segment", err)
	}
	for _, b := range bodies {
		if b.own != nil {
			if !b.placed { // else it is tried again
				s.files.use(b.loc)
				b.placed = true
			}
			continue
		}
		f := s.files.active
		need := int64(len(b.buf))
		if f != nil && f.size+int64(len(buf))+need > s.segmentSize {
			if err := flush(); err != nil {
				return nil, false, err
			}
			s.crash("segment.roll")
			s.retired = append(s.retired, s.files.full())
			f = nil
		}
		if f == nil {
			if f, err = s.files.create(false); err != nil {
				return nil, false, s.writeError("make a segment", err)
			}
			s.files.setActive(f)
			created = true
		}
		if len(buf) == 0 {
			start = f.size
		}
		header{b.size, b.sum, b.id}.append(b.buf[:0]) // in place: there is room for it in front of the body
		b.loc = loc{file: f.num, pos: start + int64(len(buf)), size: b.size}
		s.files.use(b.loc)
		b.placed = true
		buf = append(buf, b.buf...)
		if len(dirty) == 0 || dirty[len(dirty)-1] != f {
			dirty = append(dirty, f)
		}
	}
	err = flush()
	if cap(buf) <= 4<<20 {
		s.wbuf = buf[:0]
	}
	return dirty, created, err
}
