package imapconn

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// command is a command as a row of pieces. Text goes out as it is; before a
// piece that must wait, the server has to say "+" first.
type command struct {
	name   string
	pieces []piece
}

type piece struct {
	text string
	// literal: the octets of a string that cannot be quoted, or of a message.
	literal bool
	body    io.Reader // of a message; nil: text
	size    int64
	binary  bool // a literal8
	wait    bool // not a literal, but sent only after "+" (SASL)
}

func newCommand(name string) *command {
	verb, _, _ := strings.Cut(name, " ")
	if verb == "UID" {
		verb = name
	}
	return &command{name: verb, pieces: []piece{{text: name}}}
}

// raw adds a space and text that is known to be harmless.
func (c *command) raw(text string) *command {
	c.pieces = append(c.pieces, piece{text: " " + text})
	return c
}

// str adds a string, quoted where it can be and as a literal elsewhere, so that
// nothing in it can end the line.
func (c *command) str(s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return errors.New("a NUL cannot be sent in an IMAP string")
	}
	for i := 0; i < len(s); i++ {
		if s[i] == '\r' || s[i] == '\n' || s[i] >= 0x80 {
			c.raw("")
			c.pieces = append(c.pieces, piece{literal: true, text: s, size: int64(len(s))})
			return nil
		}
	}
	c.raw(`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`)
	return nil
}

// wait adds text that is sent when the server asks for it with "+".
func (c *command) wait(text string) {
	c.pieces = append(c.pieces, piece{text: text, wait: true})
}

// run sends a command and reads up to its answer. Data goes to onData, which
// may be nil. A NO or BAD comes back as *Error; every other error ends the
// session.
func (s *Session) run(c *command, onData func(*response)) error {
	if s.broken != nil {
		return s.broken
	}
	began := time.Now()
	answer, err := s.roundTrip(c, onData)
	if err != nil {
		return s.fail(fmt.Errorf("%s: %w", c.name, err))
	}
	s.heard(began)
	return answer.err(c.name)
}

// err gives the error of a tagged answer.
func (r *response) err(command string) error {
	if r.name == "OK" {
		return nil
	}
	return &Error{Command: command, Status: r.name, Code: r.code, Text: r.text}
}

func (s *Session) roundTrip(c *command, onData func(*response)) (*response, error) {
	tag, early, err := s.send(c, onData)
	if err != nil {
		return nil, s.reason(err, onData)
	}
	if early != nil {
		return early, nil
	}
	return s.answer(tag, onData)
}

// reason looks for the words that a server left before it stopped listening.
func (s *Session) reason(err error, onData func(*response)) error {
	for i := 0; i < 100; i++ {
		r, rerr := s.next()
		if rerr != nil {
			return err
		}
		if r.name == "BYE" {
			return fmt.Errorf("the server said goodbye: %s (%w)", r.words(), err)
		}
	}
	return err
}

// words gives code and text of a status.
func (r *response) words() string {
	if r.code != "" {
		return "[" + r.code + "] " + r.text
	}
	return r.text
}

// send writes a command. early is its answer when the server gave it before
// it had taken all of it.
func (s *Session) send(c *command, onData func(*response)) (tag string, early *response, err error) {
	if tag, early, err = s.put(c, onData); err != nil || early != nil {
		return tag, early, err
	}
	return tag, nil, s.bw.Flush()
}

// put is send for a command that more follows.
func (s *Session) put(c *command, onData func(*response)) (tag string, early *response, err error) {
	s.tags++
	tag = "C" + strconv.Itoa(s.tags)
	if _, err := s.bw.WriteString(tag + " "); err != nil {
		return tag, nil, err
	}
	for _, p := range c.pieces {
		switch {
		case p.literal:
			early, err = s.sendLiteral(tag, p, onData)
		case p.wait:
			if _, err = s.bw.WriteString("\r\n"); err == nil {
				early, err = s.goAhead(tag, onData)
			}
			if err == nil && early == nil {
				_, err = s.bw.WriteString(p.text)
			}
		default:
			_, err = s.bw.WriteString(p.text)
		}
		if err != nil || early != nil {
			return tag, early, err
		}
	}
	if n := len(c.pieces); !c.pieces[n-1].wait {
		if _, err := s.bw.WriteString("\r\n"); err != nil {
			return tag, nil, err
		}
	}
	return tag, nil, nil
}

// nonSync tells whether a literal may be sent without waiting for "+".
func (s *Session) nonSync(size int64) bool {
	return s.caps["LITERAL+"] || s.caps["LITERAL-"] && size <= 4096
}

// sendLiteral announces a literal and sends it, waiting for "+" where the
// server has neither LITERAL+ nor, for 4096 octets at most, LITERAL- (RFC 7888).
func (s *Session) sendLiteral(tag string, p piece, onData func(*response)) (*response, error) {
	sync := !s.nonSync(p.size)
	plus := "+"
	if sync {
		plus = ""
	}
	tilde := ""
	if p.binary {
		tilde = "~"
	}
	if _, err := fmt.Fprintf(s.bw, "%s{%d%s}\r\n", tilde, p.size, plus); err != nil {
		return nil, err
	}
	if sync {
		if early, err := s.goAhead(tag, onData); early != nil || err != nil {
			return early, err
		}
	}
	if p.body == nil {
		_, err := s.bw.WriteString(p.text)
		return nil, err
	}
	n, err := io.Copy(s.bw, io.LimitReader(p.body, p.size))
	if err == nil && n != p.size {
		err = fmt.Errorf("the message has %d octets instead of %d", n, p.size)
	}
	return nil, err
}

// goAhead waits for "+". The tagged answer instead of it is no.
func (s *Session) goAhead(tag string, onData func(*response)) (early *response, err error) {
	if err := s.bw.Flush(); err != nil {
		return nil, err
	}
	for {
		r, err := s.next()
		if err != nil {
			return nil, err
		}
		if r.tag == "+" {
			return nil, nil
		}
		done, err := s.take(r, tag, onData)
		if err != nil {
			return nil, err
		}
		if done && r.name == "OK" {
			return nil, errors.New("the server answered OK before it had the whole command")
		}
		if done {
			return r, nil
		}
	}
}

// answer reads up to the tagged answer.
func (s *Session) answer(tag string, onData func(*response)) (*response, error) {
	for {
		r, err := s.next()
		if err != nil {
			return nil, err
		}
		if r.tag == "+" {
			return nil, errors.New("the server asks for data that nobody has for it")
		}
		done, err := s.take(r, tag, onData)
		if err != nil {
			return nil, err
		}
		if done {
			return r, nil
		}
	}
}

// take sorts a response: the answer itself, a goodbye, or data.
func (s *Session) take(r *response, tag string, onData func(*response)) (done bool, err error) {
	switch {
	case r.tag == tag:
		if r.name != "OK" && r.name != "NO" && r.name != "BAD" {
			return false, fmt.Errorf("the answer is %q", printable(r.name))
		}
		return true, nil
	case r.tag != "*":
		return false, fmt.Errorf("an answer to %q, which was not asked", printable(r.tag))
	case r.name == "BYE" && tag != "":
		return false, fmt.Errorf("the server said goodbye: %s", r.words())
	}
	if onData != nil {
		onData(r)
	}
	return false, nil
}
