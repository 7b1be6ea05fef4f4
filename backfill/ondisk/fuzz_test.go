package ondisk

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func FuzzMbox(f *testing.F) {
	f.Add([]byte("From a Fri Jan  2 03:04:05 2015\nX-IMAPbase: 5 0000000009 k\nX-UID: 3\nContent-Length: 5\n\nbody\n\nFrom b Fri Jan  2 03:04:05 2015\nContent-Length: 99\n\n"))
	f.Add([]byte("\r\n\r\nFrom a Fri Jan  2 03:04:05 2015\r\n\r\nFrom b Fri Jan 12 03:04 +0100 2015\r\nX-IMAP: 1 2\n"))
	f.Add([]byte("From a Fri Jan  2 03:04:05 2015"))
	f.Add([]byte("From a Fri Jan  2 03:04:05 2015\n" + strings.Repeat("x", 300<<10) + "\nFrom a Fri Jan  2 03:04:05 2015\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		x, err := indexMbox(r, int64(len(b)))
		if err != nil {
			return
		}
		last, names := int64(0), map[string]bool{}
		for _, m := range x.messages {
			if m.start < last || m.body < m.start || m.end < m.body || m.end > int64(len(b)) {
				t.Fatalf("%+v behind %d, of %d octets", m, last, len(b))
			}
			if last = m.end; names[m.name] {
				t.Fatalf("two messages are %s", m.name)
			}
			names[m.name] = true
			src, err := m.open(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(src); err != nil {
				t.Fatal(err)
			}
		}
		seen := map[uint32]bool{}
		for name, uid := range x.store().UIDs {
			if seen[uid] || uid == 0 || uid > x.last {
				t.Fatalf("%s has UID %d of %d", name, uid, x.last)
			}
			seen[uid] = true
		}
	})
}

func FuzzUIDList(f *testing.F) {
	f.Add([]byte("3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1\n25006 :1276528487.M364837P9451.kurkku,S=1355,W=1394:2,\n25017 W2481 :1276533073.M242911P3632.kurkku:2,F\n2"))
	f.Add([]byte("1 1275660208 25022\n5 name\n6 name\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseUIDList(b)
		if err == nil && (s.Validity == 0 || s.Next == 0) {
			t.Fatalf("%+v", s)
		}
		for name, uid := range s.UIDs {
			if uid == 0 || name == "" || strings.Contains(name, ":") {
				t.Fatalf("%q is %d", name, uid)
			}
		}
	})
}

func FuzzKeywordsAndSubscriptions(f *testing.F) {
	f.Add("a\nb\n\nx:0 1\n", "0 $Forwarded\n25 z\n")
	f.Add("V\t2\n\nInbox\tx\x01ty\n", "INBOX.a\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		into := map[string][]string{}
		parseKeywordList(a, into)
		var letters [26]string
		parseLetters(b, &letters)
		subs := map[string]bool{}
		parseSubscriptions(a, subs)
		parseSubscriptions(b, subs)
	})
}

func TestUIDList(t *testing.T) {
	s, err := parseUIDList([]byte("3 V1275660208 N25022 G3085\n25006 :1276528487.M36.kurkku,S=1355:2,\n25017 W2481 :1276533073.M24.kurkku:2,F\n25018 :not.comp"))
	if err != nil || len(s.UIDs) != 2 || s.UIDs["1276528487.M36.kurkku,S=1355"] != 25006 || s.UIDs["1276533073.M24.kurkku"] != 25017 || s.Next != 25022 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "3\n", "9 V1 N1\n", "3 V0 N1\n", "1 x 5\n", "no line end"} {
		if s, err := parseUIDList([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}

func TestCRLF(t *testing.T) {
	for _, c := range [][2]string{{"a\nb", "a\r\nb"}, {"a\r\nb\n\n", "a\r\nb\r\n\r\n"}, {"\n", "\r\n"}, {"\r", "\r"}, {"a\rb\r\n", "a\rb\r\n"}, {"", ""}} {
		for cut := range len(c[0]) + 1 {
			out, last := appendCRLF(nil, []byte(c[0][:cut]), 0)
			if out, _ = appendCRLF(out, []byte(c[0][cut:]), last); string(out) != c[1] {
				t.Errorf("%q cut at %d is %q", c[0], cut, out)
			}
		}
	}
}
