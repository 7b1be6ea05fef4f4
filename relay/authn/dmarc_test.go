package authn

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"crossfade/mail"
)

// TestDMARC: alignment, subdomains, records of every kind, and what follows when policies are followed. SPF passes for
// example.com alone, and its key signs.
func TestDMARC(t *testing.T) {
	zone := domain("example.com", "v=DMARC1; p=reject; sp=quarantine")
	zone = append(zone,
		txt("_dmarc.strict.com", "v=DMARC1; p=reject; adkim=s; aspf=s"), txt("strict.com", "v=spf1 -all"), txt("mail.strict.com", "v=spf1 ip4:192.0.2.10 -all"),
		keyRecord("rsa._domainkey.mail.strict.com", keys()["rsa"].Public(), ""), keyRecord("rsa._domainkey.strict.com", keys()["rsa"].Public(), ""),
		txt("_dmarc.none.com", "v=DMARC1; p=none"),
		txt("_dmarc.two.com", "v=DMARC1; p=reject"), txt("_dmarc.two.com", "v=DMARC1; p=none"),
		txt("_dmarc.other.com", "some text"), txt("_dmarc.other.com", "v=spf1 -all"), txt("_dmarc.other.com", "v=DMARC1; p=quarantine"),
		txt("_dmarc.broken.com", "v=DMARC1; q=reject"), txt("_dmarc.reports.com", "v=DMARC1; p=odd; rua=mailto:a@reports.com"),
		txt("_dmarc.half.com", "v=DMARC1; p=reject; pct=0"), txt("_dmarc.halfq.com", "v=DMARC1; p=quarantine; pct=0"),
		txt("_dmarc.np.com", "v=DMARC1; p=none; sp=none; np=reject"), "there.np.com. 60 IN A 192.0.2.1",
		txt("_dmarc.own.np.com", "v=DMARC1; p=quarantine; np=none"),
		txt("_dmarc.co.uk", "v=DMARC1; p=reject"), txt("_dmarc.shop.co.uk", "v=DMARC1; p=reject"),
		txt("_dmarc.xn--bcher-kva.example", "v=DMARC1; p=reject"))
	c := newChecker(t, func(cfg *Config) { cfg.Enforce = EnforceReject }, zone...)
	mild := newChecker(t, func(cfg *Config) { cfg.Enforce = EnforceQuarantine }, zone...)
	for name, tt := range map[string]struct {
		sender, from string
		signed       string
		want         Result
		author       string
		done         Enforce
	}{
		"SPF aligned":                   {"a@example.com", "a@example.com", "", Pass, "example.com", EnforceNone},
		"SPF of a subdomain, relaxed":   {"a@example.com", "a@news.example.com", "", Pass, "news.example.com", EnforceNone},
		"SPF of another":                {"a@example.com", "a@none.com", "", Fail, "none.com", EnforceNone},
		"signature aligned":             {"a@elsewhere.net", "a@example.com", "example.com", Pass, "example.com", EnforceNone},
		"signature of another":          {"a@elsewhere.net", "a@example.com", "mail.strict.com", Fail, "example.com", EnforceReject},
		"nothing":                       {"a@elsewhere.net", "a@example.com", "", Fail, "example.com", EnforceReject},
		"subdomain, sp":                 {"a@elsewhere.net", "a@news.example.com", "", Fail, "news.example.com", EnforceQuarantine},
		"case":                          {"a@elsewhere.net", "a@EXAMPLE.Com", "example.com", Pass, "example.com", EnforceNone},
		"strict, subdomain's SPF":       {"a@mail.strict.com", "a@strict.com", "", Fail, "strict.com", EnforceReject},
		"strict, subdomain's signature": {"a@elsewhere.net", "a@strict.com", "mail.strict.com", Fail, "strict.com", EnforceReject},
		"strict, its own":               {"a@elsewhere.net", "a@strict.com", "strict.com", Pass, "strict.com", EnforceNone},
		"strict, of the subdomain":      {"a@mail.strict.com", "a@mail.strict.com", "", Pass, "mail.strict.com", EnforceNone},
		"no record":                     {"a@elsewhere.net", "a@elsewhere.net", "", None, "elsewhere.net", EnforceNone},
		"no such domain":                {"a@elsewhere.net", "a@not.there.invalid", "", None, "not.there.invalid", EnforceNone},
		"two records":                   {"a@elsewhere.net", "a@two.com", "", PermError, "two.com", EnforceNone},
		"other records beside":          {"a@elsewhere.net", "a@other.com", "", Fail, "other.com", EnforceQuarantine},
		"record without a policy":       {"a@elsewhere.net", "a@broken.com", "", PermError, "broken.com", EnforceNone},
		"the same, with reports":        {"a@elsewhere.net", "a@reports.com", "", Fail, "reports.com", EnforceNone},
		"for no message":                {"a@elsewhere.net", "a@half.com", "", Fail, "half.com", EnforceQuarantine},
		"for no message, quarantine":    {"a@elsewhere.net", "a@halfq.com", "", Fail, "halfq.com", EnforceNone},
		"np, no such name":              {"a@elsewhere.net", "a@gone.np.com", "", Fail, "gone.np.com", EnforceReject},
		"np, the name is there":         {"a@elsewhere.net", "a@there.np.com", "", Fail, "there.np.com", EnforceNone},
		"np, the domain itself":         {"a@elsewhere.net", "a@np.com", "", Fail, "np.com", EnforceNone},
		"a record of its own":           {"a@elsewhere.net", "a@own.np.com", "", Fail, "own.np.com", EnforceQuarantine},
		"a public suffix is no owner":   {"a@elsewhere.net", "a@none.co.uk", "", None, "none.co.uk", EnforceNone},
		"below a public suffix":         {"a@elsewhere.net", "a@www.shop.co.uk", "", Fail, "www.shop.co.uk", EnforceReject},
		"neighbours do not vouch":       {"a@elsewhere.net", "a@shop.co.uk", "example.com", Fail, "shop.co.uk", EnforceReject},
		"international":                 {"a@elsewhere.net", "a@bücher.example", "", Fail, "xn--bcher-kva.example", EnforceReject},
		"null sender, HELO not aligned": {"", "a@none.com", "", Fail, "none.com", EnforceNone},
		"null sender, HELO aligned":     {"", "a@example.com", "", Fail, "example.com", EnforceReject}, // mail.example.com has no SPF
	} {
		msg := letter(tt.from, "Hi.\n")
		if tt.signed != "" {
			msg = sign(t, msg, tt.signed, "rsa", nil)
		}
		r := check(t, c, tt.sender, msg, whole)
		if r.DMARC.Result != tt.want || r.DMARC.Author != tt.author || r.Disposition != tt.done || (r.Refusal() != nil) != (tt.done == EnforceReject) {
			t.Errorf("%s: %+v, done %s", name, r.DMARC, r.Disposition)
		}
		milder := tt.done
		if milder == EnforceReject {
			milder = EnforceQuarantine
		}
		if r := check(t, mild, tt.sender, msg, whole); r.Disposition != milder || strings.HasPrefix(r.Trace("mx.example.org"), quarantineField+": ") != (milder == EnforceQuarantine) {
			t.Errorf("%s, quarantine at most: %s\n%s", name, r.Disposition, r.Trace("mx.example.org"))
		}
	}
}

