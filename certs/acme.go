package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
)

// ACMEConfig is what an [ACME] works with. Directory, Names, Dir, and HTTP01 or ALPN01 are needed.
type ACMEConfig struct {
	Name      string   // the section of the configuration, for messages
	Directory string   // URL of the authority's directory (RFC 8555, 7.1.1)
	Email     string   // told to the authority; may be empty
	Names     []string // in the certificate, our host name first
	Dir       string   // where account and certificate are kept; it is made when absent
	HTTP01    string   // address on which http-01 is answered (RFC 8555, 8.3); empty: not offered
	ALPN01    string   // address on which tls-alpn-01 is answered (RFC 8737); empty: not offered
	// Terms tells whether the authority's terms of service, given by their URL, are
	// agreed to.
	Terms func(url string) bool
	// KeyID and MACKey bind the account to one that exists elsewhere (RFC 8555,
	// 7.3.4); empty: none.
	KeyID  string
	MACKey []byte
	// KeepKey keeps the private key over renewals, for those who publish its digest
	// in TLSA records (RFC 7671, 8.1).
	KeepKey bool
	Roots   *x509.CertPool // of the authority's own HTTPS; nil: the system's
	Logger  *slog.Logger
	// Attempted is called after each attempt to get a certificate; it may be nil.
	Attempted func(ok bool)

	now  func() time.Time // nil: time.Now
	wait func(failures int) time.Duration
}

// attemptTime bounds one attempt to get a certificate.
const attemptTime = 5 * time.Minute

// retries is how often a request to the authority is repeated that it could not answer (5xx). Attempts come again anyway,
// and until one has failed nobody hears why; one that is refused for being one too many (429) ends the attempt.
const retries = 3

// retryAfter is how long to wait before a request is repeated; 0 ends the attempt.
func retryAfter(n int, _ *http.Request, resp *http.Response) time.Duration {
	if n > retries || resp != nil && resp.StatusCode == http.StatusTooManyRequests {
		return 0
	}
	return time.Second << max(n-1, 0)
}

// ACME is a certificate from an authority. It is safe for use by many goroutines.
type ACME struct {
	cfg     ACMEConfig
	log     *slog.Logger
	store   acmeStore
	client  *acme.Client
	answers *challenges
	current atomic.Pointer[tls.Certificate]

	mu       sync.Mutex
	problem  string
	since    time.Time
	next     time.Time
	failures int
	bound    chan struct{} // closed when challenges are answered; for tests
}

// NewACME reads what is kept from earlier starts, and makes an account key when there is none. It starts nothing and
// asks nobody. An account key that cannot be had is a problem of the next certificate, and told in Status: the one that is
// kept is in use meanwhile.
func NewACME(cfg ACMEConfig) (*ACME, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if cfg.wait == nil {
		cfg.wait = backoff
	}
	a := &ACME{cfg: cfg, log: cfg.Logger.With("certificate", cfg.Name), store: newACMEStore(cfg.Dir, cfg.Directory), bound: make(chan struct{})}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12}
	transport.ResponseHeaderTimeout = time.Minute
	a.client = &acme.Client{DirectoryURL: cfg.Directory, UserAgent: "crossfade", RetryBackoff: retryAfter, HTTPClient: &http.Client{Transport: transport, Timeout: 2 * time.Minute}}
	a.answers = newChallenges(a.log)
	pair, err := a.store.certificate()
	switch {
	case err == nil:
		a.current.Store(pair)
	case !errors.Is(err, ErrNone):
		a.log.Error("the certificate that was kept cannot be read; another one will be asked for", "error", err)
	}
	if err := a.account(); err != nil {
		a.failed(err)
	}
	return a, nil
}

// account reads the key of the account, unless that was done. Who calls it is the only one who uses the client.
func (a *ACME) account() error {
	if a.client.Key != nil {
		return nil
	}
	key, err := a.store.accountKey()
	if err == nil {
		err = a.answers.use(key)
	}
	if err != nil {
		return err
	}
	a.client.Key = key
	return nil
}

// Get gives the certificate, as tls.Config.GetCertificate wants it.
func (a *ACME) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := a.current.Load(); c != nil {
		return c, nil
	}
	return nil, ErrNone
}

// Ready tells whether there is a certificate to show.
func (a *ACME) Ready() bool { return a.current.Load() != nil }

