package backfill_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"crossfade/backfill"
	"crossfade/internal/mailtest/realtest"
)

// farAway stands in front of a server and delays every octet by half of a round
// trip in both directions, without bounding how much is on its way.
type farAway struct {
	addr string
	half time.Duration
	t    testing.TB

	mu      sync.Mutex
	live    map[net.Conn]bool
	n, seen int // connections
	turns   int
	began   time.Time
	wg      sync.WaitGroup
}

type delayed struct {
	at time.Time
	b  []byte
}

func newFarAway(t testing.TB, to string, rtt time.Duration) *farAway {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &farAway{addr: l.Addr().String(), half: rtt / 2, t: t, began: time.Now(), live: map[net.Conn]bool{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.live[c], p.live[s] = true, true
			p.n++
			n := p.n
			p.mu.Unlock()
			var l line
			p.wg.Go(func() { p.pump(s, c, n, &l) })
			p.wg.Go(func() { p.pump(c, s, 0, &l) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for c := range p.live {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

// pump moves octets; conn is the connection's number in the direction of the
// server, else 0.
func (p *farAway) pump(dst, src net.Conn, conn int, line *line) {
	pieces := make(chan delayed, 4096)
	p.wg.Go(func() {
		defer close(pieces)
		for {
			b := make([]byte, 32<<10)
			n, err := src.Read(b)
			if n > 0 {
				if conn > 0 && line.spoke() && !bytes.HasSuffix(b[:n], []byte(" LOGOUT\r\n")) {
					p.turn(conn, b[:n])
				}
				pieces <- delayed{time.Now().Add(p.half), b[:n]}
			}
			if err != nil {
				return
			}
		}
	})
	for d := range pieces {
		<-time.After(time.Until(d.at))
		if conn == 0 {
			line.heard()
		}
		if _, err := dst.Write(d.b); err != nil {
			break
		}
	}
	dst.Close()
	src.Close()
	for range pieces { // until the reader is over
	}
}

// line is a connection as its client sees it.
type line struct {
	mu  sync.Mutex
	new bool // something was heard since it spoke
}

func (l *line) heard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.new = true
}

// spoke tells whether the client waited for something before.
func (l *line) spoke() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	waited := l.new
	l.new = false
	return waited
}

// turn counts what a client says after it has heard something. A goodbye waits
// for nothing.
func (p *farAway) turn(conn int, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turns++
	if os.Getenv("RTT_TRACE") != "" {
		first, _, _ := bytes.Cut(b, []byte("\n"))
		p.t.Logf("%8s conn %d: %.90s (%d)", time.Since(p.began).Round(time.Millisecond), conn, first, len(b))
	}
}

// since gives the turns and connections since it was last called.
func (p *farAway) since() (turns, conns int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	turns, conns = p.turns, p.n-p.seen
	p.turns, p.seen, p.began = 0, p.n, time.Now()
	return turns, conns
}

// TestRoundTrips bounds how often connections to distant servers wait for an
// answer before they go on: in a first copy of 20 folders, in a pass with
// nothing to do, and in one that looks into every folder. RTT_TRACE=1 shows each.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	const rtt = 40 * time.Millisecond
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for i := range 20 {
		put(t, src, user, fmt.Sprintf("INBOX.Folder%02d", i), letters(20*i, 20*i+20, 300)...)
	}
	job := jobOf(src, dst)
	farSrc, farDst := newFarAway(t, src.IMAPAddr, rtt), newFarAway(t, dst.IMAPAddr, rtt)
	job.Source.Server.Address, job.Dest.Server.Address = farSrc.addr, farDst.addr
	c := copier(t, newLedger(t))
	for _, what := range []struct {
		name     string
		src, dst int // turns, without those of logging in
		o        backfill.Options
	}{
		{"first copy", 45, 45, backfill.Options{}},
		{"nothing to do", 1, 1, backfill.Options{}},
		{"final", 30, 30, backfill.Options{Final: true}},
	} {
		began := time.Now()
		r := mustPass(t, c, job, what.o)
		took := time.Since(began)
		srcTurns, srcConns := farSrc.since()
		dstTurns, dstConns := farDst.since()
		t.Logf("%s: %d copied in %.1f round trips; source: %d turns on %d connections; destination: %d on %d",
			what.name, r.Copied, float64(took)/float64(rtt), srcTurns, srcConns, dstTurns, dstConns)
		srcTurns, dstTurns = srcTurns-srcConns, dstTurns-dstConns
		if srcTurns > what.src || dstTurns > what.dst {
			t.Errorf("%s: %d turns on the source, %d on the destination, besides logins; want at most %d and %d", what.name, srcTurns, dstTurns, what.src, what.dst)
		}
	}
}

// TestServerTakesFewConnections: a server that refuses further connections gets
// none, and everything is copied all the same.
func TestServerTakesFewConnections(t *testing.T) {
	t.Parallel()
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Extra: "protocol imap {\n  mail_max_userip_connections = 2\n}\n"}))
	for i := range 8 {
		put(t, src, user, fmt.Sprintf("INBOX.Folder%d", i), letters(20*i, 20*i+20, 300)...)
	}
	job := jobOf(src, dst)
	job.Source.Server.Address = newFarAway(t, src.IMAPAddr, 40*time.Millisecond).addr // so that lanes are opened
	c := copier(t, newLedger(t))
	if r := mustPass(t, c, job, backfill.Options{}); r.Copied != 160 {
		t.Errorf("%d copied, want 160", r.Copied)
	}
	same(t, holds(t, src, user, true), holds(t, dst, user, true))
}
