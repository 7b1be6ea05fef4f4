package dnswatch

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	smtpTime  = 20 * time.Second // for greeting, EHLO, STARTTLS and the handshake
	maxReply  = 100              // lines of one reply
	maxSMTP   = 64 << 10         // octets before TLS
	daneEE    = 3                // the certificate itself (RFC 7672, 3.1.1)
	daneTA    = 2                // an authority of its chain (RFC 7672, 3.1.2)
	daneHosts = 20               // connections of one check
)

// dane compares the TLSA records of the hosts that mail goes to, now and next, with the certificates on port 25.
func (r *run) dane(ctx context.Context, hosts []mxHost) {
	var names []string
	for _, h := range hosts {
		names = append(names, h.host)
	}
	switch r.phase {
	case BeforeRelay, Relay:
		names = append(names, r.s.RelayMX...)
	case BeforeNew:
		names = append(names, slices.Concat(r.s.RelayMX, r.s.NewMX)...)
	case After:
		names = append(names, r.s.NewMX...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, host := range names[:min(len(names), daneHosts)] {
		if _, is := literal(host); host != "." && !is {
			r.daneHost(ctx, host)
		}
	}
}

func (r *run) daneHost(ctx context.Context, host string) {
	name := "_25._tcp." + host
	v := r.l.look(ctx, name, dns.TypeTLSA)
	var all, usable []*dns.TLSA
	for _, rr := range v.records() {
		if t, ok := rr.(*dns.TLSA); ok {
			all = append(all, t)
			if t.Usage == daneEE || t.Usage == daneTA {
				usable = append(usable, t)
			}
		}
	}
	f := Finding{Check: "dane", Server: v.by()}
	switch {
	case len(all) == 0:
		return // no host of today needs it
	case len(usable) == 0:
		f.Severity, f.Seen = Warn, line(all[0])
		f.Why, f.Change = "the usages 0 and 1 count for nothing in SMTP (RFC 7672, 3.1.3)", "replace it by usage 3"
		r.add(f)
		return
	}
	f.Seen = line(usable[0])
	for _, ip := range r.daneAddresses(ctx, host) {
		chain, err := r.c.certificates(ctx, netip.AddrPortFrom(ip, 25).String(), host)
		if err != nil {
			f.Severity, f.Check, f.Seen = Warn, "dane-unreachable", fmt.Sprintf("%s; %s: %v", line(usable[0]), ip, err)
			f.Why, f.Change = "senders that use DANE deliver over TLS only, with a certificate that fits: whether there is one is not known from here", "look from a machine that may connect to port 25"
			r.add(f)
			continue
		}
		if matches(usable, chain) {
			g := f
			g.Severity, g.Seen = OK, fmt.Sprintf("%s fits the certificate of %s", line(usable[0]), ip)
			r.add(g)
			continue
		}
		r.daneMismatch(f, v, chain[0])
	}
}

// daneAddresses are those of a host that are tried.
func (r *run) daneAddresses(ctx context.Context, host string) []netip.Addr {
	addrs := r.l.addresses(ctx, host).addrs
	if len(addrs) == 0 {
		return nil
	}
	return reachable(addrs)
}

func (r *run) daneMismatch(f Finding, v view, leaf *x509.Certificate) {
	f.Severity, f.Check = Stop, "dane-mismatch"
	f.Seen += fmt.Sprintf("; the certificate on port 25 is %q of %s, valid until %s", leaf.Subject.CommonName, leaf.Issuer.CommonName, moment(leaf.NotAfter))
	f.Why = "senders that use DANE deliver only where a record fits the certificate (RFC 7672): their mail is delayed and returned"
	if !v.best.ad && !v.best.signed {
		f.Severity = Warn
		f.Why += "; the zone does not seem to be signed, and then nobody looks at it"
	}
	t := new(dns.TLSA)
	if err := t.Sign(daneEE, 1, 1, leaf); err == nil {
		f.Change = "add, and wait its TTL before the old one goes: " + record(v.q.name, r.s.TTL, "TLSA", fmt.Sprintf("3 1 1 %s", t.Certificate))
	}
	r.add(f)
}

// matches tells whether a record fits the certificate or, with usage 2, one of its chain.
func matches(records []*dns.TLSA, chain []*x509.Certificate) bool {
	for _, t := range records {
		of := chain[:1]
		if t.Usage == daneTA {
			of = chain
		}
		for _, cert := range of {
			if t.Verify(cert) == nil {
				return true
			}
		}
	}
	return false
}

// certificates gives the chain that a mail server presents behind STARTTLS. It is not verified: DANE compares it.
func (c *Checker) certificates(ctx context.Context, address, host string) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, smtpTime)
	defer cancel()
	conn, err := c.cfg.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if err := startTLS(conn, bare(c.site.Hostname)); err != nil {
		return nil, err
	}
	tc := tls.Client(conn, &tls.Config{ServerName: bare(host), InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	chain := tc.ConnectionState().PeerCertificates
	_, _ = io.WriteString(tc, "QUIT\r\n") // out of courtesy: everything is known
	if len(chain) == 0 {
		return nil, errors.New("TLS: no certificate was shown")
	}
	return chain, nil
}

func startTLS(conn net.Conn, hello string) error {
	br := bufio.NewReader(io.LimitReader(conn, maxSMTP))
	if _, err := reply(br, "220"); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	fmt.Fprintf(conn, "EHLO %s\r\n", hello)
	lines, err := reply(br, "250")
	if err != nil {
		return fmt.Errorf("EHLO: %w", err)
	}
	if !slices.ContainsFunc(lines, func(s string) bool { return strings.EqualFold(strings.TrimSpace(s), "STARTTLS") }) {
		return errors.New("it does not offer STARTTLS")
	}
	fmt.Fprint(conn, "STARTTLS\r\n")
	if _, err := reply(br, "220"); err != nil {
		return fmt.Errorf("STARTTLS: %w", err)
	}
	if br.Buffered() > 0 {
		return errors.New("STARTTLS: text behind the answer")
	}
	return nil
}

// reply reads one reply of SMTP and gives its lines without the code.
func reply(br *bufio.Reader, code string) ([]string, error) {
	var lines []string
	for range maxReply {
		raw, err := br.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		s := strings.TrimRight(string(raw), "\r\n")
		if !strings.HasPrefix(s, code) {
			return nil, fmt.Errorf("it answered %q", cut(s))
		}
		rest := s[len(code):]
		if rest == "" || rest[0] == ' ' {
			return append(lines, strings.TrimPrefix(rest, " ")), nil
		}
		lines = append(lines, rest[1:])
	}
	return nil, fmt.Errorf("its reply has more than %d lines", maxReply)
}
