// Package backfill copies mailboxes from one IMAP server to another: plan,
// copy, ledger, verify. It knows nothing of routing or of states; whoever
// calls it says which user, from where, to where.
//
// A message is known by mailbox, UIDVALIDITY and UID on each side, and the
// ledger pairs the two. What lies on the other side without being in the
// ledger is matched by content key, a SHA-256 of the canonical message,
// counted as a multiset. Headers are never an identity.
//
// Start reading at [Copier.Pass].
package backfill
