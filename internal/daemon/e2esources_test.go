package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest/realtest"
)

// TestFlipFromOtherSources: users whose old mailbox is a Maildir, an mbox or behind
// POP3 are flipped by the whole product, under a stream of mail, as those whose old
// mailbox is reached over IMAP are (TestFlipFiftyUsers).
func TestFlipFromOtherSources(t *testing.T) {
	beside(t)
	// Until 2026-11 the admin API knew of IMAP alone, and refused to start any of these.
	for kind, source := range map[string]struct {
		extra   string // of the old Dovecot's configuration
		mailbox string // %s: its directory of mailboxes, or its address for POP3
		login   string
	}{
		"Maildir": {"", "maildir://%s/{user}/Maildir", ""},
		"mbox":    {"mail_location = mbox:~/mail:INBOX=~/inbox\n", "mbox://%s/{user}/mail?inbox=%[1]s/{user}/inbox", ""},
		"POP3":    {"", "pop3+insecure://%s", fmt.Sprintf(masterLine, "suffix:*")},
	} {
		t.Run(kind, func(t *testing.T) {
			w := &world{t: t, dir: t.TempDir(), book: newBook()}
			w.cfgPath, w.logPath = filepath.Join(w.dir, "crossfade.yaml"), filepath.Join(w.dir, "log")
			for i := range 4 {
				w.users = append(w.users, fmt.Sprintf("user%03d@%s", i+1, e2eDomain))
			}
			o := realtest.DovecotOptions{LMTP: true, POP3: true, Users: w.users, MasterUser: e2eMaster, MasterPassword: e2eSecret, MailFsync: "never"}
			w.new = realtest.StartDovecot(t, o)
			o.Layout, o.Extra = realtest.DotINBOX, source.extra
			w.old = realtest.StartDovecot(t, o)
			place := w.old.MailRoot
			if kind == "POP3" {
				place = w.old.POP3Addr
			}
			w.write("password", e2eSecret+"\n")
			w.write("crossfade.yaml", fmt.Sprintf(`hostname: mx.%s
domains: [%[1]s]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: ["127.0.0.1:1"], max_connections_per_ip: 0}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old:
    smtp: %s
    mailbox: "%s"
    %s
  new:
    smtp: %s
    imap: %s
    `+masterLine+`
queue: {min_free: 0}
`, e2eDomain, w.old.LMTPURL(), fmt.Sprintf(source.mailbox, place), source.login, w.new.LMTPURL(), w.new.IMAPURL(), "authzid"))
			w.flipUnderStream(kind == "mbox")
		})
	}
}

// flipUnderStream sends mail to all users until the old mailboxes have some, flips
// them one after the other while it goes on, and counts what they read then. bodies
// is [stream.bodies].
func (w *world) flipUnderStream(bodies bool) {
	t := w.t
	t.Cleanup(func() {
		if b, err := os.ReadFile(w.logPath); err == nil && t.Failed() {
			lines := slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool {
				return strings.Contains(l, "msg=attempt") || strings.Contains(l, "msg=received")
			})
			t.Logf("the log of crossfade, without mail, ends with:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
	})
	d := w.serve()
	var lines []string
	for _, u := range w.users {
		lines = append(lines, u+",old,,mailbox,")
	}
	importUsers(t, d.client, lines)
	s := &stream{addr: d.smtp, users: w.users, book: w.book, bodies: bodies, senders: 2, pause: 40 * time.Millisecond}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	wait := s.start(ctx)
	for i, u := range w.users {
		s.hot.Store(&u)
		poll(t, 30*time.Second, "mail on old", func() (bool, error) { return s.accepted.Load() >= int64(10*(i+1)), nil })
		if _, err := d.client.StartCutover(t.Context(), u, admin.MoveRequest{Reason: "e2e"}); err != nil {
			t.Fatal(err)
		}
		if st := awaitFlip(t, d.client, u); st.Copied == 0 {
			t.Errorf("%s: nothing was copied before the flip: %+v", u, st)
		}
	}
	stop()
	if err := wait(); err != nil {
		t.Fatalf("a sender was refused: %v", err)
	}
	drain(t, d.client, time.Minute)
	d.stop()
	var sum audit
	for _, u := range w.users {
		sum.add(w.countRead(u, true))
	}
	for who, copies := range sum.doubles {
		t.Errorf("%s is there %d times: %v", who, len(copies), paths(copies))
	}
	t.Logf("accepted %d; found %d, missing %d, twice %d, altered %d, stray %d, misplaced %d",
		s.accepted.Load(), sum.found, sum.missing, sum.twice, sum.altered, sum.stray, sum.misplaced)
}
