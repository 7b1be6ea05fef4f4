package arc

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crossfade/relay/authn/dkim"
)

// testKeys are made once: making them is what takes time.
var testKeys = sync.OnceValue(func() (keys struct {
	small, usual, other *rsa.PrivateKey
	ed                  ed25519.PrivateKey
}) {
	keys.small, _ = rsa.GenerateKey(rand.Reader, 1024)
	keys.usual, _ = rsa.GenerateKey(rand.Reader, 2048)
	keys.other, _ = rsa.GenerateKey(rand.Reader, 1024)
	_, keys.ed, _ = ed25519.GenerateKey(rand.Reader)
	return keys
})

// zone is a DNS of TXT records.
type zone struct {
	records map[string][]string
	fails   map[string]error
	asked   atomic.Int64
}

func (z *zone) lookup(_ context.Context, name string) ([]string, error) {
	z.asked.Add(1)
	if err := z.fails[name]; err != nil {
		return nil, err
	}
	return z.records[name], nil
}

func record(t testing.TB, key crypto.Signer) string {
	t.Helper()
	r, err := Record(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testZone has the keys of the hosts that the tests seal as.
func testZone(t testing.TB) *zone {
	k := testKeys()
	return &zone{records: map[string][]string{
		"s1._domainkey.one.example":   {record(t, k.small)},
		"s1._domainkey.two.example":   {record(t, k.usual)},
		"s1._domainkey.three.example": {record(t, k.other)},
		"ed._domainkey.one.example":   {record(t, k.ed)},
		"s1._domainkey.gone.example":  {"v=DKIM1; p="},
		"s1._domainkey.text.example":  {"v=spf1 -all"},
		"s1._domainkey.wrong.example": {record(t, k.other)},
		"s1._domainkey.list.example":  {"v=DKIM1; k=rsa; key"},
		// As a zone file that joins lines with blanks has it (RFC 6376, 2.10).
		"s1._domainkey.pieces.example": {strings.NewReplacer("p=", "p= ", "A", "A ").Replace(record(t, k.small))},
	}, fails: map[string]error{"s1._domainkey.sick.example": errors.New("no answer")}}
}

const plainMessage = "Received: from a by b; Sat, 21 Nov 2026 12:00:00 +0000\r\n" +
	"From: Ann <ann@sender.example>\r\nTo: list@one.example\r\nSubject: A letter,\r\n\tfolded  once\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\n" +
	"Message-ID: <1@sender.example>\r\nMIME-Version: 1.0\r\nX-Odd:  spaced   out \r\n\r\nHello  world \r\n\r\nend\t\r\n\r\n\r\n"

// testNow is the time of all tests.
var testNow = time.Unix(1_795_000_000, 0)

const testResults = "one.example; spf=pass smtp.mfrom=sender.example; dmarc=pass header.from=sender.example"

// sealAs seals a message with a Sealer, after a Verifier has judged it.
func sealAs(t testing.TB, z *zone, msg, domain, selector string, key crypto.Signer) string {
	t.Helper()
	return mustSeal(t, msg, domain, selector, key, verify(t, z, msg))
}

func mustSeal(t testing.TB, msg, domain, selector string, key crypto.Signer, r Result) string {
	t.Helper()
	lines, err := trySeal(t, msg, domain, selector, key, r)
	if err != nil {
		t.Fatalf("seal: %v", err)
	}
	return lines + msg
}

func trySeal(t testing.TB, msg, domain, selector string, key crypto.Signer, r Result) (string, error) {
	t.Helper()
	s, err := NewSealer(SealerConfig{Domain: domain, Selector: selector, Key: func() crypto.Signer { return key }, Now: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	x := s.Begin()
	for rest := []byte(msg); len(rest) > 0; {
		n := min(13, len(rest))
		x.Write(rest[:n])
		rest = rest[n:]
	}
	return x.Seal(r, strings.Replace(testResults, "one.example", domain, 1), "")
}

// verify judges a message that comes in small pieces.
func verify(t testing.TB, z *zone, msg string) Result {
	t.Helper()
	return verifyAt(t, z, msg, testNow)
}

func verifyAt(t testing.TB, z *zone, msg string, now time.Time) Result {
	t.Helper()
	v, err := NewVerifier(Config{LookupTXT: z.lookup, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	x := v.Begin()
	for rest := []byte(msg); len(rest) > 0; {
		n := min(17, len(rest))
		x.Write(rest[:n])
		rest = rest[n:]
	}
	return x.Finish(t.Context())
}

// chained is the plain message with a chain of one to three sets.
func chained(t testing.TB, sets int) string {
	t.Helper()
	k, z := testKeys(), testZone(t)
	msg := plainMessage
	for n, domain := range []string{"one.example", "two.example", "three.example"}[:sets] {
		msg = sealAs(t, z, msg, domain, "s1", []crypto.Signer{k.small, k.usual, k.other}[n])
	}
	return msg
}

// forged is a set that is put together by hand and signed by its own rules, so
// that only what is wrong on purpose is wrong.
type forged struct {
	instance int
	aar      string // whole text; empty: a usual one
	// ams and as are the tags but for bh= (unless they have one) and b=.
	ams, as string
	key     crypto.Signer // default: one.example's
	sealKey crypto.Signer // default: key
	alone   bool          // the seal covers this set only
	last    string        // what stands behind b= in both
	broken  func(b64 string) string
}

const (
	usualAMS = "i=%d; a=rsa-sha256; c=relaxed/relaxed; d=one.example; s=s1; t=1795000000; h=from:to:subject:date"
	usualAS  = "i=%d; a=rsa-sha256; cv=%s; d=one.example; s=s1; t=1795000000"
)

func amsTags(n int) string           { return fmt.Sprintf(usualAMS, n) }
func asTags(n int, cv Status) string { return fmt.Sprintf(usualAS, n, cv) }

func (f forged) add(t testing.TB, msg string) string {
	t.Helper()
	if f.key == nil {
		f.key = testKeys().small
	}
	if f.sealKey == nil {
		f.sealKey = f.key
	}
	if f.aar == "" {
		f.aar = fmt.Sprintf(" i=%d; "+testResults, f.instance)
	}
	head, body := split(msg)
	var h dkim.Header
	h.Write([]byte(head + "\r\n"))
	fields, err := h.Fields()
	if err != nil {
		t.Fatal(err)
	}
	aar := "ARC-Authentication-Results:" + f.aar + "\r\n"
	ams := f.signMessage(t, fields, body)
	as := f.signSeal(t, fields, aar, ams)
	return as + ams + aar + msg
}

func split(msg string) (head, body string) {
	i := strings.Index(msg, "\r\n\r\n")
	return msg[:i+2], msg[i+4:]
}

func (f forged) signMessage(t testing.TB, fields *dkim.Fields, body string) string {
	tags, err := dkim.ParseTags(f.ams)
	if err != nil {
		t.Fatalf("%s: %v", f.ams, err)
	}
	text := " " + f.ams
	head, form := dkim.Simple, dkim.Simple
	c, _ := tags.Get("c")
	if strings.HasPrefix(c, "relaxed") {
		head = dkim.Relaxed
	}
	if strings.HasSuffix(c, "/relaxed") {
		form = dkim.Relaxed
	}
	if _, ok := tags.Get("bh"); !ok {
		sum := dkim.NewBodyHash(form)
		sum.Write([]byte(body))
		bh := sum.Sum()
		if l, _ := tags.Get("l"); l == "5" {
			five := sha256.Sum256([]byte(body[:5])) // letters, in either form
			bh = five[:]
		}
		text += "; bh=" + base64.StdEncoding.EncodeToString(bh)
	}
	signed, _ := tags.Get("h")
	names := strings.Split(strings.ToLower(signed), ":")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	h := sha256.New()
	fields.WriteSigned(h, head, names)
	field := "ARC-Message-Signature:" + text + "; b=" + f.last
	if head == dkim.Relaxed {
		field = strings.TrimSuffix(string(relaxed(field)), "\r\n")
	}
	h.Write([]byte(field))
	return "ARC-Message-Signature:" + text + "; b=" + f.sign(t, f.key, h.Sum(nil)) + f.last + "\r\n"
}

func (f forged) signSeal(t testing.TB, fields *dkim.Fields, aar, ams string) string {
	h := sha256.New()
	if !f.alone {
		c, err := collect(fields)
		if err != nil {
			t.Fatalf("the chain below: %v", err)
		}
		for _, s := range c.sets {
			for _, field := range s.fields {
				h.Write(field.Relaxed())
			}
		}
	}
	h.Write(relaxed(aar))
	h.Write(relaxed(ams))
	h.Write(bytes.TrimSuffix(relaxed("ARC-Seal: "+f.as+"; b="+f.last), []byte("\r\n")))
	return "ARC-Seal: " + f.as + "; b=" + f.sign(t, f.sealKey, h.Sum(nil)) + f.last + "\r\n"
}

func (f forged) sign(t testing.TB, key crypto.Signer, digest []byte) string {
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.(ed25519.PrivateKey); ok {
		opts = crypto.Hash(0)
	}
	value, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(value)
	if f.broken != nil {
		text = f.broken(text)
	}
	return text
}
