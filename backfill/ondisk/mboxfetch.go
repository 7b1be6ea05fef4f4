package ondisk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
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
// the octets at its place may be others.
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
		if errors.Is(err, errLocked) {
			return nil, folderError(r.wire, err)
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
	f, st, err := openFile(file.root, file.name)
	if err != nil {
		return 0, fmt.Errorf("open it: %w", err)
	}
	defer f.Close()
	unlock, err := lockFile(r.t.ctx, file, f)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if st, err = f.Stat(); err != nil {
		return 0, reason(err)
	}
	if !r.state.current(st) {
		return 0, errMoved
	}
	for i, uid := range uids {
		m := r.byUID[uid]
		if m == nil {
			return i, errGone
		}
		if err := r.hand.mbox(f, uid, m, it); err != nil {
			return i, err
		}
	}
	return len(uids), nil
}

func (h *handing) mbox(f *os.File, uid uint32, m *mbMessage, it imapconn.Items) error {
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
	lockPoll = 50 * time.Millisecond
	// staleLock is the age at which the file of a lock is one that somebody left
	// behind: its owner renews it while he works.
	staleLock = 5 * time.Minute
)

// lockFile waits until nobody who locks an mbox writes to it, and keeps writers
// that use fcntl away until unlock is called. A file of a lock is looked at and
// never made: nothing is written into the tree.
func lockFile(ctx context.Context, file mbFile, f *os.File) (unlock func(), err error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for deadline := time.Now().Add(lockTime); ; {
		st, err := file.root.Stat(file.name + ".lock")
		dotted := err == nil && time.Since(st.ModTime()) < staleLock
		if !dotted {
			err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_RDLCK, Whence: io.SeekStart})
			switch {
			case err == nil, errors.Is(err, syscall.ENOLCK), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOTSUP):
				// Where there are no locks nobody has one; what changes is noticed.
				return func() {
					_ = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_UNLCK, Whence: io.SeekStart}) // closing unlocks it too
				}, nil
			case !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EINTR):
				return nil, fmt.Errorf("lock it for reading: %w", err)
			}
		}
		if time.Now().After(deadline) {
			return nil, errLocked
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
