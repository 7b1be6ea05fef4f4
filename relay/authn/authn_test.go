package authn

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"crossfade/internal/mailtest"
	"crossfade/mail"
	"crossfade/relay/resolver"

	"github.com/emersion/go-msgauth/dkim"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// figure reports a result that people want to see: to the test's log, and to the file that CROSSFADE_FIGURES names.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	name := os.Getenv("CROSSFADE_FIGURES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
	_, err = fmt.Fprintln(f, t.Name()+": "+line)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatalf("the file that CROSSFADE_FIGURES names: %v", err)
	}
}

// keys are made once: RSA keys take their time.
var keys = sync.OnceValue(func() map[string]crypto.Signer {
	out := map[string]crypto.Signer{}
	for name, bits := range map[string]int{"rsa": 2048, "small": 1024, "large": 4096} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic(err)
		}
		out[name] = k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	out["ed"] = ed
	return out
})

// keyRecord is the TXT record of a key, in the format of zone files.
func keyRecord(name string, public crypto.PublicKey, more string) string {
	var kind string
	var der []byte
	switch k := public.(type) {
	case ed25519.PublicKey:
		kind, der = "ed25519", k
	default:
		var err error
		kind = "rsa"
		if der, err = x509.MarshalPKIXPublicKey(k); err != nil {
			panic(err)
		}
	}
	return txt(name, "v=DKIM1; "+more+"k="+kind+"; p="+base64.StdEncoding.EncodeToString(der))
}

// txt is a TXT record with its text in strings of 255 octets.
func txt(name, text string) string {
	var b strings.Builder
	for len(text) > 255 {
		fmt.Fprintf(&b, "%q ", text[:255])
		text = text[255:]
	}
	fmt.Fprintf(&b, "%q", text)
	return name + ". 300 IN TXT " + b.String()
}

// client is the address that the SPF records of the tests allow.
var client = netip.MustParseAddr("192.0.2.10")

