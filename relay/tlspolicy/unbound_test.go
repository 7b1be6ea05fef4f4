package tlspolicy_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/resolver"
	"crossfade/relay/smtpclient"
	"crossfade/relay/tlspolicy"
)

// TestDANEUnbound is DANE with a resolver that validates in truth, zones that are signed in truth, and what somebody on
// the way to a name server can make of them.
func TestDANEUnbound(t *testing.T) {
	s := newSite(t)
	other, err := s.ca.Issue("mx.example.org")
	if err != nil {
		t.Fatal(err)
	}
	key := func(spki []byte) string { return fmt.Sprintf("3 1 1 %x", sha256.Sum256(spki)) }
	good, bad := key(s.cert.Leaf.RawSubjectPublicKeyInfo), key(other.Leaf.RawSubjectPublicKeyInfo)
	port := portOf(t, s.sink)
	zone := "$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\na A 127.0.0.1\ne A 127.0.0.1\nbare A 127.0.0.1\nalias CNAME a\n" +
		fmt.Sprintf("_%s._tcp.a TLSA %s\n_%s._tcp.e TLSA %s\n", port, good, port, bad)
	month, lastWeek := time.Now().AddDate(0, 1, 0), time.Now().AddDate(0, 0, -7) // a day is forgiven

	signed := map[string]realtest.SignedZone{}
	for _, name := range []string{"good", "forged", "bare", "stripped"} {
		signed[name] = realtest.SignZone(t, name+".test", zone, month)
	}
	signed["stale"] = realtest.SignZone(t, "stale.test", zone, lastWeek)
	zones := map[string]string{"plain.test": "$ORIGIN plain.test.\n" + zone}
	var anchors []string
	for name, z := range signed {
		zones[name+".test"] = z.Text
		anchors = append(anchors, z.Anchor)
	}
	// Somebody puts his own key in the place of the server's, takes the records away, or all that is signed.
	strip := func(text string, drop func(line string) bool) string {
		var b strings.Builder
		for line := range strings.Lines(text) {
			if !drop(line) {
				b.WriteString(line)
			}
		}
		return b.String()
	}
	hexOf := func(r string) string { return r[strings.LastIndexByte(r, ' ')+1:] }
	if zones["forged.test"] = strings.ReplaceAll(zones["forged.test"], hexOf(bad), hexOf(good)); zones["forged.test"] == signed["forged"].Text {
		t.Fatal("nothing was forged")
	}
	zones["bare.test"] = strip(zones["bare.test"], func(l string) bool { return strings.Contains(l, "\tTLSA") || strings.HasPrefix(l, "_") })
	zones["stripped.test"] = strip(zones["stripped.test"], func(l string) bool {
		return strings.Contains(l, "\tRRSIG\t") || strings.Contains(l, "\tNSEC\t") || strings.Contains(l, "\tDNSKEY\t")
	})
	nsd := realtest.StartNSD(t, zones)
	var names []string
	for name := range zones {
		names = append(names, name)
	}
	unbound := realtest.StartUnbound(t, nsd.Addr, names, anchors)
	r, err := resolver.New(resolver.Config{Servers: []string{unbound.Addr}, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, host string
		want       string // verified, clear; or a part of the error
		absent     string
	}{
		{"the server's key", "a.good.test", "verified", ""},
		{"the server's key behind an alias", "alias.good.test", "verified", ""},
		{"another key", "e.good.test", "fits none of its TLSA records", ""},
		{"proven that there is none", "bare.good.test", "unverified", "bare.good.test has no TLSA records"},
		{"proven that there is no such name", "nowhere.good.test", "unverified", "nowhere.good.test does not exist in the DNS"},
		{"a zone that is not signed", "e.plain.test", "unverified", "does not vouch for e.plain.test"},
		{"a record that was put in another's place", "e.forged.test", "DANE: ", ""},
		{"a record that was taken away", "a.bare.test", "DANE: ", ""},
		{"signatures that are over", "a.stale.test", "DANE: ", ""},
		{"signatures that were taken away", "a.stripped.test", "DANE: ", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var results []string
			d := tlspolicy.NewDANE(r, tt.host, port)
			conn, err := dial(t, s.sink, tt.host, smtpclient.Opportunistic, d.Rule, &results)
			if conn != nil {
				defer conn.Quit(t.Context())
			}
			switch tt.want {
			case "verified", "unverified":
				if err != nil || !conn.Encrypted() || conn.Verified() != (tt.want == "verified") {
					t.Errorf("%v", err)
				}
			default:
				if err == nil || !errors.Is(err, smtpclient.ErrPolicy) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("mail would be sent: %v", err)
				}
			}
			if !strings.Contains(d.Absent(), tt.absent) || tt.absent == "" && d.Absent() != "" {
				t.Errorf("%q", d.Absent())
			}
		})
	}
}
