package lookup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// maxLine is the longest line of tcp_table(5), its end included.
const maxLine = 4096

// ServeTCPTable answers Postfix's tcp_table protocol (tcp_table(5)) on l with
// one of [Tables], until ctx ends, and returns nil then. It closes l.
//
// A question is "get key", an answer begins with 200 (found), 500 (no such key)
// or 400 (ask again later). What is not plain is written as %XX.
func (s *Service) ServeTCPTable(ctx context.Context, l net.Listener, table string) error {
	return s.serve(ctx, l, func(ctx context.Context, r *bufio.Reader) (reply string, err error) {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return "400 " + encodeTCP("the request is longer than 4096 octets") + "\n", errBad
		case err != nil && len(line) > 0:
			return "", unexpected(err)
		case err != nil:
			return "", err
		}
		return s.tcpTable(ctx, table, string(line[:len(line)-1])), nil
	})
}

// tcpTable answers one line.
func (s *Service) tcpTable(ctx context.Context, table, line string) string {
	key, err := parseTCP(line)
	var value string
	if err == nil {
		value, err = s.table(ctx, table, key)
	}
	code := "400 "
	switch answerOf(err) {
	case AnswerFound:
		code = "200 "
	case AnswerUnknown:
		code, value = "500 ", errNobody.Error()
	default:
		value = reason(err)
	}
	reply := code + encodeTCP(value) + "\n"
	if len(reply) > maxLine {
		return "400 " + encodeTCP(fmt.Sprintf("the answer has %d octets, and Postfix reads %d", len(reply), maxLine)) + "\n"
	}
	return reply
}

// parseTCP takes "get key" apart. Everything else is refused, temporarily: the
// table cannot be written to over this protocol.
func parseTCP(line string) (key string, err error) {
	line = strings.TrimSuffix(line, "\r")
	word, rest, ok := strings.Cut(line, " ")
	if !ok || word != "get" || rest == "" {
		return "", fmt.Errorf("%w: want get, a space and a key", errBad)
	}
	return decodeTCP(rest)
}

func decodeTCP(text string) (string, error) {
	if !strings.Contains(text, "%") {
		return text, nil
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			b.WriteByte(text[i])
			continue
		}
		if i+2 >= len(text) {
			return "", fmt.Errorf("%w: it ends inside %%XX", errBad)
		}
		hi, lo := unhex(text[i+1]), unhex(text[i+2])
		if hi < 0 || lo < 0 {
			return "", fmt.Errorf("%w: %%%s is not %%XX", errBad, text[i+1:i+3])
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), nil
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// encodeTCP writes blanks, the percent sign and what is not printable as %XX.
func encodeTCP(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if c := text[i]; c <= ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02x", c)
			continue
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
