package dnswatch

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSilenceUnwatched: a relay that was off for a week heard nobody because it asked nobody, and that its servers do not
// answer it when it begins says nothing.
func TestSilenceUnwatched(t *testing.T) {
	x := newWatched(t, nil)
	x.after(0)
	x.silence()
	x.unwatched(30 * 24 * time.Hour)
	x.open("is still given out")
	x.after(4 * 24 * time.Hour)
	x.open("is still given out")
	x.after(2 * 24 * time.Hour)
	x.closed() // asked for a week, and the first gap counted as a day and a half
}

// TestGoneUnwatched: in a week without a watch the MX may have led to old until the last minute, as it does when a
// relay is broken.
func TestGoneUnwatched(t *testing.T) {
	x := newWatched(t, nil)
	x.after(0)
	x.all(newMX)
	x.after(time.Hour)
	x.after(4 * 24 * time.Hour)
	x.restart()
	x.unwatched(10 * 24 * time.Hour)
	back := x.clock.now()
	x.open("may be in caches")
	if l := x.line(LineDNS); !l.Until.Equal(back.Add(time.Hour)) || !strings.Contains(l.Text, "given until "+moment(back)) {
		t.Errorf("%+v", l)
	}
	x.after(queueTime)
	x.open("in their queues")
	x.after(time.Hour)
	x.closed()
}

// TestNeverSeenUnwatched: so may it where no old record was ever seen.
func TestNeverSeenUnwatched(t *testing.T) {
	x := newWatched(t, nil)
	x.all(newMX)
	x.after(0)
	x.restart()
	x.unwatched(10 * 24 * time.Hour)
	x.open("were never seen")
	x.after(unseenTTL + queueTime)
	x.closed()
}

// TestPolicyUnread: a policy that cannot be fetched is one that others may be able to fetch.
func TestPolicyUnread(t *testing.T) {
	now := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	old := Policy{Mode: "enforce", MaxAge: 24 * time.Hour, MX: []string{"mail.old.test"}}
	x := newWatched(t, nil)
	state := &State{Since: now}
	state.set("one.test.", ask("one.test", 15)).value("10 mx.one.test.", now)
	state.doubtPolicy("one.test.", "it answers 404", now)
	if l, ok := x.w.policyLine(state, "one.test."); !ok || !l.Until.IsZero() || !strings.Contains(l.Text, "cannot be read (it answers 404)") {
		t.Errorf("%+v, %t", l, ok)
	}
	state.noPolicy("one.test.", now.Add(time.Hour))
	if l, ok := x.w.policyLine(state, "one.test."); !ok || !l.Until.Equal(now.Add(unseenPolicy)) {
		t.Errorf("the record is gone: %+v, %t", l, ok)
	}
	state.noPolicy("one.test.", now.Add(unseenPolicy))
	if l, ok := x.w.policyLine(state, "one.test."); ok {
		t.Errorf("a week after: %+v", l)
	}
	// Read, then unreadable for three days, then gone: senders got it until then.
	state.sawPolicy("one.test.", old, now)
	last := now.Add(72 * time.Hour)
	state.doubtPolicy("one.test.", "no route", last)
	if l, ok := x.w.policyLine(state, "one.test."); !ok || !l.Until.IsZero() {
		t.Errorf("%+v, %t", l, ok)
	}
	good := Policy{Mode: "enforce", MaxAge: time.Hour, MX: []string{"mx.one.test"}}
	state.sawPolicy("one.test.", good, last.Add(time.Hour))
	if l, ok := x.w.policyLine(state, "one.test."); !ok || !l.Until.Equal(last.Add(25*time.Hour)) {
		t.Errorf("%+v, %t, want until %s", l, ok, last.Add(25*time.Hour))
	}
	state.sawPolicy("one.test.", good, last.Add(2*time.Hour))
	if l, _ := x.w.policyLine(state, "one.test."); !l.Until.Equal(last.Add(25 * time.Hour)) {
		t.Errorf("a policy that is gone grows younger: %+v", l)
	}
}

