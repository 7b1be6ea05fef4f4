package wire

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"crossfade/internal/mailtest/realtest"
)

// behind starts a server whose peers in network speak the PROXY protocol.
func behind(t *testing.T, network string, cfg Config) *server {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix(network)
	return startOn(t, Proxied(inner, p.Contains), cfg)
}

func TestProxyHeader(t *testing.T) {
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x09\x7f\x00\x00\x01\x12\x34\x00\x19"
	for name, c := range map[string]struct{ send, remote string }{
		"v1":         {"PROXY TCP4 203.0.113.9 127.0.0.1 4660 25\r\n", "203.0.113.9:4660"},
		"v1 IPv6":    {"PROXY TCP6 2001:db8::9 2001:db8::1 4660 25\r\n", "[2001:db8::9]:4660"},
		"v2":         {v2, "203.0.113.9:4660"},
		"v2 local":   {"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "127.0.0.1:"},
		"v1 unknown": {"PROXY UNKNOWN\r\n", "127.0.0.1:"},
		"v2 unix":    {"\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd8" + strings.Repeat("/socket\x00", 27), ""},
		"no header":  {"EHLO client.test\r\n", ""},
		"bad":        {"PROXY TCP4 999.0.0.1 127.0.0.1 1 25\r\n", ""},
		"too long":   {"PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n", ""},
		"half":       {"PROXY TCP4 203", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := behind(t, "127.0.0.0/8", Config{Trusted: func(a netip.Addr) bool { return a.IsLoopback() }})
			p := s.dial()
			if p.send(c.send); name == "half" {
				if err := p.conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if c.remote == "" {
				if line, err := p.r.ReadString('\n'); err == nil {
					t.Errorf("it was greeted: %q", line)
				}
				eventually(t, "the connection to end", func() bool { return s.l.Len() == 0 })
				return
			}
			p.want("220 ")
			p.send("EHLO client.test\r\n")
			p.want("250 ")
			p.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
			p.want("250 ", "250 ", "354 ")
			p.send("x\r\n.\r\n")
			p.want("250 ")
			if got := s.messages()[0].info.Remote.String(); !strings.HasPrefix(got, c.remote) {
				t.Errorf("the client is %s, want %s", got, c.remote)
			}
		})
	}
}

// Who is no load balancer cannot name another client: the header is a command
// that does not exist.
func TestProxyHeaderOfStrangers(t *testing.T) {
	s := behind(t, "192.0.2.0/24", Config{})
	p := s.dial()
	p.want("220 ")
	p.send("PROXY TCP4 203.0.113.9 127.0.0.1 4660 25\r\n")
	p.want("500 ")
}

// The limit of an address binds the client behind the load balancer, and not the
// load balancer.
func TestProxyLimits(t *testing.T) {
	s := behind(t, "127.0.0.0/8", Config{Door: &testDoor{limit: 1}})
	for _, c := range []struct{ ip, want string }{{"203.0.113.1", "220 "}, {"203.0.113.2", "220 "}, {"203.0.113.1", "421 4.7.0"}} {
		p := s.dial()
		p.send("PROXY TCP4 " + c.ip + " 127.0.0.1 4660 25\r\n")
		p.want(c.want)
	}
}

func TestProxyHAProxy(t *testing.T) {
	for _, version := range []int{1, 2} {
		s := behind(t, "127.0.0.0/8", Config{})
		through := &server{t: t, addr: realtest.StartHAProxy(t, s.addr, version)}
		p := through.greeted()
		p.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
		p.want("250 ", "250 ", "354 ")
		p.send("x\r\n.\r\n")
		p.want("250 ")
		if got := s.messages()[0].info.Remote.String(); got != p.conn.LocalAddr().String() {
			t.Errorf("version %d: the client is %s, and not %s", version, got, p.conn.LocalAddr())
		}
	}
}
