//go:build unix

package smtpclient

import (
	"errors"
	"net"
	"syscall"
)

// quiet tells whether nothing waits to be read on a socket and its peer has
// not ended the stream. What is not a socket counts as quiet.
func quiet(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var (
		buf  [1]byte
		peek error
	)
	err = rc.Control(func(fd uintptr) {
		_, _, peek = syscall.Recvfrom(int(fd), buf[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return err == nil && (errors.Is(peek, syscall.EAGAIN) || errors.Is(peek, syscall.EINTR))
}
