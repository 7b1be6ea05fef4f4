package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const head = `$TTL 300
@ SOA ns1 hostmaster 1 3600 600 604800 60
@ NS ns1
ns1 A 192.0.2.53
`

// newResolver asks one server, with a clock of its own.
func newResolver(t testing.TB, addr string, change func(*Config)) (*Resolver, *clock) {
	t.Helper()
	c := &clock{now: time.Now()}
	cfg := Config{Servers: []string{addr}, Now: c.Now}
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r, c
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// TestLookups asks a real name server for each type of record, and for what is not there.
func TestLookups(t *testing.T) {
	ns := realtest.StartNSD(t, map[string]string{"example.test": head + `
@ MX 20 Second.example.test.
@ MX 10 first
@ TXT "v=spf1 " "-all"
@ TXT "quote \" back\\slash and \200 octet"
null MX 0 .
first A 192.0.2.1
first AAAA 2001:db8::1
alias CNAME First
_25._tcp.first TLSA 3 1 1 00aa
`, "2.0.192.in-addr.arpa": head + "1 PTR First.example.test.\n"})
	r, _ := newResolver(t, ns.Addr, nil)
	ctx := t.Context()
	if a, err := r.LookupTXT(ctx, "EXAMPLE.test"); err != nil || !slices.Contains(a.Records, "v=spf1 -all") ||
		!slices.Contains(a.Records, "quote \" back\\slash and \xc8 octet") {
		t.Errorf("TXT: %q, %v", a.Records, err)
	}
	if a, err := r.LookupMX(ctx, "example.test."); err != nil || !slices.Equal(a.Records, []MX{{"first.example.test", 10}, {"second.example.test", 20}}) {
		t.Errorf("MX: %v, %v", a.Records, err)
	}
	if a, err := r.LookupMX(ctx, "null.example.test"); err != nil || !slices.Equal(a.Records, []MX{{"", 0}}) {
		t.Errorf("null MX: %v, %v", a.Records, err)
	}
	if a, err := r.LookupA(ctx, "alias.example.test"); err != nil || !slices.Equal(a.Records, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) ||
		a.Name != "first.example.test" {
		t.Errorf("A behind a CNAME: %+v, %v", a, err)
	}
	if a, err := r.LookupAAAA(ctx, "first.example.test"); err != nil || !slices.Equal(a.Records, []netip.Addr{netip.MustParseAddr("2001:db8::1")}) {
		t.Errorf("AAAA: %v, %v", a.Records, err)
	}
	if a, err := r.LookupPTR(ctx, netip.MustParseAddr("::ffff:192.0.2.1")); err != nil || !slices.Equal(a.Records, []string{"first.example.test"}) {
		t.Errorf("PTR: %v, %v", a.Records, err)
	}
	if a, err := r.LookupTLSA(ctx, "_25._tcp.first.example.test"); err != nil || len(a.Records) != 1 || a.Records[0] != (TLSA{3, 1, 1, "00aa"}) {
		t.Errorf("TLSA: %v, %v", a.Records, err)
	}
	if a, err := r.LookupTXT(ctx, "first.example.test"); err != nil || len(a.Records) != 0 || a.TTL != time.Minute {
		t.Errorf("nothing of that type: %+v, %v", a, err)
	}
	if _, err := r.LookupTXT(ctx, "no.example.test"); !errors.Is(err, ErrNoName) || errors.Is(err, ErrTemporary) {
		t.Errorf("no such name: %v", err)
	}
	if _, err := r.LookupTXT(ctx, "elsewhere.invalid"); !errors.Is(err, ErrTemporary) || !strings.Contains(err.Error(), "REFUSED") {
		t.Errorf("a zone that it does not have: %v", err)
	}
}

// hostile answers A questions as a twist says, and the name servers of the root always unless it is dead.
func hostile(t testing.TB, twist func(req, resp *dns.Msg, tcp bool) *dns.Msg) *mailtest.DNS {
	t.Helper()
	d, err := mailtest.NewDNS(func(req *dns.Msg, tcp bool) *dns.Msg {
		resp := new(dns.Msg)
		resp.SetReply(req)
		if req.Question[0].Name == "." {
			return resp
		}
		resp.Answer = []dns.RR{rr(req.Question[0].Name + " 60 IN TXT true")}
		return twist(req, resp, tcp)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func rr(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic(fmt.Sprintf("%q: %v", text, err))
	}
	return r
}

// TestHostileServers: whatever a server sends, the answer is the right one or a failure of the right kind, in bounded time.
func TestHostileServers(t *testing.T) {
	for name, tt := range map[string]struct {
		twist func(req, resp *dns.Msg, tcp bool) *dns.Msg
		kind  error
		text  string
		want  []string
	}{
		"plain": {func(_, resp *dns.Msg, _ bool) *dns.Msg { return resp }, nil, "", []string{"true"}},
		"1000 records": {func(req, resp *dns.Msg, _ bool) *dns.Msg {
			for i := range 1000 {
				resp.Answer = append(resp.Answer, rr(fmt.Sprintf("%s 60 IN TXT t%d", req.Question[0].Name, i)))
			}
			return resp
		}, ErrPermanent, "1001 records", nil},
		"huge TXT": {func(req, resp *dns.Msg, _ bool) *dns.Msg {
			resp.Answer = []dns.RR{rr(req.Question[0].Name + " 60 IN TXT " + strings.Repeat(`"`+strings.Repeat("x", 255)+`" `, 200))}
			return resp
		}, nil, "", []string{strings.Repeat("x", 255*200)}},
		"CNAMEs in a circle": {func(req, resp *dns.Msg, _ bool) *dns.Msg {
			resp.Answer = []dns.RR{rr(req.Question[0].Name + " 60 IN CNAME b.test."), rr("b.test. 60 IN CNAME " + req.Question[0].Name)}
			return resp
		}, ErrPermanent, "in a circle", nil},
		"long chain of CNAMEs": {func(req, resp *dns.Msg, _ bool) *dns.Msg {
			resp.Answer = []dns.RR{rr(req.Question[0].Name + " 60 IN CNAME c0.test.")}
			for i := range 100 {
				resp.Answer = append(resp.Answer, rr(fmt.Sprintf("c%d.test. 60 IN CNAME c%d.test.", i, i+1)))
			}
			return resp
		}, ErrPermanent, "more than 8", nil},
		"records of other names": {func(req, resp *dns.Msg, _ bool) *dns.Msg {
			resp.Answer = []dns.RR{rr("other.test. 60 IN TXT evil")}
			return resp
		}, nil, "", nil},
		"another id": {func(_, resp *dns.Msg, _ bool) *dns.Msg { resp.Id++; return resp }, ErrTemporary, "forges answers", nil},
		"another question": {func(_, resp *dns.Msg, _ bool) *dns.Msg {
			resp.Question[0].Name = "other.test."
			return resp
		}, ErrTemporary, "forges answers", nil},
		"truncates always": {func(_, resp *dns.Msg, _ bool) *dns.Msg { resp.Truncated = true; return resp }, ErrTemporary, "cut short over TCP", nil},
		"no EDNS": {func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if req.IsEdns0() != nil {
				resp.SetRcode(req, dns.RcodeFormatError)
			}
			return resp
		}, nil, "", []string{"true"}},
		"fails":       {func(req, resp *dns.Msg, _ bool) *dns.Msg { return resp.SetRcode(req, dns.RcodeServerFailure) }, ErrTemporary, "SERVFAIL", nil},
		"silent":      {func(_, _ *dns.Msg, _ bool) *dns.Msg { return nil }, ErrTemporary, "", nil},
		"ttl of ages": {func(_, resp *dns.Msg, _ bool) *dns.Msg { resp.Answer[0].Header().Ttl = 1 << 31; return resp }, nil, "", []string{"true"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := hostile(t, tt.twist)
			r, _ := newResolver(t, d.Addr, func(c *Config) { c.Timeout = time.Second; c.Now = nil })
			began := time.Now()
			a, err := r.LookupTXT(t.Context(), "a.test")
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			if !errors.Is(err, tt.kind) || err != nil && !strings.Contains(err.Error(), tt.text) || !slices.Equal(a.Records, tt.want) {
				t.Errorf("got %.100q, %v; want %.100q, %v with %q", a.Records, err, tt.want, tt.kind, tt.text)
			}
			if a.TTL > maxTTL {
				t.Errorf("kept for %v", a.TTL)
			}
		})
	}
}

// TestGarbage sends octets that are no message, and a stream that ends in the middle of one.
func TestGarbage(t *testing.T) {
	d := hostile(t, func(_, resp *dns.Msg, _ bool) *dns.Msg { return resp })
	for _, garbage := range []string{"", "\x00", strings.Repeat("\xff", 600), "\x00\x00\x80\x00\x00\x01\xff\xff\x00\x00\x00\x00\xc0\x0c"} {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			buf := make([]byte, 4096)
			for {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(garbage), from)
			}
		}()
		r, _ := newResolver(t, pc.LocalAddr().String(), func(c *Config) { c.Timeout = 300 * time.Millisecond; c.Now = nil })
		if _, err := r.LookupA(t.Context(), "a.test"); !errors.Is(err, ErrTemporary) {
			t.Errorf("%q: %v", garbage, err)
		}
		// With a second resolver the answer is there all the same.
		r, _ = newResolver(t, pc.LocalAddr().String(), func(c *Config) { c.Servers = append(c.Servers, d.Addr); c.Now = nil })
		if a, err := r.LookupTXT(t.Context(), "a.test"); err != nil || len(a.Records) != 1 {
			t.Errorf("%q, two servers: %v, %v", garbage, a, err)
		}
		pc.Close()
	}
}

