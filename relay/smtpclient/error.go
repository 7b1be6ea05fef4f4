package smtpclient

import (
	"errors"
	"fmt"

	"crossfade/mail"
)

// Step is a moment of a session.
type Step string

// The steps.
const (
	StepConnect  Step = "connect"
	StepGreeting Step = "greeting"
	StepHello    Step = "EHLO"
	StepSTARTTLS Step = "STARTTLS"
	StepAuth     Step = "AUTH"
	StepOrigin   Step = "XCLIENT or XFORWARD"
	StepMail     Step = "MAIL"
	StepRcpt     Step = "RCPT"
	StepData     Step = "DATA"
	StepBody     Step = "message body"
	StepDot      Step = "end of data"
)

// Sent is how much of a message had left when a connection failed.
type Sent int

// The amounts.
const (
	SentNothing Sent = iota // no byte of the body
	SentPart                // some of the body, but no final dot
	SentAll                 // the final dot, or an attempt at it
)

// The causes that an [Error] can wrap beside network errors and replies.
var (
	// ErrProtocol means that the server's bytes are no SMTP replies, or that a
	// reply does not fit the command.
	ErrProtocol = errors.New("the server does not speak proper SMTP")
	// ErrNoTLS means that encryption is required and not offered.
	ErrNoTLS = errors.New("the server does not offer STARTTLS, which is required for it")
	// ErrSource means that the body could not be read. An error that wraps it
	// wraps the reader's error too.
	ErrSource = errors.New("the message could not be read to its end")
	// ErrLength means that the body was not as long as declared. An error that
	// wraps it wraps ErrSource too.
	ErrLength = errors.New("its length is not the one declared")
	// ErrWithheld means that BeforeDot refused. An error that wraps it wraps
	// BeforeDot's error too.
	ErrWithheld = errors.New("the final dot was withheld")
	// ErrClosed means that the connection was closed before.
	ErrClosed = errors.New("the connection is closed")
)

// Error says that a session cannot go on; its connection is closed. Err is, or
// wraps, a *mail.Reply when the server said so itself.
type Error struct {
	Step   Step
	Sent   Sent
	Target string // as [Target.String] gives it
	Err    error
}

// Error names the server, the step and the cause.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.Target, e.Step, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Reply gives the server's own words when they ended the session, else nil.
func (e *Error) Reply() *mail.Reply {
	var r *mail.Reply
	if errors.As(e.Err, &r) {
		return r
	}
	return nil
}

// InDoubt tells whether the server may have accepted the message for those
// recipients that have no answer: the dot went out and no reply came back.
func (e *Error) InDoubt() bool { return e.Sent == SentAll && e.Reply() == nil }
