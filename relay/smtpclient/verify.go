package smtpclient

import (
	"context"
	"time"

	"crossfade/mail"
)

// Verify asks the server whether it takes mail for rcpt, by a transaction from
// the null reverse-path that ends before DATA. The answer is that of RCPT, or
// of MAIL when that was refused already. The connection can be used again
// when the error is nil.
func (c *Conn) Verify(ctx context.Context, rcpt mail.Address) (Answer, error) {
	if c.closed {
		return Answer{}, c.fail(StepMail, SentNothing, ErrClosed)
	}
	if !rcpt.IsASCII() && !c.caps.SMTPUTF8 {
		return Answer{StepRcpt, utf8Refusal}, nil
	}
	stop := c.watch(ctx)
	defer stop()
	c.uses++
	t := &Transaction{Rcpts: []Rcpt{{Addr: rcpt}}}
	lines := [][]byte{appendMail(nil, t, c.caps, !rcpt.IsASCII()), []byte("RCPT TO:<" + rcpt.String() + ">\r\n"), []byte("RSET\r\n")}
	answer, err := c.verify(ctx, lines)
	if err != nil {
		return Answer{}, err
	}
	c.used = time.Now()
	return answer, nil
}

// verify sends MAIL, RCPT and RSET, at once where the server allows it, and
// picks the answer from their replies.
func (c *Conn) verify(ctx context.Context, lines [][]byte) (answer Answer, err error) {
	limits := [...]time.Duration{c.t.Timeouts.Mail, c.t.Timeouts.Rcpt, c.t.Timeouts.Rcpt}
	for i, step := range [...]Step{StepMail, StepRcpt, StepRcpt} {
		if c.caps.Pipelining && i == 0 {
			err = c.send(ctx, append(append(lines[0], lines[1]...), lines[2]...), c.t.Timeouts.Block)
		} else if !c.caps.Pipelining {
			err = c.send(ctx, lines[i], c.t.Timeouts.Block)
		}
		if err != nil {
			return Answer{}, c.fail(step, SentNothing, err)
		}
		r, err := c.reply(ctx, limits[i])
		if err == nil && r.Code == 421 {
			err = &r
		}
		if err != nil {
			return Answer{}, c.fail(step, SentNothing, err)
		}
		if i < 2 && (answer.Reply.Code == 0 || answer.Reply.Positive()) {
			answer = Answer{step, r}
		}
	}
	c.dirty = false
	return answer, nil
}
