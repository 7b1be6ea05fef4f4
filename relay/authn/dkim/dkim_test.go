package dkim

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestParseTags(t *testing.T) {
	for _, c := range []struct{ text, want, err string }{
		{" a=b; c = d e ;\r\n\tf=\r\n g", "a=b|c=d e|f=g", ""},
		{"a=b;", "a=b", ""},
		{"a=b;\r\n ", "a=b", ""},
		{"a=", "a=", ""},
		{"a=b=c", "a=b=c", ""},
		{"A=1;a=2", "A=1|a=2", ""},
		{"a1_x=2", "a1_x=2", ""},
		{"", "", "no tags"},
		{"  ", "", "no tags"},
		{"a=b;;c=d", "", "without ="},
		{"; a=b", "", "without ="},
		{"a", "", "without ="},
		{"=b", "", "valid name"},
		{"1a=b", "", "valid name"},
		{"a-b=c", "", "valid name"},
		{"a b=c", "", "valid name"},
		{"a=1;a=2", "", "twice"},
		{"a=\x00", "", "control"},
		{strings.Repeat("x", 65) + "=1", "", "valid name"},
	} {
		tags, err := ParseTags(c.text)
		var got []string
		for _, tag := range tags {
			got = append(got, tag.Name+"="+tag.Value)
		}
		if strings.Join(got, "|") != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %q, %v", c.text, got, err)
		}
	}
	if _, err := ParseTags(strings.Repeat("a", 10) + "=1;" + manyTags(maxTags)); err == nil {
		t.Error("any number of tags is taken")
	}
}

func manyTags(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("t" + strings.Repeat("x", i%60) + string(rune('a'+i/60)) + "=1;")
	}
	return b.String()
}

func TestWithout(t *testing.T) {
	for text, want := range map[string]string{
		"a=1; b=xy\r\n z; c=2": "a=1; b=; c=2", "b=1": "b=", " b = 1 ": " b =", "a=1; bh=x; b= 1\r\n": "a=1; bh=x; b=", "a=1": "a=1",
	} {
		tags, err := ParseTags(text)
		if got := tags.Without(text, "b"); err != nil || got != want {
			t.Errorf("%q without b is %q, %v", text, got, err)
		}
	}
}

// TestHeader: the examples of RFC 6376, 3.4.5, in pieces of any size.
func TestHeader(t *testing.T) {
	const msg = "A: X\r\nB : Y\t\r\n\tZ  \r\n\r\n C \r\nD \t E\r\n\r\n\r\n"
	for size := 1; size < len(msg); size++ {
		var h Header
		var body []byte
		for rest := []byte(msg); len(rest) > 0; {
			n := min(size, len(rest))
			body = append(body, h.Write(rest[:n])...)
			rest = rest[n:]
		}
		f, err := h.Fields()
		if err != nil || string(body) != " C \r\nD \t E\r\n\r\n\r\n" {
			t.Fatalf("pieces of %d: %v, body %q", size, err, body)
		}
		for form, want := range map[Canon]string{Relaxed: "a:X\r\nb:Y Z\r\n", Simple: "A: X\r\nB : Y\t\r\n\tZ  \r\n"} {
			var b bytes.Buffer
			f.WriteSigned(&b, form, []string{"a", "b", "c", "a"})
			if b.String() != want {
				t.Errorf("%s: %q", form, b.String())
			}
		}
	}
}

func TestHeaderBounds(t *testing.T) {
	for _, c := range []struct {
		name, msg string
		fields    int
		err       error
	}{
		{"no header", "\r\nbody", 0, nil},
		{"nothing", "", 0, nil},
		{"no body", "A: b\r\nC: d\r\n", 2, nil},
		{"no line end at all", "A: b", 1, nil},
		{"a line that is none", "A: b\r\nno field\r\nC: d\r\n\r\n", 1, ErrHeaderForm},
		{"a fold on top", " x\r\nA: b\r\n\r\n", 0, ErrHeaderForm},
		{"a line of mbox", "From a@b Sat Jan  1\r\nA: b\r\n\r\n", 0, ErrHeaderForm},
		{"too large", "A: b\r\nC: " + strings.Repeat("x", 300) + "\r\n\r\n", 1, ErrHeaderSize},
		{"no colon, too large", strings.Repeat("x", 300), 0, ErrHeaderSize},
	} {
		h := Header{Max: 256}
		h.Write([]byte(c.msg))
		h.Close()
		f, err := h.Fields()
		if !errors.Is(err, c.err) || len(f.list) != c.fields {
			t.Errorf("%s: %d fields, %v", c.name, len(f.list), err)
		}
	}
}

func TestSignedFromTheBottom(t *testing.T) {
	var h Header
	h.Write([]byte("To: 1\r\nFrom: a\r\nTo: 2\r\nto: 3\r\n\r\n"))
	f, _ := h.Fields()
	var b bytes.Buffer
	f.WriteSigned(&b, Relaxed, []string{"to", "from", "to", "from", "to", "to"})
	if want := "to:3\r\nfrom:a\r\nto:2\r\nto:1\r\n"; b.String() != want {
		t.Errorf("%q", b.String())
	}
}

