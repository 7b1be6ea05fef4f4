package mailtest_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/emersion/go-sasl"
	"github.com/google/go-cmp/cmp"
)

const alice = "alice@example.org"

func newSystem(t *testing.T, cfg mailtest.MailsystemConfig) *mailtest.Mailsystem {
	t.Helper()
	m, err := mailtest.NewMailsystem(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := m.AddUser(alice, "secret"); err != nil {
		t.Fatal(err)
	}
	return m
}

func dialIMAP(t *testing.T, m *mailtest.Mailsystem) *imapclient.Client {
	t.Helper()
	c, err := imapclient.DialInsecure(m.IMAPAddr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func login(t *testing.T, m *mailtest.Mailsystem) *imapclient.Client {
	t.Helper()
	c := dialIMAP(t, m)
	must(t, c.Login(alice, "secret").Wait())
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func appendTo(c *imapclient.Client, folder, body string, opts *imap.AppendOptions) (*imap.AppendData, error) {
	cmd := c.Append(folder, int64(len(body)), opts)
	_, err := io.WriteString(cmd, body)
	if cerr := cmd.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return cmd.Wait()
}

const deliverOne = hello + `
C: MAIL FROM:<a@x.test>
S: 250 *
C: RCPT TO:<nobody@example.org>
S: 550 5.1.1 *
C: RCPT TO:<Alice@example.org>
S: 250 *
C: DATA
S: 354 *
C: Subject: hi
C:
C: body
C: .
S: 250 *
`

func TestMailsystemDeliversIntoINBOX(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	play(t, m.Sink().Addr(), deliverOne)
	l, err := m.Messages(alice, "inbox")
	must(t, err)
	if len(l) != 1 || string(l[0].Body) != "Subject: hi\r\n\r\nbody\r\n" || time.Since(l[0].InternalDate) > time.Minute {
		t.Fatalf("INBOX holds %+v", l)
	}
	if n, err := m.Count(alice, "INBOX"); n != 1 || err != nil {
		t.Errorf("Count = %d, %v", n, err)
	}
}

func TestMailsystemKeepsWhatAppendSays(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{FirstUIDValidity: 77})
	c := login(t, m)
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.FixedZone("", -8*3600))
	body := "Subject: big\r\n\r\n" + strings.Repeat("x", 200_000) + "\r\n"
	data, err := appendTo(c, "INBOX", body, &imap.AppendOptions{Time: when, Flags: []imap.Flag{imap.FlagSeen, imap.FlagFlagged, "$Forwarded"}})
	must(t, err)
	if data.UID != 1 || data.UIDValidity != 77 {
		t.Errorf("APPENDUID %d %d, want 77 1", data.UIDValidity, data.UID)
	}
	l, err := m.Messages(alice, "INBOX")
	must(t, err)
	if len(l) != 1 || string(l[0].Body) != body || !l[0].InternalDate.Equal(when) {
		t.Fatalf("%d messages, date %v", len(l), l[0].InternalDate)
	}
	if want := []string{"$Forwarded", `\Flagged`, `\Seen`}; !cmp.Equal(l[0].Flags, want) {
		t.Error(cmp.Diff(want, l[0].Flags))
	}
	st, err := c.Status("INBOX", &imap.StatusOptions{UIDNext: true, UIDValidity: true}).Wait()
	must(t, err)
	if st.UIDNext != 2 || st.UIDValidity != 77 {
		t.Errorf("STATUS %+v", st)
	}
}

func TestMailsystemLogins(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{MasterUser: "master", MasterPassword: "all", OAuthToken: "tok"})
	xoauth := func(token string) sasl.Client {
		return xoauth2Client("user=" + alice + "\x01auth=Bearer " + token + "\x01\x01")
	}
	tests := []struct {
		name  string
		login func(*imapclient.Client) error
		ok    bool
	}{
		{"own password", func(c *imapclient.Client) error { return c.Login(alice, "secret").Wait() }, true},
		{"wrong password", func(c *imapclient.Client) error { return c.Login(alice, "x").Wait() }, false},
		{"unknown user", func(c *imapclient.Client) error { return c.Login("bob@example.org", "secret").Wait() }, false},
		{"suffix", func(c *imapclient.Client) error { return c.Login(alice+"*master", "all").Wait() }, true},
		{"suffix, user's password", func(c *imapclient.Client) error { return c.Login(alice+"*master", "secret").Wait() }, false},
		{"suffix, unknown user", func(c *imapclient.Client) error { return c.Login("bob@example.org*master", "all").Wait() }, false},
		{"authzid", func(c *imapclient.Client) error { return c.Authenticate(sasl.NewPlainClient(alice, "master", "all")) }, true},
		{"authzid, wrong password", func(c *imapclient.Client) error {
			return c.Authenticate(sasl.NewPlainClient(alice, "master", "secret"))
		}, false},
		{"plain", func(c *imapclient.Client) error { return c.Authenticate(sasl.NewPlainClient("", alice, "secret")) }, true},
		{"token", func(c *imapclient.Client) error { return c.Authenticate(xoauth("tok")) }, true},
		{"wrong token", func(c *imapclient.Client) error { return c.Authenticate(xoauth("x")) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dialIMAP(t, m)
			if err := tt.login(c); (err == nil) != tt.ok {
				t.Fatalf("login: %v, want success %v", err, tt.ok)
			}
			if _, err := c.Select("INBOX", nil).Wait(); (err == nil) != tt.ok {
				t.Errorf("select: %v", err)
			}
		})
	}
}

type xoauth2Client string

func (x xoauth2Client) Start() (string, []byte, error) { return "XOAUTH2", []byte(x), nil }
func (x xoauth2Client) Next(challenge []byte) ([]byte, error) {
	return nil, errors.New("unexpected challenge")
}

func TestMailsystemFolders(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{Separator: '.', Prefix: "INBOX.", SpecialUse: map[string]imap.MailboxAttr{"Sent Items": imap.MailboxAttrSent}})
	c := login(t, m)
	if err := c.Create("Nowhere", nil).Wait(); err == nil {
		t.Error("a folder outside of the namespace was made")
	}
	must(t, c.Create("INBOX.a.b.c", nil).Wait())
	must(t, c.Create("INBOX.Junk", &imap.CreateOptions{SpecialUse: []imap.MailboxAttr{imap.MailboxAttrJunk}}).Wait())
	_, err := appendTo(c, "INBOX.a.b.c", "x\r\n", nil)
	must(t, err)
	must(t, c.Rename("INBOX.a.b", "INBOX.z", nil).Wait())
	names, err := m.List(alice)
	must(t, err)
	if want := []string{"INBOX", "INBOX.Junk", "INBOX.Sent Items", "INBOX.a", "INBOX.z", "INBOX.z.c"}; !cmp.Equal(names, want) {
		t.Error(cmp.Diff(want, names))
	}
	if n, _ := m.Count(alice, "INBOX.z.c"); n != 1 {
		t.Error("the message did not move with its folder")
	}
	l, err := c.List("", "*", &imap.ListOptions{ReturnSpecialUse: true}).Collect()
	must(t, err)
	uses := map[string]imap.MailboxAttr{}
	for _, d := range l {
		if d.Delim != '.' {
			t.Errorf("%s: separator %q", d.Mailbox, d.Delim)
		}
		for _, a := range d.Attrs {
			uses[d.Mailbox] = a
		}
	}
	if want := map[string]imap.MailboxAttr{"INBOX.Junk": imap.MailboxAttrJunk, "INBOX.Sent Items": imap.MailboxAttrSent}; !cmp.Equal(uses, want) {
		t.Error(cmp.Diff(want, uses))
	}
	ns, err := c.Namespace().Wait()
	must(t, err)
	if ns.Personal[0].Prefix != "INBOX." || ns.Personal[0].Delim != '.' {
		t.Errorf("NAMESPACE %+v", ns.Personal)
	}
	if l, err := c.List("", "%", nil).Collect(); err != nil || len(l) != 1 || l[0].Mailbox != "INBOX" {
		t.Errorf("LIST %%: %v %v", l, err)
	}
}

