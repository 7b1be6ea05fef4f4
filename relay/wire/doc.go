// Package wire is the guard between the network and go-smtp: a net.Conn that
// speaks SMTP to the client and a narrowed, safe SMTP to the library above it.
//
// go-smtp 0.25.1 is a good parser of envelopes and a poor guard of a port that
// strangers reach. The guard therefore answers by itself everything that is
// not an envelope (220, EHLO, HELO, STARTTLS, NOOP, VRFY, HELP, QUIT, unknown
// words) and gives the library only MAIL, RCPT, DATA and RSET, one line per
// Read. When the library reads again, it has answered: that lock-step tells the
// guard what was accepted, without parsing envelopes a second time. It does not
// decide who may send what to whom; that is the session's work.
//
// Start reading at [Conn.Read] (bytes towards the library), [Conn.Write]
// (replies towards the client) and settler (message bytes).
//
// # What the server above must look like
//
// Of smtp.Server set Domain, MaxMessageBytes, MaxRecipients and the Enable
// switches of what [Config.Extensions] advertises. Leave TLSConfig, LMTP,
// ReadTimeout, WriteTimeout and EnableBINARYMIME at zero, and set
// MaxLineLength to 0: the guard owns TLS, deadlines and line lengths (commands
// included), and the library's own check costs a look at every byte.
// MaxMessageBytes must be one more than the limit that SIZE announces, because
// the library refuses a message of exactly its limit.
//
// A session may read the message by [Conn.Body] instead of the Reader that the
// library gives it: the same bytes and errors, and much
// less work, for the library takes a message byte by byte.
//
// # Message bytes
//
// A DATA body ends at CR LF . CR LF and nowhere else (RFC 5321, 4.1.1.4). A line
// that holds a single dot and has any other line end before or after it (LF.LF,
// LF.CRLF, CRLF.LF, CR.CR and so on) is what SMTP smuggling is made of: the
// message is refused with 550 5.6.11, everything up to the true end is read as
// body and thrown away. Every other bare LF and every other bare CR becomes CRLF,
// for such a byte would be changed, or misread, by one of the systems behind us.
// A run of CRs directly before an LF is one line end, so mail that ends in CR CR
// LF . CR LF is taken, which the library alone would wait for until the client
// gave up. A dot behind a settled line end is message text, not dot-stuffing.
// Correct mail passes unchanged, NUL bytes too. [Conn.LineEndsSettled] tells how
// many line ends were changed.
//
// BDAT (RFC 3030) reaches the library as DATA: the guard counts the chunks,
// settles line ends and stuffs dots. So Session.Data runs in the connection's
// goroutine in both cases, and there is one way only in which a message can break
// off. Chunks have no end-of-data mark to fake: look-alikes are settled there,
// not refused. A message without a line end at its end gets one.
//
// A body that breaks off (FIN, RST, TLS close_notify, a deadline, RSET or QUIT
// between chunks) is an error to the Reader of Session.Data, never io.EOF:
// io.ErrUnexpectedEOF when the client has gone, [ErrReset] when it gave up the
// message, a [*RefusedError] when the guard refused the message. Whatever the session
// answers then is not sent: the client gets the guard's reply.
package wire
