// Package arc verifies and extends the Authenticated Received Chain of a message
// (RFC 8617): what each system on the way found out about the sender, sealed by
// it, so that who comes later can rely on it where SPF and DKIM no longer help.
//
// A [Verifier] judges the chain that a message comes with; the [Result] says what
// belongs into Authentication-Results, and whether a sealer that one trusts found
// the message to be genuine ([Result.Vouched]). A [Sealer] adds a set of one's
// own. Both are given the message as it streams by, in pieces of any size: the
// header up to a bound, of which digests alone are kept when it is over, then the
// body.
//
// What a message can cost is bounded: 50 sets (RFC 8617, 4.2.1), at most 100
// signatures of keys of at most 4096 bits, one lookup for each different key, all
// of them within [Config.Timeout]. A chain that cannot be judged because the DNS
// fails is neither good nor bad ([TempError]), and is left as it is.
//
// Signatures themselves are in package dkim. Start reading at [Verifier].
package arc
