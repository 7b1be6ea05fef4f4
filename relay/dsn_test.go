package relay

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"mime"
	"mime/multipart"
	netmail "net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crossfade/mail"

	"github.com/google/go-cmp/cmp"
)

var updateDSN = flag.Bool("update-dsn", false, "write testdata/dsn anew")

var dsnNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func dsnTestReport(kind mail.Notify) *dsnReport {
	return &dsnReport{
		id: "01KJX0000000000000000DSN00", hostname: "mx.example.org", kind: kind, now: dsnNow, remote: "old.internal:25",
		env: &mail.Envelope{ID: "01KJX0000000000000000ABC00", From: outAddr("sender@far.test"), Received: dsnNow.Add(-5 * time.Hour),
			EnvID: "envelope 7", MessageID: "<1@far.test>"},
		original: []byte("Subject: one\r\n\r\ntext\r\n"), full: true,
	}
}

func dsnReports() map[string]*dsnReport {
	failed := dsnTestReport(mail.NotifyFailure)
	failed.rcpts = []dsnRcpt{
		{rcpt: mail.Recipient{Addr: outAddr("ada@example.org"), Orig: outAddr("sales@example.org"), ORcpt: "rfc822;sales@example.org"}, action: "failed",
			status: mail.Enhanced{5, 2, 2}, reply: mail.Reply{Code: 552, Enhanced: mail.Enhanced{5, 2, 2}, Text: "mailbox is full\nplease call " + strings.Repeat("somebody ", 20)}},
		{rcpt: mail.Recipient{Addr: outAddr("bob@example.org")}, action: "failed", status: mail.Enhanced{4, 4, 7}, reason: "The receiving mail system could not be reached."},
	}
	evil := dsnTestReport(mail.NotifyFailure)
	evil.env.EnvID, evil.env.MessageID = "x\r\nBcc: victim@v.test", "<a\r\n b>"
	evil.original, evil.full = []byte("Subject: one\r\n"), false
	evil.rcpts = []dsnRcpt{{rcpt: mail.Recipient{Addr: outAddr(`"a> b"@example.org`), ORcpt: "rfc822;x\r\nAction: delivered"}, action: "failed", status: mail.Enhanced{5, 0, 0},
		reply: mail.Reply{Code: 550, Text: "no\r\n\r\n--=_01KJX0000000000000000DSN00--\r\n\x1b[31m\x00ü\u2028" + strings.Repeat("x", 3000)}}}
	delayed := dsnTestReport(mail.NotifyDelay)
	delayed.retryTo, delayed.full, delayed.original = dsnNow.Add(115*time.Hour), false, []byte("Subject: one\r\n")
	delayed.rcpts = []dsnRcpt{{rcpt: mail.Recipient{Addr: outAddr("ada@example.org")}, action: "delayed", status: mail.Enhanced{4, 4, 1}, reason: "The receiving mail system could not be reached."}}
	relayed := dsnTestReport(mail.NotifySuccess)
	relayed.full, relayed.original = false, []byte("Subject: one\r\n")
	relayed.rcpts = []dsnRcpt{{rcpt: mail.Recipient{Addr: outAddr("ada@example.org")}, action: "relayed", status: mail.Enhanced{2, 0, 0}, reply: mail.Reply{Code: 250, Text: "ok"}}}
	global := dsnTestReport(mail.NotifyFailure)
	global.env.UTF8, global.env.From = true, outAddr("jürgen@far.test")
	global.original = []byte("Subject: grün\r\n\r\nö\r\n")
	global.rcpts = []dsnRcpt{{rcpt: mail.Recipient{Addr: outAddr("bjørn@example.org"), ORcpt: "utf-8;bjørn@example.org"}, action: "failed", status: mail.Enhanced{5, 6, 7},
		reply: mail.Reply{Code: 550, Enhanced: mail.Enhanced{5, 6, 7}, Text: "nicht möglich"}}}
	return map[string]*dsnReport{"failed": failed, "evil": evil, "delayed": delayed, "relayed": relayed, "global": global}
}

