package mailtest

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxCommandLine = 64 << 10        // longer command lines end the connection; body lines may have any length
	drainTime      = 5 * time.Second // how long an orderly close waits for the peer's FIN
)

// errOver ends a session: the hook asked for it, or the client said QUIT.
var errOver = errors.New("session over")

// answer is a reply of SMTP.
type answer struct {
	code int
	text string // lines separated by \n
}

func (a answer) ok() bool { return a.code/100 == 2 || a.code == 354 }

func (a answer) bytes() []byte {
	var b strings.Builder
	lines := strings.Split(a.text, "\n")
	for i, l := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		fmt.Fprintf(&b, "%03d%s%s\r\n", a.code, sep, l)
	}
	return []byte(b.String())
}

// sinkConn is one session.
type sinkConn struct {
	sink *Sink
	num  int
	raw  net.Conn // as accepted
	conn net.Conn // raw, or TLS over it
	br   *bufio.Reader

	killOnce sync.Once
	dead     chan struct{} // closed by kill

	tls  bool
	helo string
	user string
	tx   *Message // nil outside of a transaction
	txn  int
	bdat []byte // chunks so far
}

func newSinkConn(s *Sink, nc net.Conn, num int) *sinkConn {
	return &sinkConn{sink: s, num: num, raw: nc, conn: nc, br: bufio.NewReaderSize(nc, maxCommandLine), dead: make(chan struct{})}
}

// kill closes the connection from outside; it may be called at any time and more than once.
func (c *sinkConn) kill() {
	c.killOnce.Do(func() {
		close(c.dead)
		_ = c.raw.Close()
	})
}

func (c *sinkConn) serve() {
	if err := c.greet(); err != nil {
		return
	}
	for {
		line, err := c.readLine()
		if err != nil {
			return
		}
		c.sink.noteCommand(c.num, line)
		if err := c.command(line); err != nil {
			return
		}
	}
}

// greet asks the hook before the TLS handshake, so that a fault can strike before it, and says the greeting after it.
func (c *sinkConn) greet() error {
	a := c.sink.ask(c.event(StepConnect, "", ""))
	if a.Silent && a.End != EndNone {
		return c.perform(a, answer{})
	}
	if c.sink.cfg.ImplicitTLS {
		if err := c.startTLS(); err != nil {
			return err
		}
	}
	proto := "ESMTP"
	if c.sink.cfg.LMTP {
		proto = "LMTP"
	}
	if err := c.perform(a, a.over(answer{220, c.sink.cfg.Hostname + " " + proto + " crossfade test sink"})); err != nil {
		return err
	}
	return c.after(StepConnect, "", "")
}

func (c *sinkConn) startTLS() error {
	tc := tls.Server(c.raw, c.sink.cfg.TLS)
	if err := tc.Handshake(); err != nil {
		return fmt.Errorf("tls handshake: %w", err)
	}
	c.conn, c.tls = tc, true
	c.br.Reset(tc)
	return nil
}

// readLine reads a command line and insists on CRLF: a client that ends lines otherwise has a bug we want to see.
func (c *sinkConn) readLine() (string, error) {
	b, err := c.br.ReadSlice('\n')
	if err != nil {
		return "", fmt.Errorf("read command: %w", err)
	}
	line, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok {
		_ = c.perform(Action{}, answer{500, "5.5.2 line does not end in CRLF"})
		return "", errOver
	}
	return line, nil
}

func (c *sinkConn) event(step Step, line, addr string) Event {
	return Event{Step: step, Conn: c.num, Transaction: c.txn, Line: line, Addr: addr, TLS: c.tls, Message: c.tx}
}

// reply asks the hook about a step, writes the outcome, and reports whether the step is to be taken as done.
// apply, when not nil, changes the session's state; it runs before the reply is written, and only when the step is done.
func (c *sinkConn) reply(ev Event, healthy answer, apply func()) error {
	a := c.sink.ask(ev)
	ans := a.over(healthy)
	if apply != nil && a.done(ans) {
		apply()
	}
	if err := c.perform(a, ans); err != nil {
		return err
	}
	return c.after(ev.Step, ev.Line, ev.Addr)
}

