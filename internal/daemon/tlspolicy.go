package daemon

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"crossfade/config"
	"crossfade/mail"
	"crossfade/relay/resolver"
	"crossfade/relay/smtpclient"
	"crossfade/relay/tlspolicy"
)

// tlsPolicies are what is published about the servers that mail is delivered to, and how TLS with them fares.
type tlsPolicies struct {
	resolver *resolver.Resolver
	sts      *tlspolicy.STS
	counts   tlspolicy.Counts
	counted  func(server, policy, result string) // for the metrics; nil: nobody asks
	saw      func(name string, leaf *x509.Certificate)

	mu    sync.Mutex
	danes map[mail.Route]namedDANE // those in force
}

type namedDANE struct {
	*tlspolicy.DANE
	server string
}

// newTLSPolicies makes them; file keeps MTA-STS policies, and is nothing in a check.
func newTLSPolicies(r *resolver.Resolver, file string, log *slog.Logger) *tlsPolicies {
	return &tlsPolicies{
		resolver: r, danes: map[mail.Route]namedDANE{},
		sts: tlspolicy.NewSTS(tlspolicy.STSConfig{LookupTXT: r.LookupTXT, File: file, Logger: log}),
	}
}

// stsFile is where MTA-STS policies are kept: in the store's directory, or beside the audit log where the store is a
// Redis. Each node asks for itself.
func stsFile(cfg *config.Config) string {
	if shared(cfg) {
		return filepath.Join(filepath.Dir(auditPath(cfg)), "mta-sts.json")
	}
	return filepath.Join(cfg.Store, "mta-sts.json")
}

// attach has the deliveries of a route look at what is published for their server.
func (p *tlsPolicies) attach(cfg *config.Config, r mail.Route, t *smtpclient.Target) error {
	b, name := backendConfig(cfg, r), smtpName(cfg, r)
	roots, err := rootsOf(b.TLS.CA)
	if err != nil {
		return err
	}
	server := &tlspolicy.Server{Domain: b.TLS.MTASTS, Host: b.SMTP.Host, Roots: roots}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.danes, r)
	session := tlspolicy.Session{Server: name, Host: b.SMTP.Host}
	if b.TLS.DANE || b.TLS.MTASTS != "" {
		session.Owner = strings.ToLower(cmp.Or(b.TLS.MTASTS, b.SMTP.Host))
	}
	if b.TLS.DANE {
		_, port, err := net.SplitHostPort(b.SMTP.Address)
		if err != nil {
			return fmt.Errorf("dane: %w", err)
		}
		server.DANE = tlspolicy.NewDANE(p.resolver, b.SMTP.Host, port)
		p.danes[r] = namedDANE{server.DANE, name}
	}
	if b.TLS.MTASTS != "" {
		server.STS = p.sts
	}
	if server.DANE != nil || server.STS != nil {
		t.Policy = server.Rule
	}
	t.Pinned = len(b.TLS.Pins) > 0
	t.TLSResult = func(rule string, err error) {
		p.count(session, rule, err)
		p.noteEnded(name, err)
	}
	return nil
}

// noteEnded notes the end of a certificate that a server showed and that was not
// taken for that: of others nothing is believed, not even when they end.
func (p *tlsPolicies) noteEnded(name string, err error) {
	var unverified *tls.CertificateVerificationError
	var why x509.CertificateInvalidError
	if p.saw != nil && errors.As(err, &unverified) && errors.As(err, &why) && why.Reason == x509.Expired {
		p.saw(name, unverified.UnverifiedCertificates[0])
	}
}

func (p *tlsPolicies) count(s tlspolicy.Session, rule string, err error) {
	s.Policy, s.Result = cmp.Or(rule, tlspolicy.NoPolicy), tlspolicy.Classify(err)
	p.counts.Add(time.Now(), s)
	if p.counted != nil {
		p.counted(s.Server, s.Policy, s.Result)
	}
}

// warnings says where DANE was asked for and cannot be had.
func (p *tlsPolicies) warnings() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, d := range p.danes {
		if why := d.Absent(); why != "" {
			out = append(out, fmt.Sprintf("%s: dane: true has no effect: %s", d.server, why))
		}
	}
	slices.Sort(out)
	return slices.Compact(out) // one server may stand for two routes
}

// TLSReports implements admin.TLSAPI.
func (d *Daemon) TLSReports() []tlspolicy.Report {
	return d.policies.counts.Reports(d.cfg.Hostname)
}

// warnings are what needs an operator though mail is taken.
func (d *Daemon) warnings() []string {
	return slices.Concat(d.tls.book.Warnings(), d.policies.warnings(), d.filterWarnings(), d.resolverWarnings())
}

// checkPolicies has a check look at what is published too. What cannot be found out is an error of the connection.
func checkPolicies(cfg *config.Config, r mail.Route, t *smtpclient.Target) (*tlsPolicies, error) {
	res, err := newResolver(cfg, nil)
	if err != nil {
		return nil, err
	}
	p := newTLSPolicies(res, "", nil)
	return p, p.attach(cfg, r, t)
}
