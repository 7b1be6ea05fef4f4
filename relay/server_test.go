package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/wire"
	"crossfade/router"

	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"
)

// Each file in testdata is a dialogue against a server with small limits.
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/in-*.dlg")
	if err != nil || len(files) == 0 {
		t.Fatal("no dialogues", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".dlg"), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newSite(t, router.PolicyReject, func(c *ServerConfig) {
				c.Limits = Limits{MaxMessageSize: 1000, MaxRecipients: 3}
				c.Wire = wire.Config{MaxErrors: 5, MaxRcptErrors: 5}
			})
			if err := mailtest.RunDialogue(t.Context(), s.addr, string(script)); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		})
	}
}

var receivedLine = regexp.MustCompile(`^Received: from client\.example \(\[127\.0\.0\.1\]\) by mx\.example\.org \(Crossfade\)\r\n` +
	`\twith ESMTP id ([0-9A-Z]{26}) for <Info\+x@example\.org>;\r\n` +
	`\tSun, 01 Mar 2026 12:00:00 \+0000\r\n`)

// Below our trace header the message is what was sent (I9), and the reply names
// the id under which it is kept.
func TestReceiveMessage(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	c := s.hello()
	body := "From: a@b\r\nMessage-ID:\r\n <1@x>\r\nSubject: \xff\xfe 8 bit, not UTF-8\r\n\r\n.dot\r\n\x00nul\r\n"
	c.cmd("MAIL FROM:<Sender@Client.example> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=QQ+2B1", "250")
	c.cmd("RCPT TO:<Info+x@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;orig+40x.example", "250")
	c.cmd("DATA", "354")
	c.send(strings.Replace(body, ".dot", "..dot", 1) + ".\r\n")
	verdict := c.want("250 2.0.0 queued as ")
	c.cmd("QUIT", "221")
	msg := s.queue.one(t)
	match := receivedLine.FindStringSubmatch(msg.body)
	if match == nil {
		t.Fatalf("the trace header is not as it should be:\n%s", msg.body)
	}
	if got := msg.body[len(match[0]):]; got != body {
		t.Errorf("the message was changed:\n%q\n%q", got, body)
	}
	if id := strings.TrimPrefix(verdict, "250 2.0.0 queued as "); id != match[1] || id != string(msg.env.ID) || !msg.env.ID.Valid() {
		t.Errorf("the ids differ: %q, %q, %q", id, match[1], msg.env.ID)
	}
	msg.env.ID = ""
	if msg.env.Client.Addr.String() != c.conn.LocalAddr().String() {
		t.Errorf("client %v", msg.env.Client.Addr)
	}
	want := mail.Envelope{
		From: mail.Address{Local: "Sender", Domain: "client.example"}, Received: inNow, Size: int64(len(msg.body)),
		Body: mail.Body8BitMIME, Ret: mail.RetHdrs, EnvID: "QQ+1", MessageID: "<1@x>",
		Client: mail.Client{Addr: msg.env.Client.Addr, Helo: "client.example", ESMTP: true},
		Recipients: []mail.Recipient{{
			Addr: mail.Address{Local: "ann+x", Domain: "example.org"}, Orig: mail.Address{Local: "Info+x", Domain: "example.org"},
			User: "ann@example.org", ORcpt: "rfc822;orig@x.example", Notify: mail.NotifySuccess | mail.NotifyDelay,
		}},
	}
	if diff := cmp.Diff(want, msg.env, cmp.Comparer(func(a, b mail.Client) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if log := s.log.String(); !strings.Contains(log, "msg=received id="+match[1]) || strings.Contains(log, "nul") {
		t.Errorf("the event line is missing, or the body was logged:\n%s", log)
	}
}

// Senders that are no RFC's, but in use: their mail is taken as the systems
// behind us would take it, and they leave in a form that is correct.
func TestOddSenders(t *testing.T) {
	s := newSite(t, router.PolicyOld, nil)
	c := s.hello()
	long := strings.Repeat("bounce-", 20) + "ann=example.org"
	for from, want := range map[string]string{
		"john..doe@carrier.example": `"john..doe"@carrier.example`, "john.@carrier.example": `"john."@carrier.example`,
		long + "@service.example": long + "@service.example",
	} {
		c.cmd("MAIL FROM:<"+from+">", "250")
		c.cmd("RCPT TO:<ann@example.org>", "250")
		c.cmd("DATA", "354")
		c.send("Subject: x\r\n\r\nx\r\n.\r\n")
		c.want("250")
		if got := s.queue.last(t).env.From.String(); got != want {
			t.Errorf("%s became %s", from, got)
		}
	}
}

// The library takes the quotes off local parts. What a client hides in them must
// not come out as another recipient or as a parameter.
func TestQuotedLocalPartCannotInject(t *testing.T) {
	s := newSite(t, router.PolicyOld, nil)
	c := s.hello()
	c.cmd("MAIL FROM:<sender@client.example>", "250")
	c.cmd(`RCPT TO:<"victim> NOTIFY=NEVER "@example.org>`, "250")
	c.cmd(`RCPT TO:<"victim@other.example> NOTIFY=NEVER "@example.org>`, "550 5.7.1")
	c.cmd(`RCPT TO:<"victim@other.example"@other.example>`, "550 5.7.1")
	c.cmd(`RCPT TO:<victim@other.example@example.org>`, "553 5.1.3")
	c.cmd(`RCPT TO:<@example.org:victim@other.example>`, "550 5.7.1")
	c.cmd(`RCPT TO:<victim%other.example@example.org>`, "550 5.7.1")
	c.cmd(`RCPT TO:<other.example!victim@example.org>`, "550 5.7.1")
	c.cmd(`RCPT TO:<ann+x%other.example@example.org>`, "550 5.7.1")
	c.cmd("DATA", "354")
	c.send("Subject: x\r\n\r\nx\r\n.\r\n")
	c.want("250")
	var got []string
	for _, r := range s.queue.one(t).env.Recipients {
		got = append(got, r.Addr.String())
	}
	if diff := cmp.Diff([]string{`"victim> NOTIFY=NEVER "@example.org`}, got); diff != "" {
		t.Error(diff)
	}
}

func TestLongLinesAndOddEnds(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	c := s.hello()
	long := "Subject: x\r\n\r\n" + strings.Repeat("x", 64<<10-2) + "\r\n"
	if got := c.deliver(long, "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatalf("a line of 64 KiB: %s", got)
	}
	if msg := s.queue.all()[0]; !strings.HasSuffix(msg.body, long) {
		t.Error("the long line was changed")
	}
	// The library alone never sees the end of this message.
	if got := c.deliver("Subject: x\r\n\r\nx\r\r\n", "ann@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatalf("CR CR LF . CR LF: %s", got)
	}
	if got := c.deliver("Subject: x\r\n\r\nx\n.\r\nMAIL FROM:<evil@x>\r\n", "ann@example.org"); !strings.HasPrefix(got, "5") {
		t.Errorf("a smuggled end of data: %s", got)
	}
	if n := len(s.queue.all()); n != 2 {
		t.Errorf("%d messages are queued", n)
	}
}

// A message whose client goes away before its end is never queued, whichever way
// it goes.
func TestCutOffMessageIsNotQueued(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := ca.ServerConfig("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	for _, encrypted := range []bool{false, true} {
		for name, text := range map[string]string{
			"DATA":                 "DATA\r\nSubject: x\r\n\r\nhalf a mess",
			"DATA, whole line":     "DATA\r\nSubject: x\r\n\r\nhalf\r\n",
			"BDAT LAST":            "BDAT 100 LAST\r\nSubject: x\r\n\r\nhalf\r\n",
			"BDAT, between chunks": "BDAT 20\r\nSubject: x\r\n\r\nhalf\r\n",
			"BDAT, no chunk":       "BDAT 20\r\nSubject: x\r\n\r\nhalf\r\nBDAT 0",
		} {
			t.Run(fmt.Sprintf("%s, TLS %v", name, encrypted), func(t *testing.T) {
				s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.TLS = func() *tls.Config { return conf } })
				c := s.hello()
				if encrypted {
					c.startTLS(&tls.Config{RootCAs: ca.Pool(), ServerName: "mx.example.org"})
				}
				c.cmd("MAIL FROM:<a@b.example>", "250")
				c.cmd("RCPT TO:<ann@example.org>", "250")
				c.send(text)
				if tc, ok := c.conn.(*tls.Conn); ok {
					_ = tc.CloseWrite() // close_notify, and only then the end of the connection
				} else {
					_ = c.conn.(*net.TCPConn).CloseWrite()
				}
				_, _ = io.Copy(io.Discard, c.br)
				_ = c.conn.Close()
				s.idle()
				if s.queue.tries == 0 {
					t.Error("the store was never called: this proves nothing")
				}
				if n := len(s.queue.all()); n != 0 {
					t.Errorf("%d messages are queued: %q", n, s.queue.all()[0].body)
				}
			})
		}
	}
}

