package wire

import (
	"crypto/tls"
	"net/netip"
	"time"
)

// handshakeTimeout bounds a TLS handshake when IdleTimeout is longer, and
// handshakeWait the wait for a place among those that are under way.
const (
	handshakeTimeout = 30 * time.Second
	handshakeWait    = 10 * time.Second
)

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

// needCert is the answer of a listener that wants a certificate of the client.
const needCert = "530 5.7.0 a client certificate that is known here is required"

// needTLS is the answer of a listener that takes nothing in clear (RFC 3207, 4).
const needTLS = "530 5.7.0 must issue a STARTTLS command first"

// clearRefused refuses what a client may not do before STARTTLS. A chunk comes
// behind BDAT whatever the answer, so that has its own way.
func (c *Conn) clearRefused(word []byte) bool {
	why := c.unfit()
	if why == "" {
		return false
	}
	switch string(word) {
	case "EHLO", "HELO", "STARTTLS", "NOOP", "RSET", "QUIT", "BDAT":
		return false
	}
	c.fail(why)
	return true
}

// unfit is why nothing is taken from the client as it is now; empty: it is.
func (c *Conn) unfit() string {
	switch cfg := &c.l.cfg; {
	case c.tls == nil && (cfg.TLSUse == TLSRequired || cfg.NeedCert):
		return needTLS
	case cfg.NeedCert && !c.certified:
		return needCert
	}
	return ""
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
	if !c.beginHandshake() {
		c.lost = true
		c.refuseConn("handshakes", "")
		return false
	}
	c.handshake(config)
	return !c.lost && c.phase != phaseDone
}

// beginHandshake waits for a place among the handshakes under way.
func (c *Conn) beginHandshake() bool {
	cfg := &c.l.cfg
	for _, free := range []func(netip.Addr) bool{cfg.Trusted, cfg.Known} {
		if free != nil && free(c.remote.Addr()) {
			return true
		}
	}
	c.placed = cfg.Counts.beginHandshake(cfg.MaxHandshakes, min(handshakeWait, cfg.IdleTimeout))
	return c.placed
}

// endHandshake gives the place back.
func (c *Conn) endHandshake() {
	if c.placed {
		c.placed = false
		c.l.cfg.Counts.endHandshake()
	}
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
	case !c.beginHandshake():
		callWith(c.l.cfg.Metrics.Refused, "handshakes")
		c.fail("454 4.7.0 TLS is not available just now, try again later") // RFC 3207, 4
	default:
		c.say("220 2.0.0 ready to start TLS")
		if c.flush(); c.lost {
			c.endHandshake()
			return
		}
		c.handshake(config)
	}
}

// handshake starts TLS, in a place that beginHandshake gave.
func (c *Conn) handshake(config *tls.Config) {
	defer c.endHandshake()
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
	c.certified = c.l.cfg.ClientCert != nil && len(state.PeerCertificates) > 0 && c.l.cfg.ClientCert(&state)
	c.helo, c.esmtp, c.user = "", false, ""
	c.greeted, c.told = false, false
	c.tx = transaction{}
}