func TestParseMessageSignature(t *testing.T) {
	const good = "a=rsa-sha256; b=YQ==; bh=YWI=; d=Example.ORG; s=S1; h=From:to"
	s, err := ParseMessageSignature(good)
	if err != nil || s.KeyName() != "s1._domainkey.example.org" || s.Partial || s.Header != Simple || s.Body != Simple || strings.Join(s.Signed, ",") != "from,to" {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, c := range []struct{ old, new, err string }{
		{"a=rsa-sha256", "a=rsa-sha1", "algorithm"}, {"a=rsa-sha256", "a=RSA-SHA256", "algorithm"}, {"a=rsa-sha256; ", "", "a= is missing"},
		{"b=YQ==", "b=Y", "b= is not"}, {"b=YQ==", "b=", "b= is missing"}, {"b=YQ==", "b=Y\r\n Q =\t=", ""},
		{"bh=YWI=", "bh=!", "bh="}, {"bh=YWI=; ", "", "bh="}, {"bh=YWI=", "bh=", "bh="},
		{"d=Example.ORG", "d=org", "d= is not"}, {"d=Example.ORG", "d=a..b", "d= is not"}, {"d=Example.ORG", "d=a b.c", "d= is not"}, {"d=Example.ORG", "d=", "d= is missing"},
		{"d=Example.ORG", "d=bücher.example", ""}, {"d=Example.ORG", "d=" + strings.Repeat("a.", 130) + "b", "d= is not"},
		{"s=S1", "s=", "s= is missing"}, {"s=S1", "s=a.b", ""}, {"s=S1", "s=a/b", "s= is not"},
		{"h=From:to", "h=to", "From"}, {"h=From:to", "h=", "no field"}, {"h=From:to", "h=from::to", "no field"}, {"h=From:to", "h= From\r\n :\tto ", ""}, {"h=From:to", "h=from:a b", "no field"},
		{"; h=From:to", "", "h= is missing"}, {"h=From:to", "h=from" + strings.Repeat(":x", 1000), "names more"},
		{"s=S1", "s=S1; c=relaxed", ""}, {"s=S1", "s=S1; c=relaxed/relaxed", ""}, {"s=S1", "s=S1; c=", "c="}, {"s=S1", "s=S1; c=nowsp", "c="}, {"s=S1", "s=S1; c=simple/x", "c="},
		{"s=S1", "s=S1; l=10", ""}, {"s=S1", "s=S1; l=-1", "l="}, {"s=S1", "s=S1; l=", "l="}, {"s=S1", "s=S1; l=" + strings.Repeat("9", 70), ""}, {"s=S1", "s=S1; l=" + strings.Repeat("9", 77), "l="},
		{"s=S1", "s=S1; t=", "t="}, {"s=S1", "s=S1; t=abc", "t="}, {"s=S1", "s=S1; t=5; x=4", "before"}, {"s=S1", "s=S1; x=z", "x="},
		{"s=S1", "s=S1; q=dns/txt:other", ""}, {"s=S1", "s=S1; q=other", "q="}, {"s=S1", "s=S1; zz=unknown", ""}, {"s=S1", "s=S1; v=2", ""},
	} {
		_, err := ParseMessageSignature(strings.Replace(good, c.old, c.new, 1))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s for %s: %v", c.new, c.old, err)
		}
	}
	s, _ = ParseMessageSignature(good + "; x=1000")
	if !s.Expired(time.Unix(1001, 0)) || s.Expired(time.Unix(1000, 0)) {
		t.Error("x= is not kept")
	}
}

func TestParseKey(t *testing.T) {
	rsaText := func(bits int) string {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537})
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(der)
	}
	n := new(big.Int).Lsh(big.NewInt(1), 1023)
	bare := base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 3}))
	ed := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, c := range []struct {
		name, record string
		want         error
	}{
		{"bare", "p=" + rsaText(1024), nil}, {"usual", "v=DKIM1; k=rsa; p=" + rsaText(2048), nil}, {"largest", "p=" + rsaText(4096), nil}, {"PKCS 1", "p=" + bare, nil},
		{"ed25519", "v=DKIM1; k=ed25519; p=" + ed, nil}, {"flags", "t=y:s; s=email; h=sha1:sha256; n=note; p=" + rsaText(1024), nil},
		{"512", "p=" + rsaText(512), ErrKeyForm}, {"8192", "p=" + rsaText(8192), ErrKeyForm}, {"16384", "p=" + rsaText(16384), ErrKeyForm},
		{"revoked", "v=DKIM1; p=", ErrKeyRevoked}, {"no p", "v=DKIM1; k=rsa", ErrKeyForm}, {"no base64", "p=!!", ErrKeyForm}, {"no key", "p=YWJj", ErrKeyForm},
		{"version", "v=DKIM2; p=" + ed, ErrKeyForm}, {"version not first", "k=ed25519; v=DKIM1; p=" + ed, ErrKeyForm}, {"sha1", "h=sha1; p=" + rsaText(1024), ErrKeyForm},
		{"service", "s=tlsrpt; p=" + rsaText(1024), ErrKeyForm}, {"kind", "k=dsa; p=" + rsaText(1024), ErrKeyForm}, {"short ed25519", "k=ed25519; p=YWJj", ErrKeyForm},
		{"text", "v=spf1 -all", ErrKeyForm}, {"empty", "", ErrKeyForm}, {"long", "p=" + strings.Repeat("A", 5000), ErrKeyForm}, {"ed25519 as rsa", "p=" + ed, ErrKeyForm},
	} {
		if _, err := ParseKey(c.record); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := FindKey([]string{"v=spf1 -all", "p=" + rsaText(1024)}); err != nil {
		t.Errorf("a key beside something else: %v", err)
	}
	if _, err := FindKey(nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("no record: %v", err)
	}
	if _, err := FindKey(make([]string, 1000)); !errors.Is(err, ErrKeyForm) {
		t.Errorf("1000 records: %v", err)
	}
}

