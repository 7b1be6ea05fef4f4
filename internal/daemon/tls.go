package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"crossfade/certs"
	"crossfade/config"

	"github.com/prometheus/client_golang/prometheus"
)

// certificate is one of ours: of files, or of an authority.
type certificate interface {
	Get(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Ready() bool
	Status() certs.Status
	Run(context.Context) error
}

// ourTLS is what our listeners show. Each configuration is made once and serves every listener of its kind, so that
// the tickets of a session (crypto/tls makes new keys for them every day and takes those of a week) are good on all of
// them, and outlive a renewal.
type ourTLS struct {
	smtp, admin certificate // nil: none is configured
	book        *certs.Book

	smtpConfig  *tls.Config // for clients that are not asked for a certificate
	askConfig   *tls.Config // for those that are
	adminConfig *tls.Config
	clients     clientCerts
}

// openTLS reads the certificates.
func openTLS(cfg *config.Config, log *slog.Logger, attempted func(ok bool)) (*ourTLS, error) {
	o := &ourTLS{}
	var err error
	if o.smtp, err = smtpCertificate(cfg, log, attempted); err != nil {
		return nil, fmt.Errorf("smtp.tls: %w", err)
	}
	if o.admin, err = fileCertificate("admin.tls", cfg.Admin.TLS, log); err != nil {
		return nil, fmt.Errorf("admin.tls: %w", err)
	}
	if o.clients, err = loadClientCerts(&cfg.SMTP.TLS); err != nil {
		return nil, err
	}
	var sources []certs.Source
	if o.smtp != nil {
		sources = append(sources, o.smtp)
		o.smtpConfig = &tls.Config{GetCertificate: o.smtp.Get, MinVersion: cfg.SMTP.TLS.OldestVersion()}
		o.askConfig = o.smtpConfig.Clone()
		// It is looked at by us, behind the handshake: a stranger with a certificate of somebody else's authority is a
		// stranger, and no reason to break the connection off.
		o.askConfig.ClientAuth = tls.RequestClientCert
	}
	if o.admin != nil {
		sources = append(sources, o.admin)
		o.adminConfig = &tls.Config{GetCertificate: o.admin.Get, MinVersion: tls.VersionTLS12}
	}
	o.book = certs.NewBook(log, sources...)
	return o, nil
}

// smtpCertificate is that of the listeners for mail; nil without an error when none is configured.
func smtpCertificate(cfg *config.Config, log *slog.Logger, attempted func(ok bool)) (certificate, error) {
	t := &cfg.SMTP.TLS
	if t.ACME == nil {
		return fileCertificate("smtp.tls", t.Pair(), log)
	}
	a := t.ACME
	key, err := a.MACKey()
	if err != nil {
		return nil, err
	}
	roots, err := rootsOf(a.CA)
	if err != nil {
		return nil, fmt.Errorf("acme.%w", err)
	}
	terms := func(url string) bool {
		if a.AcceptTerms {
			log.Info("the terms of service of the certificate authority are agreed to, by accept_terms", "terms", url)
		}
		return a.AcceptTerms
	}
	return certs.NewACME(certs.ACMEConfig{
		Name: "smtp.tls", Directory: acmeDirectory(a), Email: a.Email, Names: cfg.ACMENames(), Dir: cfg.ACMEDir(), HTTP01: a.HTTP01, ALPN01: a.TLSALPN01,
		Terms: terms, KeyID: a.KeyID, MACKey: key, KeepKey: a.KeepKey, Roots: roots, Logger: log, Attempted: attempted,
	})
}

// acmeDirectory is the authority that is asked.
func acmeDirectory(a *config.ACME) string { return cmp.Or(a.Directory, config.DefaultDirectory) }

// fileCertificate is one in files; nil without an error when none is configured.
func fileCertificate(name string, pair config.KeyPair, log *slog.Logger) (certificate, error) {
	if !pair.Enabled() {
		return nil, nil
	}
	return certs.OpenFiles(name, pair.Cert, pair.Key, log)
}

// offer is the configuration for a handshake of a client that sends mail; nil as long as there is no certificate.
func (o *ourTLS) offer(ask bool) *tls.Config {
	switch {
	case o.smtp == nil || !o.smtp.Ready():
		return nil
	case ask:
		return o.askConfig
	}
	return o.smtpConfig
}

// run looks after the certificates until the daemon stops.
func (o *ourTLS) run(p *parts) {
	if o.smtp != nil {
		p.start("certificate of smtp.tls", o.smtp.Run)
	}
	if o.admin != nil {
		p.start("certificate of admin.tls", o.admin.Run)
	}
	p.start("ends of certificates", o.book.Run)
}

// rootsOf reads authorities from a file; nil, the system's, without one.
func rootsOf(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: %s holds no certificate in PEM form", file)
	}
	return pool, nil
}

