package daemon_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crossfade/config"
	"crossfade/internal/daemon"
	"crossfade/internal/mailtest/realtest"
)

// TestCheckOpensOldMailboxes: the same old mailbox from the disk, as mbox and over
// POP3, as `crossfade check --user` finds it.
func TestCheckOpensOldMailboxes(t *testing.T) {
	const user = "anna@company.test"
	old := realtest.StartDovecot(t, realtest.DovecotOptions{POP3: true, MailFsync: "never"})
	old.Folders(t, user)
	dir := t.TempDir()
	for name, text := range map[string]string{"pw.csv": user + ",,secret\n", "mail/company.test/anna/Archive": "From a Fri Jan  2 03:04:05 2015\n\nx\n", "spool/keep": ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const login = "imap_login: {as: user, passwords_file: pw.csv}"
	for mailbox, c := range map[string]struct {
		login, want string
		ok          bool
	}{
		"maildir://" + old.MailRoot + "/{user}/Maildir":                           {"", "opened, 1 folders", true},
		"maildir://" + old.MailRoot + "/{local}/Maildir":                          {"", "no such file", false},
		"mbox://" + dir + "/mail/{domain}/{local}?inbox=" + dir + "/spool/{user}": {"", "opened, 2 folders", true},
		"pop3+insecure://" + old.POP3Addr:                                         {login, "opened, 1 folders", true},
		"pop3+insecure://" + deadAddress(t):                                       {login, "refused", false},
	} {
		cfg, err := config.Parse(filepath.Join(dir, "crossfade.yaml"), fmt.Appendf(nil, `hostname: mx.company.test
domains: [company.test]
backends:
  old:
    smtp: smtp://127.0.0.1:9
    mailbox: "%s"
    %s
  new:
    smtp: smtp://127.0.0.1:19
    imap: %s
    %s
`, mailbox, c.login, old.IMAPURL(), login))
		if err != nil {
			t.Fatal(err)
		}
		var found []daemon.Finding
		for _, f := range daemon.Check(t.Context(), cfg, user) {
			if strings.HasPrefix(f.What, "backends.old.mailbox ") {
				found = append(found, f)
			}
		}
		if len(found) != 1 || found[0].OK != c.ok || !strings.Contains(found[0].Text, c.want) {
			t.Errorf("%s: %+v", mailbox, found)
		}
	}
}

// deadAddress is one that nobody listens at.
func deadAddress(t *testing.T) string { return fmt.Sprintf("127.0.0.1:%d", realtest.FreePort(t)) }