// TestPanic: what makes the library fail is a failure of one question, and nobody waits for ever.
func TestPanic(t *testing.T) {
	r, _ := newResolver(t, "127.0.0.1:1", func(c *Config) {
		c.MaxInFlight = 1
		c.Dial = func(context.Context, string, string) (net.Conn, error) { panic("odd") }
	})
	for _, name := range []string{"a.test", "b.test"} {
		if _, err := r.LookupTXT(t.Context(), name); !errors.Is(err, ErrTemporary) || !strings.Contains(err.Error(), "odd") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCache: answers are kept for their TTL, nothing for that of the SOA, and failures for seconds.
func TestCache(t *testing.T) {
	var fail atomic.Bool
	d := hostile(t, func(req, resp *dns.Msg, _ bool) *dns.Msg {
		switch {
		case fail.Load():
			resp.SetRcode(req, dns.RcodeServerFailure)
		case strings.HasPrefix(req.Question[0].Name, "no."):
			resp.SetRcode(req, dns.RcodeNameError)
			resp.Answer = nil
			resp.Ns = []dns.RR{rr("test. 900 IN SOA a. b. 1 2 3 4 20")}
		}
		return resp
	})
	var results []Result
	r, clock := newResolver(t, d.Addr, func(c *Config) {
		c.CacheSize = 2
		c.Looked = func(_ string, res Result, _ time.Duration) { results = append(results, res) }
	})
	ask := func(name string, asked int, kind error) {
		t.Helper()
		before := d.Asked()
		if _, err := r.LookupTXT(t.Context(), name); !errors.Is(err, kind) {
			t.Errorf("%s: %v, want %v", name, err, kind)
		}
		if n := d.Asked() - before; n != asked {
			t.Errorf("%s: the server was asked %d times, want %d", name, n, asked)
		}
	}
	ask("a.test", 1, nil)
	ask("A.test.", 0, nil)
	clock.add(59 * time.Second)
	ask("a.test", 0, nil)
	clock.add(time.Second)
	ask("a.test", 1, nil)
	ask("no.test", 1, ErrNoName)
	ask("no.test", 0, ErrNoName)
	clock.add(20 * time.Second)
	ask("no.test", 1, ErrNoName)
	ask("b.test", 1, nil) // the cache has room for two: a goes
	ask("no.test", 0, ErrNoName)
	ask("a.test", 1, nil)
	fail.Store(true)
	ask("c.test", rounds, ErrTemporary)
	ask("c.test", 0, ErrTemporary)
	fail.Store(false)
	clock.add(failureTTL)
	ask("c.test", 1, nil)
	want := []Result{Found, Hit, Hit, Found, NoName, Hit, NoName, Found, Hit, Found, Temporary, Hit, Found}
	if !slices.Equal(results, want) {
		t.Errorf("counted %v, want %v", results, want)
	}
}

// TestCacheOctets: large answers push each other out.
func TestCacheOctets(t *testing.T) {
	d := hostile(t, func(req, resp *dns.Msg, _ bool) *dns.Msg {
		resp.Answer = []dns.RR{rr(req.Question[0].Name + " 60 IN TXT " + strings.Repeat(`"`+strings.Repeat("x", 255)+`" `, 40))}
		return resp
	})
	r, _ := newResolver(t, d.Addr, func(c *Config) { c.CacheOctets = 50_000 })
	for i := range 50 {
		if _, err := r.LookupTXT(t.Context(), fmt.Sprintf("n%d.test", i)); err != nil {
			t.Fatal(err)
		}
	}
	if r.cache.octets > 50_000 || r.cache.order.Len() != len(r.cache.places) || r.cache.order.Len() == 0 {
		t.Errorf("%d octets in %d entries", r.cache.octets, r.cache.order.Len())
	}
}

// TestSharedAndLeft: equal questions are asked once; who has no time leaves, and when all have left nobody asks on.
func TestSharedAndLeft(t *testing.T) {
	release, later := make(chan struct{}), make(chan struct{})
	d := hostile(t, func(req, resp *dns.Msg, _ bool) *dns.Msg {
		if req.Question[0].Name == "a.test." {
			<-release
		} else {
			<-later
		}
		return resp
	})
	r, _ := newResolver(t, d.Addr, func(c *Config) { c.Now = nil })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if a, err := r.LookupTXT(t.Context(), "a.test"); err != nil || len(a.Records) != 1 {
				t.Errorf("%v, %v", a, err)
			}
		})
	}
	waiting := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; {
			r.mu.Lock()
			f := r.flights[question{"a.test.", dns.TypeTXT}]
			have := 0
			if f != nil {
				have = f.waiters
			}
			r.mu.Unlock()
			if have == n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d wait, want %d", have, n)
			}
		}
	}
	waiting(50)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := r.LookupTXT(ctx, "a.test")
		left <- err
	}()
	waiting(51)
	cancel()
	if err := <-left; !errors.Is(err, ErrTemporary) {
		t.Errorf("who left got %v", err)
	}
	close(release)
	wg.Wait()
	if n := d.Asked(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.LookupTXT(ctx, "b.test"); !errors.Is(err, ErrTemporary) {
		t.Errorf("%v", err)
	}
	close(later)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.flights) != 0 || r.cache.get(question{"b.test.", dns.TypeTXT}, time.Now()) != nil {
		t.Error("it is asked on, or what was broken off is in the cache")
	}
}

