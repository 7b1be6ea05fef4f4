package cutover

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// requestsOf is the ledger's user under which requests are kept; it is no
// address, so it cannot meet a user's own records.
const requestsOf = "conductor"

// stored is a Request as it is kept.
type stored struct {
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Sync   bool      `json:"sync,omitempty"`
	Allow  bool      `json:"allow_deletions,omitempty"`
	Retry  bool      `json:"retry_refused,omitempty"`
	At     time.Time `json:"at,omitzero"`
	// Back asks for a rollback; Epoch is that of the user when it was asked for.
	Back   bool   `json:"rollback,omitempty"`
	Mirror bool   `json:"mirror,omitempty"`
	Epoch  uint64 `json:"epoch,omitempty"`
}

// saveRequest keeps req over a restart. A request by nobody is forgotten.
func (c *Conductor) saveRequest(ctx context.Context, req Request) error {
	if req.By == "" {
		return c.cfg.Requests.SaveLedger(ctx, requestsOf+":"+req.User, "request", nil)
	}
	data, err := json.Marshal(stored{
		By: req.By, Reason: req.Reason, Sync: req.Sync, Allow: req.AllowDeletions, Retry: req.RetryRefused, Back: req.Rollback, Mirror: req.Mirror, Epoch: req.Epoch, At: req.At,
	})
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	return c.cfg.Requests.SaveLedger(ctx, requestsOf+":"+req.User, "request", data)
}

// loadRequest gives what was last asked for a user. Nothing asked means that
// the user is kept in sync and no more.
func (c *Conductor) loadRequest(ctx context.Context, user string) (req Request, asked bool, err error) {
	req = Request{User: user, By: Itself, Sync: true}
	records, err := c.cfg.Requests.LoadLedger(ctx, requestsOf+":"+user)
	if err != nil {
		return req, false, fmt.Errorf("reading the request for %s: %w", user, err)
	}
	data, ok := records["request"]
	if !ok {
		return req, false, nil
	}
	var s stored
	if err := json.Unmarshal(data, &s); err != nil {
		return req, false, fmt.Errorf("reading the request for %s: %w", user, err)
	}
	return Request{
		User: user, By: s.By, Reason: s.Reason, Sync: s.Sync, AllowDeletions: s.Allow, RetryRefused: s.Retry, Rollback: s.Back, Mirror: s.Mirror, Epoch: s.Epoch, At: s.At,
	}, true, nil
}

// used takes back what was said for one pass, after it.
func (m *move) used(ctx context.Context, req Request) {
	if !req.AllowDeletions && !req.RetryRefused {
		return
	}
	m.c.asking.Lock()
	defer m.c.asking.Unlock()
	m.mu.Lock()
	if m.req != req {
		m.mu.Unlock()
		return // asked anew meanwhile
	}
	m.req.AllowDeletions, m.req.RetryRefused = false, false
	req = m.req
	m.mu.Unlock()
	if err := m.c.saveRequest(ctx, req); err != nil {
		m.c.cfg.Log.Warn("cutover: what was allowed for one pass stays on record", "user", m.user, "err", err)
	}
}

// allowTime is how long after it was said a word to delete more than the ceiling
// counts: it was said of what somebody had looked at then.
const allowTime = 24 * time.Hour

// mayDeleteMore tells whether the ceiling on deletions is lifted for a pass that
// begins now.
func (m *move) mayDeleteMore(req Request) bool {
	if !req.AllowDeletions {
		return false
	}
	if age := time.Since(req.At); age > allowTime {
		m.c.cfg.Log.Warn("cutover: what was said of deletions does not count any more: look again at what was deleted, then `crossfade backfill run --allow-deletions`",
			"user", m.user, "said", req.At, "by", req.By)
		return false
	}
	return true
}