// go-imap's memory server answers "* 0 FETCH" here, which ends the client's connection.
func TestMailsystemFetchBesideDelivery(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	_, err := m.Append(alice, "INBOX", nil, time.Time{}, []byte("one\r\n"))
	must(t, err)
	c := login(t, m)
	_, err = c.Select("INBOX", nil).Wait()
	must(t, err)
	_, err = m.Append(alice, "INBOX", nil, time.Time{}, []byte("two\r\n"))
	must(t, err)
	fetch := func() int {
		l, err := c.Fetch(imap.UIDSet{{Start: 1}}, &imap.FetchOptions{UID: true}).Collect()
		must(t, err)
		return len(l)
	}
	if n := fetch(); n != 1 {
		t.Errorf("%d messages before the announcement, want 1", n)
	}
	must(t, c.Noop().Wait())
	if n := fetch(); n != 2 {
		t.Errorf("%d messages after it, want 2", n)
	}
}

func TestMailsystemExamineChangesNothing(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	_, err := m.Append(alice, "INBOX", []string{`\Deleted`}, time.Time{}, []byte("one\r\n"))
	must(t, err)
	c := login(t, m)
	_, err = c.Select("INBOX", &imap.SelectOptions{ReadOnly: true}).Wait()
	must(t, err)
	_, err = c.Fetch(imap.SeqSetNum(1), &imap.FetchOptions{BodySection: []*imap.FetchItemBodySection{{}}}).Collect()
	must(t, err)
	must(t, c.UnselectAndExpunge().Wait())
	l, err := m.Messages(alice, "INBOX")
	must(t, err)
	if len(l) != 1 || slices.Contains(l[0].Flags, `\Seen`) {
		t.Errorf("after EXAMINE: %+v", l)
	}
}

