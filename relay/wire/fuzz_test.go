package wire

import (
	"bytes"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/emersion/go-smtp"
)

// scriptConn is a client that has said all it will ever say, in pieces of any size.
type scriptConn struct {
	in  []byte
	rng *rand.Rand // nil: as much as fits
	out bytes.Buffer
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	if c.rng != nil {
		p = p[:min(len(p), 1+c.rng.IntN(12))]
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}
func (c *scriptConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scriptConn) Close() error                     { return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return nil }
func (c *scriptConn) RemoteAddr() net.Addr             { return nil }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

// oneListener gives one connection and ends when it is closed.
type oneListener struct {
	conn net.Conn
	gone chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.gone
	return nil, net.ErrClosed
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return nil }

// converse runs a whole connection through a real go-smtp server and returns what
// the client was told and what was queued.
func converse(t *testing.T, in string, rng *rand.Rand) (string, []message, string) {
	t.Helper()
	s := &server{t: t}
	if rng != nil {
		s.direct = func(c *Conn, _ io.Reader) io.Reader { return iotest.OneByteReader(c.Body(0)) }
	}
	conn := &scriptConn{in: []byte(in), rng: rng}
	l := &oneListener{conn: conn, gone: make(chan struct{})}
	lib := smtp.NewServer(s)
	lib.MaxLineLength, lib.EnableSMTPUTF8 = 0, true
	lib.ErrorLog = log.New(s, "", 0)
	cfg := Config{Hostname: "mx.test", Postmaster: "root@ours.test", MaxLine: 100, MaxCommand: 200, MaxBody: 5000}
	cfg.Metrics.Closed = func() { close(l.gone) }
	s.l = NewListener(l, cfg)
	if err := lib.Serve(s.l); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	_ = lib.Close()
	return conn.out.String(), s.queued, s.log.String()
}

var replyLines = regexp.MustCompile(`^(?:[245][0-9][0-9]-[^\r\n]*\r\n|[245][0-9][0-9] [^\r\n]*\r\n|354 [^\r\n]*\r\n)*$`)

var badParameter = regexp.MustCompile(`5\d\d 5\.[35]\.4 [^\r]*`)

// FuzzCommandPhase: however the bytes of a connection are cut up, the client is
// told the same and the same messages are queued; they hold no bare CR or LF;
// replies are whole lines; the library never sees anything to log.
func FuzzCommandPhase(f *testing.F) {
	for _, s := range []string{
		"", "QUIT\r\n", "EHLO c\r\n" + envelope + "DATA\r\nx\r\n.\r\nQUIT\r\n",
		"HELO c\r\n" + envelope + "BDAT 3\r\nabcBDAT 4 LAST\r\n\r\nx\nNOOP\r\n",
		"HELO c\r\n" + envelope + "BDAT 3\r\nabcRSET\r\n" + envelope + "DATA\r\nx\n.\n\r\n.\r\nNOOP\r\n",
		"HELO c\r\nMAIL FROM:<\"a>\\\" b\"@c>\r\nRCPT TO:<postmaster> NOTIFY=NEVER\r\nRCPT TO:<@a:b@c>\r\nDATA\r\n",
		"HELO c\r\nMAIL FROM:<a@b> SIZE=1 SMTPUTF8\r\nEHLO d\r\nRSET\r\nMAIL FROM:<>\r\nSTARTTLS\r\nAUTH X\r\n\r\n\x00\r\nM\r\n",
		"HELO c\r\n" + envelope + "BDAT 100 LAST\r\nhalf", "HELO c\r\n" + envelope + "BDAT x\r\n", "BDAT 99999999999999999999\r\n",
	} {
		f.Add(s, uint64(7))
	}
	f.Fuzz(func(t *testing.T, in string, seed uint64) {
		if strings.Contains(strings.ToLower(in), "panic") {
			t.Skip("asks the session to panic")
		}
		said, queued, logged := converse(t, in, nil)
		if !replyLines.MatchString(said) {
			t.Fatalf("replies %q", said)
		}
		if logged != "" {
			t.Fatalf("the library logged %q", logged)
		}
		for _, m := range queued {
			if strings.ContainsAny(strings.ReplaceAll(m.body, "\r\n", ""), "\r\n") || m.body != "" && !strings.HasSuffix(m.body, "\r\n") {
				t.Fatalf("body %q", m.body)
			}
			if len(m.rcpts) == 0 {
				t.Fatal("a message without recipients")
			}
		}
		said2, queued2, _ := converse(t, in, rand.New(rand.NewPCG(seed, 2)))
		// The library looks at parameters in no fixed order.
		said, said2 = badParameter.ReplaceAllString(said, "50x"), badParameter.ReplaceAllString(said2, "50x")
		if said != said2 || len(queued) != len(queued2) {
			t.Fatalf("cut up in another way it is another dialogue:\n%q\n%q", said, said2)
		}
		for i := range queued {
			if queued[i].body != queued2[i].body || queued[i].from != queued2[i].from {
				t.Fatalf("cut up in another way it is another message: %q, %q", queued[i].body, queued2[i].body)
			}
		}
	})
}
