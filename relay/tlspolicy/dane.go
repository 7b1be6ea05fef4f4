package tlspolicy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"crossfade/relay/resolver"
	"crossfade/relay/smtpclient"
)

// Resolver is what DANE asks of the DNS.
type Resolver interface {
	LookupA(ctx context.Context, host string) (resolver.Answer[netip.Addr], error)
	LookupAAAA(ctx context.Context, host string) (resolver.Answer[netip.Addr], error)
	LookupTLSA(ctx context.Context, name string) (resolver.Answer[resolver.TLSA], error)
}

// The names of rules, as RFC 8460, 4.3.2.2 has them.
const (
	RuleDANE = "tlsa"
	RuleSTS  = "sts"
)

// DANE is the check of one server by its TLSA records. It is safe for use by many goroutines.
type DANE struct {
	r    Resolver
	host string
	port string

	mu     sync.Mutex
	absent string
}

// NewDANE makes the check of a server. host is a name, without its final dot.
func NewDANE(r Resolver, host, port string) *DANE {
	return &DANE{r: r, host: strings.ToLower(strings.TrimSuffix(host, ".")), port: port}
}

// ErrTLSA means that a server shows a certificate that none of its TLSA records fits.
var ErrTLSA = errors.New("the server's certificate fits none of its TLSA records")

// Rule looks the server's records up (RFC 7672, 2.2). Where its addresses or the records are not vouched for by DNSSEC
// there is no rule, and [DANE.Absent] says why. An error means that nobody could tell whether there are records: then
// nothing may be sent.
func (d *DANE) Rule(ctx context.Context) (smtpclient.Rule, error) {
	names, err := d.baseNames(ctx)
	if err != nil {
		return smtpclient.Rule{}, fmt.Errorf("DANE: %w", err)
	}
	for _, base := range names {
		a, err := d.r.LookupTLSA(ctx, "_"+d.port+"._tcp."+base)
		switch {
		case err != nil && errors.Is(err, resolver.ErrNoName):
			continue
		case err != nil:
			return smtpclient.Rule{}, fmt.Errorf("DANE: %w", err)
		case len(a.Records) == 0 || !a.Authentic:
			continue
		}
		d.note("")
		return ruleOf(a.Records, base, d.host), nil
	}
	if len(names) > 0 {
		d.note(d.host + " has no TLSA records")
	}
	return smtpclient.Rule{}, nil
}

// baseNames are the names that may have TLSA records: that at the end of the host's CNAMEs, and its own (RFC 7671, 7).
// There are none when the host's addresses are not authentic.
func (d *DANE) baseNames(ctx context.Context) ([]string, error) {
	v4, err := d.r.LookupA(ctx, d.host)
	if err == nil {
		v6, err6 := d.r.LookupAAAA(ctx, d.host)
		err = err6
		v4.Authentic = v4.Authentic && v6.Authentic
	}
	if errors.Is(err, resolver.ErrNoName) {
		d.note(d.host + " does not exist in the DNS")
		return nil, nil // the connection will say so, unless this machine knows better
	}
	if err != nil {
		return nil, err
	}
	if !v4.Authentic {
		d.note("the resolver does not vouch for " + d.host + " (DNSSEC): its zone is not signed, or the resolver does not validate, or is not believed")
		return nil, nil
	}
	if v4.Name != "" && v4.Name != d.host {
		return []string{v4.Name, d.host}, nil
	}
	return []string{d.host}, nil
}

func (d *DANE) note(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.absent = why
}

// Absent says why the last look gave no rule; empty: it did, or there was none yet.
func (d *DANE) Absent() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.absent
}

// ruleOf makes a rule of records. Usages 0 and 1 count for nothing in SMTP (RFC 7672, 3.1.3); where nothing else is
// there, TLS is required and nobody is checked (2.2).
func ruleOf(records []resolver.TLSA, base, host string) smtpclient.Rule {
	rule := smtpclient.Rule{Name: RuleDANE, Require: true, Alone: true, ServerName: base}
	usable := slices.DeleteFunc(slices.Clone(records), func(t resolver.TLSA) bool {
		raw, err := hex.DecodeString(t.Certificate)
		return t.Usage != usageTA && t.Usage != usageEE || t.Selector > 1 || t.MatchingType > 2 || err != nil || len(raw) == 0
	})
	if len(usable) == 0 {
		return rule
	}
	rule.Proves = true
	rule.Verify = func(s tls.ConnectionState) error { return verifyTLSA(usable, s.PeerCertificates, base, host) }
	return rule
}

const (
	usageTA = 2 // an authority of the server's chain
	usageEE = 3 // the server's own certificate
)

// verifyTLSA is RFC 7672, 3.1: with usage 3 neither name nor dates count, with usage 2 both do.
func verifyTLSA(records []resolver.TLSA, chain []*x509.Certificate, names ...string) error {
	if len(chain) == 0 {
		return ErrTLSA
	}
	var why error
	for _, t := range records {
		if t.Usage == usageEE {
			if fits(t, chain[0]) {
				return nil
			}
			continue
		}
		if err := verifyAnchor(t, chain, names); err == nil {
			return nil
		} else if !errors.Is(err, ErrTLSA) {
			why = err
		}
	}
	if why != nil {
		return fmt.Errorf("%w: an authority fits, but %w", ErrTLSA, why)
	}
	return ErrTLSA
}

// verifyAnchor verifies the server's certificate up to the authority that a record names. A record with the whole
// certificate names it even when the server does not send it along.
func verifyAnchor(t resolver.TLSA, chain []*x509.Certificate, names []string) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain[1:] {
		if fits(t, c) {
			roots.AddCert(c)
			found = true
			continue
		}
		between.AddCert(c)
	}
	if t.Selector == 0 && t.MatchingType == 0 {
		raw, _ := hex.DecodeString(t.Certificate) // looked at by ruleOf
		if c, err := x509.ParseCertificate(raw); err == nil {
			roots.AddCert(c)
			found = true
		}
	}
	if !found {
		return ErrTLSA
	}
	var err error
	for _, name := range names {
		if _, err = chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between}); err == nil {
			return nil
		}
	}
	return err
}

// fits compares a record with a certificate (RFC 6698, 2.1).
func fits(t resolver.TLSA, c *x509.Certificate) bool {
	data := c.Raw
	if t.Selector == 1 {
		data = c.RawSubjectPublicKeyInfo
	}
	switch t.MatchingType {
	case 1:
		sum := sha256.Sum256(data)
		data = sum[:]
	case 2:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	want, err := hex.DecodeString(t.Certificate)
	return err == nil && bytes.Equal(want, data)
}
