package attack

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"crossfade/backfill/imapconn"
	"crossfade/internal/mailtest"
	"crossfade/relay/smtpclient"
)

// smtpImpostors are servers that a client must not go on with under
// smtp+starttls://, nor say anything secret to.
var smtpImpostors = map[string][]string{
	"STARTTLS is not offered":                  {"220 a\r\n", "<", "250-a\r\n250 PIPELINING\r\n"},
	"STARTTLS is stripped to XXXXXXXX":         {"220 a\r\n", "<", "250-a\r\n250-XXXXXXXX\r\n250 AUTH PLAIN LOGIN\r\n"},
	"only HELO is known":                       {"220 a\r\n", "<", "502 no\r\n", "<", "250 a\r\n"},
	"STARTTLS is refused for good":             {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "502 no\r\n"},
	"STARTTLS is refused for now":              {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "454 later\r\n"},
	"STARTTLS is answered with 250":            {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "250 ok\r\n"},
	"STARTTLS is answered with 354":            {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "354 go\r\n"},
	"replies behind the 220":                   {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "220 go\r\n250-a\r\n250 AUTH PLAIN LOGIN\r\n"},
	"one octet behind the 220":                 {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "220 go\r\n2"},
	"clear text instead of a handshake":        {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "220 go\r\n", "250-a\r\n250 AUTH PLAIN\r\n"},
	"EHLO is answered before it is said":       {"220 a\r\n250-a\r\n250 PIPELINING\r\n", "<"},
	"EHLO and STARTTLS are answered before":    {"220 a\r\n250-a\r\n250 STARTTLS\r\n220 go\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "220 go\r\n"},
	"EHLO and STARTTLS are answered, no more":  {"220 a\r\n250-a\r\n250 STARTTLS\r\n220 go\r\n250-a\r\n250 AUTH PLAIN LOGIN\r\n235 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n", "<", "<"},
	"a handshake with somebody else's key":     {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "220 go\r\n", "TLS", "<", "250-a\r\n250 AUTH PLAIN LOGIN\r\n", "<", "235 ok\r\n"},
	"the connection ends instead of handshake": {"220 a\r\n", "<", "250-a\r\n250 STARTTLS\r\n", "<", "220 go\r\n", "\x15\x03\x03\x00\x02\x02\x28"},
}

// TestSTARTTLSInjectionSMTP: no delivery, no login and no address in clear.
func TestSTARTTLSInjectionSMTP(t *testing.T) {
	t.Parallel()
	ours, conf := clientAndServer(t)
	for name, parts := range smtpImpostors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startImpostor(t, conf, parts...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c, err := smtpclient.Dial(ctx, smtpclient.Target{
				Address: s.addr, Mode: smtpclient.Required, Hello: "mx.example.org", TLS: ours,
				Login:    func() (string, string, error) { return "relay", "planted-secret", nil },
				Timeouts: smtpclient.Timeouts{Greeting: 3 * time.Second, Hello: 3 * time.Second},
			})
			if err == nil {
				_ = c.Close()
			}
			plain := base64.StdEncoding.EncodeToString([]byte("\x00relay\x00planted-secret"))
			if err := judgeClear(err, s.heard(), "AUTH", "MAIL FROM", "planted-secret", plain); err != nil {
				t.Error(err)
			}
		})
	}
	figure(t, "%d servers and men in the middle under smtp+starttls://", len(smtpImpostors))
}

// clientAndServer are a client's configuration, and a server's that it must not
// trust.
func clientAndServer(t *testing.T) (client, server *tls.Config) {
	t.Helper()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	other, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	server, err = other.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}, server
}

// imapImpostors are the same for imap+starttls://.
var imapImpostors = map[string][]string{
	"PREAUTH":                             {"* PREAUTH welcome back\r\n"},
	"PREAUTH with all answers":            {"* PREAUTH welcome\r\nC1 OK done\r\nC2 OK done\r\nC3 OK done\r\n"},
	"BYE":                                 {"* BYE no\r\n"},
	"STARTTLS is refused":                 {"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] a\r\n", "<", "@ NO not here\r\n"},
	"STARTTLS is unknown":                 {"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] a\r\n", "<", "@ BAD what\r\n"},
	"answers behind the OK":               {"* OK a\r\n", "<", "@ OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"},
	"one octet behind the OK":             {"* OK a\r\n", "<", "@ OK go\r\n*"},
	"clear text instead of a handshake":   {"* OK a\r\n", "<", "@ OK go\r\n", "* CAPABILITY IMAP4rev1\r\n"},
	"the answer comes before the command": {"* OK a\r\nC1 OK go\r\n", "<", "@ OK go\r\n"},
	"somebody else's key":                 {"* OK a\r\n", "<", "@ OK go\r\n", "TLS", "<"},
	"a login is asked for instead":        {"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] a\r\n", "<", "+ \r\n", "<"},
}

// TestSTARTTLSInjectionIMAP: no login in clear.
func TestSTARTTLSInjectionIMAP(t *testing.T) {
	t.Parallel()
	ours, conf := clientAndServer(t)
	for name, parts := range imapImpostors {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startImpostor(t, conf, parts...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			session, err := (&imapconn.Dialer{Idle: 3 * time.Second}).Open(ctx, imapconn.Account{
				Server: imapconn.Server{Address: s.addr, Mode: imapconn.TLSStart, TLS: ours},
				Login:  imapconn.Login{User: "ann", Password: "planted-secret"},
			})
			if err == nil {
				_ = session.Close()
			}
			plain := base64.StdEncoding.EncodeToString([]byte("\x00ann\x00planted-secret"))
			if err := judgeClear(err, s.heard(), "LOGIN", "AUTHENTICATE", "planted-secret", plain); err != nil {
				t.Error(err)
			}
		})
	}
	figure(t, "%d servers and men in the middle under imap+starttls://", len(imapImpostors))
}

// TestBeforeTLSIsForgotten: what an IMAP server, or somebody in between, said of
// itself in clear does not count under TLS.
func TestBeforeTLSIsForgotten(t *testing.T) {
	t.Parallel()
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := ca.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	s := startImpostor(t, conf, "* OK [CAPABILITY IMAP4rev1 XEVIL LITERAL+] a\r\n", "<", "* CAPABILITY IMAP4rev1 XEVIL\r\n* OK [ALERT] evil\r\n@ OK go\r\n", "TLS",
		"<", "* CAPABILITY IMAP4rev1 XGOOD\r\n@ OK\r\n", "<", "@ OK in\r\n", "<", "* CAPABILITY IMAP4rev1 XGOOD\r\n@ OK\r\n", "<")
	session, err := (&imapconn.Dialer{Idle: 3 * time.Second}).Open(t.Context(), imapconn.Account{
		Server: imapconn.Server{Address: s.addr, Mode: imapconn.TLSStart, TLS: &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"}},
		Login:  imapconn.Login{User: "ann", Password: "planted-secret"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	if session.Has("XEVIL") || session.Has("LITERAL+") || !session.Has("XGOOD") {
		t.Error("capabilities from before TLS count")
	}
	if err := leaks(s.heard(), "LOGIN", "planted"); err != nil || !strings.Contains(s.heard(), "STARTTLS") {
		t.Error(err, s.heard())
	}
}
