package dnswatch

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestParseSPF(t *testing.T) {
	for _, tt := range []struct{ text, want, err string }{
		{"v=spf1", "", ""},
		{"V=SPF1 A MX -ALL", "+a +mx -all", ""},
		{"v=spf1 a:mail.example.org/24 mx/24//64 a//48 ?ip4:192.0.2.0/24 ~ip6:2001:db8::/32 exists:%{i}.x ptr:y", "+a:mail.example.org/24 +mx/24/64 +a/-1/48 ?ip4:192.0.2.0/24 ~ip6:2001:db8::/32 +exists:%{i}.x +ptr:y", ""},
		{"v=spf1 redirect=_spf.example.org exp=why.example.org x=y", "redirect=_spf.example.org exp=why.example.org x=y", ""},
		{"v=spf1 include: -all", "-all", `"include:" is not complete`},
		{"v=spf1 all:x foo ip4:1.2.3 ip4:2001:db8::1 ip6:192.0.2.1 a/33 mx//129 redirect= -", "", "is no mechanism"},
		{"v=spf10 -all", "", "does not begin with v=spf1"},
		{"", "", "does not begin"},
		{"v=spf1 " + strings.Repeat("a ", maxSPF), "", "octets"},
	} {
		terms, err := parseSPF(tt.text)
		var got []string
		for _, s := range terms {
			got = append(got, termText(s))
		}
		if strings.Join(got, " ") != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%.80q:\n got %s, %v\nwant %s, %s", tt.text, strings.Join(got, " "), err, tt.want, tt.err)
		}
	}
}

func termText(s spfTerm) string {
	if s.qualifier == 0 {
		return s.name + "=" + s.arg
	}
	out := string(s.qualifier) + s.name
	if s.arg != "" {
		out += ":" + s.arg
	}
	if s.cidr4 >= 0 || s.cidr6 >= 0 {
		out += fmt.Sprintf("/%d", s.cidr4)
	}
	if s.cidr6 >= 0 {
		out += fmt.Sprintf("/%d", s.cidr6)
	}
	return out
}

func TestParsePolicy(t *testing.T) {
	const head = "version: STSv1\r\nmode: enforce\r\nmax_age: 604800\r\n"
	for _, tt := range []struct{ text, err string }{
		{head + "mx: mail.example.org\r\nmx: *.example.net\r\n", ""},
		{"mx: a.example\nmax_age:86400 \n mode : testing\nversion: STSv1\nx-new: y\n\n", ""},
		{"version: STSv1\nmode: none\nmax_age: 86400\n", ""},
		{head, "names no mx"},
		{"mode: enforce\nmax_age: 1\nmx: a", "no version"},
		{"version: STSv2\nmode: enforce\nmax_age: 1\nmx: a", "not STSv1"},
		{"version: STSv1\nmax_age: 1\nmx: a", "no mode"},
		{"version: STSv1\nmode: enforce\nmx: a", "no max_age"},
		{"version: STSv1\nmode: enforce\nmax_age: -1\nmx: a", "no number"},
		{"version: STSv1\nmode: enforce\nmax_age: 99999999999\nmx: a", "no number"},
		{"<html>\n", "not of the form"},
		{head + strings.Repeat("mx: a.example\n", maxPolicyMX+1), "more than"},
	} {
		p, err := ParsePolicy(tt.text)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%.60q: %+v, %v, want %s", tt.text, p, err, tt.err)
		}
	}
	p, _ := ParsePolicy(head + "mx: Mail.Example.ORG.\nmx: *.example.net\nmode: testing\n")
	if diff := cmp.Diff(Policy{Mode: "enforce", MaxAge: 7 * 24 * time.Hour, MX: []string{"mail.example.org", "*.example.net"}}, p); diff != "" {
		t.Error(diff)
	}
	for host, want := range map[string]bool{"mail.example.org.": true, "MAIL.example.org": true, "a.example.net": true, "a.b.example.net": false, "example.net": false, ".example.net": false, "other.org": false} {
		if p.Covers(host) != want {
			t.Errorf("%s: %t", host, !want)
		}
	}
}

