package backfill_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/google/go-cmp/cmp"
)

// TestPlanIsWhatAPassDoes: what a plan counts is what the pass after it does, and
// a plan after that has nothing left.
func TestPlanIsWhatAPassDoes(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Capability: "IMAP4rev1 LITERAL+ UIDPLUS MULTIAPPEND NAMESPACE APPENDLIMIT=5000"}))
	put(t, src, user, "INBOX", letters(0, 12, 300)...)
	put(t, src, user, "INBOX", letter(20, 9000)) // too large
	empty := filepath.Join(src.MailRoot, user, "Maildir", "new", fmt.Sprintf("%d.M1P1.host", time.Now().Unix()))
	if err := os.WriteFile(empty, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	put(t, src, user, "INBOX.Arbeit", letters(30, 34, 300)...)
	put(t, src, user, "INBOX.arbeit", letters(40, 42, 300)...) // not the same folder
	put(t, src, user, "INBOX.Spam", letters(50, 53, 300)...)
	put(t, dst, user, "Arbeit", letters(30, 31, 300)...)
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	c.Filter = backfill.Filter{Exclude: []string{"INBOX.Spam"}}
	plan, err := c.Plan(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Messages != 20 || plan.Copy != 18 || plan.Refused != 2 || plan.Filtered != 3 || plan.CopyBytes == 0 || plan.Bytes < plan.CopyBytes+9000 {
		t.Errorf("%+v", plan)
	}
	var made, renamed int
	for _, f := range plan.Folders {
		if f.Create {
			made++
		}
	}
	renamed = len(problems(backfill.Report{Problems: plan.Problems}, backfill.ClassName))
	r := mustPass(t, c, job, backfill.Options{})
	if r.Copied+r.Adopted != plan.Copy || r.Adopted != 1 || r.Filtered != plan.Filtered || r.Messages != plan.Messages {
		t.Errorf("plan %+v, pass %+v", plan, r)
	}
	refused := len(problems(r, backfill.ClassRefused)) + len(problems(r, backfill.ClassWrapped))
	if refused != plan.Refused || len(problems(r, backfill.ClassName)) != renamed || made != 1 || renamed != 1 {
		t.Errorf("%d refused, %d folders made, %d renamed: %+v", refused, made, renamed, r.Problems)
	}
	again, err := c.Plan(t.Context(), job)
	if err != nil || again.Copy != 0 || again.CopyBytes != 0 || !cmp.Equal(again.Bytes, plan.Bytes) {
		t.Errorf("after the pass: %+v %v", again, err)
	}
}
