package imapconn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestReaderTakesNoMessageThatItDidNotAskFor: a message of a later batch that comes with an earlier one would be copied with
// both. go-imap keeps it away: this is where a version that does not would show.
func TestReaderTakesNoMessageThatItDidNotAskFor(t *testing.T) {
	f := newFake(t, upTo(12)...)
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if !strings.HasPrefix(cmd, "UID FETCH ") {
			return false
		}
		for i, m := range f.msgs { // all of them, whatever the set
			c.fetch(i+1, m, cmd)
		}
		c.say("%s OK done\r\n", tag)
		return true
	}
	c, failures, err := fetchAll(t, f, 3, 4)
	if err != nil || len(failures) > 0 || len(c.got) != 2 {
		t.Errorf("%d messages, %v, %v", len(c.got), failures, err)
	}
}

// TestListOfOddUIDs: 0 is no UID, and a message that is listed twice is one.
func TestListOfOddUIDs(t *testing.T) {
	f := newFake(t, 1, 2, 3)
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		switch {
		case strings.HasPrefix(cmd, "UID FETCH "):
			c.say("* 1 FETCH (UID 0 FLAGS ())\r\n")
			for _, n := range []int{3, 1, 2, 1} {
				c.fetch(n, f.msgs[n-1], cmd)
			}
		case strings.HasPrefix(cmd, "UID SEARCH"):
			c.say("* SEARCH 3 1 2 1 3\r\n")
		default:
			return false
		}
		c.say("%s OK done\r\n", tag)
		return true
	}
	r := NewReader(t.Context(), &Dialer{Idle: 2 * time.Second}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		t.Fatal(err)
	}
	metas, _, err := r.ListAll(Items{Flags: true})
	var uids []uint32
	for _, m := range metas {
		uids = append(uids, m.UID)
	}
	if err != nil || !cmp.Equal(uids, []uint32{1, 2, 3}) {
		t.Errorf("%v, %v", uids, err)
	}
	if found, err := r.UIDsFrom(1); err != nil || !cmp.Equal(found, []uint32{1, 2, 3}) {
		t.Errorf("%v, %v", found, err)
	}
}

// TestLiteralCutShortInAList: a folder whose name is cut off ends the listing with an error, and is not a shorter name.
func TestLiteralCutShortInAList(t *testing.T) {
	f := newFake(t)
	f.hook = func(c *fakeConn, _, cmd string) bool {
		if !strings.HasPrefix(cmd, "LIST") {
			return false
		}
		c.say("* LIST () \"/\" INBOX\r\n* LIST () \"/\" {20}\r\nProje")
		c.Close()
		return true
	}
	if folders, err := open(t, f).List(); err == nil {
		t.Errorf("%v", folders)
	}
}

