package authn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"

	"crossfade/mail"
	"crossfade/relay/resolver"

	"golang.org/x/net/publicsuffix"
)

// verdict is what the records say of one domain that a message may be from.
type verdict struct {
	domain string
	org    string
	owner  string // whose record it is; empty: there is none
	record Record
	policy DMARCPolicy // of the record for this domain
	result Result      // None, TempError or PermError: why there is no policy; empty: there is one
	reason string
}

// orgDomain is the organisational domain (RFC 7489, 3.2): one label below the public suffix.
func orgDomain(domain string) string {
	org, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		return domain // it is a public suffix itself, or no domain
	}
	return org
}

// discoverAll finds the policies of the domains that a message may be from, at the same time.
func (c *Checker) discoverAll(ctx context.Context, domains []string) []verdict {
	out := make([]verdict, len(domains))
	if len(domains) == 1 {
		out[0] = c.discover(ctx, domains[0])
		return out
	}
	done := make(chan struct{})
	for i, d := range domains {
		go func() {
			out[i] = c.discover(ctx, d)
			done <- struct{}{}
		}()
	}
	for range domains {
		<-done
	}
	return out
}

// discover finds the policy of a domain (RFC 7489, 6.6.3).
func (c *Checker) discover(ctx context.Context, domain string) verdict {
	v := verdict{domain: domain, org: orgDomain(domain), result: None}
	for _, owner := range []string{domain, v.org} {
		c.readPolicy(ctx, &v, owner)
		if v.result != None || domain == v.org {
			break
		}
	}
	if v.result != "" {
		return v
	}
	v.policy = v.record.Policy
	if v.owner != domain {
		v.policy = cmp.Or(v.record.Subdomain, v.record.Policy)
		if np := v.record.Missing; np != "" && np != v.policy {
			// A name that does not exist has nothing, whatever is asked for (RFC 8020).
			if _, err := c.cfg.Resolver.LookupA(ctx, domain); errors.Is(err, resolver.ErrNoName) {
				v.policy = np
			}
		}
	}
	return v
}

// readPolicy looks for the record of owner.
func (c *Checker) readPolicy(ctx context.Context, v *verdict, owner string) {
	a, err := c.cfg.Resolver.LookupTXT(ctx, "_dmarc."+owner)
	var records []string
	for _, txt := range a.Records {
		if isDMARC(txt) {
			records = append(records, txt)
		}
	}
	switch {
	case errors.Is(err, resolver.ErrTemporary):
		v.result, v.reason = TempError, "the policy could not be looked up"
	case errors.Is(err, resolver.ErrPermanent):
		v.result, v.reason = PermError, "the answer with the policy is of no use"
	case err != nil || len(records) == 0:
	case len(records) > 1:
		v.result, v.reason = PermError, fmt.Sprintf("there are %d DMARC records", len(records))
	default:
		if v.record, err = ParseRecord(records[0]); err != nil {
			v.result, v.reason = PermError, "the DMARC record is of no use: "+err.Error()
			return
		}
		v.owner, v.result = owner, ""
	}
}

// judge concludes DMARC from the other results. Only a message with one author can pass.
func (k *Check) judge(r *Report) {
	d := &r.DMARC
	if k.author.wrong != "" {
		d.Result, d.Reason = PermError, k.author.wrong
		return
	}
	v := k.verdicts[0]
	d.Author, d.PolicyDomain, d.Record, d.Policy = v.domain, v.owner, v.record, v.policy
	d.Result, d.Reason = v.result, v.reason
	if v.result == "" {
		d.Result = v.evaluate(r)
	}
	if d.Result == TempError && d.Reason == "" {
		d.Reason = "an answer from the DNS is missing that could have let it pass"
	}
}

// evaluate tells whether SPF or a signature vouches for the domain: pass, fail, or temperror when that could still be.
func (v *verdict) evaluate(r *Report) Result {
	res := Fail
	consider := func(one Result, domain string, strict bool) {
		switch {
		case one == TempError && domain == "" && res == Fail: // of any domain
			res = TempError
		case !v.aligned(domain, strict):
		case one == Pass:
			res = Pass
		case one == TempError && res == Fail:
			res = TempError
		}
	}
	consider(r.SPF.Result, r.SPF.Domain, v.record.StrictSPF)
	for _, d := range r.DKIM {
		consider(d.Result, d.Domain, v.record.StrictDKIM)
	}
	return res
}

// skipped tells whether a signature that could have let the message pass was not
// verified because of our own bounds. Then it may be a good one, and is not
// refused; nor does it pass, for strangers know the bounds.
func (v *verdict) skipped(r *Report) bool {
	for _, d := range r.DKIM {
		if d.skipped && (d.Domain == "" || v.aligned(d.Domain, v.record.StrictDKIM)) {
			return true
		}
	}
	return false
}

// aligned tells whether an authenticated domain stands for the author's (RFC 7489, 3.1).
func (v *verdict) aligned(domain string, strict bool) bool {
	if domain == "" {
		return false
	}
	if strict {
		return domain == v.domain
	}
	return orgDomain(domain) == v.org
}

// enforce decides what a failed policy does to the message. Of a message that may be from several domains the strictest
// policy counts that it fails (RFC 7489, 6.6.1), and that nobody vouches it should pass.
func (k *Check) enforce(r *Report) {
	r.Disposition = EnforceNone
	if k.c.cfg.Enforce == EnforceNone {
		return
	}
	for _, v := range k.verdicts {
		if v.result != "" || v.evaluate(r) != Fail {
			continue
		}
		what := k.disposition(v)
		if what == EnforceNone {
			continue
		}
		if what == EnforceReject && v.skipped(r) {
			what = EnforceQuarantine
		}
		if by, ok := k.vouched(v.domain); ok {
			r.VouchedBy = by
			continue
		}
		if rank(what) > rank(r.Disposition) {
			r.Disposition, r.Domain = what, v.owner
		}
	}
	if r.Disposition != EnforceNone {
		r.VouchedBy = "" // for another domain that the message may be from
	}
}

func (k *Check) vouched(domain string) (by string, ok bool) {
	if k.m.Vouch == nil {
		return "", false
	}
	return k.m.Vouch(domain)
}

// disposition is what a policy asks for, as far as it is followed. A policy for a part of the messages (pct) counts for
// those that chance, or rather their id, chooses; for the others the next milder one does (RFC 7489, 6.6.4).
func (k *Check) disposition(v verdict) Enforce {
	what := map[DMARCPolicy]Enforce{PolicyQuarantine: EnforceQuarantine, PolicyReject: EnforceReject}[v.policy]
	if chance(k.m.ID) >= v.record.Percent {
		what = map[Enforce]Enforce{EnforceReject: EnforceQuarantine}[what]
	}
	if rank(what) > rank(k.c.cfg.Enforce) {
		what = k.c.cfg.Enforce
	}
	return what
}

func chance(id mail.ID) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return int(h.Sum32() % 100)
}

func rank(e Enforce) int {
	switch e {
	case EnforceReject:
		return 2
	case EnforceQuarantine:
		return 1
	}
	return 0
}

// Refusal is the reply to a message that is rejected; nil for all others.
func (r *Report) Refusal() *mail.Reply {
	if r.Disposition != EnforceReject {
		return nil
	}
	return mail.Replyf(550, mail.Enhanced{5, 7, 1}, "refused by the DMARC policy of %s: neither SPF nor an intact DKIM signature of that domain vouches for this message", r.Domain)
}