// The unknown is temporary, and its detail is for the log alone (I10).
func TestUnknownErrorsAreTemporary(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	for _, err := range []error{
		errors.New("open /var/lib/secret: input/output error"),
		fmt.Errorf("wrapped /secret: %w", io.ErrUnexpectedEOF),
		&smtp.SMTPError{Code: 250, Message: "secret"},
		mail.Replyf(250, mail.Enhanced{2, 0, 0}, "secret"),
		queue.ErrClosed,
		context.Canceled,
	} {
		s.queue.set(func(q *inQueue) { q.put = err })
		got := s.hello().deliver("Subject: x\r\n\r\nx\r\n", "ann@example.org")
		if got != "451 4.3.0 local error in processing, try again later" {
			t.Errorf("%v: the client is told %q", err, got)
		}
		if !strings.Contains(s.log.String(), err.Error()) {
			t.Errorf("%v is not in the log", err)
		}
	}
	s.queue.set(func(q *inQueue) { q.put, q.lazy = nil, true })
	if got := s.hello().deliver("Subject: x\r\n\r\nx\r\n", "ann@example.org"); !strings.HasPrefix(got, "451") {
		t.Errorf("a store that reads nothing: %q", got)
	}
	s.queue.set(func(q *inQueue) { q.lazy = false })
	s.table.breakDown(errors.New("secret table"))
	c := s.hello()
	c.cmd("MAIL FROM:<a@b.example>", "250")
	if got := c.cmd("RCPT TO:<ann@example.org>", "451 4.3.0"); strings.Contains(got, "secret") {
		t.Error(got)
	}
	s.table.breakDown(nil)
	c.cmd("RCPT TO:<loop@example.org>", "451 4.3.0")
	if len(s.queue.all()) != 0 {
		t.Error("something was queued")
	}
}