// TestGoodbyeInTheMiddle: whatever is asked, the server's words are in the error, and nothing more is sent.
func TestGoodbyeInTheMiddle(t *testing.T) {
	for name, ask := range map[string]func(s *Session) error{
		"LIST":      func(s *Session) error { _, err := s.List(); return err },
		"NAMESPACE": func(s *Session) error { _, err := s.Namespaces(); return err },
		"STATUS":    func(s *Session) error { _, _, err := s.Statuses([]string{"a", "b", "c"}); return err },
		"SELECT":    func(s *Session) error { _, err := s.Select("INBOX"); return err },
		"CREATE":    func(s *Session) error { return s.Create("x", "") },
		"SUBSCRIBE": func(s *Session) error { return s.Subscribe("x") },
		"APPEND":    func(s *Session) error { _, err := s.Append("INBOX", []Outgoing{message("x")}); return err },
		"append each": func(s *Session) error {
			_, err := s.AppendEach("INBOX", []Outgoing{message("x"), message("y")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.caps += " NAMESPACE"
			verb := strings.ToUpper(strings.Fields(name)[0])
			f.hook = func(c *fakeConn, _, cmd string) bool {
				if !strings.HasPrefix(cmd, verb) {
					return false
				}
				c.say("* BYE [UNAVAILABLE] maintenance until noon\r\n")
				c.Close()
				return true
			}
			s := open(t, f)
			err := ask(s)
			var answer *Error
			if err == nil || errors.As(err, &answer) || !strings.Contains(err.Error(), "maintenance until noon") {
				t.Errorf("%v", err)
			}
			before := len(f.seen())
			if err := ask(s); err == nil || s.Alive() {
				t.Errorf("afterwards: %v", err)
			}
			if n := len(f.seen()); n != before {
				t.Errorf("%d commands after the goodbye", n-before)
			}
		})
	}
}

// TestUnsolicitedData: what nobody asked for changes nothing of what was asked for.
func TestUnsolicitedData(t *testing.T) {
	f := newFake(t)
	noise := "* 4 FETCH (FLAGS (\\Seen))\r\n* 5 EXPUNGE\r\n* STATUS other (MESSAGES 99 UIDNEXT 99 UIDVALIDITY 99)\r\n* LIST () \"/\" other\r\n* VANISHED 1:3\r\n* X-ODD {3}\r\n(((\r\n"
	f.hook = func(c *fakeConn, tag, cmd string) bool {
		if name, ok := strings.CutPrefix(cmd, "STATUS "); ok {
			name, _, _ = strings.Cut(name, " ")
			c.say("%s* STATUS %s (MESSAGES 3 UIDNEXT 4 UIDVALIDITY 7)\r\n%s OK done\r\n", noise, name, tag)
			return true
		}
		c.say("%s", noise)
		return false
	}
	s := open(t, f)
	sel, err := s.Select("INBOX")
	if err != nil || sel.UIDValidity != 7 || sel.AnyKeyword != true || slices.Contains(sel.Permanent, `\Odd`) {
		t.Errorf("%+v, %v", sel, err)
	}
	stats, errs, err := s.Statuses([]string{"a", "b"})
	if err != nil || len(errs) > 0 || stats["a"].Messages != 3 || stats["b"].UIDValidity != 7 {
		t.Errorf("%v, %v, %v", stats, errs, err)
	}
	if done, err := s.Append("INBOX", []Outgoing{message("x")}); err != nil {
		t.Errorf("%v, %v", done, err)
	}
}

// TestAnswersToLogins: what an operator reads when a login fails.
func TestAnswersToLogins(t *testing.T) {
	for answer, want := range map[string]string{
		"NO [AUTHENTICATIONFAILED] Authentication failed.":       "check name and password",
		"NO [EXPIRED] Your password has expired":                 "has expired",
		"NO [ALERT] Application-specific password required":      "Application-specific password required",
		"NO [LIMIT] Maximum number of connections":               "tried again later",
		"NO Too many login failures, try again in 10 minutes":    "tried again later",
		"BAD Command Argument Error. 12":                         "Command Argument Error. 12",
		"NO [PRIVACYREQUIRED] Plaintext authentication disabled": "Plaintext authentication disabled",
	} {
		f := newFake(t)
		f.hook = func(c *fakeConn, tag, cmd string) bool {
			if !strings.HasPrefix(cmd, "AUTHENTICATE") {
				return false
			}
			c.say("%s %s\r\n", tag, answer)
			return true
		}
		_, err := (&Dialer{Idle: time.Second}).Open(t.Context(), f.account())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), fmt.Sprintf("imap %s as anna", f.addr)) {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

// TestReaderHasCourierSettleItsUIDs: until somebody selects the folder, EXAMINE tells another UIDVALIDITY each time. Everything
// was matched by content again in each pass, and no user of such a folder was ever in sync.
func TestReaderHasCourierSettleItsUIDs(t *testing.T) {
	for name, tt := range map[string]struct {
		greeting string
		age      time.Duration
		selects  int
	}{
		"Courier, never opened": {"* OK Courier-IMAP ready.\r\n", 0, 1},
		"Courier, opened once":  {"* OK Courier-IMAP ready.\r\n", 30 * 24 * time.Hour, 0},
		"another":               {"* OK ready\r\n", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 1, 2)
			f.greeting = tt.greeting
			now := uint32(time.Now().Add(-tt.age).Unix() - 1_000_000_000)
			f.validity = now
			examined := 0
			f.hook = func(_ *fakeConn, _, cmd string) bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				switch {
				case strings.HasPrefix(cmd, "SELECT"):
					f.validity = now + 100 // for good
				case strings.HasPrefix(cmd, "EXAMINE") && f.validity < now+100 && tt.selects > 0:
					examined++
					f.validity = now + uint32(examined)
				}
				return false
			}
			r := NewReader(t.Context(), &Dialer{Idle: 2 * time.Second}, f.account(), nil)
			defer r.Close()
			first, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"})
			if err != nil {
				t.Fatal(err)
			}
			again, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"})
			if err != nil || again.UIDValidity != first.UIDValidity || first.UIDValidity != f.validity {
				t.Errorf("%+v, then %+v, %v", first, again, err)
			}
			selects := 0
			for _, cmd := range f.seen() {
				if strings.HasPrefix(cmd, "SELECT") {
					selects++
				}
			}
			if selects != tt.selects {
				t.Errorf("%d SELECT, want %d", selects, tt.selects)
			}
		})
	}
}
