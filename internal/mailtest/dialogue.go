package mailtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"strings"
	"syscall"
	"time"
)

// dialogueTimeout bounds one exchange when the context has no deadline.
const dialogueTimeout = 30 * time.Second

// RunDialogue plays a text script against a server and compares what it answers. addr is host:port, or the path of a unix
// socket. It returns nil when every line matched, and otherwise an error with the number of the script's line.
//
// Each line of a script is one of:
//
//	C: text     sent with CRLF; \r \n \t \\ \0 and \xNN are understood
//	C- text     the same, but without CRLF behind it
//	S: pattern  the next line from the server must match; * stands for any text, ? for one character
//	S... pat    lines from the server are skipped until one matches
//	EOF         the server must close the connection (a reset counts as well)
//	# text      a comment; blank lines are skipped as well
//
// "C:" followed by nothing sends an empty line. Square brackets and backslashes in a pattern stand for themselves.
func RunDialogue(ctx context.Context, addr, script string) error {
	network := "tcp"
	if strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, "@") {
		network = "unix"
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return fmt.Errorf("dialogue: connect: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(dialogueTimeout)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("dialogue: set deadline: %w", err)
	}
	return playDialogue(conn, script)
}

func playDialogue(conn io.ReadWriter, script string) error {
	br := bufio.NewReader(conn)
	for i, line := range strings.Split(script, "\n") {
		line = strings.TrimRight(strings.TrimLeft(line, " \t"), "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := playLine(conn, br, line); err != nil {
			return fmt.Errorf("dialogue: line %d: %q: %w", i+1, line, err)
		}
	}
	return nil
}

func playLine(w io.Writer, br *bufio.Reader, line string) error {
	switch {
	case strings.HasPrefix(line, "C:"), strings.HasPrefix(line, "C-"):
		text, err := unescape(strings.TrimPrefix(line[2:], " "))
		if err != nil {
			return err
		}
		if line[1] == ':' {
			text += "\r\n"
		}
		if _, err := io.WriteString(w, text); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		return nil
	case strings.HasPrefix(line, "S:"):
		return expectLine(br, strings.TrimSpace(line[2:]))
	case strings.HasPrefix(line, "S..."):
		return skipTo(br, strings.TrimSpace(line[4:]))
	case strings.TrimSpace(line) == "EOF":
		return expectEOF(br)
	default:
		return errors.New("a script line begins with C:, C-, S:, S..., EOF or #")
	}
}

func readServerLine(br *bufio.Reader) (string, error) {
	got, err := br.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read from the server (so far %q): %w", got, err)
	}
	return strings.TrimRight(got, "\r\n"), nil
}

func expectLine(br *bufio.Reader, pattern string) error {
	got, err := readServerLine(br)
	if err != nil {
		return err
	}
	if !matchLine(pattern, got) {
		return fmt.Errorf("the server said %q", got)
	}
	return nil
}

func skipTo(br *bufio.Reader, pattern string) error {
	var last string
	for {
		got, err := readServerLine(br)
		if err != nil {
			return fmt.Errorf("no line matched, the last was %q: %w", last, err)
		}
		if matchLine(pattern, got) {
			return nil
		}
		last = got
	}
}

func expectEOF(br *bufio.Reader) error {
	b, err := br.ReadByte()
	switch {
	case err == nil:
		rest, _ := br.ReadString('\n')
		return fmt.Errorf("the server did not close but said %q", string(b)+rest)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return nil
	default:
		return fmt.Errorf("the server did not close: %w", err)
	}
}

// matchLine matches with * and ?, and nothing else.
func matchLine(pattern, line string) bool {
	// path.Match stops * at a slash and gives [ and \ a meaning: hide both from it.
	p := strings.NewReplacer(`\`, `\\`, `[`, `\[`, `/`, "\x00").Replace(pattern)
	ok, err := path.Match(p, strings.ReplaceAll(line, "/", "\x00"))
	return err == nil && ok
}

// unescape understands the escapes of a script's client lines.
func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", errors.New(`a single \ at the end; write \\`)
		}
		switch s[i] {
		case 'r':
			b.WriteByte('\r')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case '0':
			b.WriteByte(0)
		case '\\':
			b.WriteByte('\\')
		case 'x':
			var v byte
			if i+2 >= len(s) {
				return "", errors.New(`\x needs two hexadecimal digits`)
			}
			if _, err := fmt.Sscanf(s[i+1:i+3], "%02x", &v); err != nil {
				return "", fmt.Errorf(`\x%s: two hexadecimal digits are needed`, s[i+1:i+3])
			}
			b.WriteByte(v)
			i += 2
		default:
			return "", fmt.Errorf(`unknown escape \%c`, s[i])
		}
	}
	return b.String(), nil
}
