package token

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// GoogleScope is the scope that IMAP needs.
const GoogleScope = "https://mail.google.com/"

// Google gets tokens for the users of a Workspace organisation, as a service
// account to which the organisation has delegated the scope (RFC 7523, 2.1).
// Each user has a token of his own.
type Google struct {
	keyFile, scope string
	endpoint       *endpoint
}

// NewGoogle makes a provider of a service account's JSON key file. The file is
// read once here, to know at once what is wrong with it, and again for each
// token, so that it may be exchanged. An empty scope means [GoogleScope]; roots
// are the authorities to trust, nil those of the system.
func NewGoogle(keyFile, scope string, roots *x509.CertPool) (*Google, error) {
	if scope == "" {
		scope = GoogleScope
	}
	g := &Google{keyFile: keyFile, scope: scope, endpoint: newEndpoint(roots)}
	if _, err := g.account(); err != nil {
		return nil, err
	}
	return g, nil
}

// PerUser implements Provider.
func (g *Google) PerUser() bool { return true }

// serviceAccount is what a key file holds.
type serviceAccount struct {
	Type     string `json:"type"`
	Email    string `json:"client_email"`
	ClientID string `json:"client_id"`
	KeyID    string `json:"private_key_id"`
	Key      string `json:"private_key"`
	TokenURI string `json:"token_uri"`

	key *rsa.PrivateKey
}

func (g *Google) account() (*serviceAccount, error) {
	fail := func(err error) (*serviceAccount, error) {
		return nil, fmt.Errorf("key file %s of the service account: %w", g.keyFile, err)
	}
	data, err := readSmall(g.keyFile)
	if err != nil {
		return fail(err)
	}
	var a serviceAccount
	if err := json.Unmarshal(data, &a); err != nil {
		return fail(errors.New("it is not the JSON file that Google's console hands out"))
	}
	if a.Type != "service_account" || a.Email == "" {
		return fail(fmt.Errorf("it is not the key of a service account (its type is %q)", printable(a.Type)))
	}
	if err := CheckURL(a.TokenURI); err != nil {
		return fail(err)
	}
	if a.key, err = parseKey([]byte(a.Key)); err != nil {
		return fail(err)
	}
	return &a, nil
}

// Fetch implements Provider.
func (g *Google) Fetch(ctx context.Context, user string) (Token, error) {
	if !strings.Contains(user, "@") {
		return Token{}, &Error{From: "Google", User: user, Lasting: true, Text: "a service account acts for an address, and this is none", Hint: "give the user's address on Google as old_login or new_login"}
	}
	a, err := g.account()
	if err != nil {
		return Token{}, err
	}
	assertion, err := g.assertion(a, user, time.Now())
	if err != nil {
		return Token{}, err
	}
	return g.endpoint.ask(ctx, request{
		url: a.TokenURI, user: user,
		form: func() url.Values {
			return url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
		},
		advise: func(e *Error) { g.advise(e, a) },
	})
}

func (g *Google) assertion(a *serviceAccount, user string, now time.Time) (string, error) {
	header := map[string]string{"alg": rs256, "typ": "JWT"}
	if a.KeyID != "" {
		header["kid"] = a.KeyID
	}
	return signJWT(a.key, header, map[string]any{
		"iss": a.Email, "sub": user, "scope": g.scope, "aud": a.TokenURI,
		"iat": now.Add(-assertionSkew).Unix(), "exp": now.Add(assertionLife).Unix(),
	})
}

// advise says what the codes mean here.
func (g *Google) advise(e *Error, a *serviceAccount) {
	switch e.Code {
	case "unauthorized_client", "access_denied", "invalid_scope":
		e.Hint = fmt.Sprintf("in the admin console of the organisation, delegate the scope %s to the client id %s", g.scope, printable(a.ClientID))
	case "invalid_grant":
		e.Hint = "is this an active mailbox of the organisation, is the key still valid, and is the clock of this machine right?"
	case "invalid_client", "deleted_client", "disabled_client":
		e.Hint = "the service account or its key was removed: make a new key"
	}
}
