package dnswatch

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// site1 is one good zone that the relay stands in front of.
func site1() (zones func() map[string]string, site Site) {
	text := head + `@ MX 10 mx.relay.test.
@ TXT "v=spf1 ip4:192.0.2.25 -all"
_dmarc TXT "v=DMARC1; p=none"
_smtp._tls TXT "v=TLSRPTv1; rua=mailto:tls@relay.test"
`
	return func() map[string]string { return map[string]string{"one.test": text} },
		Site{Domains: []string{"one.test"}, Hostname: "mx.relay.test"}
}

// findings gives those of a check, by name.
func findings(rep Report, check string) (out []Finding) {
	for _, f := range rep.Findings {
		if f.Check == check {
			out = append(out, f)
		}
	}
	return out
}

// TestBadResolvers: one resolver of three misbehaves; it is named, and the rest is judged by the others.
func TestBadResolvers(t *testing.T) {
	zones, site := site1()
	w := newWorld(t, zones(), zones(), []string{"mta-sts.one.test"})
	up := func() string { return w.ns1.Addr }
	good1, good2 := newResolver(t, up, nil), newResolver(t, up, nil)
	mx := func(m *dns.Msg) bool { return m.Question[0].Qtype == dns.TypeMX }
	for _, tt := range []struct {
		name     string
		twist    func(req, resp *dns.Msg, tcp bool) *dns.Msg
		check    string // wanted; empty: nothing is wrong
		severity Severity
		text     string
	}{
		{"lies", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if mx(req) {
				resp.Answer = []dns.RR{rr(t, "one.test. 600 IN MX 5 evil.old.test.")}
			}
			return resp
		}, "resolver-differs", Warn, "5 evil.old.test. for another 10 min; most, or the zone itself: 10 mx.relay.test."},
		{"knows nothing", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if mx(req) {
				resp.Answer = nil
			}
			return resp
		}, "resolver-differs", Warn, "one.test. MX: nothing"},
		{"silent", func(_, _ *dns.Msg, _ bool) *dns.Msg { return nil }, "resolver-silent", Warn, "no answer"},
		{"another id", func(_, resp *dns.Msg, _ bool) *dns.Msg { resp.Id++; return resp }, "resolver-silent", Warn, "with another id"},
		{"another question", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if mx(req) {
				resp.Question[0].Name = "two.test."
			}
			return resp
		}, "resolver-forged", Warn, "another question"},
		{"no response at all", func(_, resp *dns.Msg, _ bool) *dns.Msg { resp.Response = false; return resp }, "resolver-silent", Warn, "another question"},
		{"truncates", func(_, resp *dns.Msg, tcp bool) *dns.Msg {
			if !tcp {
				resp.Truncated, resp.Answer = true, nil
			}
			return resp
		}, "", OK, ""},
		{"truncates over TCP too", func(_, resp *dns.Msg, _ bool) *dns.Msg {
			resp.Truncated = true
			return resp
		}, "resolver-silent", Warn, "cut short over TCP too"},
		{"1000 records", func(req, resp *dns.Msg, tcp bool) *dns.Msg {
			switch {
			case !mx(req):
			case !tcp:
				resp.Truncated, resp.Answer = true, nil
			default:
				for i := range 1000 {
					resp.Answer = append(resp.Answer, rr(t, fmt.Sprintf("one.test. 300 IN MX %d m%d.old.test.", i, i)))
				}
			}
			return resp
		}, "answer-huge", Warn, "1001 records, of which 100 were looked at"},
		{"CNAMEs in a circle", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if mx(req) {
				resp.Answer = []dns.RR{rr(t, "one.test. 1 IN CNAME a.test."), rr(t, "a.test. 1 IN CNAME b.test."), rr(t, "b.test. 1 IN CNAME a.test.")}
			}
			return resp
		}, "resolver-differs", Warn, "nothing"},
		{"does not know EDNS", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if req.IsEdns0() != nil {
				resp.SetRcode(req, dns.RcodeFormatError)
			}
			return resp
		}, "", OK, ""},
		{"finds DNSSEC bogus", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if mx(req) && !req.CheckingDisabled {
				resp.SetRcode(req, dns.RcodeServerFailure)
				resp.Answer = nil
			}
			return resp
		}, "dnssec-bogus", Stop, "SERVFAIL, and an answer with checking disabled"},
		{"fails now and then", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if req.Question[0].Qtype == dns.TypeTXT {
				resp.SetRcode(req, dns.RcodeRefused)
			}
			return resp
		}, "resolver-unsteady", Note, "it answered REFUSED"},
		{"answers too long for UDP", func(req, resp *dns.Msg, tcp bool) *dns.Msg {
			if mx(req) && !tcp {
				resp.Answer = append(resp.Answer, rr(t, "x.test. 1 IN TXT "+strings.Repeat(quoted(strings.Repeat("x", 255))+" ", 100)))
			}
			return resp
		}, "", OK, ""},
		{"records of other names", func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if mx(req) {
				resp.Answer = append(resp.Answer, rr(t, "two.test. 300 IN MX 1 evil.old.test."))
			}
			return resp
		}, "", OK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			bad := newResolver(t, up, tt.twist)
			rep, err := w.checker(t, site, good1.addr, bad.addr, good2.addr).Check(t.Context(), Relay, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(findings(rep, "mx")) != 1 {
				t.Errorf("the others are not believed: %+v", rep.Findings)
			}
			var named []Finding
			for _, f := range rep.Findings {
				if strings.HasPrefix(f.Check, "resolver-") || f.Check == "answer-huge" || f.Check == "dnssec-bogus" {
					named = append(named, f)
				}
			}
			if tt.check == "" {
				if len(named) > 0 {
					t.Errorf("found %+v", named)
				}
				return
			}
			for _, f := range findings(rep, tt.check) {
				if f.Severity == tt.severity && strings.Contains(f.Seen, tt.text) && strings.Contains(f.Server, bad.addr) {
					return
				}
			}
			t.Errorf("want %s %s with %q of %s, found %+v", tt.severity, tt.check, tt.text, bad.addr, named)
		})
	}
}

