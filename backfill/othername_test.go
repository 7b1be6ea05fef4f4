package backfill_test

import (
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"
)

// TestRefusedNamesStayApart: folders whose names the destination refuses, and that
// would get the same name instead, stay two, and are found again when the ledger
// is lost.
func TestRefusedNamesStayApart(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for i, f := range []string{"a#b", "a%b", "a_b", "c%d", "e#f"} {
		put(t, src, user, "INBOX."+f, letters(2*i, 2*i+2, 10)...)
	}
	put(t, dst, user, "c_d", letters(40, 41, 10)...) // of the user
	job := jobOf(src, dst)
	job.Dest.Server.Address = newGate(t, dst.IMAPAddr, func(cmd string) string {
		if strings.HasPrefix(cmd, "CREATE ") && strings.ContainsAny(cmd, "#%") {
			return instead + `CREATE ""`
		}
		return ""
	}).addr
	r := mustPass(t, copier(t, newLedger(t)), job, backfill.Options{})
	before := holds(t, dst, user, true)
	if r.Copied != 10 || len(before) != 6 || len(problems(r, backfill.ClassName)) != 4 || len(before["a_b"]) != 2 || len(before["c_d"]) != 3 || len(before["e_f"]) != 2 {
		t.Errorf("%v, %+v", folders(before), r)
	}
	c := copier(t, newLedger(t))
	for i := range 2 {
		if r = mustPass(t, c, job, backfill.Options{Final: true}); r.Copied != 0 || i == 0 && r.Adopted != 10 || i == 1 && !r.Clean() {
			t.Errorf("pass %d without a ledger: %+v", i, r)
		}
		same(t, before, holds(t, dst, user, true))
	}
	if v, err := c.Verify(t.Context(), job); err != nil || !v.OK() {
		t.Errorf("%+v, %v", v, err)
	}
}
