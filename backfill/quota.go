package backfill

import (
	"errors"
	"fmt"

	"crossfade/backfill/imapconn"
)

// quota says whether what is left to copy fits into the quota of the
// destination. It is a forecast: sizes are those that the source tells, servers
// count them in ways of their own, and mail arrives meanwhile.
func (p *pass) quota(plan *Plan) error {
	q, err := p.dst.Quota("INBOX")
	var e *imapconn.Error
	if err != nil && !errors.As(err, &e) {
		return inside("destination", err)
	}
	if err != nil {
		plan.Problems = append(plan.Problems, Problem{Class: ClassQuota, Text: "the destination does not tell its quota: " + e.Error()})
		return nil
	}
	bytes, messages := plan.CopyBytes, int64(plan.Copy)
	if q.Bytes >= 0 {
		plan.QuotaLeft = &q.Bytes
		if bytes > q.Bytes {
			plan.Problems = append(plan.Problems, Problem{Class: ClassQuota,
				Text: fmt.Sprintf("about %d octets are to be copied, and the quota of the destination has room for %d: raise it before", bytes, q.Bytes)})
		}
	}
	if q.Messages >= 0 && messages > q.Messages {
		plan.Problems = append(plan.Problems, Problem{Class: ClassQuota,
			Text: fmt.Sprintf("%d messages are to be copied, and the quota of the destination has room for %d: raise it before", messages, q.Messages)})
	}
	return nil
}
