package authn

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"crossfade/internal/mailtest/realtest"
	"crossfade/mail"
)

// TestSPFExamples: the zones and records of RFC 7208, appendix A, on a real name server.
func TestSPFExamples(t *testing.T) {
	const soa = "$TTL 300\n@ SOA ns1.example.com. hostmaster 1 3600 600 604800 60\n@ NS ns1.example.com.\n"
	const hosts = "@ MX 10 mail-a\n@ MX 20 mail-b\n@ A 192.0.2.10\n@ A 192.0.2.11\namy A 192.0.2.65\nbob A 192.0.2.66\n" +
		"mail-a A 192.0.2.129\nmail-b A 192.0.2.130\n"
	zones := map[string]string{
		"example.com": soa + hosts + "ns1 A 192.0.2.53\n@ TXT \"v=spf1 ptr -all\"\n",
		"example.org": soa + "@ MX 10 mail-c\nmail-c A 192.0.2.140\n",
		"2.0.192.in-addr.arpa": soa + "10 PTR example.com.\n11 PTR example.com.\n65 PTR amy.example.com.\n66 PTR bob.example.com.\n" +
			"129 PTR mail-a.example.com.\n130 PTR mail-b.example.com.\n140 PTR mail-c.example.org.\n",
		"0.0.10.in-addr.arpa": soa + "4 PTR bob.example.com.\n",
	}
	type example struct {
		record, pass, fail string // addresses; with a local part where it matters
	}
	examples := []example{
		{"v=spf1 +all", "192.0.2.1 2001:db8::1", ""},
		{"v=spf1 a -all", "192.0.2.10 192.0.2.11", "192.0.2.12 2001:db8::1"},
		{"v=spf1 a:example.org -all", "", "192.0.2.10 192.0.2.140"},
		{"v=spf1 mx -all", "192.0.2.129 192.0.2.130", "192.0.2.10"},
		{"v=spf1 mx:example.org -all", "192.0.2.140", "192.0.2.129"},
		{"v=spf1 mx mx:example.org -all", "192.0.2.129 192.0.2.130 192.0.2.140", "192.0.2.65"},
		{"v=spf1 mx/30 mx:example.org/30 -all", "192.0.2.131 192.0.2.143", "192.0.2.132 192.0.2.144"},
		{"v=spf1 ip4:192.0.2.128/28 -all", "192.0.2.129 ::ffff:192.0.2.129", "192.0.2.65"},
		{"v=spf1 include:example.com -all", "192.0.2.65", "192.0.2.140"},
		{"v=spf1 redirect=example.com", "192.0.2.65", "192.0.2.140"},
		{"v=spf1 mx exists:%{l1r+}.mobile._spf.%{d} -all", "192.0.2.129 mary@203.0.113.1 mary+x@2001:db8::1", "joe@203.0.113.1"},
		{"v=spf1 exists:%{ir}.%{l1r+}.remote._spf.%{d} -all", "joel@192.168.15.15", "joel@192.168.15.16 mary@192.168.15.15"},
		{"v=spf1 ip6:2001:db8::/32 -all", "2001:db8:1::1", "2001:db9::1 192.0.2.1"},
	}
	for i, e := range examples {
		zones[fmt.Sprintf("p%d.test", i)] = soa + hosts + fmt.Sprintf("@ TXT %q\nmary.mobile._spf A 127.0.0.2\n15.15.168.192.joel.remote._spf A 127.0.0.2\n", e.record)
	}
	c := checkerAt(t, realtest.StartNSD(t, zones).Addr, nil)
	try := func(domain, who string, want Result) {
		t.Helper()
		local, addr, has := strings.Cut(who, "@")
		if !has {
			local, addr = "joe", who
		}
		m := Message{Client: netip.MustParseAddr(addr), Helo: "mail.example.com", From: mail.Address{Local: local, Domain: domain}}
		if got := c.checkSPF(t.Context(), m); got.Result != want || got.Domain != domain {
			t.Errorf("%s from %s: %+v, want %s", domain, who, got, want)
		}
	}
	for i, e := range examples {
		for _, who := range strings.Fields(e.pass) {
			try(fmt.Sprintf("p%d.test", i), who, Pass)
		}
		for _, who := range strings.Fields(e.fail) {
			try(fmt.Sprintf("p%d.test", i), who, Fail)
		}
	}
	for who, want := range map[string]Result{"192.0.2.10": Pass, "192.0.2.65": Pass, "192.0.2.140": Fail, "10.0.0.4": Fail} {
		try("example.com", who, want)
	}
	for _, tt := range []struct {
		helo string
		from mail.Address
		want SPF
	}{
		{"amy.example.com", mail.Address{}, SPF{Result: None, Helo: true, Domain: "amy.example.com"}},
		{"P3.Test.", mail.Address{}, SPF{Result: Pass, Helo: true, Domain: "p3.test"}},
		{"[192.0.2.129]", mail.Address{}, SPF{Result: None, Helo: true}},
		{"localhost", mail.Address{}, SPF{Result: None, Helo: true}},
		{"a b; c", mail.Address{}, SPF{Result: None, Helo: true}},
		{"p0.test", mail.Address{Local: "x y\"", Domain: "p3.test"}, SPF{Result: Pass, Domain: "p3.test", Sender: "p3.test"}},
		{"p0.test", mail.Address{Local: "x", Domain: "[192.0.2.129]"}, SPF{Result: None, Sender: "[192.0.2.129]"}},
		{"p0.test", mail.Address{Local: "x", Domain: "not.there.p3.test"}, SPF{Result: None, Domain: "not.there.p3.test", Sender: "x@not.there.p3.test"}},
		{"p0.test", mail.Address{Local: "x", Domain: "nobody.invalid"}, SPF{Result: TempError, Domain: "nobody.invalid", Sender: "x@nobody.invalid"}}, // REFUSED
	} {
		got := c.checkSPF(t.Context(), Message{Client: netip.MustParseAddr("192.0.2.129"), Helo: tt.helo, From: tt.from})
		got.Reason = ""
		if got.Domain == "" {
			got.Sender, tt.want.Sender = "", ""
		}
		if got != tt.want {
			t.Errorf("HELO %s, from <%s>: %+v, want %+v", tt.helo, tt.from, got, tt.want)
		}
	}
}
