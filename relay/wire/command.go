package wire

import (
	"bytes"
	"strings"
	"time"
)

// command takes the client's next command line. It answers it, or feeds it to
// the library.
func (c *Conn) command() {
	if !c.mayGoOn() {
		return
	}
	raw, ok := c.peekLine()
	if !ok {
		return
	}
	line := bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte{'\n'}), []byte{'\r'})
	line = bytes.TrimRight(line, " \t") // RFC 5321, 4.1.1: tolerate it
	bad, high := lineFlaw(line)
	if bad {
		c.consume()
		c.fail("501 5.5.2 a command must not hold control characters or broken UTF-8")
		return
	}
	word, arg := line, []byte(nil)
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		word, arg = line[:i], bytes.TrimLeft(line[i:], " ")
	}
	var up [8]byte
	c.dispatch(capitals(&up, word), cmdLine{line: line, arg: arg, high: high})
}

// cmdLine is a command line without its line end.
type cmdLine struct {
	line, arg []byte
	high      bool // not all ASCII
}

// capitals writes the command's name in capitals to up; a word that is too long
// for a command comes back as "?".
func capitals(up *[8]byte, word []byte) []byte {
	if len(word) > len(up) {
		return append(up[:0], '?')
	}
	for i, b := range word {
		if 'a' <= b && b <= 'z' {
			b -= 'a' - 'A'
		}
		up[i] = b
	}
	return up[:len(word)]
}

// mayGoOn looks at what ends a connection between two commands.
func (c *Conn) mayGoOn() bool {
	cfg := &c.l.cfg
	switch {
	case c.shutting():
		c.endFor(errShutdown, "")
		return false
	case c.count.errors > cfg.MaxErrors || c.count.rcptErrors > cfg.MaxRcptErrors:
		c.cutOff("errors", "421 4.7.0 "+cfg.Hostname+" too many errors, closing connection")
		return false
	case c.count.noise > cfg.MaxNoise:
		c.cutOff("noise", "421 4.7.0 "+cfg.Hostname+" too many commands without a message, closing connection")
		return false
	case c.fruitless():
		c.cutOff("fruitless", "421 4.7.0 "+cfg.Hostname+" too long without a message, closing connection")
		return false
	}
	return true
}

// fruitless tells of a client that is there for too long without a message.
// Chunks of a message have the times of a body.
func (c *Conn) fruitless() bool {
	d := c.l.cfg.FruitlessTimeout
	if d <= 0 || c.tx.bdat {
		return false
	}
	since := c.start
	if c.fruit.After(since) {
		since = c.fruit
	}
	return time.Since(since) > d
}

// peekLine returns the next command line with its line end; it stays in the
// buffer until consume. A bare LF ends a command too, for people and scripts on
// a terminal; no decision of safety hangs on it.
func (c *Conn) peekLine() (raw []byte, ok bool) {
	limit := c.l.cfg.MaxCommand
	seen := 0
	fresh := true
	for {
		var in []byte // the buffer may be away
		if c.r < c.w {
			in = c.buf.in[c.r:c.w]
		}
		if i := bytes.IndexByte(in[seen:], '\n'); i >= 0 {
			c.lineAt, c.lineLen = c.r, seen+i+1
			if c.lineLen > limit {
				c.skipLongLine()
				return nil, false
			}
			return in[:c.lineLen], true
		}
		if seen = len(in); seen > limit {
			c.skipLongLine()
			return nil, false
		}
		if err := c.fillCommand(fresh); err != nil {
			c.endFor(err, "idle")
			return nil, false
		}
		fresh = false
	}
}

// skipLongLine reads a command line that is too long to its end, within reason.
func (c *Conn) skipLongLine() {
	cfg := &c.l.cfg
	for skipped := 0; ; {
		in := c.buf.in[c.r:c.w]
		i := bytes.IndexByte(in, '\n')
		if i >= 0 {
			in = in[:i+1]
		}
		skipped += len(in)
		c.r += len(in)
		switch {
		case skipped-cfg.MaxCommand > cfg.MaxLine:
			c.cutOff("line_length", "500 5.5.2 command line too long, closing connection")
			return
		case i >= 0:
			c.fail("500 5.5.2 command line too long")
			return
		}
		if err := c.fillCommand(false); err != nil {
			c.endFor(err, "idle")
			return
		}
	}
}

// consume drops the peeked command line from the buffer.
func (c *Conn) consume() { c.r = c.lineAt + c.lineLen }

// putBack undoes consume, as long as nothing was read in between.
func (c *Conn) putBack() { c.r = c.lineAt }

// dispatch answers the command whose line is still in the buffer.
func (c *Conn) dispatch(word []byte, cmd cmdLine) {
	switch string(word) {
	case "RSET", "EHLO", "HELO", "QUIT", "STARTTLS":
		if c.tx.bdat {
			// The line stays: it is answered when the library is out of the message.
			c.breakBody(ErrReset, "")
			return
		}
	}
	c.consume()
	if c.clearRefused(word) {
		return
	}
	switch string(word) {
	case "MAIL":
		c.mail(cmd)
	case "RCPT":
		c.rcpt(cmd)
	case "DATA":
		c.data(cmd)
	case "BDAT":
		c.bdat(cmd)
	case "EHLO", "HELO":
		c.hello(word[0] == 'E', cmd)
	case "STARTTLS":
		c.startTLS(cmd)
	case "AUTH":
		c.auth(cmd)
	case "RSET":
		c.rset()
	case "QUIT":
		c.end("221 2.0.0 " + c.l.cfg.Hostname + " closing connection")
	case "NOOP":
		c.noise("250 2.0.0 ok")
	case "VRFY":
		c.noise("252 2.5.0 cannot verify a mailbox, send it mail and see")
	case "HELP":
		c.noise("214 2.0.0 RFC 5321")
	case "EXPN", "ETRN", "TURN", "SEND", "SOML", "SAML", "LHLO", "XCLIENT":
		c.fail("502 5.5.1 command not implemented")
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT":
		// A browser that was talked into carrying somebody's SMTP commands.
		c.cutOff("other_protocol", "554 5.5.0 this is an SMTP server")
	default:
		c.fail("500 5.5.2 command not recognized")
	}
}