func TestDSNGolden(t *testing.T) {
	for name, report := range dsnReports() {
		t.Run(name, func(t *testing.T) {
			body, utf8, eight := report.build()
			checkDSN(t, body, name != "global")
			if utf8 != (name == "global") || eight != (name == "global") {
				t.Errorf("utf8 %v, eight %v", utf8, eight)
			}
			file := filepath.Join("testdata", "dsn", name+".eml")
			if *updateDSN {
				if err := os.WriteFile(file, body, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(body)); d != "" {
				t.Error(d)
			}
		})
	}
}

// checkDSN reads a notification the way a mail client does.
func checkDSN(t *testing.T, body []byte, ascii bool) {
	t.Helper()
	for i, line := range strings.SplitAfter(string(body), "\n") {
		if line != "" && !strings.HasSuffix(line, "\r\n") || strings.Count(line, "\r") > 1 || len(line) > 1000 {
			t.Errorf("line %d: %.60q (%d octets)", i+1, line, len(line))
		}
	}
	if ascii && !isASCIIBytes(body) {
		t.Error("8-bit text in a notification that does not declare it")
	}
	m, err := netmail.ReadMessage(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if m.Header.Get("Auto-Submitted") != "auto-replied" || m.Header.Get("Bcc") != "" {
		t.Errorf("header %v", m.Header)
	}
	typ, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || typ != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("%s %v, error %v", typ, params, err)
	}
	mr := multipart.NewReader(m.Body, params["boundary"])
	parts := 0
	for ; ; parts++ {
		p, err := mr.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		if parts == 1 && strings.Contains(string(text), "\nAction: delivered") {
			t.Errorf("a stranger wrote into the status: %s", text)
		}
	}
	if parts != 3 {
		t.Errorf("%d parts, want 3", parts)
	}
}

func TestDSNOriginal(t *testing.T) {
	long := strings.Repeat("x", 2000)
	tests := []struct {
		name, in string
		full     bool
		want     string
		wantFull bool
	}{
		{"whole", "A: b\r\n\r\ntext\r\n", true, "A: b\r\n\r\ntext\r\n", true},
		{"header only", "A: b\r\n c\r\n\r\ntext\r\n", false, "A: b\r\n c\r\n", false},
		{"no body", "A: b\r\n", false, "A: b\r\n", false},
		{"no line end", "A: b", false, "A: b\r\n", false},
		{"line too long for mail", "A: b\r\n\r\n" + long + "\r\n", true, "A: b\r\n", false},
		{"header line too long", "A: " + long + "\r\nB: c\r\n\r\n", true, "A: " + long[:995] + "\r\nB: c\r\n", false},
		{"endless header line", "A: " + strings.Repeat(long, 10) + "\r\nB: c\r\n", false, "A: " + long[:995] + "\r\nB: c\r\n", false},
		{"too large", "A: b\r\n\r\n" + strings.Repeat("text\r\n", 200_000), true, "A: b\r\n", false},
		{"empty", "", true, "", true},
	}
	for _, tt := range tests {
		got, full, err := dsnOriginal(strings.NewReader(tt.in), tt.full)
		if err != nil || string(got) != tt.want || full != tt.wantFull {
			t.Errorf("%s: %.80q, full %v, error %v", tt.name, got, full, err)
		}
	}
	if got, _, err := dsnOriginal(strings.NewReader(strings.Repeat("A: b\r\n", 100_000)), false); err != nil || len(got) > dsnMaxHeader+1000 {
		t.Errorf("%d octets of an endless header, error %v", len(got), err)
	}
	boom := errors.New("boom")
	for _, full := range []bool{true, false} {
		if _, _, err := dsnOriginal(errReader{boom}, full); !errors.Is(err, boom) {
			t.Errorf("error %v", err)
		}
	}
}

func TestDSNReturn(t *testing.T) {
	for _, tt := range []struct {
		kind mail.Notify
		ret  mail.Ret
		size int64
		want bool
	}{
		{mail.NotifyFailure, "", 100, true}, {mail.NotifyFailure, mail.RetFull, 100, true}, {mail.NotifyFailure, mail.RetHdrs, 100, false},
		{mail.NotifyFailure, mail.RetFull, dsnMaxFull + 1, false}, {mail.NotifyDelay, mail.RetFull, 100, false}, {mail.NotifySuccess, mail.RetFull, 100, false},
	} {
		if got := dsnReturnsFull(tt.kind, &mail.Envelope{Ret: tt.ret, Size: tt.size}); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

func FuzzDSN(f *testing.F) {
	f.Add("<a\nBcc:b@c>", "rfc822;a\nX:b", "e\nX:y", "A: b\r\n\r\nx")
	f.Add("550 no\r\n--x", "rfc822;a@b", "env", "A: b\r\n\r\nx")
	f.Fuzz(func(t *testing.T, text, orcpt, envid, original string) {
		d := dsnTestReport(mail.NotifyFailure)
		d.env.EnvID, d.env.MessageID = envid, text
		header, _, err := dsnOriginal(strings.NewReader(original), false)
		if err != nil || !dsnLinesFit(header) {
			t.Fatalf("%q, error %v", header, err)
		}
		d.original, d.full = nil, false
		d.rcpts = []dsnRcpt{{rcpt: mail.Recipient{Addr: outAddr("a@b.test"), ORcpt: orcpt}, action: "failed", status: mail.Enhanced{5, 0, 0}, reply: mail.Reply{Code: 550, Text: text}}}
		body, _, _ := d.build()
		checkDSN(t, body, true)
	})
}
