package wire

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// phase is what the client's next bytes are, or why nobody reads them.
type phase uint8

const (
	phaseStart   phase = iota // the greeting has not been sent
	phaseCommand              // a command line
	phaseBody                 // message bytes, handed to the library
	phaseBroken               // the message failed: Read fails until Session.Data has returned
	phaseDrain                // message bytes that nobody wants any more
	phaseDone                 // the connection is over
)

// asked is the command that the library has read and not yet answered. It has
// answered when it reads again; that is the lock-step this package rests on.
type asked uint8

const (
	askedNothing asked = iota // only the library's own 220 comes unasked
	askedHello                // our HELO, of which the client knows nothing
	askedMail
	askedRcpt
	askedReset
	askedData // waiting for 354
	askedBody // waiting for the verdict over the message
)

// Conn is one guarded connection. Inside a session it is reached by
// smtp.Conn.Conn().(*wire.Conn). Read, Write and the methods that a session uses
// belong to the connection's own goroutine, in which the session's methods run
// too; Close, the addresses and the deadlines may be used from anywhere.
type Conn struct {
	raw    net.Conn // what the listener below accepted
	net    net.Conn // raw, or TLS on top of it
	l      *Listener
	number uint64
	start  time.Time
	remote netip.AddrPort

	inside   bool       // the Door has counted it, guarded by l.mu
	insideAs netip.Addr // under this address

	phase phase
	asked asked
	buf   *buffers     // nil while nothing is under way: before the greeting, between two commands, at the end
	held  atomic.Int32 // 1: buf is set; for tests and counts
	wait  waiter
	r, w  int    // bytes of the client not yet used: buf.in[r:w]
	feed  []byte // bytes that the library gets before anything else
	lost  bool   // a write failed

	helo  string
	esmtp bool
	tls   *tls.ConnectionState
	user  string // who has logged in

	certified bool // by a certificate of the client
	placed    bool // counted among the handshakes under way
	greeted   bool // the client has said EHLO or HELO since the start or STARTTLS
	told      bool // the library knows about it

	tx       transaction
	last     []byte // the MAIL or RCPT line that the library is working at
	lastPath [2]int // where in last the path stands
	reply    replyState
	settle   settler
	count    counters
	lineAt   int // where the peeked command line is in buf.in, and how long it is
	lineLen  int
	fruit    time.Time // of the last message that was taken

	mu      sync.Mutex
	waiting bool // in a read that Shutdown may interrupt
	readBy  time.Time
	writeBy time.Time
	// readSlow: readBy is about the rate of a body and not about a pause.
	readSlow bool

	closeOnce sync.Once
	closeErr  error
}

// transaction is what the guard knows of the current one.
type transaction struct {
	begun bool // MAIL reached the library, so RSET must reach it too
	mail  bool // MAIL was accepted
	utf8  bool // with SMTPUTF8
	rcpts int  // accepted recipients

	bdat    bool      // the body comes in chunks
	last    bool      // the current chunk is the last one
	chunk   int64     // bytes of it still to come
	size    int64     // its size
	body    int64     // bytes of the body so far, as sent
	since   time.Time // when the body began; zero: it has not
	until   time.Time // when the body has to be over; zero: no limit
	broken  error     // what Read says in phaseBroken
	verdict string
}

// counters are set back when a message is taken, but for messages.
type counters struct {
	errors, rcptErrors, noise int
	messages, logins          int
}

const inSize = 16 << 10

// buffers are what a connection needs while it is open. They are pooled because
// most connections carry one message and are gone within milliseconds.
type buffers struct {
	in   [inSize]byte
	out  []byte // replies not yet sent
	line []byte // a command line rewritten for the library
	rep  []byte // a reply line of the library that came in pieces
}

var pool = sync.Pool{New: func() any {
	return &buffers{out: make([]byte, 0, 1024), line: make([]byte, 0, 512)}
}}

// addrPort is the IP address and port of a, as far as it has them.
func addrPort(a net.Addr) (ap netip.AddrPort) {
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case nil:
	default:
		ap, _ = netip.ParseAddrPort(a.String()) // a Unix socket has none
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Read gives the library its next bytes: one command line, or message bytes
// whose only line end is CRLF and whose end is CR LF . CR LF. It holds the whole
// dialogue with the client in between. At the end of the connection it returns
// io.EOF between commands, whatever the cause, so that nothing is logged for it,
// and an error that is not io.EOF inside a message.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if len(c.feed) > 0 {
			n := copy(p, c.feed)
			c.feed = c.feed[n:]
			return n, nil
		}
		if c.lost && c.phase != phaseDone {
			c.end("")
		}
		switch c.phase {
		case phaseStart:
			c.open()
		case phaseCommand:
			c.command()
		case phaseBody:
			// What the session left unread of a body that it read by Body is nothing
			// for the library either.
			if n := c.body(p); n > 0 && !c.settle.plain {
				return n, nil
			}
		case phaseBroken:
			return 0, c.tx.broken
		case phaseDrain:
			c.drain()
		case phaseDone:
			if c.asked == askedBody {
				return 0, io.ErrUnexpectedEOF
			}
			return 0, io.EOF
		}
	}
}

