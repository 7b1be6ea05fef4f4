package mailtest

import (
	"sync"
	"time"
)

// Step names a moment of an SMTP or LMTP session at which a [Sink] asks its hook what to do.
type Step string

// The steps, in the order in which a session meets them.
const (
	// StepConnect comes before the greeting (and, with implicit TLS, before the handshake).
	StepConnect Step = "connect"
	// StepEHLO covers EHLO, HELO and LHLO.
	StepEHLO Step = "ehlo"
	// StepSTARTTLS comes before the 220 to STARTTLS.
	StepSTARTTLS Step = "starttls"
	// StepAuth comes when the credentials were read, before the verdict.
	StepAuth Step = "auth"
	// StepMail comes before the reply to MAIL; Event.Addr is the reverse-path.
	StepMail Step = "mail"
	// StepRcpt comes before the reply to one RCPT; Event.Addr is the recipient.
	StepRcpt Step = "rcpt"
	// StepData comes before the 354 to DATA.
	StepData Step = "data"
	// StepChunk comes before the reply to a BDAT that is not the last one.
	StepChunk Step = "chunk"
	// StepDot comes when the whole message was read, before its reply. With LMTP it comes once for each accepted
	// recipient, and Event.Addr names that recipient (RFC 2033, 4.2); with SMTP it comes once, and Event.Addr is empty.
	StepDot Step = "dot"
	// StepAfter comes when the reply of another step, Event.Of, has been written. An action that carries a reply here
	// sends it unasked, as a server does that says 421 while it shuts down.
	StepAfter Step = "after"
	// StepReset, StepNoop, StepQuit and StepOther come before the reply to RSET, to NOOP, to QUIT and to everything else
	// (XCLIENT, XFORWARD, VRFY, HELP and unknown words).
	StepReset Step = "rset"
	StepNoop  Step = "noop"
	StepQuit  Step = "quit"
	StepOther Step = "other"
)

// Event describes where a session stands when the hook is asked.
type Event struct {
	Step        Step
	Of          Step   // the step whose reply was just written; set at StepAfter only
	Conn        int    // number of the connection, from 1, in the order of arrival
	Transaction int    // number of the mail transaction on this connection, from 1; 0 before the first MAIL
	Line        string // the command line without CRLF; empty at StepConnect
	Addr        string // the reverse-path at StepMail, the recipient at StepRcpt and, with LMTP, at StepDot
	TLS         bool   // whether the connection is encrypted by now
	// Message is what the client has sent so far in this transaction, nil outside of one. The hook must not keep or change it.
	Message *Message
}

// End says what happens to the connection after an action's reply.
type End int

const (
	// EndNone keeps the session going.
	EndNone End = iota
	// EndHang answers nothing any more but keeps reading, until the peer or the sink closes the connection.
	EndHang
	// EndStall answers nothing and reads nothing any more, so that the peer's writes block once the buffers are full.
	EndStall
	// EndClose closes in good order (FIN; under TLS a close_notify before it).
	EndClose
	// EndReset aborts the connection with a TCP RST. On a unix socket it is a plain close.
	EndReset
)

// Action is what a hook tells the sink to do at one step. The zero Action lets the sink do what a healthy server does.
type Action struct {
	// Code and Text replace the reply. A line break in Text makes a multi-line reply. Code 0 keeps the healthy reply.
	// The sink's own state follows the code: a recipient answered with 451 is not a recipient of the message.
	// After a 421 the connection is closed (RFC 5321, 3.8).
	Code int
	Text string

	// Raw, when not nil, is written in place of the reply, byte for byte, without regard to SMTP.
	Raw []byte
	// Half writes only a first "250-" line of a reply that never gets its last line.
	Half bool
	// Silent writes no reply.
	Silent bool
	// Accept takes the step as done whatever is written: at StepDot the message is recorded even if Silent.
	Accept bool

	// Wait, when not nil, holds the reply back until it is closed; Delay holds it back for a time.
	Wait  <-chan struct{}
	Delay time.Duration
	// Drip is the pause between two bytes of the reply.
	Drip time.Duration

	// BodyBytes, at StepData with End set, lets the 354 go out and ends the connection when that many bytes of the
	// message have been read.
	BodyBytes int64
	// End is what becomes of the connection after the reply.
	End End
}

// Reply answers with a code and a text ("5.1.1 no such user"); the sink treats the command accordingly.
func Reply(code int, text string) Action { return Action{Code: code, Text: text} }

// Hang says nothing any more until the connection is closed.
func Hang() Action { return Action{Silent: true, End: EndHang} }

// Close closes the connection (FIN) in place of a reply.
func Close() Action { return Action{Silent: true, End: EndClose} }

// Reset aborts the connection (RST) in place of a reply.
func Reset() Action { return Action{Silent: true, End: EndReset} }

// Garbage writes bytes that are no SMTP reply and goes on.
func Garbage(b string) Action { return Action{Raw: []byte(b)} }

// Drip writes the healthy reply one byte at a time with a pause between the bytes.
func Drip(pause time.Duration) Action { return Action{Drip: pause} }

// HalfReply writes the first line of a multi-line reply and then closes.
func HalfReply() Action { return Action{Half: true, End: EndClose} }

// DropReply takes the step as done, at StepDot records the message, and closes without a reply: the case in which a
// sender cannot know whether its message arrived.
func DropReply() Action { return Action{Silent: true, Accept: true, End: EndClose} }

// GoAway answers 421 and closes.
func GoAway() Action { return Reply(421, "4.3.2 service shutting down") }

// CutBody answers 354 and ends the connection when n bytes of the message have been read.
func CutBody(n int64, end End) Action { return Action{BodyBytes: n, End: end} }

// ends tells whether the session is over after the action.
func (a Action) ends(code int) bool { return a.End != EndNone || code == 421 }

// Hook decides what a [Sink] does at one step. It is called from the connections' goroutines, several at a time.
type Hook func(Event) Action

// On makes a hook that acts at every occurrence of a step.
func On(step Step, a Action) Hook { return First(-1, step, a) }

// First makes a hook that acts at the first n occurrences of a step, counted over all connections, and lets everything
// else pass. A negative n means every one.
func First(n int, step Step, a Action) Hook {
	var mu sync.Mutex
	return func(ev Event) Action {
		if ev.Step != step {
			return Action{}
		}
		mu.Lock()
		defer mu.Unlock()
		if n == 0 {
			return Action{}
		}
		if n > 0 {
			n--
		}
		return a
	}
}

// ForAddr makes a hook that acts at a step for one address, as written in the command.
func ForAddr(addr string, step Step, a Action) Hook {
	return func(ev Event) Action {
		if ev.Step == step && ev.Addr == addr {
			return a
		}
		return Action{}
	}
}
