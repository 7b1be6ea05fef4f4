package imapconn

import (
	"errors"
	"io"
	"strings"
	"time"
)

// Outgoing is a message to append.
type Outgoing struct {
	Flags []string  // those the folder keeps, see [Selected.CanKeep]
	Date  time.Time // INTERNALDATE; zero: the server's own time
	Size  int64     // octets of Body; never 0, see RFC 3502, 6.3.11
	Body  io.ReaderAt
	// Binary sends the message as a literal8 (RFC 3516, 4.4), in which a NUL may
	// be; only where the server has BINARY. Servers may decode parts of the
	// message then: it is for those that refuse the message otherwise.
	Binary bool
}

// Appended is what the server tells of appended messages (RFC 4315).
type Appended struct {
	UIDValidity uint32
	UIDs        []uint32 // one for each message, in order; nil when the server does not tell
}

// Append adds messages to the folder with a name on the wire: several at once
// only when the server offers MULTIAPPEND (RFC 3502), and then all of them or
// none. The folder should be selected: servers are several times faster then.
func (s *Session) Append(wire string, msgs []Outgoing) (Appended, error) {
	var done Appended
	if s.broken != nil {
		return done, s.broken
	}
	if len(msgs) > 1 && !s.Has("MULTIAPPEND") {
		return done, errors.New("append: several messages at once, but the server has no MULTIAPPEND")
	}
	c, err := appendCommand(wire, msgs)
	if err != nil {
		return done, err
	}
	answer, err := s.roundTrip(c, nil)
	if err != nil {
		return done, s.fail(err)
	}
	if err := answer.err("APPEND"); err != nil {
		return done, err
	}
	return s.appendUID(answer, len(msgs)), nil
}

// Alive tells whether the session has a connection: an error that leaves it one
// was an answer of the server.
func (s *Session) Alive() bool { return s.broken == nil }

// Result is what became of one message of [Session.AppendEach].
type Result struct {
	Appended
	Err error // an *Error when the server refused the message
}

// window is how many commands AppendEach sends before it reads their answers:
// those have room in the socket while nobody reads them.
const window = 50

// AppendEach adds messages with a command for each. Where the server needs no
// "+" for a literal (RFC 7888) the commands are sent without waiting for the
// answers between them. There is a result for each message; an error is one of
// the connection, and then nobody knows what became of them.
func (s *Session) AppendEach(wire string, msgs []Outgoing) ([]Result, error) {
	results := make([]Result, 0, len(msgs))
	for len(msgs) > 0 {
		n := 0
		for n < len(msgs) && n < window && s.nonSync(msgs[n].Size) && isASCII(wire) {
			n++
		}
		if n == 0 {
			done, err := s.Append(wire, msgs[:1])
			var refused *Error
			if err != nil && !errors.As(err, &refused) {
				return nil, err
			}
			results, msgs = append(results, Result{done, err}), msgs[1:]
			continue
		}
		group, err := s.appendGroup(wire, msgs[:n])
		if err != nil {
			return nil, err
		}
		results, msgs = append(results, group...), msgs[n:]
	}
	return results, nil
}

func (s *Session) appendGroup(wire string, msgs []Outgoing) ([]Result, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	at := map[string]int{}
	for i := range msgs {
		c, err := appendCommand(wire, msgs[i:i+1])
		if err != nil {
			return nil, s.fail(err) // half of the group is on its way
		}
		tag, _, err := s.send(c, nil)
		if err != nil {
			return nil, s.fail(s.reason(err, nil))
		}
		at[tag] = i
	}
	// Answers may come in any order (RFC 3501, 5.5).
	results := make([]Result, len(msgs))
	for len(at) > 0 {
		r, err := s.next()
		if err != nil {
			return nil, s.fail(err)
		}
		tag := r.tag
		i, mine := at[tag]
		if !mine {
			tag = "C" // none of ours
		}
		if r.tag == "+" {
			return nil, s.fail(errors.New("append: the server asks for data that nobody has for it"))
		}
		done, err := s.take(r, tag, nil)
		if err != nil {
			return nil, s.fail(err)
		}
		if !done {
			continue
		}
		delete(at, tag)
		if results[i].Err = r.err("APPEND"); results[i].Err == nil {
			results[i].Appended = s.appendUID(r, 1)
		}
	}
	return results, nil
}

func appendCommand(wire string, msgs []Outgoing) (*command, error) {
	c := newCommand("APPEND")
	if err := c.str(wire); err != nil {
		return nil, err
	}
	for _, m := range msgs {
		if m.Size <= 0 {
			return nil, errors.New("append: an empty message means that the whole command is given up")
		}
		if len(m.Flags) > 0 {
			c.raw("(" + strings.Join(m.Flags, " ") + ")")
		}
		if !m.Date.IsZero() {
			c.raw(`"` + m.Date.Format("_2-Jan-2006 15:04:05 -0700") + `"`)
		}
		c.raw("")
		c.pieces = append(c.pieces, piece{literal: true, body: io.NewSectionReader(m.Body, 0, m.Size), size: m.Size, binary: m.Binary})
	}
	return c, nil
}

// appendUID takes the UIDs of n messages from the answer to APPEND.
func (s *Session) appendUID(answer *response, n int) Appended {
	var done Appended
	if answer.code == "APPENDUID" && s.Has("UIDPLUS") {
		validity, set, _ := strings.Cut(answer.arg, " ")
		if uids, err := parseUIDSet(set, n); err == nil && len(uids) == n {
			done.UIDValidity, done.UIDs = parseUint32(validity), uids
		}
	}
	return done
}

// KeywordOK tells whether a flag can be written in a command: an atom, with a
// backslash in front if it is a system flag.
func KeywordOK(flag string) bool {
	name := strings.TrimPrefix(flag, `\`)
	if name == "" {
		return false
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`(){%*"\]`, c) >= 0 {
			return false
		}
	}
	return true
}
