package smtpclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"crossfade/mail"
)

// Caps is what the server announced in its answer to EHLO or LHLO.
type Caps struct {
	Pipelining   bool  // RFC 2920
	HasSize      bool  // RFC 1870
	MaxSize      int64 // octets; 0: no limit named
	EightBitMIME bool  // RFC 6152
	SMTPUTF8     bool  // RFC 6531
	DSN          bool  // RFC 3461
	Chunking     bool  // RFC 3030
	Enhanced     bool  // RFC 2034
	StartTLS     bool  // RFC 3207
	RequireTLS   bool  // RFC 8689
	// Auth lists the mechanisms of AUTH in capitals, a blank before and behind
	// each (RFC 4954); empty: none.
	Auth string
	// XClient and XForward list the attributes of these commands in capitals, in
	// the form of Auth; empty: the server does not offer the command to us.
	XClient, XForward string
}

// parseCaps reads the lines behind the first of an EHLO reply.
func parseCaps(text string) Caps {
	var c Caps
	_, rest, _ := strings.Cut(text, "\n")
	for line := range strings.SplitSeq(rest, "\n") {
		word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch strings.ToUpper(word) {
		case "PIPELINING":
			c.Pipelining = true
		case "SIZE":
			c.HasSize = true
			if n, err := strconv.ParseInt(strings.TrimSpace(arg), 10, 64); err == nil && n > 0 {
				c.MaxSize = n
			}
		case "8BITMIME":
			c.EightBitMIME = true
		case "SMTPUTF8":
			c.SMTPUTF8 = true
		case "DSN":
			c.DSN = true
		case "CHUNKING":
			c.Chunking = true
		case "ENHANCEDSTATUSCODES":
			c.Enhanced = true
		case "STARTTLS":
			c.StartTLS = true
		case "REQUIRETLS":
			c.RequireTLS = true
		case "AUTH":
			c.Auth = wordList(arg)
		case "XCLIENT":
			c.XClient = wordList(arg)
		case "XFORWARD":
			c.XForward = wordList(arg)
		}
	}
	return c
}

// wordList gives the words of s in capitals, with a blank before and behind each.
func wordList(s string) string {
	return " " + strings.Join(strings.Fields(strings.ToUpper(s)), " ") + " "
}

// Conn is a session with a server, ready for a transaction. It serves one
// goroutine at a time: to interrupt it, end the context.
type Conn struct {
	t      Target
	name   string   // of the target, for errors
	raw    net.Conn // the socket
	nc     net.Conn // raw, or TLS over it
	br     *bufio.Reader
	caps   Caps
	closed bool
	dirty  bool // the server may still have a transaction open: RSET first
	used   time.Time
	uses   int

	verified bool  // TLS, and the server's certificate was checked
	tested   error // what a rule that is only being tested says of the server

	identity string // of the client that the server takes us for; see Become

	answers []Answer // scratch of Send
}

// Caps gives what the server announced.
func (c *Conn) Caps() Caps { return c.caps }

// Encrypted tells whether the session runs under TLS.
func (c *Conn) Encrypted() bool { return c.nc != c.raw }

// Verified tells whether the session runs under TLS with a server whose
// certificate was checked.
func (c *Conn) Verified() bool { return c.Encrypted() && c.verified }

// Local tells whether the server is reached over a socket of this machine.
func (c *Conn) Local() bool { return c.t.Network == "unix" }

// Uses is the number of transactions begun on this connection.
func (c *Conn) Uses() int { return c.uses }

// LastUsed is when the last transaction ended, or when the session began.
func (c *Conn) LastUsed() time.Time { return c.used }

// Usable tells whether the connection is still open as far as is known. It
// does not look at the socket; see [Conn.Healthy].
func (c *Conn) Usable() bool { return !c.closed }

// Healthy tells whether an idle connection may be used again. It costs one
// system call and no round trip: a server has nothing to say to an idle
// client except that it is leaving, so any byte and any end of stream means
// that it left.
func (c *Conn) Healthy() bool {
	return !c.closed && c.br.Buffered() == 0 && quiet(c.raw)
}

