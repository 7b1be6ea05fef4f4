package backfill_test

import (
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
)

// TestLeft: a sweep counts what it saw and could not carry, whether new refuses the
// message or wants it slower, and counts nothing of what is carried.
func TestLeft(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"refused":   "NO [CANNOT] not this one",
		"full":      "NO [OVERQUOTA] the mailbox is full",
		"throttled": "NO [UNAVAILABLE] slower please",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSides(t)
			put(t, s.src, user, "INBOX", letters(0, 3, 100)...)
			passOn(t, s.c, s.job, "forth")
			put(t, s.src, user, "INBOX", letters(3, 5, 100)...)
			put(t, s.src, user, "INBOX.Work", letters(5, 6, 100)...)
			at := s.job
			at.Dest.Server.Address = newGate(t, s.dst.IMAPAddr, func(cmd string) string {
				if strings.HasPrefix(cmd, "APPEND") {
					return answer
				}
				return ""
			}).addr
			slow := &backfill.Copier{Ledger: s.c.Ledger, Log: s.c.Log, Settle: 100 * time.Millisecond, Patience: time.Millisecond}
			sweep, o := way(at, "settled forth")
			r, err := slow.Pass(t.Context(), sweep, o)
			if r.Left+r.Wrapped != 3 || (err != nil) != (name != "refused") {
				t.Errorf("%d left, %d wrapped, %v: %+v", r.Left, r.Wrapped, err, r)
			}
			o.RetryRefused = true
			sweep, _ = way(s.job, "settled forth")
			r, err = s.c.Pass(t.Context(), sweep, o)
			if err != nil || r.Copied != 3 || r.Left != 0 {
				t.Errorf("afterwards: %+v, %v", r, err)
			}
		})
	}
}