// newChecker checks with a name server for records.
func newChecker(t testing.TB, change func(*Config), records ...string) *Checker {
	t.Helper()
	d, err := mailtest.NewZoneDNS(records...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return checkerAt(t, d.Addr, change)
}

func checkerAt(t testing.TB, addr string, change func(*Config)) *Checker {
	t.Helper()
	r, err := resolver.New(resolver.Config{Servers: []string{addr}, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Hostname: "mx.example.org", Resolver: r, Timeout: 2 * time.Second}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// check gives the report on a message from sender, whose octets come in pieces.
func check(t testing.TB, c *Checker, sender string, msg []byte, pieces int) *Report {
	t.Helper()
	from, err := mail.ParseAddress(sender)
	if err != nil {
		t.Fatal(err)
	}
	k := c.Begin(t.Context(), Message{ID: "01", Client: client, Helo: "mail.example.com", From: from})
	defer k.Close()
	feed(k, msg, pieces)
	return k.End(t.Context())
}

func feed(k *Check, msg []byte, pieces int) {
	for len(msg) > 0 {
		n := min(len(msg), pieces)
		k.Write(msg[:n])
		msg = msg[n:]
	}
}

const whole = 1 << 20

// crlf makes a message of a test's text.
func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

// letter is a message from an address.
func letter(from, body string) []byte {
	return crlf("From: " + from + "\nTo: ann@example.org\nSubject: a test\n\n" + body)
}

// sign signs msg with the key of that name, which is the selector too.
func sign(t testing.TB, msg []byte, domain, key string, change func(*dkim.SignOptions)) []byte {
	t.Helper()
	opts := &dkim.SignOptions{
		Domain: domain, Selector: key, Signer: keys()[key], Hash: crypto.SHA256, HeaderCanonicalization: "relaxed", BodyCanonicalization: "relaxed",
		HeaderKeys: []string{"From", "To", "Subject"},
	}
	if change != nil {
		change(opts)
	}
	var out bytes.Buffer
	if err := dkim.Sign(&out, bytes.NewReader(msg), opts); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// domain gives the records of a domain that does all right: SPF for client, keys, and the policy.
func domain(name, policy string) []string {
	out := []string{txt(name, "v=spf1 ip4:192.0.2.10 -all")}
	if policy != "" {
		out = append(out, txt("_dmarc."+name, policy))
	}
	for sel, k := range keys() {
		out = append(out, keyRecord(sel+"._domainkey."+name, k.Public(), ""))
	}
	return out
}

// TestVectors: the examples of the RFCs.
func TestVectors(t *testing.T) {
	c := newChecker(t, nil,
		txt("brisbane._domainkey.example.com", "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYt"+
			"IxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"),
		txt("brisbane._domainkey.football.example.com", "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="),
		txt("test._domainkey.football.example.com", "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQi"+
			"Y/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"),
	)
	for name, want := range map[string][]DKIM{
		"testdata/rfc6376-a2.eml": {{Result: Pass, Domain: "example.com", Selector: "brisbane", Algorithm: "rsa-sha256", Signature: "AuUoFEfD"}},
		"testdata/rfc8463-a3.eml": {
			{Result: Pass, Domain: "football.example.com", Selector: "brisbane", Algorithm: "ed25519-sha256", Signature: "/gCrinpc"},
			{Result: Pass, Domain: "football.example.com", Selector: "test", Algorithm: "rsa-sha256", Signature: "F45dVWDf"},
		},
	} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		msg := crlf(string(text))
		for _, pieces := range []int{whole, 1, 7} {
			got := check(t, c, "joe@football.example.com", msg, pieces).DKIM
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s in pieces of %d: %+v", name, pieces, got)
			}
		}
		msg[len(msg)-4] ^= 1
		for _, d := range check(t, c, "joe@football.example.com", msg, whole).DKIM {
			if d.Result != Fail || d.Reason != "the body was changed" {
				t.Errorf("%s, changed: %+v", name, d)
			}
		}
	}
}

// TestAllRight: a good message passes everything, and the field says so.
func TestAllRight(t *testing.T) {
	c := newChecker(t, nil, domain("example.com", "v=DMARC1; p=reject; sp=none")...)
	msg := sign(t, letter("Joe <joe@news.example.com>", "Hi.\n"), "example.com", "rsa", nil)
	r := check(t, c, "bounce+ann=example.org@example.com", msg, whole)
	field := r.Trace("mx.example.org")
	sig := r.DKIM[0].Signature
	want := "Authentication-Results: mx.example.org;\r\n" +
		"\tspf=pass smtp.mailfrom=bounce+ann=example.org@example.com;\r\n" +
		"\tdkim=pass header.d=example.com header.s=rsa header.a=rsa-sha256\r\n\theader.b=" + value(sig) + ";\r\n" +
		"\tdmarc=pass (p=reject sp=none policy=none done=none)\r\n\theader.from=news.example.com\r\n"
	if field != want {
		t.Errorf("got\n%s\nwant\n%s", field, want)
	}
}

// TestDKIMBodies: bodies of every shape are canonicalised as the signer did, in pieces of any size.
func TestDKIMBodies(t *testing.T) {
	c := newChecker(t, nil, domain("example.com", "")...)
	for name, body := range map[string]string{
		"empty": "", "one line": "a\n", "no end": "a", "blank lines at the end": "a\n\n\n\n", "only blank lines": "\n\n\n",
		"blank inside": "a\n\n\n\nb\n", "spaces": "a  b \t\n \t \n", "spaces at the end": "a\n  \n\t\n", "begins blank": "\n\na\n",
		"long":             strings.Repeat("line with some words\n", 20_000),
		"long, blank":      strings.Repeat(strings.Repeat("\n", 1000)+"x\n", 500) + strings.Repeat("\n", 100_000),
		"long line":        strings.Repeat("x", 100_000) + "\n",
		"just below bound": "a" + strings.Repeat("\n", 32<<10) + "b\n",
	} {
		for _, can := range []dkim.Canonicalization{"simple", "relaxed"} {
			msg := sign(t, letter("joe@example.com", body), "example.com", "rsa", func(o *dkim.SignOptions) {
				o.HeaderCanonicalization, o.BodyCanonicalization = can, can
			})
			sizes := []int{whole, 32 << 10, 4093}
			if len(body) < 20_000 {
				sizes = append(sizes, 1, 2, 3)
			}
			for _, pieces := range sizes {
				if r := check(t, c, "joe@example.com", msg, pieces); len(r.DKIM) != 1 || r.DKIM[0].Result != Pass {
					t.Errorf("%s, %s, in pieces of %d: %+v", name, can, pieces, r.DKIM)
				}
			}
			// What is changed behind the header is found.
			changed := bytes.TrimRight(msg, "\r\n")
			changed = append(bytes.Clone(changed), "!\r\n"...)
			if r := check(t, c, "joe@example.com", changed, whole); strings.TrimSpace(body) != "" && r.DKIM[0].Result != Fail {
				t.Errorf("%s, %s, changed: %+v", name, can, r.DKIM)
			}
		}
	}
}

// TestDKIMJudged: what is wrong with a signature or a key is said as the RFCs want it.
func TestDKIMJudged(t *testing.T) {
	zone := domain("example.com", "")
	tiny := base64.StdEncoding.EncodeToString(tinyKey(t, 768))
	huge := base64.StdEncoding.EncodeToString(tinyKey(t, 16384))
	rsaKey := keys()["rsa"].Public()
	der, _ := x509.MarshalPKIXPublicKey(rsaKey)
	good := base64.StdEncoding.EncodeToString(der)
	zone = append(zone,
		txt("tiny._domainkey.example.com", "v=DKIM1; p="+tiny), txt("huge._domainkey.example.com", "v=DKIM1; p="+huge),
		txt("revoked._domainkey.example.com", "v=DKIM1; p="), txt("broken._domainkey.example.com", "v=DKIM1; p=***"),
		txt("empty._domainkey.example.com", ""), txt("spf._domainkey.example.com", "v=spf1 -all"),
		txt("twice._domainkey.example.com", "v=DKIM1; p="+good), txt("twice._domainkey.example.com", "v=DKIM1; p="),
		keyRecord("strict._domainkey.example.com", rsaKey, "t=y:s; "), keyRecord("web._domainkey.example.com", rsaKey, "s=web; "),
		keyRecord("sha1._domainkey.example.com", rsaKey, "h=sha1; "))
	c := newChecker(t, nil, zone...)
	plain := sign(t, letter("joe@example.com", "Hi.\n"), "example.com", "rsa", nil)
	use := func(selector string) func([]byte) []byte {
		return func(m []byte) []byte { return bytes.Replace(m, []byte("s=rsa"), []byte("s="+selector), 1) }
	}
	put := func(tag string) func([]byte) []byte {
		return func(m []byte) []byte { return bytes.Replace(m, []byte("v=1;"), []byte("v=1; "+tag), 1) }
	}
	swap := func(from, to string) func([]byte) []byte {
		return func(m []byte) []byte { return bytes.Replace(m, []byte(from), []byte(to), 1) }
	}
	for name, tt := range map[string]struct {
		change func([]byte) []byte
		want   Result
		reason string
	}{
		"as it is":            {func(m []byte) []byte { return m }, Pass, ""},
		"subject changed":     {swap("a test", "a pest"), Fail, "does not fit"},
		"another From on top": {func(m []byte) []byte { return append([]byte("From: eve@example.net\r\n"), m...) }, Pass, ""},
		"another From below":  {swap("Subject:", "From: eve@example.net\r\nSubject:"), Fail, "does not fit"},
		"l=":                  {put("l=3;"), Policy, "(l=)"},
		"expired": {func(m []byte) []byte {
			return regexp.MustCompile(` t=\d+`).ReplaceAll(m, []byte(" t=999999999; x=1000000000"))
		}, Policy, "expired at 2001"},
		"expired before it was": {put("x=1000000000;"), PermError, "x= lies before t="},
		"x= no number":          {put("x=soon;"), PermError, "x="},
		"rsa-sha1":              {swap("a=rsa-sha256", "a=rsa-sha1"), Policy, "RFC 8301"},
		"unknown algorithm":     {swap("a=rsa-sha256", "a=rot13-sha256"), PermError, "a="},
		"version 2":             {swap("v=1;", "v=2;"), PermError, "v="},
		"no tags":               {swap("v=1;", "nonsense;"), PermError, "cannot be read"},
		"tag twice":             {put("v=1;"), PermError, "cannot be read"},
		"From not signed":       {swap("h=From:", "h=Frum:"), PermError, "From"},
		"no name":               {swap("d=example.com", "d=exa mple..com"), PermError, "d= is not"},
		"other i=":              {put("i=joe@example.net;"), PermError, "i="},
		"no key":                {use("none"), PermError, "no key"},
		"key of 768 bits":       {use("tiny"), Policy, "768 bits"},
		"key of 16384 bits":     {use("huge"), Policy, "more than 4096"},
		"revoked":               {use("revoked"), PermError, "revoked"},
		"key broken":            {use("broken"), PermError, "base64"},
		"key empty":             {use("empty"), PermError, "empty"},
		"no key record":         {use("spf"), PermError, "version"},
		"two keys":              {use("twice"), PermError, "2 records"},
		"t=s and a subdomain":   {func(m []byte) []byte { return put("i=joe@sub.example.com;")(use("strict")(m)) }, PermError, "subdomains"},
		"t=s":                   {use("strict"), Fail, "does not fit"},
		"key for the web":       {use("web"), PermError, "not for mail"},
		"key for sha1":          {use("sha1"), PermError, "sha256"},
		"key of ed25519":        {use("ed"), PermError, "ed25519"},
		"unknown query":         {put("q=http;"), PermError, "q="},
		"unknown canonicaliz.":  {swap("relaxed/relaxed", "relaxed/odd"), PermError, "c="},
	} {
		r := check(t, c, "joe@example.com", tt.change(bytes.Clone(plain)), whole)
		if len(r.DKIM) != 1 || r.DKIM[0].Result != tt.want || !strings.Contains(r.DKIM[0].Reason, tt.reason) {
			t.Errorf("%s: %+v, want %s with %q", name, r.DKIM, tt.want, tt.reason)
		}
	}
}

// tinyKey is a public key with a modulus of so many bits, which nobody has to be able to use.
func tinyKey(t *testing.T, bits int) []byte {
	n := make([]byte, bits/8)
	if _, err := rand.Read(n); err != nil {
		t.Fatal(err)
	}
	n[0] |= 0x80
	n[len(n)-1] |= 1
	return x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537})
}