// TestPolicyTakenBack: a policy that was published for a while, between two times of another one, grows no younger.
func TestPolicyTakenBack(t *testing.T) {
	now := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	good := Policy{Mode: "enforce", MaxAge: time.Hour, MX: []string{"mx.one.test"}}
	old := Policy{Mode: "enforce", MaxAge: 24 * time.Hour, MX: []string{"mail.old.test"}}
	x := newWatched(t, nil)
	state := &State{Since: now}
	state.set("one.test.", ask("one.test", 15)).value("10 mx.one.test.", now)
	for i, p := range []Policy{good, old, good, good, good} {
		state.sawPolicy("one.test.", p, now.Add(time.Duration(i)*time.Hour))
	}
	if l, ok := x.w.policyLine(state, "one.test."); !ok || !l.Until.Equal(now.Add(26*time.Hour)) {
		t.Errorf("%+v, %t, want until %s", l, ok, now.Add(26*time.Hour))
	}
}

// TestPolicyLongerThanADoubt: of a policy that was read, and then not any more, what was read counts.
func TestPolicyLongerThanADoubt(t *testing.T) {
	now := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	x := newWatched(t, nil)
	state := &State{Since: now}
	state.set("one.test.", ask("one.test", 15)).value("10 mx.one.test.", now)
	state.sawPolicy("one.test.", Policy{Mode: "enforce", MaxAge: 30 * 24 * time.Hour, MX: []string{"mail.old.test"}}, now)
	state.doubtPolicy("one.test.", "no route", now.Add(time.Hour))
	state.noPolicy("one.test.", now.Add(2*time.Hour))
	if l, ok := x.w.policyLine(state, "one.test."); !ok || !l.Until.Equal(now.Add(2*time.Hour+30*24*time.Hour)) {
		t.Errorf("%+v, %t", l, ok)
	}
}

// TestPoliciesOfManyDomains: however many domains have one, no policy is forgotten while senders keep it.
func TestPoliciesOfManyDomains(t *testing.T) {
	now := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	state := &State{Since: now}
	for round := range 3 {
		for i := range 100 {
			p := Policy{Mode: "enforce", MaxAge: 24 * time.Hour, MX: []string{"mail.old.test"}}
			if round > 0 {
				p.MX = []string{"mx.one.test"}
			}
			state.sawPolicy(fmt.Sprintf("d%d.test.", i), p, now.Add(time.Duration(round)*time.Hour))
		}
	}
	for i := range 40 {
		state.sawPolicy("d0.test.", Policy{Mode: "enforce", MaxAge: time.Duration(i) * time.Hour}, now.Add(4*time.Hour))
	}
	if n := len(state.Policies); n != 2*99+maxPolicies {
		t.Errorf("%d policies are kept", n)
	}
}

// TestWatchNSD: what real servers say of domains without an MX, with a null MX, and with a policy that nobody can fetch.
func TestWatchNSD(t *testing.T) {
	sts := "mta-sts A 192.0.2.80\n_mta-sts TXT \"v=STSv1; id=1\"\n"
	zones := func() map[string]string {
		return map[string]string{
			"relayed.test": head + "@ A 192.0.2.25\n",
			"web.test":     head + "@ A 198.51.100.80\n",
			"nothing.test": head + "www A 198.51.100.80\n",
			"null.test":    head + "@ MX 0 .\n",
			"sts.test":     head + "@ MX 10 mx.relay.test.\n" + sts,
			"policed.test": head + "@ MX 10 mx.relay.test.\n" + sts,
		}
	}
	w := newWorld(t, zones(), zones(), []string{"mta-sts.sts.test", "mta-sts.policed.test"})
	w.policy("mta-sts.policed.test", "version: STSv1\nmode: enforce\nmx: mx.relay.test\nmax_age: 86400\n")
	r := newResolver(t, func() string { return w.ns1.Addr }, nil)
	for domain, want := range map[string]string{
		"relayed.test": "were never seen", "nothing.test": "were never seen", "null.test": "were never seen", "policed.test": "were never seen",
		"web.test": "web.test MX (none) is still given out by", "sts.test": "the MTA-STS policy of sts.test cannot be read",
	} {
		c := w.checker(t, Site{Domains: []string{domain}, Hostname: "mx.relay.test"}, r.addr)
		x := NewWatch(WatchConfig{Checker: c})
		if err := x.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		st, err := x.Status(t.Context())
		if err != nil || !strings.Contains(strings.Join(st.Objections, "\n"), want) {
			t.Errorf("%s: %q, %v; want %q", domain, st.Objections, err, want)
		}
		if forever := st.Closes.IsZero(); forever != (domain == "web.test" || domain == "sts.test") {
			t.Errorf("%s: closes at %s", domain, st.Closes)
		}
	}
}
