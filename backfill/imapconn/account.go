// Package imapconn opens IMAP connections and moves messages over them: reading
// through go-imap behind an adapter that survives what real servers send, and
// appending on the raw connection.
//
// Start reading at [Account].
package imapconn

import "crypto/tls"

// TLSMode says how a connection is protected.
type TLSMode string

// The modes.
const (
	TLSImplicit TLSMode = "imaps"         // TLS from the first byte
	TLSStart    TLSMode = "imap+starttls" // STARTTLS, required
	TLSNone     TLSMode = "imap+insecure"
)

// Server is an IMAP server.
type Server struct {
	Address string // host:port
	Mode    TLSMode
	TLS     *tls.Config // nil: the system's roots, the name of Address
}

// Account is one user's mailbox on one server.
type Account struct {
	Server Server
	Login  Login
	// Guard is asked right before octets are sent; an error ends the connection
	// instead. It is for a process that may have been stopped for a while, and
	// must not go on with what is another's meanwhile. Nil allows everything.
	Guard func() error
}
