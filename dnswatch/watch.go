package dnswatch

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Store keeps the state of a [Watch] over a restart. Several nodes may share one.
type Store interface {
	// LoadDNS gives what was saved last; nil when nothing was.
	LoadDNS(ctx context.Context) ([]byte, error)
	SaveDNS(ctx context.Context, state []byte) error
}

// Stragglers tells of mail that still came into mailboxes whose users have left them.
type Stragglers interface {
	// Stragglers counts them by day (UTC) and source, from the day of since on, oldest first.
	Stragglers(ctx context.Context, since time.Time) ([]StragglerCount, error)
}

// StragglerCount is how many messages one source sent to the old side on one day.
type StragglerCount struct {
	Day      string `json:"day" doc:"Such as 2026-11-21, in UTC."`
	Source   string `json:"source" doc:"The host that handed them in, or what else is known of where they came from."`
	Messages int    `json:"messages"`
}

// stragglerDays is how far back stragglers are shown.
const stragglerDays = 14

// WatchConfig is what a [Watch] works with. Checker is required.
type WatchConfig struct {
	Checker    *Checker
	Store      Store         // nil: nothing survives a restart
	Stragglers Stragglers    // nil: nobody counts them
	Interval   time.Duration // between two looks; 0: 5 minutes
	CheckEvery time.Duration // between two whole checks; 0: an hour
}

// Watch looks at the records again and again. Make it with NewWatch; Run works until its context ends, and the other
// methods may be called before and during it.
type Watch struct {
	cfg   WatchConfig
	site  *Site
	log   *slog.Logger
	round sync.Mutex // one look at a time

	mu      sync.Mutex
	state   *State // not changed once it is here
	servers []ServerStatus
	report  *Report
	fetched map[string]fetchedPolicy // by domain
	err     error                    // of the last look
}

// fetchedPolicy is what was read last of a domain's policy.
type fetchedPolicy struct {
	id string
	at time.Time
}

// policyEvery is how often a policy is fetched though its id stays the same.
const policyEvery = time.Hour

// NewWatch makes a watch; nothing is asked yet.
func NewWatch(cfg WatchConfig) *Watch {
	cfg.Interval = cmp.Or(cfg.Interval, 5*time.Minute)
	cfg.CheckEvery = cmp.Or(cfg.CheckEvery, time.Hour)
	return &Watch{cfg: cfg, site: &cfg.Checker.site, log: cfg.Checker.cfg.Log, fetched: map[string]fetchedPolicy{}}
}

func (w *Watch) now() time.Time { return w.cfg.Checker.cfg.Now().UTC().Truncate(time.Second) }

