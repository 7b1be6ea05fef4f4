package imapconn

import (
	"fmt"
	"time"
)

// keep has Courier settle the UIDs of the open folder. Courier numbers messages
// when somebody selects the folder; one that only ever got deliveries is numbered
// anew for each EXAMINE, with the time as its UIDVALIDITY, and nothing would be
// known again. SELECT writes the numbers down; it takes the mark \Recent off the
// messages, and nothing else. The connection is one of its own: what was asked
// ahead on the reader's belongs to the numbers that are void now.
func (r *Reader) keep() error {
	if r.kept == nil {
		r.kept = map[string]bool{}
	}
	r.kept[r.folder.Wire] = true
	r.abort()
	s, err := r.d.Open(r.ctx, r.acct)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Select(r.folder.Wire); err != nil {
		return fmt.Errorf("have the server settle its UIDs: %w", err)
	}
	return nil
}

// courierEpoch is what Courier takes off the Unix time for a UIDVALIDITY.
const courierEpoch = 1_000_000_000

// young tells whether a UIDVALIDITY may be the time of this moment, by a clock
// that is wrong by no more than an hour.
func young(validity uint32) bool {
	near := func(sec int64) bool { return time.Since(time.Unix(sec, 0)).Abs() < time.Hour }
	return near(int64(validity)+courierEpoch) || near(int64(validity))
}
