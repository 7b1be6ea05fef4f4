package pop3_test

import (
	"errors"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
)

// TestReusedUIDL: a server that gives the UIDL of a message that is gone to
// another one, which would count as copied.
func TestReusedUIDL(t *testing.T) {
	s := serve(t, func(conn int, line string) string {
		if line == "LIST" && conn > 2 {
			return "+OK\r\n1 1\r\n2 777\r\n.\r\n"
		}
		return plain(line)
	})
	l := &mailtest.Ledger{}
	var stats []imapconn.Status
	for range 4 {
		n, err := backfill.NewNumbers(t.Context(), l, user)
		if err != nil {
			t.Fatal(err)
		}
		box, err := s.source().Open(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		all, _, err := box.Statuses([]string{"INBOX"})
		if err != nil {
			t.Fatal(err)
		}
		stats = append(stats, all["INBOX"])
		box.Close()
	}
	if stats[0] != stats[1] || stats[2] != stats[3] || stats[1].UIDValidity >= stats[2].UIDValidity || stats[1].ModSeq == stats[2].ModSeq {
		t.Errorf("%+v", stats)
	}
}

// TestNumbersThatChangeWhileMessagesAreRead end the work on the folder: its UIDs
// are of other messages.
func TestNumbersThatChangeWhileMessagesAreRead(t *testing.T) {
	s := serve(t, func(conn int, line string) string {
		switch {
		case conn == 1 && line == "RETR 2":
			return "+OK\r\nSubject: cut"
		case conn > 1 && line == "LIST":
			return "+OK\r\n1 1\r\n2 777\r\n.\r\n"
		}
		return plain(line)
	})
	src := s.source()
	src.Server.Address = cutAfter(t, src.Server.Address, "Subject: cut")
	if k, failures, err := fetch(t, src, &mailtest.Ledger{}, 1, 2); !errors.Is(err, imapconn.ErrChanged) {
		t.Errorf("%v, %v, %v", k.got, failures, err)
	}
}

// TestNumbersThatCannotBeKept leave no connection behind.
func TestNumbersThatCannotBeKept(t *testing.T) {
	ended := make(chan struct{}, 1)
	s := serve(t, func(_ int, line string) string {
		if line == "QUIT" {
			ended <- struct{}{}
		}
		return plain(line)
	})
	l := &mailtest.Ledger{}
	l.Fail(1)
	if _, _, err := fetch(t, s.source(), l, 1); !errors.Is(err, mailtest.ErrLedger) {
		t.Errorf("%v", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("it did not say goodbye")
	}
}
