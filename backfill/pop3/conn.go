package pop3

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TLSMode says how a connection is protected.
type TLSMode string

// The modes.
const (
	TLSImplicit TLSMode = "pop3s"         // TLS from the first byte
	TLSStart    TLSMode = "pop3+starttls" // STLS, required
	TLSNone     TLSMode = "pop3+insecure"
)

// Server is a POP3 server.
type Server struct {
	Address string // host:port
	Mode    TLSMode
	TLS     *tls.Config // nil: the system's roots, the name of Address
}

// Login is how to log in. With Authz the login is by AUTH PLAIN, with the master
// user's name and password, into the mailbox of Authz.
type Login struct {
	User     string
	Password string
	Authz    string
}

// Error is a command that the server answered with -ERR.
type Error struct {
	Command string // its name only: arguments may be secrets
	Code    string // the response code (RFC 2449, 8), upper case; may be empty
	Text    string // the server's words
}

func (e *Error) Error() string {
	code, hint := "", ""
	if e.Code != "" {
		code = "[" + e.Code + "] "
	}
	if e.Code == "IN-USE" {
		hint = " (another program has the mailbox open; the next pass tries again)"
	}
	return fmt.Sprintf("%s: the server answered -ERR %s%s%s", e.Command, code, e.Text, hint)
}

// Temporary tells whether the server says that it will be another answer later
// (RFC 2449, 8.1; RFC 3206, 4).
func (e *Error) Temporary() bool {
	return slices.Contains([]string{"IN-USE", "LOGIN-DELAY", "SYS/TEMP"}, e.Code)
}

const (
	dialTime  = 30 * time.Second
	replyTime = 2 * time.Minute // for the next octets
	longLine  = 8 << 10         // of an answer; RFC 2449, 4 allows 512
	mostLines = 5 << 20         // of a listing
)

// conn is a connection that is logged in.
type conn struct {
	raw  net.Conn
	br   *bufio.Reader
	caps map[string]string // by name, with their arguments
	// bareLF: the server ends its lines with LF alone.
	bareLF bool
	idle   time.Duration
	broken error
	ctx    context.Context
	stop   func() bool
}

// dial connects and logs in. The connection ends when ctx does.
func dial(ctx context.Context, srv Server, l Login) (*conn, error) {
	c, err := open(ctx, srv, l)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("pop3 %s as %s: %w", srv.Address, l.name(), err)
	}
	return c, nil
}

func (l Login) name() string {
	if l.Authz != "" {
		return l.Authz + " (by " + l.User + ")"
	}
	return l.User
}

func open(ctx context.Context, srv Server, l Login) (*conn, error) {
	switch srv.Mode {
	case TLSImplicit, TLSStart, TLSNone:
	default:
		return nil, fmt.Errorf("protection %q is unknown: say %q, %q or %q", srv.Mode, TLSImplicit, TLSStart, TLSNone)
	}
	d := net.Dialer{Timeout: dialTime}
	raw, err := d.DialContext(ctx, "tcp", srv.Address)
	if err != nil {
		return nil, err
	}
	c := &conn{idle: replyTime, ctx: ctx, stop: context.AfterFunc(ctx, func() { raw.Close() })}
	c.attach(raw)
	if err := c.start(ctx, srv, l); err != nil {
		c.stop()
		raw.Close()
		return nil, err
	}
	return c, nil
}

func (c *conn) attach(raw net.Conn) {
	c.raw, c.br = raw, bufio.NewReaderSize(&patient{raw, c}, 64<<10)
}

// patient sets a deadline for each read.
type patient struct {
	net.Conn
	c *conn
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(p.c.idle)); err != nil {
		return 0, err
	}
	return p.Conn.Read(b)
}

