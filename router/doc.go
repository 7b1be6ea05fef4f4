// Package router knows who lives where. It holds the users with their
// migration state, the table of transitions between states, the aliases, and
// [Router.Resolve], which turns the address of a RCPT command into recipients.
//
// It does not deliver and it does not store: users live in a [Table], which a
// store implements, and the route of a message is read from there by the store
// itself when a delivery is claimed (invariant I3).
//
// Start reading at [State] and [Router].
package router
