package mailtest

import (
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// command carries out one command line. An error ends the session.
func (c *sinkConn) command(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO", "LHLO", "HELO":
		return c.hello(line, strings.ToUpper(verb), strings.TrimSpace(rest))
	case "STARTTLS":
		return c.starttls(line)
	case "AUTH":
		return c.auth(line, rest)
	case "MAIL":
		return c.mail(line)
	case "RCPT":
		return c.rcpt(line)
	case "DATA":
		return c.data(line)
	case "BDAT":
		return c.chunk(line, rest)
	case "RSET":
		return c.reply(c.event(StepReset, line, ""), answer{250, "2.0.0 reset"}, c.reset)
	case "NOOP":
		return c.reply(c.event(StepNoop, line, ""), answer{250, "2.0.0 ok"}, nil)
	case "QUIT":
		if err := c.reply(c.event(StepQuit, line, ""), answer{221, "2.0.0 bye"}, nil); err != nil {
			return err
		}
		return c.end(EndClose)
	default:
		return c.other(line, strings.ToUpper(verb))
	}
}

func (c *sinkConn) reset() { c.tx, c.bdat = nil, nil }

func (c *sinkConn) other(line, verb string) error {
	ans := answer{500, "5.5.1 unknown command"}
	switch {
	case verb == "XCLIENT" && c.offers("XCLIENT"):
		ans = answer{220, c.sink.cfg.Hostname + " go on"} // a new greeting, Postfix XCLIENT_README
	case verb == "XFORWARD" && c.offers("XFORWARD"):
		ans = answer{250, "2.0.0 ok"}
	case verb == "VRFY":
		ans = answer{252, "2.5.2 send some mail, I will try"}
	case verb == "HELP":
		ans = answer{214, "2.0.0 RFC 5321"}
	}
	return c.reply(c.event(StepOther, line, ""), ans, func() {
		if verb == "XCLIENT" {
			c.reset()
			c.helo = ""
		}
	})
}

// offers tells whether an extension is announced.
func (c *sinkConn) offers(keyword string) bool {
	return slices.ContainsFunc(c.sink.cfg.Extensions, func(e string) bool {
		w, _, _ := strings.Cut(e, " ")
		return strings.EqualFold(w, keyword)
	})
}

func (c *sinkConn) hello(line, verb, name string) error {
	ev := c.event(StepEHLO, line, "")
	if (verb == "LHLO") != c.sink.cfg.LMTP {
		return c.reply(ev, answer{500, "5.5.1 wrong protocol"}, nil)
	}
	if name == "" {
		return c.reply(ev, answer{501, "5.5.4 a name is needed"}, nil)
	}
	text := []string{c.sink.cfg.Hostname}
	if verb != "HELO" {
		text = append(text, c.sink.cfg.Extensions...)
		if c.sink.cfg.STARTTLS && !c.tls {
			text = append(text, "STARTTLS")
		}
		if c.sink.cfg.Auth != nil {
			text = append(text, "AUTH PLAIN LOGIN")
		}
	}
	return c.reply(ev, answer{250, strings.Join(text, "\n")}, func() {
		c.reset()
		c.helo = name
	})
}

func (c *sinkConn) starttls(line string) error {
	ev := c.event(StepSTARTTLS, line, "")
	if !c.sink.cfg.STARTTLS || c.tls {
		return c.reply(ev, answer{502, "5.5.1 not offered"}, nil)
	}
	if c.br.Buffered() > 0 {
		return c.end(EndClose) // bytes behind STARTTLS: command injection, RFC 3207, 4.2
	}
	a := c.sink.ask(ev)
	ans := a.over(answer{220, "2.0.0 go ahead"})
	if err := c.perform(a, ans); err != nil || !a.done(ans) {
		return err
	}
	if err := c.startTLS(); err != nil {
		return err
	}
	c.reset()
	c.helo, c.user = "", ""
	return c.after(StepSTARTTLS, line, "")
}

func (c *sinkConn) auth(line, rest string) error {
	ev := c.event(StepAuth, "AUTH", "")
	if c.sink.cfg.Auth == nil || c.user != "" || c.helo == "" {
		return c.reply(ev, answer{503, "5.5.1 AUTH not possible now"}, nil)
	}
	mech, initial, _ := strings.Cut(rest, " ")
	var user, password string
	var err error
	switch strings.ToUpper(mech) {
	case "PLAIN":
		user, password, err = c.authPlain(initial)
	case "LOGIN":
		user, password, err = c.authLogin(initial)
	default:
		return c.reply(ev, answer{504, "5.5.4 unknown mechanism"}, nil)
	}
	if err != nil {
		return err
	}
	ev.Addr = user
	if !c.sink.cfg.Auth(user, password) {
		return c.reply(ev, answer{535, "5.7.8 wrong credentials"}, nil)
	}
	return c.reply(ev, answer{235, "2.7.0 welcome"}, func() { c.user = user })
}