func TestRecipientsAreMerged(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	c := s.hello()
	c.cmd("MAIL FROM:<>", "250")
	c.cmd("RCPT TO:<ann@example.org> NOTIFY=NEVER", "250")
	c.cmd("RCPT TO:<team@example.org> NOTIFY=SUCCESS", "250")
	c.cmd("RCPT TO:<ANN@Example.org>", "250")
	c.cmd("RCPT TO:<bob@example.org> NOTIFY=SUCCESS", "250")
	c.cmd("DATA", "354")
	c.send("\r\nx\r\n.\r\n")
	c.want("250")
	msg := s.queue.one(t)
	if !msg.env.From.IsNull() || len(msg.env.Recipients) != 2 {
		t.Fatalf("%+v", msg.env)
	}
	ann, bob := msg.env.Recipients[0], msg.env.Recipients[1]
	if ann.User != "ann@example.org" || ann.Notify != mail.NotifySuccess|mail.NotifyFailure|mail.NotifyDelay {
		t.Errorf("%+v", ann)
	}
	if bob.User != "bob@example.org" || bob.Notify != mail.NotifySuccess || bob.Given().Local != "team" {
		t.Errorf("%+v", bob)
	}
	if strings.Contains(msg.body, " for ") {
		t.Errorf("the trace header tells one of several recipients:\n%s", msg.body)
	}
	// The next transaction starts from nothing.
	if got := c.deliver("\r\nx\r\n", "bob@example.org"); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	if rcpts := s.queue.all()[1].env.Recipients; len(rcpts) != 1 || rcpts[0].User != "bob@example.org" {
		t.Errorf("%+v", rcpts)
	}
}

