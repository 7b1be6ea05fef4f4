package imapconn

import (
	"slices"
	"strings"
	"testing"
)

func TestParseGmail(t *testing.T) {
	t.Parallel()
	const rest = " UID 7 RFC822.SIZE 12 FLAGS (\\Seen \\Recent) INTERNALDATE \" 1-Feb-2003 04:05:06 +0100\""
	for in, want := range map[string][]string{
		// As Google's documentation has it, as its servers send it, and with literals.
		`(X-GM-MSGID 1278455344230334865 X-GM-LABELS (\Inbox \Sent Important "Muy Importante")` + rest + `)`: {`\Inbox`, `\Sent`, "Important", "Muy Importante"},
		`(X-GM-MSGID 1 X-GM-LABELS ("\\Inbox" "\\Draft" "a/b" "sag \"ja\"" "a\\b")` + rest + `)`:             {`\Inbox`, `\Draft`, "a/b", `sag "ja"`, `a\b`},
		"(X-GM-MSGID 1 X-GM-LABELS ({6}\r\na) \"(b Gr&APw-n NIL)" + rest + ")":                               {`a) "(b`, "Gr&APw-n", "NIL"},
		`(X-GM-MSGID 1 X-GM-LABELS ()` + rest + `)`:                                                          {},
	} {
		m, whole, err := parseGmail([]byte(in))
		if err != nil || !whole || !slices.Equal(m.Labels, want) {
			t.Errorf("%q: %+v, %v, %v", in, m, whole, err)
		}
		if m.UID != 7 || m.Size != 12 || !slices.Equal(m.Flags, []string{`\Seen`}) || m.Date.Unix() != 1044068706 {
			t.Errorf("%q: %+v", in, m)
		}
	}
	// News of the flags, and of the labels, is no message of the list.
	for _, in := range []string{`(UID 7 FLAGS (\Seen))`, `(FLAGS ())`, `(X-GM-LABELS (a) UID 7)`, `(X-GM-MSGID 1` + rest + `)`} {
		if _, whole, err := parseGmail([]byte(in)); whole || err != nil {
			t.Errorf("%q: %v, %v", in, whole, err)
		}
	}
	for _, in := range []string{``, `(`, `(UID)`, `(X-GM-MSGID x)`, `(X-GM-LABELS NIL UID 7)`, `(X-GM-LABELS ("a) UID 7)`} {
		if _, whole, err := parseGmail([]byte(in)); whole || err == nil {
			t.Errorf("%q: %v, %v", in, whole, err)
		}
	}
}

// TestListGmailShort: a list with less than the server has is asked for again,
// and is then an error.
func TestListGmailShort(t *testing.T) {
	t.Parallel()
	f := newFake(t, 1, 2)
	lists := 0
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if !strings.HasPrefix(cmd, "UID FETCH") {
			return false
		}
		if lists++; lists == 3 || lists > 4 {
			c.say("* 2 FETCH (X-GM-MSGID 9 X-GM-LABELS () UID 2 RFC822.SIZE 3 FLAGS ())\r\n")
		}
		c.say("* 1 FETCH (X-GM-MSGID 8 X-GM-LABELS () UID 1 RFC822.SIZE 3 FLAGS ())\r\n* 1 FETCH (FLAGS (\\Seen) UID 1)\r\n%s OK done\r\n", tag)
		return true
	}
	s, err := (&Dialer{}).Open(t.Context(), f.account())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	msgs, _, err := s.ListGmail("INBOX", "")
	if err != nil || len(msgs) != 2 || msgs[0].ID != 8 || msgs[1].ID != 9 || lists != 3 {
		t.Errorf("%+v, %v after %d lists", msgs, err, lists)
	}
	f.exists = 3
	if msgs, _, err := s.ListGmail("INBOX", ""); err == nil {
		t.Errorf("%+v", msgs)
	}
}

func FuzzParseGmail(f *testing.F) {
	f.Add([]byte(`(X-GM-MSGID 1 X-GM-LABELS ("\\Inbox" a) UID 7 RFC822.SIZE 12 FLAGS (\Seen))`))
	f.Add([]byte("(X-GM-LABELS ({3}\r\na)b))"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, whole, err := parseGmail(b)
		if whole && (err != nil || m.UID == 0 || m.ID == 0 || m.Labels == nil || m.Flags == nil || m.Size < 0) {
			t.Errorf("%q: %+v, %v", b, m, err)
		}
		if slices.Contains(m.Labels, "") {
			t.Errorf("%q: a label without a name", b)
		}
	})
}
