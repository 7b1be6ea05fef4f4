// Package seal signs JSON documents so that they can be checked later, without
// the program that made them: with an Ed25519 key (RFC 8032), over a digest of
// each part, so that a check says which part is not what was signed.
//
// It knows nothing of what a document says.
//
// Start reading at [Sign] and [Check].
package seal