// noise answers a command that brings no message nearer. RFC 2920, 3.1, wants
// such answers sent at once.
func (c *Conn) noise(reply string) {
	c.count.noise++
	c.say(reply)
	c.flush()
}

const maxHelo = 255

// hello answers EHLO and HELO. The library learns of it before the next MAIL,
// which also ends a transaction that is open there.
func (c *Conn) hello(extended bool, cmd cmdLine) {
	switch {
	case len(cmd.arg) == 0:
		c.fail("501 5.5.4 a host name or an address literal is wanted")
		return
	case len(cmd.arg) > maxHelo || cmd.high:
		c.fail("501 5.5.4 the host name must be ASCII and not longer than 255 bytes")
		return
	}
	if c.greeted {
		c.count.noise++
	}
	c.helo, c.esmtp = string(cmd.arg), extended
	c.greeted, c.told = true, false
	c.tx = transaction{}
	switch {
	case !extended:
		c.put("250 ")
		c.say(c.l.cfg.Hostname)
	case c.tls == nil && c.l.tlsConfig() != nil:
		c.put(c.l.ehloTLS)
	case c.logins():
		c.put(c.l.ehloLogin)
	case c.tls != nil:
		c.put(c.l.ehloSecure)
	default:
		c.put(c.l.ehloClear)
	}
	c.flush()
}

func (c *Conn) rset() {
	if c.tx.begun {
		c.count.noise++ // MAIL and RSET by turns bring no message nearer either
		c.pass(askedReset, "RSET\r\n")
		return
	}
	c.noise("250 2.0.0 ok")
}

// pass feeds a line to the library.
func (c *Conn) pass(as asked, line string) {
	c.buf.line = append(c.buf.line[:0], line...)
	c.feed = c.buf.line
	c.asked = as
}

// passLine feeds a MAIL or RCPT line and keeps it for the session to look at.
func (c *Conn) passLine(as asked, line []byte, path [2]int) {
	c.last, c.lastPath = line, path
	c.buf.line = append(append(c.buf.line[:0], line...), '\r', '\n')
	c.feed = c.buf.line
	c.asked = as
}

func (c *Conn) mail(cmd cmdLine) {
	cfg := &c.l.cfg
	switch {
	case !c.greeted:
		c.fail("503 5.5.1 say EHLO or HELO first")
		return
	case c.tx.mail || c.tx.bdat:
		c.fail("503 5.5.1 a transaction is open, RSET ends it")
		return
	case c.count.messages >= cfg.MaxMessages:
		c.refuseConn("messages", "421 4.7.0 "+cfg.Hostname+" enough messages on this connection, please connect again")
		return
	}
	if c.authRefused() {
		return
	}
	start, end, ok := findPath(cmd.line, "FROM:")
	utf8 := ok && hasWord(bytes.TrimPrefix(cmd.line[end:], []byte{'>'}), "SMTPUTF8")
	if cmd.high && !utf8 {
		c.fail("553 5.6.7 an address that is not ASCII needs SMTPUTF8")
		return
	}
	if !c.told {
		c.putBack() // the library hears HELO first, and then this line
		name, _, _ := strings.Cut(c.helo, " ")
		c.pass(askedHello, "HELO "+name+"\r\n")
		return
	}
	c.tx = transaction{begun: true, utf8: utf8}
	c.passLine(askedMail, cmd.line, [2]int{start, end})
}

func (c *Conn) rcpt(cmd cmdLine) {
	switch {
	case !c.tx.mail:
		c.fail("503 5.5.1 MAIL is wanted first")
		return
	case c.tx.bdat:
		c.fail("503 5.5.1 a message is being sent")
		return
	case cmd.high && !c.tx.utf8:
		c.count.rcptErrors++
		c.say("553 5.6.7 an address that is not ASCII needs SMTPUTF8")
		return
	}
	start, end, ok := findPath(cmd.line, "TO:")
	c.passLine(askedRcpt, cmd.line, [2]int{start, end})
	box := c.l.cfg.Postmaster
	if ok && box != "" && bytes.EqualFold(cmd.line[start:end], []byte("postmaster")) {
		b := append(c.buf.line[:0], cmd.line[:start]...)
		b = append(append(b, box...), cmd.line[end:]...)
		c.buf.line = append(b, '\r', '\n')
		c.feed = c.buf.line
	}
}

func (c *Conn) data(cmd cmdLine) {
	switch {
	case len(cmd.arg) > 0:
		c.fail("501 5.5.4 DATA has no parameters")
	case c.tx.bdat:
		c.fail("503 5.5.1 a message is being sent by BDAT")
	case !c.tx.mail:
		c.fail("503 5.5.1 MAIL is wanted first")
	case c.tx.rcpts == 0:
		c.fail("554 5.5.1 no valid recipients")
	default:
		c.pass(askedData, "DATA\r\n")
	}
}
