package smtpclient

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"crossfade/mail"
)

// Limits for what a server may say. RFC 5321, 4.5.3.1.5 has 512 octets for a
// line; servers go beyond it with long explanations.
const (
	maxReplyLine  = 4096
	maxReplyLines = 256
	maxReplyText  = 8192 // what is kept of the text
)

// readReply reads one reply, of one line or of many. What is not a reply is an
// ErrProtocol.
func readReply(br *bufio.Reader) (mail.Reply, error) {
	code, text, more, err := readReplyLine(br)
	if err != nil {
		return mail.Reply{}, err
	}
	e, text := cutEnhanced(code, text)
	r := mail.Reply{Code: code, Enhanced: e, Text: cleanText(text)}
	if !more {
		return r, nil
	}
	var b strings.Builder
	b.WriteString(r.Text)
	for n := 1; more; n++ {
		if n == maxReplyLines {
			return mail.Reply{}, fmt.Errorf("%w: a reply has more than %d lines", ErrProtocol, maxReplyLines)
		}
		if code, text, more, err = readReplyLine(br); err != nil {
			return mail.Reply{}, err
		}
		if e2, rest := cutEnhanced(code, text); e2 == r.Enhanced || r.Enhanced == (mail.Enhanced{}) {
			r.Enhanced, text = e2, rest
		}
		if b.Len() < maxReplyText {
			b.WriteByte('\n')
			b.WriteString(cleanText(text))
		}
	}
	// A server that mixes codes means the last one: it is the line that ends
	// the reply.
	if r.Code != code {
		r.Code, r.Enhanced = code, fitting(code, r.Enhanced)
	}
	r.Text = b.String()
	return r, nil
}

// fitting drops an enhanced code whose class is not that of the code.
func fitting(code int, e mail.Enhanced) mail.Enhanced {
	if e[0] != code/100 {
		return mail.Enhanced{}
	}
	return e
}

// readReplyLine reads "250-text" or "250 text" or "250". text is valid until
// the next read.
func readReplyLine(br *bufio.Reader) (code int, text []byte, more bool, err error) {
	line, err := br.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return 0, nil, false, fmt.Errorf("%w: a line of a reply is longer than %d octets", ErrProtocol, maxReplyLine)
	case errors.Is(err, io.EOF) && len(line) > 0:
		return 0, nil, false, fmt.Errorf("the server closed the connection inside a reply: %w", io.ErrUnexpectedEOF)
	case errors.Is(err, io.EOF):
		return 0, nil, false, fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return 0, nil, false, err
	}
	line = bytes.TrimRight(line, "\r\n")
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || !isDigit(line[1]) || !isDigit(line[2]) ||
		len(line) > 3 && line[3] != ' ' && line[3] != '-' {
		return 0, nil, false, fmt.Errorf("%w: it said %q", ErrProtocol, cleanText(line[:min(len(line), 80)]))
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, nil, false, nil
	}
	return code, line[4:], line[3] == '-', nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// cutEnhanced takes an enhanced status code off the front of text when there
// is one and its class fits the code (RFC 2034, 4).
func cutEnhanced(code int, text []byte) (mail.Enhanced, []byte) {
	var e mail.Enhanced
	rest := text
	for i := range e {
		n := 0
		for n < len(rest) && n < 3 && isDigit(rest[n]) {
			e[i] = e[i]*10 + int(rest[n]-'0')
			n++
		}
		if n == 0 {
			return mail.Enhanced{}, text
		}
		rest = rest[n:]
		if i < 2 {
			if len(rest) == 0 || rest[0] != '.' {
				return mail.Enhanced{}, text
			}
			rest = rest[1:]
		}
	}
	if e[0] != code/100 || len(rest) > 0 && rest[0] != ' ' {
		return mail.Enhanced{}, text
	}
	return e, bytes.TrimLeft(rest, " ")
}

// cleanText makes text fit to be shown: it goes into logs, terminals and
// bounces. Control characters and broken UTF-8 become question marks.
func cleanText(b []byte) string {
	plain := true
	for _, c := range b {
		if c < ' ' || c >= 0x7f {
			plain = false
			break
		}
	}
	if plain {
		return string(b)
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(b))
}
