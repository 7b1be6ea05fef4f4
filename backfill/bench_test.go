package backfill_test

import (
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"
)

// BenchmarkPass copies mailboxes of 2,000 messages of 6.5 KB from one Dovecot to
// another.
func BenchmarkPass(b *testing.B) {
	const n = 2000
	src := realtest.StartDovecot(b, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(b, fast(realtest.DovecotOptions{}))
	put(b, src, user, "INBOX", letters(0, n, 6500)...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		job := jobOf(src, dst)
		job.Dest.Login.User = string(rune('a'+i)) + "@example.org" // an empty mailbox each time
		c := &backfill.Copier{Ledger: &fileLedger{path: b.TempDir() + "/ledger"}}
		if r, err := c.Pass(b.Context(), job, backfill.Options{}); err != nil || r.Copied != n {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "messages/s")
}
