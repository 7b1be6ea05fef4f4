package backfill

import "context"

// Ledger keeps what is known of the copied messages, as one small record per
// user and name. The records' content is this package's own; a store keeps
// bytes. Each call is atomic, and a nil error means that it is durable.
type Ledger interface {
	// LoadLedger gives all records of a user by name; an empty map when there
	// are none.
	LoadLedger(ctx context.Context, user string) (map[string][]byte, error)
	// SaveLedger writes one record; nil data removes it.
	SaveLedger(ctx context.Context, user, name string, data []byte) error
}
