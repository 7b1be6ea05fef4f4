package relay

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/mail"
	"crossfade/queue"
	"crossfade/relay/smtpclient"
)

// xclientServer takes mail, offers XCLIENT once in a session as Postfix does, and
// refuses one client, and the mail of another.
type xclientServer struct {
	l     net.Listener
	wg    sync.WaitGroup
	proxy bool // PROXY headers of version 1 instead
	plain bool // it offers nothing

	mu    sync.Mutex
	got   []string // for each message: connection, client, name in EHLO
	conns int
	open  int // now, and at most
	most  int
}

func newXClientServer(t *testing.T) *xclientServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &xclientServer{l: l}
	t.Cleanup(func() {
		_ = l.Close()
		s.wg.Wait()
	})
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			n := s.conns
			s.open++
			s.most = max(s.most, s.open)
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(conn, n) })
		}
	})
	return s
}

func (s *xclientServer) serve(conn net.Conn, n int) {
	defer conn.Close()
	leave := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open--
	})
	defer leave()
	r := bufio.NewReader(conn)
	say := func(text string) { fmt.Fprint(conn, text+"\r\n") }
	client, helo := "", ""
	if s.proxy {
		line, _ := r.ReadString('\n')
		if client = strings.Fields(line + " - - -")[2]; client == "198.51.100.66" {
			say("554 5.7.1 your client is on a list")
			return
		}
	}
	say("220 hi")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		word, arg, _ := strings.Cut(line, " ")
		switch {
		case word == "EHLO" && client == "" && !s.plain:
			helo = arg
			say("250-hi\r\n250 XCLIENT ADDR HELO")
		case word == "EHLO":
			helo = arg
			say("250 hi")
		case word == "XCLIENT" && strings.Contains(arg, "ADDR=198.51.100.66"):
			say("554 5.7.1 your client is on a list")
		case word == "XCLIENT":
			client = strings.TrimPrefix(strings.Fields(arg)[0], "ADDR=")
			say("220 hi again")
		case word == "QUIT":
			leave()
			say("221 bye")
			return
		case word == "MAIL" && client == "198.51.100.67":
			say("554 5.7.1 Service unavailable; Client host [198.51.100.67] blocked using list.example")
		case word == "DATA":
			say("354 go on")
			for line != "." {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
				line = strings.TrimSpace(line)
			}
			s.mu.Lock()
			s.got = append(s.got, fmt.Sprintf("%d %s %s", n, client, helo))
			s.mu.Unlock()
			say("250 2.0.0 taken")
		default:
			say("250 ok")
		}
	}
}

func (s *xclientServer) messages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

// A client's name is on its own mail only, a connection is kept for who it is,
// and mail of a client that the backend refuses is delivered nevertheless.
func TestDeliverXClient(t *testing.T) {
	outNoLeaks(t)
	srv := newXClientServer(t)
	_, store := newDiskSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) {
		target := b[mail.Old].Target
		target.Address, target.Origin = srv.l.Addr().String(), smtpclient.OriginXClient
		b[mail.Old].Target = target
	})
	for i, c := range []struct{ ip, helo, want string }{
		{"198.51.100.7", "mail.far.test", "1 198.51.100.7 mail.far.test"},
		{"198.51.100.7", "mail.far.test", "1 198.51.100.7 mail.far.test"},
		{"198.51.100.8", "bad name", "2 198.51.100.8 relay.test"},
		{"198.51.100.66", "x.test", "4  relay.test"}, // the third was refused
		{"198.51.100.7", "mail.far.test", "1 198.51.100.7 mail.far.test"},
		{"", "", "4  relay.test"},
	} {
		env := &mail.Envelope{ID: mail.NewID(), From: outAddr("sender@far.test"), Received: time.Now(), Recipients: []mail.Recipient{{Addr: outAddr("ann@b.test"), User: "ann@b.test", Hint: mail.Old}}}
		if c.ip != "" {
			env.Client = mail.Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(c.ip), 4711), Helo: c.helo, ESMTP: true}
		}
		if err := store.Put(t.Context(), env, strings.NewReader("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
		inPoll(t, "the delivery", func() bool { return len(srv.messages()) == i+1 })
		if got := srv.messages()[i]; got != c.want {
			t.Errorf("message %d came as %q, want %q", i, got, c.want)
		}
		inPoll(t, "the record of it", func() bool { _, err := store.Get(t.Context(), env.ID); return err != nil })
	}
}

