package dnswatch

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the findings of today into the cases; read the difference")

// zoneCase is a file of testdata/check: a site, the zone as one or both name servers have it, a policy, and the
// findings.
type zoneCase struct {
	file    string
	archive *txtar.Archive
	parts   map[string]string
	keys    map[string]string
}

func (c *zoneCase) name() string { return strings.TrimSuffix(filepath.Base(c.file), ".txtar") }

func (c *zoneCase) zone() string { return c.name() + ".test" }

func readCases(t *testing.T) []*zoneCase {
	t.Helper()
	files, err := filepath.Glob("testdata/check/*.txtar")
	if err != nil || len(files) < 40 {
		t.Fatalf("found %d cases: %v", len(files), err)
	}
	var out []*zoneCase
	for _, f := range files {
		a, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		c := &zoneCase{file: f, archive: a, parts: map[string]string{}, keys: map[string]string{}}
		for _, part := range a.Files {
			c.parts[part.Name] = string(part.Data)
		}
		for line := range strings.Lines(c.parts["case"]) {
			key, value, _ := strings.Cut(line, ":")
			c.keys[key] = strings.TrimSpace(value)
		}
		out = append(out, c)
	}
	return out
}

// site is that of most cases, with what the case says otherwise.
func (c *zoneCase) site(t *testing.T) Site {
	t.Helper()
	or := func(key string, def ...string) []string {
		if v, ok := c.keys[key]; ok {
			return strings.Fields(v)
		}
		return def
	}
	s := Site{
		Domains: []string{c.zone()}, Hostname: or("hostname", "mx.relay.test")[0], RelayMX: or("relay_mx"),
		OldMX: or("old_mx", "mail.old.test"), NewMX: or("new_mx", "mx1.new.test", "mx2.new.test"),
		SPFRelay: or("spf_relay", "ip4:192.0.2.25"), SPFNew: or("spf_new", "include:_spf.new.test"), SPFOld: or("spf_old", "ip4:198.51.100.25"),
		DKIMOld: or("dkim_old", "o1"), DKIMNew: or("dkim_new", "n1"),
	}
	for _, a := range or("relay_addresses") {
		s.RelayAddrs = append(s.RelayAddrs, netip.MustParseAddr(a))
	}
	return s
}

// servers gives the zones of both name servers.
func zonesOf(cases []*zoneCase) (ns1, ns2 map[string]string, hosts []string) {
	ns1, ns2 = map[string]string{}, map[string]string{}
	for _, c := range cases {
		ns1[c.zone()] = head + c.parts["ns1"]
		second, ok := c.parts["ns2"]
		switch {
		case !ok:
			ns2[c.zone()] = ns1[c.zone()]
		case second != "":
			ns2[c.zone()] = strings.Replace(head, ". 1 ", ". "+c.keys["serial2"]+" ", 1) + second
		}
		if c.name() != "sts-cert" { // whose web server has no certificate for it
			hosts = append(hosts, "mta-sts."+c.zone())
		}
	}
	return ns1, ns2, hosts
}

// changing is what differs from one run to the next.
var changing = regexp.MustCompile(`127\.0\.0\.1:\d+|id=\d{14}|valid until [^;]*UTC|changed now|\d{4}-\d\d-\d\d \d\d:\d\d UTC|"?3 1 1 [0-9a-f]{64}|certificate is valid for [^\n]*`)

func golden(rep Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "phase %s\n", rep.Phase)
	for _, f := range rep.Findings {
		fmt.Fprintf(&b, "%s %s [%s] %s\n", f.Severity, f.Check, f.Server, f.Seen)
		if f.Severity == OK {
			continue
		}
		for line := range strings.Lines(f.Change) {
			fmt.Fprintf(&b, "  %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	text := b.String()
	return changing.ReplaceAllStringFunc(text, func(s string) string {
		switch {
		case strings.HasPrefix(s, "127."):
			return "RESOLVER"
		case strings.HasPrefix(s, "id="):
			return "id=NOW"
		case strings.Contains(s, "3 1 1 0000"), s == "changed now":
			return s
		case strings.Contains(s, "3 1 1"):
			return "3 1 1 FITS"
		case strings.HasPrefix(s, "certificate"):
			return "certificate is valid for OTHERS"
		case strings.HasPrefix(s, "valid"):
			return "valid until THEN"
		}
		return "THEN"
	})
}

// TestZones serves every zone of testdata/check from two real name servers, and wants the exact findings.
func TestZones(t *testing.T) {
	cases := readCases(t)
	ns1, ns2, hosts := zonesOf(cases)
	w := newWorld(t, ns1, ns2, hosts)
	r1 := newResolver(t, func() string { return w.ns1.Addr }, nil)
	r2 := newResolver(t, func() string { return w.ns1.Addr }, nil)
	for _, c := range cases {
		if p, ok := c.parts["policy"]; ok {
			w.policy("mta-sts."+c.zone(), p)
		}
	}
	checks := map[string]bool{}
	for _, c := range cases {
		t.Run(c.name(), func(t *testing.T) {
			rep, err := w.checker(t, c.site(t), r1.addr, r2.addr).Check(t.Context(), Phase(c.keys["phase"]), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range rep.Findings {
				checks[f.Check] = true
				if rank[f.Severity] >= rank[Warn] && f.Why == "" {
					t.Errorf("%s %s does not say why", f.Severity, f.Check)
				}
			}
			got := golden(rep)
			if *update {
				c.write(t, got)
				return
			}
			if diff := cmp.Diff(c.parts["want"], got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	t.Logf("%d cases, kinds of findings: %q", len(cases), slices.Sorted(maps.Keys(checks)))
}

func (c *zoneCase) write(t *testing.T, want string) {
	t.Helper()
	for i := range c.archive.Files {
		if c.archive.Files[i].Name == "want" {
			c.archive.Files[i].Data = []byte(want)
		}
	}
	if err := os.WriteFile(c.file, txtar.Format(c.archive), 0o644); err != nil {
		t.Fatal(err)
	}
}
