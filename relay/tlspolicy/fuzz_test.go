package tlspolicy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"testing"

	"crossfade/internal/mailtest"
	"crossfade/relay/resolver"
)

// FuzzTLSA: whatever a zone holds, TLS stays required, and a server is taken for proven only by a record that fits its own
// certificate or its authority's.
func FuzzTLSA(f *testing.F) {
	ca, err := mailtest.NewCA()
	if err != nil {
		f.Fatal(err)
	}
	cert, err := ca.Issue("mx.example.org")
	if err != nil {
		f.Fatal(err)
	}
	root, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		f.Fatal(err)
	}
	chain := []*x509.Certificate{cert.Leaf, root}
	sum := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	f.Add(uint8(3), uint8(1), uint8(1), hex.EncodeToString(sum[:]))
	f.Add(uint8(2), uint8(0), uint8(0), hex.EncodeToString(root.Raw))
	f.Add(uint8(2), uint8(0), uint8(0), "3082")
	f.Add(uint8(0), uint8(9), uint8(3), "zz")
	f.Fuzz(func(t *testing.T, usage, selector, matching uint8, data string) {
		record := resolver.TLSA{Usage: usage, Selector: selector, MatchingType: matching, Certificate: data}
		rule := ruleOf([]resolver.TLSA{record}, "mx.example.org", "mx.example.org")
		if !rule.Require || !rule.Alone || rule.Proves != (rule.Verify != nil) {
			t.Fatalf("%+v makes %+v", record, rule)
		}
		if rule.Verify == nil {
			return
		}
		ok := rule.Verify(tls.ConnectionState{PeerCertificates: chain}) == nil
		if ok && !(usage == usageEE && fits(record, chain[0]) || usage == usageTA && fits(record, root)) {
			t.Fatalf("%+v lets a server pass that it does not name", record)
		}
	})
}

// FuzzSTSRecord: an id has no blanks and no separators, and nothing is made of a record of another protocol.
func FuzzSTSRecord(f *testing.F) {
	for _, seed := range []string{"v=STSv1; id=20260301;", "v=STSv1;id", "v=STSv1", "v=spf1 -all", "; id=1", "v=STSv1 ; id = 1 ; id=2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := NewSTS(STSConfig{LookupTXT: func(context.Context, string) (resolver.Answer[string], error) {
			return resolver.Answer[string]{Records: []string{text}}, nil
		}})
		id, err := s.recordID(t.Context(), "example.org")
		if err != nil || strings.Contains(id, ";") || strings.TrimSpace(id) != id || id != "" && !strings.HasPrefix(strings.TrimSpace(text), "v=STSv1") {
			t.Fatalf("%q gives %q, %v", text, id, err)
		}
	})
}
