package wire

import (
	"bufio"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestTLSRequired: in clear, nothing is taken but what leads to TLS, and a chunk
// that comes behind a refused BDAT is not read as commands.
func TestTLSRequired(t *testing.T) {
	s := start(t, withTLS(t, Config{TLSUse: TLSRequired, MaxErrors: 50}))
	p := s.greeted()
	for _, command := range []string{"MAIL FROM:<a@client.test>", "RCPT TO:<b@ours.test>", "DATA", "VRFY x", "AUTH PLAIN", "HELP", "BDAT 6 LAST\r\nQUIT\r"} {
		p.send(command + "\r\n"[min(1, strings.Count(command, "BDAT")):])
		p.want("530 5.7.0 must issue a STARTTLS command first")
	}
	p.send("NOOP\r\nRSET\r\nHELO x\r\n")
	p.want("250 2.0.0", "250 2.0.0", "250 ")
	p.startTLS()
	p.send("EHLO client.test\r\n")
	p.want("250 ")
	p.send(envelope + "DATA\r\n")
	p.want("250", "250", "354")
	p.send("x\r\n.\r\n")
	p.want("250 2.0.0 queued")
	if m := s.messages(); len(m) != 1 || m[0].info.TLS == nil {
		t.Errorf("%+v", m)
	}
}

// TestTLSNever: the offer is off, whatever certificate there is.
func TestTLSNever(t *testing.T) {
	s := start(t, withTLS(t, Config{TLSUse: TLSNever}))
	p := s.greeted()
	p.send("STARTTLS\r\n")
	p.want("502 5.5.1")
}

// TestTLSImplicit: the greeting comes inside TLS, STARTTLS is not offered there,
// and who speaks in clear never reaches a session.
func TestTLSImplicit(t *testing.T) {
	s := start(t, withTLS(t, Config{TLSUse: TLSImplicit}))
	p := s.dial()
	p.upgrade()
	p.want("220 ")
	p.send("EHLO client.test\r\n")
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "STARTTLS") {
			t.Error("STARTTLS is offered inside TLS")
		}
		if line[3] == ' ' {
			break
		}
	}
	p.send(envelope + "DATA\r\n")
	p.want("250", "250", "354")
	p.send("x\r\n.\r\n")
	p.want("250 2.0.0 queued")

	clear := s.dial()
	clear.send("EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
	eventually(t, "the client in clear is gone", func() bool { return s.l.Len() == 1 })
	if n := len(s.messages()); n != 1 || s.sessions != 1 {
		t.Errorf("%d messages, %d sessions", n, s.sessions)
	}
}

// TestTLSImplicitRefusals: what cannot be said inside TLS is not said in clear.
func TestTLSImplicitRefusals(t *testing.T) {
	full := start(t, withTLS(t, Config{TLSUse: TLSImplicit, Door: &testDoor{limit: 1}}))
	full.dial().upgrade()
	if got := full.dial().reply(); got != "<eof>" {
		t.Errorf("over the limit: %q", got)
	}
	bare := start(t, Config{TLSUse: TLSImplicit, TLS: func() *tls.Config { return nil }})
	if got := bare.dial().reply(); got != "<eof>" {
		t.Errorf("without a certificate: %q", got)
	}
	busy := start(t, withTLS(t, Config{TLSUse: TLSImplicit, Overload: func() string { return "4.3.2 later" }}))
	p := busy.dial()
	p.upgrade()
	p.want("421 4.3.2 later")
}

// TestTLSImplicitSilent: a handshake that never comes is bounded.
func TestTLSImplicitSilent(t *testing.T) {
	s := start(t, withTLS(t, Config{TLSUse: TLSImplicit, IdleTimeout: 50 * time.Millisecond}))
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
		t.Errorf("%d octets, %v", n, err)
	}
}

// TestHandshakesBounded: who finds no place is told 454 and may go on in clear;
// a place is given back, and peers that are trusted or known need none.
func TestHandshakesBounded(t *testing.T) {
	trusted := make(chan bool, 1)
	trusted <- false
	var known atomic.Bool
	refused := make(chan string, 10)
	s := start(t, withTLS(t, Config{
		MaxHandshakes: 1, IdleTimeout: 300 * time.Millisecond, Counts: &Counts{},
		Trusted: func(netip.Addr) bool { v := <-trusted; trusted <- v; return v },
		Known:   func(netip.Addr) bool { return known.Load() },
		Metrics: Metrics{Refused: func(r string) { refused <- r }},
	}))
	s.l.cfg.Counts.beginHandshake(1, 0) // somebody who never ends
	p := s.greeted()
	p.send("STARTTLS\r\n")
	p.want("454 4.7.0")
	if r := <-refused; r != "handshakes" {
		t.Error(r)
	}
	p.send("NOOP\r\n")
	p.want("250")
	<-trusted
	trusted <- true
	s.greeted().startTLS()
	<-trusted
	trusted <- false
	known.Store(true)
	s.greeted().startTLS()
	known.Store(false)
	s.l.cfg.Counts.endHandshake()
	for range 3 { // each gives its place back
		s.greeted().startTLS()
	}
}

// TestNeedCert: without a certificate that counts nothing is taken, also inside TLS.
func TestNeedCert(t *testing.T) {
	client := selfSigned(t, "client.test")
	cert := selfSigned(t, "mx.test")
	s := start(t, Config{
		TLS: func() *tls.Config {
			return &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
		},
		ClientCert: func(c *tls.ConnectionState) bool { return c.PeerCertificates[0].Subject.CommonName == "client.test" },
		NeedCert:   true,
	})
	for _, with := range []bool{false, true} {
		p := s.greeted()
		p.send("MAIL FROM:<a@client.test>\r\n")
		p.want("530 5.7.0 must issue a STARTTLS")
		p.send("STARTTLS\r\n")
		p.want("220 ")
		conf := &tls.Config{InsecureSkipVerify: true}
		want := "530 5.7.0 a client certificate"
		if with {
			conf.Certificates, want = []tls.Certificate{client}, "250"
		}
		c := tls.Client(p.conn, conf)
		p.conn, p.r = c, bufio.NewReader(c)
		p.send("EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n")
		p.want("250 ", want)
		if !with {
			p.send("BDAT 6 LAST\r\nQUIT\r\n")
			p.want(want)
		}
	}
}
