package redis

import (
	"context"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Records of the ledger are kept with one octet before them that says how.
const (
	plain      = 'p'
	compressed = 'z'
)

// LoadLedger implements [backfill.Ledger].
func (s *Store) LoadLedger(ctx context.Context, user string) (map[string][]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	var all map[string]string
	err := s.bodies.retry(ctx, func(ctx context.Context) (err error) {
		all, err = s.server.client.HGetAll(ctx, s.key("e:"+user)).Result()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("redis: load the ledger of %s: %w", user, err)
	}
	out := make(map[string][]byte, len(all))
	for name, data := range all {
		if out[name], err = unwrap(data); err != nil {
			return nil, fmt.Errorf("redis: the ledger of %s, record %q: %w", user, name, err)
		}
	}
	return out, nil
}

// SaveLedger implements [backfill.Ledger].
func (s *Store) SaveLedger(ctx context.Context, user, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	_, err := s.link.write(ctx, scLedger, s.link.now(), user, name, s.wrap(data), flag(data == nil), s.boot)
	return err
}

// KeepLedger writes a record where there is none, and gives the one that is there
// then: of several that write at once all get the same.
func (s *Store) KeepLedger(ctx context.Context, user, name string, data []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	said, err := s.link.write(ctx, scLedger, s.link.now(), user, name, s.wrap(data), "2", s.boot)
	if err != nil {
		return nil, err
	}
	kept, err := unwrap(asString(said))
	if err != nil {
		return nil, fmt.Errorf("redis: the ledger of %s, record %q: %w", user, name, err)
	}
	return kept, nil
}

func (s *Store) wrap(data []byte) []byte {
	if len(data) > 256 {
		if z := s.bodies.enc.EncodeAll(data, []byte{compressed}); len(z) < len(data) {
			return z
		}
	}
	return append([]byte{plain}, data...)
}

func unwrap(data string) ([]byte, error) {
	if data == "" {
		return nil, fmt.Errorf("it is empty")
	}
	switch data[0] {
	case plain:
		return []byte(data[1:]), nil
	case compressed:
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll([]byte(data[1:]), nil)
	}
	return nil, fmt.Errorf("it begins with %q: a newer Crossfade wrote it", data[0])
}
