package wire

import (
	"encoding/base64"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// logins is a server with one user, ann:secret; it tells what it was asked.
type logins struct {
	mu    sync.Mutex
	asked []string
	later bool
}

func (l *logins) check(_ netip.Addr, user, password string) AuthVerdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, user+" "+password)
	switch {
	case l.later:
		return AuthLater
	case user == "ann" && password == "secret":
		return AuthGranted
	}
	return AuthRefused
}

func TestAuthOnlyUnderTLS(t *testing.T) {
	l := &logins{}
	s := start(t, withTLS(t, Config{Auth: l.check, AuthUse: AuthRequired, MaxErrors: 50}))
	p := s.dial()
	p.want("220 ")
	p.send("EHLO client.test\r\n")
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "AUTH") {
			t.Errorf("offered in clear: %q", line)
		}
		if line[3] == ' ' {
			break
		}
	}
	p.send("AUTH PLAIN " + b64("\x00ann\x00secret") + "\r\nAUTH LOGIN\r\nMAIL FROM:<a@b.test>\r\n")
	p.want("538 5.7.11", "538 5.7.11", "530 5.7.0")
	if len(l.asked) != 0 {
		t.Errorf("a password in clear was looked at: %q", l.asked)
	}
}

func TestAuthDialogues(t *testing.T) {
	for name, c := range map[string]struct {
		say  string // lines, each with what is wanted behind "=> "
		in   bool   // logged in at the end
		asks int
	}{
		"plain":              {"AUTH PLAIN " + b64("\x00ann\x00secret") + " => 235 2.7.0", true, 1},
		"plain, own id":      {"AUTH PLAIN " + b64("ann\x00ann\x00secret") + " => 235 2.7.0", true, 1},
		"plain, other id":    {"AUTH PLAIN " + b64("bob\x00ann\x00secret") + " => 501 5.5.2", false, 0},
		"plain, two steps":   {"AUTH PLAIN => 334 |" + b64("\x00ann\x00secret") + " => 235 2.7.0", true, 1},
		"small letters":      {"auth plain " + b64("\x00ann\x00secret") + " => 235 2.7.0", true, 1},
		"login":              {"AUTH LOGIN => 334 VXNlcm5hbWU6|" + b64("ann") + " => 334 UGFzc3dvcmQ6|" + b64("secret") + " => 235 2.7.0", true, 1},
		"login, initial":     {"AUTH LOGIN " + b64("ann") + " => 334 UGFzc3dvcmQ6|" + b64("secret") + " => 235 2.7.0", true, 1},
		"wrong":              {"AUTH PLAIN " + b64("\x00ann\x00guess") + " => 535 5.7.8", false, 1},
		"wrong, then right":  {"AUTH PLAIN " + b64("\x00ann\x00guess") + " => 535 5.7.8|AUTH PLAIN " + b64("\x00ann\x00secret") + " => 235 2.7.0", true, 2},
		"cancelled":          {"AUTH LOGIN => 334|* => 501 5.7.0", false, 0},
		"not base64":         {"AUTH PLAIN ??? => 501 5.5.2", false, 0},
		"padding":            {"AUTH PLAIN " + strings.TrimRight(b64("\x00ann\x00secret1"), "=") + "A=== => 501 5.5.2", false, 0},
		"empty response":     {"AUTH PLAIN = => 501 5.5.2", false, 0},
		"no password":        {"AUTH PLAIN " + b64("\x00ann\x00") + " => 535 5.7.8", false, 0},
		"control characters": {"AUTH PLAIN " + b64("\x00ann\r\nx\x00secret") + " => 535 5.7.8", false, 0},
		"four parts":         {"AUTH PLAIN " + b64("\x00ann\x00secret\x00") + " => 501 5.5.2", false, 0},
		"unknown mechanism":  {"AUTH CRAM-MD5 => 504 5.5.4", false, 0},
		"no mechanism":       {"AUTH => 504 5.5.4", false, 0},
		"twice":              {"AUTH PLAIN " + b64("\x00ann\x00secret") + " => 235|AUTH PLAIN " + b64("\x00ann\x00secret") + " => 503 5.5.1", true, 1},
		"third failure":      {strings.Repeat("AUTH PLAIN "+b64("\x00ann\x00guess")+" => 535|", 2) + "AUTH PLAIN " + b64("\x00ann\x00guess") + " => 421 4.7.0", false, 3},
		"a long line":        {"AUTH PLAIN " + b64(strings.Repeat("x", 4000)) + " => 500 5.5.2", false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := &logins{}
			s := start(t, withTLS(t, Config{Auth: l.check, AuthUse: AuthRequired}))
			p := s.greeted()
			p.startTLS()
			p.send("EHLO client.test\r\n")
			p.want("250 ")
			p.send("MAIL FROM:<a@b.test>\r\n")
			p.want("530 5.7.0")
			for step := range strings.SplitSeq(c.say, "|") {
				say, want, _ := strings.Cut(step, " => ")
				p.send(say + "\r\n")
				p.want(want)
			}
			if len(l.asked) != c.asks {
				t.Errorf("asked %q", l.asked)
			}
			if !c.in {
				return
			}
			p.send(envelope + "AUTH PLAIN " + b64("\x00ann\x00secret") + "\r\nDATA\r\n")
			p.want("250", "250", "503 5.5.1", "354")
			p.send("x\r\n.\r\n")
			p.want("250")
			if m := s.messages()[0]; m.info.User != "ann" || m.info.Protocol() != "ESMTPSA" {
				t.Errorf("user %q with %s", m.info.User, m.info.Protocol())
			}
		})
	}
}