func TestSMTPUTF8(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	c := s.hello()
	c.cmd("MAIL FROM:<jörg@client.example> SMTPUTF8 BODY=8BITMIME", "250")
	c.cmd("RCPT TO:<JÖRG@example.org>", "250")
	c.cmd("DATA", "354")
	c.send("Subject: ü\r\n\r\nx\r\n.\r\n")
	c.want("250")
	msg := s.queue.one(t)
	if !msg.env.UTF8 || msg.env.Recipients[0].User != "jörg@example.org" || !strings.Contains(msg.body, "with UTF8SMTP id") || !strings.Contains(msg.body, "for <JÖRG@example.org>") {
		t.Errorf("%+v\n%s", msg.env, msg.body)
	}
	c.cmd("MAIL FROM:<jörg@client.example>", "553 5.6.7")
	c.cmd("MAIL FROM:<a@client.example>", "250")
	c.cmd("RCPT TO:<jörg@example.org>", "553 5.6.7")
}

// Certificates are asked for at each handshake.
func TestSTARTTLSReloads(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	var conf atomic.Pointer[tls.Config]
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.TLS = conf.Load })
	if c := s.dial(); strings.Contains(c.want("220")+c.cmd("EHLO x", "250"), "STARTTLS") {
		t.Error("STARTTLS is offered without a certificate")
	}
	for _, name := range []string{"one.example", "two.example"} {
		fresh, err := ca.ServerConfig(name)
		if err != nil {
			t.Fatal(err)
		}
		conf.Store(fresh)
		c := s.hello()
		c.startTLS(&tls.Config{RootCAs: ca.Pool(), ServerName: name})
		if got := c.deliver("\r\nx\r\n", "ann@example.org"); !strings.HasPrefix(got, "250") {
			t.Fatal(got)
		}
	}
	msg := s.queue.all()[1]
	if !strings.HasPrefix(msg.env.Client.TLS, "TLS1.3 TLS_") || !strings.Contains(unfold(msg.body), " with ESMTPS (TLS1.3 TLS_") {
		t.Errorf("%q\n%s", msg.env.Client.TLS, msg.body)
	}
	if strings.Contains(s.queue.all()[0].body, "ESMTP id") {
		t.Error("the header says that there was no TLS")
	}
}

func unfold(s string) string { return strings.ReplaceAll(s, "\r\n\t", " ") }

// A whole group of commands in one packet is answered in order, one by one.
func TestPipelining(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	c := s.hello()
	c.send("MAIL FROM:<a@b.example>\r\nRCPT TO:<ann@example.org>\r\nRCPT TO:<x@other.example>\r\nMAIL FROM:<b@b.example>\r\n" +
		"RCPT TO:<nobody@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n" +
		"Subject: one\r\n\r\nx\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nSubject: two\r\n\r\nx\r\n.\r\nQUIT\r\n")
	for _, want := range []string{
		"250 2.1.0", "250 2.1.5", "550 5.7.1", "503 5.5.1", "550 5.1.1", "250 2.1.5", "354", "250 2.0.0 queued",
		"250 2.1.0", "250 2.1.5", "354", "250 2.0.0 queued", "221",
	} {
		c.want(want)
	}
	if msgs := s.queue.all(); len(msgs) != 2 || len(msgs[0].env.Recipients) != 2 || msgs[0].env.From.Local != "a" {
		t.Errorf("%+v", msgs)
	}
}

func TestManyClients(t *testing.T) {
	s := newSite(t, router.PolicyReject, nil)
	var wg sync.WaitGroup
	for i := range 20 {
		c := s.hello()
		wg.Go(func() {
			for j := range 10 {
				if got := c.deliver(fmt.Sprintf("Message-ID: <%d.%d@x>\r\n\r\nx\r\n", i, j), "ann@example.org", "bob@example.org"); !strings.HasPrefix(got, "250") {
					t.Errorf("%s", got)
				}
			}
		})
	}
	wg.Wait()
	seen, ids := make(map[string]bool), make(map[mail.ID]bool)
	for _, msg := range s.queue.all() {
		seen[msg.env.MessageID], ids[msg.env.ID] = true, true
		if !strings.Contains(msg.body, "Message-ID: "+msg.env.MessageID+"\r\n") {
			t.Fatalf("the envelope and the body of two messages are mixed up: %+v\n%s", msg.env, msg.body)
		}
	}
	if len(seen) != 200 || len(ids) != 200 {
		t.Errorf("%d messages, %d ids", len(seen), len(ids))
	}
}

