package imapconn

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// throttleWords are what servers say when they want less to be asked of them,
// in lower case. Exchange Online: "Request is throttled. Suggested Backoff Time:
// 299961 milliseconds". Gmail: "Account exceeded command or bandwidth limits",
// "Too many simultaneous connections". Yahoo: "[LIMIT] UID FETCH Rate limit
// hit". Dovecot: "[THROTTLED]". Others: the rest.
var throttleWords = []string{
	"throttl", "backoff time", "back off", "rate limit", "ratelimit", "bandwidth limit", "command limit", "too many requests",
	"too many commands", "too many simultaneous", "too many connections", "maximum number of connections", "slow down", "server busy",
	"too frequent", "quota of requests", "requests per", "exceeded command",
}

// notThrottled are words of errors that no waiting mends.
var notThrottled = []string{"quota exceeded", "over quota", "mailbox is full", "message size", "too large", "too big"}

var suggested = regexp.MustCompile(`(?i)back-?off time:?\s*(\d+)\s*(milliseconds|msec|ms|seconds|sec|s)?\b|(?:retry|try again|wait)\s+(?:after|in|for)?\s*(\d+)\s*(milliseconds|msec|ms|seconds|sec|s|minutes|min)\b`)

// longestWait bounds what a server may suggest.
const longestWait = time.Hour

// Throttled tells whether an error, an answer or a goodbye, says that the server
// wants less to be asked of it; wait is how long it says, 0 when it does not.
// Nothing of what such a command asked for was done.
func Throttled(err error) (wait time.Duration, ok bool) {
	if err == nil {
		return 0, false
	}
	if Exhausted(err) {
		return suggestedWait(strings.ToLower(err.Error())), true
	}
	text := err.Error()
	var e *Error
	var login *LoginError
	if errors.As(err, &login) {
		e, ok = &login.Answer, login.Busy()
	}
	if e != nil || errors.As(err, &e) {
		text = e.Text
		if e.Code == "OVERQUOTA" || e.Code == "TOOBIG" {
			return 0, false
		}
		ok = ok || e.Code == "THROTTLED"
	} else if !strings.Contains(text, "goodbye") {
		return 0, false
	}
	text = strings.ToLower(text)
	has := func(w string) bool { return strings.Contains(text, w) }
	if !ok && (slices.ContainsFunc(notThrottled, has) || !slices.ContainsFunc(throttleWords, has) && !has("[throttled]")) {
		return 0, false
	}
	return suggestedWait(text), true
}

// Exhausted tells whether an error, an answer or a goodbye, says that an account
// used up what it may move in a day, or in some other time that is no matter of
// minutes. Gmail: "[OVERQUOTA] Account exceeded command or bandwidth limits.",
// where the code does not mean that the mailbox is full. Such an error is
// [Throttled] too.
func Exhausted(err error) bool {
	if err == nil {
		return false
	}
	text, code := err.Error(), ""
	var e *Error
	var login *LoginError
	switch {
	case errors.As(err, &login):
		text = login.Answer.Text + " " + login.Detail
	case errors.As(err, &e):
		text, code = e.Text, e.Code
	case !strings.Contains(text, "goodbye"):
		return false
	}
	text = strings.ToLower(text)
	has := func(w string) bool { return strings.Contains(text, w) }
	if !slices.ContainsFunc([]string{"limit", "exceed", "quota"}, has) {
		return false
	}
	if slices.ContainsFunc([]string{"bandwidth limit", "bandwidth quota", "exceeded bandwidth", "exceeded the bandwidth"}, has) {
		return true
	}
	return code != "OVERQUOTA" && code != "TOOBIG" && !slices.ContainsFunc(notThrottled, has) &&
		slices.ContainsFunc([]string{"daily", "per day", "24 hours"}, has)
}

// everybodyWords are what servers say when it is not one account that asks too
// much of them, in lower case.
var everybodyWords = []string{
	"server busy", "server is busy", "server too busy", "system load", "overloaded", "system resources", "from your ip", "from this ip", "from your host",
	"per ip", "ip address", "tenant", "organization", "all users",
}

// Everybody tells whether a server that wants less to be asked of it, see
// [Throttled], means all its users, and not only the account it says it to.
func Everybody(err error) bool {
	if _, ok := Throttled(err); !ok {
		return false
	}
	text := strings.ToLower(err.Error())
	return slices.ContainsFunc(everybodyWords, func(w string) bool { return strings.Contains(text, w) })
}

// suggestedWait reads a time that a server names; numbers without a unit are
// milliseconds, as Exchange means them.
func suggestedWait(text string) time.Duration {
	m := suggested.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	number, unit := m[1]+m[3], m[2]+m[4]
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil {
		return longestWait // more than fits
	}
	wait := time.Duration(n)
	switch {
	case unit == "" || unit[0] == 'm' && !strings.HasPrefix(unit, "min"):
		wait *= time.Millisecond
	case unit[0] == 's':
		wait *= time.Second
	default:
		wait *= time.Minute
	}
	return min(wait, longestWait)
}

// Pauser waits before a throttled command is sent again; the error of the
// command says how long, see [Throttled]. It gives an error when that is longer
// than anybody wants to wait, and when ctx is over.
type Pauser interface {
	Pause(ctx context.Context, cause error) error
}
