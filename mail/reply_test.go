package mail

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// The unknown is temporary, and its detail is not for the peer (I10).
func TestAsReply(t *testing.T) {
	known := Replyf(550, Enhanced{5, 1, 1}, "no such user")
	for _, test := range []struct {
		err  error
		want string
	}{
		{known, "550 5.1.1 no such user"},
		{fmt.Errorf("rcpt ann: %w", known), "550 5.1.1 no such user"},
		{errors.New("open /var/secret: permission denied"), "451 4.3.0 local error in processing, try again later"},
		{context.DeadlineExceeded, "451 4.4.7 the request took too long, try again later"},
		{Replyf(250, Enhanced{2, 0, 0}, "ok"), "451 4.3.0 local error in processing, try again later"},
		{Replyf(354, Enhanced{}, "go on"), "451 4.3.0 local error in processing, try again later"},
		{Replyf(0, Enhanced{}, ""), "451 4.3.0 local error in processing, try again later"},
		{Replyf(999, Enhanced{}, ""), "451 4.3.0 local error in processing, try again later"},
	} {
		if got := AsReply(test.err).String(); got != test.want {
			t.Errorf("%v: got %q, want %q", test.err, got, test.want)
		}
	}
	if AsReply(nil) != nil {
		t.Error("no error, no reply")
	}
}

func TestReply(t *testing.T) {
	r := Replyf(452, Enhanced{4, 3, 1}, "a\nb %d", 1)
	if got := r.Error(); got != "452 4.3.1 a b 1" {
		t.Error(got)
	}
	if got := (Reply{Code: 354, Text: "go"}).String(); got != "354 go" {
		t.Error(got)
	}
	if (Enhanced{}).String() != "" || (Enhanced{5, 7, 26}).String() != "5.7.26" {
		t.Error("Enhanced")
	}
	if !(Reply{Code: 299}).Positive() || (Reply{Code: 300}).Positive() || (Reply{Code: 199}).Positive() {
		t.Error("Positive")
	}
	if !(Reply{Code: 599}).Permanent() || (Reply{Code: 499}).Permanent() || (Reply{Code: 600}).Permanent() {
		t.Error("Permanent")
	}
}

func TestUnknownUser(t *testing.T) {
	for text, want := range map[string]bool{
		"550 5.1.1 <ann@example.org>: Recipient address rejected: User unknown": true,
		"550 5.1.10 RESOLVER.ADR.RecipientNotFound":                             true,
		"550 User unknown":                                                    true,
		"553 5.5.0 no such recipient":                                         true,
		"551 User not local; does not exist":                                  true,
		"554 5.7.1 user unknown to the spam filter":                           false,
		"554 user unknown":                                                    true,
		"511 sorry, no mailbox here by that name":                             true,
		"554 delivery error: this user doesn't have an account; no such user": true,
		"552 user unknown":                                                    false,
		"554 5.0.0 unknown recipient":                                         true,
		"450 4.1.1 user unknown":                                              false,
		"550 5.7.1 relaying denied":                                           false,
		"550 5.2.2 mailbox full":                                              false,
		"552 5.2.2 over quota, the mailbox does not exist":                    false,
		"550 mailbox is not available because of its policy":                  false,
		"250 2.1.5 ok":                                                        false,
	} {
		if got := read(t, text).UnknownUser(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// read turns a line into a Reply.
func read(t *testing.T, line string) Reply {
	t.Helper()
	var r Reply
	code, rest, _ := strings.Cut(line, " ")
	if _, err := fmt.Sscan(code, &r.Code); err != nil {
		t.Fatal(err)
	}
	first, text, _ := strings.Cut(rest, " ")
	if n, err := fmt.Sscanf(first, "%d.%d.%d", &r.Enhanced[0], &r.Enhanced[1], &r.Enhanced[2]); n == 3 && err == nil {
		r.Text = text
	} else {
		r.Enhanced, r.Text = Enhanced{}, rest
	}
	return r
}
