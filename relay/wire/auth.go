package wire

import (
	"bytes"
	"encoding/base64"
	"net/netip"
	"strings"
)

// AuthUse says whether the clients of a listener log in.
type AuthUse uint8

// The ways.
const (
	// AuthNever does not know AUTH.
	AuthNever AuthUse = iota
	// AuthOffered leaves the choice to the client.
	AuthOffered
	// AuthRequired takes no mail of a client that has not logged in, unless it is
	// trusted.
	AuthRequired
)

// AuthVerdict is the answer to a login.
type AuthVerdict uint8

// The verdicts.
const (
	AuthRefused AuthVerdict = iota // wrong
	AuthGranted
	AuthLater // not looked at
)

// Auth tells whether a password is that of a name. It may take its time, and
// must end when the listener is shut down.
type Auth func(client netip.Addr, user, password string) AuthVerdict

// maxAuthErrors is how many logins may fail on one connection.
const maxAuthErrors = 3

// logins tells whether AUTH is offered on this connection as it is: under TLS
// only.
func (c *Conn) logins() bool {
	return c.l.cfg.Auth != nil && c.l.cfg.AuthUse != AuthNever && c.tls != nil
}

// authRefused refuses mail where the client has to log in first.
func (c *Conn) authRefused() bool {
	cfg := &c.l.cfg
	if cfg.AuthUse != AuthRequired || c.user != "" || c.certified || cfg.Trusted != nil && cfg.Trusted(c.remote.Addr()) {
		return false
	}
	c.fail("530 5.7.0 authentication is required here")
	return true
}

// auth answers AUTH (RFC 4954) with PLAIN (RFC 4616) and LOGIN. Nothing of the
// exchange is logged or kept.
func (c *Conn) auth(cmd cmdLine) {
	cfg := &c.l.cfg
	mech, initial, _ := strings.Cut(string(cmd.arg), " ")
	// The buffer is another connection's later, and that may be as soon as we wait
	// for a response: not a moment later than here.
	clear(cmd.line)
	switch {
	case cfg.Auth == nil || cfg.AuthUse == AuthNever:
		c.fail("502 5.5.1 command not implemented")
	case c.tls == nil:
		c.fail("538 5.7.11 a password is taken under TLS only, issue STARTTLS first")
	case !c.greeted:
		c.fail("503 5.5.1 say EHLO first")
	case c.tx.begun || c.user != "":
		c.fail("503 5.5.1 a transaction is open, or you have logged in")
	case strings.EqualFold(mech, "PLAIN"):
		c.authPlain(initial)
	case strings.EqualFold(mech, "LOGIN"):
		c.authLogin(initial)
	default:
		c.fail("504 5.5.4 this mechanism is not offered")
	}
}

// authPlain takes authorisation identity, name and password in one response.
func (c *Conn) authPlain(initial string) {
	text, ok := c.response(initial, "334 ")
	if !ok {
		return
	}
	part := strings.Split(text, "\x00")
	if len(part) != 3 || part[0] != "" && part[0] != part[1] {
		c.fail("501 5.5.2 malformed response, or an identity that is not the name's own")
		return
	}
	c.verify(part[1], part[2])
}

func (c *Conn) authLogin(initial string) {
	user, ok := c.response(initial, "334 VXNlcm5hbWU6") // Username:
	if !ok {
		return
	}
	password, ok := c.response("", "334 UGFzc3dvcmQ6") // Password:
	if !ok {
		return
	}
	c.verify(user, password)
}

// response is what the client answers to a challenge, or what it has said
// already.
func (c *Conn) response(initial, challenge string) (text string, ok bool) {
	switch initial {
	case "":
		c.say(challenge)
		raw, more := c.peekLine()
		if !more {
			return "", false
		}
		initial = string(bytes.TrimRight(raw, "\r\n"))
		clear(raw) // the buffer is another connection's later
		c.consume()
	case "=":
		return "", true // RFC 4954, 4: an empty initial response
	}
	if initial == "*" {
		c.fail("501 5.7.0 authentication cancelled")
		return "", false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(initial)
	if err != nil {
		c.fail("501 5.5.2 the response is not base64")
		return "", false
	}
	return string(b), true
}

func (c *Conn) verify(user, password string) {
	cfg := &c.l.cfg
	c.flush()
	verdict := AuthRefused
	if user != "" && password != "" && len(user) <= maxHelo && strings.IndexFunc(user, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0 {
		verdict = cfg.Auth(c.remote.Addr(), user, password)
	}
	if f := cfg.Metrics.Login; f != nil {
		f(verdict)
	}
	switch verdict {
	case AuthGranted:
		c.user = user
		c.say("235 2.7.0 welcome")
	case AuthLater:
		c.cutOff("login_later", "454 4.7.0 logins are not possible just now, try again later")
	default:
		cfg.Logger.Warn("smtp login refused", "remote", c.remote, "conn", c.number, "user", user)
		if c.count.logins++; c.count.logins >= maxAuthErrors {
			c.cutOff("logins", "421 4.7.0 "+cfg.Hostname+" too many failed logins, closing connection")
			return
		}
		c.fail("535 5.7.8 name or password is wrong")
	}
}
