// Package journal is the record of what became of mail: what was accepted, where
// each delivery went and what the backend said, what was bounced, parked,
// re-routed, or deleted by an operator. Nothing in it is ever changed.
//
// A store writes the lines of the journal in the same atomic step as the change
// that they tell of, into its outbox: what was answered with 250 is in the
// journal, and so is what was delivered, at whatever instant the machine stops.
// A [Journal] moves the outbox, in batches, into blocks: compressed, with a
// checksum, each with the hash of the one before, and with an index of the
// messages that it tells of. Blocks lie on a [Shelf]: files beside the embedded
// store ([Dir]), or keys in Redis. The outbox forgets a batch only when its block
// is on stable storage; what dies in between is found by the numbers of the
// batches, which run on without a gap.
//
// The package knows what a line says and what a block looks like. It neither
// decides what is missing (package audit) nor speaks to a server.
//
// Start reading at [Entry], then [Journal].
package journal
