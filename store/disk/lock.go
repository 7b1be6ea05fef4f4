package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockDir takes the lock that keeps a second process out. The lock goes with
// the process, also when it is killed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the store: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &lockedError{dir}
	}
	return nil, fmt.Errorf("lock the store in %s: %w", dir, err)
}

// lockedError says that another process has the store.
type lockedError struct{ dir string }

func (e *lockedError) Error() string {
	return fmt.Sprintf("the store in %s is in use by another process: stop that one, or give this one a directory of its own", e.dir)
}

// unlock gives the lock back. Closing the file alone would not while a child
// that is being started has a copy of the descriptor.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}
