package dnswatch

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Limits of patience.
const (
	// queueTime is how long senders keep what they could not deliver (RFC 5321, 4.5.4.1).
	queueTime = 5 * 24 * time.Hour
	// unseenTTL is what is waited for an old record that was never seen, because watching began after it had gone: a
	// day is the TTL of most zones.
	unseenTTL = 24 * time.Hour
	// silence is how long the window is kept open when no name server answers at all, in time in which they are asked.
	silence = maxTTL
	// unseenPolicy is the max_age that is supposed of a policy that could not be read.
	unseenPolicy = 7 * 24 * time.Hour
)

// What a [Line] is about.
const (
	LineDNS    = "dns"     // the old MX and address records in caches
	LinePolicy = "mta-sts" // policies that senders keep
	LineQueues = "queues"  // what senders have in their queues
)

// Status is what is known of the old records.
type Status struct {
	Watching   bool             `json:"watching" doc:"The relay looks at the records by itself (dns.watch)."`
	Text       string           `json:"text" doc:"May the window close, or why not, in one sentence."`
	MayClose   bool             `json:"may_close" doc:"As far as the DNS says: nobody can know the old records any more."`
	Closes     time.Time        `json:"closes,omitzero" doc:"When it may close, as things are; absent when that cannot be said."`
	Objections []string         `json:"objections,omitempty" doc:"What is against closing it."`
	Phase      Phase            `json:"phase,omitempty" doc:"By where the MX records lead."`
	Lines      []Line           `json:"lines,omitempty" doc:"What has to run out, by domain."`
	Error      string           `json:"error,omitempty" doc:"Of the last look."`
	Servers    []ServerStatus   `json:"servers,omitempty" doc:"How the servers did at the last look."`
	State      *State           `json:"state,omitempty" doc:"What was seen."`
	Stragglers []StragglerCount `json:"stragglers,omitempty" doc:"Mail that still came to the old side, by day and source."`
	Report     *Report          `json:"report,omitempty" doc:"The last whole check, which is made every hour."`
}

// Line is one thing that has to run out before the window may close.
type Line struct {
	Domain string    `json:"domain,omitempty"`
	What   string    `json:"what" doc:"dns (records in caches), mta-sts (policies that senders keep) or queues (5 days of senders' queues)."`
	Until  time.Time `json:"until,omitzero" doc:"Absent while it goes on."`
	Text   string    `json:"text"`
}

// ServerStatus is how a name server did at the last look.
type ServerStatus struct {
	Name          string `json:"name"`
	Authoritative bool   `json:"authoritative,omitempty"`
	Answered      int    `json:"answered"`
	Failed        int    `json:"failed,omitempty"`
	Problem       string `json:"problem,omitempty"`
}

// MayClose is nil when nobody can know the old records any more. Otherwise the error says what is waited for.
//
// It asks nobody: it goes by what Run has seen. When no name server answers it objects for a week at most, the longest
// that a cache keeps anything: an operator's broken resolver must not keep windows open for ever.
func (w *Watch) MayClose(context.Context) error {
	st := w.status()
	if st.MayClose {
		return nil
	}
	return fmt.Errorf("the DNS window is open: %s", st.Text)
}

// Status tells what is known, with the stragglers.
func (w *Watch) Status(ctx context.Context) (Status, error) {
	st := w.status()
	if w.cfg.Stragglers == nil {
		return st, nil
	}
	counts, err := w.cfg.Stragglers.Stragglers(ctx, w.now().AddDate(0, 0, -stragglerDays))
	if err != nil {
		return st, fmt.Errorf("counting the stragglers: %w", err)
	}
	st.Stragglers = counts
	return st, nil
}

func (w *Watch) status() Status {
	w.mu.Lock()
	state, now := w.state, w.now()
	st := Status{Watching: true, Servers: w.servers, State: state, Report: w.report}
	if w.err != nil {
		st.Error = w.err.Error()
	}
	w.mu.Unlock()
	if state == nil {
		st.Text = "nothing has been looked at yet"
		st.Objections = []string{st.Text}
		return st
	}
	st.Phase = w.phaseOf(state)
	for _, d := range w.site.Domains {
		st.Lines = append(st.Lines, w.lines(state, d)...)
	}
	st.judge(state, now)
	return st
}

