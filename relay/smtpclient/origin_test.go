package smtpclient_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/smtpclient"

	"github.com/pires/go-proxyproto"
)

var (
	there  = smtpclient.Origin{Addr: netip.MustParseAddrPort("198.51.100.7:4711"), Helo: "mail.far.test", ESMTP: true, ID: "01ABC"}
	there6 = smtpclient.Origin{Addr: netip.MustParseAddrPort("[2001:db8::7]:4712"), Helo: "six.far.test", ESMTP: true, ID: "01DEF"}
	hello  = "client.test"
)

// A real Postfix takes each message as coming from the client that we name, over
// kept connections, and our own mail as ours.
func TestOriginPostfix(t *testing.T) {
	sink := newSink(t, mailtest.SinkConfig{})
	p := realtest.StartPostfix(t, realtest.PostfixOptions{
		Domains: []string{"b.test"}, NextHop: "smtp:[127.0.0.1]:" + sink.Addr()[strings.LastIndex(sink.Addr(), ":")+1:], XClient: true,
		Extra: "inet_protocols = all\n",
	})
	send := func(c *smtpclient.Conn, o smtpclient.Origin) string {
		t.Helper()
		sink.Forget()
		if !c.Fits(o) {
			t.Fatalf("the session does not fit %v", o)
		}
		if err := c.Become(timeout(t), o); err != nil {
			t.Fatal(err)
		}
		tx := message(t, small, "ada@b.test")
		if o.Addr.IsValid() {
			tx.Origin = &o
		}
		if as, err := c.Send(timeout(t), tx); err != nil || codes(as) != "end of data 250" {
			t.Fatalf("%s, error %v", codes(as), err)
		}
		got, err := sink.Wait(timeout(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(got[0].Body), "\r\n\t", " ")
	}
	as := smtpclient.Target{Address: p.Addr, Mode: smtpclient.Insecure, Hello: hello, Origin: smtpclient.OriginXClient}
	var c *smtpclient.Conn
	for _, o := range []smtpclient.Origin{there, there, there6} {
		if c == nil || !c.Fits(o) {
			c = dial(t, as)
		}
		want := fmt.Sprintf("(unknown [%s])", o.Addr.Addr())
		if o.Addr.Addr().Is6() {
			want = "(unknown [IPv6:2001:db8::7])"
		}
		if body := send(c, o); !strings.Contains(body, "Received: from "+o.Helo+" "+want) {
			t.Errorf("XCLIENT of %v: Postfix wrote\n%s", o.Addr, body)
		}
	}
	if c.Fits(smtpclient.Origin{}) {
		t.Error("a session of a client's is to be used for our own mail")
	}
	c = dial(t, smtpclient.Target{Address: p.Addr, Mode: smtpclient.Insecure, Hello: hello, Origin: smtpclient.OriginXForward})
	for _, o := range []smtpclient.Origin{there, there6, {}} {
		if body := send(c, o); !strings.Contains(body, "Received: from client.test (unknown [127.0.0.1])") {
			t.Errorf("XFORWARD changes what the server believes:\n%s", body)
		}
	}
	log, err := os.ReadFile(p.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []smtpclient.Origin{there, there6} {
		if want := fmt.Sprintf("orig_queue_id=%s, orig_client=unknown[%s]", o.ID, o.Addr.Addr()); !strings.Contains(string(log), want) {
			t.Errorf("Postfix's log has nothing of %s:\n%s", want, log)
		}
	}
}

// Both versions of the PROXY header reach a real Postfix that wants them.
func TestOriginProxyPostfix(t *testing.T) {
	sink := newSink(t, mailtest.SinkConfig{})
	p := realtest.StartPostfix(t, realtest.PostfixOptions{
		Domains: []string{"b.test"}, NextHop: "smtp:[127.0.0.1]:" + sink.Addr()[strings.LastIndex(sink.Addr(), ":")+1:],
		Extra: "inet_protocols = all\n", ProxyHeader: true,
	})
	for _, mode := range []smtpclient.OriginMode{smtpclient.OriginProxyV1, smtpclient.OriginProxyV2} {
		target := smtpclient.Target{Address: p.ProxyAddr, Mode: smtpclient.Insecure, Hello: hello, Origin: mode}
		for _, o := range []smtpclient.Origin{there, there6, {}} {
			sink.Forget()
			c, err := smtpclient.DialAs(timeout(t), target, o)
			if err != nil {
				t.Fatal(err)
			}
			if !c.Fits(o) || c.Fits(smtpclient.Origin{Addr: netip.MustParseAddrPort("192.0.2.1:1")}) {
				t.Error("the connection is for others than its client")
			}
			if _, err := c.Send(timeout(t), message(t, small, "ada@b.test")); err != nil {
				t.Fatal(err)
			}
			c.Quit(timeout(t))
			got, err := sink.Wait(timeout(t), 1)
			if err != nil {
				t.Fatal(err)
			}
			want := "[127.0.0.1])"
			if o.Addr.IsValid() {
				want = strings.Replace("["+o.Addr.Addr().String()+"])", "[2001", "[IPv6:2001", 1)
			}
			if !strings.Contains(string(got[0].Body), want) {
				t.Errorf("mode %d, %v: Postfix wrote\n%s", mode, o.Addr, got[0].Body)
			}
		}
	}
}

// A server that offers XCLIENT and says no: the error tells that it is about the
// client, and the connection is closed.
func TestOriginRefused(t *testing.T) {
	for name, script := range map[string]string{
		"refused":     "550 5.7.1 no\r\n",
		"greeting":    "554 5.7.1 your client is on a list\r\n",
		"temporarily": "450 4.7.1 later\r\n",
		"gone":        "",
		"hello":       "220 hello\r\n421 4.3.2 bye\r\n",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan string, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				served <- err.Error()
				return
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			fmt.Fprint(conn, "220 hi\r\n")
			_, _ = r.ReadString('\n')
			fmt.Fprint(conn, "250-hi\r\n250 XCLIENT ADDR NAME PORT HELO PROTO\r\n")
			line, _ := r.ReadString('\n')
			fmt.Fprint(conn, script)
			if script != "" {
				_, _ = r.ReadString('\n')
			}
			served <- line
		}()
		_, err = smtpclient.DialAs(timeout(t), smtpclient.Target{Address: l.Addr().String(), Mode: smtpclient.Insecure, Origin: smtpclient.OriginXClient}, there)
		if err == nil || errors.Is(err, smtpclient.ErrOrigin) == (name == "gone") {
			t.Errorf("%s: error %v", name, err)
		}
		if line := <-served; line != "XCLIENT NAME=[UNAVAILABLE] ADDR=198.51.100.7 PORT=4711 PROTO=ESMTP HELO=mail.far.test\r\n" {
			t.Errorf("%s: %q", name, line)
		}
		_ = l.Close()
	}
}

// What a client calls itself cannot become a command, or a line that is too long.
func TestOriginCannotInject(t *testing.T) {
	for _, helo := range []string{"a b\r\nQUIT", "x y=z+w", strings.Repeat("+", 250), "", strings.Repeat("a", 300)} {
		sink, commands := listen(t)
		target := smtpclient.Target{Address: sink, Mode: smtpclient.Insecure, Origin: smtpclient.OriginXForward}
		c := dial(t, target)
		o := there
		o.Helo = helo
		tx := message(t, small, "ada@b.test")
		tx.Origin = &o
		_, _ = c.Send(timeout(t), tx)
		_ = c.Close()
		for _, line := range <-commands {
			if len(line) > 512 || strings.ContainsAny(line[:len(line)-2], "\r\n") || strings.Count(line, " ") > 8 {
				t.Errorf("helo %q became %q", helo, line)
			}
			if !strings.HasPrefix(line, "XFORWARD ") && !strings.HasPrefix(line, "MAIL FROM:<") && !strings.HasPrefix(line, "EHLO ") {
				t.Errorf("helo %q became %q", helo, line)
			}
		}
	}
}

// listen is a server that offers XFORWARD without PIPELINING, refuses MAIL, and
// tells what it heard.
func listen(t *testing.T) (addr string, commands <-chan []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan []string, 1)
	go func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			heard <- nil
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		fmt.Fprint(conn, "220 hi\r\n")
		var lines []string
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				heard <- lines
				return
			}
			lines = append(lines, line)
			switch {
			case strings.HasPrefix(line, "EHLO"):
				fmt.Fprint(conn, "250-hi\r\n250 XFORWARD NAME ADDR PORT HELO PROTO IDENT SOURCE\r\n")
			case strings.HasPrefix(line, "XFORWARD"):
				fmt.Fprint(conn, "501 5.5.4 refused, which does not matter\r\n")
			default:
				fmt.Fprint(conn, "451 4.3.0 no\r\n")
			}
		}
	}()
	return l.Addr().String(), heard
}

// The header names both ends in one address family, whichever the server has.
func TestProxyHeaderFamilies(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan *proxyproto.Header, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer conn.Close()
		h, _ := proxyproto.Read(bufio.NewReader(conn))
		got <- h
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = smtpclient.DialAs(ctx, smtpclient.Target{Address: l.Addr().String(), Mode: smtpclient.Insecure, Origin: smtpclient.OriginProxyV2}, there6)
	}()
	h := <-got
	cancel()
	if h == nil || h.SourceAddr.String() != "[2001:db8::7]:4712" || !strings.HasSuffix(h.DestinationAddr.String(), l.Addr().String()[strings.LastIndex(l.Addr().String(), ":"):]) {
		t.Errorf("header %+v", h)
	}
}