// TestSkippedIsNotRefused: a signature that we do not verify for bounds of our own may be a good one, and the message is
// not refused for it; that of another domain changes nothing.
func TestSkippedIsNotRefused(t *testing.T) {
	c := newChecker(t, func(cfg *Config) { cfg.Enforce = EnforceReject }, append(domain("example.com", "v=DMARC1; p=reject"), domain("elsewhere.net", "v=DMARC1; p=none")...)...)
	for signer, want := range map[string]Enforce{"example.com": EnforceQuarantine, "elsewhere.net": EnforceReject} {
		msg := sign(t, letter("a@example.com", "Hi.\n"), signer, "rsa", nil)
		msg = bytes.Replace(msg, []byte("\r\n\r\n"), []byte("\r\n"+strings.Repeat("X-Pad: "+strings.Repeat("x", 900)+"\r\n", 150)+"\r\n"), 1)
		r := check(t, c, "a@third.net", msg, whole)
		if r.DMARC.Result != Fail || r.DKIM[0].Result != Policy || r.Disposition != want {
			t.Errorf("signed by %s: %+v, done %s, want %s", signer, r, r.Disposition, want)
		}
	}
}

// TestBrokenFrom: a message whose author cannot be told never passes, and does not get round the policy of a domain that
// can be seen in it, which passes for example.com alone.
func TestBrokenFrom(t *testing.T) {
	c := newChecker(t, func(cfg *Config) { cfg.Enforce = EnforceReject }, slices.Concat(domain("example.com", "v=DMARC1; p=quarantine"),
		[]string{txt("_dmarc.bank.com", "v=DMARC1; p=reject"), txt("_dmarc.aside.com", "v=DMARC1; p=quarantine")})...)
	for name, tt := range map[string]struct {
		header string
		want   Result
		done   Enforce
	}{
		"one":                         {"From: a@example.com", Pass, EnforceNone},
		"two mailboxes, one domain":   {"From: a@example.com, B <b@example.com>", Pass, EnforceNone},
		"none":                        {"To: a@example.com", PermError, EnforceNone},
		"empty":                       {"From:", PermError, EnforceNone},
		"no address":                  {"From: nobody", PermError, EnforceNone},
		"an empty group":              {"From: undisclosed:;", PermError, EnforceNone},
		"two fields":                  {"From: a@example.com\r\nFrom: ceo@bank.com", PermError, EnforceReject},
		"two fields, other order":     {"From: ceo@bank.com\r\nfrom : a@example.com", PermError, EnforceReject},
		"two fields of one domain":    {"From: a@example.com\r\nFrom: b@example.com", PermError, EnforceNone},
		"two domains":                 {"From: a@example.com, ceo@bank.com", PermError, EnforceReject},
		"three domains":               {"From: a@example.com, c@aside.com, ceo@bank.com", PermError, EnforceReject},
		"a name that is an address":   {"From: ceo@bank.com <a@example.com>", PermError, EnforceReject},
		"the same, quoted":            {"From: \"ceo@bank.com\" <a@example.com>", Pass, EnforceNone},
		"the same, one domain":        {"From: a@example.com <a@example.com>", PermError, EnforceNone},
		"two addresses in brackets":   {"From: <a@example.com><ceo@bank.com>", PermError, EnforceReject},
		"a NUL":                       {"From: ceo@bank.com\x00 <a@example.com>", PermError, EnforceReject},
		"a comment":                   {"From: a@example.com (ceo@bank.com)", Pass, EnforceNone},
		"a comment that never ends":   {"From: (a@example.com ceo@bank.com", PermError, EnforceReject},
		"a route":                     {"From: <@bank.com:a@example.com>", PermError, EnforceReject},
		"folded":                      {"From:\r\n Joe\r\n <a@example.com>", Pass, EnforceNone},
		"behind a line that is none":  {"no field\r\nFrom: ceo@bank.com", Fail, EnforceReject},
		"twice, behind such a line":   {"From: a@example.com\r\nno field\r\nFrom: ceo@bank.com", PermError, EnforceReject},
		"octets that are no UTF-8":    {"From: J\xf6rg <a@example.com>", Pass, EnforceNone},
		"an unknown character set":    {"From: =?x-odd?q?J=F6rg?= <a@example.com>", Pass, EnforceNone},
		"an address literal":          {"From: a@[192.0.2.10]", PermError, EnforceNone},
		"many domains, the last":      {"From: " + many("x%d.net", 50) + ", ceo@bank.com", PermError, EnforceReject},
		"many fields, the last":       {strings.Repeat("From: a@example.com\r\n", 20) + "From: b@bank.com", PermError, EnforceReject},
		"many fields, the first":      {"From: b@bank.com" + strings.Repeat("\r\nFrom: a@example.com", 20), PermError, EnforceReject},
		"a very long field":           {"From: ceo@bank.com" + strings.Repeat("\r\n a@example.com,", 5000), PermError, EnforceReject},
		"a very long field, its end":  {"From: \"" + strings.Repeat("long\r\n name ", 7000) + "\" <ceo@bank.com>", PermError, EnforceReject},
		"a long field, its end":       {"From: \"" + strings.Repeat("long\r\n name ", 2000) + "\" <ceo@bank.com>", PermError, EnforceReject},
		"behind a very long header":   {strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 200) + "From: ceo@bank.com", Fail, EnforceReject},
		"behind a very long field":    {"X: " + strings.Repeat("\r\n x", 50_000) + "\r\nFrom: ceo@bank.com", Fail, EnforceReject},
		"no end of the header":        {"From: ceo@bank.com\r\nX: y", Fail, EnforceReject},
		"Unicode that looks like @":   {"From: ceo\uff20bank.com", PermError, EnforceNone},
		"IDNA maps to the same":       {"From: a@\uff45xample.com", Pass, EnforceNone},
		"domain with a final dot":     {"From: a@example.com.", PermError, EnforceNone},
		"only domains without policy": {"From: a@x.net, b@y.net", PermError, EnforceNone},
	} {
		msg := []byte(tt.header + "\r\n\r\nHi.\r\n")
		if strings.HasPrefix(name, "no end") {
			msg = []byte(tt.header)
		}
		for _, pieces := range []int{whole, 1000, 1} {
			if pieces == 1 && len(msg) > 1000 {
				continue
			}
			r := check(t, c, "a@example.com", msg, pieces)
			if r.DMARC.Result != tt.want || r.Disposition != tt.done {
				t.Errorf("%s, in pieces of %d: %+v, done %s by %s", name, pieces, r.DMARC, r.Disposition, r.Domain)
			}
		}
	}
}

