package smtpclient

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"crossfade/mail"
)

func TestReadReply(t *testing.T) {
	tests := []struct {
		in   string
		want mail.Reply
		ok   bool
	}{
		{"250 ok\r\n", mail.Reply{Code: 250, Text: "ok"}, true},
		{"250\r\n", mail.Reply{Code: 250}, true},
		{"250 ok\n", mail.Reply{Code: 250, Text: "ok"}, true},
		{"550 5.1.1 no such user\r\n", mail.Reply{Code: 550, Enhanced: mail.Enhanced{5, 1, 1}, Text: "no such user"}, true},
		{"550 5.7.515\r\n", mail.Reply{Code: 550, Enhanced: mail.Enhanced{5, 7, 515}}, true},
		{"550 4.1.1 wrong class\r\n", mail.Reply{Code: 550, Text: "4.1.1 wrong class"}, true},
		{"550 5.1.1.2 is a version\r\n", mail.Reply{Code: 550, Text: "5.1.1.2 is a version"}, true},
		{"550-5.1.1 one\r\n550 5.1.1 two\r\n", mail.Reply{Code: 550, Enhanced: mail.Enhanced{5, 1, 1}, Text: "one\ntwo"}, true},
		{"550-one\r\n550-\r\n550 5.1.1 two\r\n", mail.Reply{Code: 550, Enhanced: mail.Enhanced{5, 1, 1}, Text: "one\n\ntwo"}, true},
		{"250-2.0.0 one\r\n450 two\r\n", mail.Reply{Code: 450, Text: "one\ntwo"}, true},
		{"550 \x1b[31mred\x00\xff grün\r\n", mail.Reply{Code: 550, Text: "?[31mred?? grün"}, true},
		{"2500 ok\r\n", mail.Reply{}, false},
		{"650 ok\r\n", mail.Reply{}, false},
		{"100 ok\r\n", mail.Reply{}, false},
		{"\r\n", mail.Reply{}, false},
		{"25\r\n", mail.Reply{}, false},
	}
	for _, tt := range tests {
		got, err := readReply(bufio.NewReaderSize(strings.NewReader(tt.in), maxReplyLine))
		if got != tt.want || (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: %+v, error %v", tt.in, got, err)
		}
	}
}

// settled is what a message has to look like at the far end: the plain
// definition, to compare the fast one with.
func settled(in string) string {
	in = strings.ReplaceAll(in, "\r\n", "\n")
	in = strings.ReplaceAll(in, "\r", "\n")
	if in != "" && !strings.HasSuffix(in, "\n") {
		in += "\n"
	}
	lines := strings.SplitAfter(in, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = "." + l
		}
	}
	return strings.ReplaceAll(strings.Join(lines, ""), "\n", "\r\n")
}

func stuffed(t *testing.T, in string, r io.Reader) string {
	t.Helper()
	var out bytes.Buffer
	d := dotWriter{buf: make([]byte, 0, 7), write: func(b []byte) error { out.Write(b); return nil }}
	if err := d.copyFrom(r, int64(len(in)), make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	_ = d.flush()
	return out.String()
}

func TestDotStuffing(t *testing.T) {
	for _, in := range []string{"", "a", "a\r\n", ".", ".\r\n", "..\r\n", "a\r\n.\r\nb", "\r\n.\r\n", "a\n.\nb", "a\r.\rb", "\r\r\n.\r\n", "\n", "\r", "a\r",
		"\n.\r\n", "\r.\r\n", "\r\n.\n", "\r\n.\r", strings.Repeat("long", 100), "a\r\n" + strings.Repeat(".", 50)} {
		for _, r := range []io.Reader{strings.NewReader(in), iotest.OneByteReader(strings.NewReader(in)), iotest.DataErrReader(strings.NewReader(in))} {
			if got := stuffed(t, in, r); got != settled(in) {
				t.Errorf("%q: %q, want %q", in, got, settled(in))
			}
		}
	}
}

func FuzzDotStuffing(f *testing.F) {
	f.Add("a\r\n.\r\n")
	f.Add("\r.\n.\r\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		got := stuffed(t, in, strings.NewReader(in))
		if got != settled(in) {
			t.Fatalf("%q: %q, want %q", in, got, settled(in))
		}
		if strings.HasPrefix(got, ".\r\n") || strings.Contains(got, "\r\n.\r\n") {
			t.Fatalf("%q: a final dot inside the message: %q", in, got)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add([]byte("250-2.0.0 a\r\n250 2.0.0 b\r\n"))
	f.Add([]byte("550 5.1.1 \x1b\xff\r\n"))
	f.Add([]byte("250-SIZE 10\n250 x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		br := bufio.NewReaderSize(bytes.NewReader(in), maxReplyLine)
		for {
			r, err := readReply(br)
			if err != nil {
				return
			}
			if r.Code < 200 || r.Code > 599 || r.Enhanced != (mail.Enhanced{}) && r.Enhanced[0] != r.Code/100 {
				t.Fatalf("%q: %+v", in, r)
			}
			if strings.ContainsAny(r.Text, "\r\x00\x1b") || len(r.Text) > maxReplyText+2*maxReplyLine {
				t.Fatalf("%q: text %q", in, r.Text)
			}
			parseCaps(r.Text)
		}
	})
}

func FuzzXtext(f *testing.F) {
	f.Add("a+b=c\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		for _, out := range [][]byte{appendXtext(nil, in), appendUTF8Xtext(nil, in), appendORcpt(nil, "rfc822;"+in)} {
			for _, c := range bytes.TrimPrefix(out, []byte(" ORCPT=")) {
				if c <= ' ' || c >= 0x7f || c == '=' {
					t.Fatalf("%q: %q", in, out)
				}
			}
		}
	})
}

func TestDotWriterAllocates(t *testing.T) {
	body := strings.Repeat("a line of text\r\n", 500)
	buf, in := make([]byte, 0, bufferSize), make([]byte, bufferSize)
	r := strings.NewReader(body)
	n := testing.AllocsPerRun(100, func() {
		r.Reset(body)
		d := dotWriter{buf: buf, write: func([]byte) error { return nil }}
		if err := d.copyFrom(r, int64(len(body)), in); err != nil {
			t.Fatal(err)
		}
	})
	if n > 1 {
		t.Errorf("%v allocations for a message", n)
	}
}