// A backend never has more connections of us than it was said to take, however
// many clients they are kept for.
func TestDeliverXClientConnections(t *testing.T) {
	outNoLeaks(t)
	srv := newXClientServer(t)
	_, store := newDiskSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) {
		target := b[mail.Old].Target
		target.Address, target.Origin = srv.l.Addr().String(), smtpclient.OriginXClient
		b[mail.Old].Target, b[mail.Old].MaxConns, b[mail.Old].IdleTime = target, 2, time.Minute
	})
	for i := range 6 {
		env := &mail.Envelope{ID: mail.NewID(), From: outAddr("sender@far.test"), Received: time.Now(), Recipients: []mail.Recipient{{Addr: outAddr("ann@b.test"), User: "ann@b.test", Hint: mail.Old}}}
		env.Client = mail.Client{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 4711), Helo: "x.test", ESMTP: true}
		if err := store.Put(t.Context(), env, strings.NewReader("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
		inPoll(t, "the record of it", func() bool { _, err := store.Get(t.Context(), env.ID); return err != nil })
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if len(srv.got) != 6 || srv.most > 2 {
		t.Errorf("%d messages over up to %d connections at once, want 6 over 2", len(srv.got), srv.most)
	}
}

// A backend that does not offer XCLIENT gets the mail of all clients over kept
// connections.
func TestDeliverXClientNotOffered(t *testing.T) {
	outNoLeaks(t)
	srv := newXClientServer(t)
	srv.mu.Lock()
	srv.plain = true
	srv.mu.Unlock()
	s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) {
		target := b[mail.Old].Target
		target.Address, target.Origin = srv.l.Addr().String(), smtpclient.OriginXClient
		b[mail.Old].Target = target
	})
	for i := range 4 {
		id := s.q.put(outBody, mail.Old, func(m *outMessage) {
			if i > 0 {
				m.env.Client = mail.Client{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 4711), Helo: "x.test", ESMTP: true}
			}
		}, "a@b.test")
		if r := s.q.outKinds(t, id)[0]; r.kind != queue.Done {
			t.Fatalf("%s: %s", r.kind, r.last)
		}
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.conns != 1 {
		t.Errorf("%d connections", srv.conns)
	}
}

// Clients that a backend refuses, whom it knows by a PROXY header or by XCLIENT, take
// nobody else's mail with them.
func TestRefusedClientsAreNoFailures(t *testing.T) {
	for _, tt := range []struct {
		name    string
		proxy   bool
		ip      string
		arrives bool // in our own name
	}{
		{"in the greeting", true, "198.51.100.66", true},
		{"in reply to MAIL", false, "198.51.100.67", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outNoLeaks(t)
			srv := newXClientServer(t)
			srv.mu.Lock()
			srv.proxy = tt.proxy
			srv.mu.Unlock()
			s := newOutSite(t, func(_ *DelivererConfig, b map[mail.Route]*BackendConfig) {
				target := b[mail.Old].Target
				target.Address, target.Origin = srv.l.Addr().String(), smtpclient.OriginXClient
				if tt.proxy {
					target.Origin = smtpclient.OriginProxyV1
				}
				b[mail.Old].Target, b[mail.Old].Failures, b[mail.Old].FirstProbe = target, 2, time.Hour
			})
			put := func(ip string) mail.ID {
				return s.q.put(outBody, mail.Old, func(m *outMessage) {
					m.env.Client = mail.Client{Addr: netip.AddrPortFrom(netip.MustParseAddr(ip), 4711), Helo: "x.test", ESMTP: true}
				}, "a@b.test")
			}
			for range 4 {
				if r := s.q.outKinds(t, put(tt.ip))[0]; (r.kind == queue.Done) != tt.arrives {
					t.Fatalf("%s: %s", r.kind, r.last)
				}
			}
			if r := s.q.outKinds(t, put("198.51.100.7"))[0]; r.kind != queue.Done {
				t.Errorf("another client's: %s: %s", r.kind, r.last)
			}
			if st := s.d.Backend(mail.Old).Status(); st.State != BackendUp || st.Failures > 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}
