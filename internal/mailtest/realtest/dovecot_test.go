package realtest_test

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/emersion/go-sasl"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bob = "bob@example.org"

func play(t *testing.T, addr, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	if err := mailtest.RunDialogue(ctx, addr, script); err != nil {
		t.Fatal(err)
	}
}

const lmtpOne = `
S: 220 *
C: LHLO client.test
S... 250 *
C: MAIL FROM:<a@x.test>
S: 250 *
C: RCPT TO:<bob@example.org>
S: 250 *
C: DATA
S: 354 *
C: Subject: by lmtp
C:
C: body
C: .
S: 250 *
C: QUIT
S: 221 *
`

func TestDovecotLogins(t *testing.T) {
	d := realtest.StartDovecot(t, realtest.DovecotOptions{MasterUser: "master", Users: []string{bob}})
	tests := []struct {
		name  string
		login func(*imapclient.Client) error
		ok    bool
	}{
		{"own", func(c *imapclient.Client) error { return c.Login(bob, "secret").Wait() }, true},
		{"wrong", func(c *imapclient.Client) error { return c.Login(bob, "x").Wait() }, false},
		{"suffix", func(c *imapclient.Client) error { return c.Login(bob+"*master", "mastersecret").Wait() }, true},
		{"suffix, wrong", func(c *imapclient.Client) error { return c.Login(bob+"*master", "secret").Wait() }, false},
		{"suffix, unknown user", func(c *imapclient.Client) error { return c.Login("eve@example.org*master", "mastersecret").Wait() }, false},
		{"authzid", func(c *imapclient.Client) error {
			return c.Authenticate(sasl.NewPlainClient(bob, "master", "mastersecret"))
		}, true},
		{"authzid, wrong", func(c *imapclient.Client) error { return c.Authenticate(sasl.NewPlainClient(bob, "master", "x")) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := imapclient.DialInsecure(d.IMAPAddr, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if err := tt.login(c); (err == nil) != tt.ok {
				t.Errorf("login: %v, want success %v", err, tt.ok)
			}
		})
	}
}

func TestDovecotLayouts(t *testing.T) {
	special := map[string]string{"Sent Items": `\Sent`}
	tests := []struct {
		name    string
		layout  realtest.Layout
		folder  string
		folders []string
	}{
		{"slash", realtest.Slash, "a/b", []string{"INBOX", "Sent Items", "a/b"}},
		{"dot", realtest.DotINBOX, "INBOX.a.b", []string{"INBOX", "INBOX.Sent Items", "INBOX.a.b"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := realtest.StartDovecot(t, realtest.DovecotOptions{Layout: tt.layout, LMTP: true, SpecialUse: special, MailFsync: "never"})
			play(t, d.LMTPAddr, lmtpOne)
			play(t, d.LMTPSocket, lmtpOne)
			if l := d.Messages(t, bob, "INBOX"); len(l) != 2 || !strings.Contains(string(l[1].Body), "Subject: by lmtp\r\n\r\nbody\r\n") {
				t.Errorf("INBOX holds %d messages", len(l))
			}
			when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
			in := mailtest.StoredMessage{Flags: []string{"$Forwarded", `\Seen`}, InternalDate: when, Body: []byte("Subject: x\r\n\r\n.\r\n")}
			if uid := d.Append(t, bob, tt.folder, in); uid != 1 {
				t.Errorf("UID %d", uid)
			}
			l := d.Messages(t, bob, tt.folder)
			if len(l) != 1 || !l[0].InternalDate.Equal(when) || !cmp.Equal(l[0].Flags, in.Flags) || string(l[0].Body) != string(in.Body) {
				t.Errorf("%s holds %+v", tt.folder, l)
			}
			if got := d.Folders(t, bob); !cmp.Equal(got, tt.folders) {
				t.Error(cmp.Diff(tt.folders, got))
			}
			if got := d.CountAll(t); got[bob] != 3 {
				t.Errorf("message files per user: %v", got)
			}
		})
	}
}

func TestDovecotStopAndStart(t *testing.T) {
	d := realtest.StartDovecot(t, realtest.DovecotOptions{LMTP: true, Users: []string{bob}, Capability: "IMAP4rev1 UIDPLUS X-ODD"})
	play(t, d.LMTPAddr, lmtpOne)
	play(t, d.LMTPAddr, "S: 220 *\nC: LHLO a\nS... 250 *\nC: MAIL FROM:<>\nS: 250 *\nC: RCPT TO:<eve@example.org>\nS: 550 5.1.1 *")
	d.Stop(t)
	if _, err := imapclient.DialInsecure(d.IMAPAddr, nil); err == nil {
		t.Error("still listening after Stop")
	}
	d.Start(t)
	if n := len(d.Messages(t, bob, "INBOX")); n != 1 {
		t.Errorf("%d messages after the restart, want 1", n)
	}
	caps := d.Login(t, bob).Caps()
	if !caps.Has("X-ODD") || caps.Has("CONDSTORE") {
		t.Errorf("capabilities: %v", caps)
	}
	if !slices.Equal(d.Folders(t, bob), []string{"INBOX"}) {
		t.Error("folders")
	}
}

func TestDovecotTLS(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("imap.test")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	d := realtest.StartDovecot(t, realtest.DovecotOptions{TLS: &files})
	c, err := imapclient.DialStartTLS(d.IMAPAddr, &imapclient.Options{TLSConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: "imap.test"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Login(bob, "secret").Wait(); err != nil {
		t.Error(err)
	}
}
