package backfill_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"
)

// TestReadsAhead: while the destination is busy with a folder, the next one is
// opened, listed and its first messages are read: the destination here takes
// nothing of a folder before the source was asked for messages of the next one.
func TestReadsAhead(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	const folders = 3
	asked := make([]chan struct{}, folders)
	for i := range folders { // the largest first
		put(t, src, user, fmt.Sprintf("INBOX.Folder%d", i), letters(20*i, 20*i+10-i, 300)...)
		asked[i] = make(chan struct{}, 10)
	}
	at := -1 // the folder that is open on the source, which has one connection
	from := newGate(t, src.IMAPAddr, func(cmd string) string {
		for i := range folders {
			if strings.HasPrefix(cmd, "EXAMINE") && strings.Contains(cmd, fmt.Sprintf("Folder%d", i)) {
				at = i
			}
		}
		if strings.HasPrefix(cmd, "UID FETCH") && strings.Contains(cmd, "BODY.PEEK[]") && at >= 0 {
			asked[at] <- struct{}{}
		}
		return ""
	})
	to := newGate(t, dst.IMAPAddr, func(cmd string) string {
		for i := range folders - 1 {
			if !strings.HasPrefix(cmd, fmt.Sprintf(`APPEND "Folder%d"`, i)) {
				continue
			}
			select {
			case <-asked[i+1]:
			case <-time.After(20 * time.Second):
				t.Errorf("folder %d was not read while the one before it was appended", i+1)
			}
		}
		return ""
	})
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	c.Connections = 1
	job.Source.Server.Address, job.Dest.Server.Address = from.addr, to.addr
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 27 {
		t.Errorf("%d copied, want 27", r.Copied)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}