// TestBudget: a message may cause so many questions and no more; the cache is free.
func TestBudget(t *testing.T) {
	d := hostile(t, func(_, resp *dns.Msg, _ bool) *dns.Msg { return resp })
	r, _ := newResolver(t, d.Addr, nil)
	ctx := WithBudget(t.Context(), 2)
	for i, name := range []string{"a.test", "a.test", "b.test", "b.test", "a.test", "c.test", "a.test"} {
		_, err := r.LookupTXT(ctx, name)
		if want := name == "c.test"; errors.Is(err, ErrTemporary) != want {
			t.Errorf("%d: %s: %v", i, name, err)
		}
	}
	if n := d.Asked(); n != 2 {
		t.Errorf("the server was asked %d times", n)
	}
	if _, err := r.LookupTXT(WithBudget(t.Context(), 1), "c.test"); err != nil {
		t.Errorf("the next message does not get it: %v", err)
	}
}

// TestShares: names that never get an answer keep those waiting who asked for them, and nobody else.
func TestShares(t *testing.T) {
	release := make(chan struct{})
	var good atomic.Int64 // questions that are answered
	d := hostile(t, func(req, resp *dns.Msg, _ bool) *dns.Msg {
		if strings.HasPrefix(req.Question[0].Name, "slow") {
			<-release
		} else {
			good.Add(1)
		}
		return resp
	})
	r, _ := newResolver(t, d.Addr, func(c *Config) { c.Now = nil; c.MaxInFlight = 16 })
	from := func(addr string) context.Context { return WithAsker(t.Context(), netip.MustParseAddr(addr)) }
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			_, _ = r.LookupTXT(from(fmt.Sprintf("192.0.2.%d", i)), fmt.Sprintf("slow%d.test", i))
		})
	}
	for deadline := time.Now().Add(5 * time.Second); d.Asked() < 2; {
		if time.Now().After(deadline) {
			t.Fatal("nothing is asked")
		}
	}
	soon, cancel := context.WithTimeout(from("::ffff:192.0.2.200"), 50*time.Millisecond)
	defer cancel()
	if _, err := r.LookupTXT(soon, "a.test"); !errors.Is(err, ErrTemporary) || !strings.Contains(err.Error(), "network") {
		t.Errorf("the same network: %v", err)
	}
	for _, other := range []string{"198.51.100.1", "2001:db8::1"} {
		ctx, cancel := context.WithTimeout(from(other), 2*time.Second) // what is never answered is given up after 3
		if _, err := r.LookupTXT(ctx, "a.test"); err != nil {
			t.Errorf("%s waits for others' names: %v", other, err)
		}
		cancel()
	}
	if _, err := r.LookupTXT(t.Context(), "b.test"); err != nil {
		t.Errorf("who asks for nobody: %v", err)
	}
	if _, err := r.LookupTXT(from("192.0.2.200"), "a.test"); err != nil {
		t.Errorf("the cache costs no place: %v", err)
	}
	if n := good.Load(); n != 2 {
		t.Errorf("the names of others were asked for %d times, want two", n)
	}
	close(release)
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.shares) != 0 {
		t.Errorf("%d shares are left", len(r.shares))
	}
}

