package imapconn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an IMAP server that lies. hook sees every command first and tells
// whether it has answered it.
type fake struct {
	t        *testing.T
	addr     string
	greeting string
	caps     string
	validity uint32
	exists   int // told instead of the true number when positive
	phantoms []uint32
	msgs     []fakeMsg
	literal8 bool // bodies with a NUL come as literal8, as Cyrus sends them
	hook     func(c *fakeConn, tag, cmd string) bool

	once     sync.Once
	mu       sync.Mutex
	conns    int
	commands []string
	live     map[net.Conn]bool
	wg       sync.WaitGroup
}

type fakeMsg struct {
	uid                     uint32
	flags, date, body, lead string // lead goes out before the message's own FETCH
}

type fakeConn struct {
	net.Conn
	br *bufio.Reader
	f  *fake
	n  int // number of the connection
}

func newFake(t *testing.T, uids ...uint32) *fake {
	f := &fake{t: t, greeting: "* OK ready\r\n", caps: "IMAP4rev1 AUTH=PLAIN SASL-IR LITERAL+ MULTIAPPEND UIDPLUS", validity: 7, live: map[net.Conn]bool{}}
	for _, u := range uids {
		f.msgs = append(f.msgs, fakeMsg{uid: u, flags: `\Seen`, date: "01-Feb-2003 04:05:06 +0100", body: fmt.Sprintf("Subject: %d\r\n\r\nbody of %d\r\n", u, u)})
	}
	return f
}

// start begins to listen, when all is set.
func (f *fake) start() {
	t := f.t
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns++
			f.live[c] = true
			fc := &fakeConn{Conn: c, br: bufio.NewReader(c), f: f, n: f.conns}
			f.mu.Unlock()
			f.wg.Go(fc.serve)
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		for c := range f.live {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
}

func (f *fake) account() Account {
	f.once.Do(f.start)
	return Account{Server: Server{Address: f.addr, Mode: TLSNone}, Login: Login{User: "anna", Password: "pa\"ss\\word"}}
}

func (f *fake) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.commands)
}

func (c *fakeConn) say(format string, a ...any) {
	_, _ = fmt.Fprintf(c, format, a...) // the client may be gone: that is what is tested
}

func (c *fakeConn) serve() {
	defer c.Close()
	c.say("%s", c.f.greeting)
	for {
		line, err := c.command()
		if err != nil {
			return
		}
		tag, cmd, _ := strings.Cut(line, " ")
		c.f.mu.Lock()
		c.f.commands = append(c.f.commands, cmd)
		c.f.mu.Unlock()
		if c.f.hook != nil && c.f.hook(c, tag, cmd) {
			continue
		}
		c.answer(tag, cmd)
	}
}

var literalEnd = regexp.MustCompile(`\{(\d+)(\+?)\}$`)

// command reads a command with its literals.
func (c *fakeConn) command() (string, error) {
	var all string
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			return "", err
		}
		line = strings.TrimRight(line, "\r\n")
		all += line
		m := literalEnd.FindStringSubmatch(line)
		if m == nil {
			return all, nil
		}
		if m[2] == "" {
			if c.f.hook != nil {
				tag, cmd, _ := strings.Cut(all, " ")
				if c.f.hook(c, tag, "?"+cmd) {
					return c.command()
				}
			}
			c.say("+ go\r\n")
		}
		n, _ := strconv.Atoi(m[1])
		buf := make([]byte, n)
		if _, err := io.ReadFull(c.br, buf); err != nil {
			return "", err
		}
		all += "\r\n" + string(buf)
	}
}

func (c *fakeConn) answer(tag, cmd string) {
	verb, rest, _ := strings.Cut(cmd, " ")
	f := c.f
	switch strings.ToUpper(verb) {
	case "CAPABILITY":
		c.say("* CAPABILITY %s\r\n", f.caps)
	case "SELECT", "EXAMINE":
		exists := len(f.msgs) + len(f.phantoms)
		if f.exists > 0 {
			exists = f.exists
		}
		next := uint32(1)
		for _, m := range f.msgs {
			next = max(next, m.uid+1)
		}
		c.say("* %d EXISTS\r\n* FLAGS (\\Seen work)\r\n* OK [PERMANENTFLAGS (\\Seen \\*)] ok\r\n* OK [UIDVALIDITY %d] ok\r\n* OK [UIDNEXT %d] ok\r\n", exists, f.validity, next)
	case "LOGOUT":
		c.say("* BYE see you\r\n")
	case "UID":
		c.uid(rest)
	}
	c.say("%s OK done\r\n", tag)
}

