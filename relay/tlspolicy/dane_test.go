package tlspolicy_test

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/resolver"
	"crossfade/relay/smtpclient"
	"crossfade/relay/tlspolicy"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// validating is a resolver in front of an NSD. It says AD as a validating one would for names below vouched, and fails
// for those below bogus.
func validating(t *testing.T, nsd *realtest.NSD, vouched, bogus string) *resolver.Resolver {
	t.Helper()
	front, err := mailtest.NewDNS(func(req *dns.Msg, _ bool) *dns.Msg {
		name := strings.ToLower(req.Question[0].Name)
		if bogus != "" && strings.HasSuffix(name, bogus+".") {
			return new(dns.Msg).SetRcode(req, dns.RcodeServerFailure)
		}
		resp, _, err := (&dns.Client{Net: "tcp", Timeout: 5 * time.Second}).Exchange(req, nsd.Addr)
		if err != nil {
			return nil
		}
		resp.Authoritative, resp.RecursionAvailable = false, true
		resp.AuthenticatedData = vouched != "" && strings.HasSuffix(name, vouched+".")
		return resp
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(front.Close)
	r, err := resolver.New(resolver.Config{Servers: []string{front.Addr}, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// site is a server with a certificate for mx.example.org, and its zone.
type site struct {
	ca    *mailtest.CA
	cert  tls.Certificate
	sink  *mailtest.Sink // with STARTTLS
	clear *mailtest.Sink // without
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{}
	var err error
	if s.ca, err = mailtest.NewCA(); err != nil {
		t.Fatal(err)
	}
	// Its dates are over: with usage 3 that does not count.
	if s.cert, err = s.ca.IssueValid(time.Now().Add(-2*time.Hour), time.Now().Add(time.Hour), "mx.example.org"); err != nil {
		t.Fatal(err)
	}
	for sink, cfg := range map[**mailtest.Sink]mailtest.SinkConfig{
		&s.sink: {STARTTLS: true, TLS: &tls.Config{Certificates: []tls.Certificate{s.cert}}}, &s.clear: {},
	} {
		if *sink, err = mailtest.NewSink(cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*sink).Close() })
	}
	return s
}

func portOf(t *testing.T, s *mailtest.Sink) string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// dial connects to a sink under a name.
func dial(t *testing.T, sink *mailtest.Sink, host string, mode smtpclient.Mode, policy func(context.Context) (smtpclient.Rule, error), results *[]string) (*smtpclient.Conn, error) {
	t.Helper()
	return smtpclient.Dial(t.Context(), smtpclient.Target{
		Address: net.JoinHostPort(host, portOf(t, sink)), Mode: mode, Policy: policy,
		TLSResult: func(rule string, err error) { *results = append(*results, rule+" "+tlspolicy.Classify(err)) },
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, sink.Addr())
		},
	})
}

// TestDANE is every kind of record, from an NSD, against real handshakes; with smtp://, that would otherwise fall back to
// clear text, and with smtp+starttls://, that would otherwise ask an authority.
func TestDANE(t *testing.T) {
	s := newSite(t)
	leaf := s.cert.Leaf
	ca, err := x509.ParseCertificate(s.cert.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.ca.Issue("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	sha2 := func(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }
	good311 := "3 1 1 " + sha2(leaf.RawSubjectPublicKeyInfo)
	bad311 := "3 1 1 " + sha2(other.Leaf.RawSubjectPublicKeyInfo)
	cases := []struct {
		name, host string
		records    []string
		want       string // empty: connected and proven; "unproven": connected under TLS; else a part of the error
		result     string
	}{
		{"key of the server", "a", []string{good311}, "", "tlsa success"},
		{"key of the server, another one first", "b", []string{bad311, good311}, "", "tlsa success"},
		{"certificate, SHA-512", "c", []string{fmt.Sprintf("3 0 2 %x", sha512.Sum512(leaf.Raw))}, "", "tlsa success"},
		{"certificate, whole", "d", []string{fmt.Sprintf("3 0 0 %x", leaf.Raw)}, "", "tlsa success"},
		{"another key", "e", []string{bad311}, "fits none of its TLSA records", "tlsa tlsa-invalid"},
		{"an authority, right name", "mx", []string{"2 0 1 " + sha2(ca.Raw)}, "", "tlsa success"},
		{"an authority, another name", "g", []string{"2 0 1 " + sha2(ca.Raw)}, "fits none of its TLSA records", "tlsa tlsa-invalid"},
		{"usages that do not count", "h", []string{"1 1 1 " + sha2(leaf.RawSubjectPublicKeyInfo), "0 1 1 " + sha2(ca.Raw)}, "unproven", "tlsa success"},
		{"unknown matching type", "i", []string{"3 1 9 00"}, "unproven", "tlsa success"},
	}
	port := portOf(t, s.sink)
	zone := "$ORIGIN example.org.\n$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\nbare A 127.0.0.1\nalias CNAME mx\n"
	for _, c := range cases {
		zone += c.host + " A 127.0.0.1\n"
		for _, r := range c.records {
			zone += fmt.Sprintf("_%s._tcp.%s TLSA %s\n", port, c.host, r)
		}
	}
	nsd := realtest.StartNSD(t, map[string]string{"example.org": zone})
	vouched, doubtful := validating(t, nsd, "example.org", ""), validating(t, nsd, "", "")
	for _, c := range cases {
		for _, mode := range []smtpclient.Mode{smtpclient.Opportunistic, smtpclient.Required} {
			var results []string
			host := c.host + ".example.org"
			conn, err := dial(t, s.sink, host, mode, tlspolicy.NewDANE(vouched, host, port).Rule, &results)
			switch {
			case c.want == "" || c.want == "unproven":
				if err != nil || !conn.Encrypted() || conn.Verified() != (c.want == "") {
					t.Errorf("%s, %s: %v", c.name, mode, err)
				}
			case err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, smtpclient.ErrPolicy):
				t.Errorf("%s, %s: %v", c.name, mode, err)
			}
			if len(results) != 1 || results[0] != c.result {
				t.Errorf("%s, %s: counted %q", c.name, mode, results)
			}
			if conn != nil {
				conn.Quit(t.Context())
			}
		}
	}
	t.Run("a name that leads elsewhere", func(t *testing.T) {
		var results []string
		conn, err := dial(t, s.sink, "alias.example.org", smtpclient.Required, tlspolicy.NewDANE(vouched, "alias.example.org", port).Rule, &results)
		if err != nil || !conn.Verified() {
			t.Fatalf("%v", err)
		}
		conn.Quit(t.Context())
	})
	t.Run("nobody vouches", func(t *testing.T) {
		var results []string
		d := tlspolicy.NewDANE(doubtful, "e.example.org", port)
		conn, err := dial(t, s.sink, "e.example.org", smtpclient.Opportunistic, d.Rule, &results)
		if err != nil || conn.Verified() || !strings.Contains(d.Absent(), "does not vouch for e.example.org") {
			t.Fatalf("%v; %s", err, d.Absent())
		}
		conn.Quit(t.Context())
	})
	t.Run("no records", func(t *testing.T) {
		var results []string
		d := tlspolicy.NewDANE(vouched, "bare.example.org", port)
		conn, err := dial(t, s.clear, "bare.example.org", smtpclient.Opportunistic, d.Rule, &results)
		if err != nil || conn.Encrypted() || d.Absent() != "bare.example.org has no TLSA records" || results[0] != " starttls-not-supported" {
			t.Fatalf("%v; %s; %q", err, d.Absent(), results)
		}
		conn.Quit(t.Context())
	})
	t.Run("no such name", func(t *testing.T) {
		d := tlspolicy.NewDANE(vouched, "nowhere.example.org", port)
		if rule, err := d.Rule(t.Context()); err != nil || rule.Name != "" || d.Absent() != "nowhere.example.org does not exist in the DNS" {
			t.Errorf("%+v, %v; %s", rule, err, d.Absent())
		}
	})
	t.Run("records and no STARTTLS", func(t *testing.T) {
		var results []string
		_, err := dial(t, s.clear, "a.example.org", smtpclient.Opportunistic, tlspolicy.NewDANE(vouched, "a.example.org", port).Rule, &results)
		if !errors.Is(err, smtpclient.ErrNoTLS) || !errors.Is(err, smtpclient.ErrPolicy) || results[0] != "tlsa starttls-not-supported" {
			t.Errorf("%v; %q", err, results)
		}
	})
	t.Run("records that do not validate", func(t *testing.T) {
		var results []string
		bogus := validating(t, nsd, "example.org", "_tcp.a.example.org")
		_, err := dial(t, s.sink, "a.example.org", smtpclient.Opportunistic, tlspolicy.NewDANE(bogus, "a.example.org", port).Rule, &results)
		if err == nil || !errors.Is(err, smtpclient.ErrPolicy) || len(results) != 0 {
			t.Errorf("mail is sent although nobody knows the records: %v", err)
		}
	})
}
