package backfill_test

import (
	"bytes"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// TestMungedHeaders: a destination that makes 8-bit octets in headers "X", as Cyrus does unless it is told not to. Where it
// tells no UIDs the messages must be known by what is left of them: not known, they were reported as altered beyond
// recognition, missing in Verify, and copied twice after a lost answer. What only looks the same there is another message.
func TestMungedHeaders(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: "IMAP4rev1 MULTIAPPEND"}))
	message := func(subject string) mailtest.StoredMessage {
		return mailtest.StoredMessage{Body: []byte("Subject: " + subject + "\r\n\r\nbody with \xfc\r\n")}
	}
	put(t, src, user, "INBOX", message("\xfc"), message("\xe9"), message("plain"))
	p := newProxy(t, dst.IMAPAddr, func(_ *proxy, b []byte) []byte {
		b = bytes.ReplaceAll(b, []byte("Subject: \xfc"), []byte("Subject: X"))
		return bytes.ReplaceAll(b, []byte("Subject: \xe9"), []byte("Subject: X"))
	})
	c := copier(t, newLedger(t))
	job := jobOf(src, dst)
	job.Dest.Server.Address = p.addr
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 3 || len(r.Problems) != 0 {
		t.Errorf("%+v", r)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() || len(v.Problems) != 2 || v.Problems[0].Class != backfill.ClassAltered {
		t.Errorf("%+v, %v", v, err)
	}
	if r := mustPass(t, copier(t, newLedger(t)), job, backfill.Options{}); r.Adopted != 3 || r.Copied != 0 {
		t.Errorf("a new ledger: %+v", r)
	}
	// The other way round nothing was munged: two different messages stay two.
	put(t, src, "eva@example.org", "INBOX", message("\xfc"))
	put(t, dst, "eva@example.org", "INBOX", message("\xe9"))
	if r := mustPass(t, copier(t, newLedger(t)), jobFor(src, dst, "eva@example.org"), backfill.Options{}); r.Adopted != 0 || r.Copied != 1 {
		t.Errorf("another message was taken for it: %+v", r)
	}
}

// TestFolderNamesBeyondTheBasicPlane: Courier refuses them.
func TestFolderNamesBeyondTheBasicPlane(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	dst := realtest.StartCourier(t, realtest.CourierOptions{})
	put(t, src, user, "Gr\u00fc\u00dfe \U0001f680/2024", letters(0, 3, 10)...)
	c := copier(t, newLedger(t))
	job := backfill.Job{User: user, Source: account(src.IMAPAddr, user, "secret"), Dest: account(dst.IMAPAddr, user, "secret")}
	r := mustPass(t, c, job, backfill.Options{})
	if got := dst.Folders(t, user); r.Copied != 3 || len(problems(r, backfill.ClassName)) == 0 || len(got) < 2 {
		t.Errorf("%+v, %q", r, got)
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
	if r := mustPass(t, c, job, backfill.Options{Final: true}); !r.Clean() {
		t.Errorf("%+v", r)
	}
}
