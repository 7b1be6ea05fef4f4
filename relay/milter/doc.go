// Package milter lets the organisation's own scanner (Rspamd, SpamAssassin,
// ClamAV and others that speak the milter protocol of Sendmail and Postfix) look
// at each message before it is accepted, so that moving the MX to the relay does
// not mean losing the spam filter.
//
// A scanner may refuse a message, put it off, and add header fields, which go on
// top. It may not change what the sender wrote, and cannot make an accepted message
// disappear: see [Filter].
package milter
