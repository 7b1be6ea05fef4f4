// Package disk is the embedded store: it keeps queued mail, the users with
// their states, and the backfill's ledger in one directory on a local disk.
//
//	queue.db   SQLite: messages, recipients, users, history, ledger; `sqlite3 queue.db "select * from queue"` shows the queue
//	bodies/    segments of many bodies each, and a file for each body over 1 MiB
//	journal/   what became of mail, in files of package journal; their newest part is in queue.db (outbox.go)
//	doubt      what is being delivered, for a process that is killed
//	reserve    room that makes way when the disk is full
//	lock       keeps a second process out
//
// One goroutine, the writer, changes the database. It collects what arrives
// while it is busy into one transaction: bodies are appended to a segment and
// synced, then the transaction is committed and synced, then the callers are
// answered. After any write, sync or commit that fails for another reason than
// a full disk the store stops for good: what is on the disk then is not known,
// and a second sync would lie.
//
// On a full disk new mail is refused and what is queued still leaves: the
// reserve makes way for what settling has to write, and is made again as soon
// as there is room (reserve.go).
//
// Claims and leases live in memory, in a window of bounded size; the rest of
// the queue waits on disk and is brought in by due time. A change of a user's
// state is one step: everything claimed after it goes by it, and mail on disk
// is filed again in slices behind it.
//
// Start reading at [Store], then writer.go.
package disk
