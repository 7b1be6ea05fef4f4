//go:build unix

package wire

import (
	"bufio"
	"io"
	"log"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/emersion/go-smtp"
)

// discard is a session that reads messages and keeps nothing.
type discard struct{}

func (discard) NewSession(*smtp.Conn) (smtp.Session, error) { return discard{}, nil }
func (discard) Reset()                                      {}
func (discard) Logout() error                               { return nil }
func (discard) Mail(string, *smtp.MailOptions) error        { return nil }
func (discard) Rcpt(string, *smtp.RcptOptions) error        { return nil }
func (discard) Data(r io.Reader) error                      { _, err := io.Copy(io.Discard, r); return err }

// discardDirect is discard, reading past the library.
type discardDirect struct {
	discard
	c *Conn
}

func (d discardDirect) Data(io.Reader) error {
	_, err := io.Copy(io.Discard, d.c.Body(1<<20))
	return err
}

func newDirect(c *smtp.Conn) (smtp.Session, error) {
	return discardDirect{c: c.Conn().(*Conn)}, nil
}

var benchBody = strings.Repeat("From the mountains to the prairies, to the oceans white with foam, 7\r\n", 58) + ".\r\n"

// benchServers runs f against go-smtp with and without the guard.
func benchServers(b *testing.B, f func(b *testing.B, addr string)) {
	for _, way := range []string{"bare", "guarded", "direct"} {
		b.Run(way, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			lib := smtp.NewServer(discard{})
			lib.ErrorLog = log.New(io.Discard, "", 0)
			lib.MaxLineLength = 64 << 10
			addr := l.Addr().String()
			if way == "direct" {
				lib.Backend = smtp.BackendFunc(newDirect)
			}
			if way != "bare" {
				lib.MaxLineLength = 0
				l = NewListener(l, Config{})
			}
			served := make(chan struct{})
			go func() { defer close(served); _ = lib.Serve(l) }()
			b.ReportAllocs()
			before := cpuTime(b)
			f(b, addr)
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
			_ = lib.Close()
			<-served
		})
	}
}

// cpuTime is what this process has used, in ns: on a machine shared with others
// it says more than the clock. It includes the client's share.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// benchClient speaks in lock-step and allocates nothing per message, as
// smtp-source does.
type benchClient struct {
	b    *testing.B
	conn net.Conn
	r    *bufio.Reader
}

func (c *benchClient) say(s string) {
	if s != "" {
		if _, err := c.conn.Write([]byte(s)); err != nil {
			c.b.Fatal(err)
		}
	}
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil || line[0] > '3' {
			c.b.Fatalf("%q: %q %v", s, line, err)
		}
		if line[3] == ' ' {
			return
		}
	}
}

func (c *benchClient) message() {
	c.say("MAIL FROM:<sender@client.test>\r\n")
	c.say("RCPT TO:<recipient@ours.test>\r\n")
	c.say("DATA\r\n")
	c.say(benchBody)
}

func (c *benchClient) open(addr string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		c.b.Fatal(err)
	}
	c.conn = conn
	c.r.Reset(conn)
	c.say("")
	c.say("EHLO client.test\r\n")
}

func (c *benchClient) quit() {
	c.say("QUIT\r\n")
	_ = c.conn.Close()
}

func BenchmarkConnPerMessage(b *testing.B) {
	benchServers(b, func(b *testing.B, addr string) {
		c := &benchClient{b: b, r: bufio.NewReader(nil)}
		for b.Loop() {
			c.open(addr)
			c.message()
			c.quit()
		}
	})
}

func BenchmarkKept(b *testing.B) {
	benchServers(b, func(b *testing.B, addr string) {
		c := &benchClient{b: b, r: bufio.NewReader(nil)}
		c.open(addr)
		for b.Loop() {
			c.message()
		}
		c.quit()
	})
}