// Status says how the certificate is, and how the last attempt to renew it went.
func (a *ACME) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := statusOf(a.cfg.Name, a.current.Load())
	s.Problem, s.Since, s.Next = a.problem, a.since, a.next
	return s
}

// Run answers challenges, gets a certificate when there is none for the names, and renews it when two thirds of its
// time are over, until ctx ends. A failure never ends it: it waits, longer each time, and tries again.
func (a *ACME) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { a.serveChallenges(ctx) })
	defer a.client.HTTPClient.CloseIdleConnections()
	select {
	case <-a.bound:
	case <-ctx.Done():
		return nil
	}
	for {
		timer := time.NewTimer(max(a.due().Sub(a.cfg.now()), 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
			a.attempt(ctx)
		}
	}
}

// due is when a certificate is asked for next, or the key of the account, when there is none yet.
func (a *ACME) due() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next.IsZero() && a.client.Key != nil {
		a.next = renewAt(a.current.Load(), a.cfg.Names)
	}
	return a.next
}

// renewAt is when two thirds of a certificate's time are over, at once when it is for other names. Several nodes do not
// come at the same minute, because each has a certificate of its own.
func renewAt(c *tls.Certificate, names []string) time.Time {
	if c == nil {
		return time.Time{}
	}
	for _, name := range names {
		if c.Leaf.VerifyHostname(name) != nil {
			return time.Time{}
		}
	}
	return c.Leaf.NotBefore.Add(c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) * 2 / 3)
}

// backoff is how long to wait after a number of failures in a row: a minute at first, six hours at most, with up to a
// fifth more by chance. Authorities count failures too.
func backoff(failures int) time.Duration {
	d := time.Minute << min(max(failures-1, 0), 9)
	d = min(d, 6*time.Hour)
	return d + rand.N(d/5)
}

// errUnkept is about a certificate that is in use and could not be written to Dir.
var errUnkept = errors.New("the certificate is in use, and is lost with the next start")

// errDue is about an authority's certificate that would be asked for again at once.
var errDue = errors.New("the new certificate is for other names, or has to be renewed at once: is the clock of this machine right?")

// attempt gets a certificate and takes note of how that went.
func (a *ACME) attempt(ctx context.Context) {
	if a.client.Key == nil {
		if err := a.account(); err != nil {
			if a.cfg.Attempted != nil {
				a.cfg.Attempted(false)
			}
			a.failed(err)
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.problem, a.since, a.next, a.failures = "", time.Time{}, time.Time{}, 0
		return // whether a certificate is due is another question
	}
	actx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	err := a.obtain(actx)
	if ctx.Err() != nil {
		return
	}
	now := a.cfg.now()
	had := err == nil || errors.Is(err, errUnkept)
	if had && !renewAt(a.current.Load(), a.cfg.Names).After(now) {
		had, err = false, errDue
	}
	if a.cfg.Attempted != nil {
		a.cfg.Attempted(had)
	}
	a.mu.Lock()
	if had {
		a.problem, a.since, a.next, a.failures = "", time.Time{}, time.Time{}, 0
	}
	if had && err != nil { // another one would be no better, and authorities count them
		a.problem, a.since = err.Error(), now
		a.log.Error("the new certificate could not be kept", "error", err, "dir", a.cfg.Dir)
	}
	a.mu.Unlock()
	if !had {
		a.failed(err)
	}
}

// failed takes note of why there is no new certificate, and of when the next attempt is.
func (a *ACME) failed(err error) {
	now := a.cfg.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problem == "" {
		a.since = now
	}
	a.problem = err.Error()
	a.failures++
	wait := a.cfg.wait(a.failures)
	if limit, limited := acme.RateLimit(err); limited {
		wait = max(wait, limit)
	}
	a.next = now.Add(wait)
	a.log.Error("no certificate was had from the authority; what there is stays in use, and it is tried again", "error", err,
		"directory", a.cfg.Directory, "failures", a.failures, "next", a.next, "have", a.current.Load() != nil)
}

// obtain goes through RFC 8555, 7: account, order, challenges, certificate.
func (a *ACME) obtain(ctx context.Context) error {
	if err := a.register(ctx); err != nil {
		return err
	}
	order, err := a.client.AuthorizeOrder(ctx, acme.DomainIDs(a.cfg.Names...))
	if err != nil {
		return fmt.Errorf("order a certificate for %v: %w", a.cfg.Names, err)
	}
	for _, url := range order.AuthzURLs {
		if err := a.authorize(ctx, url); err != nil {
			return err
		}
	}
	if order, err = a.client.WaitOrder(ctx, order.URI); err != nil {
		return fmt.Errorf("wait for the order of a certificate for %v: %w", a.cfg.Names, err)
	}
	key, err := a.certificateKey()
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(cryptorand.Reader, &x509.CertificateRequest{DNSNames: a.cfg.Names}, key)
	if err != nil {
		return fmt.Errorf("make a certificate request for %v: %w", a.cfg.Names, err)
	}
	chain, _, err := a.client.CreateCertFromOrder(ctx, order, csr, true)
	if err != nil {
		return fmt.Errorf("get the certificate for %v: %w", a.cfg.Names, err)
	}
	pair, text, err := makePair(chain, key)
	if err != nil {
		return err
	}
	err = a.store.write(certificateFile, text)
	a.current.Store(pair)
	a.log.Info("a new certificate is in use", "names", a.cfg.Names, "ends", pair.Leaf.NotAfter)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnkept, err)
	}
	return nil
}

