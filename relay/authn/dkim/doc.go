// Package dkim has what signatures of DKIM (RFC 6376) and ARC (RFC 8617) are
// made of: tag lists, canonical forms of header and body, key records, and the
// two algorithms in use, rsa-sha256 (RFC 8301) and ed25519-sha256 (RFC 8463).
//
// Everything works on a message that streams by in pieces of any size: [Header]
// collects the header up to a bound and hands on the body, and [BodyHash] hashes
// the canonical body in linear time and constant memory. What a stranger can make
// this package do is bounded by the octets that he sent.
//
// It makes no lookups and knows nothing of verdicts; package arc is built on it.
// Start reading at [Header] and [Signature].
package dkim
