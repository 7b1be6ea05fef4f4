package dnswatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// memStore keeps a state in memory.
type memStore struct {
	mu             sync.Mutex
	data           []byte
	loadErr, saves error
	saved          int
}

func (m *memStore) LoadDNS(context.Context) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.data), m.loadErr
}

func (m *memStore) SaveDNS(_ context.Context, state []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.saves == nil {
		m.data, m.saved = bytes.Clone(state), m.saved+1
	}
	return m.saves
}

// clock is a time that the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// watched is a watch over zones that a test changes, without a real server: two name servers and two resolvers
// answer from maps.
type watched struct {
	t       *testing.T
	w       *Watch
	clock   *clock
	store   *memStore
	servers map[string]*zoneServer // ns1, ns2, r1, r2
	world   *world
	cfg     Config
	log     bytes.Buffer
}

// zoneServer answers from lines of a zone file.
type zoneServer struct {
	mu     sync.Mutex
	zone   string
	silent bool
	auth   bool
	addr   string
}

func (z *zoneServer) set(zone string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.zone = zone
}

func (z *zoneServer) silence(silent bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.silent = silent
}

func (z *zoneServer) answer(t testing.TB) func(req, resp *dns.Msg, tcp bool) *dns.Msg {
	return func(req, _ *dns.Msg, _ bool) *dns.Msg {
		z.mu.Lock()
		defer z.mu.Unlock()
		if z.silent {
			return nil
		}
		resp := new(dns.Msg)
		resp.SetReply(req)
		resp.Authoritative, resp.RecursionAvailable = z.auth, !z.auth
		p := dns.NewZoneParser(strings.NewReader(z.zone), "one.test.", "")
		for r, ok := p.Next(); ok; r, ok = p.Next() {
			h := r.Header()
			if h.Rrtype == dns.TypeSOA {
				resp.Ns = append(resp.Ns, r)
			}
			if h.Name == req.Question[0].Name && h.Rrtype == req.Question[0].Qtype {
				resp.Answer = append(resp.Answer, r)
			}
		}
		if err := p.Err(); err != nil {
			t.Error(err)
		}
		return resp
	}
}

const watchedHead = `$TTL 300
@ SOA ns1.one.test. h.one.test. 1 3600 600 604800 300
@ NS ns1.one.test.
@ NS ns2.one.test.
ns1 A 192.0.2.53
ns2 A 198.51.100.53
mx 300 A 192.0.2.25
`

const (
	oldMX   = watchedHead + "@ 3600 MX 10 mail.old.test.\n"
	shortMX = watchedHead + "@ 300 MX 10 mail.old.test.\n"
	newMX   = watchedHead + "@ 300 MX 10 mx.one.test.\n"
)

func newWatched(t *testing.T, change func(*Site)) *watched {
	t.Helper()
	x := &watched{t: t, clock: &clock{at: time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)}, store: &memStore{}, servers: map[string]*zoneServer{}}
	x.world = &world{ways: map[string]string{}, policies: map[string]string{}}
	for _, name := range []string{"ns1", "ns2", "r1", "r2"} {
		z := &zoneServer{zone: oldMX, auth: strings.HasPrefix(name, "ns")}
		z.addr = newResolver(t, func() string { return "127.0.0.1:1" }, z.answer(t)).addr
		x.servers[name] = z
	}
	x.world.way(ns1Addr, x.servers["ns1"].addr)
	x.world.way(ns2Addr, x.servers["ns2"].addr)
	site := Site{Domains: []string{"one.test"}, Hostname: "mx.one.test"}
	if change != nil {
		change(&site)
	}
	x.cfg = Config{Site: site, Resolvers: []string{x.servers["r1"].addr, x.servers["r2"].addr}, Dial: x.world.dial, Wait: 300 * time.Millisecond, Now: x.clock.now,
		Log: slog.New(slog.NewTextHandler(&x.log, nil))}
	x.restart()
	return x
}

// restart makes the watch anew, on the store that is there.
func (x *watched) restart() {
	x.t.Helper()
	c, err := NewChecker(x.cfg)
	if err != nil {
		x.t.Fatal(err)
	}
	x.w = NewWatch(WatchConfig{Checker: c, Store: x.store, Interval: 12 * time.Hour})
}

// silence makes a watch of which no server is heard; it does not wait for long.
func (x *watched) silence() {
	x.t.Helper()
	for _, z := range x.servers {
		z.silence(true)
	}
	x.cfg.Wait = 30 * time.Millisecond
	x.restart()
}

func (x *watched) all(zone string) {
	for _, z := range x.servers {
		z.set(zone)
	}
}

// after lets time pass, and looks once a day and at its end.
func (x *watched) after(d time.Duration) {
	x.t.Helper()
	for day := 24 * time.Hour; d > day; d -= day {
		x.unwatched(day)
	}
	x.unwatched(d)
}