func (a *ACME) register(ctx context.Context) error {
	account := &acme.Account{}
	if a.cfg.Email != "" {
		account.Contact = []string{"mailto:" + a.cfg.Email}
	}
	if a.cfg.KeyID != "" {
		account.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: a.cfg.KeyID, Key: a.cfg.MACKey}
	}
	_, err := a.client.Register(ctx, account, func(url string) bool { return a.cfg.Terms != nil && a.cfg.Terms(url) })
	if err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return fmt.Errorf("register with %s: %w", a.cfg.Directory, err)
	}
	return nil
}

// authorize proves that a name is ours.
func (a *ACME) authorize(ctx context.Context, url string) error {
	authz, err := a.client.GetAuthorization(ctx, url)
	if err != nil {
		return fmt.Errorf("read an authorization: %w", err)
	}
	name := authz.Identifier.Value
	switch authz.Status {
	case acme.StatusValid:
		return nil
	case acme.StatusPending:
	default:
		return fmt.Errorf("the authorization for %s is %s: a new order will be made", name, authz.Status)
	}
	c, err := a.choose(authz)
	if err != nil {
		return err
	}
	if c.Type == acmeALPN {
		cert, err := a.client.TLSALPN01ChallengeCert(c.Token, name)
		if err != nil {
			return fmt.Errorf("make the answer to tls-alpn-01 for %s: %w", name, err)
		}
		a.answers.put(name, &cert)
		defer a.answers.remove(name)
	}
	if _, err := a.client.Accept(ctx, c); err != nil {
		return fmt.Errorf("accept %s for %s: %w", c.Type, name, err)
	}
	if _, err := a.client.WaitAuthorization(ctx, url); err != nil {
		return fmt.Errorf("prove by %s that %s is ours: %w", c.Type, name, err)
	}
	return nil
}

// The types of challenges that we can answer.
const (
	acmeHTTP = "http-01"
	acmeALPN = "tls-alpn-01"
)

// choose takes the first challenge of the authority that we can answer.
func (a *ACME) choose(authz *acme.Authorization) (*acme.Challenge, error) {
	can := map[string]bool{acmeHTTP: a.cfg.HTTP01 != "", acmeALPN: a.cfg.ALPN01 != ""}
	var offered []string
	for _, c := range authz.Challenges {
		if can[c.Type] {
			return c, nil
		}
		offered = append(offered, c.Type)
	}
	return nil, fmt.Errorf("the authority offers %v for %s, and none of them is configured: set http01 or tls_alpn01", offered, authz.Identifier.Value)
}

// certificateKey is a fresh key, or the one in use when that is to be kept.
func (a *ACME) certificateKey() (crypto.Signer, error) {
	if c := a.current.Load(); c != nil && a.cfg.KeepKey {
		if key, ok := c.PrivateKey.(crypto.Signer); ok {
			return key, nil
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// Names gives the names that the certificate is asked for.
func (a *ACME) Names() []string { return slices.Clone(a.cfg.Names) }
