package mail

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Enhanced is an enhanced status code (RFC 3463): class, subject, detail. The
// zero value stands for none.
type Enhanced [3]int

// String gives "5.1.1", or the empty string for the zero value.
func (e Enhanced) String() string {
	if e == (Enhanced{}) {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", e[0], e[1], e[2])
}

// Reply is an SMTP reply, and the one error type for what SMTP says: of a
// backend to us, and of us to a peer.
type Reply struct {
	Code     int      `json:"code"`
	Enhanced Enhanced `json:"enhanced,omitzero"`
	Text     string   `json:"text,omitempty"` // lines are parted by "\n"
}

// Error gives the reply on one line.
func (r *Reply) Error() string { return r.String() }

// String gives the reply on one line: "550 5.1.1 no such user".
func (r Reply) String() string {
	text := strings.ReplaceAll(r.Text, "\n", " ")
	if e := r.Enhanced.String(); e != "" {
		return fmt.Sprintf("%d %s %s", r.Code, e, text)
	}
	return fmt.Sprintf("%d %s", r.Code, text)
}

// Positive tells whether the reply is 2xx.
func (r Reply) Positive() bool { return r.Code >= 200 && r.Code < 300 }

// Permanent tells whether the reply is 5xx. Everything that is neither 2xx nor
// 5xx is temporary.
func (r Reply) Permanent() bool { return r.Code >= 500 && r.Code < 600 }

// UnknownUser tells whether the reply says that there is no such mailbox: by
// its enhanced code 5.1.1, 5.1.2, 5.1.6 or 5.1.10 where it has one that means
// something, else by words that servers use: with 550, 551 and 553, and some with
// 511 or 554. When in doubt it is yes, for an unknown user is never bounced
// without another word (I8), and other refusals are.
func (r Reply) UnknownUser() bool {
	if !r.Permanent() {
		return false
	}
	switch r.Enhanced {
	case Enhanced{5, 1, 1}, Enhanced{5, 1, 2}, Enhanced{5, 1, 6}, Enhanced{5, 1, 10}, Enhanced{5, 2, 1}:
		return true
	case Enhanced{}, Enhanced{5, 0, 0}, Enhanced{5, 5, 0}, Enhanced{5, 4, 1}:
	default:
		return false
	}
	if r.Code == 552 { // about room, whatever else it says
		return false
	}
	text := strings.ToLower(r.Text)
	for _, words := range unknownWords {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

var unknownWords = []string{
	"user unknown", "unknown user", "no such user", "no such recipient", "recipient unknown", "unknown recipient",
	"mailbox not found", "mailbox unavailable", "no mailbox", "no such mailbox", "does not exist", "doesn't exist",
	"invalid recipient", "recipient address rejected", "user not found", "recipient not found", "unknown address",
	"not a known user", "no such address", "address unknown", "unrouteable address", "unknown local",
}

// Replyf makes a reply.
func Replyf(code int, e Enhanced, format string, args ...any) *Reply {
	return &Reply{Code: code, Enhanced: e, Text: fmt.Sprintf(format, args...)}
}

// AsReply turns any error into a reply that may be shown to a peer. What is
// not a Reply is unknown, and the unknown is temporary (I10): 451 with neutral
// text; the detail belongs into the log.
func AsReply(err error) *Reply {
	if err == nil {
		return nil
	}
	var r *Reply
	if errors.As(err, &r) && r.Code >= 400 && r.Code < 600 {
		return r
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Reply{Code: 451, Enhanced: Enhanced{4, 4, 7}, Text: "the request took too long, try again later"}
	}
	return &Reply{Code: 451, Enhanced: Enhanced{4, 3, 0}, Text: "local error in processing, try again later"}
}
