package token

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// What an application of the worldwide cloud uses. National clouds have others.
const (
	MicrosoftAuthority = "https://login.microsoftonline.com"
	MicrosoftScope     = "https://outlook.office365.com/.default"
)

// MicrosoftOptions is an application that is registered with Microsoft Entra. It
// proves itself with a secret or with a certificate.
type MicrosoftOptions struct {
	Tenant   string // the directory's id, or a domain of it
	ClientID string
	Secret   func() (string, error) // read for each token; nil with a certificate
	// CertFile and KeyFile are PEM; the key is an RSA key.
	CertFile, KeyFile string
	Authority         string         // empty: [MicrosoftAuthority]
	Scope             string         // empty: [MicrosoftScope]
	Roots             *x509.CertPool // nil: the system's
}

// Microsoft gets tokens with the client credentials of an application (RFC
// 6749, 4.4). One token opens every mailbox that the application may open.
type Microsoft struct {
	o        MicrosoftOptions
	url      string
	endpoint *endpoint
}

var tenantName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]*$`)

// NewMicrosoft makes a provider. The secret or the certificate is read once
// here, to know at once what is wrong with it, and again for each token.
func NewMicrosoft(o MicrosoftOptions) (*Microsoft, error) {
	if o.Authority == "" {
		o.Authority = MicrosoftAuthority
	}
	if o.Scope == "" {
		o.Scope = MicrosoftScope
	}
	if !tenantName.MatchString(o.Tenant) {
		return nil, fmt.Errorf("the tenant %q is neither an id nor a domain", printable(o.Tenant))
	}
	m := &Microsoft{o: o, url: strings.TrimSuffix(o.Authority, "/") + "/" + o.Tenant + "/oauth2/v2.0/token", endpoint: newEndpoint(o.Roots)}
	if err := CheckURL(m.url); err != nil {
		return nil, err
	}
	if _, err := m.form(); err != nil {
		return nil, err
	}
	return m, nil
}

// PerUser implements Provider.
func (m *Microsoft) PerUser() bool { return false }

// Fetch implements Provider.
func (m *Microsoft) Fetch(ctx context.Context, _ string) (Token, error) {
	form, err := m.form()
	if err != nil {
		return Token{}, err
	}
	first := true
	return m.endpoint.ask(ctx, request{
		url: m.url,
		form: func() url.Values {
			// An assertion carries an id of its own (jti) and is for one use.
			if again, err := m.form(); err == nil && !first {
				form = again
			}
			first = false
			return form
		},
		advise: m.advise,
	})
}

func (m *Microsoft) form() (url.Values, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {m.o.ClientID}, "scope": {m.o.Scope}}
	if m.o.Secret != nil {
		secret, err := m.o.Secret()
		if err != nil {
			return nil, fmt.Errorf("secret of the application: %w", err)
		}
		form.Set("client_secret", secret)
		return form, nil
	}
	assertion, err := m.assertion(time.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate of the application: %w", err)
	}
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", assertion)
	return form, nil
}

// assertion proves the application by its certificate (RFC 7523, 2.2).
func (m *Microsoft) assertion(now time.Time) (string, error) {
	cert, key, err := m.pair()
	if err != nil {
		return "", err
	}
	if now.After(cert.NotAfter) {
		return "", fmt.Errorf("%s ended at %s: upload a new one to the app registration", m.o.CertFile, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	thumb := sha256.Sum256(cert.Raw)
	return signJWT(key,
		map[string]string{"alg": ps256, "typ": "JWT", "x5t#S256": base64.RawURLEncoding.EncodeToString(thumb[:])},
		map[string]any{
			"aud": m.url, "iss": m.o.ClientID, "sub": m.o.ClientID, "jti": base64.RawURLEncoding.EncodeToString(id),
			"nbf": now.Add(-assertionSkew).Unix(), "iat": now.Add(-assertionSkew).Unix(), "exp": now.Add(assertionLife).Unix(),
		})
}

func (m *Microsoft) pair() (*x509.Certificate, *rsa.PrivateKey, error) {
	text, err := readSmall(m.o.CertFile)
	if err != nil {
		return nil, nil, err
	}
	cert, err := parseCertificate(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", m.o.CertFile, err)
	}
	if text, err = readSmall(m.o.KeyFile); err != nil {
		return nil, nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", m.o.KeyFile, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, errors.New("the key does not belong to the certificate")
	}
	return cert, key, nil
}

// advise says what the codes mean here. Microsoft's own number (AADSTS...) is in
// the text.
func (m *Microsoft) advise(e *Error) {
	switch e.Code {
	case "invalid_client":
		e.Hint = "the secret or certificate is not (or no longer) one of the app registration's"
	case "unauthorized_client", "invalid_resource":
		e.Hint = "is the client id one of this tenant, and has an administrator consented to the application permission IMAP.AccessAsApp?"
	case "invalid_request", "invalid_tenant":
		e.Hint = "is the tenant right?"
	case "invalid_scope":
		e.Hint = "the scope of an application ends with /.default"
	}
}
