// Package demo is `crossfade demo`: a whole migration inside one process. It
// starts two small mail systems, fills the old one, runs the daemon exactly as
// `crossfade serve` would, sends mail through it without pause, and past it into
// the mailboxes that users do not read, while users are cut over one by one and one
// of them goes back and forth, waits until the windows are closed, and then counts
// every message.
//
// It fails when a message is missing from the mailbox its user reads, or is
// there twice, or has changed.
//
// Start reading at [Run].
package demo