// open greets the client, or says why not. It is the first thing that happens in
// the connection's own goroutine.
func (c *Conn) open() {
	c.phase = phaseCommand
	cfg := &c.l.cfg
	if _, known := c.raw.(*net.TCPConn); !known {
		c.remote = addrPort(c.raw.RemoteAddr())
		if !c.proxied() {
			cfg.Logger.Warn("a load balancer's connection was closed: it did not begin with a PROXY header", "remote", c.remote)
			callWith(cfg.Metrics.Refused, "proxy_header")
			c.lost = true
			c.end("")
			return
		}
		if reason, text := c.l.admit(c); reason != "" {
			c.lost = cfg.TLSUse == TLSImplicit
			c.refuseConn(reason, "421 "+oneLine(text))
			return
		}
	}
	if cfg.TLSUse == TLSImplicit && !c.openTLS() {
		return
	}
	if cfg.Overload != nil {
		if text := cfg.Overload(); text != "" {
			c.refuseConn("overload", "421 "+oneLine(text))
			return
		}
	}
	if cfg.GreetDelay != nil {
		if d := cfg.GreetDelay(c.remote.Addr()); d > 0 && !c.hush(d) {
			return
		}
	}
	c.hold()
	c.put("220 ")
	c.put(cfg.Hostname)
	c.put(" ")
	c.say(oneLine(cfg.Greeting))
}

// refuseConn ends the connection because of a rule of ours, when the client is
// waiting for us.
func (c *Conn) refuseConn(reason, reply string) {
	callWith(c.l.cfg.Metrics.Refused, reason)
	c.l.cfg.Logger.Debug("smtp connection ended", "reason", reason, "remote", c.remote, "conn", c.number)
	c.end(reply)
}

// cutOff is refuseConn for a client that may well be sending.
func (c *Conn) cutOff(reason, reply string) {
	c.hold()
	c.say(reply)
	c.flush()
	c.linger()
	c.refuseConn(reason, "")
}

const (
	lingerTime  = 2 * time.Second
	lingerBytes = 4 << 20
)

// linger lets a client that is still sending read why we stop: a socket that is
// closed with unread bytes in it is reset, and the reply would be lost with it.
func (c *Conn) linger() {
	if c.lost || c.shutting() {
		return
	}
	if t, ok := c.net.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	tcp, ok := c.raw.(interface{ CloseWrite() error })
	if !ok || tcp.CloseWrite() != nil {
		return
	}
	_ = c.raw.SetReadDeadline(time.Now().Add(lingerTime))
	for read := 0; read < lingerBytes; {
		n, err := c.raw.Read(c.buf.in[:])
		if err != nil {
			return
		}
		read += n
	}
}

// end sends a last reply, if any, and gives the buffers back. The library closes
// the connection when it has read the end.
func (c *Conn) end(reply string) {
	if c.phase == phaseDone {
		return
	}
	if reply != "" {
		c.hold()
		c.say(reply)
	}
	if c.buf != nil {
		c.flush()
	}
	c.phase = phaseDone
	c.feed, c.last = nil, nil
	c.letGo()
}

// endFor ends the connection as the failure of a read or write demands.
func (c *Conn) endFor(err error, timeoutReason string) {
	switch {
	case errors.Is(err, errShutdown):
		c.refuseConn("shutdown", "421 4.3.2 "+c.l.cfg.Hostname+" is shutting down, try again later")
	case isTimeout(err):
		c.refuseConn(timeoutReason, "421 4.4.2 "+c.l.cfg.Hostname+" waited too long, closing connection")
	default:
		c.end("")
	}
}

var errShutdown = errors.New("wire: shutting down")

// errLost is what a fill says when the replies before it could not be sent.
var errLost = errors.New("wire: connection lost")

// fillCommand waits for bytes of a command line. The deadline is for the whole
// line: bytes that trickle in do not move it.
func (c *Conn) fillCommand(fresh bool) error {
	if c.flush(); c.lost {
		return errLost
	}
	c.mu.Lock()
	if c.shutting() {
		c.mu.Unlock()
		return errShutdown
	}
	if fresh {
		c.armRead(c.l.cfg.IdleTimeout)
	}
	c.waiting = !c.tx.bdat
	c.mu.Unlock()
	err := c.fillIdle()
	c.mu.Lock()
	c.waiting = false
	c.mu.Unlock()
	if err != nil && c.shutting() {
		return errShutdown
	}
	return err
}

// shutting says that the connection should end now. Between the chunks of a
// message it goes on: that is inside a body.
func (c *Conn) shutting() bool { return c.l.closing.Load() && !c.tx.bdat }

// wake ends a wait for a command. A connection that is not waiting looks at
// l.closing before it waits again.
func (c *Conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		_ = c.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// fillBody waits for message bytes.
func (c *Conn) fillBody() error {
	if c.flush(); c.lost {
		return errLost
	}
	for {
		c.armRead(c.l.cfg.DataTimeout)
		err := c.fill()
		if err == nil || !c.readSlow || !isTimeout(err) || c.lateBody() == "body_rate" {
			return err
		}
		// The deadline is moved in steps; the bytes since then have bought more time.
		c.readBy = time.Time{}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func (c *Conn) fill() error {
	b := c.buf
	switch {
	case c.r == c.w:
		c.r, c.w = 0, 0
	case c.w == len(b.in):
		c.w = copy(b.in[:], b.in[c.r:c.w])
		c.r = 0
	}
	n, err := c.net.Read(b.in[c.w:])
	c.w += n
	if n > 0 {
		return nil // the error comes again
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// Close closes the connection and takes it from the listener's list.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		conn := c.net
		c.mu.Unlock()
		c.closeErr = conn.Close()
		c.l.remove(c)
	})
	return c.closeErr
}

// LocalAddr is the address that the client connected to.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is the address of the client.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline does nothing: deadlines are the guard's, which knows what it waits
// for (the library has one for a whole message).
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing, see SetDeadline.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing, see SetDeadline.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
