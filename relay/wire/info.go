package wire

import (
	"crypto/tls"
	"net/netip"
	"time"
)

// Info is what is known of a connection at one moment. EHLO and STARTTLS change
// it, even between two messages, so a session asks anew for each message.
type Info struct {
	// Number counts the connections of a listener, from 1.
	Number uint64
	// Start is when the connection was accepted.
	Start time.Time
	// Remote and Local are the two ends; IPv4 is never in its IPv6 form. They are
	// the zero value when the listener below has no such addresses.
	Remote, Local netip.AddrPort
	// Helo is the argument of EHLO or HELO as given: printable ASCII, up to 255
	// bytes, proven by nothing, and not safe in a header without a check: it may
	// hold spaces, quotes and parentheses.
	Helo string
	// ESMTP says that the client used EHLO.
	ESMTP bool
	// TLS is nil in clear. It is shared: do not change it.
	TLS *tls.ConnectionState
	// Certified says that the client showed a certificate that Config.ClientCert
	// knows.
	Certified bool
	// User is the name that the client has logged in with; empty: it has not.
	User string
}

// Protocol is the "with" word of a Received header: SMTP, ESMTP, ESMTPS or ESMTPSA (RFC 3848).
func (i Info) Protocol() string {
	switch {
	case i.TLS != nil && i.User != "":
		return "ESMTPSA"
	case i.TLS != nil:
		return "ESMTPS"
	case i.ESMTP:
		return "ESMTP"
	}
	return "SMTP"
}

// Info tells what is known of the connection now.
func (c *Conn) Info() Info {
	return Info{
		Number: c.number, Start: c.start,
		Remote: c.remote, Local: addrPort(c.raw.LocalAddr()),
		Helo: c.helo, ESMTP: c.esmtp, TLS: c.tls, Certified: c.certified, User: c.user,
	}
}

// LastCommand is the MAIL or RCPT line as the client sent it, without its line
// end. It is for Session.Mail and Session.Rcpt; at other times it is empty.
func (c *Conn) LastCommand() string { return string(c.last) }

// LastPath is the path of the line that LastCommand returns, without the angle
// brackets and with its quotes: the library unquotes local parts, so that
// <"a@b"@c> and <a@b@c> look the same in Session.Rcpt. It is empty for <>, for a
// path that the library will refuse, and outside Session.Mail and Session.Rcpt.
// For <postmaster> it is the word, not [Config.Postmaster].
func (c *Conn) LastPath() string {
	if c.last == nil {
		return ""
	}
	return string(c.last[c.lastPath[0]:c.lastPath[1]])
}

// LineEndsSettled is the number of line ends that were not CRLF and were made so
// in the current message. It is final when the Reader of Session.Data has
// returned io.EOF.
func (c *Conn) LineEndsSettled() int { return c.settle.settled }

// Chunked says that the current message comes by BDAT.
func (c *Conn) Chunked() bool { return c.tx.bdat }
