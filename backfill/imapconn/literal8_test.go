package imapconn

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestPlainLiterals(t *testing.T) {
	for in, want := range map[string]string{
		"* 1 FETCH (UID 1 BODY[] ~{5}\r\na\x00\r\nb)\r\nC1 OK done\r\n":                         "* 1 FETCH (UID 1 BODY[] {5}\r\na\x00\r\nb)\r\nC1 OK done\r\n",
		"* 1 FETCH (BODY[] {8}\r\nx ~{3}\r\n)\r\n* 2 FETCH (BODY[] ~{0}\r\n)\r\n":               "* 1 FETCH (BODY[] {8}\r\nx ~{3}\r\n)\r\n* 2 FETCH (BODY[] {0}\r\n)\r\n",
		"* 1 FETCH (BODY[HEADER] ~{1}\r\nx BODY[] ~{2}\r\nyz FLAGS ())\r\n":                     "* 1 FETCH (BODY[HEADER] {1}\r\nx BODY[] {2}\r\nyz FLAGS ())\r\n",
		"* OK this ends in ~{5}\r\n* NO so does this ~{5}\r\nC2 OK and this ~{5}\r\n+ ~{1}\r\n": "* OK this ends in ~{5}\r\n* NO so does this ~{5}\r\nC2 OK and this ~{5}\r\n+ ~{1}\r\n",
		"* SEARCH " + strings.Repeat("123456789 ", 20_000) + "\r\n":                             "* SEARCH " + strings.Repeat("123456789 ", 20_000) + "\r\n",
		"* 1 FETCH (BODY[] ~{9}\r\ncut":                                                         "* 1 FETCH (BODY[] {9}\r\ncut",
		"* 1 FETCH (FLAGS":                                                                      "* 1 FETCH (FLAGS",
		"~{3}\r\nabc":                                                                           "~{3}\r\nabc",
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(in), "octet by octet": iotest.OneByteReader(strings.NewReader(in))} {
			got, err := io.ReadAll(&plainLiterals{br: bufio.NewReaderSize(r, 64)})
			if string(got) != want || err != nil {
				t.Errorf("%s, %.80q: %.80q, %v", name, in, got, err)
			}
		}
	}
}

// TestReaderTakesLiteral8: Cyrus 3.6 sends a message with a NUL so. go-imap took it for nonsense, the message could not be
// read back, and a pass that had to look for it could never end.
func TestReaderTakesLiteral8(t *testing.T) {
	f := newFake(t, 1, 2, 3)
	f.caps += " BINARY"
	f.msgs[1].body = "Subject: NUL\r\n\r\na\x00b ~{3}\r\n"
	f.literal8 = true
	c, failures, err := fetchAll(t, f, 1, 2, 3)
	if err != nil || len(failures) > 0 || len(c.got) != 3 || c.got[2] != f.msgs[1].body {
		t.Errorf("%v, %v, %v", c.got, failures, err)
	}
	if f.conns != 1 {
		t.Errorf("%d connections", f.conns)
	}
}

func FuzzPlainLiterals(f *testing.F) {
	f.Add("* 1 FETCH (BODY[] ~{2}\r\na\x00)\r\nC1 OK x\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		// Without a literal8 nothing may change.
		in = strings.ReplaceAll(in, "~", "-")
		if got, err := io.ReadAll(&plainLiterals{br: bufio.NewReaderSize(strings.NewReader(in), 16)}); string(got) != in || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}
