package pop3

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// stuff writes a message as a server does.
func stuff(message []byte) []byte {
	var out []byte
	for i, c := range message {
		if c == '.' && (i == 0 || i > 1 && message[i-1] == '\n' && message[i-2] == '\r') {
			out = append(out, '.')
		}
		out = append(out, c)
	}
	return append(out, ".\r\n"...)
}

func FuzzBody(f *testing.F) {
	f.Add([]byte("a\r\n.b\r\n..\r\n\n.\n\r.\r"))
	f.Add([]byte("."))
	f.Add(bytes.Repeat([]byte(".\r\n"), 50))
	f.Fuzz(func(t *testing.T, message []byte) {
		message = append(message, '\r', '\n')
		wire := append(stuff(message), "+OK next\r\n"...)
		br := bufio.NewReaderSize(bytes.NewReader(wire), 16)
		got, err := io.ReadAll(&body{br: br})
		if err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%q came as %q, %v", message, got, err)
		}
		if rest, _ := io.ReadAll(br); string(rest) != "+OK next\r\n" {
			t.Fatalf("%q is left", rest)
		}
		cut := bufio.NewReader(bytes.NewReader(wire[:len(wire)-len("+OK next\r\n")-1]))
		if _, err := io.ReadAll(&body{br: cut}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut short: %v", err)
		}
		received(message)
	})
}

func FuzzReplies(f *testing.F) {
	f.Add("-ERR [IN-USE] no", "1 a\n2 b", "1 5\n2 6")
	f.Add("+OK", "1 a\n1 b", "0 -1")
	f.Fuzz(func(t *testing.T, reply, ids, sizes string) {
		_, err := parseReply("X", reply)
		var e *Error
		if ok := len(reply) >= 3 && strings.EqualFold(reply[:3], "+OK"); err == nil && !ok || errors.As(err, &e) && ok {
			t.Fatalf("%q: %v", reply, err)
		}
		list, err := join(strings.Split(ids, "\n"), strings.Split(sizes, "\n"))
		for i, e := range list {
			if err != nil || e.num <= 0 || e.size < 0 || e.id == "" || i > 0 && e.num <= list[i-1].num {
				t.Fatalf("%+v, %v", list, err)
			}
		}
	})
}
