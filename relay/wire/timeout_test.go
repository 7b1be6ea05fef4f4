package wire

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestTimeouts: an idle client, one that trickles a command, one that stops
// inside a message, and one that never shakes hands.
func TestTimeouts(t *testing.T) {
	cfg := withTLS(t, Config{IdleTimeout: 150 * time.Millisecond, DataTimeout: 150 * time.Millisecond})
	s := start(t, cfg)

	idle := s.dial()
	idle.want("220 ", "421 4.4.2", "<eof>")

	slow := s.dial()
	slow.want("220 ")
	stop := make(chan struct{})
	go func() { // one byte every 20 ms would keep a deadline per read alive
		defer close(stop)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range 500 {
			<-tick.C
			if _, err := slow.conn.Write([]byte("x")); err != nil {
				return
			}
		}
	}()
	slow.want("421 4.4.2")
	_ = slow.conn.Close()
	<-stop

	body := s.greeted()
	body.send(envelope + "DATA\r\nhalf")
	body.want("250 ", "250 ", "354 ", "421 4.4.2", "<eof>")
	eventually(t, "the session was told", func() bool { return len(s.errors()) == 1 })
	if err := s.errors()[0]; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the session was told %v", err)
	}

	hands := s.greeted()
	hands.send("STARTTLS\r\n")
	hands.want("220 ", "<eof>")
	eventually(t, "all gone", func() bool { return s.l.Len() == 0 })
}

// TestBodyTimeout: a client that never pauses for long, and never comes to an
// end, holds a connection and a place in the store only so long. A body that was
// in time leaves the connection as it was.
func TestBodyTimeout(t *testing.T) {
	const limit = 200 * time.Millisecond
	s := start(t, Config{BodyTimeout: limit})
	for name, begin := range map[string]string{
		"DATA": "DATA\r\n", "one chunk": "BDAT 100000\r\n", "a refused chunk": "RSET\r\nBDAT 100000\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			before := len(s.errors())
			p := s.greeted()
			p.send(envelope + begin)
			stopped := p.trickle("x")
			for p.reply()[0] != '4' { // the replies before it differ
			}
			_ = p.conn.Close()
			<-stopped
			if !strings.Contains(name, "refused") {
				eventually(t, "the session was told", func() bool { return len(s.errors()) > before })
				if err := s.errors()[before]; !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("the session was told %v", err)
				}
			}
		})
	}
	t.Run("many chunks", func(t *testing.T) {
		p := s.greeted()
		p.send(envelope)
		p.want("250 ", "250 ")
		stopped := p.trickle("BDAT 1\r\nx")
		for p.reply()[0] != '4' {
		}
		_ = p.conn.Close()
		<-stopped
	})
	t.Run("in time", func(t *testing.T) {
		p := s.greeted()
		p.send(envelope + "DATA\r\nx\r\n.\r\n")
		p.want("250 ", "250 ", "354 ", "250 ")
		done := time.NewTimer(limit + limit/2)
		<-done.C
		p.send("NOOP\r\n")
		p.want("250 ")
	})
	if got := len(s.messages()); got != 1 {
		t.Errorf("%d messages were queued", got)
	}
}

// trickle sends text again and again with a short pause, until the connection
// fails.
func (p *peer) trickle(text string) (stopped <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for range 700 {
			<-tick.C
			if _, err := io.WriteString(p.conn, text); err != nil {
				return
			}
		}
	}()
	return done
}

// TestEmptyChunks: chunks without a byte bring no message nearer.
func TestEmptyChunks(t *testing.T) {
	s := start(t, Config{MaxNoise: 5})
	p := s.greeted()
	p.send(envelope + strings.Repeat("BDAT 0\r\n", 10))
	p.want("250 ", "250 ")
	for range 6 {
		p.want("250 2.0.0 chunk")
	}
	p.want("421 4.7.0", "<eof>")
	if got := len(s.messages()); got != 0 {
		t.Errorf("%d messages were queued", got)
	}
}

// TestEndlessCommand: a command line without an end is not read for ever.
func TestEndlessCommand(t *testing.T) {
	s := start(t, Config{})
	p := s.greeted()
	p.send(strings.Repeat("x", 60000) + "\r\nNOOP\r\n")
	p.want("500 5.5.2 command line too long", "250 2.0.0 ok")
	p.send(strings.Repeat("x", 80000))
	p.want("500 5.5.2 command line too long, closing", "<eof>")
}