func (c *fakeConn) uid(rest string) {
	verb, rest, _ := strings.Cut(rest, " ")
	set, items, _ := strings.Cut(rest, " ")
	switch verb {
	case "SEARCH":
		var out []string
		for _, m := range c.f.msgs {
			out = append(out, fmt.Sprint(m.uid))
		}
		for _, u := range c.f.phantoms {
			out = append(out, fmt.Sprint(u))
		}
		c.say("* SEARCH %s\r\n", strings.Join(out, " "))
	case "FETCH":
		for i, m := range c.f.msgs {
			if inSet(set, m.uid) {
				c.fetch(i+1, m, items)
			}
		}
	}
}

func (c *fakeConn) fetch(seq int, m fakeMsg, items string) {
	c.say("%s", strings.ReplaceAll(m.lead, "SEQ", fmt.Sprint(seq)))
	c.say("* %d FETCH (UID %d", seq, m.uid)
	for item, text := range map[string]string{"FLAGS": "(" + m.flags + ")", "INTERNALDATE": `"` + m.date + `"`, "RFC822.SIZE": fmt.Sprint(len(m.body))} {
		if strings.Contains(items, item) {
			c.say(" %s %s", item, text)
		}
	}
	if strings.Contains(items, "BODY.PEEK[]") {
		tilde := ""
		if c.f.literal8 && strings.Contains(m.body, "\x00") {
			tilde = "~"
		}
		c.say(" BODY[] %s{%d}\r\n%s", tilde, len(m.body), m.body)
	}
	c.say(")\r\n")
}

func inSet(set string, uid uint32) bool {
	for part := range strings.SplitSeq(set, ",") {
		a, b, two := strings.Cut(part, ":")
		x, _ := strconv.Atoi(a)
		y := x
		if two {
			y, _ = strconv.Atoi(b)
		}
		if b == "*" {
			y = 1 << 31
		}
		if int(uid) >= x && int(uid) <= y {
			return true
		}
	}
	return false
}

// collector takes messages and complains about those that come twice.
type collector struct {
	t     *testing.T
	cur   strings.Builder
	got   map[uint32]string
	metas map[uint32]Meta
	fail  error
}

func newCollector(t *testing.T) *collector {
	return &collector{t: t, got: map[uint32]string{}, metas: map[uint32]Meta{}}
}

func (c *collector) Begin(uint32, int64) (io.Writer, error) {
	c.cur.Reset()
	return c, nil
}

func (c *collector) Write(p []byte) (int, error) {
	if c.fail != nil {
		return 0, c.fail
	}
	return c.cur.Write(p)
}

func (c *collector) End(m Meta) error {
	if _, twice := c.got[m.UID]; twice {
		c.t.Errorf("UID %d came twice", m.UID)
	}
	c.got[m.UID], c.metas[m.UID] = c.cur.String(), m
	return nil
}

var bodies = Items{Flags: true, Date: true, Body: true}

// fetchAll reads a folder of f and compares what came with what is there.
func fetchAll(t *testing.T, f *fake, uids ...uint32) (*collector, []Failure, error) {
	t.Helper()
	r := NewReader(t.Context(), &Dialer{Idle: 2 * time.Second}, f.account(), nil)
	defer r.Close()
	if _, err := r.Select(Folder{Name: "INBOX", Wire: "INBOX"}); err != nil {
		return nil, nil, err
	}
	c := newCollector(t)
	failures, err := r.Fetch(uids, bodies, c)
	for _, m := range f.msgs {
		if got, ok := c.got[m.uid]; ok && got != m.body {
			t.Errorf("UID %d: %q instead of %q", m.uid, got, m.body)
		}
	}
	return c, failures, err
}

var errStop = errors.New("no room")

func newReader(b []byte) *bufio.Reader { return bufio.NewReader(strings.NewReader(string(b))) }