func rr(t testing.TB, text string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNoResolver: when nobody answers, that is what is said, in bounded time.
func TestNoResolver(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0") // bound, and nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	_, site := site1()
	c, err := NewChecker(Config{Site: site, Resolvers: []string{pc.LocalAddr().String()}, Wait: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	rep, err := c.Check(t.Context(), Relay, nil)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if rep.Worst() != Stop || len(findings(rep, "resolver-silent")) != 2 || len(findings(rep, "mx-unknown")) != 1 {
		t.Errorf("%+v", rep.Findings)
	}
}

// TestForgedTLSA: with signatures a record that does not fit stops mail; without, nobody looks at it.
func TestForgedTLSA(t *testing.T) {
	zone := head + "@ MX 10 dane.relay.test.\n"
	w := newWorld(t, map[string]string{"one.test": zone}, map[string]string{"one.test": zone}, []string{"mta-sts.one.test"})
	for _, signed := range []bool{true, false} {
		r := newResolver(t, func() string { return w.ns1.Addr }, func(_, resp *dns.Msg, _ bool) *dns.Msg {
			resp.AuthenticatedData = signed
			return resp
		})
		rep, err := w.checker(t, Site{Domains: []string{"one.test"}, Hostname: "mx.relay.test", RelayMX: []string{"dane.relay.test"}}, r.addr).Check(t.Context(), Relay, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := map[bool]Severity{true: Stop, false: Warn}[signed]
		if f := findings(rep, "dane-mismatch"); len(f) != 1 || f[0].Severity != want {
			t.Errorf("signed %t: %+v", signed, f)
		}
	}
}

// TestAuthoritativeAlone: resolvers that are silent do not hide what the zone's own servers say, when they are named.
func TestAuthoritativeAlone(t *testing.T) {
	zones, site := site1()
	w := newWorld(t, zones(), zones(), []string{"mta-sts.one.test"})
	var recursion, asked flags
	spy := newResolver(t, func() string { return w.ns1.Addr }, func(req, resp *dns.Msg, _ bool) *dns.Msg {
		recursion.note(req.RecursionDesired)
		return resp
	})
	c, err := NewChecker(Config{Site: site, Resolvers: []string{spy.addr}, Nameservers: []string{w.ns1.Addr, w.ns2.Addr}, Dial: w.dial, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := c.Check(t.Context(), Relay, nil)
	if err != nil || len(findings(rep, "ns-lame")) != 0 || len(findings(rep, "mx")) != 1 || !strings.Contains(findings(rep, "mx")[0].Server, w.ns1.Addr) {
		t.Errorf("%+v, %v", rep.Findings, err)
	}
	if _, no := recursion.count(); no > 0 {
		t.Errorf("a resolver is asked without recursion %d times", no)
	}
	// The zone's own servers are asked without recursion: a spy in their place refuses nothing then.
	server := newResolver(t, func() string { return w.ns1.Addr }, func(req, resp *dns.Msg, _ bool) *dns.Msg {
		asked.note(req.RecursionDesired)
		return resp
	})
	c, err = NewChecker(Config{Site: site, Resolvers: []string{w.ns1.Addr}, Nameservers: []string{server.addr}, Dial: w.dial, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Check(t.Context(), Relay, nil); err != nil {
		t.Fatal(err)
	}
	if yes, no := asked.count(); yes > 0 || no == 0 {
		t.Errorf("an authoritative server is asked %d times with recursion and %d times without", yes, no)
	}
}

// TestDelegation: the parent still names a server that is not the zone's any more.
func TestDelegation(t *testing.T) {
	child := head + "@ MX 10 mx.relay.test.\n"
	delegated := func(second string) string {
		return "$TTL 300\n@ SOA ns2.infra.test. h.infra.test. 1 3600 600 604800 300\n@ NS ns2.infra.test.\none NS ns1.infra.test.\none NS " + second + ".infra.test.\n"
	}
	for second, want := range map[string]string{"ns2": "", "gone": "warn up.test delegates one.up.test to gone.infra.test, ns1.infra.test; the zone itself names ns1.infra.test, ns2.infra.test (ns2.infra.test (198.51.100.53))"} {
		w := newWorld(t, map[string]string{"one.up.test": child}, map[string]string{"up.test": delegated(second)}, []string{"mta-sts.one.test"})
		r := newResolver(t, func() string { return w.ns1.Addr }, func(req, resp *dns.Msg, _ bool) *dns.Msg {
			if strings.EqualFold(req.Question[0].Name, "up.test.") { // the other server has it
				c := dns.Client{Net: "tcp"}
				q := req.Copy()
				q.RecursionDesired = false
				if up, _, err := c.Exchange(q, w.ns2.Addr); err == nil {
					up.Authoritative = false
					return up
				}
			}
			return resp
		})
		rep, err := w.checker(t, Site{Domains: []string{"one.up.test"}, Hostname: "mx.relay.test"}, r.addr).Check(t.Context(), Relay, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range findings(rep, "ns-parent") {
			got += fmt.Sprintf("%s %s (%s)", f.Severity, f.Seen, f.Server)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", second, got, want)
		}
	}
}

// flags counts what handlers saw.
type flags struct {
	mu      sync.Mutex
	yes, no int
}

func (f *flags) note(b bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b {
		f.yes++
	} else {
		f.no++
	}
}

func (f *flags) count() (yes, no int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.yes, f.no
}

func TestServers(t *testing.T) {
	_, site := site1()
	conf := t.TempDir() + "/resolv.conf"
	write(t, conf, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n")
	c, err := NewChecker(Config{Site: site, resolvConf: conf})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.servers(t.Context(), []string{"system", "192.0.2.9", "[2001:db8::9]", "127.0.0.1:5353", "192.0.2.9:53"})
	if err != nil {
		t.Fatal(err)
	}
	want := "[192.0.2.1 2001:db8::1 ([2001:db8::1]) 192.0.2.9 [2001:db8::9] 127.0.0.1:5353]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	for _, bad := range []string{"nothing", ""} {
		empty := t.TempDir() + "/resolv.conf"
		if bad == "" {
			write(t, empty, "search example.org\n")
		}
		c.cfg.resolvConf = empty
		if _, err := c.servers(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "resolver") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := NewChecker(Config{}); err == nil {
		t.Error("a site without domains is taken")
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
