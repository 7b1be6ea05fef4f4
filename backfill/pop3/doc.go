// Package pop3 reads a mailbox over POP3 (RFC 1939), as a source of package
// backfill. It needs UIDL, knows TLS, STLS (RFC 2595), USER and AUTH PLAIN (RFC
// 5034), pipelines where the server says that it may (RFC 2449), and never
// deletes anything.
//
// POP3 shows the INBOX only, without flags and dates. Start reading at [Source].
package pop3
