//go:build !unix

package wire

import "syscall"

const canAskSocket = false

func readSocket(uintptr, []byte) (int, error) { return 0, syscall.EINVAL }
