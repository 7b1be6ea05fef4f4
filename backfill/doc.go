// Package backfill copies mailboxes from one IMAP server to another, or from
// another [Source] to an IMAP server: plan, copy, ledger, verify. It knows
// nothing of routing or of states; whoever calls it says which user, from where,
// to where.
//
// # What is one message
//
// A message is known by mailbox, UIDVALIDITY and UID on each side, and the
// ledger pairs the two. What lies on the other side without being in the
// ledger is matched by content key, a SHA-256 of the canonical message,
// counted as a multiset: two equal messages on the source are two on the
// destination. Headers are never an identity. Canonical means that line ends
// are CRLF, and nothing else: type identity defines this key, the looser one of
// the class "altered" (NUL, bare CR, line ends at the end), and the one by
// which the two copies of a message that our relay delivered to both sides are
// known as one.
//
// # Exactly once
//
// Before a batch is appended the ledger gets a journal: UIDVALIDITY and UIDNEXT
// of the destination and the content keys of the batch. After it, the UID
// pairs. A pass that finds a journal looks at the destination's UIDs from that
// UIDNEXT on, pairs what it recognises, and appends the rest. Records of the
// ledger are JSON, one for each folder of the source ("folder/NAME", with runs
// of pairs as "1:5000>1") and one for the flags last agreed on
// ("flags/NAME"). Sources without UIDs have theirs in "numbers/NAME" ([Numbers]).
//
// # What is carried over
//
// Bodies byte for byte, INTERNALDATE, system flags and keywords, later changes
// of flags, folders with their special use, subscriptions (once), empty folders
// too. Names lose the namespace prefix and separator of one side and get those
// of the other; folders of other users and shared ones are left alone.
//
// A message that the destination refuses is carried as an attachment of a mail in
// a folder of ours (see attic), and one that is refused even so is reported with
// the server's words and offered again in later passes.
//
// Deletions on the source follow with Options.Deletions, up to a ceiling, and what
// was moved there is in its new folder and no longer in the old one.
//
// Virtual folders (\All, \Flagged) are copied as folders like any other.
//
// Start reading at [Copier.Pass].
package backfill
