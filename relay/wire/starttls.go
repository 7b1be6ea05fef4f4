package wire

import (
	"crypto/tls"
	"time"
)

// handshakeTimeout bounds a TLS handshake when IdleTimeout is longer.
const handshakeTimeout = time.Minute

func (l *Listener) tlsConfig() *tls.Config {
	if l.cfg.TLS == nil {
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
