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
	// saw is told what clients say, when they say it.
	saw func(conn int, b []byte)

	mu   sync.Mutex
	live map[net.Conn]bool
	n    int
	wg   sync.WaitGroup
}

type delayed struct {
	at time.Time
	b  []byte
}

func newFarAway(t testing.TB, to string, rtt time.Duration, saw func(int, []byte)) *farAway {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &farAway{addr: l.Addr().String(), half: rtt / 2, saw: saw, live: map[net.Conn]bool{}}
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
			p.wg.Go(func() { p.pump(s, c, n) })
			p.wg.Go(func() { p.pump(c, s, 0) })
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
func (p *farAway) pump(dst, src net.Conn, conn int) {
	pieces := make(chan delayed, 4096)
	p.wg.Go(func() {
		defer close(pieces)
		for {
			b := make([]byte, 32<<10)
			n, err := src.Read(b)
			if n > 0 {
				if conn > 0 && p.saw != nil {
					p.saw(conn, b[:n])
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
		if _, err := dst.Write(d.b); err != nil {
			break
		}
	}
	dst.Close()
	src.Close()
	for range pieces { // until the reader is over
	}
}

// TestRoundTrips bounds what a distant server costs: a first copy, and a pass
// with nothing to do, counted in round trips by the time that they take.
func TestRoundTrips(t *testing.T) {
	const rtt = 100 * time.Millisecond // long beside what a loaded machine adds
	src := realtest.StartDovecot(t, fast(realtest.DovecotOptions{Layout: realtest.DotINBOX}))
	dst := realtest.StartDovecot(t, fast(realtest.DovecotOptions{}))
	for i := range 20 {
		put(t, src, user, fmt.Sprintf("INBOX.Folder%02d", i), letters(20*i, 20*i+20, 300)...)
	}
	began := time.Now()
	saw := func(side string) func(int, []byte) {
		return func(n int, b []byte) {
			if os.Getenv("RTT_TRACE") != "" {
				line, _, _ := bytes.Cut(b, []byte("\n"))
				t.Logf("%6.2f %s %d: %.90s (%d)", float64(time.Since(began))/float64(rtt), side, n, line, len(b))
			}
		}
	}
	job := jobOf(src, dst)
	job.Source.Server.Address = newFarAway(t, src.IMAPAddr, rtt, saw("src")).addr
	job.Dest.Server.Address = newFarAway(t, dst.IMAPAddr, rtt, saw("dst")).addr
	c := copier(t, newLedger(t))
	for _, what := range []struct {
		name string
		most float64
		o    backfill.Options
	}{{"first copy", 50, backfill.Options{}}, {"nothing to do", 4.5, backfill.Options{}}, {"final", 35, backfill.Options{Final: true}}} {
		began = time.Now()
		r := mustPass(t, c, job, what.o)
		took := float64(time.Since(began)) / float64(rtt)
		t.Logf("%s: %.1f round trips, %d copied", what.name, took, r.Copied)
		if took > what.most {
			t.Errorf("%s took %.1f round trips, want at most %.0f", what.name, took, what.most)
		}
	}
}
