package dkim

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"testing"

	msgauth "github.com/emersion/go-msgauth/dkim"
)

// verifyOne verifies the topmost DKIM signature with what is in this package.
func verifyOne(msg string, record string) error {
	var h Header
	body := h.Write([]byte(msg))
	h.Close()
	fields, err := h.Fields()
	if err != nil {
		return err
	}
	found := fields.Named("dkim-signature")
	if len(found) == 0 {
		return errors.New("no signature")
	}
	s, err := ParseSignature(found[0].Text())
	if err != nil {
		return err
	}
	digest := fields.Digest(found[0], s)
	hash := NewBodyHash(s.Body)
	hash.Write(body)
	if err := s.CheckBody(hash); err != nil {
		return err
	}
	key, err := FindKey([]string{record})
	if err != nil {
		return err
	}
	return key.VerifySignature(s, digest)
}

// rfc8463 is the message of RFC 8463, A.3, signed with both algorithms.
const rfc8463 = `DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
`

// TestRFC8463: the example of the RFC verifies, each signature with its own key
// and not with the other's.
func TestRFC8463(t *testing.T) {
	msg := strings.ReplaceAll(rfc8463, "\n", "\r\n")
	second := msg[strings.Index(msg, "DKIM-Signature: v=1; a=rsa"):]
	const ed = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
	const rsaKey = "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/b" +
		"yYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
	for _, c := range []struct {
		name, msg, key string
		good           bool
	}{
		{"ed25519", msg, ed, true}, {"rsa", second, rsaKey, true}, {"ed25519 with the RSA key", msg, rsaKey, false}, {"rsa with the other key", second, ed, false},
		{"body changed", strings.Replace(msg, "hungry", "angry", 1), ed, false}, {"subject changed", strings.Replace(second, "dinner", "lunch", 1), rsaKey, false},
		{"spaces", strings.Replace(msg, "Is dinner", "Is  \t dinner", 1), ed, true}, {"t=s", msg, ed + "; t=s", true},
	} {
		if err := verifyOne(c.msg, c.key); (err == nil) != c.good {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestParseSignature(t *testing.T) {
	const good = "v=1; a=rsa-sha256; b=YQ==; bh=YWI=; d=example.org; s=s1; h=from"
	for _, c := range []struct{ old, new, err string }{
		{"", "", ""}, {"v=1; ", "", "v="}, {"v=1", "v=2", "v="}, {"s=s1", "s=s1; i=@example.org", ""}, {"s=s1", "s=s1; i=joe@Sub.example.org", ""},
		{"s=s1", "s=s1; i=@badexample.org", "another domain"}, {"s=s1", "s=s1; i=joe", "i="}, {"s=s1", "s=s1; i=@", "i="}, {"d=example.org", "d=sub.example.org; i=@example.org", "another domain"},
	} {
		if _, err := ParseSignature(strings.Replace(good, c.old, c.new, 1)); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", c.new, err)
		}
	}
	s, err := ParseSignature(strings.Replace(good, "s=s1", "s=s1; i=@sub.example.org", 1))
	if err != nil {
		t.Fatal(err)
	}
	strict := Key{Algorithm: RSASHA256, Strict: true}
	if err := strict.VerifySignature(s, nil); !errors.Is(err, ErrKeyForm) {
		t.Errorf("t=s and a subdomain: %v", err)
	}
}

// signer has the keys of the comparison below.
type signer struct {
	key    crypto.Signer
	record string
}

func signers(t testing.TB) (out []signer) {
	t.Helper()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(small.Public())
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return []signer{
		{small, "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)},
		{private, "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)},
	}
}

// randomMessage makes a message of pieces that canonical forms care about.
func randomMessage(r *mathrand.Rand) string {
	pick := func(pieces ...string) string { return pieces[r.IntN(len(pieces))] }
	var b strings.Builder
	b.WriteString("From: a@example.org\r\n")
	for range r.IntN(6) {
		b.WriteString(pick("To", "Subject", "X-A", "subject", "Received", "Date") + pick(": ", ":", ":\t ", ":  "))
		for range r.IntN(5) {
			b.WriteString(pick("a", "bc", " ", "  ", "\t", "\r\n ", "=20", "x:y", ";"))
		}
		b.WriteString("z" + pick("", " ", "\t ") + "\r\n")
	}
	b.WriteString("\r\n")
	for range r.IntN(10) {
		b.WriteString(pick("a", "bc", " ", "\t", "  ", "\r\n", "\r\n", "\r\n\r\n", "=20", "."))
	}
	b.WriteString("\r\n")
	return b.String()
}

// changed changes something in a message that may or may not matter. Line ends
// stay whole: the relay has settled them before anybody verifies anything.
func changed(r *mathrand.Rand, original string) string {
	msg := original
	for range r.IntN(3) {
		old := []string{" ", "\t", "a", "z", "\r\n\r\n", ";", "X-A", "To", "h=", "b=", "t=", "From", "="}[r.IntN(13)]
		at := strings.Index(msg[r.IntN(len(msg)):], old)
		if at < 0 {
			continue
		}
		at += len(msg) - len(msg[strings.Index(msg, "\r\n"):]) // somewhere else again
		if at+len(old) > len(msg) {
			continue
		}
		msg = msg[:at] + []string{" ", "  ", "q", "\t", ""}[r.IntN(5)] + msg[min(at+r.IntN(2), len(msg)-2):]
	}
	if rest := strings.ReplaceAll(msg, "\r\n", ""); strings.ContainsAny(rest, "\r\n") {
		return original
	}
	return msg
}

// agree has both verify a message: they have to agree on whether it passes.
func agree(t *testing.T, s signer, seed uint64) (passed bool) {
	r := mathrand.New(mathrand.NewPCG(seed, 7))
	msg := randomMessage(r)
	forms := []msgauth.Canonicalization{msgauth.CanonicalizationSimple, msgauth.CanonicalizationRelaxed}
	var signed bytes.Buffer
	err := msgauth.Sign(&signed, strings.NewReader(msg), &msgauth.SignOptions{
		Domain: "example.org", Selector: "s", Signer: s.key, Hash: crypto.SHA256, HeaderCanonicalization: forms[r.IntN(2)], BodyCanonicalization: forms[r.IntN(2)],
		HeaderKeys: [][]string{nil, {"From", "To", "Subject", "Subject", "X-Not"}, {"from", "x-a"}}[r.IntN(3)],
	})
	if err != nil {
		t.Fatalf("seed %d: sign: %v", seed, err)
	}
	whole := signed.String()
	if r.IntN(3) > 0 {
		whole = changed(r, whole)
	}
	list, err := msgauth.VerifyWithOptions(strings.NewReader(whole), &msgauth.VerifyOptions{LookupTXT: func(string) ([]string, error) { return []string{s.record}, nil }})
	theirs := err
	if err == nil {
		theirs = errors.New("no signature")
		if len(list) > 0 {
			theirs = list[0].Err
		}
	}
	ours := verifyOne(whole, s.record)
	if errors.Is(ours, ErrHeaderForm) {
		return false // a line that is no field is nothing to go-msgauth where it is not signed
	}
	if (ours == nil) != (theirs == nil) {
		t.Fatalf("seed %d: we say %v, go-msgauth says %v, of\n%q", seed, ours, theirs, whole)
	}
	return ours == nil
}

// TestLikeMsgauth: random messages, signed by go-msgauth and then changed in ways
// that may not matter, get the same verdict from it and from us.
func TestLikeMsgauth(t *testing.T) {
	passed := 0
	const n = 1500
	for i, s := range signers(t) {
		for seed := range uint64(n) {
			if agree(t, s, seed*2+uint64(i)) {
				passed++
			}
		}
	}
	t.Log(fmt.Sprintf("%d of %d pass", passed, 2*n))
	if passed < n/2 || passed > 2*n-n/10 {
		t.Errorf("%d of %d pass: the comparison shows nothing", passed, 2*n)
	}
}

// FuzzLikeMsgauth is the same with other seeds.
func FuzzLikeMsgauth(f *testing.F) {
	f.Add(uint64(1))
	keys := signers(f)
	f.Fuzz(func(t *testing.T, seed uint64) { agree(t, keys[seed%2], seed) })
}