// TestDKIMOthersFirst: signatures that others put on top do not push out the one that counts.
func TestDKIMOthersFirst(t *testing.T) {
	c := newChecker(t, nil, domain("example.com", "v=DMARC1; p=reject")...)
	msg := sign(t, letter("joe@example.com", "Hi.\n"), "example.com", "rsa", nil)
	other := "DKIM-Signature: v=1; a=rsa-sha256; d=list.example.net; s=x; h=from; bh=AAAA; b=AAAA\r\n"
	r := check(t, c, "bounce@list.example.net", append([]byte(strings.Repeat(other, 50)), msg...), whole)
	if len(r.DKIM) != maxSignatures || r.DKIM[0].Result != Pass || r.Unverified != 51-maxSignatures || r.DMARC.Result != Pass {
		t.Errorf("%+v", r)
	}
	if field := r.Trace("mx.example.org"); !strings.Contains(field, `dkim=policy reason="43 more signatures were not looked at"`) {
		t.Error(field)
	}
}

// TestBroken: a check that is broken off anywhere leaves nothing behind (TestMain looks for goroutines).
func TestBrokenOff(t *testing.T) {
	c := newChecker(t, nil, domain("example.com", "")...)
	msg := sign(t, letter("joe@example.com", strings.Repeat("some line\n", 20_000)), "example.com", "rsa", nil)
	for _, n := range []int{0, 1, 100, 300, 1000, 40_000, len(msg) / 2, len(msg)} {
		k := c.Begin(t.Context(), Message{Client: client, Helo: "x", From: mail.Address{Local: "a", Domain: "example.com"}})
		feed(k, msg[:n], 4096)
		k.Close()
	}
	if n := c.memory.Load(); n != 0 {
		t.Errorf("%d octets are not given back", n)
	}
}

