package find_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/backfill/find"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	user  = "u1@company.test"
	id    = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	other = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
)

// ours is the Received field as the relay writes it.
func ours(id string) string {
	return "Received: from client.example ([192.0.2.1]) by mx.company.test (Crossfade)\r\n\twith ESMTPS (TLS1.3 TLS_AES_128_GCM_SHA256)\r\n\tid " + id +
		"; Sat, 21 Nov 2026 09:00:00 +0000\r\n"
}

func message(trace string) []byte {
	return []byte(trace + "From: a@b.example\r\nSubject: about " + id + "\r\n\r\nbody\r\n")
}

const lmtp = "Return-Path: <a@b.example>\r\nDelivered-To: u1@company.test\r\nReceived: from mx.company.test by mail.company.test with LMTP\r\n\tid " + other +
	" for <u1@company.test>; Sat, 21 Nov 2026 09:00:01 +0000\r\n"

func TestQueueID(t *testing.T) {
	for name, tt := range map[string]struct{ header, want string }{
		"alone":                  {ours(id), id},
		"below a backend's":      {lmtp + ours(id), id},
		"the topmost of ours":    {ours(other) + ours(id), other},
		"lines that end in LF":   {strings.ReplaceAll(lmtp+ours(id), "\r\n", "\n"), id},
		"unfolded":               {strings.ReplaceAll(ours(id), "\r\n\t", " "), id},
		"another host name":      {strings.ReplaceAll(ours(id), "mx.company.test", "mx2.company.test"), id},
		"without TLS":            {"Received: from [192.0.2.1] by mx (Crossfade) with SMTP id " + id + "\r\n for <u@v.test>; Sat\r\n", id},
		"a name that looks ours": {"Received: from by ([192.0.2.1]) by mx.company.test with SMTP id " + id + "; Sat\r\n", ""},
		"what a client said":     {"Received: from (Crossfade) id " + id + " by mx with SMTP; Sat\r\n", ""},
		"not in the subject":     {"Subject: by mx (Crossfade) id " + id + "\r\n", ""},
		"nothing":                {"", ""},
		"cut short":              {"Received: from x by mx (Crossfade) id", ""},
	} {
		if got := find.QueueID([]byte(tt.header)); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func account(s *realtest.IMAP) imapconn.Account {
	return imapconn.Account{
		Server: imapconn.Server{Address: s.IMAPAddr, Mode: imapconn.TLSNone}, Login: imapconn.Login{User: user, Password: s.Password},
	}
}

// TestServers: on every kind of server a message is found in whatever folder it
// lies, and what only looks like it is not.
func TestServers(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) *realtest.IMAP{
		"dovecot": func(t *testing.T) *realtest.IMAP { return &realtest.StartDovecot(t, realtest.DovecotOptions{}).IMAP },
		"dovecot INBOX": func(t *testing.T) *realtest.IMAP {
			return &realtest.StartDovecot(t, realtest.DovecotOptions{Layout: realtest.DotINBOX}).IMAP
		},
		"dovecot sdbox": func(t *testing.T) *realtest.IMAP {
			return &realtest.StartDovecot(t, realtest.DovecotOptions{Layout: realtest.Sdbox}).IMAP
		},
		"cyrus":   func(t *testing.T) *realtest.IMAP { return &realtest.StartCyrus(t, realtest.CyrusOptions{}).IMAP },
		"courier": func(t *testing.T) *realtest.IMAP { return &realtest.StartCourier(t, realtest.CourierOptions{}).IMAP },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			for _, trace := range []string{"", lmtp, lmtp + ours(other), ours(other) + ours(id)} {
				s.Append(t, user, "INBOX", mailtest.StoredMessage{Body: message(trace)})
			}
			q := find.Query{ID: id, Since: time.Now(), Memory: &find.Memory{}}
			look(t, s, q, 0)
			junk, deep := s.Folder("Junk"), s.Folder("Lists", "2026")
			s.Append(t, user, deep, mailtest.StoredMessage{Body: message(lmtp + ours(id))})
			for _, p := range look(t, s, q, 1) {
				if p.Folder != deep || p.UID == 0 || p.Validity == 0 {
					t.Errorf("it is in %+v", p)
				}
			}
			s.Append(t, user, junk, mailtest.StoredMessage{Body: message(ours(id))})
			q.Copies = 2
			look(t, s, q, 2)
			q.Copies = 3
			s.Append(t, user, "INBOX", mailtest.StoredMessage{Body: message(ours(id)), InternalDate: time.Now().Add(-4 * 24 * time.Hour)})
			look(t, s, q, 2) // that one came before
			q.Since = time.Now().Add(-5 * 24 * time.Hour)
			look(t, s, q, 3)
			q.Memory = nil
			look(t, s, q, 3)
		})
	}
}

