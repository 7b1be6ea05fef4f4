// Package smtpclient speaks SMTP (RFC 5321) and LMTP (RFC 2033) to a mail
// server: one round trip for MAIL, RCPT and DATA, a reply for each recipient,
// a deadline for every step, and no final dot unless the message is whole and
// the caller still wants it delivered.
//
// It does not retry, resolve MX records, log in or pool connections; it does
// not use BDAT, because a chunk cannot be taken back the way a missing dot
// can. Whatever goes wrong between DATA and the final dot closes the
// connection hard: no QUIT and no RSET, because a server could read either as
// part of the message.
//
// Start reading at [Dial] and [Conn.Send].
package smtpclient