// judge concludes from the lines.
func (st *Status) judge(state *State, now time.Time) {
	for _, l := range st.Lines {
		switch {
		case l.Until.IsZero():
			st.Objections = append(st.Objections, l.Text)
		case l.Until.After(now):
			st.Objections = append(st.Objections, fmt.Sprintf("%s, until %s", l.Text, moment(l.Until)))
		}
		if l.Until.After(st.Closes) {
			st.Closes = l.Until
		}
	}
	if slices.ContainsFunc(st.Lines, func(l Line) bool { return l.Until.IsZero() }) {
		st.Closes = time.Time{}
	}
	heard := state.LastAnswer
	if heard.IsZero() {
		heard = state.Since
	}
	switch {
	case time.Duration(state.Silent)*time.Second >= silence:
		st.MayClose, st.Closes = true, now
		st.Text = fmt.Sprintf("no name server has answered since %s: nothing is known, and the window is not kept open for it any more", moment(heard))
	case len(st.Objections) > 0:
		st.Text = st.Objections[0]
		if n := len(st.Objections) - 1; n > 0 {
			st.Text += fmt.Sprintf(" (and %d more)", n)
		}
	case state.LastAnswer.IsZero():
		st.Objections = []string{"no name server has answered yet"}
		st.Text = st.Objections[0]
	default:
		st.MayClose = true
		st.Text = "nobody can know the old records any more"
	}
}

// phaseOf tells where the MX records lead now.
func (w *Watch) phaseOf(state *State) Phase {
	leads := map[role]bool{}
	for _, d := range w.site.Domains {
		if set := state.find(ask(d, dns.TypeMX)); set != nil {
			for _, v := range set.Values {
				if v.Gone.IsZero() {
					leads[w.leads(state, d, v.Value)] = true
				}
			}
		}
	}
	switch {
	case leads[roleRelay]:
		return Relay
	case leads[roleNew]:
		return After
	case leads[roleOld] || leads[roleElse]:
		return BeforeRelay
	}
	return ""
}

// mxOf is the host in the value of an MX record.
func mxOf(value string) string {
	_, host, _ := strings.Cut(value, " ")
	return host
}

// lines are what has to run out for one domain.
func (w *Watch) lines(state *State, domain string) []Line {
	name := bare(domain)
	dnsLine := Line{Domain: name, What: LineDNS}
	old, served := w.oldValues(state, domain)
	switch {
	case served != "":
		dnsLine.Text = served
	case len(old) == 0:
		since := state.find(ask(domain, dns.TypeMX)).unknownSince(state.Since)
		dnsLine.Until = since.Add(unseenTTL)
		dnsLine.Text = fmt.Sprintf("the old records of %s were never seen: watching began at %s, and a TTL of a day is supposed", name, moment(since))
	default:
		last := slices.MaxFunc(old, func(a, b goneValue) int { return a.until.Compare(b.until) })
		dnsLine.Until = last.until
		dnsLine.Text = fmt.Sprintf("%q of %s, given until %s with a TTL of %s, may be in caches", last.Value, name, moment(last.given), span(time.Duration(last.TTL)*time.Second))
	}
	out := []Line{dnsLine}
	if l, ok := w.policyLine(state, domain); ok {
		out = append(out, l)
	}
	queues := Line{Domain: name, What: LineQueues, Text: fmt.Sprintf("senders may have mail for %s in their queues that they were to deliver by the old records (5 days)", name)}
	if !dnsLine.Until.IsZero() {
		queues.Until = dnsLine.Until.Add(queueTime)
	}
	return append(out, queues)
}

// goneValue is an old record that is given out no more. It was until given, or may have been, while nobody looked; until
// is when no cache has it.
type goneValue struct {
	*ValueSeen
	given, until time.Time
}

// oldValues gives the old records of a domain that are gone, and says which is still given out.
func (w *Watch) oldValues(state *State, domain string) (gone []goneValue, served string) {
	note := func(set *Set, v *ValueSeen) {
		if !v.Gone.IsZero() {
			x := goneValue{v, v.Gone, v.Cached()}
			if since := set.unknownSince(state.Since); since.After(v.Gone) {
				x.given, x.until = since, later(x.until, since.Add(time.Duration(v.TTL)*time.Second))
			}
			gone = append(gone, x)
			return
		}
		served = fmt.Sprintf("%s %s %s is still given out by %s", set.Name, set.Type, v.Value, list(v.By))
	}
	if set := state.find(ask(domain, dns.TypeMX)); set != nil {
		for _, v := range set.Values {
			if r := w.leads(state, domain, v.Value); r == roleOld || r == roleElse {
				note(set, v)
			}
		}
	}
	hosts := w.site.RelayMX
	if w.implicit(state, domain) {
		hosts = append(slices.Clone(hosts), domain)
	}
	for _, host := range hosts {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
			set := state.find(ask(host, typ))
			if set == nil {
				continue
			}
			for _, v := range set.Values {
				if !w.relayAddress(state, host, v) {
					note(set, v)
				}
			}
		}
	}
	return gone, served
}

