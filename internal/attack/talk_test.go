package attack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// talk is a client that sees every byte and waits for nothing that it does not
// have to wait for.
type talk struct {
	conn net.Conn
	read []byte // replies not yet taken
}

// patience bounds one reply.
const patience = time.Minute

// stranger is where attackers come from: 127.0.0.1 is the address of a backend.
const stranger = "127.0.0.9"

func dialTalk(addr string) (*talk, error) { return dialFrom(stranger, addr) }

func dialFrom(from, addr string) (*talk, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &talk{conn: conn}, nil
}

func (k *talk) close() { _ = k.conn.Close() }

// reply reads one reply, its lines joined with a blank.
func (k *talk) reply() (string, error) {
	var all []string
	for {
		i := bytes.IndexByte(k.read, '\n')
		if i < 0 {
			var buf [4096]byte
			_ = k.conn.SetReadDeadline(time.Now().Add(patience))
			n, err := k.conn.Read(buf[:])
			k.read = append(k.read, buf[:n]...)
			if n == 0 && err != nil {
				return strings.Join(all, " "), err
			}
			continue
		}
		line := strings.TrimRight(string(k.read[:i]), "\r\n")
		k.read = k.read[i+1:]
		all = append(all, line)
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(all, " "), nil
		}
	}
}

// rest reads the replies up to the end of the connection.
func (k *talk) rest() (replies []string, err error) {
	for {
		r, err := k.reply()
		if errors.Is(err, io.EOF) && r == "" {
			return replies, nil
		}
		if err != nil {
			return replies, err
		}
		replies = append(replies, r)
	}
}

// cmd sends a command and reads its reply, which must begin with want.
func (k *talk) cmd(line, want string) (string, error) {
	if line != "" {
		if _, err := io.WriteString(k.conn, line+"\r\n"); err != nil {
			return "", err
		}
	}
	r, err := k.reply()
	if err == nil && !strings.HasPrefix(r, want) {
		err = fmt.Errorf("%q was answered with %q, want %s", line, r, want)
	}
	return r, err
}

// cmds is cmd for many: pairs of a command and the beginning of its reply.
func (k *talk) cmds(pairs ...string) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if _, err := k.cmd(pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// pieces cuts what is written, so that the server reads it in these pieces.
type pieces func(b []byte) [][]byte

func whole(b []byte) [][]byte { return [][]byte{b} }

func everyByte(b []byte) (out [][]byte) {
	for i := range b {
		out = append(out, b[i:i+1])
	}
	return out
}

func cutAt(i int) pieces {
	return func(b []byte) [][]byte {
		if i <= 0 || i >= len(b) {
			return whole(b)
		}
		return [][]byte{b[:i], b[i:]}
	}
}

// attacker is who sends the cases, smuggler whom nobody must ever hear of.
const (
	attacker = "attacker@example.org" // his bounces have somewhere to go
	target   = "target@example.org"
)

// send makes a server a present of one case, QUIT behind it, and returns all
// replies behind the one to DATA, or to the first BDAT. The message is in one
// write with everything behind it unless cut says otherwise.
func (c smuggling) send(k *talk, cut pieces) (replies []string, err error) {
	defer k.close()
	err = k.cmds("", "220", "EHLO attacker.test", "250", "MAIL FROM:<"+attacker+"> RET=HDRS", "250", "RCPT TO:<"+target+">", "250")
	if err == nil && c.chunks == nil {
		err = k.cmds("DATA", "354")
	}
	if err != nil {
		return nil, err
	}
	wrote := make(chan error, 1)
	go func() {
		var err error
		for _, p := range cut(c.wire()) {
			if _, err = k.conn.Write(p); err != nil {
				break
			}
		}
		wrote <- err
	}()
	replies, err = k.rest()
	if err != nil {
		k.close()
	}
	return replies, errors.Join(err, <-wrote)
}

// wire is what goes over the wire behind the reply to DATA, or behind RCPT.
func (c smuggling) wire() []byte {
	const quit = "QUIT\r\n"
	if c.chunks == nil {
		return append(bytes.Clone(c.body), quit...)
	}
	var b []byte
	rest := c.body
	for i, n := range c.chunks {
		last := ""
		if i == len(c.chunks)-1 {
			last = " LAST"
		}
		b = append(b, "BDAT "+strconv.Itoa(n)+last+"\r\n"...)
		b = append(b, rest[:n]...)
		rest = rest[n:]
	}
	return append(b, quit...)
}

// codes are the codes of replies.
func codes(replies []string) string {
	var out []string
	for _, r := range replies {
		out = append(out, r[:min(3, len(r))])
	}
	return strings.Join(out, " ")
}
