// Package token gets OAuth 2.0 access tokens for mailbox logins: from a file,
// from a command, from Google for a service account with domain-wide
// delegation, and from Microsoft for an application. It knows nothing of IMAP.
//
// Start reading at [Source], which keeps the tokens and renews them in time;
// the ways to get one are each a [Provider].
package token

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Token is an access token. It prints as <redacted>.
type Token struct {
	Value string
	// Expires is when it ends. Zero: nobody knows; it is asked for each time.
	Expires time.Time
}

// Format writes <redacted> for every verb.
func (Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns <redacted>, for log/slog.
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON returns "<redacted>".
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Provider gets tokens, a new one with each call. It is called by several
// goroutines at once, though never for the same user.
type Provider interface {
	// Fetch gets a token for a login name.
	Fetch(ctx context.Context, user string) (Token, error)
	// PerUser tells whether users have tokens of their own. Where not, one token
	// opens every mailbox, and Fetch is called with no name.
	PerUser() bool
}

// Error is what went wrong with a token.
type Error struct {
	From   string // where it was asked for: a file, a command, a host
	User   string // for whom; empty when the token is for all
	Status int    // of HTTP; 0 without an answer
	Code   string // error of RFC 6749, 5.2; may be empty
	Text   string // what the other side said, secrets cut out
	Hint   string // what to do; may be empty
	// RetryAfter is how long the other side wants to be left alone.
	RetryAfter time.Duration
	// Lasting: asking again will not help before somebody has done something.
	Lasting bool
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.From)
	if e.User != "" {
		b.WriteString(" for " + printable(e.User))
	}
	b.WriteString(": ")
	if e.Status != 0 {
		b.WriteString("HTTP " + strconv.Itoa(e.Status) + " ")
	}
	if e.Code != "" {
		b.WriteString(e.Code + ": ")
	}
	b.WriteString(e.Text)
	if e.Hint != "" {
		b.WriteString(": " + e.Hint)
	}
	return b.String()
}

// maxToken bounds what is read of a file, a command and an endpoint. Tokens have
// some hundred octets, those of Microsoft two or three thousand.
const maxToken = 64 << 10

// unsaid is how long a token is kept whose end nobody says.
const unsaid = 5 * time.Minute

// answer is a token as endpoints give it (RFC 6749, 5.1), and as libraries
// write it into files.
type answer struct {
	AccessToken string      `json:"access_token"`
	TokenType   string      `json:"token_type"`
	ExpiresIn   json.Number `json:"expires_in"` // seconds; some write it as a string
	ExpiresAt   json.Number `json:"expires_at"` // seconds since 1970
	Expiry      time.Time   `json:"expiry"`
}

// parse reads a token: bare on one line, or JSON with access_token. Made is when
// it was made, from which expires_in counts.
func parse(data []byte, made time.Time) (Token, error) {
	data = bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\ufeff")))
	if len(data) == 0 || data[0] != '{' {
		t := Token{Value: string(data)}
		return t, t.check()
	}
	var a answer
	if err := json.Unmarshal(data, &a); err != nil {
		return Token{}, errors.New("the JSON cannot be read") // the error may hold what it read
	}
	t := Token{Value: a.AccessToken, Expires: a.Expiry}
	if a.TokenType != "" && !strings.EqualFold(a.TokenType, "bearer") {
		return Token{}, fmt.Errorf("the token is of the type %q instead of Bearer", printable(a.TokenType))
	}
	if n, err := a.ExpiresAt.Float64(); err == nil && n > 0 && n < 1e11 {
		t.Expires = time.Unix(int64(n), 0)
	}
	if n, err := a.ExpiresIn.Float64(); err == nil && n > 0 {
		t.Expires = made.Add(time.Duration(min(n, 30*24*3600)) * time.Second)
	}
	return t, t.check()
}

// check refuses what cannot go into a login (RFC 6750, 2.1).
func (t Token) check() error {
	if t.Value == "" {
		return errors.New("there is no token in it")
	}
	if strings.ContainsFunc(t.Value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("what stands there is not a token: one line without spaces, or JSON with access_token")
	}
	return nil
}

// printable makes others' words fit for a log line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(s), "?"))
	if len(s) > 400 {
		s = strings.ToValidUTF8(s[:400], "") + "..."
	}
	return s
}
