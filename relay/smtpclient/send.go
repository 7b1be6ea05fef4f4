package smtpclient

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"crossfade/mail"
)

// Rcpt is one recipient of a transaction.
type Rcpt struct {
	Addr   mail.Address
	Notify mail.Notify // sent when the server has DSN
	ORcpt  string      // "type;address", decoded; sent when the server has DSN
}

// Transaction is one message for some recipients.
type Transaction struct {
	From     mail.Address // the zero value is the null reverse-path
	Rcpts    []Rcpt
	Body     io.Reader // read once, only when a recipient was accepted
	Size     int64     // octets of Body; a body of another length is never completed. 0: unknown
	EightBit bool      // BODY=8BITMIME was declared
	UTF8     bool      // SMTPUTF8 was declared
	Ret      mail.Ret
	EnvID    string // decoded
	// RequireTLS passes REQUIRETLS on to a server that offers it (RFC 8689). Whether
	// the message may be sent at all is for the caller to decide: [Conn.Verified].
	RequireTLS bool
	// Origin is the client that the message came from, for XFORWARD; nil: we wrote it.
	Origin *Origin
	// BeforeDot is called when nothing is left to be written but the final dot
	// (and the message itself, when it is small enough to share one write with
	// its dot). An error closes the connection and the dot is never sent. Nil
	// always agrees.
	BeforeDot func() error
}

// Answer is the final reply for one recipient and the command it was the reply
// to: StepMail, StepRcpt and StepData speak for the recipient before the body
// was sent, StepDot after it. A Reply with Code 0 is no answer.
type Answer struct {
	Step  Step
	Reply mail.Reply
}

// groupSize is how many octets of commands are sent before their replies are
// read: a server that writes replies while nobody reads them stops reading
// commands (RFC 2920, 3.1).
const groupSize = 16 << 10

// utf8Refusal is our own answer for an address that the server cannot take
// (RFC 6531, 3.2).
var utf8Refusal = mail.Reply{Code: 550, Enhanced: mail.Enhanced{5, 6, 7},
	Text: "the address is not in ASCII, and the next server does not offer SMTPUTF8"}

// transaction is the state of one Send.
type transaction struct {
	*Transaction
	c        *Conn
	ctx      context.Context
	buf      *buffers
	utf8     bool
	sender   *mail.Reply // the refusal of MAIL
	accepted int
}

// Send runs one transaction. The answers are one for each of t.Rcpts, in their
// order, and are valid until the next Send. With a nil error each of them is
// final, and [Conn.Usable] tells whether another transaction may follow.
// Otherwise the error is an [*Error], the connection is closed, and a recipient
// whose answer has Code 0 shares the error's fate: not delivered, unless
// [Error.InDoubt].
//
// A message declared 8BITMIME goes as it is to a server without 8BITMIME:
// its bytes must not change, and every server in use takes them. A message
// with SMTPUTF8 goes to a server without it when all its addresses are in
// ASCII; a recipient whose own or whose sender's address is not gets a 550
// 5.6.7 of ours.
func (c *Conn) Send(ctx context.Context, t *Transaction) ([]Answer, error) {
	c.start(len(t.Rcpts))
	if c.closed {
		return c.answers, c.fail(StepMail, SentNothing, ErrClosed)
	}
	if c.br.Buffered() > 0 {
		return c.answers, c.fail(StepMail, SentNothing, fmt.Errorf("%w: it sent a reply too many", ErrProtocol))
	}
	stop := c.watch(ctx)
	defer stop()
	c.uses++
	x := transaction{Transaction: t, c: c, ctx: ctx, buf: bufferPool.Get().(*buffers)}
	defer bufferPool.Put(x.buf)
	if !x.screen() {
		return c.answers, nil
	}
	if err := x.run(); err != nil {
		return c.answers, err
	}
	c.used = time.Now()
	return c.answers, nil
}

func (c *Conn) start(n int) {
	if cap(c.answers) < n {
		c.answers = make([]Answer, n)
	}
	c.answers = c.answers[:n]
	clear(c.answers)
}

// screen answers for the recipients that the server cannot take by what it
// announced. False: nobody is left.
func (x *transaction) screen() bool {
	x.utf8 = x.UTF8 || !x.From.IsASCII()
	left := 0
	for i := range x.Rcpts {
		x.utf8 = x.utf8 || !x.Rcpts[i].Addr.IsASCII()
		if x.screened(i) {
			x.c.answers[i] = Answer{StepRcpt, utf8Refusal}
			continue
		}
		left++
	}
	return left > 0
}