func many(format string, n int) string {
	var out []string
	for i := range n {
		out = append(out, "a@"+fmt.Sprintf(format, i))
	}
	return strings.Join(out, ", ")
}

// TestPercent: a policy for a part of the messages counts for about that part.
func TestPercent(t *testing.T) {
	c := newChecker(t, func(cfg *Config) { cfg.Enforce = EnforceReject }, txt("_dmarc.example.com", "v=DMARC1; p=reject; pct=30"))
	k := &Check{c: c}
	count := map[Enforce]int{}
	for range 10_000 {
		k.m.ID = mail.NewID()
		count[k.disposition(verdict{policy: PolicyReject, record: Record{Policy: PolicyReject, Percent: 30}})]++
	}
	if n := count[EnforceReject]; n < 2700 || n > 3300 || count[EnforceQuarantine] != 10_000-n {
		t.Errorf("%v", count)
	}
}

// TestVouch: who is trusted may prevent a policy, and is asked for nothing else.
func TestVouch(t *testing.T) {
	c := newChecker(t, func(cfg *Config) { cfg.Enforce = EnforceReject }, domain("example.com", "v=DMARC1; p=reject")...)
	for name, tt := range map[string]struct {
		from  string
		by    string
		asked int
		done  Enforce
	}{
		"passes":   {"a@example.com", "list.example", 0, EnforceNone},
		"fails":    {"a@news.example.com", "", 1, EnforceReject},
		"vouched":  {"a@news.example.com", "list.example", 1, EnforceNone},
		"hostile":  {"a@news.example.com", "x) y\r\nZ: (", 1, EnforceNone},
		"no owner": {"a@elsewhere.net", "list.example", 0, EnforceNone},
	} {
		asked := 0
		sender := mail.Address{Local: "a", Domain: "example.com"}
		if name != "passes" {
			sender.Domain = "elsewhere.net"
		}
		k := c.Begin(t.Context(), Message{Client: client, Helo: "x", From: sender, Vouch: func(domain string) (string, bool) {
			asked++
			if !strings.HasSuffix(tt.from, "@"+domain) {
				t.Errorf("%s: asked about %s", name, domain)
			}
			return tt.by, tt.by != ""
		}})
		k.Write(letter(tt.from, "Hi.\n"))
		r := k.End(t.Context())
		k.Close()
		if asked != tt.asked || r.Disposition != tt.done || tt.asked == 1 && r.VouchedBy != tt.by {
			t.Errorf("%s: asked %d times, %+v", name, asked, r)
		}
		if lines := strings.Count(r.Trace("mx.example.org"), "\nZ"); lines != 0 {
			t.Errorf("%s: %s", name, r.Trace("mx.example.org"))
		}
	}
}

