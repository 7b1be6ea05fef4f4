package pop3

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"crossfade/backfill/imapconn"
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

// endless is a message that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// announced notes what is said of the size of a message.
type announced struct{ size, octets int64 }

func (a *announced) Begin(_ uint32, size int64) (io.Writer, error) { a.size = size; return a, nil }
func (a *announced) Write(p []byte) (int, error)                   { a.octets += int64(len(p)); return len(p), nil }
func (a *announced) End(imapconn.Meta) error                       { return errors.New("it does not end") }

// TestMessageWithoutEnd: what LIST says of a message is not believed, and one that
// does not end is given up.
func TestMessageWithoutEnd(t *testing.T) {
	const most = 3 << 20
	b := &box{most: most, conn: &conn{br: bufio.NewReader(io.MultiReader(strings.NewReader("+OK\r\n"), endless{}))}}
	var a announced
	err := b.take(1, entry{num: 1, size: inMemory}, imapconn.Items{Body: true}, &a)
	if !errors.Is(err, errTooLarge) || a.size <= inMemory || a.octets > most {
		t.Errorf("announced as %d, %d octets were handed on: %v", a.size, a.octets, err)
	}
}

// TestDateOfALongHeader: a header is read in the time of its length.
func TestDateOfALongHeader(t *testing.T) {
	long := "X-Long: x\r\n" + strings.Repeat(" \r\n", maxDates/3) // 80,000 lines of one field
	began := time.Now()
	for range 20 {
		received([]byte(long))
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	for header, want := range map[string]int64{
		"Received: a\r\n by b;\r\n\tFri, 2 Jan 2015 03:04:05 +0000\r\nDate: Thu, 1 Jan 1998 00:00:00 +0000\r\n\r\n":   1420167845,
		"DATE: Thu, 1 Jan 1998\r\n 00:00:00 +0000\r\nDate: Thu, 1 Jan 1999 00:00:00 +0000\r\nReceived: odd; date\r\n": 883612800,
		"Subject: x\r\n\r\nDate: Thu, 1 Jan 1998 00:00:00 +0000\r\n":                                                  time.Time{}.Unix(),
		"Date: Thu, 1 Jan 1998 00:00:00 +0000":                                                                        883612800,
	} {
		if got := received([]byte(header)); got.Unix() != want {
			t.Errorf("%q: %v", header, got)
		}
	}
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
