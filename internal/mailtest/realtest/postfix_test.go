package realtest_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newSink(t *testing.T, cfg mailtest.SinkConfig) *mailtest.Sink {
	t.Helper()
	s, err := mailtest.NewSink(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// until polls, because Postfix delivers in its own time.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("timed out: %s", what)
		case <-tick.C:
		}
	}
}

func TestPostfixIntoDovecot(t *testing.T) {
	d := realtest.StartDovecot(t, realtest.DovecotOptions{LMTP: true})
	p := realtest.StartPostfix(t, realtest.PostfixOptions{Recipients: []string{bob}, NextHop: "lmtp:unix:" + d.LMTPSocket, XClient: true})
	out, status := realtest.Swaks(t, deadline(t), p.Addr, "--from", "a@x.test", "--to", bob, "--header", "Subject: by swaks")
	if status != 0 || !strings.Contains(out, "250 2.0.0 Ok: queued") || !strings.Contains(out, "XCLIENT") {
		t.Errorf("swaks ended with %d:\n%s", status, out)
	}
	for rcpt, reply := range map[string]string{"eve@example.org": "550 5.1.1", "x@elsewhere.test": "554 5.7.1"} {
		if out, status := realtest.Swaks(t, deadline(t), p.Addr, "--from", "a@x.test", "--to", rcpt); status == 0 || !strings.Contains(out, reply) {
			t.Errorf("%s: swaks ended with %d, want a reply %s:\n%s", rcpt, status, reply, out)
		}
	}
	until(t, "the message reaches the Maildir", func() bool { return len(d.MaildirFiles(t, bob)) == 1 })
	if l := d.Messages(t, bob, "INBOX"); !strings.Contains(string(l[0].Body), "Subject: by swaks") {
		t.Errorf("INBOX holds %q", l[0].Body)
	}
}

func TestPostfixIntoSinkWithTLSAndRestart(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("localhost")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	sink := newSink(t, mailtest.SinkConfig{})
	p := realtest.StartPostfix(t, realtest.PostfixOptions{NextHop: "smtp:[127.0.0.1]:" + sink.Addr()[strings.LastIndex(sink.Addr(), ":")+1:], TLS: &files})
	play(t, p.Addr, "S: 220 *\nC: EHLO a\nS... 250-STARTTLS\nS... 250 *\nC: STARTTLS\nS: 220 *")
	sink.Down()
	realtest.SMTPSource(t, deadline(t), p.Addr, realtest.Source{Messages: 5, Sessions: 2, Size: 4096, Numbered: true, Keep: true})
	if n := p.Queued(t); n != 5 {
		t.Errorf("%d messages queued, want 5", n)
	}
	p.Stop(t)
	if err := sink.Up(); err != nil {
		t.Fatal(err)
	}
	p.Start(t)
	got, err := sink.Wait(deadline(t), 5)
	if err != nil {
		t.Fatal(err)
	}
	if a := got[0].Addrs(); len(a) != 1 || !strings.HasSuffix(a[0], "u@example.org") {
		t.Errorf("recipients %v", a)
	}
}

func TestSMTPSourceAndSink(t *testing.T) {
	addr := realtest.StartSMTPSink(t)
	realtest.SMTPSource(t, deadline(t), addr, realtest.Source{Messages: 20, Sessions: 4})
	sink := newSink(t, mailtest.SinkConfig{LMTP: true})
	realtest.SMTPSource(t, deadline(t), sink.Addr(), realtest.Source{Messages: 20, Sessions: 4, LMTP: true, To: bob})
	if n := sink.Count(); n != 20 {
		t.Errorf("%d messages by LMTP, want 20", n)
	}
}
