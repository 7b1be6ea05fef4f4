package lookup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

const (
	maxQuestion = 4096   // octets of one question; addresses are far shorter
	maxReply    = 100000 // octets of one socketmap reply that Postfix reads (socketmap_table(5))
)

// ServeSocketmap answers Postfix's socketmap protocol (socketmap_table(5)) on l
// until ctx ends, and returns nil then. It closes l.
//
// A question is a netstring "table key", an answer a netstring that begins
// with OK, NOTFOUND, TEMP or PERM. Many follow one another on a connection.
func (s *Service) ServeSocketmap(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, func(ctx context.Context, r *bufio.Reader) (reply string, err error) {
		text, err := readNetstring(r, maxQuestion)
		if errors.Is(err, errBad) {
			return netstring("PERM " + reason(err)), err
		}
		if err != nil {
			return "", err
		}
		return s.socketmap(ctx, text), nil
	})
}

// socketmap answers one question.
func (s *Service) socketmap(ctx context.Context, question string) string {
	name, key, ok := strings.Cut(question, " ")
	if !ok || key == "" {
		return netstring("PERM " + reason(fmt.Errorf("%w: want a table's name, a space and a key", errBad)))
	}
	value, err := s.table(ctx, name, key)
	if err == nil && len("OK ")+len(value) > maxReply {
		err = fmt.Errorf("the answer has %d octets, and Postfix reads %d", len(value), maxReply)
	}
	switch answerOf(err) {
	case AnswerFound:
		return netstring("OK " + value)
	case AnswerUnknown:
		return netstring("NOTFOUND ")
	case AnswerRefused:
		return netstring("PERM " + reason(err))
	}
	return netstring("TEMP " + reason(err))
}

func netstring(text string) string { return strconv.Itoa(len(text)) + ":" + text + "," }

// readNetstring reads "length:octets,". An error that is an errBad says that
// something else came; the end of the stream before a first octet is io.EOF.
func readNetstring(r *bufio.Reader, most int) (string, error) {
	n, digits := 0, 0
	for {
		c, err := r.ReadByte()
		switch {
		case err != nil && digits > 0:
			return "", unexpected(err)
		case err != nil:
			return "", err
		case c >= '0' && c <= '9' && !(digits == 1 && n == 0):
			n = n*10 + int(c-'0')
			if digits++; n > most {
				return "", fmt.Errorf("%w: more than %d octets", errBad, most)
			}
			continue
		case c != ':' || digits == 0:
			return "", fmt.Errorf("%w: not a netstring", errBad)
		}
		break
	}
	text := make([]byte, n+1)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", unexpected(err)
	}
	if text[n] != ',' {
		return "", fmt.Errorf("%w: the netstring does not end with a comma", errBad)
	}
	return string(text[:n]), nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
