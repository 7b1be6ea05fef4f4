package dnsbl

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/relay/resolver"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReverse(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "7.2.0.192.", "::ffff:192.0.2.7": "7.2.0.192.",
		"2001:db8::1": "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.",
	} {
		if got, ok := Reverse(netip.MustParseAddr(in)); got != want || !ok {
			t.Errorf("%s: %q", in, got)
		}
	}
	if _, ok := Reverse(netip.Addr{}); ok {
		t.Error("no address has a name")
	}
}

// lists starts a name server with a zone for each kind of answer.
func lists(t *testing.T) (*resolver.Resolver, *mailtest.DNS) {
	t.Helper()
	answers := map[string][]string{
		"listed.test.":   {"127.0.0.2"},
		"two.test.":      {"127.0.0.10", "127.0.0.4"},
		"good.test.":     {"127.0.10.1"},
		"blocked.test.":  {"127.255.255.254"},
		"sold.test.":     {"203.0.113.80"},
		"one.test.":      {"127.0.0.1"},
		"mixed.test.":    {"127.0.0.2", "127.255.255.255"},
		"empty.test.":    {},
		"servfail.test.": nil, "silent.test.": nil, "clear.test.": nil,
	}
	d, err := mailtest.NewDNS(func(req *dns.Msg, _ bool) *dns.Msg {
		resp := new(dns.Msg)
		resp.SetReply(req)
		name := req.Question[0].Name
		labels := dns.SplitDomainName(name)
		zone := dns.Fqdn(labels[len(labels)-2] + "." + labels[len(labels)-1])
		switch zone {
		case "silent.test.":
			return nil
		case "servfail.test.":
			resp.Rcode = dns.RcodeServerFailure
			return resp
		}
		addresses := answers[zone]
		if addresses == nil {
			resp.Rcode = dns.RcodeNameError
		}
		for _, a := range addresses {
			rr, _ := dns.NewRR(name + " 300 IN A " + a)
			resp.Answer = append(resp.Answer, rr)
		}
		return resp
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	r, err := resolver.New(resolver.Config{Servers: []string{d.Addr}, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return r, d
}

// TestCheck: only what says so in the form of a list counts; weights add up, and
// a list of good senders takes away. Whatever fails lists nobody.
func TestCheck(t *testing.T) {
	r, _ := lists(t)
	for name, tt := range map[string]struct {
		lists     []List
		threshold int
		want      Verdict
		results   []string
	}{
		"listed":              {[]List{{"listed.test", 1}}, 1, Verdict{true, 1, []string{"listed.test (127.0.0.2)"}}, []string{"listed"}},
		"clear":               {[]List{{"clear.test", 1}}, 1, Verdict{}, []string{"clear"}},
		"no address":          {[]List{{"empty.test", 1}}, 1, Verdict{}, []string{"clear"}},
		"two codes":           {[]List{{"two.test", 1}}, 1, Verdict{true, 1, []string{"two.test (127.0.0.10)"}}, []string{"listed"}},
		"refused to us":       {[]List{{"blocked.test", 1}}, 1, Verdict{}, []string{"error"}},
		"a domain for sale":   {[]List{{"sold.test", 1}}, 1, Verdict{}, []string{"error"}},
		"127.0.0.1":           {[]List{{"one.test", 1}}, 1, Verdict{}, []string{"error"}},
		"listed and an error": {[]List{{"mixed.test", 1}}, 1, Verdict{}, []string{"error"}},
		"broken":              {[]List{{"servfail.test", 1}}, 1, Verdict{}, []string{"error"}},
		"silent":              {[]List{{"silent.test", 1}}, 1, Verdict{}, []string{"error"}},
		"below the threshold": {[]List{{"listed.test", 1}, {"clear.test", 5}}, 2, Verdict{false, 1, []string{"listed.test (127.0.0.2)"}}, []string{"clear", "listed"}},
		"two make it":         {[]List{{"listed.test", 1}, {"two.test", 1}}, 2, Verdict{true, 2, []string{"listed.test (127.0.0.2)", "two.test (127.0.0.10)"}}, []string{"listed", "listed"}},
		"a good sender":       {[]List{{"listed.test", 1}, {"good.test", -5}}, 1, Verdict{false, -4, []string{"listed.test (127.0.0.2)", "good.test (127.0.10.1)"}}, []string{"listed", "listed"}},
		"silence beside":      {[]List{{"silent.test", 9}, {"listed.test", 1}}, 1, Verdict{true, 1, []string{"listed.test (127.0.0.2)"}}, []string{"error", "listed"}},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var results []string
			c, err := New(Config{Resolver: r, Lists: tt.lists, Threshold: tt.threshold, Looked: func(_, result string) {
				mu.Lock()
				defer mu.Unlock()
				results = append(results, result)
			}})
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range []string{"192.0.2.7", "2001:db8::7"} {
				results = nil
				got := c.Check(t.Context(), netip.MustParseAddr(a))
				slices.Sort(results)
				if got.Listed != tt.want.Listed || got.Score != tt.want.Score || !slices.Equal(got.Says, tt.want.Says) || !slices.Equal(results, tt.results) {
					t.Errorf("%s: %+v %v, want %+v %v", a, got, results, tt.want, tt.results)
				}
			}
		})
	}
}

// TestBeginSavesTheWait: what was begun is not asked for again.
func TestBeginSavesTheWait(t *testing.T) {
	r, d := lists(t)
	c, err := New(Config{Resolver: r, Lists: []List{{"listed.test", 1}, {"clear.test", 1}}})
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("192.0.2.9")
	c.Begin(t.Context(), a)
	for range 5 {
		if v := c.Check(t.Context(), a); !v.Listed {
			t.Error(v)
		}
	}
	if n := d.Asked(); n != 2 {
		t.Errorf("%d questions for two lists", n)
	}
	for len(c.ahead) > 0 { // the one that was begun ends with its answers
		c.Check(t.Context(), a)
	}
}

func TestNewRefuses(t *testing.T) {
	r, _ := lists(t)
	for _, cfg := range []Config{{}, {Resolver: r}, {Resolver: r, Lists: make([]List, MaxLists+1)}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}
