package dnswatch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Limits of an evaluation (RFC 7208, 4.6.4).
const (
	spfLookups = 10
	spfVoids   = 2
	spfMXHosts = 10
	spfVersion = "v=spf1"
	maxSPF     = 64 << 10 // octets of a record that are read
	maxTerms   = 1000     // of a record and all that it includes
)

// spfTerm is a mechanism or a modifier.
type spfTerm struct {
	text      string // as written, in lower case
	qualifier byte   // + - ~ ?; 0: it is a modifier
	name      string // include, a, mx, ...
	arg       string // behind : or =, without a prefix length
	cidr4     int    // -1: none
	cidr6     int
}

// parseSPF reads a record (RFC 7208, 4.6.1 and 12). An error says what a receiver would call a permerror.
func parseSPF(text string) ([]spfTerm, error) {
	if len(text) > maxSPF {
		return nil, fmt.Errorf("the record has %d octets", len(text))
	}
	fields := strings.Fields(text)
	if len(fields) == 0 || !strings.EqualFold(fields[0], spfVersion) {
		return nil, errors.New("it does not begin with " + spfVersion)
	}
	var out []spfTerm
	var errs []error
	for _, f := range fields[1:] {
		t, err := parseTerm(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, t)
	}
	return out, errors.Join(errs...)
}

var spfMechanisms = []string{"all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists"}

func parseTerm(text string) (spfTerm, error) {
	t := spfTerm{text: strings.ToLower(text), cidr4: -1, cidr6: -1}
	rest := text
	if name, arg, ok := strings.Cut(rest, "="); ok && !strings.ContainsAny(name, ":/") {
		t.name, t.arg = strings.ToLower(name), arg
		if t.name == "" || (t.name == "redirect" && arg == "") {
			return t, fmt.Errorf("%q is no modifier", cut(text))
		}
		return t, nil
	}
	t.qualifier = '+'
	if strings.ContainsAny(rest[:1], "+-~?") {
		t.qualifier, rest = rest[0], rest[1:]
	}
	name, arg, colon := strings.Cut(rest, ":")
	if !colon {
		name, arg, _ = strings.Cut(rest, "/")
		if name != rest {
			arg = "/" + arg
		}
	}
	t.name = strings.ToLower(name)
	if !slices.Contains(spfMechanisms, t.name) {
		return t, fmt.Errorf("%q is no mechanism", cut(text))
	}
	switch {
	case (t.name == "include" || t.name == "exists" || t.name == "ip4" || t.name == "ip6") && arg == "",
		t.name == "all" && rest != name:
		return t, fmt.Errorf("%q is not complete", cut(text))
	}
	return t, t.split(arg)
}

// split takes the prefix lengths off an argument.
func (t *spfTerm) split(arg string) error {
	switch t.name {
	case "ip4", "ip6":
		t.arg = arg
		_, err := t.network()
		return err
	case "a", "mx":
	default:
		t.arg = arg
		return nil
	}
	host, lengths, ok := strings.Cut(arg, "/")
	t.arg = host
	if !ok {
		return nil
	}
	four, six, both := strings.Cut(lengths, "//")
	if strings.HasPrefix(lengths, "/") {
		four, six, both = "", lengths[1:], true
	}
	var err4, err6 error
	if four != "" {
		t.cidr4, err4 = strconv.Atoi(four)
	}
	if both {
		t.cidr6, err6 = strconv.Atoi(six)
	}
	if err := errors.Join(err4, err6); err != nil || t.cidr4 > 32 || t.cidr6 > 128 || t.cidr4 < -1 || t.cidr6 < -1 {
		return fmt.Errorf("%q has no valid prefix length", cut(t.text))
	}
	return nil
}

func (t *spfTerm) network() (netip.Prefix, error) {
	text := t.arg
	if !strings.Contains(text, "/") {
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.Is4() != (t.name == "ip4") || ip.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no address", cut(t.text))
		}
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4() != (t.name == "ip4") {
		return netip.Prefix{}, fmt.Errorf("%q is no network", cut(t.text))
	}
	return p.Masked(), nil
}

// spfResult is what a record means when all that it includes is followed.
type spfResult struct {
	lookups, voids int
	terms          []string // of the record and all that it includes, in lower case
	nets           []netip.Prefix
	problems       []string
	all            byte // qualifier of the record's own all; 0: none
}