// Run looks at the records until ctx ends. What fails is logged, shown in the status and tried again at the next look.
func (w *Watch) Run(ctx context.Context) error {
	t := time.NewTicker(w.cfg.Interval)
	defer t.Stop()
	var checked time.Time
	for {
		if err := w.Round(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("dns watch: a look at the records failed; it is made again", "err", err, "in", w.cfg.Interval)
		}
		if now := w.now(); now.Sub(checked) >= w.cfg.CheckEvery && ctx.Err() == nil {
			checked = now
			w.check(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// check makes a whole check of the phase that the MX records tell of.
func (w *Watch) check(ctx context.Context) {
	w.mu.Lock()
	past := w.state
	w.mu.Unlock()
	rep, err := w.cfg.Checker.Check(ctx, "", past)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Warn("dns watch: the check failed", "err", err)
		}
		return
	}
	w.mu.Lock()
	before := w.report
	w.report = &rep
	w.mu.Unlock()
	for _, f := range rep.Findings {
		if f.Severity == Stop && (before == nil || !slices.Contains(before.Findings, f)) {
			w.log.Warn("dns watch: mail is lost or refused as the records are: see `crossfade dns check`", "check", f.Check, "domain", f.Domain, "seen", f.Seen)
		}
	}
}

// Round makes one look: it asks every resolver and every authoritative server for what the window depends on, and
// saves what it saw.
func (w *Watch) Round(ctx context.Context) error {
	w.round.Lock()
	defer w.round.Unlock()
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Checker.cfg.Limit)
	defer cancel()
	state, loadErr := w.load(ctx)
	l, err := w.cfg.Checker.lookups(ctx)
	if err == nil {
		w.look(ctx, l, state)
		err = loadErr
	}
	if err == nil {
		err = w.save(ctx, state)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state, w.err = state, err
	if l != nil {
		w.servers = serverStatus(l)
	}
	return err
}

// load gives a copy of the state that may be changed: the store's, which other nodes write to as well, else our own.
func (w *Watch) load(ctx context.Context) (*State, error) {
	var data []byte
	var err error
	if w.cfg.Store != nil {
		if data, err = w.cfg.Store.LoadDNS(ctx); err != nil {
			err = fmt.Errorf("dns watch: reading what was seen before: %w", err)
		}
	}
	if data == nil {
		w.mu.Lock()
		own := w.state
		w.mu.Unlock()
		if own != nil {
			data, _ = json.Marshal(own) // plain data: it cannot fail
		}
	}
	state := &State{}
	if data != nil {
		if bad := json.Unmarshal(data, state); bad != nil {
			w.log.Error("dns watch: what was seen before cannot be read and is begun anew: the old records count as never seen", "err", bad)
			state = &State{}
		}
	}
	if state.Since.IsZero() {
		state.Since = w.now()
	}
	return state, err
}

func (w *Watch) save(ctx context.Context, state *State) error {
	if w.cfg.Store == nil {
		return nil
	}
	data, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("dns watch: encoding what was seen: %w", err)
	}
	if err := w.cfg.Store.SaveDNS(ctx, data); err != nil {
		return fmt.Errorf("dns watch: saving what was seen: %w", err)
	}
	return nil
}

func (w *Watch) look(ctx context.Context, l *lookups, state *State) {
	now := w.now()
	answered := false
	see := func(domain, name string, typ uint16) {
		answered = w.observe(ctx, l, state, state.set(domain, ask(name, typ))) || answered
	}
	for _, d := range w.site.Domains {
		see(d, d, dns.TypeMX)
		see(d, d, dns.TypeTXT)
		w.observePolicy(ctx, l, state, d)
		if state.find(ask(d, dns.TypeMX)).has(noRecord) {
			see(d, d, dns.TypeA) // where its mail goes (RFC 5321, 5.1)
			see(d, d, dns.TypeAAAA)
		}
	}
	for _, host := range w.site.RelayMX {
		see("", host, dns.TypeA)
		see("", host, dns.TypeAAAA)
	}
	if answered {
		state.LastAnswer, state.Silent = now, 0
	} else {
		if !state.LastRound.IsZero() {
			state.Silent += int(max(0, min(now.Sub(state.LastRound), w.gap())).Seconds())
		}
		w.log.Warn("dns watch: no name server answers", "since", state.LastAnswer)
	}
	state.LastRound = now
}

// gap is the longest time between two looks that counts as watched.
func (w *Watch) gap() time.Duration { return max(3*w.cfg.Interval, time.Hour) }

// noRecord is the value of a set that has no record: for an MX, mail goes to the address of the domain itself.
const noRecord = "(none)"

// observe notes what everybody says of one record set, and tells whether anybody said anything.
func (w *Watch) observe(ctx context.Context, l *lookups, state *State, set *Set) bool {
	now := w.now()
	t := l.truth(ctx, set.Name, dns.StringToType[set.Type])
	given, by := map[string]bool{}, map[string][]string{}
	seen := func(a *answer, text string) *ValueSeen {
		v := set.value(text, now)
		v.Last = now
		by[text] = append(by[text], a.server.String())
		return v
	}
	for _, a := range t.source {
		for text, ttl := range valuesOf(a) {
			v := seen(a, text)
			if given[text] = true; !a.server.Authoritative {
				ttl = max(ttl, time.Duration(v.TTL)*time.Second) // what is left of the zone's
			}
			v.given(ttl, now)
		}
		w.noteTTL(set, a, now)
	}
	for _, a := range t.view.answers {
		if !a.ok() || slices.Contains(t.source, a) {
			continue
		}
		for text, ttl := range valuesOf(a) {
			seen(a, text).hold(now.Add(ttl))
		}
	}
	if len(by) == 0 && len(t.source) == 0 {
		return false
	}
	set.answered(state.LastAnswer, now, w.gap())
	for _, v := range set.Values {
		if names := by[v.Value]; names != nil {
			v.By = names
		}
	}
	if len(t.source) > 0 {
		set.end(given, now)
	}
	return true
}

// noteTTL: a resolver's TTL is what is left of the zone's, so only the greatest says something.
func (w *Watch) noteTTL(set *Set, a *answer, now time.Time) {
	ttl := ttlOf(a.records)
	if len(a.records) == 0 {
		return
	}
	if !a.server.Authoritative && len(set.TTLs) > 0 && ttl < set.TTLs[0].ttl() {
		if ttl > w.site.TTL {
			ttl = set.TTLs[0].ttl()
		} else {
			return
		}
	}
	set.sawTTL(ttl, now)
}

// valuesOf gives the values of one answer with their TTLs.
func valuesOf(a *answer) map[string]time.Duration {
	out := map[string]time.Duration{}
	for _, rr := range a.records[:min(len(a.records), maxValues)] {
		out[cut(value(rr))] = lifetime(rr.Header().Ttl)
	}
	if len(out) == 0 && a.q.typ == dns.TypeMX {
		out[noRecord] = 0
		if a.soa != nil {
			out[noRecord] = lifetime(min(a.soa.Minttl, a.soa.Hdr.Ttl)) // RFC 2308, 5
		}
	}
	return out
}

func (w *Watch) observePolicy(ctx context.Context, l *lookups, state *State, domain string) {
	v := l.look(ctx, "_mta-sts."+domain, dns.TypeTXT)
	records, now := v.texts("v=STSv1"), w.now()
	switch {
	case !v.known():
		state.doubtPolicy(domain, v.problem(), now)
		return
	case len(records) != 1: // several are as good as none (RFC 8461, 3.1)
		state.noPolicy(domain, now)
		delete(w.fetched, domain)
		return
	}
	id := tags(records[0])["id"]
	if had := w.fetched[domain]; had.id == id && now.Sub(had.at) < policyEvery {
		if p := state.latestPolicy(domain); p != nil { // it is what it was
			p.Last = now
		}
		return
	}
	p, err := w.cfg.Checker.fetchPolicy(ctx, l, domain)
	if err != nil {
		w.log.Debug("dns watch: the MTA-STS policy cannot be read", "domain", bare(domain), "err", err)
		state.doubtPolicy(domain, fmt.Sprintf("%s: %v", policyURL(domain), err), now)
		return
	}
	state.sawPolicy(domain, p, now)
	w.fetched[domain] = fetchedPolicy{id: id, at: now}
}

// serverStatus tells how the servers of one look did.
func serverStatus(l *lookups) []ServerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []ServerStatus
	for _, st := range l.stats {
		out = append(out, ServerStatus{Name: st.server.String(), Authoritative: st.server.Authoritative, Answered: st.answered, Failed: st.failed, Problem: cut(st.problem)})
	}
	slices.SortFunc(out, func(a, b ServerStatus) int {
		if a.Authoritative != b.Authoritative {
			return cmp.Compare(fmt.Sprint(a.Authoritative), fmt.Sprint(b.Authoritative))
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}
