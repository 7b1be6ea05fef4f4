package backfill_test

import (
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
)

// TestRights: colleagues who may read a folder may on the destination too; whom
// nobody can know there is listed, and the owner's own rights are left alone.
func TestRights(t *testing.T) {
	t.Parallel()
	acl := "mail_plugins = $mail_plugins acl\nprotocol imap {\n mail_plugins = $mail_plugins imap_acl\n}\nplugin {\n acl = vfile\n}\n"
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX, Extra: acl}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Extra: acl}))
	put(t, src, user, "INBOX", letters(0, 2, 10)...)
	put(t, src, user, "INBOX.team", letters(2, 4, 10)...)
	cl := src.Login(t, user)
	grant := func(folder, id, rights string) {
		t.Helper()
		if err := cl.SetACL(folder, imap.RightsIdentifier(id), imap.RightModificationReplace, imap.RightSet(rights)).Wait(); err != nil {
			t.Fatal(err)
		}
	}
	grant("INBOX.team", "bob@example.org", "lrs")
	grant("INBOX.team", "eve@elsewhere.test", "lr")
	grant("INBOX.team", "$staff", "l")
	rights := func(folder string) string {
		t.Helper()
		data, err := dst.Login(t, user).GetACL(folder).Wait()
		if err != nil {
			t.Fatal(err)
		}
		return string(data.Rights["bob@example.org"])
	}
	c, job := copier(t, newLedger(t)), jobOf(src, dst)
	for i, o := range []backfill.Options{{}, {}, {Final: true}} {
		r := mustPass(t, c, job, o)
		p := problems(r, backfill.ClassACL)
		if r.Clean() != (i > 0) || len(p) != 2 || !strings.Contains(p[0], "$staff") || !strings.Contains(p[1], "eve@elsewhere.test") {
			t.Errorf("pass %d: %+v", i, r)
		}
		if got := rights("team"); got != "lrs" {
			t.Errorf("pass %d: rights %q", i, got)
		}
		if got := rights("INBOX"); got != "" {
			t.Errorf("pass %d: rights %q on the INBOX", i, got)
		}
	}
}