// TestMemory: when many headers arrive at once, signatures are not verified for now, and nothing else changes. When a
// header is over, what was kept of it is given back.
func TestMemory(t *testing.T) {
	c := newChecker(t, func(cfg *Config) { cfg.Memory = 200 << 10; cfg.Enforce = EnforceReject }, domain("example.com", "v=DMARC1; p=reject")...)
	msg := sign(t, letter("joe@example.com", "Hi.\n"), "example.com", "rsa", nil)
	msg = append([]byte("X-Long: "+strings.Repeat("x", 20_000)+"\r\n"), msg...)
	head := bytes.Index(msg, []byte("\r\n\r\n"))
	var open []*Check
	for range 10 {
		k := c.Begin(context.Background(), Message{Client: netip.MustParseAddr("198.51.100.1"), Helo: "x", From: mail.Address{Local: "a", Domain: "example.com"}})
		feed(k, msg[:head], whole)
		open = append(open, k)
	}
	if n := c.memory.Load(); n < 100<<10 || n > 200<<10 {
		t.Errorf("%d octets are reserved", n)
	}
	for _, k := range open {
		k.Write(msg[head:])
	}
	if n := c.memory.Load(); n != 0 {
		t.Errorf("%d octets are kept of headers that are over", n)
	}
	busy := 0
	for _, k := range open {
		r := k.End(t.Context())
		switch {
		case len(r.DKIM) == 1 && r.DKIM[0].Result == TempError && r.DKIM[0].Reason == errBusy && r.DMARC.Result == TempError:
			busy++
		case len(r.DKIM) != 1 || r.DKIM[0].Result != Pass || r.DMARC.Result != Pass:
			t.Errorf("%+v", r)
		}
		if r.Refusal() != nil {
			t.Error("mail is refused because there is much of it")
		}
		k.Close()
	}
	if busy == 0 || busy == 10 {
		t.Errorf("%d of 10 were put off", busy)
	}
	if n := c.memory.Load(); n != 0 {
		t.Errorf("%d octets are not given back", n)
	}
	if r := check(t, c, "a@example.com", msg, whole); r.DKIM[0].Result != Pass {
		t.Errorf("later: %+v", r.DKIM)
	}
}

