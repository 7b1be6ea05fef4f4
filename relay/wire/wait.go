package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// waiter waits for the first bytes of a client who has nothing under way, without
// a buffer: of ten thousand connections nearly all do nothing but wait, and the
// buffers would be most of what they cost.
type waiter struct {
	sys   syscall.RawConn // nil: not a bare socket, or not asked yet
	ready func(fd uintptr) bool
	asked bool
	n     int
	err   error
	few   []byte // what is read into where the socket cannot be asked
}

// fewBytes is enough for most groups of pipelined commands; TLS has the rest of its record
// in a buffer of its own.
const fewBytes = 1 << 10

// hold gets buffers, unless they are there.
func (c *Conn) hold() {
	if c.buf == nil {
		c.buf = pool.Get().(*buffers)
		c.held.Store(1)
	}
}

// letGo gives the buffers back.
func (c *Conn) letGo() {
	b := c.buf
	c.buf = nil
	if b == nil {
		return
	}
	c.held.Store(0)
	b.out, b.line, b.rep = b.out[:0], b.line[:0], b.rep[:0]
	if cap(b.out) <= 64<<10 {
		pool.Put(b)
	}
}

// idle says that nothing in the buffers is wanted any more.
func (c *Conn) idle() bool {
	return c.buf == nil || c.r == c.w && len(c.buf.out) == 0 && len(c.buf.rep) == 0 && len(c.feed) == 0 && c.last == nil
}

// fillIdle is fill for a connection that may have nothing under way.
func (c *Conn) fillIdle() error {
	if !c.idle() {
		return c.fill()
	}
	c.letGo()
	c.r, c.w = 0, 0
	if !c.wait.asked {
		c.askSocket()
	}
	if c.tls == nil && c.wait.sys != nil {
		return c.fillReady()
	}
	return c.fillFew()
}

// askSocket finds out whether the socket can tell that there is something to
// read. What stands between us and the socket, a PROXY listener for one, may have
// read ahead: then it cannot.
func (c *Conn) askSocket() {
	c.wait.asked = true
	tcp, ok := c.raw.(*net.TCPConn)
	if !ok {
		return
	}
	if sys, err := tcp.SyscallConn(); err == nil && canAskSocket {
		c.wait.sys, c.wait.ready = sys, c.readReady
	}
}

// fillReady waits in the poller and takes a buffer when there is something to
// put into it. It makes the same system calls as Read.
func (c *Conn) fillReady() error {
	c.wait.n, c.wait.err = 0, nil
	if err := c.wait.sys.Read(c.wait.ready); err != nil {
		c.hold()
		return err
	}
	c.hold()
	switch {
	case c.wait.err != nil:
		return os.NewSyscallError("read", c.wait.err)
	case c.wait.n == 0:
		return io.EOF
	}
	c.w = c.wait.n
	return nil
}

// readReady reads what there is; false means nothing yet.
func (c *Conn) readReady(fd uintptr) bool {
	c.hold()
	for {
		n, err := readSocket(fd, c.buf.in[:])
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			c.letGo()
			return false
		}
		c.wait.n, c.wait.err = max(n, 0), err
		return true
	}
}

// fillFew waits with a small buffer of its own. A line that is longer goes on
// where fill reads it.
func (c *Conn) fillFew() error {
	if c.wait.few == nil {
		c.wait.few = make([]byte, fewBytes)
	}
	n, err := c.net.Read(c.wait.few)
	c.hold()
	c.w = copy(c.buf.in[:], c.wait.few[:n])
	clear(c.wait.few[:n]) // it may have been a password
	switch {
	case n > 0:
		return nil // the error comes again
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// hush waits before the greeting and says whether the client, as RFC 5321, 3.1,
// wants it, waited too. One that did not is sent away.
func (c *Conn) hush(d time.Duration) bool {
	c.mu.Lock()
	if c.shutting() {
		c.mu.Unlock()
		c.endFor(errShutdown, "")
		return false
	}
	c.armRead(d)
	c.waiting = true
	c.mu.Unlock()
	err := c.fillIdle()
	c.mu.Lock()
	c.waiting = false
	c.readBy = time.Time{}
	c.mu.Unlock()
	switch {
	case err == nil:
		c.cutOff("early_talker", "421 4.7.0 "+c.l.cfg.Hostname+" you spoke before the greeting, closing connection")
		return false
	case c.shutting():
		c.endFor(errShutdown, "")
		return false
	case isTimeout(err):
		return true
	}
	c.end("")
	return false
}

// Pause keeps the client waiting for the reply to what the session is working at.
// It ends early when the listener shuts down. Replies that are due go out first.
// It is for the session's own goroutine, and must not be called with a lock held.
func (c *Conn) Pause(d time.Duration) {
	if d <= 0 || c.buf == nil || c.lost {
		return
	}
	c.flush()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.l.stop:
	}
}
