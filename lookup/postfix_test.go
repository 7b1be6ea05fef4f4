package lookup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"crossfade/router"
)

// client talks to a listener as Postfix does.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func connect(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(8 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, Conn: conn, r: bufio.NewReader(conn)}
}

func (c *client) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, text); err != nil {
		c.t.Fatal(err)
	}
}

// ask sends a netstring and gives the answer's text.
func (c *client) ask(question string) string {
	c.t.Helper()
	c.say(netstring(question))
	got, err := readNetstring(c.r, maxReply)
	if err != nil {
		c.t.Fatalf("the answer to %q: %v", question, err)
	}
	return got
}

func (c *client) ended() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Errorf("the connection should have ended: %q, %v", rest, err)
	}
}

func TestSocketmapDialogue(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	c := connect(t, listen(t, w.ServeSocketmap))
	for _, x := range [][2]string{
		{"transport old@example.org", "OK smtp:[10.0.0.1]:25"}, {"transport new@example.org", "OK lmtp:inet:10.0.0.2:24"},
		{"transport nobody@example.org", "NOTFOUND "}, {"transport example.org", "NOTFOUND "},
		{"transport loop@example.org", "TEMP resolve loop@example.org: the aliases form a loop: loop@example.org -> loop@example.org"},
		{"recipient old@example.org", "OK OK"}, {"side cutover@example.org", "OK old"}, {"side rollback@example.org", "OK new"},
		{"imap new@example.org", "OK 10.0.0.2:1143"}, {"pop3 new", "OK new.internal:110"},
		{"recipient a key with blanks@example.org", "NOTFOUND "},
	} {
		if got := c.ask(x[0]); got != x[1] {
			t.Errorf("%s: %q, want %q", x[0], got, x[1])
		}
	}
	for _, question := range []string{"nosuch old@example.org", "transport", "transport ", ""} {
		if got := c.ask(question); !strings.HasPrefix(got, "PERM ") {
			t.Errorf("%q: %q", question, got)
		}
	}
	// Questions in one piece, and one in many.
	c.say(netstring("side old@example.org") + netstring("side new@example.org"))
	for _, want := range []string{"OK old", "OK new"} {
		if got, err := readNetstring(c.r, 100); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	for _, part := range strings.Split(netstring("side new@example.org"), "") {
		c.say(part)
	}
	if got, err := readNetstring(c.r, 100); err != nil || got != "OK new" {
		t.Errorf("in pieces: %q, %v", got, err)
	}
}

func TestSocketmapMalformed(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	addr := listen(t, w.ServeSocketmap)
	for _, bad := range []string{"hello\r\n", ":,", "5:abcdeX", "4097:", "99999999999999999999:x", "01:x,", "-1:x,", " 3:abc,"} {
		c := connect(t, addr)
		c.say(bad)
		if got, err := readNetstring(c.r, maxReply); err != nil || !strings.HasPrefix(got, "PERM malformed request") {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
		c.ended()
	}
	c := connect(t, addr)
	c.say("20:side old@exa")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.ended()
}

func TestTCPTableDialogue(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	c := connect(t, listen(t, func(ctx context.Context, l net.Listener) error { return w.ServeTCPTable(ctx, l, "transport") }))
	for _, x := range [][2]string{
		{"get old@example.org", "200 smtp:[10.0.0.1]:25"}, {"get new@example.org\r", "200 lmtp:inet:10.0.0.2:24"},
		{"get n%65w@example.org", "200 lmtp:inet:10.0.0.2:24"}, {"get %22a%20b%22@example.org", "500 no%20such%20user"},
		{"get nobody@example.org", "500 no%20such%20user"}, {"get example.org", "500 no%20such%20user"},
	} {
		c.say(x[0] + "\n")
		if got, err := c.r.ReadString('\n'); err != nil || got != x[1]+"\n" {
			t.Errorf("%q: %q, %v; want %q", x[0], got, err, x[1])
		}
	}
	for _, bad := range []string{"put a b", "get", "get ", "", "GET a", "get %4", "get %zz@example.org"} {
		c.say(bad + "\n")
		if got, err := c.r.ReadString('\n'); err != nil || !strings.HasPrefix(got, "400 ") {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
	c.say("get " + strings.Repeat("x", maxLine))
	if got, err := c.r.ReadString('\n'); err != nil || !strings.HasPrefix(got, "400 the%20request%20is%20longer") {
		t.Errorf("a line without end: %q, %v", got, err)
	}
}

// TestLongAnswer: an answer that the program would cut is a temporary failure.
func TestLongAnswer(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	g := router.User{Address: "all@example.org", Kind: router.KindGroup}
	for i := range 5000 {
		u := user(fmt.Sprintf("someone%04d@example.org", i), router.StateOld)
		w.table.set(u)
		g.Targets = append(g.Targets, u.Address)
	}
	w.table.set(g)
	if got := w.tcpTable(t.Context(), "alias", "get all@example.org"); !strings.HasPrefix(got, "400 ") || len(got) > maxLine {
		t.Errorf("tcp_table: %.100q", got)
	}
	if got := w.socketmap(t.Context(), "alias all@example.org"); !strings.Contains(got, ":TEMP ") {
		t.Errorf("socketmap: %.100q", got)
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings(), func(c *Config) { c.MaxConns, c.IdleTime, c.Timeout = 2, 300*time.Millisecond, 300*time.Millisecond })
	addr := listen(t, w.ServeSocketmap)
	silent, slow := connect(t, addr), connect(t, addr)
	slow.say("20:si")
	// Both have a place now: a third is turned away, until one of them is dropped.
	deadline := time.Now().Add(5 * time.Second)
	for turned := false; !turned; {
		c := connect(t, addr)
		c.say(netstring("side old"))
		_, err := c.r.ReadByte()
		turned = err != nil
		_ = c.Close()
		if time.Now().After(deadline) {
			t.Fatal("no connection was turned away")
		}
	}
	silent.ended()
	slow.ended()
	for {
		c := connect(t, addr)
		c.say(netstring("side old@example.org"))
		got, err := readNetstring(c.r, 100)
		_ = c.Close()
		if got == "OK old" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no place became free: %q, %v", got, err)
		}
	}
	if log := w.log.String(); !strings.Contains(log, "lookup.max_connections") {
		t.Errorf("the log does not say why: %s", log)
	}
}

func TestNetworks(t *testing.T) {
	set := settings()
	set.Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	w := newWorld(t, router.PolicyVerify, set)
	g := &gate{s: w.Service}
	for ip, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, "192.0.2.7": true, "::ffff:192.0.2.7": true, "2001:db8::7": true, "198.51.100.1": false, "2001:db9::1": false,
	} {
		why := g.admit(&net.TCPAddr{IP: net.ParseIP(ip), Port: 1})
		if (why == "") != want {
			t.Errorf("%s: %q", ip, why)
		}
	}
	if why := g.admit(&net.UnixAddr{Name: "@", Net: "unix"}); why != "" {
		t.Errorf("a socket: %q", why)
	}
}

// TestStop: listeners and connections end with the context, idle ones and those
// in the middle of a question.
func TestStop(t *testing.T) {
	w := newWorld(t, router.PolicyVerify, settings())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.ServeSocketmap(ctx, l) }()
	idle, half := connect(t, l.Addr().String()), connect(t, l.Addr().String())
	idle.ask("side old@example.org")
	half.ask("side old@example.org")
	half.say("20:si")
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it does not end")
	}
	idle.ended()
	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := w.ServeSocketmap(t.Context(), l); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a dead listener: %v", err)
	}
}
