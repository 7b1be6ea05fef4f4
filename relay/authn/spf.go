package authn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"crossfade/mail"
	"crossfade/relay/resolver"

	"blitiri.com.ar/go/spf"
)

// checkSPF checks the domain of the reverse-path, or the HELO name where that is null (RFC 7208, 2.4). The library keeps
// the limits of RFC 7208, 4.6.4: ten terms that look something up, two of them in vain, ten hosts of an MX or a PTR.
func (c *Checker) checkSPF(ctx context.Context, m Message) (s SPF) {
	defer func() { // what strangers publish must not end the process, whatever the library makes of it
		if p := recover(); p != nil {
			s.Result, s.Reason = TempError, fmt.Sprint("it could not be evaluated: ", p)
		}
	}()
	s = SPF{Result: None, Domain: m.From.Domain, Sender: senderText(m.From)}
	sender := m.From.String()
	if m.From.IsNull() {
		s.Helo, s.Domain = true, strings.TrimSuffix(m.Helo, ".")
		sender = "postmaster@" + s.Domain
	}
	domain, ok := domainName(s.Domain)
	if !ok || !strings.Contains(domain, ".") || !m.Client.IsValid() {
		// An address literal, a name alone: nobody can have published anything (RFC 7208, 4.3).
		s.Domain = ""
		return s
	}
	s.Domain = domain
	client := m.Client.Unmap().WithZone("")
	res, err := spf.CheckHostWithSender(net.IP(client.AsSlice()), m.Helo, sender,
		spf.WithContext(ctx), spf.WithResolver(spfDNS{r: c.cfg.Resolver, v4: client.Is4()}))
	s.Result = Result(res)
	if (s.Result == TempError || s.Result == PermError) && err != nil {
		s.Reason = err.Error()
	}
	return s
}

// senderText is a reverse-path that can stand in a field unquoted, or its domain.
func senderText(a mail.Address) string {
	text := a.String()
	if len(text) > 200 || !plainValue(text) {
		return a.Domain
	}
	return text
}

// spfDNS is the resolver as the library wants it. It looks up addresses of the client's family alone, and IPv4 always,
// because exists: is about that (RFC 7208, 5.7).
type spfDNS struct {
	r  *resolver.Resolver
	v4 bool
}

// LookupTXT implements spf.DNSResolver.
func (d spfDNS) LookupTXT(ctx context.Context, name string) ([]string, error) {
	a, err := d.r.LookupTXT(ctx, name)
	return a.Records, dnsError(name, err)
}

// LookupMX implements spf.DNSResolver.
func (d spfDNS) LookupMX(ctx context.Context, name string) (out []*net.MX, err error) {
	a, err := d.r.LookupMX(ctx, name)
	for _, mx := range a.Records {
		if mx.Host != "" { // a null MX has no host that sends
			out = append(out, &net.MX{Host: mx.Host, Pref: mx.Preference})
		}
	}
	return out, dnsError(name, err)
}

// LookupIPAddr implements spf.DNSResolver.
func (d spfDNS) LookupIPAddr(ctx context.Context, host string) (out []net.IPAddr, err error) {
	a, err := d.r.LookupA(ctx, host)
	ips := a.Records
	if !d.v4 && (err == nil || !errors.Is(err, resolver.ErrNoName)) {
		six, err6 := d.r.LookupAAAA(ctx, host)
		ips = append(ips, six.Records...)
		if err == nil || err6 == nil && len(six.Records) > 0 {
			err = err6
		}
	}
	for _, ip := range ips {
		out = append(out, net.IPAddr{IP: net.IP(ip.AsSlice())})
	}
	return out, dnsError(host, err)
}

// LookupAddr implements spf.DNSResolver.
func (d spfDNS) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	a, err := d.r.LookupPTR(ctx, ip)
	return a.Records, dnsError(addr, err)
}

// dnsError is an error of the resolver as the library tells them apart.
func dnsError(name string, err error) error {
	if err == nil {
		return nil
	}
	return &net.DNSError{
		Err: err.Error(), Name: name,
		IsNotFound: errors.Is(err, resolver.ErrNoName), IsTemporary: errors.Is(err, resolver.ErrTemporary),
	}
}
