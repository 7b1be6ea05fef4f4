package backfill_test

import (
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"
)

// TestFilter: what is left out is counted wherever somebody may ask what became
// of it, also in a pass that looks into no folder, and comes when the filter goes.
func TestFilter(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	msgs := letters(0, 20, 100) // an hour apart
	msgs[15] = letter(15, 9000)
	put(t, src, user, "INBOX", msgs...)
	put(t, src, user, "INBOX.Archiv.2014", letters(20, 23, 100)...)
	put(t, src, user, "INBOX.keep", letters(30, 32, 100)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	first := msgs[0].InternalDate
	c.Filter = backfill.Filter{Since: first.Add(5 * time.Hour), Before: first.Add(40 * time.Hour), MaxSize: 8000, Exclude: []string{"*.Archiv.*", "*.Archiv"}}
	want := []string{"INBOX.Archiv.2014: the filter leaves out the folder, with 3 messages", "INBOX: the filter leaves out 6 messages"}
	plan, err := c.Plan(t.Context(), job)
	if err != nil || plan.Filtered != 9 || len(plan.Folders) != 2 || !cmp.Equal(problems(backfill.Report{Problems: plan.Problems}, backfill.ClassFiltered), want) {
		t.Errorf("plan: %+v, %v", plan, err)
	}
	for i, o := range []backfill.Options{{}, {}, {Final: true}} {
		r := mustPass(t, c, job, o)
		if r.Filtered != 9 || r.Copied != 16*max(1-i, 0) || !cmp.Equal(problems(r, backfill.ClassFiltered), want) || r.Clean() != (i > 0) {
			t.Errorf("pass %d: %+v", i, r)
		}
	}
	if got := holds(t, dst, user, false); len(got["INBOX"]) != 14 || len(got) != 2 {
		t.Errorf("%v", got)
	}
	v, err := c.Verify(t.Context(), job)
	if err != nil || !v.OK() || v.Filtered != 9 || !cmp.Equal(problems(backfill.Report{Problems: v.Problems}, backfill.ClassFiltered), want) {
		t.Errorf("verify: %+v, %v", v, err)
	}
	c.Filter = backfill.Filter{Include: []string{"inbox*"}}
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 9 || r.Filtered != 0 {
		t.Errorf("without the filter: %+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
	// What was copied stays when a filter comes to leave it out.
	c.Filter = backfill.Filter{MaxSize: 1, Include: []string{"INBOX"}}
	if r := mustPass(t, c, job, backfill.Options{Final: true, Restore: true}); !r.Clean() || r.Filtered != 5 {
		t.Errorf("%+v", r)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}
