package wire

import (
	"bytes"
	"strconv"
	"time"
)

// replyState is about the reply of the library that is being written.
type replyState struct {
	begun bool
	hide  bool   // its lines do not go out
	with  string // what goes out instead, at its end
}

// outLimit is how much is kept back at most while the client has more complete
// commands in the buffer (RFC 2920, 3.2).
const outLimit = 4 << 10

// put adds text to the replies.
func (c *Conn) put(s string) { c.buf.out = append(c.buf.out, s...) }

// say adds one reply line. It goes out when the guard has to wait for the client
// or has much to say, so that a pipelined group is answered by one write.
func (c *Conn) say(line string) {
	c.buf.out = append(append(c.buf.out, line...), '\r', '\n')
}

// fail is say for a refused command.
func (c *Conn) fail(line string) {
	c.count.errors++
	c.say(line)
}

// flush sends what there is to say.
func (c *Conn) flush() {
	if c.buf == nil || len(c.buf.out) == 0 || c.lost {
		return
	}
	c.armWrite()
	if _, err := c.net.Write(c.buf.out); err != nil {
		c.lost = true
		c.notTaken(err)
	}
	c.buf.out = c.buf.out[:0]
}

// notTaken tells of a client that would not take its replies.
func (c *Conn) notTaken(err error) {
	if isTimeout(err) {
		callWith(c.l.cfg.Metrics.Refused, "write_timeout")
		c.l.cfg.Logger.Info("smtp connection ended", "reason", "write_timeout", "remote", c.remote, "conn", c.number)
	}
}

// Write takes the replies of the library. They answer the command that it has
// read last; the guard learns from them, drops those that the client did not ask
// for, and sends the others when it is time. It never fails: a connection that
// is lost is told by the next Read.
func (c *Conn) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		switch {
		case c.buf == nil: // before the greeting, or when all is over
			if i < 0 {
				return len(p), nil
			}
			c.unheard(rest[:i+1])
		case i < 0:
			c.buf.rep = append(c.buf.rep, rest...)
			return len(p), nil
		case len(c.buf.rep) > 0:
			line := append(c.buf.rep, rest[:i+1]...)
			c.buf.rep = line[:0]
			c.replyLine(line)
		default:
			c.replyLine(rest[:i+1])
		}
		rest = rest[i+1:]
	}
	return len(p), nil
}

// parseReply takes the code from a reply line and says whether it is the last one.
func parseReply(line []byte) (code int, final bool) {
	if len(line) < 3 {
		return 0, true
	}
	code, err := strconv.Atoi(string(line[:3]))
	if err != nil {
		code = 0
	}
	return code, len(line) == 3 || line[3] != '-'
}

// unheard takes a reply line that nobody can hear. A broken-off message is over
// for the library when it has answered it.
func (c *Conn) unheard(line []byte) {
	if _, final := parseReply(line); final {
		c.asked = askedNothing
	}
}

func (c *Conn) replyLine(line []byte) {
	code, final := parseReply(line)
	if !c.reply.begun {
		c.reply = c.judge(code, line)
		c.reply.begun = true
	}
	if !c.reply.hide {
		c.buf.out = append(c.buf.out, line...)
	}
	if !final {
		return
	}
	if c.reply.with != "" {
		c.say(c.reply.with)
		code, _ = parseReply([]byte(c.reply.with))
	}
	c.reply = replyState{}
	c.answered(code)
	if c.buf != nil && (code == 421 || len(c.buf.out) >= outLimit) {
		c.flush()
	}
}

// libraryFailure is how the library reports an error of Session.Data that is not
// a *smtp.SMTPError: permanent, and with the error's text for the peer to read.
var libraryFailure = []byte("Error: transaction failed: ")

// judge decides what becomes of a reply of the library when it begins.
func (c *Conn) judge(code int, line []byte) replyState {
	switch {
	case c.phase == phaseBroken:
		return replyState{hide: true}
	case c.asked == askedHello:
		if code == 250 {
			return replyState{hide: true}
		}
	case c.asked == askedMail && code == 250:
		return replyState{hide: true, with: "250 2.1.0 sender ok"}
	case c.asked == askedRcpt && code == 250:
		return replyState{hide: true, with: "250 2.1.5 recipient ok"}
	case c.asked == askedReset && code == 250:
		return replyState{hide: true, with: "250 2.0.0 ok"}
	case c.asked == askedData && code == 354:
		if c.tx.bdat {
			return replyState{hide: true}
		}
		return replyState{hide: true, with: "354 end data with <CR><LF>.<CR><LF>"}
	case c.asked == askedBody && code == 554 && bytes.Contains(line, libraryFailure):
		c.l.cfg.Logger.Error("smtp session returned an error without a reply code; the client was told 451",
			"conn", c.number, "reply", string(bytes.TrimSpace(line)))
		return replyState{hide: true, with: "451 4.3.0 message not taken because of a local error, try again later"}
	}
	return replyState{}
}

// answered is called when the library has answered a command.
func (c *Conn) answered(code int) {
	did := c.asked
	c.asked = askedNothing
	ok := code/100 == 2
	switch did {
	case askedHello:
		c.helloDone(ok)
	case askedMail:
		c.last = nil
		c.tx.mail = ok
	case askedRcpt:
		c.last = nil
		c.rcptDone(code)
		ok = true // counted
	case askedReset:
		c.tx = transaction{}
	case askedData:
		ok = c.dataDone(code)
	case askedBody:
		if c.phase == phaseBroken {
			c.mend()
			return
		}
		c.bodyDone(ok)
	case askedNothing:
	}
	if !ok {
		c.count.errors++
	}
	if code == 421 {
		c.end("") // RFC 5321, 3.8: 421 closes the channel
	}
}

// helloDone ends the library's part of EHLO. When no session could be made the
// error has gone out as the answer to the command that was waiting for it.
func (c *Conn) helloDone(ok bool) {
	if ok {
		c.told = true
		c.tx = transaction{}
		return
	}
	c.consume()
}

func (c *Conn) rcptDone(code int) {
	switch {
	case code/100 == 2:
		c.tx.rcpts++
	case code != 452:
		c.count.rcptErrors++
	}
}

func (c *Conn) dataDone(code int) (ok bool) {
	if code != 354 {
		if c.tx.bdat {
			c.tx.bdat = false
			c.skipChunk("")
		}
		return false
	}
	c.asked = askedBody
	c.phase = phaseBody
	c.bodyBegins()
	c.settle.reset(c.tx.bdat, c.l.cfg.MaxLine)
	return true
}

// bodyDone is called when the library has answered a whole message, and so has
// dropped the transaction.
func (c *Conn) bodyDone(ok bool) {
	if c.phase == phaseBody { // the library gave up without reading on: it panicked
		c.end("")
		return
	}
	c.tx = transaction{}
	c.count.messages++
	if ok {
		c.count = counters{messages: c.count.messages}
		if c.l.cfg.FruitlessTimeout > 0 {
			c.fruit = time.Now()
		}
	}
	c.flush() // a client must not wait for the verdict while its next command runs
}