// unwatched lets time pass in which nobody looks, and then looks.
func (x *watched) unwatched(d time.Duration) {
	x.t.Helper()
	x.clock.pass(d)
	if err := x.w.Round(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
}

// open wants the window open, for a reason.
func (x *watched) open(reason string) {
	x.t.Helper()
	if err := x.w.MayClose(x.t.Context()); err == nil || !strings.Contains(err.Error(), reason) {
		x.t.Errorf("at %s: want open for %q, it is %v", moment(x.clock.now()), reason, err)
	}
}

func (x *watched) closed() {
	x.t.Helper()
	if err := x.w.MayClose(x.t.Context()); err != nil {
		x.t.Errorf("at %s: %v", moment(x.clock.now()), err)
	}
}

// line gives one of the status.
func (x *watched) line(what string) Line {
	x.t.Helper()
	st, err := x.w.Status(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	for _, l := range st.Lines {
		if l.What == what {
			return l
		}
	}
	return Line{}
}

// TestWindow: an old MX is cached until its TTL after it was gone has run out, and queues last five days more; a
// restart in between changes nothing.
func TestWindow(t *testing.T) {
	x := newWatched(t, nil)
	x.open("nothing has been looked at yet")
	x.after(0)
	x.open("one.test MX 10 mail.old.test. is still given out by")
	if st, _ := x.w.Status(t.Context()); !st.Closes.IsZero() || st.Phase != BeforeRelay {
		t.Errorf("%+v", st)
	}
	x.all(shortMX) // the TTL comes down: it may have been given with the old one until just now
	lowered := x.clock.now().Add(10 * time.Minute)
	x.after(10 * time.Minute)
	rep, err := x.w.cfg.Checker.Check(t.Context(), BeforeRelay, x.w.state)
	f := findings(rep, "ttl-cached")
	if err != nil || len(f) != 1 || f[0].Severity != Warn || !strings.Contains(f[0].Change, moment(lowered.Add(time.Hour))) {
		t.Errorf("%+v, %v", rep.Findings, err)
	}
	x.after(20 * time.Minute)
	x.servers["ns1"].set(newMX)
	x.after(5 * time.Minute)
	x.open("is still given out by ns2.one.test") // a secondary that lags
	x.restart()
	x.open("nothing has been looked at yet")
	x.all(newMX)
	x.after(5 * time.Minute)
	gone := x.clock.now()
	if l := x.line(LineDNS); !l.Until.Equal(lowered.Add(time.Hour)) { // that of the old TTL, longer than that of the new one
		t.Errorf("%+v, want until %s", l, lowered.Add(time.Hour))
	}
	x.after(time.Hour)
	x.open("in their queues")
	if l := x.line(LineQueues); !l.Until.Equal(lowered.Add(time.Hour + queueTime)) {
		t.Errorf("%+v", l)
	}
	x.after(4 * 24 * time.Hour)
	x.open("in their queues")
	x.restart()
	x.after(24 * time.Hour)
	x.closed()
	if st, _ := x.w.Status(t.Context()); st.Phase != Relay || st.Text != "nobody can know the old records any more" || gone.IsZero() {
		t.Errorf("%+v", st)
	}
	// Back again: open again.
	x.all(shortMX)
	x.after(time.Minute)
	x.open("still given out")
}

// TestTTLAfterGone: gone at a look, an old record may have been given until just before it.
func TestTTLAfterGone(t *testing.T) {
	x := newWatched(t, nil)
	x.after(0)
	x.all(newMX)
	x.after(30 * time.Minute) // the look before is half an hour old
	if l, want := x.line(LineDNS), x.clock.now().Add(time.Hour); !l.Until.Equal(want) {
		t.Errorf("%+v, want until %s", l, want)
	}
}

// TestResolverKeepsIt: a resolver that still has the old record keeps the window open by the TTL that it names, and
// no longer than a week.
func TestResolverKeepsIt(t *testing.T) {
	x := newWatched(t, nil)
	x.after(0)
	x.all(newMX)
	x.servers["r2"].set(watchedHead + "@ 86400 MX 10 mail.old.test.\n") // beyond the TTL of the zone
	x.after(time.Minute)
	gone := x.clock.now()
	if l := x.line(LineDNS); !l.Until.Equal(gone.Add(24 * time.Hour)) {
		t.Errorf("%+v", l)
	}
	for range 20 {
		x.after(12 * time.Hour)
	}
	if l := x.line(LineDNS); !l.Until.Equal(gone.Add(maxTTL)) {
		t.Errorf("a resolver that never lets go keeps the window open until %s", l.Until)
	}
}

// TestLyingResolver: a value that the zone never had does not keep the window open for ever, nor does a TTL of 68 years.
func TestLyingResolver(t *testing.T) {
	x := newWatched(t, nil)
	x.all(newMX)
	x.servers["r1"].set(watchedHead + "@ 2147483647 MX 5 evil.old.test.\n")
	x.after(0)
	began := x.clock.now()
	if l := x.line(LineDNS); !l.Until.Equal(began.Add(maxTTL)) {
		t.Errorf("%+v", l)
	}
	for range 7 {
		x.after(24 * time.Hour)
	}
	x.after(queueTime)
	x.closed()
}

// TestNeverSeen: watching began after the move.
func TestNeverSeen(t *testing.T) {
	x := newWatched(t, nil)
	x.all(newMX)
	x.after(0)
	x.open("were never seen")
	x.after(unseenTTL)
	x.open("in their queues")
	x.after(queueTime)
	x.closed()
}

// TestAddressTakenOver: the MX keeps its name, and its address moves from old to the relay.
func TestAddressTakenOver(t *testing.T) {
	x := newWatched(t, func(s *Site) { s.RelayAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.25")} })
	was := strings.Replace(newMX, "mx 300 A 192.0.2.25", "mx 7200 A 198.51.100.1", 1)
	x.all(was)
	x.after(0)
	x.open("mx.one.test A 198.51.100.1 is still given out")
	x.all(newMX)
	x.after(time.Minute)
	if l := x.line(LineDNS); !l.Until.Equal(x.clock.now().Add(2 * time.Hour)) {
		t.Errorf("%+v", l)
	}
	// Without the addresses of the relay, what changed is taken for old.
	x = newWatched(t, nil)
	x.all(was)
	x.after(0)
	x.all(newMX)
	x.after(time.Minute)
	if l := x.line(LineDNS); !strings.Contains(l.Text, "198.51.100.1") {
		t.Errorf("%+v", l)
	}
}

// TestNoMX: where there was no MX, mail went to the address of the domain, and the absence was cached.
func TestNoMX(t *testing.T) {
	x := newWatched(t, nil)
	x.all(watchedHead + "@ A 198.51.100.25\n")
	x.after(0)
	x.open("(none) is still given out")
	x.all(newMX)
	x.after(time.Minute)
	if l := x.line(LineDNS); !l.Until.Equal(x.clock.now().Add(5 * time.Minute)) {
		t.Errorf("%+v", l)
	}
}

// TestSilence: what was seen before counts while nobody answers; after a week nothing is waited for.
func TestSilence(t *testing.T) {
	x := newWatched(t, nil)
	x.after(0)
	x.silence()
	x.after(6 * 24 * time.Hour)
	x.open("is still given out")
	if st, _ := x.w.Status(t.Context()); len(st.Servers) == 0 || st.Servers[0].Answered != 0 || st.Servers[0].Problem == "" {
		t.Errorf("%+v", st.Servers)
	}
	x.after(24 * time.Hour)
	x.closed()
	if st, _ := x.w.Status(t.Context()); !strings.Contains(st.Text, "no name server has answered since 2026-11-02 12:00 UTC") {
		t.Errorf("%s", st.Text)
	}
	for _, z := range x.servers {
		z.silence(false)
	}
	x.cfg.Wait = 300 * time.Millisecond
	x.restart()
	x.after(time.Minute)
	x.open("is still given out")
	if !strings.Contains(x.log.String(), "no name server answers") {
		t.Errorf("the log says %s", x.log.String())
	}
}

// TestSilentFromTheStart: a watch that never heard anything.
func TestSilentFromTheStart(t *testing.T) {
	x := newWatched(t, nil)
	x.silence()
	x.after(0)
	x.open("were never seen")
	x.after(silence)
	x.closed()
}

// TestOneServerSilent: an authoritative server that is silent cannot keep the window open by what it would say.
func TestOneServerSilent(t *testing.T) {
	x := newWatched(t, nil)
	x.after(0)
	x.servers["ns2"].silence(true)
	for _, name := range []string{"ns1", "r1", "r2"} {
		x.servers[name].set(newMX)
	}
	x.after(time.Minute)
	if l := x.line(LineDNS); l.Until.IsZero() {
		t.Errorf("%+v", l)
	}
}

// TestServerOfTheZoneAbove: a server that lost the zone and has the one above it denies with authority what it does not
// know. That is no absence of the MX.
func TestServerOfTheZoneAbove(t *testing.T) {
	x := newWatched(t, nil)
	x.all(newMX)
	x.servers["ns2"].set("test. 300 SOA ns1.test. h.test. 1 3600 600 604800 300\n")
	x.after(0)
	if set := x.w.state.find(ask("one.test", dns.TypeMX)); set == nil || len(set.Values) != 1 || set.Values[0].Value != "10 mx.one.test." {
		t.Errorf("%+v", set.Values[0])
	}
}

// TestPolicyLine: a policy that does not name the MX of now is waited for, and one that does is not.
func TestPolicyLine(t *testing.T) {
	now := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	x := newWatched(t, nil)
	state := &State{Since: now}
	set := state.set("one.test.", ask("one.test", dns.TypeMX))
	set.value("10 mx.one.test.", now)
	for _, tt := range []struct {
		p    Policy
		want bool
	}{
		{Policy{Mode: "enforce", MaxAge: 24 * time.Hour, MX: []string{"mail.old.test"}}, true},
		{Policy{Mode: "testing", MaxAge: 24 * time.Hour, MX: []string{"mail.old.test"}}, false},
		{Policy{Mode: "enforce", MaxAge: 24 * time.Hour, MX: []string{"*.one.test", "mail.old.test"}}, false},
	} {
		state.Policies = nil
		state.sawPolicy("one.test.", tt.p, now)
		l, ok := x.w.policyLine(state, "one.test.")
		if ok != tt.want || ok && !l.Until.Equal(now.Add(24*time.Hour)) {
			t.Errorf("%+v: %+v, %t", tt.p, l, ok)
		}
	}
}

// TestStoreFails: what cannot be read is not written over, and what cannot be decoded is begun anew, aloud.
func TestStoreFails(t *testing.T) {
	x := newWatched(t, nil)
	x.after(0)
	kept := string(x.store.data)
	x.restart()
	x.store.loadErr = errors.New("away")
	if err := x.w.Round(t.Context()); err == nil || string(x.store.data) != kept {
		t.Errorf("%v; the state was written over: %t", err, string(x.store.data) != kept)
	}
	if st, _ := x.w.Status(t.Context()); !strings.Contains(st.Error, "away") {
		t.Errorf("%+v", st)
	}
	x.store.loadErr = nil
	x.store.saves = errors.New("full")
	if err := x.w.Round(t.Context()); err == nil || !strings.Contains(err.Error(), "full") {
		t.Error(err)
	}
	x.store.saves, x.store.data = nil, []byte("{torn")
	x.after(0)
	if !strings.Contains(x.log.String(), "begun anew") {
		t.Errorf("the log says %s", x.log.String())
	}
	x.open("still given out")
}

// TestRun: it looks by itself, and ends with its context.
func TestRun(t *testing.T) {
	x := newWatched(t, nil)
	x.w.cfg.Interval = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- x.w.Run(ctx) }()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		x.store.mu.Lock()
		n := x.store.saved
		x.store.mu.Unlock()
		st, err := x.w.Status(t.Context())
		if n > 3 && st.Report != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d looks, %+v, %v", n, st, err)
		}
		<-tick.C
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// memStragglers are counts.
type memStragglers struct {
	since  time.Time
	counts []StragglerCount
	err    error
}

func (m *memStragglers) Stragglers(_ context.Context, since time.Time) ([]StragglerCount, error) {
	m.since = since
	return m.counts, m.err
}

func TestStragglers(t *testing.T) {
	x := newWatched(t, nil)
	m := &memStragglers{counts: []StragglerCount{{Day: "2026-11-01", Source: "192.0.2.9", Messages: 7}}}
	x.w.cfg.Stragglers = m
	x.after(0)
	st, err := x.w.Status(t.Context())
	if err != nil || fmt.Sprint(st.Stragglers) != "[{2026-11-01 192.0.2.9 7}]" || !m.since.Equal(x.clock.now().AddDate(0, 0, -14)) {
		t.Errorf("%+v, %v, since %s", st.Stragglers, err, m.since)
	}
	m.err = errors.New("away")
	if _, err := x.w.Status(t.Context()); err == nil {
		t.Error("an error of the counts is not told")
	}
}

// TestStateIsBounded: a zone that gives other records at each look does not fill the store.
func TestStateIsBounded(t *testing.T) {
	x := newWatched(t, nil)
	state, now := &State{}, x.clock.now()
	set := state.set("one.test.", ask("one.test", dns.TypeMX))
	for i := range 500 {
		v := set.value(fmt.Sprintf("%d host%d.", i, i), now)
		v.Last = now.Add(time.Duration(i) * time.Minute)
		set.sawTTL(time.Duration(i)*time.Second, now.Add(time.Duration(i)*time.Minute))
		set.end(map[string]bool{v.Value: true}, v.Last)
		state.sawPolicy("one.test.", Policy{Mode: "enforce", MaxAge: time.Duration(i) * time.Second}, now)
	}
	if len(set.Values) > maxValues || len(set.TTLs) > maxTTLs || len(state.Policies) > maxPolicies {
		t.Errorf("%d values, %d TTLs, %d policies", len(set.Values), len(set.TTLs), len(state.Policies))
	}
	if set.Values[len(set.Values)-1].Value != "499 host499." {
		t.Errorf("the latest is forgotten: %+v", set.Values[len(set.Values)-1])
	}
}
