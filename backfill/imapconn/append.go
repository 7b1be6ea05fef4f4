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
	c := newCommand("APPEND")
	if err := c.str(wire); err != nil {
		return done, err
	}
	for _, m := range msgs {
		if m.Size <= 0 {
			return done, errors.New("append: an empty message means that the whole command is given up")
		}
		if len(m.Flags) > 0 {
			c.raw("(" + strings.Join(m.Flags, " ") + ")")
		}
		if !m.Date.IsZero() {
			c.raw(`"` + m.Date.Format("_2-Jan-2006 15:04:05 -0700") + `"`)
		}
		c.raw("")
		c.pieces = append(c.pieces, piece{literal: true, body: io.NewSectionReader(m.Body, 0, m.Size), size: m.Size})
	}
	answer, err := s.roundTrip(c, nil)
	if err != nil {
		return done, s.fail(err)
	}
	if err := answer.err("APPEND"); err != nil {
		return done, err
	}
	if answer.code == "APPENDUID" && s.Has("UIDPLUS") {
		validity, set, _ := strings.Cut(answer.arg, " ")
		if uids, err := parseUIDSet(set, len(msgs)); err == nil && len(uids) == len(msgs) {
			done.UIDValidity, done.UIDs = parseUint32(validity), uids
		}
	}
	return done, nil
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