func TestParseRecord(t *testing.T) {
	all := Record{Policy: PolicyReject, Percent: 100}
	for text, want := range map[string]Record{
		"v=DMARC1; p=reject":        all,
		"v=DMARC1;p=reject":         all,
		"v = DMARC1 ; P = Reject ;": all,
		"v=DMARC1; p=reject; pct=abc; fo=x; rf=odd; ri=-1; adkim=x;": all,
		"v=DMARC1; p=reject; p=none":                                 all,
		"v=DMARC1; ; p=reject; junk":                                 all,
		"v=DMARC1; p=reject; np=odd":                                 all,
		"v=DMARC1; p=reject; sp=none; np=quarantine; adkim=s; aspf=S; pct=7": {Policy: PolicyReject, Subdomain: PolicyNone, Missing: PolicyQuarantine, StrictDKIM: true,
			StrictSPF: true, Percent: 7},
		"v=DMARC1; p=reject; sp=odd; rua=mailto:a@b.c": {Policy: PolicyNone, Percent: 100},
		"v=DMARC1; rua=mailto:a@b.c":                   {Policy: PolicyNone, Percent: 100},
		"v=DMARC1; p=reject; sp=odd":                   {},
		"v=DMARC1; p=":                                 {},
		"v=DMARC1":                                     {},
		"v=DMARC2; p=reject":                           {},
		"v=dmarc1; p=reject":                           {},
		"p=reject; v=DMARC1":                           {},
		"":                                             {},
	} {
		got, err := ParseRecord(text)
		if got != want || (err == nil) != (want.Policy != "") {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// FuzzRecord: a record that is read has a policy, and none makes the reader fail.
func FuzzRecord(f *testing.F) {
	f.Add("v=DMARC1; p=reject; sp=none; pct=30; adkim=s; rua=mailto:a@b.c,mailto:d@e.f!10m")
	f.Add("v=DMARC1;p=;;=;v=DMARC1")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRecord(text)
		if _, ok := policy(string(r.Policy)); ok != (err == nil) || r.Percent < 0 || r.Percent > 100 || err == nil && !isDMARC(text) {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	})
}

// FuzzFrom: one author is a domain that can be looked up, and every domain that follows an @ between brackets is seen.
func FuzzFrom(f *testing.F) {
	for _, s := range []string{" a@example.com", " A <a@b.c>, d@e.f", " \"x\" <@r:a@b.c>", "\r\n (c) =?utf-8?q?x?= <a@b>", " g: a@b.c;", "\x00@\xff"} {
		f.Add([]byte(s), []byte(nil))
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		froms := [][]byte{one}
		if len(two) > 0 {
			froms = append(froms, two)
		}
		a := readFrom(froms, false)
		if a.wrong == "" && len(a.domains) != 1 || len(a.domains) > maxAuthors || len(froms) > 1 && a.wrong == "" {
			t.Fatalf("%q: %+v", froms, a)
		}
		for _, d := range a.domains {
			if n, ok := domainName(d); !ok || n != d {
				t.Errorf("%q: %q is no domain", froms, d)
			}
		}
	})
}
