//go:build unix

package daemon

import "golang.org/x/sys/unix"

// openFiles is how many files the process may have open; Go raises it to the
// hard limit at its start. 0: it cannot be told.
func openFiles() uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0
	}
	return uint64(r.Cur) // an int64 on some systems
}