// Close ends the connection at once, without QUIT and without sending what TLS
// or the kernel still hold. It may be called more than once.
func (c *Conn) Close() error {
	c.closed = true
	return hardClose(c.raw)
}

// hardClose resets a TCP connection, so that the server sees an abort and
// never an orderly end.
func hardClose(raw net.Conn) error {
	if tc, ok := raw.(*net.TCPConn); ok {
		_ = tc.SetLinger(0) // best effort: a FIN ends it too
	}
	if err := raw.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}

// Quit says goodbye, waits shortly for the answer, and closes. Errors do not
// matter any more.
func (c *Conn) Quit(ctx context.Context) {
	if c.closed {
		return
	}
	stop := c.watch(ctx)
	defer stop()
	c.closed = true
	defer c.raw.Close()
	if c.send(ctx, []byte("QUIT\r\n"), c.t.Timeouts.Quit) == nil {
		_, _ = c.reply(ctx, c.t.Timeouts.Quit)
	}
}

// Reset ends an open transaction with RSET, and proves that the server still
// answers. Before the next [Conn.Send] it is not needed.
func (c *Conn) Reset(ctx context.Context) error {
	if c.closed {
		return c.fail(StepMail, SentNothing, ErrClosed)
	}
	stop := c.watch(ctx)
	defer stop()
	r, err := c.command(ctx, "RSET\r\n", c.t.Timeouts.Rcpt)
	if err == nil && !r.Positive() {
		err = &r
	}
	if err != nil {
		return c.fail(StepMail, SentNothing, err)
	}
	c.dirty = false
	return nil
}

// watch makes the end of ctx end every read and write that is under way. When it
// came before stop the connection is closed: a deadline in the past, set late by
// another goroutine, would hit the next message.
func (c *Conn) watch(ctx context.Context) (stop func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	raw := c.raw
	unset := context.AfterFunc(ctx, func() {
		_ = raw.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
	})
	return func() {
		if !unset() {
			_ = c.Close() // nobody is told: its user knows that ctx ended
		}
	}
}

// until is when a step that may take d has to be over.
func until(ctx context.Context, d time.Duration) time.Time {
	t := time.Now().Add(d)
	if end, ok := ctx.Deadline(); ok && end.Before(t) {
		return end
	}
	return t
}

// send writes b. The deadline is set before ctx is looked at: an end of ctx
// that comes later overrides the deadline, see watch.
func (c *Conn) send(ctx context.Context, b []byte, d time.Duration) error {
	if err := c.nc.SetWriteDeadline(until(ctx, d)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := c.nc.Write(b); err != nil {
		return causeOf(ctx, err)
	}
	return nil
}

// reply reads one reply. Of replies that came together the first one's deadline is
// that of all.
func (c *Conn) reply(ctx context.Context, d time.Duration) (mail.Reply, error) {
	if c.br.Buffered() == 0 {
		if err := c.nc.SetReadDeadline(until(ctx, d)); err != nil {
			return mail.Reply{}, fmt.Errorf("set deadline: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return mail.Reply{}, err
	}
	r, err := readReply(c.br)
	if err != nil {
		return mail.Reply{}, causeOf(ctx, err)
	}
	return r, nil
}

// causeOf names the end of ctx as the cause when that is what it was.
func causeOf(ctx context.Context, err error) error {
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("%w (%w)", cerr, err)
	}
	return err
}

// command sends one command and reads its reply.
func (c *Conn) command(ctx context.Context, line string, d time.Duration) (mail.Reply, error) {
	if err := c.send(ctx, []byte(line), min(d, c.t.Timeouts.Block)); err != nil {
		return mail.Reply{}, err
	}
	return c.reply(ctx, d)
}

// fail closes the connection and says why.
func (c *Conn) fail(step Step, sent Sent, err error) *Error {
	_ = c.Close() // there is nobody left to tell
	return &Error{Step: step, Sent: sent, Target: c.name, Err: err}
}
