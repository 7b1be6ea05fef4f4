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
	d, err := New(cfg, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Started():
	case err := <-ended:
		t.Fatal(err)
	}
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
		"LOGIN":                      {implicit, "friend@outside.test", []string{"--tlsc", "--auth", "LOGIN", "--auth-user", "printer", "--auth-password", "a good secret"}, 0, "250 2.0.0"},
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
	}
	if _, err := sinks["OLD"].Wait(ctx, 1); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, secret := range []string{"a good secret", "a bad guess", "YSBnb29kIHNlY3JldA", "AGEgZ29vZCBzZWNyZXQ"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	if !strings.Contains(log.String(), "user=printer") || !strings.Contains(log.String(), "smtp login refused") {
		t.Errorf("the log tells neither who sent nor who guessed:\n%s", log.String())
	}
}
