package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/submission"
	"crossfade/router"
)

const submissionConfig = `hostname: mx.example.org
domains: [example.org]
store: ./data
smtp:
  listen: ["127.0.0.1:0"]
  tls: {cert: mx.crt, key: mx.key}
  users_file: ./submission.users
  listeners:
    - {address: "127.0.0.1:0", tls: require, auth: require}
    - {address: "127.0.0.1:0", tls: implicit, auth: offer}
  smart_host: {url: "smtp+insecure://OUT"}
admin: {listen: "127.0.0.1:0", token_file: ./admin.token}
backends:
  old: {smtp: "smtp+insecure://OLD"}
  new: {smtp: "smtp+insecure://127.0.0.1:2"}
queue: {min_free: 0}
`

// TestSubmission: who has logged in over TLS sends to the outside; nobody else
// does, and no password is in the log.
func TestSubmission(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(dir, cert)
	if err != nil {
		t.Fatal(err)
	}
	line, err := submission.Hash("printer", "a good secret")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "submission.users"), []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sinks := map[string]*mailtest.Sink{}
	for _, name := range []string{"OUT", "OLD"} {
		if sinks[name], err = mailtest.NewSink(mailtest.SinkConfig{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sinks[name].Close() })
	}
	var log lockedBuffer
	cfg := parse(t, dir, strings.NewReplacer("OUT", sinks["OUT"].Addr(), "OLD", sinks["OLD"].Addr(), "mx.crt", files.Cert, "mx.key", files.Key).Replace(submissionConfig))
	if f := checkLogins(cfg); len(f) != 1 || !f[0].OK || f[0].Text != "1 users may submit mail" {
		t.Errorf("check says %+v", f)
	}
	d, stop := serveLogged(t, cfg, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := d.store.SetUser(ctx, router.User{Address: "ann@example.org", Kind: router.KindMailbox, State: router.StateOld}, router.Change{By: "test", To: router.StateOld}); err != nil {
		t.Fatal(err)
	}
	mx, submit, implicit := d.SMTPAddrs()[0].String(), d.SMTPAddrs()[1].String(), d.SMTPAddrs()[2].String()
	const noAuth, authFailed, mailRefused, rcptRefused = 28, 28, 23, 24
	for name, c := range map[string]struct {
		at, to string
		args   []string
		status int
		says   string
	}{
		"a stranger on the MX":       {mx, "friend@outside.test", nil, rcptRefused, "550 5.7.1"},
		"AUTH on the MX":             {mx, "friend@outside.test", []string{"--tls", "--auth", "PLAIN", "--auth-user", "printer", "--auth-password", "a good secret"}, noAuth, ""},
		"in clear":                   {submit, "friend@outside.test", []string{"--auth", "PLAIN", "--auth-user", "printer", "--auth-password", "a good secret"}, noAuth, ""},
		"no login":                   {submit, "ann@example.org", []string{"--tls"}, mailRefused, "530 5.7.0"},
		"a guess":                    {submit, "friend@outside.test", []string{"--tls", "--auth", "PLAIN", "--auth-user", "printer", "--auth-password", "a bad guess"}, authFailed, "535 5.7.8"},
		"PLAIN":                      {submit, "friend@outside.test", []string{"--tls", "--auth", "PLAIN", "--auth-user", "printer", "--auth-password", "a good secret"}, 0, "250 2.0.0"},
		"LOGIN":                      {implicit, "friend@outside.test", []string{"--tlsc", "--auth", "LOGIN", "--auth-user", "printer", "--auth-password", "a good secret", "--add-header", "Authentication-Results: mx.example.org; dmarc=pass"}, 0, "250 2.0.0"},
		"a stranger where it's free": {implicit, "friend@outside.test", []string{"--tlsc"}, rcptRefused, "550 5.7.1"},
		"to one of ours":             {implicit, "ann@example.org", []string{"--tlsc"}, 0, "250 2.0.0"},
	} {
		out, status := realtest.Swaks(t, ctx, c.at, append([]string{"--from", "ann@example.org", "--to", c.to}, c.args...)...)
		if status != c.status || !strings.Contains(out, c.says) {
			t.Errorf("%s: swaks ends with %d, want %d and %q\n%s", name, status, c.status, c.says, out)
		}
	}
	got, err := sinks["OUT"].Wait(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range got {
		if head, _, _ := strings.Cut(string(m.Body), "Subject:"); !strings.Contains(head, "with ESMTPSA") {
			t.Errorf("the trace header tells nothing of the login:\n%s", head)
		}
		if strings.Contains(string(m.Body), "dmarc=pass") {
			t.Errorf("results that the user wrote in our name are there:\n%s", m.Body)
		}
	}
	if _, err := sinks["OLD"].Wait(ctx, 1); err != nil {
		t.Error(err)
	}
	stop()
	for _, secret := range []string{"a good secret", "a bad guess", "YSBnb29kIHNlY3JldA", "AGEgZ29vZCBzZWNyZXQ"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	if !strings.Contains(log.String(), "user=printer") || !strings.Contains(log.String(), "smtp login refused") {
		t.Errorf("the log tells neither who sent nor who guessed:\n%s", log.String())
	}
}

// TestFilter: a real Rspamd refuses, marks and passes mail of strangers; when it
// is gone mail is put off, and /readyz says so.
func TestFilter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	scanner, stop := realtest.StartRspamd(t)
	cfg := parse(t, dir, strings.NewReplacer(`127.0.0.1:1"}`, sink.Addr()+`"}`, `listen: ["127.0.0.1:0"]`, `listen: ["127.0.0.1:0"], filter: {milter: "inet:`+scanner+`", verdicts: [X-Spam*]}`).Replace(reloadConfig)+"routing: {unknown: old}\n")
	d, _ := serveLogged(t, cfg, nil, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const dataRefused = 26
	send := func(body string) (string, int) {
		return realtest.Swaks(t, ctx, d.SMTPAddrs()[0].String(), "--from", "a@far.test", "--to", "ann@example.org", "--header", "x-SPAM-flag: forged\n\tby a stranger", "--header", "X-Other: stays", "--body", body)
	}
	const gtube = "JS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
	if out, status := send("X" + gtube); status != dataRefused || !strings.Contains(out, "554 5.7.1 Gtube pattern") {
		t.Errorf("spam: status %d\n%s", status, out)
	}
	if out, status := send("Y" + gtube); status != 0 {
		t.Errorf("suspected spam: status %d\n%s", status, out)
	}
	if out, status := send("a letter"); status != 0 {
		t.Errorf("a letter: status %d\n%s", status, out)
	}
	got, err := sink.Wait(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range got {
		if marked := strings.HasPrefix(string(m.Body), "X-Spam: Yes\r\n"); marked != strings.Contains(string(m.Body), "GTUBE") {
			t.Errorf("delivered:\n%s", m.Body)
		}
		if text := string(m.Body); strings.Contains(text, "forged") || strings.Contains(text, "by a stranger") || !strings.Contains(text, "X-Other: stays\r\n") {
			t.Errorf("verdicts of strangers are not taken out, or more than they:\n%s", text)
		}
	}
	for _, want := range []bool{true, false} {
		if !want {
			stop()
		}
		if f := checkFilter(ctx, cfg); len(f) != 1 || f[0].OK != want {
			t.Errorf("check says %+v", f)
		}
	}
	if out, status := send("a letter"); status != dataRefused || !strings.Contains(out, "451 4.7.1") {
		t.Errorf("without a scanner: status %d\n%s", status, out)
	}
	if w := strings.Join(d.warnings(), "\n"); !strings.Contains(w, "mail is put off") {
		t.Errorf("readyz says nothing of it: %q", w)
	}
}
