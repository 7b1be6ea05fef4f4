package smtpclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
)

// withoutPlain hides AUTH PLAIN.
type withoutPlain struct{ net.Conn }

func (w withoutPlain) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	return copy(p, bytes.Replace(p[:n], []byte("AUTH PLAIN LOGIN"), []byte("AUTH LOGIN"), 1)), err
}

func TestLogin(t *testing.T) {
	ca, err := mailtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	const password = "hunter2 \x01ü"
	for _, tt := range []struct {
		name, password, want string
		encrypt, clear, auth bool
		only                 bool // the server offers LOGIN alone
	}{
		{name: "over TLS", password: password, encrypt: true, auth: true},
		{name: "a wrong password", password: "hunter3", encrypt: true, auth: true, want: "535"},
		{name: "in clear", password: password, auth: true, want: "not encrypted"},
		{name: "in clear, allowed", password: password, auth: true, clear: true},
		{name: "LOGIN alone", password: password, auth: true, clear: true, only: true},
		{name: "LOGIN with a wrong password", password: "hunter3", auth: true, clear: true, only: true, want: "535"},
		{name: "no AUTH", password: password, encrypt: true, want: "it offers no AUTH"},
		{name: "no password", encrypt: true, auth: true, want: "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := mailtest.SinkConfig{}
			if tt.encrypt {
				cfg.STARTTLS, cfg.TLS = true, &tls.Config{Certificates: []tls.Certificate{cert}}
			}
			if tt.auth {
				cfg.Auth = func(user, pw string) bool { return user == "relay" && pw == password }
			}
			sink, err := mailtest.NewSink(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			target := Target{Address: sink.Addr(), Mode: Insecure, ClearLogin: tt.clear, Login: func() (string, string, error) {
				if tt.password == "" {
					return "", "", errors.New("no such file")
				}
				return "relay", tt.password, nil
			}}
			if tt.only {
				target.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
					c, err := (&net.Dialer{}).DialContext(ctx, network, address)
					return withoutPlain{c}, err
				}
			}
			if tt.encrypt {
				target.Mode, target.TLS = Required, &tls.Config{RootCAs: ca.Pool()}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			c, err := Dial(ctx, target)
			if tt.want != "" {
				var e *Error
				if !errors.As(err, &e) || e.Step != StepAuth || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter") {
					t.Fatalf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			answers, err := c.Send(ctx, &Transaction{From: mail.Address{Local: "a", Domain: "b.test"}, Rcpts: []Rcpt{{Addr: mail.Address{Local: "x", Domain: "y.test"}}}, Body: strings.NewReader("Subject: x\r\n\r\nx\r\n"), Size: 17})
			if err != nil || !answers[0].Reply.Positive() {
				t.Errorf("%v, %v", answers, err)
			}
		})
	}
}