func (x *transaction) run() error {
	var err *Error
	if x.c.caps.Pipelining {
		err = x.pipelined()
	} else {
		err = x.stepwise()
	}
	if err != nil {
		return err
	}
	if x.accepted == 0 {
		return nil
	}
	if err := x.body(); err != nil {
		return err
	}
	if err := x.dotReplies(); err != nil {
		return err
	}
	return nil
}

// open tells whether recipient i has no answer yet.
func (x *transaction) open(i int) bool { return x.c.answers[i].Reply.Code == 0 }

func (x *transaction) write(step Step, b []byte) *Error {
	if err := x.c.send(x.ctx, b, x.c.t.Timeouts.Block); err != nil {
		return x.c.fail(step, SentNothing, err)
	}
	return nil
}

// read reads the reply to a command before the body. 421 ends the session
// whatever it answers (RFC 5321, 3.8).
func (x *transaction) read(step Step, d time.Duration) (mail.Reply, *Error) {
	r, err := x.c.reply(x.ctx, d)
	if err != nil {
		return r, x.c.fail(step, SentNothing, err)
	}
	if r.Code == 421 {
		return r, x.c.fail(step, SentNothing, &r)
	}
	return r, nil
}

// pipelined sends the commands in one write where they fit (RFC 2920).
func (x *transaction) pipelined() *Error {
	out := x.buf.out[:0]
	reset := x.c.dirty
	if reset {
		out = append(out, "RSET\r\n"...)
	}
	out, told := x.forwardLines(out)
	out = appendMail(out, x.Transaction, x.c.caps, x.utf8)
	x.c.dirty = true
	first := true
	for from := 0; from < len(x.Rcpts); {
		to := from
		for ; to < len(x.Rcpts) && len(out) < groupSize; to++ {
			if !x.screened(to) {
				out = appendRcpt(out, &x.Rcpts[to], x.c.caps)
			}
		}
		last := to == len(x.Rcpts)
		if last {
			out = append(out, "DATA\r\n"...)
		}
		if err := x.write(StepMail, out); err != nil {
			return err
		}
		if err := x.group(from, to, opening{first, reset, told}); err != nil {
			return err
		}
		out, from, first = out[:0], to, false
		if x.sender != nil && !last {
			return nil
		}
	}
	return x.pipelinedData()
}

// opening is what a group of commands begins with.
type opening struct {
	first bool // MAIL
	reset bool // RSET before all
	told  int  // XFORWARD commands before MAIL
}

// group reads the replies to one write of commands, but not that to DATA.
func (x *transaction) group(from, to int, o opening) *Error {
	if o.first && o.reset {
		if _, err := x.read(StepMail, x.c.t.Timeouts.Rcpt); err != nil {
			return err
		}
	}
	if o.first {
		if err := x.forward(o.told); err != nil {
			return err
		}
		r, err := x.read(StepMail, x.c.t.Timeouts.Mail)
		if err != nil {
			return err
		}
		if !r.Positive() {
			x.refuseSender(r)
		}
	}
	for i := from; i < to; i++ {
		if x.screened(i) {
			continue
		}
		r, err := x.read(StepRcpt, x.c.t.Timeouts.Rcpt)
		if err != nil {
			return err
		}
		if x.sender == nil {
			x.rcptReply(i, r)
		}
	}
	return nil
}

// screened tells whether recipient i was answered by us and never named to the
// server.
func (x *transaction) screened(i int) bool {
	return !x.c.caps.SMTPUTF8 && (!x.Rcpts[i].Addr.IsASCII() || !x.From.IsASCII())
}

func (x *transaction) rcptReply(i int, r mail.Reply) {
	if r.Positive() {
		x.accepted++
		return
	}
	x.c.answers[i] = Answer{StepRcpt, r}
}

// refuseSender makes the refusal of MAIL the answer for all recipients that
// have none.
func (x *transaction) refuseSender(r mail.Reply) {
	x.sender = &r
	x.answerAll(StepMail, r)
}

func (x *transaction) answerAll(step Step, r mail.Reply) {
	for i := range x.c.answers {
		if x.open(i) {
			x.c.answers[i] = Answer{step, r}
		}
	}
}

