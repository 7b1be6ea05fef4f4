package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// dataSync is fdatasync, which leaves out the file's times.
func dataSync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// allocate takes octets of the file system for an empty file.
func allocate(f *os.File, octets int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, octets)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return allocateByWriting(f, octets)
		}
		return err
	}
}
