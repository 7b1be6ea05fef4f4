package arc

import (
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

	"crossfade/relay/authn/dkim"
)

// TestSealPasses: what we seal we verify, with either kind of key, whatever the
// message is.
func TestSealPasses(t *testing.T) {
	k := testKeys()
	for name, msg := range map[string]string{
		"usual": plainMessage, "no body": "From: a@b.example\r\n", "empty body": "From: a@b.example\r\n\r\n", "empty From": "From:\r\n\r\nx\r\n",
		"many From": strings.Repeat("From: a@b.example\r\n", 15) + "\r\nx", "utf-8": "From: Änn <a@b.example>\r\nSubject: ü\r\n\r\nö\r\n",
		"signed":      "DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=x\r\nDKIM-Signature: v=1\r\nList-Id: <l>\r\n" + plainMessage,
		"no line end": "From: a@b.example\r\n\r\nno end ",
	} {
		for selector, key := range map[string]crypto.Signer{"s1": k.small, "ed": k.ed} {
			z := testZone(t)
			sealed := sealAs(t, z, msg, "One.Example", selector, key)
			r := verify(t, z, sealed)
			if r.Status != Pass || r.Sets != 1 || r.Seals[0].Domain != "one.example" || r.Seals[0].Selector != selector {
				t.Errorf("%s: %+v\n%s", name, r, sealed)
			}
			for _, line := range strings.Split(strings.TrimSuffix(sealed, msg), "\r\n") {
				if len(line) > 78 {
					t.Errorf("%s: a line of %d characters: %s", name, len(line), line)
				}
			}
		}
	}
}

func TestSealedFields(t *testing.T) {
	msg := "Received: x\r\nDKIM-Signature: 1\r\nDKIM-Signature: 2\r\nAuthentication-Results: other; none\r\nList-Id: <l>\r\n" + chained(t, 1)
	sealed := sealAs(t, testZone(t), msg, "two.example", "s1", testKeys().usual)
	ams, err := dkim.ParseMessageSignature(strings.SplitN(only(sealed, amsName, 2), ":", 2)[1])
	if err != nil {
		t.Fatal(err)
	}
	want := "from:to:subject:date:message-id:mime-version:list-id:dkim-signature:dkim-signature:from:to:subject:date:message-id:mime-version"
	if got := strings.Join(ams.Signed, ":"); got != want {
		t.Errorf("signed: %s", got)
	}
	if ams.Time != testNow.Unix() || ams.Header != dkim.Relaxed || ams.Body != dkim.Relaxed || ams.Partial {
		t.Errorf("%+v", ams)
	}
	head, _ := split(sealed)
	for i, name := range []string{asName, amsName, aarName} {
		if f := fieldsOf(head)[i]; !isField(f, name, 2) {
			t.Errorf("field %d is %s", i, f)
		}
	}
	if aar := strings.Join(strings.Fields(only(sealed, aarName, 2)), " "); !strings.Contains(aar, "i=2; two.example; spf=pass smtp.mfrom=sender.example;") {
		t.Error(aar)
	}
}

// TestSealFailed: a chain that failed is sealed once, as failed, by a seal that
// covers its own set (RFC 8617, 5.1.2).
func TestSealFailed(t *testing.T) {
	z, k := testZone(t), testKeys()
	later := func(s string) string { return swap(t, s, "t=1795000000", "t=1795000001") }
	for name, msg := range map[string]string{
		"a list wrote below it": chained(t, 2) + "-- \r\nlist\r\n",
		"a set is missing":      without(chained(t, 2), amsName, 1),
		"a set is there twice":  only(chained(t, 2), amsName, 1) + chained(t, 2),
		"a seal is changed":     replaced(t, chained(t, 2), asName, 1, later),
		"a seal is there again": later(only(chained(t, 2), asName, 1)) + chained(t, 2),
		"no seal":               without(chained(t, 2), asName, 2),
		"no results":            without(chained(t, 2), aarName, 2),
		// What has no number that counts makes the chain fail, and is not counted.
		"a seal of no instance":     "ARC-Seal: a=rsa-sha256; cv=none\r\n" + chained(t, 2),
		"a seal of an empty one":    "ARC-Seal: i=; a=rsa-sha256; cv=none\r\n" + chained(t, 2),
		"a signature of instance 0": "ARC-Message-Signature: i=0; a=rsa-sha256\r\n" + chained(t, 2),
		"a signature of instance a": "ARC-Message-Signature: i=a; a=rsa-sha256\r\n" + chained(t, 2),
		"results of three digits":   "ARC-Authentication-Results: i=051; x; none\r\n" + chained(t, 2),
	} {
		r := verify(t, z, msg)
		if r.Status != Fail || r.Ended {
			t.Fatalf("%s: %+v", name, r)
		}
		sealed := mustSeal(t, msg, "three.example", "s1", k.other, r)
		if !strings.Contains(only(sealed, asName, 3), "cv=fail") {
			t.Errorf("%s: %s", name, only(sealed, asName, 3))
		}
		r = verify(t, z, sealed)
		if r.Status != Fail || !r.Ended || r.Sets != 3 {
			t.Errorf("%s: sealed, it is %+v", name, r)
		}
		if _, err := trySeal(t, sealed, "one.example", "s1", k.small, r); !errors.Is(err, ErrNotSealed) {
			t.Errorf("%s: a chain that has ended is extended: %v", name, err)
		}
		// The set alone verifies, but for what it says.
		checkAlone(t, only(sealed, asName, 3)+only(sealed, amsName, 3)+only(sealed, aarName, 3))
	}
}

