package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"crossfade/mail"
	"crossfade/relay/wire"
)

// Inspector judges messages while they arrive. The inspectors of a server are
// asked in their order, and each is told what those before it found.
type Inspector interface {
	// Inspect is called when the body of a message begins. It must not wait. A nil
	// Inspection means that this message is not looked at. ctx ends with the
	// server's patience, not with the message.
	Inspect(ctx context.Context, m Incoming) Inspection
}

// Incoming is what is known of a message before its first octet.
type Incoming struct {
	// Envelope is complete but for Size, MessageID, Passage and Trace. It must not
	// be changed, and not be kept after Close.
	Envelope *mail.Envelope
	Info     wire.Info
	// Ours says that the client is trusted, or a server of one of the two sides.
	Ours bool
	// Received is the trace header that is stored on top of the message, with its
	// CRLF. It must not be kept after Close without a copy.
	Received []byte
	// Before has what the inspectors before this one look at the message with, for
	// those who build on what one of them finds out.
	Before []Inspection
}

// Inspection looks at one message. Its methods are called one after the other,
// and slices are good for the call only. Sent and Kept may be called in turns,
// with pieces of any size, with CRLF line ends and without dot-stuffing.
type Inspection interface {
	// Sent is given the message as the client sent it.
	Sent(p []byte)
	// Kept is given the message as it is stored below Incoming.Received: without
	// what the server removes from headers of strangers.
	Kept(p []byte)
	// End is called once after the last octet, before the reply. above is what the
	// inspectors before this one want on top of the message; trace, whole header
	// lines in ASCII with CRLF, goes on top of that. A *mail.Reply as error refuses
	// the message with it; any other error is unknown and refuses it for now (I10),
	// so that what merely could not be found out is no error. ctx has no limit of
	// its own.
	End(ctx context.Context, above string) (trace string, err error)
	// Close is called once, whatever happened, and last.
	Close()
}

// inspections are those of one message.
type inspections []Inspection

// inspect asks each inspector about the message.
func (s *Server) inspect(m Incoming) inspections {
	if len(s.cfg.Inspectors) == 0 {
		return nil
	}
	list := make(inspections, 0, len(s.cfg.Inspectors))
	for _, i := range s.cfg.Inspectors {
		m.Before = list
		if one := i.Inspect(s.ctx, m); one != nil {
			list = append(list, one)
		}
	}
	return list
}

func (l inspections) sent(p []byte) {
	for _, i := range l {
		i.Sent(p)
	}
}

func (l inspections) kept(p []byte) {
	for _, i := range l {
		i.Kept(p)
	}
}

// end gives the trace of all, or the first refusal.
func (l inspections) end(ctx context.Context) (trace string, err error) {
	for _, i := range l {
		more, err := i.End(ctx, trace)
		if err != nil {
			return "", fmt.Errorf("inspect the message: %w", err)
		}
		if !headerLines(more) {
			return "", fmt.Errorf("inspect the message: what %T wants on top of it is no header", i)
		}
		trace = more + trace
	}
	return trace, nil
}

func (l inspections) close() {
	for _, i := range l {
		i.Close()
	}
}

// headerLines tells whether s is nothing or whole header fields: what comes from
// outside this package must not end the header, or begin a line of its own.
func headerLines(s string) bool {
	if s == "" {
		return true
	}
	if !strings.HasSuffix(s, "\r\n") {
		return false
	}
	for n, line := range strings.Split(strings.TrimSuffix(s, "\r\n"), "\r\n") {
		if !headerLine(line, n == 0) {
			return false
		}
	}
	return true
}

// headerLine tells whether line begins or continues a field.
func headerLine(line string, first bool) bool {
	if strings.TrimSpace(line) == "" || len(line) > 998 {
		return false
	}
	for i := range len(line) {
		if c := line[i]; c > '~' || c < ' ' && c != '\t' {
			return false
		}
	}
	if line[0] == ' ' || line[0] == '\t' {
		return !first
	}
	name, _, ok := strings.Cut(line, ":")
	return ok && fieldName([]byte(name))
}

// endInspections is called when the last octet was read.
func (b *bodyReader) endInspections() error {
	trace, err := b.looks.end(b.ctx)
	var reply *mail.Reply
	switch {
	case err == nil:
		b.env.Trace = trace
	case !errors.As(err, &reply):
		b.log.Error("a message was refused for now: it could not be inspected", slog.String("id", string(b.env.ID)), slog.Any("error", err))
	}
	return err
}