// roleNobody is that of a domain which takes no mail: a null MX (RFC 7505), or neither an MX nor an address.
const roleNobody role = "nobody"

// leads tells where the value of an MX set leads. Without a record mail goes to the addresses of the domain itself
// (RFC 5321, 5.1).
func (w *Watch) leads(state *State, domain, value string) role {
	if value != noRecord {
		if host := mxOf(value); host != "." {
			return w.site.role(host)
		}
		return roleNobody
	}
	to := roleNobody
	for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
		set := state.find(ask(domain, typ))
		if set == nil || set.Looked.IsZero() {
			return roleElse // not known
		}
		for _, v := range set.Values {
			switch {
			case w.relayAddress(state, domain, v):
				if to == roleNobody && v.Gone.IsZero() {
					to = roleRelay
				}
			case v.Gone.IsZero():
				to = roleElse
			}
		}
	}
	return to
}

// implicit tells whether mail for a domain goes to its own addresses, and they lead to the relay by now.
func (w *Watch) implicit(state *State, domain string) bool {
	set := state.find(ask(domain, dns.TypeMX))
	return set.has(noRecord) && w.leads(state, domain, noRecord) == roleRelay
}

// has tells whether a value is given out.
func (s *Set) has(value string) bool {
	return s != nil && slices.ContainsFunc(s.Values, func(v *ValueSeen) bool { return v.Value == value && v.Gone.IsZero() })
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// relayAddress tells whether an address of an MX host of ours, or of a domain without an MX, is the relay's: one that the
// configuration names, or without that one that the zone gives now to an MX host of ours.
func (w *Watch) relayAddress(state *State, host string, v *ValueSeen) bool {
	if len(w.site.RelayAddrs) > 0 {
		return slices.ContainsFunc(w.site.RelayAddrs, func(ip netip.Addr) bool { return ip.String() == v.Value })
	}
	if slices.Contains(w.site.RelayMX, host) {
		return v.Gone.IsZero()
	}
	return slices.ContainsFunc(w.site.RelayMX, func(mx string) bool {
		return state.find(ask(mx, dns.TypeA)).has(v.Value) || state.find(ask(mx, dns.TypeAAAA)).has(v.Value)
	})
}

// policyLine: a policy that keeps senders away from the hosts of now.
func (w *Watch) policyLine(state *State, domain string) (Line, bool) {
	var hosts []string
	if set := state.find(ask(domain, dns.TypeMX)); set != nil {
		for _, v := range set.Values {
			if r := w.site.role(mxOf(v.Value)); v.Gone.IsZero() && (r == roleRelay || r == roleNew) {
				hosts = append(hosts, mxOf(v.Value))
			}
		}
	}
	if w.implicit(state, domain) {
		hosts = append(hosts, domain)
	}
	l := Line{Domain: bare(domain), What: LinePolicy}
	if d := state.doubt(domain); d != nil {
		l.Text = fmt.Sprintf("the MTA-STS policy of %s cannot be read (%s), and others may be able to: mend that, let this host reach it, or remove _mta-sts.%s", l.Domain, d.Why, l.Domain)
		if !d.Gone {
			return l, true
		}
		l.Until = d.Last.Add(unseenPolicy)
		l.Text = fmt.Sprintf("the MTA-STS policy of %s could not be read while it was published, and a max_age of a week is supposed", l.Domain)
	}
	for _, p := range state.Policies {
		if p.Domain != bare(domain) || p.Mode != "enforce" || len(uncovered(p.policy(), hosts)) == 0 || !p.until().After(l.Until) {
			continue
		}
		l.Until = p.until()
		l.Text = fmt.Sprintf("senders may still keep a policy of %s that does not name %s (seen until %s, max_age %s)", l.Domain, bareList(uncovered(p.policy(), hosts)), moment(p.Last), span(time.Duration(p.MaxAge)*time.Second))
	}
	return l, !l.Until.IsZero()
}

// Off is the status of a relay that does not watch the DNS.
func Off() Status {
	return Status{MayClose: true, Text: "the DNS is not watched: set dns.watch to true, or see to it yourself that no cache has the old records any more"}
}