// pipelinedData reads the reply to the DATA that went out with the last RCPT.
func (x *transaction) pipelinedData() *Error {
	r, err := x.read(StepData, x.c.t.Timeouts.Data)
	if err != nil {
		return err
	}
	if r.Code == 354 && x.accepted == 0 {
		// The server wants a message that nobody may get. RFC 2920 would have a
		// lone dot here, which is a message too if the server counts
		// differently; a closed connection never is one.
		_ = x.c.Close()
		return nil
	}
	return x.dataReply(r)
}

// dataReply judges the reply to DATA. Anything but 354 stands for all
// recipients that were accepted so far.
func (x *transaction) dataReply(r mail.Reply) *Error {
	if r.Code == 354 {
		return nil
	}
	if x.accepted > 0 {
		if r.Code < 400 {
			return x.c.fail(StepData, SentNothing, unwelcome(r))
		}
		x.answerAll(StepData, r)
		x.accepted = 0
	}
	return nil
}

// stepwise waits for each reply before the next command.
func (x *transaction) stepwise() *Error {
	to := x.c.t.Timeouts
	if x.c.dirty {
		if _, err := x.command(StepMail, append(x.buf.out[:0], "RSET\r\n"...), to.Rcpt); err != nil {
			return err
		}
	}
	x.c.dirty = true
	if lines, told := x.forwardLines(x.buf.out[:0]); told > 0 {
		for line := range bytes.Lines(lines) {
			if _, err := x.command(StepOrigin, line, to.Rcpt); err != nil {
				return err
			}
		}
	}
	r, err := x.command(StepMail, appendMail(x.buf.out[:0], x.Transaction, x.c.caps, x.utf8), to.Mail)
	if err != nil {
		return err
	}
	if !r.Positive() {
		x.refuseSender(r)
		return nil
	}
	for i := range x.Rcpts {
		if x.screened(i) {
			continue
		}
		r, err := x.command(StepRcpt, appendRcpt(x.buf.out[:0], &x.Rcpts[i], x.c.caps), to.Rcpt)
		if err != nil {
			return err
		}
		x.rcptReply(i, r)
	}
	if x.accepted == 0 {
		return nil
	}
	if r, err = x.command(StepData, append(x.buf.out[:0], "DATA\r\n"...), to.Data); err != nil {
		return err
	}
	return x.dataReply(r)
}

func (x *transaction) command(step Step, line []byte, d time.Duration) (mail.Reply, *Error) {
	if err := x.write(step, line); err != nil {
		return mail.Reply{}, err
	}
	return x.read(step, d)
}

// body sends the message. Every way out but the last one leaves the message
// without its final dot and the connection closed.
func (x *transaction) body() *Error {
	d := dotWriter{buf: x.buf.out[:0], write: func(b []byte) error {
		return x.c.send(x.ctx, b, x.c.t.Timeouts.Block)
	}}
	sent := func() Sent {
		if d.flushed {
			return SentPart
		}
		return SentNothing
	}
	if err := d.copyFrom(x.Body, x.Size, x.buf.in); err != nil {
		return x.c.fail(StepBody, sent(), err)
	}
	if d.flushed {
		if err := d.flush(); err != nil {
			return x.c.fail(StepBody, sent(), err)
		}
	}
	if x.BeforeDot != nil {
		if err := x.BeforeDot(); err != nil {
			return x.c.fail(StepBody, sent(), fmt.Errorf("%w: %w", ErrWithheld, err))
		}
	}
	err := d.put(dotCRLF)
	if err == nil {
		err = d.flush()
	}
	if err != nil {
		return x.c.fail(StepDot, SentAll, err)
	}
	return nil
}

// dotReplies reads what the server says to the message: once in SMTP, once for
// each accepted recipient in LMTP (RFC 2033, 4.2).
func (x *transaction) dotReplies() *Error {
	leaving := false
	for i := range x.c.answers {
		if !x.open(i) {
			continue
		}
		r, err := x.c.reply(x.ctx, x.c.t.Timeouts.Dot)
		if err == nil && r.Code >= 300 && r.Code < 400 {
			err = unwelcome(r)
		}
		if err != nil {
			return x.c.fail(StepDot, SentAll, err)
		}
		leaving = leaving || r.Code == 421
		if !x.c.t.LMTP {
			x.answerAll(StepDot, r)
			break
		}
		x.c.answers[i] = Answer{StepDot, r}
	}
	x.c.dirty = false
	if leaving {
		_ = x.c.Close()
	}
	return nil
}
