// Package relay speaks SMTP on both sides of the queue. In front of it, a
// [Server] takes mail from anybody for our domains and answers 250 when the
// queue has it on stable storage. Behind it, deliveries go to the old and the
// new mail system and to the senders of bounces.
//
// It keeps nothing itself: what was accepted is in the queue, who lives where
// is in the router, and the bytes of a connection are guarded by the
// sub-package wire, beneath go-smtp.
//
// Start reading at [Server] for mail that comes in; session.go is one
// connection, [Verifier] asks both sides whether they know an address. Mail goes
// out by a [Deliverer] over the connections of its [Backend] values.
package relay
