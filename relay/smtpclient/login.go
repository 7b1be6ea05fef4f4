package smtpclient

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// ErrNoLogin means that the server does not let us log in the way we can, or
// that a password would have crossed the network in clear.
var ErrNoLogin = errors.New("cannot log in")

// login runs AUTH (RFC 4954) with PLAIN, or LOGIN where that is all there is.
// Neither the commands nor the answers of the server to them appear in an error
// with anything of the password.
func (c *Conn) login(ctx context.Context) error {
	if _, encrypted := c.nc.(*tls.Conn); !encrypted && !c.t.ClearLogin {
		return fmt.Errorf("%w: the connection is not encrypted", ErrNoLogin)
	}
	user, password, err := c.t.Login()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoLogin, err)
	}
	encode := base64.StdEncoding.EncodeToString
	lines := []string{"AUTH PLAIN " + encode([]byte("\x00"+user+"\x00"+password))}
	switch {
	case strings.Contains(c.caps.Auth, " PLAIN "):
	case strings.Contains(c.caps.Auth, " LOGIN "):
		lines = []string{"AUTH LOGIN", encode([]byte(user)), encode([]byte(password))}
	default:
		return fmt.Errorf("%w: it offers%s, and we speak PLAIN and LOGIN", ErrNoLogin, strings.TrimSuffix(defaultTo(c.caps.Auth, " no AUTH "), " "))
	}
	for i, line := range lines {
		r, err := c.command(ctx, line+"\r\n", c.t.Timeouts.Mail)
		if repeats(r.Text, password, lines) {
			r.Text = "(not shown: it repeats the password)"
		}
		switch {
		case err != nil && repeats(err.Error(), password, lines):
			return fmt.Errorf("%w: what it said is not shown, because it repeats the password", ErrProtocol)
		case err != nil:
			return err
		case i == len(lines)-1 && r.Code == 235, i < len(lines)-1 && r.Code == 334:
		default:
			return unwelcome(r)
		}
	}
	return nil
}

// repeats tells whether a text has the password in it, or what was sent of it: some
// servers give commands back in their errors, and those are logged, kept with the
// message and shown.
func repeats(text, password string, lines []string) bool {
	if password != "" && strings.Contains(text, password) {
		return true
	}
	last := strings.Fields(lines[len(lines)-1])
	return len(last) > 0 && strings.Contains(text, strings.TrimRight(last[len(last)-1], "="))
}

func defaultTo(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