func TestMailsystemFaults(t *testing.T) {
	tests := []struct {
		name   string
		err    error
		stored int
		text   string
	}{
		{"refuse", &imap.Error{Type: imap.StatusResponseTypeNo, Code: imap.ResponseCodeOverQuota, Text: "full"}, 0, "OVERQUOTA"},
		{"plain error", errors.New("disk trouble"), 0, "disk trouble"},
		{"drop before", mailtest.ErrDropBefore, 0, ""},
		{"drop after", fmt.Errorf("scripted: %w", mailtest.ErrDropAfter), 1, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newSystem(t, mailtest.MailsystemConfig{IMAPHook: func(ev mailtest.IMAPEvent) error {
				if ev.Command == "APPEND" && ev.User == alice && ev.Size == 3 {
					return tt.err
				}
				return nil
			}})
			c := login(t, m)
			_, err := appendTo(c, "INBOX", "x\r\n", nil)
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("APPEND: %v", err)
			}
			if n, _ := m.Count(alice, "INBOX"); n != tt.stored {
				t.Errorf("%d messages stored, want %d", n, tt.stored)
			}
		})
	}
}

func TestMailsystemDownAndUp(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	c := login(t, m)
	m.IMAPDown()
	if err := c.Noop().Wait(); err == nil {
		t.Error("the connection lived on")
	}
	if _, err := imapclient.DialInsecure(m.IMAPAddr(), nil); err == nil {
		t.Error("still listening")
	}
	must(t, m.IMAPUp())
	login(t, m)
	must(t, m.Close())
	must(t, m.Close())
}

func TestMailsystemTLS(t *testing.T) {
	ca, err := mailtest.NewCA()
	must(t, err)
	server, err := ca.ServerConfig()
	must(t, err)
	client := &imapclient.Options{TLSConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}}
	for _, implicit := range []bool{false, true} {
		t.Run(fmt.Sprintf("implicit=%v", implicit), func(t *testing.T) {
			m := newSystem(t, mailtest.MailsystemConfig{TLS: server, ImplicitTLS: implicit})
			dial, scheme := imapclient.DialStartTLS, "imap+starttls://"
			if implicit {
				dial, scheme = imapclient.DialTLS, "imaps://"
			} else if err := dialIMAP(t, m).Login(alice, "secret").Wait(); err == nil {
				t.Error("login in clear text was accepted")
			}
			c, err := dial(m.IMAPAddr(), client)
			must(t, err)
			defer func() { _ = c.Close() }()
			must(t, c.Login(alice, "secret").Wait())
			if !strings.HasPrefix(m.IMAPURL(), scheme) {
				t.Errorf("URL %s", m.IMAPURL())
			}
		})
	}
}

// A body of every length around the buffers' sizes comes back as it went in.
func TestMailsystemBodies(t *testing.T) {
	m := newSystem(t, mailtest.MailsystemConfig{})
	var want [][]byte
	for _, n := range []int{0, 1, 4095, 4096, 4097, 65536, 1 << 20} {
		body := append(bytes.Repeat([]byte("é\r\n"), n/4), bytes.Repeat([]byte("a"), n%4)...)
		want = append(want, body)
		_, err := m.Append(alice, "Archive", nil, time.Time{}, body)
		must(t, err)
	}
	c := login(t, m)
	_, err := c.Select("Archive", nil).Wait()
	must(t, err)
	section := &imap.FetchItemBodySection{}
	l, err := c.Fetch(imap.UIDSet{{Start: 1}}, &imap.FetchOptions{RFC822Size: true, BodySection: []*imap.FetchItemBodySection{section}}).Collect()
	must(t, err)
	for i, msg := range l {
		if got := msg.FindBodySection(section); !bytes.Equal(got, want[i]) || msg.RFC822Size != int64(len(want[i])) {
			t.Errorf("body %d: %d bytes, want %d", i, len(got), len(want[i]))
		}
	}
	if len(l) != len(want) {
		t.Errorf("%d messages, want %d", len(l), len(want))
	}
}
