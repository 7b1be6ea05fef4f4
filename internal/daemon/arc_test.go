package daemon

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"crossfade/config"
	"crossfade/internal/mailtest/realtest"
	"crossfade/relay/authn/arc"
)

const arcOptions = `, authentication: {enforce: reject}, arc: {domain: good.test, selector: sel, key: KEY, trusted_sealers: [Aside.test]}`

// sealAs adds a set to a message, as somebody does who found that it passes DMARC.
func (s *authnSite) sealAs(domain, msg string) string {
	s.t.Helper()
	key, err := arc.OpenKey(s.key, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	sealer, err := arc.NewSealer(arc.SealerConfig{Domain: domain, Selector: "sel", Key: key.Signer})
	if err != nil {
		s.t.Fatal(err)
	}
	x := sealer.Begin()
	defer x.Close()
	x.Write([]byte(msg))
	lines, err := x.Seal(arc.Result{Status: arc.None}, domain+"; spf=pass; dmarc=pass header.from=strict.test", "")
	if err != nil {
		s.t.Fatal(err)
	}
	return lines + msg
}

func (s *authnSite) record() string {
	s.t.Helper()
	key, err := arc.OpenKey(s.key, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := arc.Record(key.Signer().Public())
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

const arcLetter = "From: Joe <joe@%s>\r\nTo: ann@example.org\r\nSubject: one\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@far.test>\r\n\r\nHello\r\n"

// TestARCSealed: what is found out about a sender reaches the backend under a seal
// that another implementation verifies.
func TestARCSealed(t *testing.T) {
	s := newAuthnSite(t, arcOptions)
	msg := s.sign("good.test", "Authentication-Results: mx.example.org; dmarc=pass header.from=forged.test\r\n"+fmt.Sprintf(arcLetter, "good.test"))
	if code, text := s.send("joe@good.test", msg); code != 250 {
		t.Fatal(code, text)
	}
	got := s.delivered()
	a := realtest.DKIMPy(t, map[string]string{"sel._domainkey.good.test": s.record()},
		realtest.DKIMPyJob{Op: "verify", Message: []byte(got)}, realtest.DKIMPyJob{Op: "dkim", Message: []byte(got)})
	if a[0].Status != "pass" || !a[0].Sets[1].AMS || !a[0].Sets[1].Seal || a[1].Status != "pass" {
		t.Errorf("dkimpy says %+v\n%s", a, got)
	}
	set, rest, _ := strings.Cut(got, "\r\nAuthentication-Results:")
	for _, want := range []string{"ARC-Authentication-Results: i=1; mx.example.org; spf=pass", "dkim=pass header.d=good.test", "dmarc=pass", "arc=none"} {
		if !strings.Contains(strings.Join(strings.Fields(set), " "), want) {
			t.Errorf("the set has no %q:\n%s", want, set)
		}
	}
	if strings.Contains(got, "forged.test") || !strings.Contains(rest, "\r\n\tarc=none;\r\n\tdmarc=pass") {
		t.Errorf("below the set:\n%s", rest)
	}
	if m := s.metrics(); !strings.Contains(m, `crossfade_arc_results_total{result="none"} 1`) || !strings.Contains(m, `crossfade_arc_seals_total{outcome="sealed"} 1`) {
		t.Error("not counted")
	}
}

// TestARCVouches: a policy of reject is not applied when a trusted sealer found
// that the message passed, and is when one found so who is not, or when the
// message was changed since.
func TestARCVouches(t *testing.T) {
	s := newAuthnSite(t, arcOptions)
	letter := fmt.Sprintf(arcLetter, "strict.test")
	for _, c := range []struct {
		name, msg string
		code      int
	}{
		{"no chain", letter, 550},
		{"a sealer who is not trusted", s.sealAs("good.test", letter), 550},
		{"changed since", strings.Replace(s.sealAs("aside.test", letter), "Hello", "Hallo", 1), 550},
		{"of another domain", s.sealAs("aside.test", fmt.Sprintf(arcLetter, "sub.strict.test")), 550},
		{"vouched for", s.sealAs("aside.test", letter), 250},
	} {
		if code, text := s.send("list@lists.test", c.msg); code != c.code {
			t.Errorf("%s: %d %s, want %d", c.name, code, text, c.code)
		}
	}
	got := s.delivered()
	if !strings.HasPrefix(got, "ARC-Seal: i=2;") || !strings.Contains(strings.Join(strings.Fields(got), " "), "(not applied: aside.test vouches for it) header.from=strict.test") {
		t.Errorf("delivered:\n%s", got)
	}
}

// TestARCWithoutDNS: a chain that cannot be judged is no reason for anything, and
// is left as it is.
func TestARCWithoutDNS(t *testing.T) {
	s := newAuthnSite(t, `, authentication: {timeout: 300ms}, arc: {domain: good.test, selector: sel, key: KEY}`)
	msg := s.sealAs("aside.test", fmt.Sprintf(arcLetter, "strict.test"))
	s.ns.Stop(t)
	if code, text := s.send("list@lists.test", msg); code != 250 {
		t.Fatal(code, text)
	}
	if got := s.delivered(); strings.HasPrefix(got, "ARC-") || !strings.Contains(got, "arc=temperror") || !strings.HasSuffix(got, msg) {
		t.Errorf("delivered:\n%s", got)
	}
}

func TestCheckARC(t *testing.T) {
	s := newAuthnSite(t, "")
	other, err := os.CreateTemp(t.TempDir(), "key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteString("no key"); err != nil {
		t.Fatal(err)
	}
	check := func(domain, selector, key string) Finding {
		cfg := config.Default()
		cfg.SMTP.Resolvers = []string{s.ns.Addr}
		cfg.SMTP.ARC = config.ARC{Domain: domain, Selector: selector, Key: key}
		found := checkARC(t.Context(), cfg)
		if len(found) != 1 {
			t.Fatalf("%d findings", len(found))
		}
		return found[0]
	}
	if f := check("good.test", "sel", s.key); !f.OK || f.Hint != "" {
		t.Errorf("the key is there: %+v", f)
	}
	if f := check("good.test", "none", s.key); f.OK || !strings.Contains(f.Text, "no key record") || !strings.Contains(f.Hint, "none._domainkey.good.test: "+s.record()) {
		t.Errorf("no record: %+v", f)
	}
	if f := check("good.test", "_dmarc", other.Name()); f.OK || !strings.Contains(f.Text, "no private key") {
		t.Errorf("no key in the file: %+v", f)
	}
	if out := checkARC(t.Context(), config.Default()); out != nil {
		t.Errorf("nothing is configured: %+v", out)
	}
}
