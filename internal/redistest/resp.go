package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Error is an error that Redis answered, with its code first.
type Error string

func (e Error) Error() string { return string(e) }

// wire reads RESP2 and RESP3 values and keeps the octets of the last one.
type wire struct {
	br  *bufio.Reader
	raw []byte
}

func newWire(r io.Reader) *wire { return &wire{br: bufio.NewReaderSize(r, 64<<10)} }

// next reads a value: nil, string, int64, Error, or []any (a map is the list
// of its keys and values). push tells that it answers no command.
func (w *wire) next() (v any, push bool, err error) {
	w.raw = w.raw[:0]
	return w.value()
}

func (w *wire) line() (string, error) {
	s, err := w.br.ReadBytes('\n')
	w.raw = append(w.raw, s...)
	if err != nil {
		return "", err
	}
	if len(s) < 3 || s[len(s)-2] != '\r' {
		return "", fmt.Errorf("no RESP: %q", s)
	}
	return string(s[:len(s)-2]), nil
}

func (w *wire) value() (v any, push bool, err error) {
	s, err := w.line()
	if err != nil {
		return nil, false, err
	}
	kind, rest := s[0], s[1:]
	switch kind {
	case '+', ',', '(', '#':
		return rest, false, nil
	case '-':
		return Error(rest), false, nil
	case '_':
		return nil, false, nil
	}
	n, err := strconv.ParseInt(rest, 10, 64)
	if err != nil {
		return nil, false, fmt.Errorf("no RESP: %q", s)
	}
	switch kind {
	case ':':
		return n, false, nil
	case '$', '=', '!':
		v, err = w.bulk(n)
		if t, ok := v.(string); ok && kind == '!' {
			v = Error(t)
		}
		return v, false, err
	case '%', '|':
		n *= 2
	case '*', '~', '>':
	default:
		return nil, false, fmt.Errorf("no RESP: %q", s)
	}
	v, err = w.list(n)
	if kind == '|' && err == nil { // an attribute stands before the value it is about
		return w.value()
	}
	return v, kind == '>', err
}

func (w *wire) bulk(n int64) (any, error) {
	if n < 0 {
		return nil, nil
	}
	at := len(w.raw)
	w.raw = append(w.raw, make([]byte, n+2)...)
	if _, err := io.ReadFull(w.br, w.raw[at:]); err != nil {
		return nil, err
	}
	return string(w.raw[at : at+int(n)]), nil
}

func (w *wire) list(n int64) (any, error) {
	if n < 0 {
		return nil, nil
	}
	out := make([]any, 0, min(n, 1024))
	for range n {
		v, _, err := w.value()
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// command reads what a client sends.
func (w *wire) command() ([]string, error) {
	v, _, err := w.next()
	if err != nil {
		return nil, err
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, errors.New("a client sent no command")
	}
	cmd := make([]string, len(list))
	for i := range list {
		cmd[i], _ = list[i].(string)
	}
	return cmd, nil
}

// encode writes a command as a client does.
func encode(args []any) []byte {
	b := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		s := fmt.Sprint(a)
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(s), s)
	}
	return b
}