// What held the line of AUTH is not touched once the dialogue has waited: by then
// the buffer holds what came next, be it another client's message.
func TestAuthLeavesTheBufferAlone(t *testing.T) {
	s := start(t, withTLS(t, Config{Auth: (&logins{}).check, AuthUse: AuthOffered, MaxErrors: 100, MaxNoise: 100}))
	p := s.greeted()
	p.startTLS()
	p.send("EHLO client.test\r\n")
	p.want("250 ")
	for range 20 {
		p.send("AUTH LOGIN\r\n")
		p.want("334 ")
		p.send("*\r\nNOOP\r\nNOOP\r\n")
		p.want("501 5.7.0", "250 2.0.0", "250 2.0.0")
	}
}

// A network that guesses is turned away, trusted clients need no login, and what
// is not configured does not exist.
func TestAuthUses(t *testing.T) {
	l := &logins{later: true}
	s := start(t, withTLS(t, Config{Auth: l.check, AuthUse: AuthOffered}))
	p := s.greeted()
	p.startTLS()
	p.send("EHLO client.test\r\n")
	p.want("250 ")
	p.send("MAIL FROM:<a@b.test>\r\nRSET\r\nAUTH PLAIN " + b64("\x00ann\x00secret") + "\r\n")
	p.want("250", "250", "454 4.7.0", "<eof>")
	s = start(t, withTLS(t, Config{Auth: l.check, AuthUse: AuthRequired, Trusted: func(a netip.Addr) bool { return a.IsLoopback() }}))
	p = s.greeted()
	p.send("MAIL FROM:<a@b.test>\r\n")
	p.want("250")
	s = start(t, withTLS(t, Config{Auth: l.check}))
	p = s.greeted()
	p.send("AUTH PLAIN\r\n")
	p.want("502 5.5.1")
}

// STARTTLS is the only way under TLS, and a login does not outlive it.
func TestAuthPasswordsAreCleared(t *testing.T) {
	l := &logins{}
	looked := false
	s := start(t, withTLS(t, Config{Auth: l.check, AuthUse: AuthOffered}))
	p := s.greeted()
	p.startTLS()
	p.send("EHLO client.test\r\n")
	p.want("250 ")
	p.send("AUTH LOGIN " + b64("ann") + "\r\n" + b64("secret") + "\r\nNOOP\r\n")
	p.want("334", "235", "250")
	// A session runs in the connection's goroutine: it may look into the buffers.
	s.rcptErr = func(string) error {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		for c := range s.l.conns {
			if in := string(c.buf.in[:]) + string(c.wait.few); strings.Contains(in, b64("secret")) || strings.Contains(in, b64("ann")) {
				t.Error("the exchange is still in the buffer")
			}
			looked = true
		}
		return nil
	}
	p.send(envelope)
	p.want("250", "250")
	if !looked {
		t.Error("nobody looked")
	}
}