// TestNoPlace: who found no place for a question does not keep the next from asking it.
func TestNoPlace(t *testing.T) {
	d := hostile(t, func(_, resp *dns.Msg, _ bool) *dns.Msg { return resp })
	r, _ := newResolver(t, d.Addr, func(c *Config) { c.MaxInFlight = 1; c.Timeout = 50 * time.Millisecond })
	r.slots <- struct{}{}
	if _, err := r.LookupTXT(t.Context(), "a.test"); !errors.Is(err, ErrTemporary) || d.Asked() != 0 {
		t.Errorf("with no place left: %v", err)
	}
	<-r.slots
	r.cfg.Timeout = 5 * time.Second
	if _, err := r.LookupTXT(t.Context(), "a.test"); err != nil {
		t.Errorf("a moment later: %v", err)
	}
}

// TestDeadServer: a server that answers nothing costs time once; then lookups fail at once, until it lives again.
func TestDeadServer(t *testing.T) {
	var dead atomic.Bool
	dead.Store(true)
	d, err := mailtest.NewDNS(func(req *dns.Msg, _ bool) *dns.Msg {
		if dead.Load() {
			return nil
		}
		return new(dns.Msg).SetReply(req)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, clock := newResolver(t, d.Addr, func(c *Config) { c.Timeout = 100 * time.Millisecond; c.MaxInFlight = 2 })
	r.servers[0].silent = suspect - 1
	if _, err := r.LookupA(t.Context(), "a.test"); !errors.Is(err, ErrTemporary) {
		t.Fatal(err)
	}
	r.fellSilent(t.Context(), r.servers[0]) // the time of the question was over before the server was suspected
	if down, all := r.Down(); down != 1 || all != 1 {
		t.Fatalf("%d of %d are down", down, all)
	}
	asked := d.Asked()
	began := time.Now()
	for i := range 1000 {
		if _, err := r.LookupA(t.Context(), fmt.Sprintf("n%d.test", i)); !errors.Is(err, ErrTemporary) {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 2*time.Second || d.Asked() != asked {
		t.Errorf("1,000 lookups took %v and asked it %d times", took, d.Asked()-asked)
	}
	dead.Store(false)
	clock.add(maxRest)
	if _, err := r.LookupA(t.Context(), "a.test"); err != nil {
		t.Errorf("it lives again: %v", err)
	}
	if down, _ := r.Down(); down != 0 {
		t.Error("it still counts as down")
	}
}

// TestSlowNames: names whose own servers are silent do not bring the resolver into disrepute.
func TestSlowNames(t *testing.T) {
	d := hostile(t, func(req, resp *dns.Msg, _ bool) *dns.Msg {
		if strings.HasPrefix(req.Question[0].Name, "slow") {
			return nil
		}
		return resp
	})
	r, _ := newResolver(t, d.Addr, func(c *Config) { c.Timeout = 50 * time.Millisecond })
	for i := range 3 * suspect {
		if _, err := r.LookupTXT(t.Context(), fmt.Sprintf("slow%d.test", i)); !errors.Is(err, ErrTemporary) {
			t.Fatal(err)
		}
		r.fellSilent(t.Context(), r.servers[0])
	}
	if _, err := r.LookupTXT(t.Context(), "good.test"); err != nil {
		t.Error(err)
	}
}

// TestAuthentic: what a resolver says about DNSSEC counts where nobody on the way can set the bit.
func TestAuthentic(t *testing.T) {
	d := hostile(t, func(req, resp *dns.Msg, _ bool) *dns.Msg { resp.AuthenticatedData = req.AuthenticatedData; return resp })
	far := func(c *Config) {
		c.Servers = []string{"192.0.2.53"}
		c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, d.Addr)
		}
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   bool
	}{
		"loopback": {nil, true},
		"far":      {far, false},
		"trusted":  {func(c *Config) { far(c); c.TrustAD = true }, true},
	} {
		r, _ := newResolver(t, d.Addr, tt.change)
		if a, err := r.LookupTXT(t.Context(), "a.test"); err != nil || a.Authentic != tt.want {
			t.Errorf("%s: authentic %v, %v", name, a.Authentic, err)
		}
	}
}

// TestNames: what can be no name is not asked for, and a backslash in it is none of ours to read.
func TestNames(t *testing.T) {
	d := hostile(t, func(_, resp *dns.Msg, _ bool) *dns.Msg { return resp })
	r, _ := newResolver(t, d.Addr, nil)
	for _, name := range []string{"", ".", "a..test", ".a", strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 127) + "test", `a\.b.test`,
		"a b.test", "bücher.test", "a\x00.test", "a;b.test", `a"b.test`} {
		if _, err := r.LookupTXT(t.Context(), name); !errors.Is(err, ErrNoName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if d.Asked() != 0 {
		t.Error("the server was asked")
	}
}

func TestServers(t *testing.T) {
	conf := t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(conf, []byte("search example.org\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		servers []string
		conf    string
		want    string
	}{
		{nil, conf, "[192.0.2.1:53 [2001:db8::1]:53]"},
		{[]string{"127.0.0.1:5353", "system", "[::1]"}, conf, "[127.0.0.1:5353 192.0.2.1:53 [2001:db8::1]:53 [::1]:53]"},
		{nil, conf + ".none", "[127.0.0.1:53]"},
		{[]string{"dns.example"}, conf, "error"},
		{[]string{"192.0.2.1:0"}, conf, "error"},
	} {
		got, err := serverAddresses(Config{Servers: tt.servers, resolvConf: tt.conf})
		if text := fmt.Sprint(got); err == nil && text != tt.want || err != nil && tt.want != "error" {
			t.Errorf("%v: %v, %v; want %s", tt.servers, text, err, tt.want)
		}
	}
}
