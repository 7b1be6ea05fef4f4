package backfill

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"

	"crossfade/backfill/imapconn"
)

func TestSevenBit(t *testing.T) {
	for msg, want := range map[string]bool{
		"":                                  true,
		"a: b\r\n\r\nc\r\n":                 true,
		"no line end":                       true,
		"a\x00":                             false,
		"ü":                                 false,
		"a\n":                               false,
		"a\rb\r\n":                          false,
		"a\r":                               false,
		strings.Repeat("x", 998):            true,
		strings.Repeat("x", 998) + "\r\nab": true,
		strings.Repeat("x", 999) + "\r\n":   false,
	} {
		if got, err := sevenBit(strings.NewReader(msg)); got != want || err != nil {
			t.Errorf("%.20q: %v, %v", msg, got, err)
		}
	}
}

// unwrap reads a wrapper as a client does, and gives its text and the message.
func unwrap(t testing.TB, raw []byte) (text string, message []byte, kind string) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	read := func() ([]byte, string) {
		p, err := parts.NextRawPart()
		if err != nil {
			t.Fatal(err)
		}
		var r io.Reader = p
		switch p.Header.Get("Content-Transfer-Encoding") {
		case "base64":
			r = base64.NewDecoder(base64.StdEncoding, p)
		case "quoted-printable":
			r = quotedprintable.NewReader(p)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type"))
		return b, kind
	}
	first, _ := read()
	message, kind = read()
	if _, err := parts.NextRawPart(); err != io.EOF {
		t.Errorf("a third part: %v", err)
	}
	return string(first), message, kind
}

// TestWrapper: whatever the message is, its octets come out again, and the mail
// that carries it has nothing that a server could refuse.
func TestWrapper(t *testing.T) {
	for what, msg := range map[string]string{
		"clean":     "From: a@b\r\n\r\nhello\r\n",
		"empty":     "",
		"NUL":       "From: a@b\r\n\r\na\x00b\r\n",
		"8 bit":     "Subject: gr\xfc\xdfe\r\n\r\n\xff\xfe",
		"bare":      "a: b\n\nc\rd\r\r\n\r",
		"long":      "a: b\r\n\r\n" + strings.Repeat("long", 100_000),
		"boundary":  "a: b\r\n\r\n--=_crossfade_\r\n--\r\n",
		"no header": "\r\n\r\n\r\n",
	} {
		for _, plain := range []bool{true, false} {
			if clean, _ := sevenBit(strings.NewReader(msg)); plain && !clean {
				continue
			}
			o := &incoming{meta: imapconn.Meta{UID: 7, Date: time.Unix(1e9, 0).UTC()}, id: identityOf(t, "", msg), body: bodyOf(t, msg)}
			w := &wrapper{user: "anna@example.org", host: "mx.example.org", folder: "Grüße/" + strings.Repeat("ü", 200), original: o,
				words: "APPEND: the server answered NO no", now: time.Unix(2e9, 0)}
			m, err := w.build(plain, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			raw := make([]byte, m.body.size)
			if _, err := m.body.ReadAt(raw, 0); err != nil {
				t.Fatal(err)
			}
			if ok, _ := sevenBit(bytes.NewReader(raw)); !ok || m.id != identityOf(t, "", string(raw)) {
				t.Errorf("%s: the wrapper itself is not clean, or has another identity", what)
			}
			text, got, kind := unwrap(t, raw)
			if string(got) != msg {
				t.Errorf("%s, plain %v: %q instead of %q", what, plain, got, msg)
			}
			if want := map[bool]string{true: "message/rfc822", false: "application/octet-stream"}[plain]; kind != want {
				t.Errorf("%s: %s", what, kind)
			}
			for _, part := range []string{w.folder, "UID there: 7", "Sun, 09 Sep 2001 01:46:40 +0000", "octets", w.words} {
				if !strings.Contains(text, part) {
					t.Errorf("%s: %q is not in the text", what, part)
				}
			}
			m.body.close()
		}
	}
}

func TestRemovePair(t *testing.T) {
	var p pairs
	for i := range uint32(10) {
		p.add(i+1, i+101)
	}
	for _, u := range []uint32{5, 1, 10, 5, 99, 2} {
		p.remove(u)
	}
	b, err := p.MarshalText()
	if string(b) != "3:4>103,6:9>106" || err != nil {
		t.Errorf("%s, %v", b, err)
	}
}

func bodyOf(t testing.TB, msg string) *body {
	t.Helper()
	b, err := newBody(int64(len(msg)), false, "", &arena{})
	if err == nil {
		_, err = b.Write([]byte(msg))
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}
