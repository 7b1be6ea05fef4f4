package pop3_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/backfill/pop3"
	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/emersion/go-imap/v2"
)

const user = "anna@example.org"

func job(src backfill.Source, dst *realtest.Dovecot) backfill.Job {
	return backfill.Job{User: user, Host: "mx.example.org", From: src, Dest: imapconn.Account{
		Server: imapconn.Server{Address: dst.IMAPAddr, Mode: imapconn.TLSNone},
		Login:  imapconn.Login{User: user, Password: "secret"},
	}}
}

func pass(t testing.TB, l backfill.Ledger, j backfill.Job) backfill.Report {
	t.Helper()
	r, err := (&backfill.Copier{Ledger: l, Settle: 100 * time.Millisecond}).Pass(t.Context(), j, backfill.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func letter(n int, text string) mailtest.StoredMessage {
	when := time.Date(2015, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(n) * time.Hour)
	head := fmt.Sprintf("Received: from a (b [192.0.2.1])\r\n by mx; %s\r\nDate: Thu, 1 Jan 1998 00:00:00 +0000\r\nSubject: letter %d\r\n\r\n", when.Format(time.RFC1123Z), n)
	return mailtest.StoredMessage{Body: []byte(head + text), InternalDate: when}
}

func sums(msgs []mailtest.StoredMessage) []string {
	var out []string
	for _, m := range msgs {
		out = append(out, fmt.Sprintf("%x %s", sha256.Sum256(m.Body), m.InternalDate.UTC().Format(time.RFC3339)))
	}
	slices.Sort(out)
	return out
}

// TestMailboxOverPOP3 copies from a real server and never twice.
func TestMailboxOverPOP3(t *testing.T) {
	src := realtest.StartDovecot(t, realtest.DovecotOptions{POP3: true, MailFsync: "never", MasterUser: "master"})
	dst := realtest.StartDovecot(t, realtest.DovecotOptions{MailFsync: "never"})
	texts := []string{"plain\r\n", ".\r\n..\r\n.x\r\n", "", strings.Repeat("line of a large message\r\n", 70000), "two\r\n\r\n\r\n"}
	for n := range 60 {
		src.Append(t, user, "INBOX", letter(n, texts[n%5]+fmt.Sprint(n)+"\r\n"))
		texts[3] = "now small\r\n"
	}
	src.Append(t, user, "INBOX", letter(3, strings.Repeat("line of a large message\r\n", 70000)))
	from := pop3.Source{Server: pop3.Server{Address: src.POP3Addr, Mode: pop3.TLSNone}, Login: pop3.Login{User: user, Password: "secret"}}
	l := &mailtest.Ledger{}
	if r := pass(t, l, job(from, dst)); r.Copied != 61 || len(r.Problems) > 0 {
		t.Errorf("first pass: %+v", r)
	}
	if want, got := sums(src.Messages(t, user, "INBOX")), sums(dst.Messages(t, user, "INBOX")); !slices.Equal(want, got) {
		t.Errorf("they differ:\n%v\n%v", want, got)
	}
	if r := pass(t, l, job(from, dst)); !r.Clean() || r.Messages != 61 {
		t.Errorf("second pass: %+v", r)
	}
	if n := len(src.Messages(t, user, "INBOX")); n != 61 {
		t.Errorf("%d messages are left on the source", n)
	}
	// Numbers of the session shift when something is deleted.
	c := src.Login(t, user)
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	if err := c.Store(imap.UIDSetNum(1, 2), &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}}, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Expunge().Close(); err != nil {
		t.Fatal(err)
	}
	src.Append(t, user, "INBOX", letter(99, "new\r\n"))
	from.Login = pop3.Login{User: "master", Password: "mastersecret", Authz: user}
	if r := pass(t, l, job(from, dst)); r.Copied != 1 || len(r.Problems) > 0 {
		t.Errorf("third pass: %+v", r)
	}
	if v, err := (&backfill.Copier{Ledger: l}).Verify(t.Context(), job(from, dst)); err != nil || !v.OK() || !strings.HasPrefix(v.Source, "pop3 127.0.0.1:") {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// TestTLS: STLS with a real server, TLS from the first octet, and a certificate
// that is another's.
func TestTLS(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("mail.test")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	src := realtest.StartDovecot(t, realtest.DovecotOptions{POP3: true, TLS: &files, MailFsync: "never"})
	src.Append(t, user, "INBOX", letter(1, "text\r\n"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	implicit := serveOn(t, tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}), func(_ int, line string) string { return plain(line) })
	for _, c := range []struct {
		address string
		mode    pop3.TLSMode
		name    string
		want    int
	}{{src.POP3Addr, pop3.TLSStart, "mail.test", 1}, {src.POP3Addr, pop3.TLSStart, "other.test", -1},
		{implicit.l.Addr().String(), pop3.TLSImplicit, "mail.test", 2}, {implicit.l.Addr().String(), pop3.TLSImplicit, "", -1}} {
		s := pop3.Source{Server: pop3.Server{Address: c.address, Mode: c.mode, TLS: &tls.Config{RootCAs: ca.Pool(), ServerName: c.name}},
			Login: pop3.Login{User: user, Password: "secret"}}
		n, err := s.Probe(t.Context())
		if (err != nil) != (c.want < 0) || err == nil && n != c.want || err != nil && !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
	}
	bare := serve(t, func(_ int, line string) string {
		if line == "STLS" {
			return "-ERR no TLS\r\n"
		}
		return plain(line)
	}).source()
	bare.Server.Mode = pop3.TLSStart
	if _, err := bare.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "STLS") {
		t.Errorf("without TLS: %v", err)
	}
}

// script is a server that answers as it is told, once for each connection.
type script struct {
	l     net.Listener
	mu    sync.Mutex
	heard []string
	conns int
}

// serve answers each line with answer's text; an empty one ends the connection.
func serve(t *testing.T, answer func(conn int, line string) string) *script {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, answer)
}

func serveOn(t *testing.T, l net.Listener, answer func(conn int, line string) string) *script {
	s := &script{l: l}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			n := s.conns
			s.mu.Unlock()
			wg.Go(func() { s.talk(c, n, answer) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return s
}

func (s *script) talk(c net.Conn, n int, answer func(int, string) string) {
	defer c.Close()
	fmt.Fprint(c, answer(n, ""))
	for r := bufio.NewScanner(c); r.Scan(); {
		s.mu.Lock()
		s.heard = append(s.heard, r.Text())
		s.mu.Unlock()
		text := answer(n, r.Text())
		if text == "" {
			return
		}
		if _, err := io.WriteString(c, text); err != nil || r.Text() == "QUIT" {
			return
		}
	}
}

func (s *script) source() pop3.Source {
	return pop3.Source{Server: pop3.Server{Address: s.l.Addr().String(), Mode: pop3.TLSNone}, Login: pop3.Login{User: user, Password: "geheim"}}
}

// plain answers as a small server with two messages.
func plain(line string) string {
	switch line {
	case "CAPA":
		return "-ERR what?\r\n"
	case "UIDL":
		return "+OK\r\n1 aaa\r\n2 bbb\r\n.\r\n"
	case "LIST":
		return "+OK 2 messages\r\n1 99999\r\n2 1\r\n.\r\n"
	case "RETR 1":
		return "+OK\r\nDate: Fri, 2 Jan 2015 03:04:05 +0000\r\n\r\n..dot\r\n.\r\n"
	case "RETR 2":
		return "+OK 5 octets\r\nSubject: two\nbare LF\n.\nand a dot alone\r\r\n..\r\n\r\n.\r\n"
	}
	return "+OK\r\n"
}

type taken struct {
	buf  bytes.Buffer
	got  map[uint32]string
	date map[uint32]time.Time
}

func (k *taken) Begin(uint32, int64) (io.Writer, error) { k.buf.Reset(); return &k.buf, nil }
func (k *taken) End(m imapconn.Meta) error {
	k.got[m.UID], k.date[m.UID] = k.buf.String(), m.Date
	return nil
}

func fetch(t *testing.T, s pop3.Source, l backfill.Ledger, uids ...uint32) (*taken, []imapconn.Failure, error) {
	t.Helper()
	n, err := backfill.NewNumbers(t.Context(), l, user)
	if err != nil {
		t.Fatal(err)
	}
	box, err := s.Open(t.Context(), n)
	if err != nil {
		return nil, nil, err
	}
	defer box.Close()
	r := box.NewReader()
	if _, err := r.Select(imapconn.Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	k := &taken{got: map[uint32]string{}, date: map[uint32]time.Time{}}
	failures, err := r.Fetch(uids, imapconn.Items{Body: true, Flags: true, Date: true}, k)
	return k, failures, err
}

// TestBodiesAreExact: dots, bare line feeds and sizes that lie.
func TestBodiesAreExact(t *testing.T) {
	s := serve(t, func(_ int, line string) string { return plain(line) })
	k, failures, err := fetch(t, s.source(), &mailtest.Ledger{}, 1, 2)
	if err != nil || len(failures) > 0 {
		t.Fatal(failures, err)
	}
	want := map[uint32]string{1: "Date: Fri, 2 Jan 2015 03:04:05 +0000\r\n\r\n.dot\r\n", 2: "Subject: two\nbare LF\n.\nand a dot alone\r\r\n.\r\n\r\n"}
	if !maps.Equal(k.got, want) {
		t.Errorf("%v", k.got)
	}
	if !k.date[1].Equal(time.Date(2015, 1, 2, 3, 4, 5, 0, time.UTC)) || !k.date[2].IsZero() {
		t.Errorf("%v", k.date)
	}
	for _, line := range s.heard {
		if strings.HasPrefix(line, "DELE") {
			t.Error("it deletes")
		}
	}
}

// TestConnectionThatEnds: what came whole counts, what did not is asked for again,
// by the id and not by the number.
func TestConnectionThatEnds(t *testing.T) {
	s := serve(t, func(conn int, line string) string {
		switch {
		case conn == 1 && line == "RETR 2":
			return "+OK\r\nSubject: cut" // and nothing more
		case conn == 1 && line != "" && strings.HasPrefix(line, "QUIT"):
			return ""
		case conn == 2 && line == "UIDL":
			return "+OK\r\n1 bbb\r\n.\r\n"
		case conn == 2 && line == "LIST":
			return "+OK\r\n1 1\r\n.\r\n"
		case conn == 2 && line == "RETR 1":
			return "+OK\r\nSubject: two\r\n\r\n.\r\n"
		}
		return plain(line)
	})
	src := s.source()
	// The script does not close by itself inside an answer: a proxy cuts it.
	src.Server.Address = cutAfter(t, src.Server.Address, "Subject: cut")
	k, failures, err := fetch(t, src, &mailtest.Ledger{}, 1, 2)
	if err != nil || len(failures) > 0 || k.got[2] != "Subject: two\r\n\r\n" || len(k.got) != 2 {
		t.Errorf("%v, %v, %v", k.got, failures, err)
	}
}

// cutAfter forwards to a server, and ends a connection after the server said text.
func cutAfter(t *testing.T, to, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				return
			}
			wg.Go(func() { io.Copy(up, c); up.Close() })
			wg.Go(func() {
				defer c.Close()
				defer up.Close()
				var all []byte
				buf := make([]byte, 4096)
				for {
					n, err := up.Read(buf)
					all = append(all, buf[:n]...)
					if _, werr := c.Write(buf[:n]); err != nil || werr != nil || bytes.Contains(all, []byte(text)) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// TestRefusals: each ends in words that an operator can use.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		line, answer, want string
		temporary          bool
	}{
		"no UIDL":       {"UIDL", "-ERR unknown command\r\n", "no UIDL", false},
		"in use":        {"PASS geheim", "-ERR [IN-USE] mailbox is locked\r\n", "next pass tries again", true},
		"password":      {"PASS geheim", "-ERR [AUTH] no\r\n", "PASS: the server answered -ERR [AUTH] no", false},
		"no answer":     {"USER " + user, "HTTP/1.1 400 Bad\r\n", "no answer in POP3", false},
		"lists differ":  {"LIST", "+OK\r\n1 5\r\n.\r\n", "UIDL has message 2", false},
		"list is odd":   {"LIST", "+OK\r\n1 5\r\nx y\r\n.\r\n", "is no message", false},
		"one id twice":  {"UIDL", "+OK\r\n1 a\r\n1 b\r\n.\r\n", "is no message", false},
		"greeting":      {"", "-ERR [SYS/TEMP] later\r\n", "later", true},
		"ends at once":  {"", "+OK", "the connection ended", false},
		"line too long": {"", "+OK " + strings.Repeat("x", 100<<10) + "\r\n", "longer than any answer", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(_ int, line string) string {
				if line == c.line {
					return c.answer
				}
				return plain(line)
			})
			src := s.source()
			if name == "ends at once" {
				src.Server.Address = cutAfter(t, src.Server.Address, "+OK")
			}
			_, _, err := fetch(t, src, &mailtest.Ledger{}, 1)
			var e *pop3.Error
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &e) && e.Temporary() != c.temporary {
				t.Errorf("%v", err)
			}
			if strings.Contains(fmt.Sprint(err), "geheim") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

// TestMessagesThatAreRefused are failures, and the others come.
func TestMessagesThatAreRefused(t *testing.T) {
	s := serve(t, func(_ int, line string) string {
		switch line {
		case "CAPA":
			return "+OK\r\nPIPELINING\r\nUIDL\r\nUSER\r\n.\r\n"
		case "RETR 1":
			return "-ERR no such message\r\n"
		}
		return plain(line)
	})
	k, failures, err := fetch(t, s.source(), &mailtest.Ledger{}, 1, 2, 7)
	if err != nil || len(k.got) != 1 || len(failures) != 2 || failures[0].UID != 1 || failures[0].Gone || failures[1].UID != 7 || !failures[1].Gone {
		t.Errorf("%v, %+v, %v", k.got, failures, err)
	}
}
