package dnswatch

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// weakRSA is what receivers refuse (RFC 8301, 3.2), in bits.
const weakRSA = 1024

// tags reads a list of tag=value (RFC 6376, 3.2); a name that is there twice keeps its first value.
func tags(text string) map[string]string {
	out := map[string]string{}
	for part := range strings.SplitSeq(text, ";") {
		name, value, ok := strings.Cut(part, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if _, twice := out[name]; ok && !twice {
			out[name] = strings.TrimSpace(value)
		}
	}
	return out
}

// dkim looks at the keys that old and new sign with.
func (r *run) dkim(ctx context.Context) {
	for _, s := range r.s.DKIMOld {
		r.selector(ctx, s, roleOld)
	}
	for _, s := range r.s.DKIMNew {
		r.selector(ctx, s, roleNew)
	}
}

func (r *run) selector(ctx context.Context, selector string, of role) {
	name := selector + "._domainkey." + r.domain
	v := r.l.look(ctx, name, dns.TypeTXT)
	f := Finding{Severity: Warn, Check: "dkim-missing", Server: v.by()}
	switch {
	case of == roleOld && r.phase == After:
		f.Severity = Note
		f.Why = "mail that old signed is verified for as long as somebody forwards or archives it"
	case of == roleOld:
		f.Why = "old signs with it for users who are still there: without the key their mail counts as forged where DMARC asks for it"
	case r.phase == BeforeRelay:
		f.Severity = Note
		f.Why = "before the first user moves, new needs a key to sign with"
	default:
		f.Why = "new signs with it: without the key the mail of users who are there counts as forged where DMARC asks for it"
	}
	var keys []string
	for _, rr := range v.records() {
		if t, ok := rr.(*dns.TXT); ok {
			keys = append(keys, strings.Join(t.Txt, ""))
		}
	}
	if !v.known() {
		f.Severity, f.Seen = Note, fmt.Sprintf("%s is not known: %s", bare(name), v.problem())
		r.add(f)
		return
	}
	if len(keys) == 0 {
		f.Seen, f.Change = bare(name)+" has no key", "add what the "+string(of)+" system gives as its key: "+record(name, r.s.TTL, "TXT", `"v=DKIM1; k=rsa; p=..."`)
		if of == roleOld && r.phase == After {
			f = Finding{Severity: OK, Check: "dkim", Seen: bare(name) + " is gone", Server: v.by()}
		}
		r.add(f)
		return
	}
	if problem := keyProblem(keys); problem != "" {
		f.Check, f.Seen, f.Change = "dkim-broken", fmt.Sprintf("%s: %s: %s", bare(name), keys[0], problem), "put the key of the "+string(of)+" system in its place"
		r.add(f)
		return
	}
	if of == roleOld && r.phase == After {
		f.Check, f.Seen = "dkim-old", bare(name)+" is still there"
		f.Change = "remove it some weeks after the last mail from old, and destroy its private key"
		r.add(f)
		return
	}
	r.add(Finding{Severity: OK, Check: "dkim", Seen: bare(name) + " has a key", Server: v.by()})
}

// keyProblem says what is wrong with a DKIM key record (RFC 6376, 3.6.1), or "".
func keyProblem(records []string) string {
	if len(records) > 1 {
		return fmt.Sprintf("%d records where one is allowed", len(records))
	}
	t := tags(records[0])
	if v, ok := t["v"]; ok && v != "DKIM1" {
		return "its version is not DKIM1"
	}
	p, ok := t["p"]
	switch {
	case !ok:
		return "it has no p= and is no key"
	case p == "":
		return "the key is revoked (p= is empty)"
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(p), ""))
	if err != nil {
		return "its p= is no base64"
	}
	if k := t["k"]; k != "" && k != "rsa" {
		return ""
	}
	key, err := x509.ParsePKIXPublicKey(raw)
	if err != nil {
		return "its p= is no RSA key"
	}
	if k, ok := key.(*rsa.PublicKey); ok && k.N.BitLen() < weakRSA {
		return fmt.Sprintf("its key has %d bits, and receivers refuse those below %d", k.N.BitLen(), weakRSA)
	}
	return ""
}

// dmarc tells whether the domain asks receivers to act on SPF and DKIM that fail.
func (r *run) dmarc(ctx context.Context) (enforced bool) {
	name := "_dmarc." + r.domain
	v := r.l.look(ctx, name, dns.TypeTXT)
	records := v.texts("v=DMARC1")
	f := Finding{Severity: Note, Check: "dmarc", Server: v.by()}
	switch {
	case !v.known():
		f.Seen = bare(name) + " is not known: " + v.problem()
	case len(records) == 0:
		f.Check, f.Seen, f.Why = "dmarc-missing", bare(name)+" has no DMARC record", "nobody reports where mail of yours fails SPF and DKIM: after a change of the sending system that is the first sign"
		f.Change = "add: " + record(name, r.s.TTL, "TXT", `"v=DMARC1; p=none; rua=mailto:postmaster@`+bare(r.domain)+`"`)
	case len(records) > 1:
		f.Severity, f.Check, f.Seen = Warn, "dmarc-broken", strings.Join(records, "  and  ")
		f.Why, f.Change = "of two records none counts (RFC 7489, 6.6.3)", "leave one of them"
	default:
		p := strings.ToLower(tags(records[0])["p"])
		switch p {
		case "quarantine", "reject":
			f.Severity, f.Seen, enforced = OK, records[0], true
		case "none":
			f.Severity, f.Seen = OK, records[0]
		default:
			f.Severity, f.Check, f.Seen = Warn, "dmarc-broken", records[0]
			f.Why, f.Change = "its p= is none of none, quarantine and reject: receivers pass over it", "write p=none to begin with"
		}
	}
	r.add(f)
	return enforced
}

// tlsReports: where senders report that TLS or a policy failed (RFC 8460).
func (r *run) tlsReports(ctx context.Context) {
	name := "_smtp._tls." + r.domain
	v := r.l.look(ctx, name, dns.TypeTXT)
	records := v.texts("v=TLSRPTv1")
	f := Finding{Severity: Note, Check: "tls-rpt", Server: v.by()}
	switch {
	case !v.known():
		f.Seen = bare(name) + " is not known: " + v.problem()
	case len(records) == 0:
		f.Check, f.Seen, f.Why = "tls-rpt-missing", bare(name)+" has no record", "senders that refuse to deliver because of MTA-STS or DANE tell nobody"
		f.Change = "add: " + record(name, r.s.TTL, "TXT", `"v=TLSRPTv1; rua=mailto:postmaster@`+bare(r.domain)+`"`)
	case len(records) > 1 || !validRUA(tags(records[0])["rua"]):
		f.Severity, f.Check, f.Seen = Warn, "tls-rpt-broken", strings.Join(records, "  and  ")
		f.Why, f.Change = "senders pass over it (RFC 8460, 3)", "leave one record, with rua=mailto:... or rua=https://..."
	default:
		f.Severity, f.Seen = OK, records[0]
	}
	r.add(f)
}

func validRUA(rua string) bool {
	for u := range strings.SplitSeq(rua, ",") {
		u = strings.ToLower(strings.TrimSpace(u))
		if !strings.HasPrefix(u, "mailto:") && !strings.HasPrefix(u, "https://") {
			return false
		}
	}
	return true
}
