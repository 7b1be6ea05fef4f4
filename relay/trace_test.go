package relay

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/relay/wire"
)

func TestAppendReceived(t *testing.T) {
	ann := mail.Recipient{Addr: mail.Address{Local: "ann", Domain: "example.org"}}
	bob := mail.Recipient{Addr: mail.Address{Local: "bob", Domain: "example.org"}}
	utf8 := mail.Recipient{Addr: mail.Address{Local: "jörg", Domain: "example.org"}}
	via := func(r mail.Recipient) mail.Recipient {
		r.Orig = mail.Address{Local: "team", Domain: "example.org"}
		return r
	}
	v4, v6 := netip.MustParseAddrPort("[::ffff:192.0.2.1]:25"), netip.MustParseAddrPort("[2001:db8::1]:25")
	state := &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}
	for _, test := range []struct {
		info  wire.Info
		utf8  bool
		rcpts []mail.Recipient
		want  string
	}{
		{wire.Info{Helo: "c.example", Remote: v4}, false, []mail.Recipient{ann},
			"from c.example ([192.0.2.1]) by mx.example.org (Crossfade) with SMTP id ID for <ann@example.org>;"},
		{wire.Info{Helo: "c.example", Remote: v6, ESMTP: true}, false, []mail.Recipient{ann, bob},
			"from c.example ([IPv6:2001:db8::1]) by mx.example.org (Crossfade) with ESMTP id ID;"},
		{wire.Info{Helo: "[192.0.2.1]", ESMTP: true, TLS: state}, false, []mail.Recipient{via(ann), via(bob)},
			"from [192.0.2.1] by mx.example.org (Crossfade) with ESMTPS (TLS1.3 TLS_AES_128_GCM_SHA256) id ID for <team@example.org>;"},
		{wire.Info{Helo: "c.example", ESMTP: true}, true, []mail.Recipient{utf8},
			"from c.example by mx.example.org (Crossfade) with UTF8SMTP id ID for <jörg@example.org>;"},
		{wire.Info{Helo: "c.example", ESMTP: true, TLS: state}, true, []mail.Recipient{ann},
			"from c.example by mx.example.org (Crossfade) with UTF8SMTPS (TLS1.3 TLS_AES_128_GCM_SHA256) id ID for <ann@example.org>;"},
		{wire.Info{Helo: "x) by evil (Crossfade\r\n\xff"}, false, []mail.Recipient{utf8},
			"from x??by?evil??Crossfade??? by mx.example.org (Crossfade) with SMTP id ID;"},
		{wire.Info{}, false, nil, "from unknown by mx.example.org (Crossfade) with SMTP id ID;"},
	} {
		env := &mail.Envelope{ID: "ID", UTF8: test.utf8, Recipients: test.rcpts, Received: time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("", 3600))}
		got := string(appendReceived(nil, traceInfo{Info: test.info, by: "mx.example.org (Crossfade)", tls: tlsName(test.info.TLS), env: env}))
		want := "Received: " + test.want + " Sun, 01 Mar 2026 12:00:00 +0100\r\n"
		if unfold(got) != want {
			t.Errorf("got  %q\nwant %q", unfold(got), want)
		}
		for _, line := range strings.Split(got, "\r\n") {
			if len(line) > 78 {
				t.Errorf("a line of %d octets: %q", len(line), line)
			}
		}
	}
}

// scanAll hands text to a scan in pieces of the given size.
func scanAll(text string, size int) (*headerScan, error) {
	h := &headerScan{own: "mx.example.org (Crossfade)"}
	for len(text) > 0 {
		n := min(size, len(text))
		if err := h.scan([]byte(text[:n])); err != nil {
			return h, err
		}
		text = text[n:]
	}
	return h, h.close()
}

