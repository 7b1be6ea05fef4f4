package dnswatch

import (
	"cmp"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// Bounds of what is kept.
const (
	maxValues   = 64 // of one record set
	maxTTLs     = 8
	maxPolicies = 32                  // of one domain
	forgetAfter = 90 * 24 * time.Hour // a value that is gone for so long
)

// State is what a [Watch] has seen so far, as it is kept over a restart. Times are UTC.
type State struct {
	Since      time.Time `json:"since" doc:"The first look."`
	LastRound  time.Time `json:"last_round,omitzero"`
	LastAnswer time.Time `json:"last_answer,omitzero" doc:"When any server answered last."`
	// Silent counts only time in which somebody asked: what a relay that does not run does not hear says nothing.
	Silent   int            `json:"silent_seconds,omitempty" doc:"For how long no server answered, in seconds in which the relay asked."`
	Doubts   []*PolicyDoubt `json:"policy_doubts,omitempty" doc:"Domains whose MTA-STS policy could not be read."`
	Sets     []*Set         `json:"sets,omitempty"`
	Policies []*PolicySeen  `json:"policies,omitempty"`
}

// Set is one record set over time.
type Set struct {
	Domain string `json:"domain,omitempty"`
	Name   string `json:"name"`
	// Looked is the last look at which somebody answered, and Watched the first one of those since when there was one again
	// and again: what was given out before that nobody knows.
	Looked  time.Time    `json:"looked,omitzero"`
	Watched time.Time    `json:"watched,omitzero"`
	Type    string       `json:"type"`
	TTL     int          `json:"ttl,omitempty" doc:"Of the last look, in seconds."`
	TTLs    []*TTLSeen   `json:"ttls,omitempty" doc:"The TTLs that the zone gave, greatest first."`
	Values  []*ValueSeen `json:"values,omitempty"`
}

// TTLSeen is a TTL that a record set had.
type TTLSeen struct {
	Seconds int       `json:"seconds"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

func (t *TTLSeen) ttl() time.Duration { return time.Duration(t.Seconds) * time.Second }

// until is when no cache has it any more.
func (t *TTLSeen) until() time.Time { return t.Last.Add(t.ttl()) }

// ValueSeen is one record over time.
type ValueSeen struct {
	Value string    `json:"value"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	TTL   int       `json:"ttl" doc:"With which the zone gave it last, in seconds; at most 7 days, which no cache keeps anything longer."`
	// Gone is the first look at which no authoritative server gave it any more, nor since; where none of them can be
	// asked, no resolver.
	Gone time.Time `json:"gone,omitzero"`
	// Held is when whoever got it at one of our looks, or from a resolver's cache, will have dropped it.
	Held time.Time `json:"held,omitzero"`
	By   []string  `json:"by,omitempty" doc:"Who gave it last."`
}

// given notes that the zone gave the value. With a new TTL, the one before may have been given until just now.
func (v *ValueSeen) given(ttl time.Duration, now time.Time) {
	v.hold(now.Add(max(ttl, time.Duration(v.TTL)*time.Second)))
	v.TTL = int(ttl.Seconds())
}

// hold notes that somebody has the value until then.
func (v *ValueSeen) hold(until time.Time) {
	if until.After(v.Held) {
		v.Held = until
	}
}

// Cached is when nobody has it in a cache any more; zero while it is given out. A resolver that still gives it a week
// after the zone did does not go by TTLs at all, and is not waited for.
func (v *ValueSeen) Cached() time.Time {
	if v.Gone.IsZero() {
		return time.Time{}
	}
	until := v.Gone.Add(time.Duration(v.TTL) * time.Second)
	if v.Held.After(until) {
		until = v.Held
	}
	if last := v.Gone.Add(maxTTL); until.After(last) {
		until = last
	}
	return until
}

// PolicySeen is an MTA-STS policy over time.
type PolicySeen struct {
	Domain string    `json:"domain"`
	Mode   string    `json:"mode"`
	MaxAge int       `json:"max_age"`
	MX     []string  `json:"mx,omitempty"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
}

func (p *PolicySeen) policy() Policy {
	return Policy{Mode: p.Mode, MaxAge: time.Duration(p.MaxAge) * time.Second, MX: p.MX}
}

// until is when no sender keeps it any more.
func (p *PolicySeen) until() time.Time { return p.Last.Add(time.Duration(p.MaxAge) * time.Second) }

// highest gives the TTL above least that caches go by longest, when that is not over.
func (s *State) highest(name string, typ uint16, now time.Time, least time.Duration) (TTLSeen, bool) {
	var out TTLSeen
	set := s.find(ask(name, typ))
	if set == nil {
		return out, false
	}
	for _, t := range set.TTLs {
		if t.ttl() > least && t.until().After(now) && t.until().After(out.until()) {
			out = *t
		}
	}
	return out, out.Seconds > 0
}

func (s *State) find(q question) *Set {
	for _, set := range s.Sets {
		if set.Name == bare(q.name) && set.Type == dns.TypeToString[q.typ] {
			return set
		}
	}
	return nil
}

func (s *State) set(domain string, q question) *Set {
	if set := s.find(q); set != nil {
		return set
	}
	set := &Set{Domain: bare(domain), Name: bare(q.name), Type: dns.TypeToString[q.typ]}
	s.Sets = append(s.Sets, set)
	slices.SortFunc(s.Sets, func(a, b *Set) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type)) })
	return set
}

// answered notes a look at which somebody answered. before is when somebody answered last, for sets of an earlier version,
// and gap the time without an answer after which nobody knows what was given out meanwhile.
func (s *Set) answered(before, now time.Time, gap time.Duration) {
	if s.Looked.IsZero() && len(s.Values) > 0 {
		s.Looked = before
	}
	if s.Looked.IsZero() || now.Sub(s.Looked) > gap {
		s.Watched = now
	}
	s.Looked = now
}

// unknownSince is since when nobody can have got a record that was not seen: before that there was nobody who looked.
func (s *Set) unknownSince(began time.Time) time.Time {
	if s == nil || s.Watched.Before(began) {
		return began
	}
	return s.Watched
}

// sawTTL notes the TTL of the whole set.
func (s *Set) sawTTL(ttl time.Duration, now time.Time) {
	seconds := int(ttl.Seconds())
	if s.TTL != seconds {
		for _, t := range s.TTLs {
			if t.Seconds == s.TTL {
				t.Last = now // it may have been given until just now
			}
		}
	}
	s.TTL = seconds
	i := slices.IndexFunc(s.TTLs, func(t *TTLSeen) bool { return t.Seconds == seconds })
	if i < 0 {
		i, s.TTLs = len(s.TTLs), append(s.TTLs, &TTLSeen{Seconds: seconds, First: now})
	}
	s.TTLs[i].Last = now
	s.TTLs = slices.DeleteFunc(s.TTLs, func(t *TTLSeen) bool { return t.until().Add(forgetAfter).Before(now) })
	slices.SortFunc(s.TTLs, func(a, b *TTLSeen) int { return b.Seconds - a.Seconds })
	s.TTLs = s.TTLs[:min(len(s.TTLs), maxTTLs)]
}

func (s *Set) value(text string, now time.Time) *ValueSeen {
	for _, v := range s.Values {
		if v.Value == text {
			return v
		}
	}
	v := &ValueSeen{Value: text, First: now}
	s.Values = append(s.Values, v)
	return v
}

// end closes a look: what was not given by those who decide is gone, and what is gone for long is forgotten.
func (s *Set) end(given map[string]bool, now time.Time) {
	for _, v := range s.Values {
		switch {
		case given[v.Value]:
			v.Gone = time.Time{}
		case v.Gone.IsZero():
			v.Gone = now
		}
	}
	s.Values = slices.DeleteFunc(s.Values, func(v *ValueSeen) bool {
		return !v.Gone.IsZero() && v.Last.Add(forgetAfter).Before(now)
	})
	if len(s.Values) > maxValues {
		slices.SortFunc(s.Values, func(a, b *ValueSeen) int { return b.Last.Compare(a.Last) })
		s.Values = s.Values[:maxValues]
	}
	slices.SortFunc(s.Values, func(a, b *ValueSeen) int { return cmp.Compare(a.Value, b.Value) })
}

// sawPolicy notes the policy that a domain publishes now.
func (s *State) sawPolicy(domain string, p Policy, now time.Time) {
	mx := slices.Sorted(slices.Values(p.MX))
	s.Doubts = without(s.Doubts, domain)
	if was := s.latestPolicy(domain); was != nil {
		was.Last = now // another one may have been given until just now
	}
	seen := &PolicySeen{Domain: bare(domain), Mode: p.Mode, MaxAge: int(p.MaxAge.Seconds()), MX: mx, First: now}
	own := 0
	s.Policies = slices.DeleteFunc(slices.Clone(s.Policies), func(x *PolicySeen) bool {
		switch {
		case x.Domain == seen.Domain && x.Mode == p.Mode && x.policy().MaxAge == p.MaxAge && slices.Equal(x.MX, mx):
			seen = x
			return true
		case x.until().Add(forgetAfter).Before(now):
			return true
		case x.Domain == seen.Domain:
			own++
		}
		return false
	})
	if i := slices.IndexFunc(s.Policies, func(x *PolicySeen) bool { return x.Domain == seen.Domain }); i >= 0 && own >= maxPolicies {
		s.Policies = slices.Delete(s.Policies, i, i+1)
	}
	seen.Last = now
	s.Policies = append(s.Policies, seen) // at the end: of those that were seen at one time it is the latest
}

// latestPolicy is the one that was seen last; nil: none was.
func (s *State) latestPolicy(domain string) (latest *PolicySeen) {
	for _, p := range s.Policies {
		if p.Domain == bare(domain) && (latest == nil || !p.Last.Before(latest.Last)) {
			latest = p
		}
	}
	return latest
}

// PolicyDoubt is an MTA-STS policy that could not be read. Others may be able to, so it counts as published.
type PolicyDoubt struct {
	Domain string    `json:"domain"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	Gone   bool      `json:"gone,omitempty" doc:"The domain names no policy any more."`
	Why    string    `json:"why"`
}

// doubtPolicy notes that a domain's policy cannot be read. The last one that could is still given out, for all we know.
func (s *State) doubtPolicy(domain, why string, now time.Time) {
	if was := s.latestPolicy(domain); was != nil {
		was.Last = now
	}
	i := slices.IndexFunc(s.Doubts, func(d *PolicyDoubt) bool { return d.Domain == bare(domain) })
	if i < 0 {
		i, s.Doubts = len(s.Doubts), append(s.Doubts, &PolicyDoubt{Domain: bare(domain), First: now})
	}
	s.Doubts[i].Last, s.Doubts[i].Why, s.Doubts[i].Gone = now, cut(why), false
}

// noPolicy notes that a domain names none. What could not be read before that, senders may keep.
func (s *State) noPolicy(domain string, now time.Time) {
	if s.latestPolicy(domain) != nil {
		doubts := s.Doubts
		s.sawPolicy(domain, Policy{Mode: "none"}, now)
		s.Doubts = doubts
	}
	for _, d := range s.Doubts {
		if d.Domain == bare(domain) {
			d.Gone = true
		}
	}
	if d := s.doubt(domain); d != nil && !d.Last.Add(unseenPolicy).After(now) {
		s.Doubts = without(s.Doubts, domain)
	}
}

// without gives a new list: that of before stays as it is.
func without(doubts []*PolicyDoubt, domain string) (out []*PolicyDoubt) {
	for _, d := range doubts {
		if d.Domain != bare(domain) {
			out = append(out, d)
		}
	}
	return out
}

// doubt gives that about a domain's policy.
func (s *State) doubt(domain string) *PolicyDoubt {
	if i := slices.IndexFunc(s.Doubts, func(d *PolicyDoubt) bool { return d.Domain == bare(domain) }); i >= 0 {
		return s.Doubts[i]
	}
	return nil
}
