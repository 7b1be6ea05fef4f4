package cutover

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestOriginOf(t *testing.T) {
	lmtp := "Received: from old.example (localhost [127.0.0.1])\r\n\tby old.example with LMTP id x\r\n\t(envelope-from <a@b>); Mon, 1 Jan 2026 00:00:00 +0000\r\n"
	for header, want := range map[string]string{
		"Received: from mx.sender.test (mx.sender.test [192.0.2.7]) by old.example with ESMTP; x\r\n\r\n": "mx.sender.test [192.0.2.7]",
		"Received: from HELO (real.sender.test. [192.0.2.7])\r\n by old.example; x\r\nSubject: x\r\n\r\n": "real.sender.test [192.0.2.7]",
		"Received: from helo.test (unknown [IPv6:2001:db8::7]) by old.example; x\r\n\r\n":                 "helo.test [2001:db8::7]",
		"Received: from [192.0.2.7] by old.example; x\r\n\r\n":                                            "[192.0.2.7]",
		"Received: from smtp.test by old.example; x\r\n\r\n":                                              "smtp.test",
		lmtp + "Received: from mx.sender.test ([192.0.2.8]) by old.example; x\n\n":                        "mx.sender.test [192.0.2.8]",
		lmtp + "Subject: x\r\n\r\n": localOrigin,
		"Received: by old.example (Postfix, from userid 1000) id x; y\r\n\r\nReceived: from body.test by x; y\r\n\r\n": localOrigin,
		"Received: from localhost by old.example; x\r\n\r\n":                                                           localOrigin,
		"":          localOrigin,
		"no header": localOrigin,
		"Received: from cut.test (cut.test [192.0.2.7]) by ol":         localOrigin,
		"Received: from \x1b[31m (\"evil [192.0.2.9]) by x; y\r\n\r\n": "[192.0.2.9]",
	} {
		if got := originOf([]byte(header)); got != want {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
}

func FuzzOriginOf(f *testing.F) {
	f.Add([]byte("Received: from a (b [192.0.2.7]) by c; d\r\n\r\n"))
	f.Add([]byte("Received: from\r\n\tx ([IPv6:fe80::1%eth0])\r\n by y\r\n\r\n"))
	f.Fuzz(func(t *testing.T, header []byte) {
		got := originOf(header)
		if got == "" || len(got) > 320 || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q", got)
		}
	})
}