// challenge writes a 334 and reads one base64 line.
func (c *sinkConn) challenge(prompt string) (string, error) {
	if err := c.perform(Action{}, answer{334, base64.StdEncoding.EncodeToString([]byte(prompt))}); err != nil {
		return "", err
	}
	line, err := c.readLine()
	if err != nil {
		return "", err
	}
	b, err := base64.StdEncoding.DecodeString(line)
	return string(b), err
}

func (c *sinkConn) authPlain(initial string) (user, password string, err error) {
	resp := initial
	if initial == "" {
		resp, err = c.challenge("")
	} else {
		var b []byte
		b, err = base64.StdEncoding.DecodeString(initial)
		resp = string(b)
	}
	if err != nil {
		return "", "", err
	}
	parts := strings.Split(resp, "\x00")
	if len(parts) != 3 {
		return "", "", fmt.Errorf("AUTH PLAIN: %d fields, want 3", len(parts))
	}
	return parts[1], parts[2], nil
}

func (c *sinkConn) authLogin(initial string) (user, password string, err error) {
	if initial != "" {
		b, err := base64.StdEncoding.DecodeString(initial)
		if err != nil {
			return "", "", err
		}
		user = string(b)
	} else if user, err = c.challenge("Username:"); err != nil {
		return "", "", err
	}
	password, err = c.challenge("Password:")
	return user, password, err
}

func (c *sinkConn) mail(line string) error {
	addr, params, ok := parsePath(line, "MAIL FROM:")
	c.txn++
	ev := c.event(StepMail, line, addr)
	switch {
	case c.helo == "":
		return c.reply(ev, answer{503, "5.5.1 say EHLO first"}, nil)
	case c.sink.cfg.Auth != nil && c.user == "":
		return c.reply(ev, answer{530, "5.7.0 authentication required"}, nil)
	case c.tx != nil:
		return c.reply(ev, answer{503, "5.5.1 nested MAIL"}, nil)
	case !ok:
		return c.reply(ev, answer{501, "5.5.4 syntax: MAIL FROM:<address>"}, nil)
	}
	return c.reply(ev, answer{250, "2.1.0 sender ok"}, func() {
		c.tx = &Message{Conn: c.num, Transaction: c.txn, Helo: c.helo, TLS: c.tls, AuthUser: c.user, From: addr, FromParams: params}
	})
}

func (c *sinkConn) rcpt(line string) error {
	addr, params, ok := parsePath(line, "RCPT TO:")
	ev := c.event(StepRcpt, line, addr)
	switch {
	case c.tx == nil:
		return c.reply(ev, answer{503, "5.5.1 say MAIL first"}, nil)
	case !ok || addr == "":
		return c.reply(ev, answer{501, "5.5.4 syntax: RCPT TO:<address>"}, nil)
	case c.sink.cfg.Users != nil && !c.sink.cfg.Users(addr):
		return c.reply(ev, answer{550, "5.1.1 <" + addr + "> no such user"}, nil)
	}
	return c.reply(ev, answer{250, "2.1.5 recipient ok"}, func() {
		c.tx.Rcpts = append(c.tx.Rcpts, Rcpt{Addr: addr, Params: params})
	})
}

func (c *sinkConn) data(line string) error {
	ev := c.event(StepData, line, "")
	if c.tx == nil || len(c.tx.Rcpts) == 0 {
		return c.reply(ev, answer{503, "5.5.1 no valid recipients"}, nil)
	}
	a := c.sink.ask(ev)
	ans := a.over(answer{354, "end with CRLF.CRLF"})
	if err := c.perform(a, ans); err != nil {
		return err
	}
	if ans.code != 354 || !a.done(ans) {
		return c.after(StepData, line, "")
	}
	if err := c.after(StepData, line, ""); err != nil {
		return err
	}
	if a.BodyBytes > 0 {
		_, _ = io.CopyN(io.Discard, c.br, a.BodyBytes)
		return c.end(a.End)
	}
	body, size, err := c.readBody()
	if err != nil {
		return err
	}
	return c.finish(body, size)
}

func (c *sinkConn) chunk(line, rest string) error {
	count, last, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseInt(count, 10, 64)
	isLast := strings.EqualFold(last, "LAST")
	ev := c.event(StepChunk, line, "")
	if !c.offers("CHUNKING") || err != nil || n < 0 || last != "" && !isLast {
		if err := c.reply(ev, answer{501, "5.5.4 syntax: BDAT size [LAST]"}, nil); err != nil {
			return err
		}
		return c.end(EndClose) // what follows cannot be told from commands
	}
	b, err := c.readChunk(n)
	if err != nil {
		return err
	}
	if c.tx == nil || len(c.tx.Rcpts) == 0 {
		return c.reply(ev, answer{503, "5.5.1 no valid recipients"}, nil)
	}
	c.bdat = append(c.bdat, b...)
	if !isLast {
		return c.reply(ev, answer{250, "2.0.0 " + count + " octets"}, nil)
	}
	return c.finish(c.bdat, int64(len(c.bdat)))
}

