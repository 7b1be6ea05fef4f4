package attack

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/relay"
)

// injection is what is sent in clear where TLS should begin.
type injection struct {
	name string
	// before is sent before STARTTLS and waits for as many replies as it has lines;
	// with goes out in one write with STARTTLS; late after the 220.
	before, with, late string
}

var injections = []injection{
	{name: "EHLO behind it", with: "EHLO injected.test\r\n"},
	{name: "NOOP behind it", with: "NOOP\r\n"},
	{name: "an empty line behind it", with: "\r\n"},
	{name: "a bare LF behind it", with: "\n"},
	{name: "half a command behind it", with: "MAIL FR"},
	{name: "one octet behind it", with: "X"},
	{name: "RSET and a whole message behind it", with: "RSET\r\n" + hiddenInClear},
	{name: "a whole message behind it", with: "EHLO injected.test\r\n" + hiddenInClear},
	{name: "a message by BDAT behind it", with: "EHLO injected.test\r\nMAIL FROM:<smuggler@evil.test>\r\nRCPT TO:<smuggled@example.org>\r\nBDAT 3 LAST\r\nx\r\n"},
	{name: "a second STARTTLS behind it", with: "STARTTLS\r\n"},
	{name: "QUIT behind it", with: "QUIT\r\n"},
	{name: "a whole message instead of the handshake", late: "EHLO injected.test\r\n" + hiddenInClear},
	{name: "one octet instead of the handshake", late: "N"},
	{name: "MAIL before it", before: "EHLO before.test\r\nMAIL FROM:<smuggler@evil.test>\r\n"},
	{name: "MAIL and RCPT before it", before: "EHLO before.test\r\nMAIL FROM:<smuggler@evil.test>\r\nRCPT TO:<smuggled@example.org>\r\n"},
	{name: "EHLO before it, and none behind it", before: "EHLO before.test\r\n"},
}

const hiddenInClear = "MAIL FROM:<smuggler@evil.test>\r\nRCPT TO:<smuggled@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"