// permits tells whether an address passes.
func (s *spfResult) permits(ip netip.Addr) bool {
	return s.all == '+' || slices.ContainsFunc(s.nets, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// spfWalk follows records.
type spfWalk struct {
	l    *lookups
	res  spfResult
	path []string // domains that are being evaluated
}

// walkSPF evaluates the record of a domain as far as that can be done without a sender.
func walkSPF(ctx context.Context, l *lookups, domain, record string) spfResult {
	w := &spfWalk{l: l}
	w.record(ctx, dns.CanonicalName(domain), record)
	return w.res
}

func (w *spfWalk) fail(format string, args ...any) {
	if len(w.res.problems) < 20 {
		w.res.problems = append(w.res.problems, fmt.Sprintf(format, args...))
	}
}

func (w *spfWalk) record(ctx context.Context, domain, text string) {
	terms, err := parseSPF(text)
	if err != nil {
		w.fail("%s: %s", bare(domain), strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	w.path = append(w.path, domain)
	defer func() { w.path = w.path[:len(w.path)-1] }()
	redirect, all := "", false
	for _, t := range terms {
		if len(w.res.terms) == maxTerms {
			w.fail("more than %d terms", maxTerms)
			return
		}
		w.res.terms = append(w.res.terms, strings.TrimPrefix(t.text, "+"))
		switch {
		case t.name == "redirect" && t.qualifier == 0:
			redirect = t.arg
		case t.name == "all":
			all = true
			if len(w.path) == 1 {
				w.res.all = t.qualifier
			}
		case t.qualifier != 0:
			w.mechanism(ctx, domain, t)
		}
	}
	if redirect != "" && !all {
		w.follow(ctx, redirect, "redirect")
	}
}

// lookup counts a term that asks the DNS, and says whether it may still be followed.
func (w *spfWalk) lookup() bool {
	w.res.lookups++
	return w.res.lookups <= 3*spfLookups // beyond the limit by far: nobody needs the exact number
}

func (w *spfWalk) mechanism(ctx context.Context, domain string, t spfTerm) {
	name := t.arg
	if name == "" {
		name = domain
	}
	switch t.name {
	case "ip4", "ip6":
		if p, err := t.network(); err == nil && t.qualifier == '+' {
			w.res.nets = append(w.res.nets, p)
		}
	case "include":
		w.follow(ctx, t.arg, "include")
	case "a":
		if w.lookup() && !strings.Contains(name, "%") {
			w.hosts(ctx, t, []string{name}, true)
		}
	case "mx":
		if w.lookup() && !strings.Contains(name, "%") {
			w.mx(ctx, t, name)
		}
	case "exists", "ptr":
		w.lookup()
	}
}

func (w *spfWalk) void(name string) {
	w.res.voids++
	if w.res.voids > spfVoids {
		w.fail("%s: more than %d names that have no such record (RFC 7208, 4.6.4)", bare(name), spfVoids)
	}
}

func (w *spfWalk) mx(ctx context.Context, t spfTerm, name string) {
	v := w.l.look(ctx, name, dns.TypeMX)
	if v.known() && len(v.records()) == 0 {
		w.void(name)
	}
	var hosts []string
	for _, rr := range v.records() {
		hosts = append(hosts, rr.(*dns.MX).Mx)
	}
	if len(hosts) > spfMXHosts {
		w.fail("%s: mx stands for %d hosts, and %d are allowed (RFC 7208, 4.6.4)", bare(name), len(hosts), spfMXHosts)
		hosts = hosts[:spfMXHosts]
	}
	w.hosts(ctx, t, hosts, false)
}

// hosts adds the networks of hosts.
func (w *spfWalk) hosts(ctx context.Context, t spfTerm, hosts []string, count bool) {
	for _, h := range hosts {
		v := w.l.addresses(ctx, h)
		if count && v.known() && len(v.addrs) == 0 {
			w.void(h)
		}
		for _, ip := range v.addrs {
			bits := t.cidr6
			if ip.Is4() {
				bits = t.cidr4
			}
			if bits < 0 {
				bits = ip.BitLen()
			}
			if p, err := ip.Prefix(bits); err == nil && t.qualifier == '+' {
				w.res.nets = append(w.res.nets, p)
			}
		}
	}
}

// follow evaluates the record of another domain.
func (w *spfWalk) follow(ctx context.Context, name, how string) {
	if !w.lookup() || strings.Contains(name, "%") {
		return
	}
	domain := dns.CanonicalName(name)
	if slices.Contains(w.path, domain) {
		w.fail("%s %s: it includes itself", how, bare(domain))
		return
	}
	v := w.l.look(ctx, domain, dns.TypeTXT)
	if !v.known() {
		w.fail("%s %s: nobody answers", how, bare(domain))
		return
	}
	switch records := v.texts(spfVersion); len(records) {
	case 0:
		if len(v.records()) == 0 {
			w.res.voids++
		}
		w.fail("%s %s: it has no SPF record", how, bare(domain))
	case 1:
		w.record(ctx, domain, records[0])
	default:
		w.fail("%s %s: it has %d SPF records", how, bare(domain), len(records))
	}
}