func (c *sinkConn) after(of Step, line, addr string) error {
	ev := c.event(StepAfter, line, addr)
	ev.Of = of
	a := c.sink.ask(ev)
	if a.Code == 0 && a.Raw == nil {
		a.Silent = true // nothing to say unasked
	}
	return c.perform(a, answer{a.Code, a.Text})
}

// over returns the reply that the action puts in the healthy one's place.
func (a Action) over(healthy answer) answer {
	if a.Code == 0 {
		return healthy
	}
	return answer{a.Code, a.Text}
}

// done tells whether the step counts as done: the client is told so, or Accept says so.
func (a Action) done(ans answer) bool {
	if a.Accept {
		return true
	}
	return ans.ok() && !a.Silent && !a.Half && a.Raw == nil
}

// perform waits, writes and ends as the action says. An error means that the session is over.
func (c *sinkConn) perform(a Action, ans answer) error {
	if err := c.pause(a); err != nil {
		return err
	}
	if err := c.emit(a, ans); err != nil {
		return err
	}
	return c.conclude(a, ans)
}

// emit writes what the action makes of a reply.
func (c *sinkConn) emit(a Action, ans answer) error {
	out := ans.bytes()
	switch {
	case a.Raw != nil:
		out = a.Raw
	case a.Half:
		out = fmt.Appendf(nil, "%03d-%s\r\n", ans.code, strings.ReplaceAll(ans.text, "\n", " "))
	case a.Silent:
		out = nil
	}
	return c.write(out, a.Drip)
}

// conclude ends the session if the action or the reply's code says so.
func (c *sinkConn) conclude(a Action, ans answer) error {
	if !a.ends(ans.code) || a.BodyBytes > 0 {
		return nil
	}
	return c.end(a.End)
}

func (c *sinkConn) pause(a Action) error {
	if a.Wait != nil {
		select {
		case <-a.Wait:
		case <-c.dead:
			return errOver
		}
	}
	return c.sleep(a.Delay)
}

func (c *sinkConn) sleep(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.dead:
		return errOver
	}
}

func (c *sinkConn) write(b []byte, drip time.Duration) error {
	if drip <= 0 {
		_, err := c.conn.Write(b)
		return err
	}
	for i := range b {
		if i > 0 {
			if err := c.sleep(drip); err != nil {
				return err
			}
		}
		if _, err := c.conn.Write(b[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

// end finishes the session. It always returns an error, errOver.
func (c *sinkConn) end(e End) error {
	switch e {
	case EndHang:
		_, _ = io.Copy(io.Discard, c.br)
	case EndStall:
		<-c.dead
	case EndReset:
		if tc, ok := c.raw.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		c.kill()
	default:
		c.closeInOrder()
	}
	return errOver
}

// closeInOrder sends FIN and then reads on for a while: closing a socket with unread bytes in it would send a RST, which
// can take back the reply that the peer has not read yet.
func (c *sinkConn) closeInOrder() {
	if tc, ok := c.conn.(*tls.Conn); ok {
		_ = tc.CloseWrite()
	}
	if hc, ok := c.raw.(interface{ CloseWrite() error }); ok {
		_ = hc.CloseWrite()
	}
	_ = c.raw.SetReadDeadline(time.Now().Add(drainTime))
	_, _ = io.Copy(io.Discard, c.raw)
	c.kill()
}

// readBody reads up to CRLF.CRLF and undoes dot-stuffing. Only CRLF ends a line: "LF . LF" is content (RFC 5321, 4.1.1.4).
func (c *sinkConn) readBody() ([]byte, int64, error) {
	var (
		body []byte
		size int64
		last [2]byte
		bol  = true
	)
	for {
		b, err := c.br.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, 0, fmt.Errorf("read message: %w", err)
		}
		if bol && string(b) == ".\r\n" {
			return body, size, nil
		}
		if bol && len(b) > 0 && b[0] == '.' {
			b = b[1:]
		}
		size += int64(len(b))
		if !c.sink.cfg.DiscardBody {
			body = append(body, b...)
		}
		for _, x := range b[max(0, len(b)-2):] {
			last[0], last[1] = last[1], x
		}
		bol = last == [2]byte{'\r', '\n'}
	}
}

// readChunk reads n bytes of BDAT.
func (c *sinkConn) readChunk(n int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(c.br, n))
	if err == nil && int64(len(b)) < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read chunk of %s bytes: %w", strconv.FormatInt(n, 10), err)
	}
	return b, nil
}