// clientCerts tells which certificates of clients count.
type clientCerts struct {
	roots *x509.CertPool // nil: none do
	names []string
}

func loadClientCerts(t *config.SMTPTLS) (clientCerts, error) {
	roots, err := rootsOf(t.ClientCA)
	if err != nil {
		return clientCerts{}, fmt.Errorf("smtp.tls.client_%w", err)
	}
	return clientCerts{roots, t.ClientNames}, nil
}

// counts tells whether the client showed a certificate that makes it one of ours.
func (c clientCerts) counts(state *tls.ConnectionState) bool {
	if c.roots == nil || state == nil || len(state.PeerCertificates) == 0 {
		return false
	}
	between := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	leaf := state.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return false
	}
	for _, name := range c.names {
		if leaf.VerifyHostname(name) == nil {
			return true
		}
	}
	return len(c.names) == 0
}

// sessionsKept is how many sessions with one server are kept for resumption.
const sessionsKept = 64

// backendTLS says how the certificate of a backend is checked, and which is shown to it. name is for the book.
func backendTLS(b config.BackendTLS, host string) (*tls.Config, error) {
	roots, err := rootsOf(b.CA)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{
		ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: b.InsecureSkipVerify, RootCAs: roots,
		ClientSessionCache: tls.NewLRUClientSessionCache(sessionsKept),
	}
	if b.ServerName != "" {
		c.ServerName = b.ServerName
	}
	if b.Cert != "" {
		pair, err := tls.LoadX509KeyPair(b.Cert, b.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", b.Cert, b.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if len(b.Pins) > 0 {
		// The pin says it all, unless authorities are named too.
		c.InsecureSkipVerify = b.CA == ""
		c.VerifyConnection = func(s tls.ConnectionState) error { return checkPins(b.Pins, s.PeerCertificates) }
	}
	return c, nil
}

// errPin means that a server shows another certificate than the one that was pinned.
var errPin = errors.New("the server's certificate is none of those that are pinned: it was replaced, or somebody is in between")

// checkPins looks at the server's own certificate.
func checkPins(pins []config.Pin, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errPin
	}
	whole, key := sha256.Sum256(chain[0].Raw), sha256.Sum256(chain[0].RawSubjectPublicKeyInfo)
	for _, p := range pins {
		if p.Key && p.Digest == key || !p.Key && p.Digest == whole {
			return nil
		}
	}
	return fmt.Errorf("%w; it has key-sha256:%x", errPin, key)
}

// noting has the book told of the certificate that a server shows, and of the one that
// is shown to it.
func (o *ourTLS) noting(name string, c *tls.Config) *tls.Config {
	for _, own := range c.Certificates {
		if own.Leaf != nil {
			o.book.Saw(strings.TrimSuffix(strings.TrimSuffix(name, ".smtp"), ".imap")+".tls.cert", own.Leaf)
		}
	}
	before := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) > 0 {
			o.book.Saw(name, s.PeerCertificates[0])
		}
		if before != nil {
			return before(s)
		}
		return nil
	}
	return c
}

// certCollector shows when certificates end.
type certCollector struct {
	book     *certs.Book
	smtp     certificate
	end, bad *prometheus.Desc
}

func newCertCollector(o *ourTLS) *certCollector {
	return &certCollector{
		book: o.book, smtp: o.smtp,
		end: prometheus.NewDesc("crossfade_certificate_expiry_seconds", "Time until a certificate ends, negative when it has: ours (smtp.tls, admin.tls), and those of servers as they were shown last.", []string{"certificate"}, nil),
		bad: prometheus.NewDesc("crossfade_certificate_problem", "1 when the certificate of smtp.tls could not be replaced by the last attempt, 0 otherwise.", []string{"certificate"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *certCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.end; ch <- c.bad }

// Collect implements prometheus.Collector.
func (c *certCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.book.All() {
		ch <- prometheus.MustNewConstMetric(c.end, prometheus.GaugeValue, s.Left(time.Now()).Seconds(), s.Name)
	}
	if c.smtp != nil {
		ch <- prometheus.MustNewConstMetric(c.bad, prometheus.GaugeValue, oneIf(c.smtp.Status().Problem != ""), "smtp.tls")
	}
}
