package dnswatch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	maxPolicy    = 64 << 10 // octets, as RFC 8461, 3.3 proposes
	policyTime   = 15 * time.Second
	maxPolicyAge = 31557600 // seconds (RFC 8461, 3.2)
	maxPolicyMX  = 500
)

// Policy is an MTA-STS policy (RFC 8461, 3.2).
type Policy struct {
	Mode   string // enforce, testing or none
	MaxAge time.Duration
	MX     []string // host names, lower case; *.example.org stands for one label
}

// ParsePolicy reads the text of a policy. Keys that it does not know are passed over.
func ParsePolicy(text string) (Policy, error) {
	var p Policy
	seen := map[string]bool{}
	for raw := range strings.SplitSeq(text, "\n") {
		raw = strings.TrimRight(raw, "\r")
		if strings.TrimSpace(raw) == "" {
			continue
		}
		key, value, ok := strings.Cut(raw, ":")
		if !ok {
			return p, fmt.Errorf("%q is not of the form key: value", cut(raw))
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if key == "mx" {
			if len(p.MX) == maxPolicyMX {
				return p, fmt.Errorf("it names more than %d hosts", maxPolicyMX)
			}
			p.MX = append(p.MX, strings.ToLower(strings.TrimSuffix(value, ".")))
			continue
		}
		if seen[key] {
			continue // the first one counts (RFC 8461, 3.2)
		}
		seen[key] = true
		if err := p.set(key, value); err != nil {
			return p, err
		}
	}
	switch {
	case !seen["version"]:
		return p, errors.New("it has no version: STSv1")
	case p.Mode == "":
		return p, errors.New("it has no mode")
	case !seen["max_age"]:
		return p, errors.New("it has no max_age")
	case len(p.MX) == 0 && p.Mode != "none":
		return p, errors.New("it names no mx")
	}
	return p, nil
}

func (p *Policy) set(key, value string) error {
	switch key {
	case "version":
		if value != "STSv1" {
			return fmt.Errorf("its version is %q and not STSv1", cut(value))
		}
	case "mode":
		if value != "enforce" && value != "testing" && value != "none" {
			return fmt.Errorf("its mode %q is none of enforce, testing and none", cut(value))
		}
		p.Mode = value
	case "max_age":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return fmt.Errorf("its max_age %q is no number of seconds", cut(value))
		}
		p.MaxAge = time.Duration(min(n, maxPolicyAge)) * time.Second
	}
	return nil
}

// Covers tells whether the policy allows a host (RFC 8461, 4.1). Names are compared without case and final dot.
func (p Policy) Covers(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, m := range p.MX {
		if m == host {
			return true
		}
		if rest, ok := strings.CutPrefix(m, "*."); ok {
			if label, parent, found := strings.Cut(host, "."); found && label != "" && parent == rest {
				return true
			}
		}
	}
	return false
}

// policyURL is where the policy of a domain lies (RFC 8461, 3.3).
func policyURL(domain string) string {
	return "https://mta-sts." + bare(domain) + "/.well-known/mta-sts.txt"
}

// fetchPolicy reads a domain's policy, at the addresses that the check's resolvers give.
func (c *Checker) fetchPolicy(ctx context.Context, l *lookups, domain string) (Policy, error) {
	return FetchPolicy(ctx, domain, PolicyOptions{Dial: c.dialLooked(l), Roots: c.cfg.Roots})
}

// PolicyOptions says how a policy is fetched. The zero value does it with the resolvers and authorities of the system.
type PolicyOptions struct {
	Dial  Dial
	Roots *x509.CertPool
}

// FetchPolicy reads a domain's policy over HTTPS as a sender does (RFC 8461, 3.3): no redirects, a certificate that fits.
func FetchPolicy(ctx context.Context, domain string, opts PolicyOptions) (Policy, error) {
	ctx, cancel := context.WithTimeout(ctx, policyTime)
	defer cancel()
	transport := &http.Transport{
		DialContext:           opts.Dial,
		TLSClientConfig:       &tls.Config{RootCAs: opts.Roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: policyTime, MaxResponseHeaderBytes: 32 << 10,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, policyURL(domain), nil)
	if err != nil {
		return Policy{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // its text repeats the address
		}
		return Policy{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Policy{}, fmt.Errorf("it answers %s (senders follow no redirects)", resp.Status)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != "text/plain" {
		return Policy{}, fmt.Errorf("it has the type %q and not text/plain", cut(kind))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPolicy+1))
	if err != nil {
		return Policy{}, fmt.Errorf("reading it: %w", err)
	}
	if len(body) > maxPolicy {
		return Policy{}, fmt.Errorf("it is longer than %d octets", maxPolicy)
	}
	return ParsePolicy(string(body))
}

// dialLooked connects to hosts whose addresses the check's own resolvers know.
func (c *Checker) dialLooked(l *lookups) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		h := l.addresses(ctx, dns.Fqdn(host))
		if len(h.addrs) == 0 {
			return nil, fmt.Errorf("%s has no address", host)
		}
		var errs []error
		for _, ip := range reachable(h.addrs) {
			conn, err := c.cfg.Dial(ctx, network, net.JoinHostPort(ip.String(), port))
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}
