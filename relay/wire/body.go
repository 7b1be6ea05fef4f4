package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
)

// ErrReset is what the Reader of Session.Data returns when the client gave up a
// message that it was sending in chunks.
var ErrReset = errors.New("wire: the client gave up the message between two chunks")

// RefusedError is what the Reader of Session.Data returns when the guard refuses
// a message for its bytes. The client gets Reply, whatever the session answers.
type RefusedError struct {
	// Reply is the reply line that the client gets.
	Reply string
}

// Code is the code of the reply.
func (e *RefusedError) Code() int {
	code, _ := parseReply([]byte(e.Reply))
	return code
}

// Error says what the client is told.
func (e *RefusedError) Error() string { return "wire: message refused: " + e.Reply }

// ErrTooLarge is what the Reader of Conn.Body returns when the message is larger
// than its limit.
var ErrTooLarge = errors.New("wire: the message is larger than the limit")

// Body reads the message that Session.Data was called for, like the Reader given
// to Session.Data and with the same errors, but past the library, which looks at
// every byte twice. It must be called before that Reader is used, and from Data's
// goroutine; what is left unread is skipped when Data returns. A message of more
// than limit bytes ends in ErrTooLarge; smtp.Server.MaxMessageBytes does not
// count here. A limit of 0 means none.
func (c *Conn) Body(limit int64) io.Reader {
	c.settle.plain = true
	return &bodyReader{c: c, left: limit, limited: limit > 0}
}

type bodyReader struct {
	c       *Conn
	left    int64
	limited bool
	err     error
	few     [settleRoom]byte // for a Read into less than the settler needs
	rest    []byte           // of few
}

// Read implements io.Reader. An error stays: the connection may have gone on.
func (b *bodyReader) Read(p []byte) (int, error) {
	if len(b.rest) > 0 {
		n := copy(p, b.rest)
		b.rest = b.rest[n:]
		return n, nil
	}
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	if len(p) < settleRoom {
		n, err := b.read(b.few[:])
		b.rest = b.few[:n]
		n = copy(p, b.rest)
		b.rest = b.rest[n:]
		return n, err
	}
	return b.read(p)
}