// finish ends a transaction whose message was read in full.
func (c *sinkConn) finish(body []byte, size int64) error {
	m := c.tx
	m.Body, m.Size, m.Time = body, size, time.Now()
	if c.sink.cfg.DiscardBody {
		m.Body = nil
	}
	var err error
	if c.sink.cfg.LMTP {
		err = c.finishLMTP(m, body)
	} else {
		err = c.finishSMTP(m, body)
	}
	c.reset()
	return err
}

// healthyDot is what a sink without a hook says to a finished message for the given recipients, after delivering it.
func (c *sinkConn) healthyDot(m *Message, body []byte, rcpts []Rcpt) answer {
	if c.sink.cfg.MaxSize > 0 && m.Size > c.sink.cfg.MaxSize {
		return answer{552, "5.3.4 message too big"}
	}
	for _, r := range rcpts {
		if c.sink.cfg.Deliver == nil {
			break
		}
		if err := c.sink.cfg.Deliver(m.From, r.Addr, body); err != nil {
			return answer{451, "4.3.0 delivery failed: " + strings.ReplaceAll(err.Error(), "\n", " ")}
		}
	}
	return answer{250, fmt.Sprintf("2.0.0 accepted as %d.%d", m.Conn, m.Transaction)}
}

// settleDot asks the hook about the dot and delivers unless the hook refuses.
func (c *sinkConn) settleDot(m *Message, body []byte, rcpts []Rcpt, ev Event) (Action, answer) {
	a := c.sink.ask(ev)
	if ans := a.over(answer{250, ""}); !a.done(ans) {
		return a, a.over(answer{451, "4.3.0 not accepted"})
	}
	ans := c.healthyDot(m, body, rcpts)
	if ans.ok() {
		ans = a.over(ans)
	} else {
		a.Accept = false
	}
	return a, ans
}

func (c *sinkConn) finishSMTP(m *Message, body []byte) error {
	a, ans := c.settleDot(m, body, m.Rcpts, c.event(StepDot, ".", ""))
	accepted := a.done(ans)
	if accepted {
		c.sink.record(m)
	}
	c.tx = nil
	if err := c.performDot(a, ans, m); err != nil {
		return err
	}
	return c.after(StepDot, ".", "")
}

// performDot is perform for the reply to a finished message. Message.Replied is set before the write and taken back when
// the write fails, so that a client that has read its reply never finds it unset.
func (c *sinkConn) performDot(a Action, ans answer, m *Message, rcpts ...string) error {
	if err := c.pause(a); err != nil {
		return err
	}
	whole := ans.ok() && !a.Silent && !a.Half && a.Raw == nil
	if whole {
		c.sink.markReplied(m, true, rcpts)
	}
	if err := c.emit(a, ans); err != nil {
		c.sink.markReplied(m, false, rcpts)
		return err
	}
	return c.conclude(a, ans)
}

// lmtpVerdict is the outcome for one recipient after the dot.
type lmtpVerdict struct {
	rcpt   Rcpt
	action Action
	answer answer
}

// finishLMTP settles every recipient first, so that the message is recorded once, with those that were accepted, before
// any reply leaves. Recipients behind one whose action ends the session are never settled.
func (c *sinkConn) finishLMTP(m *Message, body []byte) error {
	var verdicts []lmtpVerdict
	var accepted []Rcpt
	for _, r := range m.Rcpts {
		a, ans := c.settleDot(m, body, []Rcpt{r}, c.event(StepDot, ".", r.Addr))
		verdicts = append(verdicts, lmtpVerdict{r, a, ans})
		if a.done(ans) {
			accepted = append(accepted, r)
		}
		if a.ends(ans.code) {
			break
		}
	}
	m.Rcpts = accepted
	if len(accepted) > 0 {
		c.sink.record(m)
	}
	c.tx = nil
	for _, v := range verdicts {
		if err := c.performDot(v.action, v.answer, m, v.rcpt.Addr); err != nil {
			return err
		}
		if err := c.after(StepDot, ".", v.rcpt.Addr); err != nil {
			return err
		}
	}
	return nil
}

// parsePath reads "MAIL FROM:<path> PARAM=X" after the given prefix. A quoted local part may hold any character.
func parsePath(line, prefix string) (addr string, params []string, ok bool) {
	if len(line) < len(prefix) || !strings.EqualFold(line[:len(prefix)], prefix) {
		return "", nil, false
	}
	rest := strings.TrimLeft(line[len(prefix):], " ")
	if !strings.HasPrefix(rest, "<") {
		return "", nil, false
	}
	quoted := false
	for i := 1; i < len(rest); i++ {
		switch ch := rest[i]; {
		case quoted && ch == '\\':
			i++
		case ch == '"':
			quoted = !quoted
		case ch == '>' && !quoted:
			return rest[1:i], strings.Fields(rest[i+1:]), true
		}
	}
	return "", nil, false
}