func TestHeaderScan(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, test := range []struct {
		text      string
		hops      int
		messageID string
	}{
		{"", 0, ""},
		{"\r\n", 0, ""},
		{"Message-ID: <a@b>\r\n", 0, "<a@b>"},
		{"Message-ID: <a@b>", 0, "<a@b>"},
		{"message-id:<a@b>\nReceived: x\n\tby y\n\nReceived: no", 1, "<a@b>"},
		{"Message-ID: <a@b>\r\nMessage-ID: <c@d>\r\n\r\n", 0, "<a@b>"},
		{"Message-ID:\r\n\t<a@b>\r\n \r\nX: y\r\n", 0, "<a@b>"},
		{"Message-ID : <a@b>\r\n\r\nMessage-ID: <c@d>", 0, "<a@b>"},
		{"X: " + long + "\r\nReceived: " + long + "\r\nMessage-ID: <a@b>\r\n", 1, "<a@b>"},
		{"Message-ID: " + long + "\r\n\r\n", 0, long[:maxMsgID]},
		{"Message-ID: <a\x01\xff@b>\r\n\r\n", 0, "<a?�@b>"},
		{"From ann Sun Mar  1 12:00:00 2026\r\nReceived: x\r\n\r\n", 1, ""},
		{"Received: x\r\nFrom ann\r\nReceived: x\r\n\r\n", 1, ""},
		{"Received: x\r\nno field here\r\nReceived: x\r\n\r\n", 1, ""},
		{": x\r\nReceived: x\r\n\r\n", 0, ""},
		{" folded from nothing\r\nReceived: x\r\n\r\n", 1, ""},
		{"X-Received: x\r\nReceived-SPF: x\r\nReceived:\r\n\r\n", 1, ""},
	} {
		for _, size := range []int{1, 2, 7, 1 << 20} {
			h, err := scanAll(test.text, size)
			if err != nil || !h.over || h.hops != test.hops || h.messageID != test.messageID {
				t.Errorf("%.60q in pieces of %d: %d hops, Message-ID %.40q, over %v, %v", test.text, size, h.hops, h.messageID, h.over, err)
			}
		}
	}
	if _, err := scanAll(strings.Repeat("X: y\r\n", maxHeader/6+1), 4096); !errors.Is(err, errHeader) {
		t.Errorf("a header without end: %v", err)
	}
	if _, err := scanAll("X: "+strings.Repeat("y", maxHeader), 4096); !errors.Is(err, errHeader) {
		t.Errorf("a line without end: %v", err)
	}
}

// However the message is cut into pieces, the scan sees the same, keeps little,
// and fails only as it may.
func FuzzHeaderScan(f *testing.F) {
	f.Add("Received: by mx.example.org (Crossfade)\r\nMessage-ID: <a@b>\r\n\r\nx", 3)
	f.Add("From x\r\nReceived:\r\n by\r\n mx.example.org\r\n (Crossfade)\r\n\r\n", 1)
	f.Add("\n\n", 1)
	f.Fuzz(func(t *testing.T, text string, size int) {
		size = 1 + (size&0x7FFFFFFF)%64
		one, err1 := scanAll(text, len(text)+1)
		two, err2 := scanAll(text, size)
		if fmt.Sprint(err1) != fmt.Sprint(err2) || one.hops != two.hops || one.ownHops != two.ownHops || one.messageID != two.messageID || one.over != two.over {
			t.Fatalf("in one piece %+v, %v; in pieces of %d %+v, %v", one, err1, size, two, err2)
		}
		if err1 != nil && !errors.Is(err1, errManyHops) && !errors.Is(err1, errOwnHops) && !errors.Is(err1, errLoopLater) && !errors.Is(err1, errHeader) {
			t.Fatal(err1)
		}
		if cap(one.line) > 4*maxFieldLen || cap(one.text) > 4*maxFieldLen || len(one.messageID) > 3*maxMsgID {
			t.Fatalf("it keeps too much: %d, %d, %d", cap(one.line), cap(one.text), len(one.messageID))
		}
		if strings.ContainsAny(one.messageID, "\r\n") {
			t.Fatalf("Message-ID %q", one.messageID)
		}
	})
}

// Whatever a client calls itself, the trace header is one header field.
func FuzzReceivedHelo(f *testing.F) {
	f.Add("client.example")
	f.Add("a b(c)\r\nX: y")
	f.Fuzz(func(t *testing.T, helo string) {
		env := &mail.Envelope{ID: "ID"}
		b := appendReceived(nil, traceInfo{Info: wire.Info{Helo: helo}, by: "mx.example.org (Crossfade)", env: env})
		lines := bytes.Split(bytes.TrimSuffix(b, []byte("\r\n")), []byte("\r\n"))
		for i, line := range lines {
			if i > 0 && line[0] != '\t' || len(line) > 300 || bytes.ContainsAny(line, "\r\n\x00") {
				t.Fatalf("%q", b)
			}
		}
		if bytes.Count(b, []byte("(Crossfade)")) != 1 {
			t.Fatalf("a client forged our mark: %q", b)
		}
	})
}
