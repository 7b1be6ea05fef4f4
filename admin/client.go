package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client speaks to the admin API of a relay. An error that the relay answered
// with is a [*Problem]. It is safe for use by many goroutines.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// maxAnswer bounds an answer that is kept in memory, in octets.
const maxAnswer = 256 << 20

// NewClient makes a client for the API at address, such as
// http://127.0.0.1:8025, with the value of a token.
func NewClient(address, token string) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("the address of the admin API: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("the address of the admin API %q is not of the form http://host:port", address)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("the token for the admin API has characters that cannot stand in a header")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: longAnswerTime,
		IdleConnTimeout:       time.Minute,
	}
	c := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a token goes to no other place
	}}
	return &Client{base: u, token: token, http: c}, nil
}

// TrustCertificate makes the client accept the API's certificate chain, in PEM,
// beside what the system trusts: for an operator who has the relay's
// configuration, and a certificate that is not made for the address he uses,
// 127.0.0.1 for one. Call it before the first request.
func (c *Client) TrustCertificate(chain []byte) error {
	block, _ := pem.Decode(chain)
	if block == nil || block.Type != "CERTIFICATE" {
		return errors.New("the certificate of the admin API is no PEM certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("the certificate of the admin API: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	roots.AppendCertsFromPEM(chain)
	cfg := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if leaf.VerifyHostname(c.base.Hostname()) != nil && len(leaf.DNSNames) > 0 {
		cfg.ServerName = strings.Replace(leaf.DNSNames[0], "*.", "crossfade.", 1)
	}
	c.http.Transport.(*http.Transport).TLSClientConfig = cfg
	return nil
}

// Close ends kept connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call is one request.
type call struct {
	method      string
	path        string // its parts already escaped
	query       url.Values
	body        io.Reader
	contentType string
	header      http.Header
}

// part escapes one part of a path.
func part(s string) string { return url.PathEscape(s) }

// send makes a request and gives the answer when it is a success.
func (c *Client) send(ctx context.Context, k call) (*http.Response, error) {
	address := c.base.String() + k.path
	if len(k.query) > 0 {
		address += "?" + k.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, k.method, address, k.body)
	if err != nil {
		return nil, fmt.Errorf("asking the relay: %w", err)
	}
	for name, values := range k.header {
		req.Header[name] = values
	}
	if k.contentType != "" {
		req.Header.Set("Content-Type", k.contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // its text repeats the address
		}
		return nil, fmt.Errorf("cannot reach the relay's admin API at %s: %w", c.base.Redacted(), err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.problem(resp)
}

// problem reads an answer that is no success.
func (c *Client) problem(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("the relay answered %s, and the rest was cut off: %w", resp.Status, err)
	}
	var p Problem
	ct, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if ct == "application/problem+json" && json.Unmarshal(text, &p) == nil && p.Type != "" {
		return &p
	}
	return fmt.Errorf("%s answered %s, which is no answer of Crossfade: is the address right?", c.base.Redacted(), resp.Status)
}

// do makes a request with a JSON body, and reads the JSON answer into out;
// both may be nil.
func (c *Client) do(ctx context.Context, k call, in, out any) error {
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		k.body, k.contentType = bytes.NewReader(data), "application/json"
	}
	resp, err := c.send(ctx, k)
	if err != nil {
		return err
	}
	return decode(resp, out)
}

func decode(resp *http.Response, out any) error {
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	limited := &io.LimitedReader{R: resp.Body, N: maxAnswer}
	if err := json.NewDecoder(limited).Decode(out); err != nil {
		return fmt.Errorf("reading the relay's answer: %w", err)
	}
	return nil
}

// page adds cursor and limit to a query. A limit of 0 leaves it to the relay.
func page(q url.Values, cursor string, limit int) url.Values {
	set(q, "cursor", cursor)
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return q
}

func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}