// checkAlone verifies the seal of one set as if it were the only one.
func checkAlone(t *testing.T, lines string) {
	t.Helper()
	var h dkim.Header
	h.Write([]byte(lines + "\r\n"))
	fields, err := h.Fields()
	if err != nil {
		t.Fatal(err)
	}
	s := &set{}
	for kind, name := range fieldNames {
		s.fields[kind] = fields.Named(name)[0]
	}
	if err := s.parse(); err != nil {
		t.Fatal(err)
	}
	c := &chain{sets: []*set{s}}
	c.digest(fields)
	key := dkim.Key{Algorithm: dkim.RSASHA256, Public: testKeys().other.Public()}
	if err := key.Verify(s.as.Algorithm, s.sealDigest, s.as.Value); err != nil {
		t.Errorf("the seal of the failed chain: %v", err)
	}
}

func TestNotSealed(t *testing.T) {
	k := testKeys()
	for _, c := range []struct {
		name, msg string
		r         Result
		want      string
	}{
		{"no From", "To: a\r\n\r\nx\r\n", Result{Status: None}, "no From"},
		{"no header field", "From: a\r\nno field\r\n\r\n", Result{Status: None}, "not a header field"},
		{"not judged", chained(t, 1), Result{Status: TempError, Reason: "why", Sets: 1}, "could not be judged: why"},
		{"judged as another", chained(t, 1), Result{Status: None}, "judged as one of 0"},
		{"ended", chained(t, 1), Result{Status: Fail, Ended: true, Sets: 1}, "failed before us"},
	} {
		lines, err := trySeal(t, c.msg, "one.example", "s1", k.small, c.r)
		if lines != "" || !errors.Is(err, ErrNotSealed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v", c.name, lines, err)
		}
	}
	s, err := NewSealer(SealerConfig{Domain: "one.example", Selector: "s1", Key: func() crypto.Signer { return k.small }})
	if err != nil {
		t.Fatal(err)
	}
	for _, results := range []string{"", " ", "x; " + strings.Repeat("y", 2000), "x; spf=päss", "x; a\x00b"} {
		x := s.Begin()
		x.Write([]byte(plainMessage))
		if lines, err := x.Seal(Result{Status: None}, results, ""); lines != "" || !errors.Is(err, ErrNotSealed) {
			t.Errorf("results %.20q: %q, %v", results, lines, err)
		}
	}
	for _, cfg := range []SealerConfig{
		{Domain: "one.example", Selector: "s1"}, {Domain: "no domain", Selector: "s1", Key: func() crypto.Signer { return nil }}, {Domain: "a.example", Selector: "/", Key: func() crypto.Signer { return nil }},
	} {
		if _, err := NewSealer(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

func TestResults(t *testing.T) {
	for _, c := range []struct{ lines, want string }{
		{"", ""},
		{"X: y\r\n", ""},
		{"Authentication-Results: mx.example; spf=pass smtp.mfrom=a;\r\n\tdkim=none\r\n", "mx.example; spf=pass smtp.mfrom=a; dkim=none"},
		{"Authentication-Results: MX.example 1; spf=pass\r\nAuthentication-results : mx.example; none\r\nX: y\r\nAuthentication-Results: mx.example; x-spam=no;\r\n", "mx.example; spf=pass; x-spam=no"},
		{"Authentication-Results: mx.example; arc=none\r\nAuthentication-Results: other.example; x=1\r\nAuthentication-Results: mx.example;\r\n dkim=pass (of 1024; bits)\r\n header.i=@a\r\n" +
			"Authentication-Results: mx.example; dmarc=pass\r\nAuthentication-Results: mx.example.other; y=2\r\n", "mx.example; arc=none; dkim=pass (of 1024; bits) header.i=@a; dmarc=pass"},
		{"Authentication-Results: mx.example; none\r\n", "mx.example; none"},
		{"Authentication-Results: mx.example\r\n", "mx.example; none"},
		{"Authentication-Results: other.example; spf=pass\r\n", ""},
	} {
		if got := Results(c.lines, "mx.example"); got != c.want {
			t.Errorf("%q: %q", c.lines, got)
		}
	}
}

func TestVouched(t *testing.T) {
	seal := func(i int, domain, results string) Seal { return Seal{Instance: i, Domain: domain, Results: results} }
	const good = "x.example; spf=fail; dmarc=pass (p=reject dis=none) header.from=Sender.example"
	const bad = "x.example; dmarc=fail header.from=sender.example"
	for _, c := range []struct {
		name   string
		oldest int
		seals  []Seal
		want   int
	}{
		{"one trusted", 0, []Seal{seal(1, "good.example", good)}, 1},
		{"one not trusted", 0, []Seal{seal(1, "bad.example", good)}, 0},
		{"dmarc failed there too", 0, []Seal{seal(1, "good.example", bad)}, 0},
		{"all trusted, changed in between", 2, []Seal{seal(1, "good.example", good), seal(2, "fine.example", bad)}, 1},
		{"a stranger between, unchanged", 0, []Seal{seal(1, "good.example", good), seal(2, "bad.example", bad)}, 1},
		{"a stranger changed it", 2, []Seal{seal(1, "good.example", good), seal(2, "bad.example", bad)}, 0},
		{"a stranger may have changed it", -1, []Seal{seal(1, "good.example", good), seal(2, "bad.example", bad)}, 0},
		{"a stranger below", 2, []Seal{seal(1, "bad.example", good), seal(2, "good.example", good)}, 2},
		{"a stranger says so", 0, []Seal{seal(1, "bad.example", good), seal(2, "good.example", bad)}, 0},
		{"of another domain", 0, []Seal{seal(1, "good.example", "x; dmarc=pass header.from=other.example")}, 0},
		{"of no domain", 0, []Seal{seal(1, "good.example", "x; dmarc=pass")}, 0},
		{"as authserv-id", 0, []Seal{seal(1, "good.example", "dmarc=pass header.from=sender.example; none")}, 0},
		{"in a comment", 0, []Seal{seal(1, "good.example", "x; spf=fail (; dmarc=pass header.from=sender.example;)")}, 0},
		{"in a nested comment", 0, []Seal{seal(1, "good.example", `x; spf=fail (\) (; dmarc=pass header.from=sender.example;) ) y`)}, 0},
		{"in quotes", 0, []Seal{seal(1, "good.example", `x; dkim=fail reason="; dmarc=pass header.from=sender.example;"`)}, 0},
		{"in escaped quotes", 0, []Seal{seal(1, "good.example", `x; dkim=fail reason="\"; dmarc=pass header.from=sender.example; \""`)}, 0},
		{"quotes left open", 0, []Seal{seal(1, "good.example", `x; dmarc=pass header.from=sender.example; reason="`)}, 0},
		{"a comment left open", 0, []Seal{seal(1, "good.example", `x; dmarc=pass header.from=sender.example; (`)}, 0},
		{"of an honest reason", 0, []Seal{seal(1, "good.example", `x; dmarc = pass reason="all is (well)" header.from = "sender.example"`)}, 1},
	} {
		r := Result{Status: Pass, OldestPass: c.oldest, Seals: c.seals, Sets: len(c.seals)}
		s, ok := r.Vouched("sender.example", func(d string) bool { return d == "good.example" || d == "fine.example" })
		if ok != (c.want > 0) || s.Instance != c.want {
			t.Errorf("%s: %d, %v", c.name, s.Instance, ok)
		}
		r.Status = Fail
		if _, ok := r.Vouched("sender.example", func(string) bool { return true }); ok {
			t.Errorf("%s: a chain that fails vouches", c.name)
		}
	}
}

// TestCostOfSealing prints what sealing one message costs.
func TestCostOfSealing(t *testing.T) {
	k := testKeys()
	for _, c := range []struct {
		name string
		key  crypto.Signer
	}{{"RSA-1024", k.small}, {"RSA-2048", k.usual}, {"Ed25519", k.ed}} {
		const n = 20
		began := time.Now()
		for range n {
			mustSeal(t, plainMessage, "one.example", "s1", c.key, Result{Status: None})
		}
		t.Logf("%s: %s for a message", c.name, (time.Since(began) / n).Round(10*time.Microsecond))
	}
}

// TestSealWithFieldsAbove: what a scanner puts on top belongs to the message.
func TestSealWithFieldsAbove(t *testing.T) {
	z := testZone(t)
	s, err := NewSealer(SealerConfig{Domain: "one.example", Selector: "s1", Key: func() crypto.Signer { return testKeys().small }})
	if err != nil {
		t.Fatal(err)
	}
	for _, above := range []string{
		"Subject: [spam] A letter\r\n", "Authentication-Results: one.example; none\r\nFrom: other@b.example\r\nX-Spam: 1\r\nFrom: third@b.example,\r\n\tfourth@b.example\r\n", "Cc: new@b.example\r\nList-Id: <l>\r\n",
	} {
		x := s.Begin()
		x.Write([]byte(plainMessage))
		lines, err := x.Seal(Result{Status: None}, testResults, above)
		if err != nil {
			t.Fatal(err)
		}
		if r := verify(t, z, lines+above+plainMessage); r.Status != Pass {
			t.Errorf("%q: %+v", above, r)
		}
		if r := verify(t, z, lines+"Subject: more\r\n"+above+plainMessage); r.Status != Fail {
			t.Errorf("%q: a field that is added later: %+v", above, r)
		}
	}
}
