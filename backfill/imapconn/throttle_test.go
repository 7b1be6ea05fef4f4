package imapconn

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestThrottled(t *testing.T) {
	no := func(code, text string) error { return &Error{Command: "APPEND", Status: "NO", Code: code, Text: text} }
	tests := map[string]struct {
		err  error
		wait time.Duration
		ok   bool
	}{
		"Exchange":                {no("", "Request is throttled. Suggested Backoff Time: 299961 milliseconds"), 299961 * time.Millisecond, true},
		"Exchange, no unit":       {no("", "Backoff Time: 20"), 20 * time.Millisecond, true},
		"Exchange, bad":           {&Error{Status: "BAD", Text: "Request is throttled"}, 0, true},
		"Gmail":                   {no("", "[ALERT] Account exceeded command or bandwidth limits. (Failure)"), 0, true},
		"Gmail, goodbye":          {errors.New("APPEND: EOF: the server said goodbye: Account exceeded command or bandwidth limits."), 0, true},
		"Gmail, connections":      {no("ALERT", "Too many simultaneous connections. (Failure)"), 0, true},
		"Yahoo":                   {no("LIMIT", "UID FETCH Rate limit hit."), 0, true},
		"Dovecot":                 {no("THROTTLED", "wait"), 0, true},
		"Dovecot, connections":    {no("LIMIT", "Maximum number of connections from user+IP exceeded"), 0, true},
		"seconds":                 {no("", "Too many requests, retry after 30 seconds"), 30 * time.Second, true},
		"minutes":                 {no("", "slow down: try again in 2 minutes"), 2 * time.Minute, true},
		"more than anybody waits": {no("", "throttled, Backoff Time: 99999999999999999999 seconds"), time.Hour, true},
		"wrapped":                 {fmt.Errorf("folder: %w", no("THROTTLED", "")), 0, true},
		"a login":                 {&LoginError{Answer: Error{Status: "NO", Code: "LIMIT", Text: "wait 2 ms"}}, 2 * time.Millisecond, true},
		"a wrong password":        {&LoginError{Answer: Error{Status: "NO", Code: "AUTHENTICATIONFAILED", Text: "no"}}, 0, false},
		"over quota":              {no("OVERQUOTA", "too many connections"), 0, false},
		"over quota in words":     {no("", "Quota exceeded (mailbox for user is full)"), 0, false},
		"too large":               {no("LIMIT", "message too large"), 0, false},
		"a message that says so":  {errors.New("message 7 has throttled octets"), 0, false},
		"a drop":                  {errors.New("EOF"), 0, false},
		"nothing":                 {nil, 0, false},
	}
	for name, tt := range tests {
		if wait, ok := Throttled(tt.err); wait != tt.wait || ok != tt.ok {
			t.Errorf("%s: %v, %v, want %v, %v", name, wait, ok, tt.wait, tt.ok)
		}
	}
}

func TestExhausted(t *testing.T) {
	no := func(code, text string) error {
		return &Error{Command: "UID FETCH", Status: "NO", Code: code, Text: text}
	}
	for name, tt := range map[string]struct {
		err error
		yes bool
	}{
		"Gmail":              {no("OVERQUOTA", "Account exceeded command or bandwidth limits."), true},
		"Gmail, alert":       {no("ALERT", "Account exceeded command or bandwidth limits. (Failure)"), true},
		"Gmail, goodbye":     {errors.New("APPEND: EOF: the server said goodbye: Account exceeded command or bandwidth limits."), true},
		"a login":            {&LoginError{Answer: Error{Status: "NO", Code: "ALERT", Text: "Account exceeded command or bandwidth limits. (Failure)"}}, true},
		"in a day":           {no("LIMIT", "You have exceeded your daily download limit"), true},
		"a full mailbox":     {no("OVERQUOTA", "Quota exceeded, counted daily"), false},
		"full, in words":     {no("", "Quota exceeded (counted daily)"), false},
		"too large":          {no("TOOBIG", "bigger than the daily limit"), false},
		"a rate":             {no("LIMIT", "UID FETCH Rate limit hit."), false},
		"connections":        {no("ALERT", "Too many simultaneous connections. (Failure)"), false},
		"a message about it": {errors.New("message 7 exceeded bandwidth limits"), false},
		"nothing":            {nil, false},
	} {
		if got := Exhausted(tt.err); got != tt.yes {
			t.Errorf("%s: %v", name, got)
		}
		if _, ok := Throttled(tt.err); tt.yes && !ok {
			t.Errorf("%s is not throttled", name)
		}
	}
}

