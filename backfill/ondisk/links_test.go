package ondisk_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crossfade/backfill"
	"crossfade/backfill/ondisk"
	"crossfade/internal/mailtest"
)

// TestLinksOnTheWayToATree: what a user puts in place of his tree, or of his
// INBOX, must not show another's mail. The administrator's links count.
func TestLinksOnTheWayToATree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a link to another user: NOT PROVEN")
	}
	base := t.TempDir()
	bert := filepath.Join(base, "bert")
	write(t, filepath.Join(bert, "Maildir", "cur", "1.secret:2,"), "Subject: secret\n\n")
	write(t, filepath.Join(bert, "inbox"), mboxText)
	write(t, filepath.Join(base, "spool", "bert"), mboxText)
	link := func(to, from string, owner int) {
		t.Helper()
		from = filepath.Join(base, from)
		if err := os.MkdirAll(filepath.Dir(from), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(from, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	const anna = 1234
	link("../bert/Maildir", "anna/Maildir", anna)
	link("../bert", "anna/home", anna)
	link("bert", "spool/anna", anna)
	link("bert", "moved", 0)              // the administrator's
	link("nobody", "moved-to-nowhere", 0) // leads to what is not there
	link("round", "round", 0)
	link("/etc", "out", 0)
	link("../..", "out2", 0)
	link("../bert", "carla/link", 0) // root's, in a directory of the user
	if err := os.Chown(filepath.Join(base, "carla"), anna, anna); err != nil {
		t.Fatal(err)
	}
	place := func(path string) ondisk.Place { return ondisk.Place{Base: base, Path: path} }
	for name, c := range map[string]struct {
		src  backfill.Source
		want string
	}{
		"tree":                    {ondisk.Maildir{Place: place("anna/Maildir")}, "symbolic link"},
		"level of it":             {ondisk.Maildir{Place: place("anna/home/Maildir")}, "symbolic link"},
		"mbox tree":               {ondisk.Mbox{Folders: place("anna/home")}, "symbolic link"},
		"mbox file":               {ondisk.Mbox{Folders: place("spool/anna")}, "symbolic link"},
		"INBOX":                   {ondisk.Mbox{Folders: place("bert"), Inbox: place("spool/anna")}, "symbolic link"},
		"in the user's directory": {ondisk.Maildir{Place: place("carla/link/Maildir")}, "symbolic link"},
		"round":                   {ondisk.Maildir{Place: place("round/x")}, "too many"},
		"out":                     {ondisk.Maildir{Place: place("out/x")}, "leads out"},
		"out below":               {ondisk.Maildir{Place: place("out2/x")}, "leads out"},
		"nowhere":                 {ondisk.Maildir{Place: place("moved-to-nowhere/Maildir")}, "no such file"},
		"Maildir moved":           {ondisk.Maildir{Place: place("moved/Maildir")}, ""},
		"mbox moved":              {ondisk.Mbox{Folders: place("moved/inbox")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want == "" {
				if got := contents(t, c.src, &mailtest.Ledger{}); len(got["INBOX"]) == 0 {
					t.Errorf("%v", got)
				}
				return
			}
			n, err := backfill.NewNumbers(t.Context(), &mailtest.Ledger{}, user)
			if err != nil {
				t.Fatal(err)
			}
			if box, err := c.src.Open(t.Context(), n); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v", box, err)
			}
		})
	}
	// The INBOX becomes a link behind the opening.
	from := ondisk.Mbox{Folders: place("bert"), Inbox: place("spool/carla")}
	write(t, filepath.Join(base, "spool", "carla"), mboxText)
	if err := os.Remove(filepath.Join(bert, "inbox")); err != nil {
		t.Fatal(err)
	}
	box := open(t, from, &mailtest.Ledger{})
	if err := os.Remove(filepath.Join(base, "spool", "carla")); err != nil {
		t.Fatal(err)
	}
	link("bert", "spool/carla", anna)
	if _, err := box.List(); err != nil {
		t.Fatal(err)
	}
	if _, errs, err := box.Statuses([]string{"INBOX"}); err != nil || errs["INBOX"] == nil {
		t.Errorf("%v, %v", errs, err)
	}
}
