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
		switch {
		case err != nil:
			return err
		case i == len(lines)-1 && r.Code == 235, i < len(lines)-1 && r.Code == 334:
		default:
			return unwelcome(r)
		}
	}
	return nil
}

func defaultTo(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
