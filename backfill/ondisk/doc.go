// Package ondisk reads mailboxes from the disk of a mail server: trees of
// Maildirs, as Dovecot and Courier keep them, and trees of mbox files. Its
// types are sources of package backfill. It never writes into a tree, and what
// a symbolic link shows outside of it is refused.
//
// It does not know whose mailbox lies where: whoever makes a [Maildir] or an
// [Mbox] says so. Start reading there.
package ondisk
