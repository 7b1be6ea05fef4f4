package smtpclient_test

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/mail"
	"crossfade/relay/smtpclient"
)

// stored reads what Dovecot keeps for a user.
func stored(t *testing.T, d *realtest.Dovecot, user string) []string {
	t.Helper()
	var l []string
	for _, sub := range []string{"new", "cur"} {
		files, err := filepath.Glob(filepath.Join(d.MailRoot, user, "Maildir", sub, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			l = append(l, string(b))
		}
	}
	return l
}

func TestRealDovecotLMTP(t *testing.T) {
	d := realtest.StartDovecot(t, realtest.DovecotOptions{LMTP: true, Users: []string{"ada@b.test", "bob@b.test"}})
	for _, tg := range []smtpclient.Target{
		{LMTP: true, Address: d.LMTPAddr, Hello: "client.test"},
		{LMTP: true, Network: "unix", Address: d.LMTPSocket, Hello: "client.test"},
	} {
		c := dial(t, tg)
		before := len(stored(t, d, "ada@b.test"))
		as, err := c.Send(timeout(t), message(t, small, "ada@b.test", "nobody@b.test", "bob@b.test"))
		if err != nil || codes(as) != "end of data 250, RCPT 550, end of data 250" || !as[1].Reply.UnknownUser() {
			t.Fatalf("%s: %s, error %v", tg, codes(as), err)
		}
		got := stored(t, d, "ada@b.test")
		if len(got) != before+1 || !strings.HasSuffix(got[before], strings.ReplaceAll(small, "\r\n", "\n")) {
			t.Errorf("%s: %q", tg, got)
		}
		if a, err := c.Verify(timeout(t), addr(t, "ada@b.test")); err != nil || !a.Reply.Positive() {
			t.Errorf("%s: %v, error %v", tg, a, err)
		}
		if a, err := c.Verify(timeout(t), addr(t, "nobody@b.test")); err != nil || !a.Reply.UnknownUser() {
			t.Errorf("%s: %v, error %v", tg, a, err)
		}
		tx := message(t, small, "ada@b.test")
		tx.BeforeDot = func() error { return errors.New("moved away") }
		if _, err := c.Send(timeout(t), tx); !errors.Is(err, smtpclient.ErrWithheld) {
			t.Errorf("%s: error %v", tg, err)
		}
		tx = message(t, strings.Repeat("0123456789\r\n", 20_000), "ada@b.test")
		tx.BeforeDot = func() error { return errors.New("moved away") }
		if _, err := dial(t, tg).Send(timeout(t), tx); !errors.Is(err, smtpclient.ErrWithheld) {
			t.Errorf("%s: error %v", tg, err)
		}
		// A later delivery is a fence: what was cut before it would be there by now.
		if _, err := dial(t, tg).Send(timeout(t), message(t, small, "ada@b.test")); err != nil {
			t.Fatal(err)
		}
		if n := len(stored(t, d, "ada@b.test")); n != before+2 {
			t.Errorf("%s: %d messages, want %d: one that was cut was delivered", tg, n, before+2)
		}
	}
}

func TestRealPostfix(t *testing.T) {
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
	host, port, err := net.SplitHostPort(sink.Addr())
	if err != nil {
		t.Fatal(err)
	}
	p := realtest.StartPostfix(t, realtest.PostfixOptions{
		Domains: []string{"b.test"}, Recipients: []string{"ada@b.test", "bob@b.test"}, NextHop: "smtp:[" + host + "]:" + port, TLS: &files,
	})
	for _, mode := range []smtpclient.Mode{smtpclient.Insecure, smtpclient.Opportunistic, smtpclient.Required} {
		c := dial(t, smtpclient.Target{Address: p.Addr, Mode: mode, Hello: "client.test", TLS: &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}})
		if c.Encrypted() != (mode != smtpclient.Insecure) || !c.Caps().Pipelining || !c.Caps().DSN {
			t.Errorf("%s: encrypted %v, %+v", mode, c.Encrypted(), c.Caps())
		}
		sink.Forget()
		for range 2 {
			tx := message(t, small, "ada@b.test", "nobody@b.test", "elsewhere@c.test", "bob@b.test")
			tx.EnvID, tx.Ret, tx.Rcpts[0].Notify = "e1", mail.RetHdrs, mail.NotifyNever
			as, err := c.Send(timeout(t), tx)
			if err != nil || codes(as) != "end of data 250, RCPT 550, RCPT 454, end of data 250" && codes(as) != "end of data 250, RCPT 550, RCPT 554, end of data 250" {
				t.Fatalf("%s: %s, error %v", mode, codes(as), err)
			}
			if !as[1].Reply.UnknownUser() || as[2].Reply.UnknownUser() {
				t.Errorf("%s: %s; %s", mode, as[1].Reply, as[2].Reply)
			}
		}
		if !c.Healthy() {
			t.Errorf("%s: not healthy", mode)
		}
		tx := message(t, strings.Repeat("0123456789\r\n", 20_000), "ada@b.test")
		tx.BeforeDot = func() error { return errors.New("moved away") }
		if _, err := c.Send(timeout(t), tx); !errors.Is(err, smtpclient.ErrWithheld) {
			t.Errorf("%s: error %v", mode, err)
		}
		got, err := sink.Wait(timeout(t), 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range got {
			if !strings.HasSuffix(string(m.Body), "\r\n\r\n.dot\r\n..\r\nend\r\n") {
				t.Errorf("%s: body %q", mode, m.Body)
			}
		}
	}
}
