// Package mail holds the words that every part of Crossfade speaks: an
// [Address] in normal form, the [Envelope] of an accepted message with its
// [Recipient]s, the [Route] a recipient takes, and [Reply], the one typed SMTP
// error. It does no I/O and imports nothing of ours.
//
// Start reading at [Envelope].
package mail