func (b *bodyReader) read(p []byte) (int, error) {
	n, err := b.c.readBody(p)
	if b.limited && int64(n) > b.left {
		n, err = int(b.left), ErrTooLarge
	}
	b.left -= int64(n)
	b.err = err
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// readBody is Read for the session instead of the library.
func (c *Conn) readBody(p []byte) (int, error) {
	for {
		switch c.phase {
		case phaseBody:
			if n := c.body(p); n > 0 {
				return n, nil
			}
		case phaseBroken:
			return 0, c.tx.broken
		case phaseCommand:
			if c.settle.ended {
				return 0, io.EOF
			}
			c.command() // between two chunks
		default:
			return 0, io.ErrUnexpectedEOF
		}
	}
}

// body gives the library message bytes. Nothing means that the phase has changed.
func (c *Conn) body(p []byte) int {
	if len(p) < settleRoom {
		var few [settleRoom]byte
		n := c.body(few[:])
		if n > 0 && !c.settle.plain {
			c.buf.line = append(c.buf.line[:0], few[:n]...)
			c.feed = c.buf.line
		}
		return 0
	}
	for {
		nd, ns := c.settle.next(p, c.unread())
		c.used(ns)
		switch {
		case c.settle.flaw != flawNone:
			c.refuseBody()
			return 0
		case c.tooMuch():
			return 0
		case c.settle.ended:
			c.phase = phaseCommand
			if c.settle.plain {
				c.feed = append(c.buf.line[:0], ".\r\n"...)
			}
			return nd
		case nd > 0:
			return nd
		case c.tx.bdat && c.tx.chunk == 0:
			if !c.chunkDone() {
				return 0
			}
			continue
		}
		if !c.moreBody() {
			return 0
		}
	}
}

// unread is what the buffer holds of the message.
func (c *Conn) unread() []byte {
	src := c.buf.in[c.r:c.w]
	if c.tx.bdat && int64(len(src)) > c.tx.chunk {
		src = src[:c.tx.chunk]
	}
	return src
}

func (c *Conn) used(n int) {
	c.r += n
	c.tx.body += int64(n)
	if c.tx.bdat {
		c.tx.chunk -= int64(n)
	}
}

// tooMuch ends the connection when a message is longer than anything that could
// still be taken.
func (c *Conn) tooMuch() bool {
	if limit := c.l.cfg.MaxBody; limit <= 0 || c.tx.body <= limit {
		return false
	}
	c.cutOff("body_size", "552 5.3.4 message far over the size limit, closing connection")
	return true
}

// moreBody waits for more of a message. When there will be none the connection
// is over, and the library, if it still reads, gets io.ErrUnexpectedEOF.
func (c *Conn) moreBody() bool {
	if err := c.fillBody(); err != nil {
		c.endFor(err, c.lateBody())
		return false
	}
	return true
}

// refuseBody turns a flaw into the reply that the client will get at the end of
// its message.
func (c *Conn) refuseBody() {
	reason, reply := "bare_newline", "550 5.6.11 message holds a line end that is not CRLF beside a single dot"
	if c.settle.flaw == flawLine {
		reason = "line_length"
		reply = "554 5.6.0 message has a line longer than " + strconv.Itoa(c.l.cfg.MaxLine) + " bytes"
	}
	callWith(c.l.cfg.Metrics.Message, reason)
	c.l.cfg.Logger.Info("smtp message refused", "reason", reason, "remote", c.remote, "conn", c.number)
	c.breakBody(&RefusedError{Reply: reply}, reply)
}

// breakBody makes Read fail until the library has answered the message. Its
// answer is dropped; verdict, if any, is sent when the message has been read to
// its end.
func (c *Conn) breakBody(err error, verdict string) {
	c.phase = phaseBroken
	c.tx.broken, c.tx.verdict = err, verdict
}

// mend goes on after the library has left a broken message.
func (c *Conn) mend() {
	if c.tx.verdict == "" {
		c.tx = transaction{}
		c.phase = phaseCommand
		return
	}
	c.phase = phaseDrain
}

// drain reads what is left of a message or a chunk that nobody wants, and sends
// the verdict.
func (c *Conn) drain() {
	if c.tx.bdat {
		c.discardChunk()
	} else {
		c.discardData()
	}
	if c.phase != phaseDrain {
		return
	}
	verdict := c.tx.verdict
	c.tx = transaction{}
	c.phase = phaseCommand
	c.fail(verdict)
	c.flush()
}

// discardData follows the message with the settler that refused it, so that both
// agree on where it ends.
func (c *Conn) discardData() {
	var sink [2048]byte
	for {
		_, ns := c.settle.next(sink[:], c.unread())
		c.used(ns)
		switch {
		case c.tooMuch(), c.settle.ended:
			return
		case c.r < c.w:
		case !c.moreBody():
			return
		}
	}
}

func (c *Conn) discardChunk() {
	for {
		c.used(len(c.unread()))
		if c.tooMuch() || c.tx.chunk == 0 || !c.moreBody() {
			return
		}
	}
}

// bdat answers BDAT (RFC 3030, 2). The chunk follows the command whatever becomes
// of it, so a size that cannot be read leaves nothing to do but to hang up.
func (c *Conn) bdat(cmd cmdLine) {
	fields := bytes.Fields(cmd.arg)
	if len(fields) == 0 {
		c.cutOff("bdat_syntax", "501 5.5.4 BDAT needs a chunk size, closing connection")
		return
	}
	size, err := strconv.ParseUint(string(fields[0]), 10, 62)
	if err != nil || fields[0][0] == '+' {
		c.cutOff("bdat_syntax", "501 5.5.4 BDAT with a chunk size that is no number, closing connection")
		return
	}
	last := len(fields) == 2 && bytes.EqualFold(fields[1], []byte("LAST"))
	c.tx.size, c.tx.chunk = int64(size), int64(size)
	if size == 0 && !last {
		c.count.noise++
	}
	switch {
	case len(fields) > 1 && !last:
		c.skipChunk("501 5.5.4 BDAT takes a size and LAST, nothing else")
	case c.unfit() != "":
		c.skipChunk(c.unfit())
	case !c.tx.mail:
		c.skipChunk("503 5.5.1 MAIL is wanted first")
	case c.tx.rcpts == 0:
		c.skipChunk("554 5.5.1 no valid recipients")
	case c.tx.bdat: // the library is waiting for more of this message
		c.tx.last = last
		c.phase = phaseBody
	default:
		c.tx.last, c.tx.bdat = last, true
		c.pass(askedData, "DATA\r\n")
	}
}

// skipChunk reads a chunk that is refused. A refused chunk ends a message that
// was being sent: the client knows only that a part of it is missing.
func (c *Conn) skipChunk(reply string) {
	if c.tx.bdat {
		c.breakBody(&RefusedError{Reply: reply}, reply)
		return
	}
	kept := c.tx
	c.tx = transaction{bdat: true, chunk: kept.chunk}
	c.bodyBegins()
	c.discardChunk()
	if c.phase == phaseDone {
		return
	}
	kept.chunk = 0
	c.tx = kept
	if reply != "" {
		c.fail(reply)
	}
}

// chunkDone is called when a chunk was handed on. It returns false when the
// client has to say what comes next.
func (c *Conn) chunkDone() bool {
	if c.tx.last {
		c.settle.close()
		return true
	}
	c.phase = phaseCommand
	c.say("250 2.0.0 chunk of " + strconv.FormatInt(c.tx.size, 10) + " bytes taken")
	return false
}

var _ net.Conn = (*Conn)(nil)