func TestMetrics(t *testing.T) {
	var got []string
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) {
		c.Metrics = ServerMetrics{
			Received: func(size int64, rcpts int, wait time.Duration) {
				got = append(got, fmt.Sprintf("received %v %d %v", size > 100, rcpts, wait >= 0 && wait < time.Minute))
			},
			Refused: func(stage string, code int) { got = append(got, fmt.Sprintf("%s %d", stage, code)) },
		}
	})
	c := s.hello()
	c.cmd("MAIL FROM:<a@ b>", "501")
	c.cmd("MAIL FROM:<a@b..c>", "553")
	c.cmd("MAIL FROM:<a@b.example>", "250")
	c.cmd("RCPT TO:<a@b.example>", "550")
	c.cmd("RSET", "250")
	c.deliver("\r\n", "ann@example.org")
	c.deliver(strings.Repeat("x", 70_000)+"\r\n", "ann@example.org")
	c.deliver("a\n.\r\nb\r\n", "ann@example.org")
	s.queue.set(func(q *inQueue) { q.put = queue.ErrFull })
	c.deliver("\r\n", "ann@example.org")
	if diff := cmp.Diff([]string{"mail 553", "rcpt 550", "received true 1 true", "data 554", "data 550", "data 452"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestReplyTextIsPlain(t *testing.T) {
	for _, err := range []error{
		mail.Replyf(550, mail.Enhanced{5, 1, 1}, "a\r\n250 ok\x00 ü"),
		fmt.Errorf("deep: %w", mail.Replyf(550, mail.Enhanced{5, 1, 1}, "%s", strings.Repeat("x", 5000))),
		errors.New("x"),
		fmt.Errorf("wrapped: %w", smtp.ErrDataTooLarge),
	} {
		e, ok := smtpError(err).(*smtp.SMTPError) //nolint:errorlint // bare is the point
		if !ok || len(e.Message) > maxReplyText || strings.ContainsAny(e.Message, "\r\n\x00ü") || e.Code < 400 {
			t.Errorf("%v: %#v", err, e)
		}
	}
	if smtpError(nil) != nil {
		t.Error("no error, no reply")
	}
}

func TestSwaks(t *testing.T) {
	swaks := realtest.Need(t, "swaks")
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := ca.ServerConfig("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.TLS = func() *tls.Config { return conf } })
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), swaks, append([]string{"--server", host, "--port", port, "--helo", "swaks.example", "--from", "a@b.example"}, args...)...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("swaks %v: exit code %d, not %d\n%s", args, got, want, out)
		}
	}
	run(0, "--to", "ann@example.org,bob@example.org", "--body", "hello\n.\n..\nfrom swaks")
	run(0, "--to", "ann@example.org", "--pipeline")
	run(0, "--to", "postmaster@mx.example.org")
	run(24, "--to", "someone@elsewhere.example")
	if out, _ := exec.CommandContext(t.Context(), swaks, "--support").CombinedOutput(); strings.Contains(string(out), "=== TLS supported") {
		run(0, "--to", "ann@example.org", "--tls")
	} else {
		t.Log("swaks is without TLS here (Debian: libnet-ssleay-perl): only tried in clear")
	}
	msgs := s.queue.all()
	if len(msgs) < 3 || len(msgs[0].env.Recipients) != 2 || !strings.Contains(msgs[0].body, "hello\r\n.\r\n..\r\nfrom swaks") {
		t.Errorf("%d messages: %+v", len(msgs), msgs)
	}
}

// Postfix's load generator is the client of the benchmarks.
func TestSMTPSource(t *testing.T) {
	source := realtest.Need(t, "smtp-source")
	s := newSite(t, router.PolicyReject, func(c *ServerConfig) { c.Logger = nil })
	for _, args := range [][]string{{"-s", "10", "-m", "300"}, {"-d", "-s", "10", "-m", "300"}} {
		s.queue.set(func(q *inQueue) { q.msgs = nil })
		began := time.Now()
		cmd := exec.CommandContext(t.Context(), source, append(args, "-l", "4096", "-f", "a@b.example", "-t", "ann@example.org", "inet:"+s.addr)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("smtp-source %v: %v\n%s", args, err, out)
		}
		took := time.Since(began)
		msgs := s.queue.all()
		if fmt.Sprint(len(msgs)) != args[len(args)-1] {
			t.Errorf("smtp-source %v: %d messages are queued", args, len(msgs))
		}
		t.Logf("smtp-source %v: %.0f messages/s", args, float64(len(msgs))/took.Seconds())
	}
}
