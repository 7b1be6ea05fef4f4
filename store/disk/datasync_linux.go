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
