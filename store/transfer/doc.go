// Package transfer has the content of a whole store as a stream of records that
// is the same for every store: accounts (a user, the history, the ledger) in
// the order of addresses, then messages in the order of ids, each with its
// body and the present row of each recipient. [Copy] moves a store that way,
// all or nothing, and compares both sides in the end. [Audit] is the report of
// a store's look at itself.
//
// It knows no driver: the stores implement [Source] and [Sink] for a store
// that nobody else has open. Where a recipient is filed is not in the stream:
// it follows from the row and the user's state, and each store works it out.
//
// Start reading at [Copy], then at the dump and load files of the stores.
package transfer