func (c *conn) start(ctx context.Context, srv Server, l Login) error {
	if srv.Mode == TLSImplicit {
		if err := c.handshake(ctx, srv); err != nil {
			return err
		}
	}
	if _, err := c.reply("greeting"); err != nil {
		return err
	}
	if err := c.capabilities(); err != nil {
		return err
	}
	if srv.Mode == TLSStart {
		if _, err := c.command("STLS", "STLS"); err != nil {
			return err
		}
		if c.br.Buffered() > 0 {
			return errors.New("the server sent octets behind its answer to STLS: somebody may be in between")
		}
		if err := c.handshake(ctx, srv); err != nil {
			return err
		}
		if err := c.capabilities(); err != nil { // what was told before proves nothing
			return err
		}
	}
	return c.login(l)
}

func (c *conn) handshake(ctx context.Context, srv Server) error {
	cfg := srv.TLS.Clone() // nil stays nil
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(srv.Address) // without a port the handshake says what is wrong
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	t := tls.Client(c.raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.attach(t)
	return nil
}

// capabilities asks what the server can do; one that does not know the question
// can do what RFC 1939 says.
func (c *conn) capabilities() error {
	c.caps = nil
	lines, err := c.listing("CAPA", "CAPA")
	var e *Error
	if errors.As(err, &e) {
		return nil
	}
	if err != nil {
		return err
	}
	c.caps = map[string]string{}
	for _, line := range lines {
		name, args, _ := strings.Cut(line, " ")
		c.caps[strings.ToUpper(name)] = strings.ToUpper(args)
	}
	return nil
}

func (c *conn) has(capability string) bool {
	_, ok := c.caps[capability]
	return ok
}

func (c *conn) login(l Login) error {
	plain := slices.Contains(strings.Fields(c.caps["SASL"]), "PLAIN")
	switch {
	case strings.ContainsAny(l.User+l.Password+l.Authz, "\r\n\x00"):
		return errors.New("the login has a line end or a NUL in it: it cannot be sent")
	case l.Authz != "" && !plain:
		return errors.New("the server has no AUTH PLAIN, which a master user's login needs: give each user's own password, or the suffix form (user*master)")
	case plain:
		return c.authPlain(l)
	}
	if _, err := c.command("USER", "USER "+l.User); err != nil {
		return err
	}
	_, err := c.command("PASS", "PASS "+l.Password)
	return err
}

func (c *conn) authPlain(l Login) error {
	if err := c.send("AUTH PLAIN"); err != nil {
		return err
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "+") || strings.HasPrefix(line, "+OK") {
		_, err := parseReply("AUTH", line)
		return err
	}
	_, err = c.command("AUTH", base64.StdEncoding.EncodeToString([]byte(l.Authz+"\x00"+l.User+"\x00"+l.Password)))
	return err
}

// fail gives the connection up.
func (c *conn) fail(err error) error {
	if c.broken == nil {
		if c.ctx.Err() != nil {
			err = context.Cause(c.ctx)
		}
		c.broken = err
		c.raw.Close()
	}
	return c.broken
}

func (c *conn) send(lines ...string) error {
	if c.broken != nil {
		return c.broken
	}
	if err := c.raw.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
		return c.fail(err)
	}
	if _, err := io.WriteString(c.raw, strings.Join(lines, "\r\n")+"\r\n"); err != nil {
		return c.fail(fmt.Errorf("the connection ended: %w", err))
	}
	return nil
}

// line reads a line without its end.
func (c *conn) line() (string, error) {
	if c.broken != nil {
		return "", c.broken
	}
	b, err := c.br.ReadSlice('\n')
	if err != nil || len(b) > longLine {
		if err == nil || errors.Is(err, bufio.ErrBufferFull) {
			err = errors.New("the server sent a line that is longer than any answer")
		}
		return "", c.fail(fmt.Errorf("the connection ended: %w", err))
	}
	c.bareLF = !bytes.HasSuffix(b, []byte("\r\n"))
	return strings.TrimRight(string(b), "\r\n"), nil
}

// parseReply takes the first line of an answer apart.
func parseReply(name, line string) (text string, err error) {
	if rest, ok := cutWord(line, "+OK"); ok {
		return rest, nil
	}
	rest, ok := cutWord(line, "-ERR")
	if !ok {
		return "", fmt.Errorf("%s: the server answered %q, which is no answer in POP3", name, printable(line))
	}
	e := &Error{Command: name, Text: printable(rest)}
	if strings.HasPrefix(rest, "[") {
		if code, text, ok := strings.Cut(rest[1:], "]"); ok {
			e.Code, e.Text = strings.ToUpper(printable(code)), printable(strings.TrimSpace(text))
		}
	}
	return "", e
}

