package imapconn

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
)

// A process that was stopped in the middle of an APPEND must not end it when
// the mailbox is another's meanwhile: the server takes a command that is cut off
// as none.
func TestGuardKeepsACommandFromBeingEnded(t *testing.T) {
	f := newFake(t)
	lost := errors.New("the user is another node's now")
	var writes, allowed atomic.Int64
	allowed.Store(1 << 30)
	d := &Dialer{}
	acct := f.account()
	acct.Guard = func() error {
		if writes.Add(1) > allowed.Load() {
			return lost
		}
		return nil
	}
	s, err := d.Open(t.Context(), acct)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := len(f.seen())
	allowed.Store(writes.Load() + 2) // the message takes more than that
	body := strings.Repeat("x", 1<<20)
	if _, err := s.Append("INBOX", []Outgoing{message(body)}); !errors.Is(err, lost) {
		t.Errorf("an append that was not allowed: %v", err)
	}
	if n := writes.Load(); n <= 2 {
		t.Errorf("the guard was asked %d times", n)
	}
	if got := f.seen(); len(got) != before {
		t.Errorf("the server has a command: %.60q", got[len(got)-1])
	}
}