// TestAppendEachIsPipelined: the server answers when it has all of them, in an
// order of its own.
func TestAppendEachIsPipelined(t *testing.T) {
	f := newFake(t)
	f.caps = "IMAP4rev1 LITERAL+ UIDPLUS"
	var tags []string
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if !strings.HasPrefix(cmd, "APPEND") {
			return false
		}
		if tags = append(tags, tag); len(tags) == 3 {
			c.say("%s OK [APPENDUID 7 12] ok\r\n* 9 EXISTS\r\n%s NO [TOOBIG] no\r\n%s OK [APPENDUID 7 11] ok\r\n", tags[2], tags[1], tags[0])
		}
		return true
	}
	s := open(t, f)
	got, err := s.AppendEach("INBOX", []Outgoing{message("a"), message("b"), message("c")})
	if err != nil {
		t.Fatal(err)
	}
	want := []Result{{Appended: Appended{7, []uint32{11}}}, {Err: &Error{"APPEND", "NO", "TOOBIG", "no"}}, {Appended: Appended{7, []uint32{12}}}}
	if !cmp.Equal(got, want, cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })) {
		t.Errorf("%+v", got)
	}
	if !s.Alive() {
		t.Error("a refusal ended the session")
	}
}

// TestAppendEachWaits: where literals need "+", one goes after the other, and
// one that is refused before its octets leaves the connection in step.
func TestAppendEachWaits(t *testing.T) {
	f := newFake(t)
	f.caps = "IMAP4rev1 LITERAL-"
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if strings.HasPrefix(cmd, "?APPEND") && strings.Contains(cmd, "{6000}") {
			c.say("%s NO [TOOBIG] too big\r\n", tag)
			return true
		}
		return false
	}
	s := open(t, f)
	got, err := s.AppendEach("INBOX", []Outgoing{message("a"), message(strings.Repeat("x", 5000)), message(strings.Repeat("x", 6000)), message("d")})
	if err != nil || len(got) != 4 {
		t.Fatal(got, err)
	}
	for i, r := range got {
		if (r.Err != nil) != (i == 2) {
			t.Errorf("%d: %+v", i, r)
		}
	}
}

// TestAppendEachBroken: nobody knows what became of the messages.
func TestAppendEachBroken(t *testing.T) {
	for _, answer := range []string{"+ more", "* BYE over", "C999 OK done", "\x00"} {
		f := newFake(t)
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if strings.HasPrefix(cmd, "APPEND") {
				c.say("%s OK done\r\n%s\r\n", tag, answer)
				return true
			}
			return false
		}
		s := open(t, f)
		if got, err := s.AppendEach("INBOX", []Outgoing{message("a"), message("b")}); err == nil || s.Alive() {
			t.Errorf("%q: %+v", answer, got)
		}
	}
}

func TestLiteral8(t *testing.T) {
	f := newFake(t)
	s := open(t, f)
	m := message("a\x00b")
	m.Binary = true
	if _, err := s.Append("INBOX", []Outgoing{m}); err != nil {
		t.Fatal(err)
	}
	if got := f.seen(); !strings.Contains(got[len(got)-1], " ~{3+}\r\na\x00b") {
		t.Errorf("%q", got[len(got)-1])
	}
}
