package token

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	requestTime = 20 * time.Second // one request
	requests    = 3                // tries of one renewal
	atOnce      = 8                // requests at once: Google has a token for each user
	longestWait = 20 * time.Second // that a renewal sits out; with more it fails, and is tried later
)

// endpoint asks token endpoints (RFC 6749, 3.2) over TLS. A Retry-After holds
// for all who ask it.
type endpoint struct {
	client *http.Client
	slots  chan struct{}
	delay  time.Duration // before the second try, doubled after

	mu    sync.Mutex
	until time.Time // no request before
}

// newEndpoint makes one. Roots are the authorities to trust; nil means those of
// the system.
func newEndpoint(roots *x509.CertPool) *endpoint {
	tr := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: atOnce,
		IdleConnTimeout:     30 * time.Second,
		ForceAttemptHTTP2:   true,
	}
	return &endpoint{
		client: &http.Client{
			Transport: tr, Timeout: requestTime,
			// A credential goes where it was meant to go, and nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		slots: make(chan struct{}, atOnce), delay: 500 * time.Millisecond,
	}
}

// CheckURL tells whether credentials may be sent to a token endpoint: over
// https, or to this machine itself.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "":
		return fmt.Errorf("the token endpoint %q is not a URL such as https://login.example.org/token", printable(text))
	case u.User != nil || u.Fragment != "":
		return errors.New("the token endpoint holds no user, password or fragment")
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	}
	return fmt.Errorf("the token endpoint %s is not https: credentials would cross the network readable", u.Redacted())
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// request is one question to an endpoint.
type request struct {
	url    string
	user   string            // for errors
	form   func() url.Values // made for each try: assertions are for one use
	advise func(e *Error)    // puts in a hint; may be nil
}

// ask gets a token, and tries again what may work the next time.
func (p *endpoint) ask(ctx context.Context, r request) (Token, error) {
	if err := CheckURL(r.url); err != nil {
		return Token{}, err
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return Token{}, context.Cause(ctx)
	}
	delay := p.delay
	for try := 1; ; try++ {
		if err := p.wait(ctx); err != nil {
			return Token{}, err
		}
		t, err := p.once(ctx, r)
		var e *Error
		if err == nil || ctx.Err() != nil || !errors.As(err, &e) || e.Lasting || try == requests || e.RetryAfter > longestWait {
			return t, err
		}
		if e.RetryAfter == 0 {
			p.postpone(delay)
			delay *= 2
		}
	}
}

// postpone keeps everybody away for a while.
func (p *endpoint) postpone(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := time.Now().Add(d); t.After(p.until) {
		p.until = t
	}
}

func (p *endpoint) wait(ctx context.Context) error {
	p.mu.Lock()
	d := time.Until(p.until)
	p.mu.Unlock()
	if d <= 0 {
		return nil
	}
	if d > longestWait {
		return &Error{From: "the token endpoint", Text: "it wants to be left alone for now", RetryAfter: d}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *endpoint) once(ctx context.Context, r request) (Token, error) {
	form := r.form()
	var secrets Redactor
	for _, key := range []string{"assertion", "client_assertion", "client_secret"} {
		secrets.Add(form.Get(key))
		secrets.Add(url.QueryEscape(form.Get(key)))
	}
	u, _ := url.Parse(r.url) // was checked
	fail := &Error{From: "the token endpoint " + u.Host, User: r.user}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, strings.NewReader(form.Encode()))
	if err != nil {
		return Token{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	made := time.Now()
	resp, err := p.client.Do(req)
	if err != nil {
		return Token{}, fail.unreached(&secrets, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return Token{}, fail.unreached(&secrets, err)
	}
	if resp.StatusCode == http.StatusOK {
		return fail.granted(data, made)
	}
	fail.denied(resp, data, &secrets)
	if fail.RetryAfter > 0 {
		p.postpone(fail.RetryAfter)
	}
	if r.advise != nil {
		r.advise(fail)
	}
	return Token{}, fail
}

// unreached is the error of an endpoint that gave no answer.
func (e *Error) unreached(secrets *Redactor, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the URL, which is in From
	}
	e.Text = secrets.Cut(printable(err.Error()))
	e.Hint = "can it be reached from here, and does its certificate match?"
	return e
}

// granted reads a token out of an answer that says 200.
func (e *Error) granted(data []byte, made time.Time) (Token, error) {
	e.Status = http.StatusOK
	if len(data) > maxToken {
		e.Text = "the answer is too large for a token"
		return Token{}, e
	}
	if len(data) == 0 || !json.Valid(data) {
		e.Text, e.Hint = "the answer is not JSON", "is a proxy or a login page in between?"
		return Token{}, e
	}
	t, err := parse(data, made)
	if err != nil {
		e.Text = err.Error()
		return Token{}, e
	}
	if t.Expires.IsZero() {
		t.Expires = made.Add(unsaid)
	}
	return t, nil
}

// denied reads an error (RFC 6749, 5.2).
func (e *Error) denied(resp *http.Response, data []byte, secrets *Redactor) {
	e.Status = resp.StatusCode
	var said struct {
		Code string `json:"error"`
		Text string `json:"error_description"`
	}
	if err := json.Unmarshal(data, &said); err == nil && said.Code != "" {
		e.Code, e.Text = secrets.Cut(printable(said.Code)), secrets.Cut(printable(said.Text))
	} else {
		e.Text = "the answer is not an error of OAuth"
	}
	e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	// 408 and 429 pass, and so does what the server has trouble with. A redirect
	// and every other refusal last.
	busy := e.Status >= 500 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout
	e.Lasting = !busy && e.Code != "temporarily_unavailable"
}

// retryAfter reads seconds or a date (RFC 9110, 10.2.3).
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(text); err == nil && n > 0 {
		return time.Duration(min(n, 24*3600)) * time.Second
	}
	if t, err := http.ParseTime(text); err == nil && t.After(now) {
		return min(t.Sub(now), 24*time.Hour)
	}
	return 0
}
