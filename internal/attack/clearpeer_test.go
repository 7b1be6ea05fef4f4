package attack

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
)

// obliging is an impostor that, when its part is said, takes mail like any other
// server, in clear or under TLS, whichever it came to.
type obliging struct {
	impostor
	secret strings.Builder // what it was told under TLS
	conns  int
}

// startObliging starts one that says parts, as in startImpostor.
func startObliging(t *testing.T, conf *tls.Config, parts []string) *obliging {
	t.Helper()
	s := &obliging{impostor: impostor{tls: conf}}
	s.addr = acceptAll(t, func(conn net.Conn) { s.serve(conn, parts) })
	return s
}

func (s *obliging) serve(conn net.Conn, parts []string) {
	raw := conn
	defer func() { _ = raw.Close() }()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conns++
	}()
	br := bufio.NewReader(conn)
	line := func() (string, error) {
		_ = raw.SetDeadline(time.Now().Add(3 * time.Second)) // when both wait for the other one
		if first, err := br.Peek(1); err == nil && first[0] == 0x16 {
			return "", io.EOF // a handshake that it knows nothing of
		}
		l, err := br.ReadString('\n')
		s.hear(l, raw != conn)
		return strings.TrimRight(l, "\r\n"), err
	}
	for _, p := range parts {
		switch p {
		case "<":
			if _, err := line(); err != nil {
				return
			}
		case "TLS":
			tc := tls.Server(conn, s.tls)
			if tc.Handshake() != nil {
				return
			}
			conn, br = tc, bufio.NewReader(tc)
		default:
			if _, err := io.WriteString(conn, p); err != nil {
				return
			}
		}
	}
	for data := false; ; {
		l, err := line()
		if err != nil {
			return
		}
		answer := "250 ok\r\n"
		switch verb := strings.ToUpper(l); {
		case data && l != ".":
			continue
		case data:
			data = false
		case verb == "DATA":
			data, answer = true, "354 go\r\n"
		case verb == "QUIT":
			answer = "221 bye\r\n"
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

func (s *obliging) hear(text string, secret bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if secret {
		s.secret.WriteString(text)
	} else {
		s.clear.WriteString(text)
	}
}

// told says what it got: a mail in clear, a mail under TLS with its own key, or
// nothing; and how often it was asked.
func (s *obliging) told() (what string, conns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case leaks(s.clear.String(), "MAIL FROM", "planted-secret") != nil:
		return "in clear", s.conns
	case leaks(s.secret.String(), "MAIL FROM", "planted-secret") != nil:
		return "under TLS to the impostor", s.conns
	}
	return "nothing", s.conns
}

// TestSTARTTLSPeer puts the impostors of smtp+starttls:// behind a Postfix, with
// TLS as Debian ships it (may), and as an operator may set it (encrypt, secure).
// Postfix comes a second time to each, for then "may" goes on in clear where a
// handshake failed.
func TestSTARTTLSPeer(t *testing.T) {
	if !long() {
		t.Skip("it measures Postfix, and waits a minute for it: make attacks")
	}
	t.Parallel()
	_, conf := clientAndServer(t)
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(roots, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(smtpImpostors))
	levels := []string{"may", "encrypt", "secure"}
	type destination struct{ level, name string }
	all := map[destination]*obliging{}
	var routes, policies, domains []string
	for _, level := range levels {
		for i, name := range names {
			s := startObliging(t, conf, smtpImpostors[name])
			all[destination{level, name}] = s
			host, port, _ := strings.Cut(s.addr, ":")
			hop := "[" + host + "]:" + port
			domains = append(domains, fmt.Sprintf("i%d.%s.test", i, level))
			routes = append(routes, fmt.Sprintf("{%s = smtp:%s}", domains[len(domains)-1], hop))
			policies = append(policies, fmt.Sprintf("{%s = %s}", hop, level))
		}
	}
	p := realtest.StartPostfix(t, realtest.PostfixOptions{Domains: domains, NextHop: "error:nowhere", Extra: fmt.Sprintf(
		"transport_maps = inline:{%s}\nsmtp_tls_policy_maps = inline:{%s}\nsmtp_tls_security_level = may\nsmtp_tls_CAfile = %s\n"+
			"smtp_helo_timeout = 5s\nsmtp_starttls_timeout = 5s\nsmtp_mail_timeout = 5s\nmaximal_backoff_time = 1s\nnotify_classes =\n",
		strings.Join(routes, ", "), strings.Join(policies, ", "), roots)})
	for _, d := range domains {
		k, err := dialTalk(p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		err = k.cmds("", "220", "EHLO client.test", "250", "MAIL FROM:<a@client.test>", "250", "RCPT TO:<b@"+d+">", "250", "DATA", "354", "Subject: planted-secret\r\n\r\nx\r\n.", "250")
		k.close()
		if err != nil {
			t.Fatal(err)
		}
	}
	until(t, time.Minute, "Postfix to have tried each impostor again", func() error {
		log, err := os.ReadFile(p.LogFile)
		if err != nil {
			return err
		}
		for d, s := range all {
			gaveUp := regexp.MustCompile(`to=<b@i` + strconv.Itoa(slices.Index(names, d.name)) + `\.` + d.level + `\.test>.* status=bounced`)
			if what, conns := s.told(); what == "nothing" && conns < 3 && !gaveUp.Match(log) {
				return fmt.Errorf("%s, %s: %d times", d.level, d.name, conns)
			}
		}
		return nil
	})
	log, err := os.ReadFile(p.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range levels {
		count := map[string]int{}
		for _, name := range names {
			what, conns := all[destination{level, name}].told()
			count[what]++
			t.Logf("%s, %s: %s (asked %d times)", level, name, what, conns)
		}
		bounced := len(regexp.MustCompile(`to=<b@i\d+\.`+level+`\.test>.* status=bounced .*TLS`).FindAll(log, -1))
		figure(t, "Postfix of Debian 12, smtp_tls_security_level = %s, %d servers and men in the middle get the mail: %v; %d times it is given up at STARTTLS and goes back to its sender", level, len(names), count, bounced)
	}
}