func FuzzSPF(f *testing.F) {
	f.Add("v=spf1 a:x/24//64 -ip4:1.2.3.0/24 include:y redirect=z ~all")
	f.Add("v=spf1 ip6:::/0 a//0 mx/ +")
	f.Fuzz(func(t *testing.T, text string) {
		terms, _ := parseSPF(text)
		for _, s := range terms {
			if s.qualifier != 0 && (!slices.Contains(spfMechanisms, s.name) || s.cidr4 > 32 || s.cidr6 > 128) {
				t.Errorf("%q: %+v", text, s)
			}
			if s.name == "ip4" && s.qualifier != 0 {
				if n, err := s.network(); err != nil || !n.Addr().Is4() {
					t.Errorf("%q: %+v", text, s)
				}
			}
		}
		merged([]string{"v=spf1 " + text, "v=spf1"})
		tags(text)
		keyProblem([]string{text})
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add("version: STSv1\nmode: enforce\nmx: *.a.example\nmax_age: 1\n", "b.a.example")
	f.Add("mx:\nmode:none\r\nversion:STSv1\nmax_age:31557601", "")
	f.Fuzz(func(t *testing.T, text, host string) {
		p, err := ParsePolicy(text)
		if err == nil && (p.Mode == "" || p.MaxAge < 0 || p.MaxAge > maxPolicyAge*time.Second || p.Mode != "none" && len(p.MX) == 0) {
			t.Errorf("%q: %+v", text, p)
		}
		if p.Covers(host) && strings.Contains(strings.TrimSuffix(host, "."), "..") && !slices.Contains(p.MX, strings.ToLower(strings.TrimSuffix(host, "."))) {
			t.Errorf("%q covers %q", text, host)
		}
	})
}

// FuzzAnswer: whatever a server sends, reading it ends, and gives no more than is allowed.
func FuzzAnswer(f *testing.F) {
	m := new(dns.Msg)
	m.SetQuestion("one.test.", dns.TypeMX)
	for _, text := range []string{"one.test. 1 IN CNAME a.test.", "a.test. 1 IN MX 1 b.test.", "one.test. 1 IN TXT \"x\" \"y\"", "one.test. 4294967295 IN MX 1 ."} {
		r, _ := dns.NewRR(text)
		m.Answer = append(m.Answer, r)
	}
	wire, _ := m.Pack()
	f.Add(wire)
	f.Fuzz(func(t *testing.T, wire []byte) {
		m := new(dns.Msg)
		if m.Unpack(wire) != nil {
			return
		}
		for _, typ := range []uint16{dns.TypeMX, dns.TypeTXT, dns.TypeA, dns.TypeTLSA, dns.TypeCNAME} {
			a := read(Server{}, ask("one.test", typ), m)
			if len(a.records) > maxRecords || len(a.chain) > maxChain {
				t.Errorf("%d records, %d CNAMEs", len(a.records), len(a.chain))
			}
			for _, r := range a.records {
				if r.Header().Rrtype != typ || lifetime(r.Header().Ttl) > maxTTL || len(line(r)) > maxText+8 {
					t.Errorf("%s", r)
				}
			}
			valuesOf(a)
		}
	})
}

// TestStartTLS: what a mail server may answer on port 25 before TLS.
func TestStartTLS(t *testing.T) {
	for _, tt := range []struct{ says, err string }{
		{"220 hi\r\n250-mx\r\n250 STARTTLS\r\n220 go\r\n", ""},
		{"220-hi\r\n220 there\r\n250-mx\r\n250-starttls\r\n250 SIZE\r\n220 go\r\n", ""},
		{"554 no\r\n", "greeting: it answered"},
		{"220 hi\r\n250 mx\r\n", "does not offer STARTTLS"},
		{"220 hi\r\n250 STARTTLS\r\n454 later\r\n", "STARTTLS: it answered"},
		{"220 hi\r\n250 STARTTLS\r\n220 go\r\n250 injected\r\n", "text behind the answer"},
		{"220 hi\r\n" + strings.Repeat("250-x\r\n", 200), "more than 100 lines"},
		{strings.Repeat("2", 100000), "buffer full"},
		{"", "EOF"},
	} {
		here, there := net.Pipe()
		go func() {
			go func() {
				for sc := bufio.NewScanner(there); sc.Scan(); {
				}
			}()
			there.Write([]byte(tt.says))
			there.Close()
		}()
		here.SetDeadline(time.Now().Add(5 * time.Second))
		err := startTLS(here, "mx.relay.test")
		here.Close()
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%.40q: %v, want %s", tt.says, err, tt.err)
		}
	}
}

func TestPhases(t *testing.T) {
	for _, p := range Phases() {
		if got, err := ParsePhase(string(p)); err != nil || got != p {
			t.Errorf("%s: %s, %v", p, got, err)
		}
	}
	if _, err := ParsePhase("later"); err == nil || !strings.Contains(err.Error(), "before-relay") {
		t.Error(err)
	}
	if w := (Report{}).Worst(); w != OK {
		t.Error(w)
	}
}
