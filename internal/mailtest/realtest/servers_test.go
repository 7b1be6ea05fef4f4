package realtest_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/emersion/go-sasl"
	"github.com/google/go-cmp/cmp"
)

// TestServers: what every server has to give to a test.
func TestServers(t *testing.T) {
	dovecot := func(l realtest.Layout) func(testing.TB) *realtest.IMAP {
		return func(t testing.TB) *realtest.IMAP {
			return &realtest.StartDovecot(t, realtest.DovecotOptions{Layout: l, MailFsync: "never"}).IMAP
		}
	}
	for name, start := range map[string]func(testing.TB) *realtest.IMAP{
		"dovecot dot":   dovecot(realtest.Dot),
		"dovecot sdbox": dovecot(realtest.Sdbox),
		"cyrus":         func(t testing.TB) *realtest.IMAP { return &realtest.StartCyrus(t, realtest.CyrusOptions{}).IMAP },
		"cyrus classic": func(t testing.TB) *realtest.IMAP {
			return &realtest.StartCyrus(t, realtest.CyrusOptions{Classic: true}).IMAP
		},
		"courier": func(t testing.TB) *realtest.IMAP { return &realtest.StartCourier(t, realtest.CourierOptions{}).IMAP },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			in := mailtest.StoredMessage{Flags: []string{"$Forwarded", `\Seen`}, InternalDate: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC), Body: []byte("Subject: x\r\n\r\n.\r\n")}
			folder := s.Folder("a", "b")
			if !cmp.Equal(s.Levels(folder), []string{"a", "b"}) {
				t.Errorf("levels of %q: %q", folder, s.Levels(folder))
			}
			s.Append(t, bob, folder, in)
			l := s.Messages(t, bob, folder)
			if len(l) != 1 || !l[0].InternalDate.Equal(in.InternalDate) || !cmp.Equal(l[0].Flags, in.Flags) || string(l[0].Body) != string(in.Body) {
				t.Errorf("%s holds %+v", folder, l)
			}
			if got := s.Folders(t, bob); !slices.Contains(got, "INBOX") || !slices.Contains(got, folder) {
				t.Errorf("folders: %q", got)
			}
			c, err := imapclient.DialInsecure(s.IMAPAddr, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if err := c.Login(bob, "wrong").Wait(); err == nil {
				t.Error("a wrong password is taken")
			}
			if err := c.Authenticate(sasl.NewPlainClient("", bob, "secret")); err != nil {
				t.Errorf("PLAIN: %v", err)
			}
			t.Log(strings.Join(capNames(c), " "))
		})
	}
}

func capNames(c *imapclient.Client) []string {
	var out []string
	for n := range c.Caps() {
		out = append(out, string(n))
	}
	slices.Sort(out)
	return out
}

// Each server takes a message for anybody of its domain, puts it where the test looks, and relays nothing.
func TestMTAs(t *testing.T) {
	postfix := realtest.StartPostfix(t, realtest.PostfixOptions{Maildir: true})
	exim, opensmtpd, courier := realtest.StartExim(t, realtest.EximOptions{}), realtest.StartOpenSMTPD(t, "example.org"), realtest.StartCourierMTA(t, "example.org")
	for _, s := range []struct{ name, addr, maildir string }{
		{"postfix", postfix.Addr, postfix.Maildir}, {exim.Name, exim.Addr, exim.Maildir},
		{opensmtpd.Name, opensmtpd.Addr, opensmtpd.Maildir}, {courier.Name, courier.Addr, courier.Maildir},
	} {
		t.Run(s.name, func(t *testing.T) {
			if out, status := realtest.Swaks(t, t.Context(), s.addr, "--from", "a@b.test", "--to", "any.body@example.org"); status != 0 {
				t.Fatalf("status %d:\n%s", status, out)
			}
			const refused = 24
			if out, status := realtest.Swaks(t, t.Context(), s.addr, "--from", "a@b.test", "--to", "x@elsewhere.test"); status != refused {
				t.Errorf("it relays, status %d:\n%s", status, out)
			}
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for deadline := time.Now().Add(10 * time.Second); len(realtest.MaildirFiles(t, s.maildir)) == 0; <-tick.C {
				if time.Now().After(deadline) {
					t.Fatal("the message did not arrive within 10 s")
				}
			}
		})
	}
}
