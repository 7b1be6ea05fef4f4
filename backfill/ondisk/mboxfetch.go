package ondisk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"crossfade/backfill/imapconn"
)

var (
	errLocked = fmt.Errorf("it is locked by another for more than %v: the next pass tries again", lockTime)
	errMoved  = errors.New("the file is another one than it was")
	errGone   = errors.New("it is gone from its folder")
)

// Fetch implements [backfill.MailReader]. Each message is compared with what was
// found when the file was read through: in a file that is changed in the middle
// the octets at its place may be others. So nobody has to be kept from writing
// meanwhile, and a file to which mail is delivered without pause can be read.
func (r *mbReader) Fetch(uids []uint32, it imapconn.Items, recv imapconn.Receiver) ([]imapconn.Failure, error) {
	var failures []imapconn.Failure
	r.hand.recv = recv
	var last error
	for try := 0; len(uids) > 0; {
		done, err := r.fetch(uids, it)
		var re *recvError
		if errors.As(err, &re) {
			return nil, re.err
		}
		if err == nil {
			break
		}
		if r.t.ctx.Err() != nil {
			return nil, context.Cause(r.t.ctx)
		}
		if done > 0 {
			try = 0
		}
		uids, last = uids[done:], err
		if try++; try > 3 || errors.Is(err, errGone) {
			failures = append(failures, imapconn.Failure{UID: uids[0], Gone: errors.Is(err, errGone), Err: last})
			uids, try = uids[1:], 0
		}
		if err := r.again(); err != nil {
			return nil, err
		}
	}
	return failures, nil
}

// fetch hands messages on until one cannot be, and tells how many it did.
func (r *mbReader) fetch(uids []uint32, it imapconn.Items) (done int, err error) {
	r.t.mu.Lock()
	file := r.t.files[r.wire]
	r.t.mu.Unlock()
	if r.byUID[uids[0]] == nil {
		return 0, errGone
	}
	f, err := file.open()
	if err != nil {
		return 0, fmt.Errorf("open it: %w", err)
	}
	defer f.Close()
	for i, uid := range uids {
		m := r.byUID[uid]
		if m == nil {
			return i, errGone
		}
		if err := r.hand.mbox(stoppable{r.t.ctx, f}, uid, m, it); err != nil {
			return i, err
		}
	}
	return len(uids), nil
}

func (h *handing) mbox(f io.ReaderAt, uid uint32, m *mbMessage, it imapconn.Items) error {
	meta := m.meta(uid, it)
	if !it.Body {
		if err := h.recv.End(meta); err != nil {
			return &recvError{err}
		}
		return nil
	}
	src, err := m.open(f)
	if err != nil {
		return err
	}
	sum := sha256.New()
	h.check = func() error {
		if [sha256.Size]byte(sum.Sum(nil)) != m.sum {
			return errMoved
		}
		return nil
	}
	return h.message(meta, io.TeeReader(src, sum))
}

const (
	lockTime = 5 * time.Second // that a lock of another is waited for
	// lockPoll is short: servers that wait for a lock are told when it is free, and the
	// next one has it at once.
	lockPoll = 2 * time.Millisecond
	// staleLock is the age at which the file of a lock is one that somebody left
	// behind: its owner renews it while he works.
	staleLock = 5 * time.Minute
)

// lock waits until nobody who locks an mbox writes to it, tells how the file is
// then, and keeps writers that use fcntl away until unlock is called. A file of a
// lock is looked at and never made: nothing is written into the tree. It is looked
// at once more behind the file: who made it in between may have written half a
// message. One who makes it later changes the file's size or time.
func (t *mbTree) lock(file mbFile, f *os.File) (now stamp, unlock func(), err error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for deadline := time.Now().Add(lockTime); ; {
		locked := false
		if !file.dotted() {
			if locked, err = readLock(f); err != nil {
				return now, nil, err
			}
		}
		if locked {
			t.at("locked")
			unlock = sync.OnceFunc(func() { readUnlock(f) })
			if now, err = stampOf(f); err == nil && !file.dotted() {
				return now, unlock, nil
			}
			if unlock(); err != nil {
				return now, nil, err
			}
		}
		t.at("wait")
		if time.Now().After(deadline) {
			return now, nil, errLocked
		}
		select {
		case <-tick.C:
		case <-t.ctx.Done():
			return now, nil, context.Cause(t.ctx)
		}
	}
}

// dotted tells whether the file of a lock is there, and not a stale one.
func (f mbFile) dotted() bool {
	st, err := f.root.Stat(f.name + ".lock")
	return err == nil && time.Since(st.ModTime()) < staleLock
}

// readLock takes the lock if it can be had. Where there are no locks nobody has
// one; what changes is noticed.
func readLock(f *os.File) (bool, error) {
	err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_RDLCK, Whence: io.SeekStart})
	switch {
	case err == nil, errors.Is(err, syscall.ENOLCK), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOTSUP):
		return true, nil
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EINTR):
		return false, nil
	}
	return false, fmt.Errorf("lock it for reading: %w", err)
}

func readUnlock(f *os.File) {
	_ = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_UNLCK, Whence: io.SeekStart}) // closing unlocks it too
}