// look asks, and fails when it is not so often there.
func look(t *testing.T, s *realtest.IMAP, q find.Query, want int) []find.Place {
	t.Helper()
	places, err := find.Message(t.Context(), &imapconn.Dialer{}, account(s), q)
	if err != nil || len(places) != want {
		t.Fatalf("found %v, %v, want %d", places, err, want)
	}
	return places
}

// TestManyMessages: where much arrived the server's own search is tried, and each
// message is compared when it says nothing.
func TestManyMessages(t *testing.T) {
	s := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never"})
	c := s.Login(t, user)
	for n := range 620 {
		body := message(lmtp + ours(fmt.Sprintf("01ARZ3NDEKTSV4RRFFQ69G%04d", n)))
		if n == 5 {
			body = message(lmtp + ours(id))
		}
		cmd := c.Append("INBOX", int64(len(body)), nil)
		if _, err := cmd.Write(body); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	look(t, &s.IMAP, find.Query{ID: id, Since: time.Now()}, 1)
	look(t, &s.IMAP, find.Query{ID: id, Since: time.Now(), Copies: 2}, 1)
	look(t, &s.IMAP, find.Query{ID: other, Since: time.Now()}, 0)

	var read atomic.Int64
	d := imapconn.Dialer{NetDial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &counted{c, &read}, err
	}}
	q := find.Query{ID: other, Since: time.Now(), Memory: &find.Memory{}}
	var took [2]int64
	for i := range took {
		read.Store(0)
		if places, err := find.Message(t.Context(), &d, account(&s.IMAP), q); err != nil || len(places) > 0 {
			t.Fatal(places, err)
		}
		took[i] = read.Load()
	}
	if took[1] > took[0]/20 {
		t.Errorf("the second look read %d octets, the first %d", took[1], took[0])
	}
	q.ID = id
	if places, err := find.Message(t.Context(), &d, account(&s.IMAP), q); err != nil || len(places) != 1 {
		t.Errorf("what is remembered is not found: %v, %v", places, err)
	}
}

// counted counts what is read.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// TestErrors tells a server that cannot be asked from a mailbox that cannot be.
func TestErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	down := imapconn.Account{Server: imapconn.Server{Address: l.Addr().String(), Mode: imapconn.TLSNone}}
	if _, err := find.Message(t.Context(), &imapconn.Dialer{}, down, find.Query{ID: id}); !errors.Is(err, find.ErrUnreachable) {
		t.Errorf("a server that is down: %v", err)
	}
	s := realtest.StartDovecot(t, realtest.DovecotOptions{Users: []string{user}})
	acct := account(&s.IMAP)
	acct.Login.Password = "wrong"
	var login *imapconn.LoginError
	if _, err := find.Message(t.Context(), &imapconn.Dialer{}, acct, find.Query{ID: id}); !errors.As(err, &login) || errors.Is(err, find.ErrUnreachable) {
		t.Errorf("a wrong password: %v", err)
	}
}