// FuzzParse: what strangers write is read without harm, and a list that was read
// says what its text says.
func FuzzParse(f *testing.F) {
	f.Add("a=rsa-sha256; b=YQ==; bh=YWI=; d=example.org; s=s1; h=From:to; c=relaxed")
	f.Add("v=DKIM1; k=ed25519; p=")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = ParseMessageSignature(text)
		_, _ = ParseKey(text)
		tags, err := ParseTags(text)
		if err != nil {
			return
		}
		for _, tag := range tags {
			if v, ok := tags.Get(tag.Name); !ok || v != tag.Value {
				t.Fatalf("tag %q of %q is %q", tag.Name, text, v)
			}
			again, err := ParseTags(tags.Without(text, tag.Name))
			if v, _ := again.Get(tag.Name); err != nil || v != "" || len(again) != len(tags) {
				t.Fatalf("%q without %q: %v, %v", text, tag.Name, again, err)
			}
		}
	})
}

// FuzzHeader: a header says the same in whatever pieces it comes.
func FuzzHeader(f *testing.F) {
	f.Add("A: b\r\n c\r\nD:\r\n\r\nbody", 3)
	f.Fuzz(func(t *testing.T, msg string, size int) {
		whole, pieces := Header{Max: 200}, Header{Max: 200}
		body := string(whole.Write([]byte(msg)))
		var got []byte
		size = min(max(size, 1), 50)
		for rest := []byte(msg); len(rest) > 0; {
			n := min(size, len(rest))
			got = append(got, pieces.Write(rest[:n])...)
			rest = rest[n:]
		}
		if string(got) != body {
			t.Fatalf("bodies %q and %q", body, got)
		}
		whole.Close()
		pieces.Close()
		a, errA := whole.Fields()
		b, errB := pieces.Fields()
		if !errors.Is(errA, errB) || len(a.list) != len(b.list) {
			t.Fatalf("%v and %v, %d and %d fields", errA, errB, len(a.list), len(b.list))
		}
		for i := range a.list {
			if !bytes.Equal(a.list[i].raw, b.list[i].raw) || bytes.ContainsAny(a.list[i].Relaxed()[:len(a.list[i].Relaxed())-2], "\r\n") {
				t.Fatalf("field %q and %q", a.list[i].raw, b.list[i].raw)
			}
		}
	})
}

func TestAny(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "A: b\r\n": false, "arc": false, "ARC-Seal: i=1\r\n": true, "A: b\r\naRc-x: y\r\n": true, "A: b\r\nXarc-x: y\r\n": false,
		"A: arc-b\r\nC: d\r\n": false, "Subject: x\r\narc\r\n": false, "A: b\narc-x: y\n\nbody": true, "A: b\r\n\r\narc-x: y\r\n": false,
	} {
		var h Header
		h.Write([]byte(header))
		h.Close()
		if got := h.Any("arc-"); got != want {
			t.Errorf("%q: %t", header, got)
		}
		h.Release()
		h.Release()
		if h.Any("arc-") {
			t.Errorf("%q: there is something after Release", header)
		}
	}
}

// TestHeaderGrows: the budget knows all that a header holds: what it has outgrown is given back.
func TestHeaderGrows(t *testing.T) {
	h := Header{Budget: NewBudget(1 << 20)}
	defer h.Release()
	line := []byte("A: " + strings.Repeat("b", 95) + "\r\n")
	for range 300 {
		h.Write(line)
		held := cap(h.buf)
		if h.pooled != nil && &h.buf[0] != &h.pooled[0] {
			held += len(h.pooled)
		}
		if int64(held) != h.Budget.Used() {
			t.Fatalf("%d octets are held of %d, and %d counted", held, len(h.buf), h.Budget.Used())
		}
	}
	h.Write([]byte("\r\n"))
	f, err := h.Fields()
	if err != nil || f.Count("a") != 300 || f.Named("a")[299].Text() != string(line[2:]) {
		t.Errorf("%v, %d fields", err, f.Count("a"))
	}
}
