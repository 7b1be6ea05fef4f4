package imapconn

import (
	"strings"
	"testing"
	"time"
)

func TestReceivedFields(t *testing.T) {
	const fields = "Received: from a by b id X; Sat\r\n\r\n"
	for name, tt := range map[string]struct {
		data, want string
		uid        uint32
		bad        bool
	}{
		"a literal":              {"(UID 7 BODY[HEADER.FIELDS (RECEIVED)] {35}\r\n" + fields + ")", fields, 7, false},
		"the UID behind":         {"(BODY[HEADER.FIELDS (RECEIVED)] {35}\r\n" + fields + " UID 7)", fields, 7, false},
		"quoted":                 {`(UID 7 BODY[HEADER.FIELDS (RECEIVED)] "Received: x")`, "Received: x", 7, false},
		"a quoted field name":    {`(UID 7 BODY[HEADER.FIELDS ("RECEIVED")] "Received: x")`, "Received: x", 7, false},
		"flags beside":           {"(FLAGS (\\Seen) UID 7 BODY[HEADER.FIELDS (RECEIVED)] {35}\r\n" + fields + ")", fields, 7, false},
		"no such field":          {`(UID 7 BODY[HEADER.FIELDS (RECEIVED)] "")`, "", 7, false},
		"NIL":                    {`(UID 7 BODY[HEADER.FIELDS (RECEIVED)] NIL)`, "", 7, false},
		"news of flags":          {`(UID 7 FLAGS (\Seen))`, "", 0, false},
		"a field that says UID":  {`(UID 7 BODY[HEADER.FIELDS (RECEIVED)] "UID 9 ]")`, "UID 9 ]", 7, false},
		"no list":                {"7", "", 0, true},
		"without an end":         {"(UID 7", "", 0, true},
		"a literal that is more": {"(UID 7 BODY[HEADER.FIELDS (RECEIVED)] {99}\r\nx)", "", 0, true},
	} {
		uid, got, err := parseReceived([]byte(tt.data))
		if uid != tt.uid || string(got) != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: %d %q %v", name, uid, got, err)
		}
	}
}

// TestSince: what is asked for, and an answer that is none.
func TestSince(t *testing.T) {
	for _, tt := range []struct {
		answer string
		want   int
		bad    bool
	}{
		{"* SEARCH 5 3 5\r\n* 1 EXISTS\r\n", 2, false},
		{"* SEARCH\r\n", 0, false},
		{"", 0, false},
		{"* SEARCH 3 x\r\n", 0, true},
	} {
		f := newFake(t, 3, 5)
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if !strings.Contains(cmd, "SEARCH") {
				return false
			}
			if cmd != `UID SEARCH SINCE 1-Nov-2026 HEADER Received "01ABC"` {
				t.Errorf("it said %q", cmd)
			}
			_, _ = c.Write([]byte(tt.answer + tag + " OK done\r\n"))
			return true
		}
		s, err := new(Dialer).Open(t.Context(), f.account())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Examine("INBOX"); err != nil {
			t.Fatal(err)
		}
		uids, err := s.Since(time.Date(2026, 11, 1, 23, 0, 0, 0, time.UTC), "Received", "01ABC")
		if len(uids) != tt.want || (err != nil) != tt.bad {
			t.Errorf("%q: %v, %v", tt.answer, uids, err)
		}
	}
}

func FuzzParseReceived(f *testing.F) {
	f.Add([]byte("(UID 7 BODY[HEADER.FIELDS (RECEIVED)] {3}\r\nabc)"))
	f.Add([]byte(`(BODY[HEADER.FIELDS ("RECEIVED")] NIL UID 1)`))
	f.Fuzz(func(t *testing.T, b []byte) {
		uid, fields, err := parseReceived(b)
		if err != nil && (uid != 0 || fields != nil) || len(fields) > len(b) {
			t.Errorf("%d, %d octets, %v", uid, len(fields), err)
		}
	})
}