func cutWord(line, word string) (rest string, ok bool) {
	if len(line) < len(word) || !strings.EqualFold(line[:len(word)], word) {
		return "", false
	}
	rest = line[len(word):]
	return strings.TrimSpace(rest), rest == "" || rest[0] == ' ' || rest[0] == '\t'
}

// printable bounds what a server says and takes out what a terminal would obey.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return s[:min(len(s), 300)]
}

func (c *conn) reply(name string) (string, error) {
	line, err := c.line()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	text, err := parseReply(name, line)
	var e *Error
	if err != nil && !errors.As(err, &e) {
		return "", c.fail(err)
	}
	return text, err
}

func (c *conn) command(name, line string) (string, error) {
	if err := c.send(line); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return c.reply(name)
}

// listing reads an answer of many lines.
func (c *conn) listing(name, line string) ([]string, error) {
	if _, err := c.command(name, line); err != nil {
		return nil, err
	}
	var out []string
	for {
		line, err := c.line()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if line == "." {
			return out, nil
		}
		if len(out) == mostLines {
			return nil, c.fail(fmt.Errorf("%s: the answer has more than %d lines", name, mostLines))
		}
		out = append(out, strings.TrimPrefix(line, "."))
	}
}

// entry is a message of this session.
type entry struct {
	num  int
	size int64
	id   string
}

// ErrNoUIDL says that a server cannot tell messages apart from one session to the
// next.
var ErrNoUIDL = errors.New("the server has no UIDL, so nobody can tell which messages were copied before: use IMAP, or read its disk")

// list gives the messages, by their number.
func (c *conn) list() ([]entry, error) {
	ids, err := c.listing("UIDL", "UIDL")
	var e *Error
	if errors.As(err, &e) && !e.Temporary() {
		return nil, fmt.Errorf("%w (%w)", ErrNoUIDL, err)
	}
	if err != nil {
		return nil, err
	}
	sizes, err := c.listing("LIST", "LIST")
	if err != nil {
		return nil, err
	}
	return join(ids, sizes)
}

// join puts UIDL and LIST together. A message that only one of them has would be
// missing in silence.
func join(ids, sizes []string) ([]entry, error) {
	size := make(map[int]int64, len(sizes))
	for _, line := range sizes {
		words := strings.Fields(line)
		if len(words) < 2 {
			return nil, fmt.Errorf("LIST: %q is no message", printable(line))
		}
		n, err := strconv.Atoi(words[0])
		octets, err2 := strconv.ParseInt(words[1], 10, 64)
		if err != nil || err2 != nil || n <= 0 || octets < 0 {
			return nil, fmt.Errorf("LIST: %q is no message", printable(line))
		}
		size[n] = octets
	}
	var out []entry
	seen := map[int]bool{}
	for _, line := range ids {
		num, id, ok := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(num)
		id = strings.TrimSpace(id)
		if !ok || err != nil || n <= 0 || id == "" || seen[n] {
			return nil, fmt.Errorf("UIDL: %q is no message", printable(line))
		}
		octets, listed := size[n]
		if !listed {
			return nil, fmt.Errorf("UIDL has message %d, and LIST has not", n)
		}
		seen[n] = true
		out = append(out, entry{n, octets, id})
	}
	if len(out) != len(size) {
		return nil, fmt.Errorf("LIST has %d messages, and UIDL has %d", len(size), len(out))
	}
	slices.SortFunc(out, func(a, b entry) int { return a.num - b.num })
	return out, nil
}

// close says goodbye; nothing was marked as deleted, so nothing is.
func (c *conn) close() {
	defer c.stop()
	if c.broken == nil {
		c.idle = 2 * time.Second
		_, _ = c.command("QUIT", "QUIT") // the answer changes nothing
	}
	c.raw.Close()
}