// TestManyFields: signatures over few and over many fields, in headers of few and of many, are looked through in different
// ways and come to the same, and what they cover cannot be changed.
func TestManyFields(t *testing.T) {
	c := newChecker(t, nil, domain("example.com", "")...)
	for _, fields := range []int{1, 60, 61, 62, 70, 300} {
		for _, signed := range []int{1, 30, 61, 62, 300} {
			var b strings.Builder
			b.WriteString("From: a@example.com\nTo: ann@example.org\nSubject: a test\n")
			for i := range fields {
				fmt.Fprintf(&b, "X-Field-%d: value %d.\n", i%200, i)
			}
			names := []string{"From", "Subject"}
			for i := range min(signed, fields) {
				names = append(names, fmt.Sprintf("X-Field-%d", i%200))
			}
			msg := sign(t, crlf(b.String()+"\nA body.\n"), "example.com", "ed", func(o *dkim.SignOptions) { o.HeaderKeys = names })
			if r := check(t, c, "a@example.com", msg, 900); len(r.DKIM) != 1 || r.DKIM[0].Result != Pass {
				t.Errorf("%d of %d fields signed: %+v", len(names), fields, r.DKIM)
			}
			last := min(signed, fields) - 1
			if fields > 200 && last < fields-200 {
				last += 200 // of two fields of a name the lower one is signed first
			}
			value := fmt.Sprintf("value %d.", last)
			if r := check(t, c, "a@example.com", bytes.Replace(msg, []byte(value), []byte("another."), 1), 900); r.DKIM[0].Result != Fail {
				t.Errorf("%d of %d fields signed, %q changed: %+v", len(names), fields, value, r.DKIM)
			}
		}
	}
}
