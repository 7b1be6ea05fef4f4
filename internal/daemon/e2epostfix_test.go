package daemon_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/admin"
	"crossfade/internal/mailtest/realtest"
	"crossfade/queue"
)

// TestRealPostfixBackend: the old system is a real Postfix with a table of
// recipients in front of a Dovecot; clients are swaks and smtp-source.
func TestRealPostfixBackend(t *testing.T) {
	beside(t)
	onOld, onNew := []string{"anna@" + e2eDomain, "bert@" + e2eDomain}, []string{"carla@" + e2eDomain, "bert@" + e2eDomain}
	w := &world{t: t, dir: t.TempDir(), book: newBook()}
	w.cfgPath, w.logPath = filepath.Join(w.dir, "crossfade.yaml"), filepath.Join(w.dir, "log")
	w.old = realtest.StartDovecot(t, realtest.DovecotOptions{Layout: realtest.DotINBOX, LMTP: true, Users: onOld})
	w.new = realtest.StartDovecot(t, realtest.DovecotOptions{LMTP: true, Users: onNew})
	postfix := realtest.StartPostfix(t, realtest.PostfixOptions{
		Domains: []string{e2eDomain}, Recipients: onOld, NextHop: "lmtp:unix:" + w.old.LMTPSocket,
	})
	w.write("crossfade.yaml", fmt.Sprintf(`hostname: mx.%[1]s
domains: [%[1]s]
store: ./data
smtp: {listen: ["127.0.0.1:0"], resolvers: ["127.0.0.1:1"]}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old: {smtp: %[2]s}
  new: {smtp: %[3]s}
routing: {unknown: verify}
queue: {min_free: 0}
`, e2eDomain, postfix.SMTPURL(), w.new.LMTPURL()))
	d := w.serve()
	swaks := func(to string, want int, args ...string) string {
		t.Helper()
		out, status := realtest.Swaks(t, t.Context(), d.smtp, append([]string{"--from", "sender@outside.test", "--to", to}, args...)...)
		if status != want {
			t.Fatalf("swaks to %s: status %d, want %d\n%s", to, status, want, out)
		}
		return out
	}
	arrived := func(what string, dc *realtest.Dovecot, user string, n int) {
		t.Helper()
		poll(t, 100*time.Second, what, func() (bool, error) {
			have := len(dc.MaildirFiles(t, user))
			if have > n {
				t.Fatalf("%s: %d messages, want %d", what, have, n)
			}
			return have == n, fmt.Errorf("%d of %d messages", have, n)
		})
	}

	const swaksRcptRefused = 24
	if out := swaks("nobody@"+e2eDomain, swaksRcptRefused); !strings.Contains(out, "550 5.1.1") {
		t.Errorf("an unknown user is not refused with 550 5.1.1:\n%s", out)
	}
	if out := swaks("somebody@elsewhere.test", swaksRcptRefused); !strings.Contains(out, "550 5.7.1") {
		t.Errorf("relaying is not refused with 550 5.7.1:\n%s", out)
	}
	swaks(onOld[0], 0)
	arrived("mail for a user of old", w.old, onOld[0], 1)
	swaks(onNew[0], 0)
	arrived("mail for a user who is on new only", w.new, onNew[0], 1)
	swaks(onOld[1], 0)
	arrived("mail for a user who is on both sides", w.old, onOld[1], 1)

	const load = 200
	realtest.SMTPSource(t, t.Context(), d.smtp, realtest.Source{Messages: load, Sessions: 10, Size: 4096, To: onOld[0]})
	realtest.SMTPSource(t, t.Context(), d.smtp, realtest.Source{Messages: load, Sessions: 10, Size: 4096, To: onOld[0], Keep: true})
	arrived("mail of smtp-source", w.old, onOld[0], 1+2*load)

	postfix.Stop(t)
	swaks(onOld[0], 0, "--header", "Subject: while Postfix is down")
	if out := swaks("dora@"+e2eDomain, 0); !strings.Contains(out, "queued as ") {
		t.Errorf("a side that cannot be asked counts as yes:\n%s", out)
	}
	poll(t, 20*time.Second, "the reason in the queue", func() (bool, error) {
		page, err := d.client.Queue(t.Context(), admin.QueueFilter{Rcpt: onOld[0]}, "", 10)
		if err != nil || len(page.Messages) != 1 {
			return false, fmt.Errorf("%d messages wait: %w", len(page.Messages), err)
		}
		e, err := d.client.Message(t.Context(), page.Messages[0].Envelope.ID)
		if err != nil {
			return false, err
		}
		reply := e.Rcpts[0].LastReply
		return strings.Contains(reply, "refused"), errors.New("last reply: " + reply)
	})
	postfix.Start(t)
	began := time.Now()
	if !long() { // the schedule comes back after a minute; an operator is quicker
		if _, err := d.client.Apply(t.Context(), admin.QueueApply{Action: queue.DoRetry, All: true}); err != nil {
			t.Fatal(err)
		}
	}
	arrived("mail that waited for Postfix", w.old, onOld[0], 1+2*load+1)
	figure(t, "%d messages of smtp-source arrived; mail that waited for Postfix arrived %s after its start", 2*load, time.Since(began).Round(time.Millisecond))

	// Accepted while old could not be asked, and unknown to both: never
	// bounced, parked for an operator (I8).
	poll(t, 45*time.Second, "parking what neither side knows", func() (bool, error) {
		page, err := d.client.Queue(t.Context(), admin.QueueFilter{State: "parked"}, "", 10)
		return err == nil && len(page.Messages) == 1 && page.Messages[0].Rcpts[0].Addr.String() == "dora@"+e2eDomain, err
	})
}
