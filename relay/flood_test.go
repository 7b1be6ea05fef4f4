package relay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/relay/limit"
)

// trustsOnly knows one address as ours.
func trustsOnly(ip net.IP) func(netip.Addr) bool {
	own, _ := netip.AddrFromSlice(ip.To4())
	return func(a netip.Addr) bool { return a == own }
}

// from connects from an address of ours below 127.0.0.0/8.
func (s *inSite) from(ip net.IP) (net.Conn, *bufio.Reader, string, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}, Timeout: 5 * time.Second}
	conn, err := d.Dial("tcp", s.addr)
	if err != nil {
		return nil, nil, "", err
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReaderSize(conn, 128)
	line, err := r.ReadString('\n')
	if err != nil {
		_ = conn.Close()
	}
	return conn, r, line, err
}

// mailFrom delivers one message from an address.
func (s *inSite) mailFrom(ip net.IP) error {
	conn, r, line, err := s.from(ip)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if !strings.HasPrefix(line, "220") {
		return fmt.Errorf("greeted with %q", line)
	}
	if _, err := io.WriteString(conn, "HELO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n"+limitedText+".\r\nQUIT\r\n"); err != nil {
		return err
	}
	all, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(all), "250 2.0.0 queued") {
		return fmt.Errorf("%q, %w", all, err)
	}
	return nil
}

// TestFlood: five thousand connections from as many addresses of a hundred
// networks, which stay when they are let in, do not keep out one message of
// senders who were there before, nor of a host of ours that never was.
func TestFlood(t *testing.T) {
	const flood, senders, each = 5000, 20, 10
	own := net.IPv4(127, 250, 0, 1)
	s := newLimitedSite(t, limit.Settings{Connections: 400, Reserve: 25, Ours: trustsOnly(own)})
	good := func(i int) net.IP { return net.IPv4(127, 200, byte(i), 1) }
	if err := s.mailFrom(good(0)); err != nil && strings.Contains(err.Error(), "assign requested address") {
		t.Skipf("this system has not all of 127.0.0.0/8: %v", err)
	}
	for i := range senders {
		if err := s.mailFrom(good(i)); err != nil {
			t.Fatal(err)
		}
	}
	var in, away atomic.Int64
	end := make(chan struct{})
	var bad, goods sync.WaitGroup
	next := make(chan int)
	for range 32 {
		bad.Go(func() {
			var held []net.Conn
			for i := range next {
				conn, _, line, err := s.from(net.IPv4(127, 100, byte(i%100), byte(1+i/100)))
				switch {
				case err != nil:
				case strings.HasPrefix(line, "220"):
					in.Add(1)
					held = append(held, conn)
				default:
					away.Add(1)
					_ = conn.Close()
				}
			}
			<-end
			for _, conn := range held {
				_ = conn.Close()
			}
		})
	}
	var lost atomic.Int64
	half := make(chan struct{})
	for i := range senders {
		goods.Go(func() {
			<-half // when all places of strangers are taken
			for range each {
				if err := s.mailFrom(good(i)); err != nil {
					lost.Add(1)
					t.Errorf("a good sender: %v", err)
				}
			}
		})
	}
	goods.Go(func() {
		<-half
		if err := s.mailFrom(own); err != nil {
			t.Errorf("our own host: %v", err)
		}
	})
	for i := range flood {
		if i == flood/2 {
			close(half)
		}
		next <- i
	}
	close(next)
	goods.Wait()
	t.Logf("of %d connections %d came in and %d were turned away; %d of %d good messages were lost", flood, in.Load(), away.Load(), lost.Load(), senders*each)
	if in.Load() > 300 || in.Load() < 250 {
		t.Errorf("strangers have %d places of 400", in.Load())
	}
	if err := s.mailFrom(net.IPv4(127, 201, 0, 1)); err == nil || !strings.Contains(err.Error(), "421") {
		t.Errorf("one more stranger: %v", err)
	}
	close(end)
	bad.Wait()
}
