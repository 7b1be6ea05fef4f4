package attack

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	netmail "net/mail"
	"slices"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
)

// refusals are what a hostile backend, or one that repeats what a stranger said,
// answers to a message.
var refusals = []string{
	"550 5.7.1 no", "550-5.7.1 first\r\n550-Injected: x\r\n550 5.7.1 \r\n", "550 5.7.1 a\rInjected: b", "550 5.7.1 --=_boundary--", "550 5.7.1 \x00\x07\x1b[31m", "550 5.7.1 \xff\xfe \u0085 \u2028 \U0001f680",
	"550 5.7.1 " + strings.Repeat("a", 1500), "550 5.7.1 " + strings.Repeat("a b ", 300), "550 5.7.1 <script>alert(1)</script>", "550 Content-Type: text/html", "554 5.6.0 ; x=y (comment \"quote", "550-\r\n550-\r\n550 \r\n", "550",
}

// originals are messages and parameters that a stranger writes and we return.
var originals = []struct{ mail, rcpt, header string }{
	{"", "", "Subject: @.\r\n"},
	{" ENVID=a+3E+20b+3B", " ORCPT=rfc822;a+20b+3B+3Cx+3E", "Subject: @.\r\nMessage-ID: <a@b>\r\n Bcc: victim@other.test\r\n"},
	{" ENVID=--+3D_01", ` ORCPT=utf-8;\x{2028}Injected:\x{20}x`, "Subject: @.\r\nMessage-ID: <a@b> (c)\r\n"},
	{" ENVID=" + strings.Repeat("a", 100), " ORCPT=rfc822;" + strings.Repeat("b", 400), "Subject: @.\r\nMessage-ID: " + strings.Repeat("c", 900) + "\r\n"},
	{"", "", "Subject: @.\r\nMessage-ID: <\xff\xfe@\u2028x>\r\n"},
	{"", "", "Subject: @.\r\nContent-Type: multipart/mixed; boundary=\"=_01\"\r\n\r\n--=_01\r\n\r\n--=_01--\r\n"},
	{"", "", "Subject: @.\r\nX-Long: " + strings.Repeat("d", 5000) + "\r\n"},
	{" RET=FULL", "", "\tInjected: first line\r\nSubject: @.\r\n"},
}

// TestNotices: what strangers write and backends answer comes back in the
// notices that we write ourselves. Each is one message to the sender alone, with
// just the fields that a notice has, and three parts.
func TestNotices(t *testing.T) {
	t.Parallel()
	sink, err := mailtest.NewSink(mailtest.SinkConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	f := startFront(t, sink.URL(""), "", "")
	n := 0
	for i, r := range refusals {
		sink.SetHook(func(ev mailtest.Event) mailtest.Action {
			if ev.Step == mailtest.StepDot && ev.Message.From != "" {
				return mailtest.Garbage(strings.TrimSuffix(r, "\r\n") + "\r\n")
			}
			return mailtest.Action{}
		})
		for j, o := range originals {
			n++
			id := fmt.Sprintf("notice-%02d-%02d", i, j)
			if err := giveOriginal(f.smtp, id, o.mail, o.rcpt, o.header); err != nil {
				t.Fatalf("%q: %v", o, err)
			}
		}
		until(t, 20*time.Second, "the notices", func() error {
			if have := sink.Count(); have < n {
				return fmt.Errorf("%d of %d, for %.60q", have, n, r)
			}
			return nil
		})
	}
	got := sink.Messages()
	for _, m := range got {
		if m.From != "" || len(m.Rcpts) != 1 || m.Rcpts[0].Addr != attacker {
			t.Errorf("a notice from <%s> to %v", m.From, m.Rcpts)
		}
		if err := ourNotice.judge(m.Body); err != nil {
			t.Errorf("%v:\n%s", err, m.Body)
		}
	}
	figure(t, "%d notices about %d hostile messages, refused in %d hostile ways: all well-formed, to the sender alone", len(got), len(originals), len(refusals))
}

func giveOriginal(addr, id, mail, rcpt, header string) error {
	k, err := dialTalk(addr)
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.cmds("", "220", "EHLO client.test", "250", "MAIL FROM:<"+attacker+">"+mail, "250", "RCPT TO:<"+target+">"+rcpt, "250", "DATA", "354"); err != nil {
		return err
	}
	if _, err := io.WriteString(k.conn, strings.ReplaceAll(header, "@.", id+".")+"\r\nbody\r\n.\r\n"); err != nil {
		return err
	}
	_, err = k.cmd("", "250")
	return err
}

// noticeForm is what the notices of a server have.
type noticeForm struct {
	to             string   // the field To
	fields, status []string // the fields of the header, and those of the part for programs
}

// ourNotice is the form of ours.
var ourNotice = noticeForm{
	to:     "<" + attacker + ">",
	fields: []string{"Received", "From", "To", "Subject", "Date", "Message-Id", "In-Reply-To", "References", "Auto-Submitted", "Mime-Version", "Content-Type", "Content-Transfer-Encoding"},
	status: []string{"Original-Envelope-Id", "Reporting-Mta", "X-Crossfade-Queue-Id", "Arrival-Date", "Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-Mta", "Diagnostic-Code",
		"Last-Attempt-Date", "Will-Retry-Until"},
}

// judge takes a notice apart with the parsers of Go's library.
func (f noticeForm) judge(b []byte) error {
	msg, err := netmail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		return err
	}
	for name, values := range msg.Header {
		if !slices.Contains(f.fields, name) || len(values) != 1 {
			return fmt.Errorf("the field %s is in it %d times", name, len(values))
		}
	}
	for _, l := range bytes.Split(b, []byte("\r\n")) {
		if len(l) > 998 || bytes.ContainsAny(l, "\r\n") {
			return fmt.Errorf("a line of %d octets, or a line end in it", len(l))
		}
	}
	if msg.Header.Get("To") != f.to {
		return fmt.Errorf("it is for %s", msg.Header.Get("To"))
	}
	_, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	n := 0
	for ; ; n++ {
		p, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		text, err := io.ReadAll(p)
		if err != nil {
			return err
		}
		if n == 1 {
			if err := f.judgeStatus(text); err != nil {
				return err
			}
		}
	}
	if n != 3 {
		return fmt.Errorf("it has %d parts", n)
	}
	return nil
}

// judgeStatus looks at each group of fields of the part for programs.
func (f noticeForm) judgeStatus(text []byte) error {
	groups := strings.Split(strings.TrimRight(string(text), "\r\n"), "\r\n\r\n")
	if len(groups) != 2 {
		return fmt.Errorf("the status has %d groups of fields", len(groups))
	}
	for _, g := range groups {
		m, err := netmail.ReadMessage(strings.NewReader(g + "\r\n\r\n"))
		if err != nil {
			return fmt.Errorf("the status: %w", err)
		}
		for name, values := range m.Header {
			if !slices.Contains(f.status, name) || len(values) != 1 {
				return fmt.Errorf("the status has the field %s %d times", name, len(values))
			}
		}
	}
	return nil
}
