//go:build unix

package wire

import "syscall"

// canAskSocket says that a socket does not block and can be read by its number.
const canAskSocket = true

func readSocket(fd uintptr, p []byte) (int, error) { return syscall.Read(int(fd), p) }
