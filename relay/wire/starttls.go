package wire

import (
	"crypto/tls"
	"time"
)

// handshakeTimeout bounds a TLS handshake when IdleTimeout is longer.
const handshakeTimeout = time.Minute

// TLSUse says when the clients of a listener speak TLS.
type TLSUse uint8

// The ways.
const (
	// TLSOffered offers STARTTLS and leaves the choice to the client.
	TLSOffered TLSUse = iota
	// TLSRequired takes no mail before STARTTLS. It is for a listener that is not
	// an MX: strangers are not bound to know TLS (RFC 3207, 4).
	TLSRequired
	// TLSImplicit is TLS from the first byte (RFC 8314, 3.3).
	TLSImplicit
	// TLSNever does not offer STARTTLS.
	TLSNever
)

// needTLS is the answer of a listener that takes nothing in clear (RFC 3207, 4).
const needTLS = "530 5.7.0 must issue a STARTTLS command first"

// clearRefused refuses what a client may not do before STARTTLS. A chunk comes
// behind BDAT whatever the answer, so that has its own way.
func (c *Conn) clearRefused(word []byte) bool {
	if c.l.cfg.TLSUse != TLSRequired || c.tls != nil {
		return false
	}
	switch string(word) {
	case "EHLO", "HELO", "STARTTLS", "NOOP", "RSET", "QUIT", "BDAT":
		return false
	}
	c.fail(needTLS)
	return true
}

// openTLS is the handshake of a listener with implicit TLS, in front of the
// greeting. Until it is over there is nobody who could understand a reply.
func (c *Conn) openTLS() bool {
	config := c.l.tlsConfig()
	if config == nil {
		c.lost = true
		c.refuseConn("no_certificate", "")
		return false
	}
	c.handshake(config)
	return !c.lost && c.phase != phaseDone
}

func (l *Listener) tlsConfig() *tls.Config {
	if l.cfg.TLS == nil || l.cfg.TLSUse == TLSNever {
		return nil
	}
	return l.cfg.TLS()
}

// startTLS answers STARTTLS (RFC 3207). It is taken at any time outside a
// transaction; afterwards nothing that the client said before counts.
func (c *Conn) startTLS(cmd cmdLine) {
	if c.tls != nil {
		c.fail("503 5.5.1 TLS is already in use")
		return
	}
	config := c.l.tlsConfig()
	switch {
	case config == nil:
		c.fail("502 5.5.1 TLS is not available")
	case len(cmd.arg) > 0:
		c.fail("501 5.5.4 STARTTLS has no parameters")
	case c.tx.begun:
		c.fail("503 5.5.1 a transaction is open, RSET ends it")
	case c.r < c.w:
		// What was sent in clear behind STARTTLS would be taken as if it had come
		// through TLS. Somebody in between put it there.
		c.cutOff("tls_injection", "554 5.5.1 commands were sent behind STARTTLS, closing connection")
	default:
		c.say("220 2.0.0 ready to start TLS")
		if c.flush(); !c.lost {
			c.handshake(config)
		}
	}
}

func (c *Conn) handshake(config *tls.Config) {
	c.mu.Lock()
	if c.shutting() {
		c.mu.Unlock()
		c.end("")
		return
	}
	c.readBy = time.Time{}
	c.armRead(min(handshakeTimeout, c.l.cfg.IdleTimeout))
	c.armWrite()
	c.waiting = true
	c.mu.Unlock()

	conn := tls.Server(c.raw, config)
	err := conn.Handshake()

	c.mu.Lock()
	c.waiting = false
	c.readBy = time.Time{}
	c.mu.Unlock()
	if h := c.l.cfg.Metrics.Handshake; h != nil {
		h(err == nil)
	}
	if err != nil {
		c.l.cfg.Logger.Info("smtp TLS handshake failed", "remote", c.remote, "conn", c.number, "error", err)
		c.lost = true // nothing that we say now could be understood
		return
	}
	state := conn.ConnectionState()
	c.mu.Lock()
	c.net = conn // under the lock for Close
	c.mu.Unlock()
	c.tls = &state
	c.helo, c.esmtp = "", false
	c.greeted, c.told = false, false
	c.tx = transaction{}
}
