package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crossfade/audit"
)

// audit asks the relay for its own audit, which knows nothing of the count that was
// made here, and has to say the same.
func (s *show) audit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := s.client.StartAudit(ctx, audit.Request{Mailboxes: true}); err != nil {
		return fmt.Errorf("beginning an audit: %w", err)
	}
	for {
		st, err := s.client.AuditStatus(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("asking how far the audit is: %w", err)
		case st.Error != "":
			return fmt.Errorf("the audit did not come to its end: %s", st.Error)
		}
		if !st.Running {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the audit does not end: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	doc, err := s.client.LastAudit(ctx, "")
	if err != nil {
		return fmt.Errorf("reading the audit: %w", err)
	}
	t := doc.Total
	if sent := s.book.total(s.book.sent); !doc.Clean || t.Accepted != sent || t.Missing != 0 {
		return errors.Join(ErrNotAll, fmt.Errorf("the audit says otherwise: clean %t, accepted %d (sent were %d), missing %d, %+v", doc.Clean, t.Accepted, sent, t.Missing, t.Differences))
	}
	s.say("the relay's own audit says the same, and signs it: accepted %d = delivered %d + bounced %d + queued %d + parked %d; missing 0",
		t.Accepted, t.Delivered, t.Bounced, t.Queued, t.Parked)
	return nil
}
