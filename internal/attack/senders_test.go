package attack

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// goodLetter is a message with what senders have to take care of: 8 bit, dots,
// long lines, blanks at line ends.
func goodLetter(name string) []byte {
	return []byte("Date: Sun, 1 Mar 2026 12:00:00 +0000\r\nFrom: ann@sender.test\r\nTo: target@example.org\r\nSubject: " + name + ".\r\nMessage-ID: <" + name + "@sender.test>\r\n" +
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" +
		"Gr\u00fc\u00dfe \U0001f680\r\n.\r\n..\r\n.dot\r\n" + strings.Repeat("x", 900) + "\r\nblank at the end \r\n\r\n\r\n")
}

// senders is a relay with TLS in front of a recording backend.
type senders struct {
	f    *front
	sink *mailtest.Sink
	ca   string
	port string
}

func startSenders(t *testing.T) *senders {
	t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("127.0.0.1", "localhost", "mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "cf-senders-") // other users read the authority
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(dir, cert)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), fmt.Sprintf(", tls: {cert: %q, key: %q}", files.Cert, files.Key), "")
	_, port, _ := strings.Cut(f.smtp, ":")
	return &senders{f: f, sink: sink, ca: files.CA, port: port}
}

// arrives waits for a message and checks that it came over TLS, with just the
// bytes that were sent below our header and whatever header the sender added.
func (s *senders) arrives(t *testing.T, name, with string) mailtest.Message {
	t.Helper()
	var got []mailtest.Message
	until(t, 30*time.Second, name+" to arrive", func() error {
		got = slices.DeleteFunc(s.sink.Messages(), func(m mailtest.Message) bool { return !bytes.Contains(m.Body, []byte("Subject: "+name+".")) })
		if len(got) == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	m := got[0]
	if len(got) != 1 {
		t.Errorf("%s arrived %d times", name, len(got))
	}
	end := func(b []byte) []byte { return bytes.TrimRight(b, "\r\n") } // swaks adds an empty line
	if !bytes.HasSuffix(end(m.Body), end(goodLetter(name))) {
		t.Errorf("%s arrived as %q", name, m.Body)
	}
	below, err := belowOurs(m.Body)
	if err != nil {
		t.Fatal(err)
	}
	ours := strings.Join(strings.Fields(string(m.Body[:len(m.Body)-len(below)])), " ")
	if !strings.Contains(ours, " with "+with+" (TLS1.3 ") {
		t.Errorf("%s came by %q, want %s", name, ours, with)
	}
	return m
}

// has tells whether a command had all of these parameters.
func has(t *testing.T, what string, params []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(params, w) {
			t.Errorf("%s: %v lacks %s", what, params, w)
		}
	}
}

// TestSenders: swaks, msmtp, Exim and Postfix send to the relay over TLS, with
// pipelining, chunks, DSN and SMTPUTF8, each as it does by itself; what they ask
// for reaches the backend.
func TestSenders(t *testing.T) {
	t.Parallel()
	s := startSenders(t)
	t.Run("swaks", s.swaks)
	t.Run("msmtp", s.msmtp)
	t.Run("Exim", s.exim)
	t.Run("Postfix", s.postfix)
	figure(t, "swaks (TLS, PIPELINING), msmtp (TLS verified, DSN), Exim (TLS verified, CHUNKING, DSN, SMTPUTF8), Postfix (TLS, PIPELINING, DSN, SMTPUTF8): all arrived once with the bytes that were sent")
}

func (s *senders) swaks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "letter")
	if err := os.WriteFile(file, goodLetter("swaks"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, status := realtest.Swaks(t, t.Context(), s.f.smtp, "--from", "ann@sender.test", "--to", target, "--tls", "--pipeline", "--data", "@"+file)
	if status != 0 {
		t.Fatalf("status %d\n%s", status, out)
	}
	s.arrives(t, "swaks", "ESMTPS")
}

func (s *senders) msmtp(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), realtest.Need(t, "msmtp"), "--host=127.0.0.1", "--port="+s.port, "--tls=on", "--tls-starttls=on", "--tls-trust-file="+s.ca,
		"--from=ann@sender.test", "--dsn-notify=failure,delay", "--dsn-return=hdrs", "--domain=client.test", target)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	cmd.Stdin = bytes.NewReader(bytes.ReplaceAll(goodLetter("msmtp"), []byte("\r\n"), []byte("\n")))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := s.arrives(t, "msmtp", "ESMTPS")
	has(t, "MAIL", m.FromParams, "RET=HDRS")
	has(t, "RCPT", m.Rcpts[0].Params, "NOTIFY=FAILURE,DELAY")
}

// feed gives a letter to a mail server of the sender's, with all that it may ask
// for.
func feed(t *testing.T, addr, name string) {
	t.Helper()
	k, err := dialFrom("127.0.0.1", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	err = k.cmds("", "220", "EHLO client.test", "250", "MAIL FROM:<j\u00f6rg@sender.test> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B1", "250",
		"RCPT TO:<"+target+"> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;first@sender.test", "250", "DATA", "354")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.conn.Write(stuffed(goodLetter(name))); err != nil {
		t.Fatal(err)
	}
	if r, err := k.cmd("", "250"); err != nil {
		t.Fatal(r, err)
	}
}

func (s *senders) asked(t *testing.T, m mailtest.Message) {
	t.Helper()
	if m.From != "j\u00f6rg@sender.test" {
		t.Errorf("the sender is %q", m.From)
	}
	has(t, "MAIL", m.FromParams, "SMTPUTF8", "RET=HDRS", "ENVID=QQ+2B1")
	has(t, "RCPT", m.Rcpts[0].Params, "NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;first@sender.test")
}

func (s *senders) exim(t *testing.T) {
	e := realtest.StartExim(t, realtest.EximOptions{Domains: []string{"exim.test"}, NextHop: s.f.smtp, CA: s.ca})
	feed(t, e.Addr, "exim")
	s.asked(t, s.arrives(t, "exim", "UTF8SMTPS"))
	until(t, 10*time.Second, "Exim's log", func() error {
		log, err := os.ReadFile(filepath.Join(filepath.Dir(e.LogFile), "logs", "mainlog"))
		if err == nil && !bytes.Contains(log, []byte(" K C=\"250 ")) {
			err = fmt.Errorf("it does not say that the message went by BDAT:\n%s", log)
		}
		return err
	})
}

func (s *senders) postfix(t *testing.T) {
	p := realtest.StartPostfix(t, realtest.PostfixOptions{NextHop: "smtp:[127.0.0.1]:" + s.port,
		Extra: "smtp_tls_security_level = encrypt\nsmtp_tls_CAfile = " + s.ca + "\nsmtp_tls_loglevel = 1\n"})
	feed(t, p.Addr, "postfix")
	s.asked(t, s.arrives(t, "postfix", "UTF8SMTPS"))
}
