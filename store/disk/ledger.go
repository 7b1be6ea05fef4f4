package disk

import (
	"context"
	"database/sql/driver"
	"slices"
)

// LoadLedger implements [backfill.Ledger].
func (s *Store) LoadLedger(ctx context.Context, user string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.read(ctx, func(c *conn) error {
		return c.each(func(cols []driver.Value) error {
			out[asString(cols[0])] = append([]byte{}, asBytes(cols[1])...)
			return nil
		}, "SELECT name, data FROM ledger WHERE user = ?", user)
	})
	return out, err
}

// SaveLedger implements [backfill.Ledger].
func (s *Store) SaveLedger(ctx context.Context, user, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &op{name: "ledger", keys: []string{"l:" + user + "\x00" + name}}
	o.plan = func() error {
		_, err := s.db.run("DELETE FROM ledger WHERE user = ? AND name = ?", user, name)
		return err
	}
	if data != nil {
		data = slices.Clone(data)
		o.plan = func() error {
			_, err := s.db.run("INSERT INTO ledger (user, name, data) VALUES (?, ?, ?) ON CONFLICT (user, name) DO UPDATE SET data = excluded.data", user, name, data)
			return err
		}
	}
	return s.do(o)
}