// try makes an injection and says what came of it: whether the server went over
// to TLS, and what it then knew of what was said in clear.
func (i injection) try(addr string, conf *tls.Config) (outcome string, err error) {
	k, err := dialTalk(addr)
	if err != nil {
		return "", err
	}
	defer k.close()
	if _, err := k.cmd("", "220"); err != nil {
		return "", err
	}
	for l := range strings.SplitAfterSeq(i.before, "\r\n") {
		if l == "" {
			break
		}
		if _, err := k.cmd(strings.TrimSpace(l), "250"); err != nil {
			return "", err
		}
	}
	if i.before == "" {
		if _, err := k.cmd("EHLO attacker.test", "250"); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(k.conn, "STARTTLS\r\n"+i.with); err != nil {
		return "", err
	}
	r, err := k.reply()
	if err != nil || !strings.HasPrefix(r, "220") {
		return "refused", nil
	}
	if i.late != "" {
		if _, err := io.WriteString(k.conn, i.late); err != nil {
			return "", err
		}
	}
	if len(k.read) > 0 {
		return "answered in clear", nil
	}
	tc := tls.Client(k.conn, conf)
	_ = k.conn.SetDeadline(time.Now().Add(patience))
	if err := tc.Handshake(); err != nil {
		return "no handshake", nil
	}
	k.conn = tc
	// RCPT would be answered with 250 if a MAIL from before counted.
	if r, err = k.cmd("RCPT TO:<target@example.org>", ""); err != nil || strings.HasPrefix(r, "250") {
		return "MAIL from before TLS counts", err
	}
	if r, err = k.cmd("MAIL FROM:<a@b.test>", ""); err != nil || strings.HasPrefix(r, "250") {
		return "goes on under TLS without what was injected", err
	}
	return "goes on under TLS and wants EHLO again", nil
}

// TestSTARTTLSInjectionUs: nothing that was said in clear counts under TLS, and
// what comes in one segment with STARTTLS ends the connection (RFC 3207, 4.2).
func TestSTARTTLSInjectionUs(t *testing.T) {
	t.Parallel()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := ca.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q := startUs(t, l, func(c *relay.ServerConfig) { c.TLS = func() *tls.Config { return conf } })
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"}
	done := map[string]int{}
	for _, i := range injections {
		got, err := i.try(l.Addr().String(), client)
		if err != nil {
			t.Errorf("%s: %v", i.name, err)
		}
		done[got]++
		if want := map[bool]string{true: "refused"}[i.with != ""]; want != "" && got != want {
			t.Errorf("%s: %s, want %s", i.name, got, want)
		}
		if strings.Contains(got, "counts") || strings.Contains(got, "without what") || strings.Contains(got, "clear") {
			t.Errorf("%s: %s", i.name, got)
		}
	}
	if n := q.take(); len(n) != 0 {
		t.Errorf("stored: %v", n)
	}
	figure(t, "%d injections around STARTTLS: %v", len(injections), done)
}

// TestSTARTTLSInjectionPeer is the same at a Postfix in our place.
func TestSTARTTLSInjectionPeer(t *testing.T) {
	t.Parallel()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WritePEM(t.TempDir(), cert)
	if err != nil {
		t.Fatal(err)
	}
	p := realtest.StartPostfix(t, realtest.PostfixOptions{Maildir: true, TLS: &files})
	done := map[string]int{}
	for _, i := range injections {
		got, err := i.try(p.Addr, &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"})
		if err != nil {
			got = "no answer"
		}
		done[got]++
	}
	figure(t, "Postfix of Debian 12, %d injections around STARTTLS: %v", len(injections), done)
}

// impostor is a server, or somebody in between, that says what it likes. It
// keeps every octet that it was sent in clear.
type impostor struct {
	addr string
	tls  *tls.Config

	mu    sync.Mutex
	clear strings.Builder
}

// startImpostor starts one. Its parts are what it says: a text, in which "@" at the
// beginning of a line is the tag that it heard last; "<" waits for a line; "TLS"
// makes a handshake.
func startImpostor(t *testing.T, conf *tls.Config, parts ...string) *impostor {
	t.Helper()
	s := &impostor{tls: conf}
	s.addr = acceptAll(t, func(conn net.Conn) { s.play(conn, parts) })
	return s
}

// acceptAll has serve called for each connection to the address that it gives, until
// the test ends.
func acceptAll(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func (s *impostor) play(conn net.Conn, parts []string) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	raw, br, tag := conn, bufio.NewReader(conn), ""
	for _, p := range parts {
		switch {
		case p == "<":
			line, err := br.ReadString('\n')
			if raw == conn {
				s.note(line)
			}
			if err != nil {
				return
			}
			tag, _, _ = strings.Cut(line, " ")
		case p == "TLS":
			tc := tls.Server(conn, s.tls)
			if tc.Handshake() != nil {
				return
			}
			conn, br = tc, bufio.NewReader(tc)
		default:
			p = strings.ReplaceAll("\n"+p, "\n@ ", "\n"+tag+" ")[1:]
			if _, err := io.WriteString(conn, p); err != nil {
				return
			}
		}
	}
	if raw == conn { // whatever else it says
		b, _ := io.ReadAll(io.LimitReader(br, 4096))
		s.note(string(b))
	}
}

func (s *impostor) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear.WriteString(text)
}

func (s *impostor) heard() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clear.String()
}

// leaks tells whether anything was said in clear but what comes before TLS.
func leaks(heard string, secrets ...string) error {
	for _, s := range secrets {
		if strings.Contains(strings.ToUpper(heard), strings.ToUpper(s)) {
			return fmt.Errorf("%q was said in clear:\n%s", s, heard)
		}
	}
	return nil
}

// judgeClear is what a client must have done: an error of its own, soon, and no
// secret in clear.
func judgeClear(err error, heard string, secrets ...string) error {
	switch {
	case err == nil:
		return errors.New("it went on as if all was well")
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("it waited for ever: %w", err)
	}
	return leaks(heard, secrets...)
}
